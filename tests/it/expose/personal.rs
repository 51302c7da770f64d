//! A port of which several laptops have a part: each request goes to its laptop, and all others to the pods.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use adit::{
    drain::Drain,
    relay::client::{self, Open},
    wire::relay::{Frame, Kind},
};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::support::{InPod, Laptop, Place};
use crate::support::{PATIENCE, eventually};

/// Returns a takeover of the requests with this `x-user`.
fn of_user(service: &str, user: &str) -> String {
    format!(r#"{service} {{"headers":{{"x-user":"{user}"}}}}"#)
}

/// Serves HTTP/1.1 and HTTP/2, and answers with its name.
async fn serve(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut first = [0; 3];
                let _ = stream.peek(&mut first).await;
                let answer = service_fn(move |request| answer(name, request));
                let stream = TokioIo::new(stream);
                let _ = match &first {
                    b"PRI" => {
                        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(stream, answer)
                            .await
                    }
                    _ => {
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(stream, answer)
                            .with_upgrades()
                            .await
                    }
                };
            });
        }
    });
    port
}

async fn answer(name: &'static str, mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let of = |header: &str| request.headers().get(header).map_or("-", |value| value.to_str().unwrap_or("?")).to_owned();
    let said = format!("{name} {:?} {} {}", request.version(), of("x-forwarded-for"), of("x-forwarded-proto"));
    if !request.headers().contains_key(header::UPGRADE) {
        let size = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
        return Ok(Response::new(Full::new(format!("{said} {size}").into())));
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let mut stream = TokioIo::new(upgraded);
        let mut byte = [0];
        while stream.read_exact(&mut byte).await.is_ok() {
            let _ = stream.write_all(format!("{name}:{}", char::from(byte[0])).as_bytes()).await;
        }
    });
    let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    let response = response.header(header::CONNECTION, "upgrade").header(header::UPGRADE, "chat");
    Ok(response.body(Full::default()).unwrap())
}

/// Sends a greeting on each connection, then echoes.
async fn greet(greeting: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(greeting.as_bytes()).await;
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    port
}

/// Adds a pod of Service `team`, whose port `web` is a local port.
fn put_pod(place: &Place, name: &str, port: u16, ready: bool) {
    let (world, status) = (place.demo.world(), if ready { "True" } else { "False" });
    let metadata =
        json!({"namespace": "shop", "name": name, "uid": format!("uid-of-{name}"), "labels": {"app": "team"}});
    let spec =
        json!({"containers": [{"name": "web", "image": "web", "ports": [{"name": "web", "containerPort": port}]}]});
    let status = json!({
        "phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}],
        "conditions": [{"type": "Ready", "status": status}], "containerStatuses": [{"name": "web", "ready": ready}]
    });
    world.put("pods", json!({"metadata": metadata, "spec": spec, "status": status}));
}

/// Returns a cluster with a Service `team`, which has one pod with this port.
async fn team(pod: u16) -> Place {
    let place = Place::new().await;
    put_pod(&place, "team-0", pod, true);
    let ports = json!([{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "web"}]);
    let spec = json!({"selector": {"app": "team"}, "clusterIP": "10.96.1.7", "ports": ports});
    place.demo.world().put("services", json!({"metadata": {"namespace": "shop", "name": "team"}, "spec": spec}));
    eventually("the pod is behind the Service", || async { place.ready("team") == 1 }).await;
    place
}

/// A laptop that serves its requests.
struct Serving {
    drain: Drain,
    running: JoinHandle<Result<(), client::Fatal>>,
    opened: mpsc::UnboundedReceiver<Vec<Open>>,
}

impl Serving {
    async fn start(relay: &InPod, local: u16, name: &str) -> Self {
        let drain = Drain::new();
        let wanted = client::Wanted { local_port: local, kind: Kind::ReplacedService, port: 0, name: name.into() };
        let options = client::Options { tunnels: vec![wanted], ..relay.relay.client(local, 0) };
        let (mut opened, running) = crate::relay::start(options, &drain);
        timeout(PATIENCE, opened.recv()).await.expect("in time").expect("it is opened");
        Self { drain, running, opened }
    }

    async fn ends(self) {
        self.drain.start();
        timeout(PATIENCE, self.running).await.expect("it ends").unwrap().unwrap();
        drop(self.opened);
    }
}

/// Returns the address that clients of the Service connect to.
fn entrance(place: &Place) -> SocketAddr {
    let ports = place.served("team", "http");
    assert_eq!(ports.len(), 1, "the relay alone: {ports:?}");
    SocketAddr::from(([127, 0, 0, 1], ports[0]))
}

/// A client with a kept-alive connection.
struct Visitor(hyper::client::conn::http1::SendRequest<Full<Bytes>>);

impl Visitor {
    async fn connect(to: SocketAddr) -> Self {
        let stream = TokioIo::new(TcpStream::connect(to).await.unwrap());
        let (sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Self(sender)
    }

    async fn ask(&mut self, path: &str, headers: &[(&str, &str)]) -> String {
        let mut request = Request::post(path).header("host", "team.shop");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from_static(b"four"))).unwrap();
        self.0.ready().await.unwrap();
        let answer = timeout(PATIENCE, self.0.send_request(request)).await.expect("in time").unwrap();
        text(answer).await
    }
}

async fn text(answer: Response<Incoming>) -> String {
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(status, StatusCode::OK, "{body:?}");
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn each_request_of_a_kept_connection_goes_where_it_belongs() {
    let place = team(serve("pod").await).await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let anna = Serving::start(&relay, serve("anna").await, &of_user("team.shop:80", "anna")).await;
    eventually("the relay serves alone", || async { place.served("team", "http").len() == 1 }).await;
    let to = entrance(&place);
    let mut visitor = Visitor::connect(to).await;
    for _ in 0..3 {
        // A pod gets the client's own headers, and the client's address unless a proxy has set it before.
        assert_eq!(visitor.ask("/", &[]).await, "pod HTTP/1.1 127.0.0.1 - 4");
        assert!(visitor.ask("/", &[("X-User", "anna")]).await.starts_with("anna HTTP/1.1 "));
        let through = [("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https"), ("x-user", "Anna")];
        assert_eq!(visitor.ask("/", &through).await, "pod HTTP/1.1 1.2.3.4 https 4");
    }

    // Concurrent streams of one HTTP/2 connection.
    let stream = TokioIo::new(TcpStream::connect(to).await.unwrap());
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let ask = |user: Option<&'static str>| {
        let mut sender = sender.clone();
        async move {
            let mut request = Request::get("http://team.shop/").body(Empty::<Bytes>::new()).unwrap();
            if let Some(user) = user {
                request.headers_mut().insert("x-user", HeaderValue::from_static(user));
            }
            text(timeout(PATIENCE, sender.send_request(request)).await.expect("in time").unwrap()).await
        }
    };
    for _ in 0..3 {
        let (of_pod, of_anna, of_bo) = tokio::join!(ask(None), ask(Some("anna")), ask(Some("bo")));
        assert_eq!((of_pod.as_str(), of_bo.as_str()), ("pod HTTP/2.0 127.0.0.1 - 0", "pod HTTP/2.0 127.0.0.1 - 0"));
        assert!(of_anna.starts_with("anna "), "{of_anna}");
    }
    let of = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    let parted = &relay.relay.server.parted;
    assert_eq!((of(&parted.to_laptops), of(&parted.to_pods), of(&parted.passed)), (6, 12, 0));
    anna.ends().await;
    place.is_again(&before).await;
    eventually("Events say so", || async { place.events("team") == ["TakenOver", "GivenBack"] }).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn websockets_are_told_apart_too() {
    let place = team(serve("pod").await).await;
    let relay = place.relay("one", "a").await;
    let anna = Serving::start(&relay, serve("anna").await, &of_user("team.shop:80", "anna")).await;
    eventually("the relay serves alone", || async { place.served("team", "http").len() == 1 }).await;
    for (header, wanted) in [("X-Other: 1", "pod:x"), ("x-user: anna", "anna:x")] {
        let mut visitor = TcpStream::connect(entrance(&place)).await.unwrap();
        let request =
            format!("GET / HTTP/1.1\r\nHost: team\r\nConnection: Upgrade\r\nUpgrade: chat\r\n{header}\r\n\r\n");
        visitor.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(PATIENCE, visitor.read_u8()).await.expect("in time").unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        visitor.write_all(b"x").await.unwrap();
        let mut said = vec![0; wanted.len()];
        timeout(PATIENCE, visitor.read_exact(&mut said)).await.expect("in time").unwrap();
        assert_eq!(String::from_utf8_lossy(&said), wanted);
    }
    anna.ends().await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn what_the_relay_cannot_read_goes_on_to_the_pods() {
    let place = team(greet("").await).await;
    let relay = place.relay("one", "a").await;
    let anna = Serving::start(&relay, serve("anna").await, &of_user("team.shop:80", "anna")).await;
    eventually("the relay serves alone", || async { place.served("team", "http").len() == 1 }).await;
    let to = entrance(&place);
    // TLS, another protocol, and part of a method followed by a FIN.
    for sent in [&b"\x16\x03\x01\x00\x05hello"[..], b"\x00\x01binary", b"GE"] {
        let mut visitor = TcpStream::connect(to).await.unwrap();
        visitor.write_all(sent).await.unwrap();
        visitor.shutdown().await.unwrap();
        let mut back = Vec::new();
        timeout(PATIENCE, visitor.read_to_end(&mut back)).await.expect("in time").unwrap();
        assert_eq!(back, sent);
    }
    // A client that waits before its request, to a server that does not send first.
    let mut late = Visitor::connect(to).await;
    tokio::time::sleep(Duration::from_millis(1300)).await;
    assert!(late.ask("/", &[("x-user", "anna")]).await.starts_with("anna "));

    // A server that sends first.
    put_pod(&place, "team-1", greet("220 hello\r\n").await, true);
    put_pod(&place, "team-0", 1, false);
    eventually("the new pod greets", || async {
        let mut visitor = TcpStream::connect(to).await.unwrap();
        let mut greeting = [0; 11];
        let read = timeout(Duration::from_secs(5), visitor.read_exact(&mut greeting)).await;
        if !matches!(read, Ok(Ok(_))) {
            return false;
        }
        visitor.write_all(b"QUIT").await.unwrap();
        visitor.shutdown().await.unwrap();
        let mut rest = String::new();
        timeout(PATIENCE, visitor.read_to_string(&mut rest)).await.expect("in time").unwrap();
        greeting == *b"220 hello\r\n" && rest == "QUIT"
    })
    .await;
    anna.ends().await;
    place.relay_ends(relay).await;
}

/// Sends a text, and returns the connection, which then stays silent.
async fn stall(to: SocketAddr, sent: &str) -> TcpStream {
    let mut visitor = TcpStream::connect(to).await.unwrap();
    visitor.write_all(sent.as_bytes()).await.unwrap();
    visitor
}

/// Reads until the other end closes or resets.
async fn rest(mut visitor: TcpStream) -> String {
    let mut read = Vec::new();
    let _ = timeout(PATIENCE, visitor.read_to_end(&mut read)).await.expect("it is closed");
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test]
async fn visitors_that_stall_are_closed_in_time_and_hold_nobody_up() {
    let mut place = team(serve("pod").await).await;
    let second = Duration::from_secs(1);
    let accepted = &mut place.limits.accepted;
    (accepted.head, accepted.body, accepted.idle) = (second, second, second);
    let relay = place.relay("one", "a").await;
    let anna = Serving::start(&relay, serve("anna").await, &of_user("team.shop:80", "anna")).await;
    eventually("the relay serves alone", || async { place.served("team", "http").len() == 1 }).await;
    let to = entrance(&place);
    let mut stalled = Vec::new();
    for user in ["", "x-user: anna\r\n"] {
        let head = format!("POST / HTTP/1.1\r\nHost: team\r\n{user}");
        for _ in 0..20 {
            stalled.push((stall(to, &head).await, "HTTP/1.1 408"));
            stalled.push((stall(to, &format!("{head}Content-Length: 9\r\n\r\nfour")).await, "HTTP/1.1 400"));
            stalled
                .push((stall(to, &format!("{head}Transfer-Encoding: chunked\r\n\r\n9\r\nfour")).await, "HTTP/1.1 400"));
            // A complete request, then no other one.
            stalled.push((stall(to, &format!("{head}Content-Length: 4\r\n\r\nfour")).await, "HTTP/1.1 200"));
        }
    }
    // A client that sends a byte from time to time has the same time limit for the whole head.
    let mut trickle = stall(to, "GET / HTTP/1.1\r\nx-slow: ").await;
    let trickling = tokio::spawn(async move {
        while trickle.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    for _ in 0..3 {
        assert!(Visitor::connect(to).await.ask("/", &[]).await.starts_with("pod "));
        assert!(Visitor::connect(to).await.ask("/", &[("x-user", "anna")]).await.starts_with("anna "));
    }
    for (visitor, begins) in stalled {
        let said = rest(visitor).await;
        assert!(said.starts_with(begins), "{said}");
    }
    timeout(PATIENCE, trickling).await.expect("it is closed").unwrap();
    // A head above the limit is refused at once.
    let mut long = stall(to, "GET / HTTP/1.1\r\nHost: team\r\n").await;
    let line = format!("x-long: {}\r\n", "a".repeat(8000));
    for _ in 0..60 {
        if long.write_all(line.as_bytes()).await.is_err() {
            break;
        }
    }
    let said = rest(long).await;
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 431"), "{said}");
    anna.ends().await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn visitors_that_say_nothing_make_room_for_others() {
    let pod = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut place = team(pod.local_addr().unwrap().port()).await;
    (place.limits.accepted.connections, place.limits.accepted.first_byte) = (Some(8), Duration::from_millis(500));
    let relay = place.relay("one", "a").await;
    let anna = Serving::start(&relay, serve("anna").await, &of_user("team.shop:80", "anna")).await;
    eventually("the relay serves alone", || async { place.served("team", "http").len() == 1 }).await;
    let to = entrance(&place);
    let mut silent = Vec::new();
    for sent in ["", "GE"] {
        for _ in 0..8 {
            silent.push(stall(to, sent).await);
        }
        // Meanwhile the relay has asked the pod whether it sends first, or has passed it the start of a possible request; the pod
        // is silent.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        for _ in 0..3 {
            assert!(Visitor::connect(to).await.ask("/", &[("x-user", "anna")]).await.starts_with("anna "), "{sent}");
        }
        assert_eq!(rest(silent.remove(0)).await, "", "the oldest one");
        silent.clear();
    }
    anna.ends().await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_visitor_that_does_not_read_its_answer_holds_little_and_nobody_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sent_tx, mut sent) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sent_tx = sent_tx.clone();
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
                while let Ok(count) = stream.write(&[b'a'; 65536]).await {
                    let _ = sent_tx.send(Some(count));
                }
                let _ = sent_tx.send(None);
            });
        }
    });
    let place = team(port).await;
    let relay = place.relay("one", "a").await;
    let anna = Serving::start(&relay, serve("anna").await, &of_user("team.shop:80", "anna")).await;
    eventually("the relay serves alone", || async { place.served("team", "http").len() == 1 }).await;
    let to = entrance(&place);
    let visitor = stall(to, "GET / HTTP/1.1\r\nHost: team\r\n\r\n").await;
    let mut count = 0;
    // Count what fits into the kernel's buffers of both connections.
    while let Ok(Some(Some(more))) = timeout(Duration::from_secs(2), sent.recv()).await {
        count += more;
        assert!(count < 64 << 20, "the relay goes on reading for a visitor that does not");
    }
    assert!(count > 0);
    for _ in 0..3 {
        assert!(Visitor::connect(to).await.ask("/", &[("x-user", "anna")]).await.starts_with("anna "));
    }
    // The pod sees that the client has gone.
    drop(visitor);
    while timeout(PATIENCE, sent.recv()).await.expect("the pod's connection ends").expect("the pod runs").is_some() {}
    anna.ends().await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn laptops_share_a_port_as_long_as_their_requests_differ() {
    let place = team(serve("pod").await).await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let anna = Serving::start(&relay, serve("anna").await, &of_user("team.shop:80", "anna")).await;
    let bo = Serving::start(&relay, serve("bo").await, r#"team.shop:80 {"path":"/bo"}"#).await;
    eventually("the relay serves alone", || async { place.served("team", "http").len() == 1 }).await;
    let to = entrance(&place);
    let mut other = Laptop::connect(&relay).await;
    let refused = other.take(&of_user("team.shop:80", "anna")).await.unwrap_err();
    assert!(refused.contains("requests with x-user: anna to port 80 of Service shop/team go to default"), "{refused}");
    let refused = other.take("team.shop:80").await.unwrap_err();
    assert!(refused.contains("port 80 of Service shop/team is taken over in part: requests with "), "{refused}");
    let said: Value =
        serde_json::from_str(place.service("team")["metadata"]["annotations"]["adit/takeover"].as_str().unwrap())
            .unwrap();
    let parts: Vec<_> = said["ports"][0]["personal"].as_array().unwrap().iter().map(|part| &part["requests"]).collect();
    assert_eq!(parts, [&json!({"headers": {"x-user": "anna"}}), &json!({"path": "/bo"})]);
    let mut visitor = Visitor::connect(to).await;
    let mut who = async |path: &str, user: &str| {
        let said = visitor.ask(path, &[("x-user", user)]).await;
        said.split(' ').next().unwrap().to_owned()
    };
    assert_eq!(who("/bo/1", "bo").await, "bo");
    assert_eq!(who("/bot", "bo").await, "pod");
    assert_eq!(who("/bo", "anna").await, "bo", "of two that are as narrow, the longer path");
    assert_eq!(who("/", "anna").await, "anna");

    // One laptop leaves; the other one keeps its part at the same port.
    anna.ends().await;
    eventually("anna's requests go to the pods", || async {
        Visitor::connect(to).await.ask("/", &[("x-user", "anna")]).await.starts_with("pod")
    })
    .await;
    assert!(Visitor::connect(to).await.ask("/bo", &[]).await.starts_with("bo"));
    assert_eq!(entrance(&place), to);
    bo.ends().await;
    place.is_again(&before).await;

    // A port that is taken over as a whole has no parts.
    let mut whole = Laptop::connect(&relay).await;
    whole.take("team.shop:80").await.unwrap();
    let refused = other.take(&of_user("team.shop:80", "anna")).await.unwrap_err();
    assert!(refused.contains("port 80 of Service shop/team is taken over by default"), "{refused}");
    whole.goodbye().await;
    place.is_again(&before).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_part_is_given_back_when_its_laptop_is_cut_off_and_kept_when_it_is_back() {
    let place = team(serve("pod").await).await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    let name = of_user("team.shop:80", "anna");
    let port = laptop.take(&name).await.unwrap();
    for _ in 0..5 {
        // The relay does not know yet that the previous client is gone.
        let mut again = Laptop::connect(&relay).await;
        again.resume = laptop.resume;
        assert_eq!(again.take(&name).await.unwrap(), port, "the port stays");
        drop(std::mem::replace(&mut laptop, again));
        assert_eq!(place.served_by_us("team"), [port]);
    }
    drop(laptop);
    place.is_again(&before).await;

    // The relay is killed, and another one restores the Service.
    let mut laptop = Laptop::connect(&relay).await;
    laptop.take(&name).await.unwrap();
    place.kill(relay);
    drop(laptop);
    let relay = place.relay("one", "b").await;
    place.is_again(&before).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn requests_follow_the_pods_that_are_ready() {
    let place = team(serve("first").await).await;
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    laptop.take(&of_user("team.shop:80", "anna")).await.unwrap();
    eventually("the relay serves alone", || async { place.served("team", "http").len() == 1 }).await;
    let to = entrance(&place);
    let mut visitor = Visitor::connect(to).await;
    assert!(visitor.ask("/", &[]).await.starts_with("first"));
    put_pod(&place, "team-1", serve("second").await, true);
    put_pod(&place, "team-0", 1, false);
    eventually("the other pod answers", || async {
        Visitor::connect(to).await.ask("/", &[]).await.starts_with("second")
    })
    .await;
    // Also on the existing connection.
    assert!(visitor.ask("/", &[]).await.starts_with("second"));
    // Without a ready pod, the client gets a reset.
    put_pod(&place, "team-1", 1, false);
    eventually("a visitor is cut", || async {
        let mut raw = TcpStream::connect(to).await.unwrap();
        raw.write_all(b"\x00\x01").await.unwrap();
        let mut byte = [0];
        timeout(PATIENCE, raw.read(&mut byte)).await.expect("in time").is_err()
    })
    .await;
    laptop.goodbye().await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn what_is_no_part_of_a_service_is_refused_and_nothing_is_touched() {
    let place = team(1).await;
    let relay = place.relay("one", "a").await;
    let before = place.objects();
    let mut laptop = Laptop::connect(&relay).await;
    for (asked, words) in [
        (of_user("nothing.shop:80", "anna"), "Service shop/nothing does not exist: there are no pods for the requests"),
        (of_user("team.shop:81", "anna"), "Service shop/team has no TCP port 81; it has 80"),
        ("team.shop:80 {}".to_owned(), "a personal takeover needs a header, a host or a path"),
        (r#"team.shop:80 {"path":"/"}"#.to_owned(), "the path \"/\" is that of every request"),
        (r#"team.shop:80 {"method":"GET"}"#.to_owned(), "the condition is not understood"),
        (r#"team.shop:80 {"headers":{"Cookie":"a=b"}}"#.to_owned(), "the header \"cookie\" is a secret"),
        (r#"team.shop:80 {"headers":{"x\r\ny":"z"}}"#.to_owned(), "is not the name of a header"),
        (format!("team.shop:80 {}", "x".repeat(5000)), "the condition is longer than 1024 bytes"),
    ] {
        let refused = laptop.take(&asked).await.expect_err(&asked);
        assert!(refused.contains(words), "{asked}: {refused}");
        assert_eq!(place.objects(), before, "{asked}");
    }
    let refused = laptop.open(Kind::Service, &of_user("team.shop:80", "anna")).await.unwrap_err();
    assert!(refused.contains("a Service that is created has no pods"), "{refused}");
    // A Service that a laptop has created has no pods either.
    laptop.open(Kind::Service, "fresh.shop:80").await.unwrap();
    let mut other = Laptop::connect(&relay).await;
    let refused = other.take(&of_user("fresh.shop:81", "anna")).await.unwrap_err();
    assert!(refused.contains("Service shop/fresh was created by adit"), "{refused}");
    laptop.goodbye().await;
    place.is_again(&before).await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn a_port_that_somebody_puts_back_is_the_end_for_all_who_share_it() {
    let place = team(1).await;
    let relay = place.relay("one", "a").await;
    let (mut anna, mut bo) = (Laptop::connect(&relay).await, Laptop::connect(&relay).await);
    anna.take(&of_user("team.shop:80", "anna")).await.unwrap();
    bo.take(&of_user("team.shop:80", "bo")).await.unwrap();
    let mut team = place.service("team");
    team["spec"]["ports"][0]["targetPort"] = json!("web");
    place.demo.world().put("services", team);
    for laptop in [&mut anna, &mut bo] {
        let Frame::Refused { reason, .. } = laptop.frame().await else { panic!("nothing was told") };
        assert!(reason.contains("Service shop/team was changed back"), "{reason}");
    }
    eventually("nothing of ours is left", || async { place.ours().is_empty() }).await;
    place.relay_ends(relay).await;
}

/// Returns whether a visitor of a port gets the greeting of a pod.
async fn greeted(port: u16) -> bool {
    let Ok(mut visitor) = TcpStream::connect(("127.0.0.1", port)).await else { return false };
    let mut greeting = [0; 3];
    matches!(timeout(PATIENCE, visitor.read_exact(&mut greeting)).await, Ok(Ok(_)) if &greeting == b"pod")
}

#[tokio::test]
async fn visitors_reach_the_pods_while_a_relay_ends() {
    let place = team(greet("pod").await).await;
    let before = place.objects();
    for service in ["team.shop:80".to_owned(), of_user("team.shop:80", "anna")] {
        let relay = place.relay("one", "a").await;
        let mut laptop = Laptop::connect(&relay).await;
        let port = laptop.take(&service).await.unwrap();
        eventually("the pods are no longer behind the port", || async { place.served("team", "http") == [port] }).await;
        place.demo.faults().delay("/services/team", Some(Duration::from_millis(500)));
        relay.relay.drain.start();
        relay.drain.start();
        // A visitor that came before is the laptop's.
        sleep(Duration::from_millis(50)).await;
        for _ in 0..10 {
            assert!(greeted(port).await, "{service}");
            sleep(Duration::from_millis(50)).await;
        }
        place.demo.faults().delay("/services/team", None);
        place.is_again(&before).await;
        eventually("the port is closed", || async { TcpStream::connect(("127.0.0.1", port)).await.is_err() }).await;
        place.relay_ends(relay).await;
    }
}

#[tokio::test]
async fn a_visitor_that_has_just_connected_reaches_a_pod_when_a_part_or_its_relay_ends() {
    let place = team(serve("pod").await).await;
    for relay_ends in [false, true] {
        let relay = place.relay("one", "a").await;
        let mut laptop = Laptop::connect(&relay).await;
        let port = laptop.take(&of_user("team.shop:80", "anna")).await.unwrap();
        eventually("the pods are no longer behind the port", || async { place.served("team", "http") == [port] }).await;
        let mut visitors = Vec::new();
        for _ in 0..3 {
            visitors.push(Visitor::connect(SocketAddr::from(([127, 0, 0, 1], port))).await);
        }
        // It is accepted.
        sleep(Duration::from_millis(50)).await;
        match relay_ends {
            true => relay.relay.drain.start(),
            false => laptop.goodbye().await,
        }
        for (visitor, pause) in visitors.iter_mut().zip([0, 100, 200]) {
            sleep(Duration::from_millis(pause)).await;
            let said = visitor.ask("/", &[("x-user", "anna")]).await;
            assert!(said.starts_with("pod HTTP/1.1"), "{relay_ends}: {said}");
        }
        drop(visitors);
        place.relay_ends(relay).await;
    }
}

#[tokio::test]
async fn visitors_reach_the_pods_until_the_cluster_knows_that_a_port_is_given_back() {
    let place = team(greet("pod").await).await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    for service in ["team.shop:80".to_owned(), of_user("team.shop:80", "anna")] {
        let mut laptop = Laptop::connect(&relay).await;
        let port = laptop.take(&service).await.unwrap();
        eventually("the pods are no longer behind the port", || async { place.served("team", "http") == [port] }).await;
        place.demo.faults().delay("/services/team", Some(Duration::from_millis(500)));
        let resume = laptop.resume;
        drop(laptop);
        eventually("a visitor reaches a pod", || greeted(port)).await;
        // The port is its client's before it is the pods'.
        let mut again = Laptop::connect(&relay).await;
        again.resume = resume;
        assert_eq!(again.take(&service).await.unwrap(), port);
        again.goodbye().await;
        place.demo.faults().delay("/services/team", None);
        place.is_again(&before).await;
        eventually("the port is closed", || async { TcpStream::connect(("127.0.0.1", port)).await.is_err() }).await;
    }
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn visitors_wait_for_a_laptop_while_the_api_server_hangs() {
    let place = team(greet("pod").await).await;
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    let port = laptop.take("team.shop:80").await.unwrap();
    eventually("the pods are no longer behind the port", || async { place.served("team", "http") == [port] }).await;
    place.demo.faults().delay("/version", Some(10 * PATIENCE));
    let mut visitor = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut greeting = [0; 3];
    assert!(timeout(Duration::from_secs(9), visitor.read_exact(&mut greeting)).await.is_err(), "it waits");
    // The API server is back, and the laptop still sleeps.
    place.demo.faults().delay("/version", None);
    timeout(PATIENCE, visitor.read_exact(&mut greeting)).await.expect("in time").unwrap();
    assert_eq!(&greeting, b"pod");
    laptop.goodbye().await;
    place.relay_ends(relay).await;
}

#[tokio::test]
async fn visitors_of_a_laptop_that_sleeps_reach_the_pods_until_it_answers_again() {
    async fn greeted(port: u16) {
        let mut visitor = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut greeting = [0; 3];
        timeout(Duration::from_secs(8), visitor.read_exact(&mut greeting)).await.expect("in time").unwrap();
        assert_eq!(&greeting, b"pod");
    }
    let place = team(greet("pod").await).await;
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    let port = laptop.take("team.shop:80").await.unwrap();
    // The relay learns of the pods after the takeover.
    eventually("the pods are no longer behind the port", || async { place.served("team", "http") == [port] }).await;
    greeted(port).await;
    // The next ones do not wait.
    let asked = Instant::now();
    greeted(port).await;
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    // The laptop wakes up, and is asked again.
    while !matches!(laptop.frame().await, Frame::Incoming { .. }) {}
    laptop.send(Frame::Ping { cookie: 7 }).await;
    laptop.pong(7).await;
    let _visitor = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    while !matches!(laptop.frame().await, Frame::Incoming { .. }) {}
    laptop.goodbye().await;
    place.relay_ends(relay).await;
}
