//! The HTTP frontend, from a client to a pod of the demo.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{PATIENCE, TestApp, eventually};

#[tokio::test]
async fn a_service_is_reached_by_name_and_by_route() {
    let app =
        TestApp::start("http: {k8s: {routes: {Shop.localhost: {namespace: shop, service: web, port: http}}}}\n").await;
    for host in [
        "web.shop.localhost",
        "WEB.shop.localhost.:1",
        "80.web.shop.localhost",
        "shop.localhost",
        "web-6d5f-a1.web.shop.localhost",
    ] {
        let (status, body) = app.get(host, "/whoami").await;
        assert_eq!(status, 200, "{host}: {body}");
        assert!(body.starts_with("web-6d5f-"), "{host}: {body}");
    }
    assert_eq!(app.get("web-6d5f-b2-8080.pod.shop.ns.demo.cx.k8s.localhost", "/whoami").await.1, "web-6d5f-b2\n");
    app.finish().await;
}

#[tokio::test]
async fn backends_of_every_scheme_are_spoken_to() {
    let app = TestApp::start("").await;
    for (host, version) in [
        ("80.tools.shop.localhost", "HTTP/1.1"),
        ("81.tools.shop.localhost", "HTTP/2.0"),
        ("443.tools.shop.localhost", "HTTP/1.1"),
    ] {
        let (status, body) = app.get(host, "/headers").await;
        assert_eq!(status, 200, "{host}");
        assert!(
            body.contains(&format!("\"version\": \"{version}\"")) && body.contains("x-forwarded-for"),
            "{host}: {body}"
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn what_cannot_be_reached_is_told_in_words() {
    let app = TestApp::start("").await;
    for (host, status, words) in [
        ("queue.shop.localhost", 404, "5672.queue.shop.localhost"),
        ("amqp.queue.shop.localhost", 404, "amqp is one of its ports"),
        ("amqp.queue.shop.localhost", 404, "http://5672.queue.shop.localhost:"),
        ("5672.amqp.queue.shop.localhost", 404, "http://5672.queue.shop.localhost:"),
        ("amqp.queue.shop.demo.cx.localhost", 404, "http://5672.queue.shop.demo.cx.localhost:"),
        ("payments.shop.localhost", 404, "ExternalName for api.example.com"),
        ("legacy.shop.localhost", 404, "no selector"),
        ("dns.shop.localhost", 404, "UDP"),
        ("wbe.shop.localhost", 404, "did you mean web?"),
        ("web.nowhere.localhost", 404, "no namespace nowhere"),
        ("81.web.shop.localhost", 404, "has no port 81"),
        ("web.shop.nobody.cx.localhost", 404, "context nobody is not in /"),
        ("web.shop.demo-nobody.cx.localhost", 502, "user nobody may not get services in namespace shop"),
        ("9999.tools-0.tools.shop.localhost", 404, "has no port 9999"),
        ("we_b.shop.localhost", 404, "not a name that can be reached"),
        ("example.com", 404, "no route for example.com"),
        ("localhost", 200, "adit is running"),
    ] {
        let (found, body) = app.get(host, "/").await;
        assert_eq!(found, status, "{host}: {body}");
        assert!(body.contains(words), "{host}: {body}");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_service_without_a_ready_pod_says_why() {
    let app = TestApp::start("").await;
    let (status, body) = app.get("broken.shop.localhost", "/").await;
    assert_eq!(status, 503);
    assert!(
        body.contains("0 of 1 pods ready (broken-7c4: CrashLoopBackOff)")
            && body.contains("logs broken-7c4 -c broken --previous"),
        "{body}"
    );
    // A reload is a GET: it would replace a form that was posted.
    for (method, reloads) in [("GET", true), ("POST", false)] {
        let ask = format!(
            "{method} / HTTP/1.1\r\nHost: broken.shop.localhost\r\nAccept: text/html\r\nConnection: close\r\n\r\n"
        );
        let (status, page) = app.request(&ask).await;
        assert_eq!((status, page.contains("http-equiv=\"refresh\"")), (503, reloads), "{method}: {page}");
    }
    app.finish().await;
}

#[tokio::test]
async fn ambiguous_requests_are_refused() {
    let app = TestApp::start("").await;
    for request in [
        "GET / HTTP/1.1\r\nHost: web.shop.localhost\r\nHost: b\r\nConnection: close\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: web.shop.localhost\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
    ] {
        assert_eq!(app.request(request).await.0, 400, "{request}");
    }
    assert_eq!(app.demo.faults().upgrades_seen(), 0);
    app.finish().await;
}

#[tokio::test]
async fn a_pod_that_goes_is_replaced_between_requests() {
    let app = TestApp::start("").await;
    for round in 0..6 {
        let (status, pod) = app.get("web.shop.localhost", "/whoami").await;
        assert_eq!(status, 200, "round {round}: {pod}");
        assert!(app.demo.world().delete_pod("shop", pod.trim(), Some(&format!("web-{round}"))));
        // On several threads, the pod may answer once more before it is gone. No request fails.
        eventually("another pod answers", || async {
            let (status, other) = app.get("web.shop.localhost", "/whoami").await;
            assert_eq!(status, 200, "round {round}: {other}");
            other != pod
        })
        .await;
    }
    app.finish().await;
}

#[tokio::test]
async fn a_lost_connection_to_the_cluster_is_made_again() {
    let app = TestApp::start("").await;
    for _ in 0..5 {
        assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
        app.demo.faults().drop_upgraded_connections();
    }
    assert!(app.demo.faults().upgrades_seen() >= 5);
    app.finish().await;
}

#[tokio::test]
async fn a_port_that_refuses_is_named_and_taken_up_again() {
    let app = TestApp::start("").await;
    app.demo.faults().refuse(8080, true);
    let (status, body) = app.get("web.shop.localhost", "/whoami").await;
    assert_eq!(status, 502);
    assert!(body.contains("refused the connection on port 8080"), "{body}");
    let started = std::time::Instant::now();
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 502);
    assert!(started.elapsed() < Duration::from_secs(2), "the grace is not waited out again: {:?}", started.elapsed());
    app.demo.faults().refuse(8080, false);
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    app.finish().await;
}

#[tokio::test]
async fn a_container_that_restarts_is_waited_for() {
    let app = TestApp::start("").await;
    app.demo.faults().refuse(8080, true);
    let request = app.get("web.shop.localhost", "/whoami");
    let restart = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        app.demo.faults().refuse(8080, false);
    };
    let ((status, body), ()) = tokio::join!(request, restart);
    assert_eq!(status, 200, "{body}");
    app.finish().await;
}

#[tokio::test]
async fn bodies_of_any_size_pass_both_ways() {
    let app = TestApp::start("").await;
    let (status, body) = app.get("tools.shop.localhost", "/download?bytes=20000000").await;
    assert_eq!((status, body.matches('a').count()), (200, 20_000_000));
    let upload = format!(
        "POST /upload HTTP/1.1\r\nHost: tools.shop.localhost\r\nConnection: close\r\nContent-Length: 3000000\r\n\r\n{}",
        "x".repeat(3_000_000)
    );
    let (status, body) = app.request(&upload).await;
    assert_eq!(status, 200);
    assert!(body.contains("\"bytes\":3000000"), "{body}");
    app.finish().await;
}

#[tokio::test]
async fn keep_alive_requests_share_a_stream_into_the_pod() {
    let app = TestApp::start("").await;
    let mut client = TcpStream::connect(app.http).await.unwrap();
    for _ in 0..50 {
        client.write_all(b"GET /whoami HTTP/1.1\r\nHost: web.shop.localhost\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.windows(4).any(|end| end == b"\r\n\r\n") || !answer.ends_with(b"\n") {
            assert!(timeout(PATIENCE, client.read_buf(&mut answer)).await.unwrap().unwrap() > 0);
        }
    }
    assert!(app.demo.faults().streams_seen() <= 3, "{}", app.demo.faults().streams_seen());
    drop(client);
    app.finish().await;
}

#[tokio::test]
async fn websocket_messages_come_back() {
    let app = TestApp::start("").await;
    let stream = TcpStream::connect(app.http).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://tools.shop.localhost/ws", stream).await.unwrap();
    for text in ["hello".to_owned(), "x".repeat(100_000)] {
        socket.send(Message::text(text.clone())).await.unwrap();
        let back = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(back, Message::text(text));
    }
    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    app.finish().await;
}

#[tokio::test]
async fn a_websocket_ends_when_both_close_frames_have_passed() {
    let app = TestApp::start("").await;
    let mut took = Vec::new();
    for _ in 0..5 {
        let stream = TcpStream::connect(app.http).await.unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async("ws://tools.shop.localhost/ws", stream).await.unwrap();
        socket.send(Message::text("hello")).await.unwrap();
        timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        // Clients wait for the server's end of the connection (RFC 6455, section 7.1.1), which a node delays by a second.
        let started = std::time::Instant::now();
        socket.close(None).await.unwrap();
        while timeout(PATIENCE, socket.next()).await.unwrap().is_some() {}
        took.push(started.elapsed());
    }
    assert!(took.iter().min() < Some(&Duration::from_millis(500)), "{took:?}");
    app.finish().await;
}

#[tokio::test]
async fn events_come_as_they_happen() {
    let app = TestApp::start("").await;
    let mut client = TcpStream::connect(app.http).await.unwrap();
    client.write_all(b"GET /sse HTTP/1.1\r\nHost: tools.shop.localhost\r\n\r\n").await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(7).any(|part| part == b"data: 1") {
        assert!(timeout(PATIENCE, client.read_buf(&mut seen)).await.unwrap().unwrap() > 0);
    }
    drop(client);
    app.finish().await;
}
