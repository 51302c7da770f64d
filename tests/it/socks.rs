//! The forward proxy with SOCKS5: names of the cluster, contexts as user names, and correct reply codes.

use std::{io::ErrorKind, net::SocketAddr, process::Command};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::support::{PATIENCE, TestApp};

/// Result of a SOCKS5 request: a stream, or the reply code.
type Socks = Result<TcpStream, u8>;

pub async fn connect(proxy: SocketAddr, user: Option<&str>, host: &str, port: u16) -> Socks {
    let name = [&[3, u8::try_from(host.len()).unwrap()][..], host.as_bytes()].concat();
    request(proxy, user, 1, &name, port).await
}

async fn request(proxy: SocketAddr, user: Option<&str>, command: u8, address: &[u8], port: u16) -> Socks {
    let exchange = async {
        let mut stream = TcpStream::connect(proxy).await.unwrap();
        let mut answer = [0; 2];
        match user {
            None => {
                stream.write_all(b"\x05\x01\x00").await.unwrap();
                stream.read_exact(&mut answer).await.unwrap();
                assert_eq!(answer, [5, 0]);
            }
            Some(user) => {
                stream.write_all(b"\x05\x02\x00\x02").await.unwrap();
                stream.read_exact(&mut answer).await.unwrap();
                assert_eq!(answer, [5, 2]);
                let length = u8::try_from(user.len()).unwrap();
                stream.write_all(&[&[1, length][..], user.as_bytes(), b"\x01x"].concat()).await.unwrap();
                stream.read_exact(&mut answer).await.unwrap();
                assert_eq!(answer, [1, 0]);
            }
        }
        stream.write_all(&[&[5, command, 0][..], address, &port.to_be_bytes()].concat()).await.unwrap();
        let mut reply = [0; 10];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!((reply[0], &reply[2..]), (5, &[0, 1, 0, 0, 0, 0, 0, 0][..]));
        match reply[1] {
            0 => Ok(stream),
            code => Err(code),
        }
    };
    timeout(PATIENCE, exchange).await.expect("a reply in time")
}

async fn get(mut stream: TcpStream) -> String {
    stream.write_all(b"GET /whoami HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer in time").unwrap();
    answer
}

async fn code(app: &TestApp, user: Option<&str>, host: &str, port: u16) -> Option<u8> {
    connect(app.http, user, host, port).await.err()
}

#[tokio::test]
async fn services_and_pods_are_reached_by_their_names_in_the_cluster() {
    let app = TestApp::start("contexts: {d: {name: demo, namespace: shop}}\n").await;
    for host in [
        "web.shop.svc.cluster.local",
        "WEB.Shop.svc.cluster.local.",
        "web.shop.svc",
        "web.shop",
        "web",
        "tools-0.tools.shop.svc.cluster.local",
        "80.web.shop.localhost",
        "web.shop.localhost",
    ] {
        let port = if host.starts_with("tools-0") { 8080 } else { 80 };
        let stream = connect(app.http, None, host, port).await;
        assert!(get(stream.unwrap_or_else(|code| panic!("{host}: {code}"))).await.contains("200 OK"), "{host}");
    }
    for user in ["demo", "d", ""] {
        assert!(get(connect(app.http, Some(user), "web.shop", 80).await.unwrap()).await.contains("200 OK"), "{user}");
    }
    app.finish().await;
}

/// A JVM with `-DsocksProxyHost` always sends a user name.
#[tokio::test]
async fn the_name_of_the_own_user_means_the_current_context() {
    let output = Command::new("id").arg("-un").output().unwrap();
    let user = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let app = TestApp::start("").await;
    let stream = connect(app.http, Some(&user), "web.shop.svc.cluster.local", 80).await;
    assert!(get(stream.expect("it is no context")).await.contains("web-6d5f-"));
    let other = format!("{user}x");
    assert_eq!(code(&app, Some(&other), "web.shop.svc.cluster.local", 80).await, Some(4), "a context that is misspelt");
    app.finish().await;
    // A context with the user's name takes precedence.
    let app = TestApp::start(&format!("contexts: {{{user}: {{name: nowhere}}}}\n")).await;
    assert_eq!(code(&app, Some(&user), "web.shop.svc.cluster.local", 80).await, Some(4));
    app.finish().await;
}

#[tokio::test]
async fn a_reset_of_the_pod_is_a_reset_of_the_client() {
    let app = TestApp::start("").await;
    let reset = connect(app.http, None, "tools.shop", 7000).await.unwrap();
    let proxied = crate::connect::connect(&app, "tools.shop:7000", "").await.unwrap();
    app.demo.faults().reset(7000, true);
    for mut client in [reset, proxied] {
        let end = timeout(PATIENCE, client.read(&mut [0; 8])).await.unwrap();
        assert!(matches!(&end, Err(error) if error.kind() == ErrorKind::ConnectionReset), "{end:?}");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_and_ends_are_passed_on() {
    let app = TestApp::start("").await;
    let mut stream = connect(app.http, None, "tools.shop", 7001).await.unwrap();
    let mut byte = [0];
    timeout(PATIENCE, stream.read_exact(&mut byte)).await.expect("a greeting").unwrap();
    let mut echo = connect(app.http, None, "tools.shop", 7000).await.unwrap();
    echo.write_all(b"word").await.unwrap();
    echo.shutdown().await.unwrap();
    let mut all = String::new();
    timeout(PATIENCE, echo.read_to_string(&mut all)).await.expect("an end").unwrap();
    assert_eq!(all, "word");
    drop(stream);
    app.finish().await;
}

#[tokio::test]
async fn replies_tell_why_there_is_no_connection() {
    let app = TestApp::start("").await;
    app.demo.faults().refuse(7000, true);
    for (user, host, port, wanted) in [
        (None, "none.shop.svc.cluster.local", 80, 4),
        (None, "web.shop", 81, 4),
        (None, "web.shop", 0, 1),
        (None, "web.x/y", 80, 2),
        (None, "../x.shop.svc.cluster.local", 80, 2),
        (None, "example.com", 443, 4),
        (None, "www.example.com", 443, 2),
        (None, "192.168.0.1", 80, 4),
        (None, "127.0.0.2", 80, 2),
        (None, "169.254.169.254", 80, 2),
        (None, "localhost", 80, 2),
        (Some("demo-nobody"), "web.shop", 80, 2),
        (Some("no-such-context"), "web.shop", 80, 4),
        (None, "tools.shop", 7000, 5),
        (None, "broken.shop", 80, 6),
    ] {
        assert_eq!(code(&app, user, host, port).await, Some(wanted), "{host}:{port} as {user:?}");
    }
    app.demo.faults().refuse(7000, false);
    assert_eq!(code(&app, None, "tools.shop", 7000).await, None);
    app.demo.faults().answer("/services/web", Some(503));
    assert_eq!(code(&app, None, "web.shop", 80).await, Some(3));
    app.demo.faults().delay("/services/tools", Some(10 * PATIENCE));
    assert_eq!(code(&app, None, "tools.shop", 8080).await, Some(6));
    app.demo.faults().delay("/services/tools", None);
    assert_eq!(request(app.http, None, 2, b"\x01\x0a\x00\x00\x05", 80).await.unwrap_err(), 7);
    app.finish().await;
}

#[tokio::test]
async fn a_context_that_is_closed_to_names_without_a_route_is_closed_to_socks() {
    let app = TestApp::start("contexts: {d: {name: demo, dynamic: deny}}\n").await;
    for user in [None, Some("d"), Some("demo"), Some("DEMO")] {
        for host in
            ["web.shop.svc.cluster.local", "web.shop", "web.shop.localhost", "web-80.svc.shop.ns.demo.cx.k8s.localhost"]
        {
            assert_eq!(code(&app, user, host, 80).await, Some(2), "{host} as {user:?}");
        }
    }
    assert_eq!(app.demo.faults().requests_seen("/services/web"), 0, "the cluster was not asked");
    app.finish().await;
}

#[tokio::test]
async fn cluster_ips_and_addresses_of_pods_are_reached() {
    let app = TestApp::start("contexts: {d: {name: demo, dynamic: allow}}\n").await;
    let text = |kind: &'static str, namespace: &str, name: &str, path: &str| {
        let object = app.demo.world().get(kind, namespace, name).unwrap();
        object.pointer(path).unwrap().as_str().unwrap().to_owned()
    };
    let of_service = text("services", "shop", "web", "/spec/clusterIP");
    let of_pod = text("pods", "shop", "web-6d5f-b2", "/status/podIP");
    let name = format!("{}.shop.pod.cluster.local", of_pod.replace('.', "-"));
    for (host, port, body) in
        [(&of_service, 80, "web-6d5f-"), (&of_pod, 8080, "web-6d5f-b2"), (&name, 8080, "web-6d5f-b2")]
    {
        let answer =
            get(connect(app.http, None, host, port).await.unwrap_or_else(|code| panic!("{host}: {code}"))).await;
        assert!(answer.contains("200 OK") && answer.contains(body), "{host}: {answer}");
    }
    // The second address family of a dual-stack cluster, which no field selector knows.
    for (kind, name, path, addresses) in [
        ("services", "web", "/spec", json!({"clusterIPs": [of_service, "fd00::a"]})),
        ("pods", "web-6d5f-b2", "/status", json!({"podIPs": [{"ip": of_pod}, {"ip": "fd00::b"}]})),
    ] {
        let mut object = (*app.demo.world().get(kind, "shop", name).unwrap()).clone();
        object.pointer_mut(path).unwrap().as_object_mut().unwrap().extend(addresses.as_object().unwrap().clone());
        app.demo.world().put(kind, object);
    }
    for (host, port) in [("fd00::a", 80), ("fd00::b", 8080)] {
        let answer =
            get(connect(app.http, None, host, port).await.unwrap_or_else(|code| panic!("{host}: {code}"))).await;
        assert!(answer.contains("200 OK"), "{host}: {answer}");
    }
    // The address in binary form.
    let four: std::net::Ipv4Addr = of_service.parse().unwrap();
    let address = [&[1][..], &four.octets()].concat();
    let reached = request(app.http, Some("demo"), 1, &address, 80).await;
    assert!(get(reached.unwrap()).await.contains("200 OK"));
    let (status, body) = app
        .request(&format!("GET http://{of_service}/whoami HTTP/1.1\r\nHost: {of_service}\r\nConnection: close\r\n\r\n"))
        .await;
    assert!(status == 200 && body.starts_with("web-6d5f-"), "{status} {body}");
    assert_eq!(code(&app, None, &of_service, 81).await, Some(4), "the Service has no such port");
    app.finish().await;
}

#[tokio::test]
async fn hosts_of_other_networks_have_their_codes_too() {
    let app = TestApp::start("proxy: {elsewhere: direct}\n").await;
    for (user, host, wanted) in [
        (None, "127.0.0.1", 2),
        (None, "10.0.0.1", 2),
        (None, "localhost", 2),
        (None, "nobody.of.invalid", 4),
        (None, "nobody.invalid", 4),
        (Some("demo"), "nobody.of.invalid", 2),
    ] {
        assert_eq!(code(&app, user, host, 80).await, Some(wanted), "{host} as {user:?}");
    }
    app.finish().await;
}

#[tokio::test]
async fn routes_are_reached_also_where_dynamic_names_are_not() {
    let config = "contexts: {d: {name: demo, dynamic: deny}}\nhttp: {k8s: {routes: {shop.test: {namespace: shop, service: web, port: 80}}}}\n";
    let app = TestApp::start(config).await;
    assert!(get(connect(app.http, None, "shop.test", 80).await.unwrap()).await.contains("200 OK"));
    app.finish().await;
}

#[tokio::test]
async fn where_the_proxy_is_off_nobody_is_answered() {
    let app = TestApp::start("proxy: off\n").await;
    let mut stream = TcpStream::connect(app.http).await.unwrap();
    stream.write_all(b"\x05\x01\x00").await.unwrap();
    let mut answer = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    assert!(ended.is_err() || answer.is_empty());
    app.finish().await;
}

#[tokio::test]
async fn odd_messages_end_a_connection_and_nothing_else() {
    let app = TestApp::start("").await;
    for message in [
        &b"\x05\x00"[..],
        b"\x05\x01\x01",
        b"\x05\x01\x00\x05\x01\x00\x03\x00",
        b"\x05\x01\x00\x04\x01",
        b"\x05\x01\x02\x05",
        &[5; 2000],
    ] {
        let mut stream = TcpStream::connect(app.http).await.unwrap();
        stream.write_all(message).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
        assert_ne!(answer.get(2..4), Some(&[5, 0][..]), "{message:?}: {answer:?}");
    }
    assert_eq!(request(app.http, None, 1, b"\x02", 80).await.unwrap_err(), 8);
    assert!(connect(app.http, None, "web.shop", 80).await.is_ok());
    app.finish().await;
}

#[tokio::test]
async fn two_hundred_at_once_are_served() {
    let app = TestApp::start("").await;
    let began = Instant::now();
    let all = (0..200).map(|_| async { get(connect(app.http, None, "web.shop", 80).await.unwrap()).await });
    let answers = futures::future::join_all(all).await;
    assert!(answers.iter().all(|answer| answer.contains("200 OK")));
    assert!(began.elapsed().as_secs() < 15, "{:?}", began.elapsed());
    app.finish().await;
}

#[tokio::test]
async fn curl_resolves_names_through_it() {
    let app = TestApp::start("").await;
    let proxy = format!("socks5h://demo@{}", app.http);
    let run = move |host: &str| {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "20", "--noproxy", "", "--proxy", &proxy]);
        command.arg(format!("http://{host}/whoami"));
        tokio::task::spawn_blocking(move || command.output())
    };
    // curl is not on every machine.
    let Ok(answer) = run("web.shop.svc.cluster.local").await.unwrap() else { return };
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let refused = run("none.shop.svc.cluster.local").await.unwrap().unwrap();
    assert_eq!(refused.status.code(), Some(97), "{}", String::from_utf8_lossy(&refused.stderr));
    app.finish().await;
}
