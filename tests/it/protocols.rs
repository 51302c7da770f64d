//! Protocols of backends whose Service declares them wrongly or not at all, and the port for https.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{support::TestApp, tls};

/// Adds a Service for the demo's `tools`: 8080 serves HTTP, 8081 only HTTP/2, 8443 TLS.
fn put_service(app: &TestApp, name: &str, ports: Value) {
    let spec = json!({"selector": {"app": "tools"}, "clusterIP": "10.96.7.7", "ports": ports});
    let metadata = json!({"namespace": "shop", "name": name});
    app.demo.world().put("services", json!({"metadata": metadata, "spec": spec}));
}

/// Sends a GET over HTTP/2 without TLS (prior knowledge), and returns status and body.
async fn over_h2c(app: &TestApp, host: &str) -> (u16, String) {
    let stream = TokioIo::new(TcpStream::connect(app.http).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get(format!("http://{host}/headers")).body(Full::<Bytes>::default()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    (status, String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into_owned())
}

#[tokio::test]
async fn a_port_without_a_name_is_spoken_to_in_what_it_speaks() {
    let app = TestApp::start("").await;
    put_service(&app, "unnamed", json!([{"port": 50051, "targetPort": 8081, "protocol": "TCP"}]));
    put_service(&app, "secret", json!([{"port": 9000, "targetPort": 8443, "protocol": "TCP"}]));
    put_service(&app, "wrong", json!([{"name": "grpc", "port": 80, "targetPort": 8080, "protocol": "TCP"}]));
    for (host, version, tls) in [
        ("unnamed.shop.localhost", "HTTP/2.0", false),
        ("secret.shop.localhost", "HTTP/1.1", true),
        ("wrong.shop.localhost", "HTTP/1.1", false),
    ] {
        for _ in 0..2 {
            for (status, body) in [over_h2c(&app, host).await, app.get(host, "/headers").await] {
                assert_eq!(status, 200, "{host}: {body}");
                assert!(body.contains(&format!("\"version\": \"{version}\"")), "{host}: {body}");
                assert!(body.contains(&format!("\"tls\": {tls}")), "{host}: {body}");
            }
        }
    }
    let (_, index) = app.get("127.0.0.1", "/").await;
    assert!(index.contains("its name is") && index.contains("scheme: http"), "the wrong name is told: {index}");
    app.finish().await;
}

#[tokio::test]
async fn https_of_a_name_without_a_port_means_the_https_port() {
    let app = TestApp::start("").await;
    let both = json!([
        {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"},
        {"name": "https", "port": 443, "targetPort": 8443, "protocol": "TCP"}
    ]);
    put_service(&app, "argo", both);
    let (certificate, answer) = tls::get(&app, "argo.shop.localhost").await;
    assert!(certificate.contains("tools.shop.svc") && answer.contains("\"tls\": true"), "{answer}");
    let (_, plain) = app.get("argo.shop.localhost", "/headers").await;
    assert!(plain.contains("\"tls\": false"), "{plain}");
    // An explicit port overrides the choice.
    let (certificate, answer) = tls::get(&app, "80.argo.shop.localhost").await;
    assert!(!certificate.contains("tools.shop.svc") && answer.contains("\"tls\": false"), "{answer}");
    app.finish().await;
}

#[tokio::test]
async fn a_redirect_of_the_same_host_comes_back_to_adit() {
    let app = TestApp::start("").await;
    let port = app.http.port();
    for (to, led) in [
        ("http://web.shop.localhost/docs/", format!("http://web.shop.localhost:{port}/docs/")),
        ("http://web.shop.localhost:8080/a?b=c", format!("http://web.shop.localhost:{port}/a?b=c")),
        ("https://web.shop.localhost/", format!("https://web.shop.localhost:{port}/")),
        ("https://login.example.com/", "https://login.example.com/".to_owned()),
    ] {
        let mut stream = TcpStream::connect(app.http).await.unwrap();
        let host = format!("web.shop.localhost:{port}");
        let request = format!("GET /redirect?to={to} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.to_lowercase().contains(&format!("location: {led}\r\n")), "{to}: {answer}");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_declared_database_gets_no_http() {
    let app = TestApp::start("").await;
    put_service(&app, "cache", json!([{"port": 6379, "targetPort": 8080, "protocol": "TCP"}]));
    let (status, page) = app.get("cache.shop.localhost", "/").await;
    assert!(
        status == 502 && page.contains("does not speak HTTP") && page.contains("declared as a Redis port"),
        "{page}"
    );
    assert!(page.contains("--to db=cache.shop -- sh -c"), "{page}");
    app.finish().await;
}
