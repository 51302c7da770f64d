//! Start, reload, drain, and the lifetime of tunnels.

use std::{fs, net::SocketAddr, time::Duration};

use adit::app::App;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    process::Process,
    support::{PATIENCE, TestApp, eventually, ports::free_port},
};

#[tokio::test]
async fn a_request_in_progress_is_finished_in_a_drain() {
    let app = TestApp::start("").await;
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    let request = app.get("web.shop.localhost", "/slow");
    let stop = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        app.drain().start();
    };
    let ((status, body), ()) = tokio::join!(request, stop);
    assert_eq!((status, body.as_str()), (200, "slow\n"));
    app.finish().await;
}

#[tokio::test]
async fn what_ends_is_not_ready() {
    let port = free_port();
    let mut process = Process::start(&format!("admin: {{listen: \"127.0.0.1:{port}\"}}\n"), &[]).await;
    assert!(process.serves("web.shop.localhost").await);
    let admin: SocketAddr = ([127, 0, 0, 1], port).into();
    let readyz = || async {
        let mut stream = TcpStream::connect(admin).await.ok()?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.split(' ').nth(1).map(str::to_owned)
    };
    assert_eq!(readyz().await.as_deref(), Some("200"));
    let mut request = TcpStream::connect(process.http).await.unwrap();
    request.write_all(b"GET /slow HTTP/1.1\r\nHost: web.shop.localhost\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    process.signal("TERM").await;
    process.logs("stopping").await;
    assert_eq!(readyz().await.as_deref(), Some("503"));
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn pages_of_other_names_do_not_reach_the_admin_port() {
    let port = free_port();
    let _process = Process::start(&format!("admin: {{listen: \"127.0.0.1:{port}\"}}\n"), &[]).await;
    for (host, path, wanted) in [
        ("127.0.0.1", "/metrics", "200"),
        ("localhost", "/healthz", "200"),
        // A page whose name was bound to 127.0.0.1 again.
        ("rebound.example", "/metrics", "403"),
        ("rebound.example", "/healthz", "403"),
        // The API is on the socket only.
        ("localhost", "/api/v1/status", "404"),
        ("localhost", "/api/v1/stop", "404"),
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(wanted), "{host}{path}: {answer}");
    }
}

#[tokio::test]
async fn a_client_that_never_speaks_does_not_hold_the_end_up() {
    let app = TestApp::start("").await;
    let _silent = TcpStream::connect(app.http).await.unwrap();
    timeout(Duration::from_secs(8), app.finish()).await.expect("the end comes at once");
}

#[tokio::test]
async fn a_client_that_never_speaks_is_closed_after_10_s() {
    let app = TestApp::start("").await;
    let mut silent = TcpStream::connect(app.http).await.unwrap();
    let started = tokio::time::Instant::now();
    let end = timeout(PATIENCE, silent.read(&mut [0; 8])).await.expect("it is closed");
    assert!(matches!(end, Ok(0)), "{end:?}");
    assert!(started.elapsed() > Duration::from_secs(9), "a browser's spare connection has some time");
    app.finish().await;
}

#[tokio::test]
async fn what_is_neither_http_nor_tls_is_closed() {
    let app = TestApp::start("").await;
    let mut client = TcpStream::connect(app.http).await.unwrap();
    client.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
    let end = timeout(PATIENCE, client.read(&mut [0; 8])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    app.finish().await;
}

#[tokio::test]
async fn a_reload_adds_and_removes_routes_and_keeps_connections() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let with = |route: &str| {
        format!("http: {{k8s: {{routes: {{{route}: {{namespace: shop, service: tools, port: web}}}}}}}}\n")
    };
    fs::write(&file, with("one.localhost")).unwrap();
    let app = TestApp::start_app(&with("one.localhost"), App { file: Some(file.clone()), ..App::default() }).await;
    let mut events = TcpStream::connect(app.http).await.unwrap();
    events.write_all(b"GET /sse HTTP/1.1\r\nHost: one.localhost\r\n\r\n").await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(7).any(|part| part == b"data: 0") {
        assert!(timeout(PATIENCE, events.read_buf(&mut seen)).await.unwrap().unwrap() > 0);
    }

    fs::write(&file, "http: [not, a, map]\n").unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(app.get("one.localhost", "/whoami").await.0, 200, "an invalid file changes nothing");

    fs::write(&file, with("two.localhost")).unwrap();
    eventually("the new route is served", || async { app.get("two.localhost", "/whoami").await.0 == 200 }).await;
    assert_eq!(app.get("one.localhost", "/whoami").await.0, 404);
    seen.clear();
    assert!(
        timeout(PATIENCE, events.read_buf(&mut seen)).await.unwrap().unwrap() > 0,
        "a connection of a removed route lives on"
    );
    drop(events);
    app.finish().await;
}

#[tokio::test]
async fn an_idle_tunnel_closes_and_opens_again() {
    let app = TestApp::start("http: {idle_timeout: 1s}\n").await;
    // The second host uses HTTP/2 without TLS, with one kept connection for all requests.
    for host in ["web.shop.localhost", "81.tools.shop.localhost"] {
        let before = app.demo.faults().upgrades_seen();
        for round in 1..4 {
            let streams = app.demo.faults().streams_seen();
            // A POST is never repeated, so it must not use a connection that ends with its tunnel.
            let request =
                format!("POST /whoami HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi");
            assert_eq!(app.request(&request).await.0, 200);
            assert_eq!(app.get(host, "/whoami").await.0, 200);
            assert_eq!(app.demo.faults().upgrades_seen() - before, round, "a tunnel that is idle is closed: {host}");
            assert!(app.demo.faults().streams_seen() > streams, "its connections end with it: {host}");
            tokio::time::sleep(Duration::from_millis(2_500)).await;
        }
    }
    app.finish().await;
}
