//! Which requests adit accepts, and how it changes headers.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{PATIENCE, TestApp};

/// Sends bytes, and returns everything that adit answers until the end.
async fn exchange(app: &TestApp, sent: &[u8]) -> String {
    let mut stream = TcpStream::connect(app.http).await.unwrap();
    stream.write_all(sent).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end in time").unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn what_is_ambiguous_gets_no_further_and_what_is_valid_does() {
    let app = TestApp::start("").await;
    let host = "Host: web.shop.localhost\r\n";
    // Each could be parsed in two ways. One of them contains a request whose path shows whether it arrived.
    let refused = [
        format!("POST /whoami HTTP/1.1\r\n{host}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("POST /whoami HTTP/1.1\r\n{host}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        format!("POST /whoami HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        format!("POST /whoami HTTP/1.1\r\n{host}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        format!("POST /whoami HTTP/1.1\r\n{host}X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("GET /whoami HTTP/1.1\n{host}\r\n"),
        format!("GET /whoami HTTP/1.1\r\n{host}Host: tools.shop.localhost\r\n\r\n"),
        "GET http://tools.shop.localhost/whoami HTTP/1.1\r\nHost: web.shop.localhost\r\n\r\n".to_owned(),
        "CONNECT web.shop.localhost:80 HTTP/1.1\r\nHost: web.shop.localhost:80\r\n\r\n".to_owned(),
        "GET /whoami HTTP/1.1\r\n\r\n".to_owned(),
    ];
    for request in &refused {
        let pipelined = format!("GET /whoami HTTP/1.1\r\n{host}\r\n{request}GET /whoami HTTP/1.1\r\n{host}\r\n");
        for (sent, answers) in [(request, 0), (&pipelined, 1)] {
            // The first request of a connection may be for the forward proxy.
            if sent.starts_with("CONNECT ") {
                continue;
            }
            let answer = exchange(&app, sent.as_bytes()).await;
            assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), answers, "{sent:?}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 400 Bad Request").count(), 1, "{sent:?}: {answer}");
            assert!(answer.contains("connection: close"), "{sent:?}: {answer}");
        }
    }
    let taken = [
        format!("\r\nGET /headers?a=%2F&b=[]|' HTTP/1.1\r\n{host}X-Odd:\t a  b \r\nConnection: close\r\n\r\n"),
        format!(
            "POST /headers HTTP/1.1\r\n{host}Transfer-Encoding: Chunked\r\nConnection: close\r\n\r\n2;x=\"y\"\r\nhi\r\n0\r\nT: v\r\n\r\n"
        ),
        "GET http://web.shop.localhost/headers HTTP/1.1\r\nHost: web.shop.localhost\r\nConnection: close\r\n\r\n"
            .to_owned(),
        format!("OPTIONS /headers HTTP/1.0\r\n{host}\r\n"),
    ];
    for sent in &taken {
        let answer = exchange(&app, sent.as_bytes()).await;
        assert!(answer.contains(" 200 OK") && answer.contains("\"headers\""), "{sent:?}: {answer}");
    }
    app.finish().await;
}

#[tokio::test]
async fn pages_of_other_sites_cannot_change_anything() {
    let app = TestApp::start(
        "http: {k8s: {routes: {open.localhost: {namespace: shop, service: web, port: 80, allow_origins: [\"https://app.example\"]}}}}\n",
    )
    .await;
    let send = async |host: &str, method: &str, headers: &str| {
        app.request(&format!("{method} /whoami HTTP/1.1\r\nHost: {host}\r\n{headers}Connection: close\r\n\r\n")).await
    };
    let evil = "Origin: https://evil.example\r\n";
    let (status, body) = send("web.shop.localhost", "POST", evil).await;
    assert_eq!(status, 403, "{body}");
    assert!(
        body.contains("cross-origin request from https://evil.example") && body.contains("allow_origins"),
        "{body}"
    );
    assert_eq!(send("web.shop.localhost", "GET", evil).await.0, 200);
    assert_eq!(send("web.shop.localhost", "POST", "Origin: http://localhost:3000\r\n").await.0, 200);
    assert_eq!(send("web.shop.localhost", "POST", "Sec-Fetch-Site: cross-site\r\n").await.0, 403);
    assert_eq!(send("open.localhost", "POST", "Origin: https://app.example\r\n").await.0, 200);
    assert_eq!(send("open.localhost", "POST", evil).await.0, 403);
    let upgrade = "Upgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n";
    let asks =
        format!("GET /ws HTTP/1.1\r\nHost: web.shop.localhost\r\n{upgrade}{evil}Connection: upgrade, close\r\n\r\n");
    assert_eq!(app.request(&asks).await.0, 403);
    // An attacker who rebinds a name to this machine reaches no cluster.
    assert_eq!(send("evil.example", "GET", "").await.0, 404);
    app.finish().await;
}

#[tokio::test]
async fn routes_change_headers_and_a_request_is_marked() {
    let app = TestApp::start(
        "http: {k8s: {routes: {a.localhost: {namespace: shop, service: web, port: 80, rewrite_host: true,\n\
           headers: {request: {set: {X-Team: blue}, remove: [X-Secret]}, response: {set: {X-Via: adit}, remove: [Content-Type]}}}}}}\n",
    )
    .await;
    let answer =
        exchange(&app, b"GET /headers HTTP/1.1\r\nHost: a.localhost\r\nX-Secret: 1\r\nConnection: close\r\n\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(head.contains("x-via: adit") && !head.contains("content-type"), "{head}");
    let told: serde_json::Value = serde_json::from_str(body).unwrap();
    let header = |name: &str| {
        let headers = told["headers"].as_array().unwrap();
        let found = headers.iter().find(|pair| pair[0].as_str().is_some_and(|found| found.eq_ignore_ascii_case(name)));
        found.and_then(|pair| pair[1].as_str()).map(str::to_owned)
    };
    assert_eq!(header("x-team").as_deref(), Some("blue"), "{body}");
    assert_eq!(header("x-secret"), None);
    assert_eq!(header("host").as_deref(), Some("web.shop.svc.cluster.local"));
    assert_eq!(header("x-forwarded-host").as_deref(), Some("a.localhost"));
    assert_eq!(header("x-request-id").map(|id| id.len()), Some(32));
    assert_eq!(header("via"), None, "nginx would not compress its answer");
    let passed = header("cdn-loop").unwrap();
    assert!(passed.starts_with("adit-"), "{passed}");
    // A request that returns to its adit gets an error about the loop.
    let again = format!("GET / HTTP/1.1\r\nHost: a.localhost\r\nCDN-Loop: {passed}\r\nConnection: close\r\n\r\n");
    let (status, body) = app.request(&again).await;
    assert_eq!(status, 508, "{body}");
    app.finish().await;
}

#[tokio::test]
async fn errors_are_told_in_the_clients_own_way() {
    let app = TestApp::start("http: {k8s: {routes: {shop.localhost: {namespace: shop, service: web}}}}\n").await;
    let ask = |more: &str| format!("POST /x HTTP/1.1\r\nHost: shp.localhost\r\n{more}Connection: close\r\n\r\n");
    let (status, json) = app.request(&ask("Accept: application/json\r\n")).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((status, &json["error"], &json["status"]), (404, &"unknown-host".into(), &404.into()));
    let (_, html) = app.request(&ask("Accept: text/html\r\n")).await;
    assert!(html.contains("href=\"http://shop.localhost:"), "{html}");
    let call = exchange(&app, ask("Content-Type: application/grpc\r\n").as_bytes()).await.to_ascii_lowercase();
    assert!(call.starts_with("http/1.1 200 ok") && call.contains("grpc-status: 12"), "{call}");
    assert!(call.contains("x-adit-error: unknown-host"), "{call}");
    app.finish().await;
}

#[tokio::test]
async fn a_websocket_over_http2_reaches_a_backend_of_http1() {
    let app = TestApp::start("").await;
    let stream = TcpStream::connect(app.http).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    // The server's settings must arrive first: they announce extended CONNECT.
    let plain = Request::get("http://web.shop.localhost/whoami").body(Empty::<Bytes>::new()).unwrap();
    let plain = sender.send_request(plain).await.unwrap();
    assert_eq!(plain.status(), StatusCode::OK);
    plain.into_body().collect().await.unwrap();
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("http://web.shop.localhost/ws")
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(Empty::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut upgraded = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    // "hi", masked with a key of zeros.
    upgraded.write_all(b"\x81\x82\0\0\0\0hi").await.unwrap();
    let mut echo = [0; 4];
    timeout(PATIENCE, upgraded.read_exact(&mut echo)).await.unwrap().unwrap();
    assert_eq!(&echo, b"\x81\x02hi");
    drop((upgraded, sender));
    app.finish().await;
}
