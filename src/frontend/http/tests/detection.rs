//! Tests of protocol detection with missing or wrong hints. The servers refuse other protocols like the programs that they are
//! named after.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::{
    io::prefixed::Prefixed,
    wire::sniff::{Protocol, Sniff, sniff},
};

const NGINX: &str = "HTTP/1.1 400 Bad Request\r\nServer: nginx\r\nContent-Type: text/html\r\nContent-Length: 90\r\nConnection: close\r\n\r\n\
    <html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>";
const GO: &str = "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
const UNKNOWN_SERVER: &str = "HTTP/1.1 400 Bad Request\r\nContent-Length: 5\r\nConnection: close\r\n\r\nno: 7";
const KESTREL: &str = "HTTP/1.1 400 Bad Request\r\nContent-Length: 56\r\nConnection: close\r\n\r\n\
    An HTTP/1.x request was sent to an HTTP/2 only endpoint.";
const ALERT: &[u8] = b"\x15\x03\x03\x00\x02\x02\x46";
/// SETTINGS, and GOAWAY with a text, as Netty sends it.
const NETTY: &[u8] =
    b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x0f\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01HTTP/1?";
const PYTHON: &str = "HTTP/1.1 505 HTTP Version Not Supported\r\nConnection: close\r\n\r\n<!DOCTYPE HTML>";

/// A server: its protocol, and its last bytes to a client of another protocol.
#[derive(Clone, Copy, Debug)]
struct Server {
    speaks: &'static [Scheme],
    refusal: &'static [u8],
}

const HTTP: &[Scheme] = &[Scheme::Http];
const HTTPS: &[Scheme] = &[Scheme::Https];
const H2C: &[Scheme] = &[Scheme::H2c];

/// Echoes the body, and describes the request in headers.
fn echo(request: Request<Incoming>, scheme: Scheme) -> Answered {
    Box::pin(async move {
        let mut response = Response::builder()
            .header("x-scheme", protocol::name(scheme))
            .header("x-method", request.method().as_str());
        if request.headers().contains_key(UPGRADE) {
            response = response.status(101).header(CONNECTION, "upgrade").header(UPGRADE, "websocket");
        }
        let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(response.body(body_of(body)).unwrap())
    })
}

/// Marks a server without a refusal, which never closes by itself.
const WAITS: &[u8] = b"...";

async fn accept(pod: Arc<Pod>, mut stream: impl Io + 'static, server: Server) {
    let mut first = Vec::new();
    while sniff(&first) == Sniff::NeedMore && stream.read_buf(&mut first).await.is_ok_and(|count| count > 0) {}
    let scheme = match sniff(&first) {
        Sniff::Is(Protocol::Tls) => Scheme::Https,
        Sniff::Is(Protocol::Http2) => Scheme::H2c,
        _ => Scheme::Http,
    };
    if !server.speaks.contains(&scheme) {
        if server.refusal == WAITS {
            let _ = stream.read_to_end(&mut first).await;
            return;
        }
        let _ = stream.write_all(server.refusal).await;
        return;
    }
    let service = service_fn(move |request| {
        pod.requests.fetch_add(1, Ordering::SeqCst);
        echo(request, scheme)
    });
    let certs = Arc::<Certs>::default();
    let stream = Prefixed::new(first.into(), stream);
    let _ = match scheme {
        Scheme::Http => http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await,
        Scheme::H2c => http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await,
        Scheme::Https => {
            let acceptor = TlsAcceptor::from(certs.server_config(&[b"http/1.1"]).unwrap());
            let Ok(stream) = acceptor.accept(stream).await else { return };
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await
        }
    };
}

fn port(number: u16, name: Option<&str>) -> ServicePort {
    ServicePort { number, name: name.map(str::to_owned), app_protocol: None }
}

fn world(server: Server, options: &str, port: ServicePort) -> World {
    let serve = move |pod, stream| drop(tokio::spawn(accept(pod, stream, server)));
    World::routed(options, port, Scheme::Http, Box::new(serve))
}

/// Returns status, x-scheme and body.
async fn told(response: Response<Incoming>) -> (u16, String, String) {
    let status = response.status().as_u16();
    let scheme = response.headers().get("x-scheme").map(|scheme| scheme.to_str().unwrap().to_owned());
    (status, scheme.unwrap_or_default(), text(response).await)
}

fn request(method: &str, body: Body) -> Request<Body> {
    Request::builder().method(method).uri("/").header(HOST, "web.localhost").body(body).unwrap()
}

fn streamed(pieces: usize, length: usize) -> Body {
    let piece = move |_| Ok::<_, BoxError>(Frame::data(Bytes::from(vec![b'a'; length])));
    StreamBody::new(futures::stream::iter((0..pieces).map(piece))).boxed_unsync()
}

async fn over_http1(world: &World, request: Request<Body>) -> (u16, String, String) {
    let sent = timeout(PATIENCE, async { world.http1().await.send_request(request).await });
    told(sent.await.expect("an answer in time").unwrap()).await
}

async fn over_http2(world: &World, mut request: Request<Body>, kind: &str) -> (u16, String, String) {
    *request.uri_mut() = "http://web.localhost/".parse().unwrap();
    request.headers_mut().remove(HOST);
    request.headers_mut().insert(http::header::CONTENT_TYPE, kind.parse().unwrap());
    let sent = timeout(PATIENCE, async { world.http2().await.send_request(request).await });
    told(sent.await.expect("an answer in time").unwrap()).await
}

#[tokio::test]
async fn a_backend_that_refuses_the_handshake_is_not_taken_for_plain_http() {
    // An alert of a server that knows no certificate for the name.
    const UNKNOWN_NAME: &[u8] = b"\x15\x03\x03\x00\x02\x02\x70";
    for (said, hint) in
        [(NGINX.as_bytes(), None), (NGINX.as_bytes(), Some("http")), (ALERT, None), (UNKNOWN_NAME, Some("https"))]
    {
        let serve = move |_: Arc<Pod>, mut stream: DuplexStream| {
            drop(tokio::spawn(async move {
                let mut first = Vec::new();
                while sniff(&first) == Sniff::NeedMore && stream.read_buf(&mut first).await.is_ok_and(|count| count > 0)
                {
                }
                let is_tls = sniff(&first) == Sniff::Is(Protocol::Tls);
                let _ = stream.write_all(if is_tls { UNKNOWN_NAME } else { said }).await;
            }));
        };
        let world = World::routed("port: 8000", port(8000, hint), Scheme::Https, Box::new(serve));
        for _ in 0..2 {
            let (status, _, page) = over_http1(&world, request("GET", body_of(""))).await;
            assert!(status == 502 && page.contains("alert unrecognized_name"), "{hint:?} {status} {page}");
            assert!(page.contains("set server_name"), "{page}");
        }
    }
}

#[tokio::test]
async fn a_client_of_http1_reaches_what_a_port_speaks() {
    for (speaks, refusal, hint) in [
        (HTTPS, NGINX.as_bytes(), None),
        (HTTPS, GO.as_bytes(), None),
        (HTTPS, ALERT, None),
        (HTTPS, b"", None),
        (HTTPS, UNKNOWN_SERVER.as_bytes(), None),
        (HTTPS, GO.as_bytes(), Some("http")),
        (HTTPS, ALERT, Some("grpc")),
        (HTTPS, b"", Some("grpc")),
        (H2C, NETTY, None),
        (H2C, &NETTY[..9], Some("http")),
        (H2C, KESTREL.as_bytes(), None),
        (H2C, b"", None),
        (H2C, NETTY, Some("https")),
        (HTTP, PYTHON.as_bytes(), Some("grpc")),
        (HTTP, b"", Some("grpc")),
        (HTTP, PYTHON.as_bytes(), Some("https")),
        (HTTP, b"<!DOCTYPE HTML>", Some("https")),
        (HTTP, b"", Some("https")),
    ] {
        let (server, scheme) = (Server { speaks, refusal }, protocol::name(speaks[0]));
        let world = world(server, "port: 8000", port(8000, hint));
        let what = format!("{server:?} with the hint {hint:?}");
        let get = over_http1(&world, request("GET", body_of(""))).await;
        assert_eq!(get, (200, scheme.to_owned(), String::new()), "{what}");
        let connections = world.connections();
        let post = over_http1(&world, request("POST", body_of("order"))).await;
        assert_eq!(post, (200, scheme.to_owned(), "order".to_owned()), "{what}");
        assert!(world.connections() <= connections + 1, "what was learned is remembered: {what}");
        assert_eq!(world.seen(), 2, "each request arrives once: {what}");
        let wrong = world.front.protocols().wrong_hints();
        assert_eq!(wrong.len(), usize::from(hint.is_some()), "{what}: {wrong:?}");
        assert!(wrong.iter().all(|line| line.contains(&format!("scheme: {scheme}"))), "{what}: {wrong:?}");
    }
}

#[tokio::test]
async fn the_first_request_may_have_a_body_where_the_server_says_what_it_speaks() {
    for (speaks, refusal, hint) in [
        (HTTPS, NGINX.as_bytes(), None),
        (HTTPS, ALERT, Some("http")),
        (H2C, NETTY, None),
        (HTTP, b"", Some("https")),
        (HTTP, PYTHON.as_bytes(), Some("grpc")),
    ] {
        for (method, body, length) in [
            ("POST", body_of("hello"), 5),
            ("PATCH", streamed(3, 5), 15),
            ("POST", body_of(vec![b'a'; 300_000]), 300_000),
            ("PUT", streamed(30, 10_000), 300_000),
        ] {
            let world = world(Server { speaks, refusal }, "port: 8000", port(8000, hint));
            let (status, scheme, text) = over_http1(&world, request(method, body)).await;
            assert_eq!(
                (status, scheme.as_str(), text.len()),
                (200, protocol::name(speaks[0]), length),
                "{speaks:?} {method}"
            );
            assert_eq!(world.seen(), 1);
        }
    }
}

#[tokio::test]
async fn silence_does_not_have_a_post_sent_twice() {
    let world = world(Server { speaks: HTTPS, refusal: b"" }, "port: 8000", port(8000, None));
    let (status, _, page) = over_http1(&world, request("POST", body_of("order"))).await;
    assert!(status == 502 && page.contains("speaks https") && page.contains("scheme: https"), "{page}");
    assert_eq!(world.seen(), 0);
    assert_eq!(over_http1(&world, request("POST", body_of("order"))).await.0, 200);
}

#[tokio::test]
async fn a_client_of_http2_reaches_what_a_port_speaks() {
    for (speaks, refusal, hint) in [
        (H2C, NETTY, None),
        (H2C, b"", None),
        (H2C, NETTY, Some("http")),
        (H2C, NETTY, Some("https")),
        (HTTP, PYTHON.as_bytes(), None),
        (HTTP, b"", None),
        (HTTPS, ALERT, None),
        (HTTPS, b"", None),
        (HTTPS, GO.as_bytes(), None),
    ] {
        for kind in ["text/plain", "application/grpc"] {
            let (server, scheme) = (Server { speaks, refusal }, protocol::name(speaks[0]));
            let world = world(server, "port: 50051", port(50051, hint));
            let what = format!("{server:?} with the hint {hint:?}: {kind}");
            let post = over_http2(&world, request("POST", streamed(30, 10_000)), kind).await;
            assert_eq!((post.0, post.1.as_str(), post.2.len()), (200, scheme, 300_000), "{what}");
            let connections = world.connections();
            let get = over_http2(&world, request("GET", body_of("")), kind).await;
            assert_eq!((get.0, get.1.as_str()), (200, scheme), "{what}");
            assert!(world.connections() <= connections + 1, "what was learned is remembered: {what}");
            assert_eq!(world.seen(), 2, "{what}");
        }
    }
}

/// Argo CD's server: gRPC, HTTP/1 and TLS on one port.
#[tokio::test]
async fn a_port_that_speaks_several_protocols_gets_each_request_in_its_own() {
    let all = Server { speaks: &[Scheme::Http, Scheme::Https, Scheme::H2c], refusal: b"" };
    let world = world(all, "port: 80", port(80, Some("http")));
    for _ in 0..2 {
        assert_eq!(over_http1(&world, request("GET", body_of(""))).await.1, "http");
        assert_eq!(over_http2(&world, request("POST", body_of("x")), "application/grpc+proto").await.1, "h2c");
        assert_eq!(over_http2(&world, request("GET", body_of("")), "text/plain").await.1, "http");
    }
    assert!(world.front.protocols().wrong_hints().is_empty());
}

#[tokio::test]
async fn a_head_request_and_an_upgrade_find_tls_too() {
    for refusal in [NGINX.as_bytes(), GO.as_bytes(), ALERT, b""] {
        let head = world(Server { speaks: HTTPS, refusal }, "port: 8000", port(8000, None));
        assert_eq!(over_http1(&head, request("HEAD", body_of(""))).await.0, 200);
        let upgrade = world(Server { speaks: HTTPS, refusal }, "port: 8000", port(8000, None));
        let mut asking = request("GET", body_of(""));
        for (name, value) in [("connection", "upgrade"), ("upgrade", "websocket")] {
            asking.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        let switched = upgrade.http1().await.send_request(asking).await.unwrap();
        assert_eq!(switched.status(), StatusCode::SWITCHING_PROTOCOLS, "{}", refusal.escape_ascii());
    }
}

#[tokio::test]
async fn a_refusal_that_is_the_applications_own_passes() {
    for refusal in [NGINX, GO, UNKNOWN_SERVER] {
        // The server rejects every protocol.
        let world = world(Server { speaks: &[], refusal: refusal.as_bytes() }, "port: 80", port(80, None));
        for method in ["GET", "POST", "HEAD"] {
            let (status, _, body) = over_http1(&world, request(method, body_of(""))).await;
            assert_eq!((status, body.is_empty()), (400, method == "HEAD"), "{method}");
            assert!(refusal.ends_with(&body), "{body}");
        }
    }
}

#[tokio::test]
async fn a_route_that_says_the_wrong_scheme_is_told_with_its_line() {
    for (speaks, refusal, says) in [
        (HTTPS, NGINX.as_bytes(), "http"),
        (HTTPS, ALERT, "h2c"),
        (H2C, NETTY, "http"),
        (HTTP, PYTHON.as_bytes(), "https"),
        (HTTP, PYTHON.as_bytes(), "h2c"),
    ] {
        let speaks_name = protocol::name(speaks[0]);
        let world = world(Server { speaks, refusal }, &format!("port: 8000, scheme: {says}"), port(8000, None));
        for method in ["GET", "POST"] {
            let (status, _, page) = over_http1(&world, request(method, body_of(""))).await;
            let line = format!(
                "{{\"web.localhost\": {{namespace: default, service: web, port: 8000, scheme: {speaks_name}}}}}"
            );
            assert!(status == 502 && page.contains(&line), "{says} for {speaks_name}: {page}");
            assert!(page.contains(&format!("says scheme: {says}")), "{page}");
        }
        assert_eq!(world.seen(), 0);
    }
}

#[tokio::test]
async fn where_certificates_are_verified_nothing_goes_without_tls() {
    let server = Server { speaks: HTTP, refusal: b"" };
    let world = world(server, "port: 443, verify: true", port(443, None));
    let (status, _, page) = over_http1(&world, request("GET", body_of(""))).await;
    assert!(status == 502 && world.seen() == 0, "{page}");
}

#[tokio::test]
async fn what_speaks_no_http_is_named() {
    let world =
        world(Server { speaks: &[], refusal: b"-ERR unknown command 'GET'\r\n" }, "port: 7000", port(7000, None));
    let (status, _, page) = over_http1(&world, request("GET", body_of(""))).await;
    assert!(status == 502 && page.contains("but with \"-ERR unknown command"), "{page}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_waits_for_the_rest_of_what_it_does_not_understand_is_reached() {
    for (speaks, hint) in [(HTTP, "https"), (HTTP, "grpc")] {
        let world = world(Server { speaks, refusal: WAITS }, "port: 8000", port(8000, Some(hint)));
        let started = tokio::time::Instant::now();
        let post = over_http1(&world, request("POST", body_of("order"))).await;
        assert_eq!((post.0, post.2.as_str()), (200, "order"), "{hint}");
        assert!(started.elapsed() < Duration::from_secs(7), "{hint}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn the_pods_of_another_version_may_speak_something_else() {
    let versions = [(HTTP, PYTHON.as_bytes()), (HTTPS, b""), (HTTP, b""), (HTTPS, ALERT), (HTTP, b""), (H2C, b"")];
    let version = Arc::new(AtomicUsize::new(0));
    let now = version.clone();
    let serve = move |pod, stream| {
        let (speaks, refusal) = versions[now.load(Ordering::SeqCst)];
        drop(tokio::spawn(accept(pod, stream, Server { speaks, refusal })));
    };
    let world = World::routed("port: 8000", port(8000, None), Scheme::Http, Box::new(serve));
    for (speaks, _) in versions {
        let (status, scheme, _) = over_http1(&world, request("DELETE", streamed(2, 700))).await;
        assert_eq!((status, scheme.as_str()), (200, protocol::name(speaks[0])));
        version.fetch_add(1, Ordering::SeqCst);
    }
    assert_eq!(world.seen(), versions.len());
}

#[tokio::test]
async fn a_lost_request_is_no_sign_of_another_protocol() {
    // As Go, Tomcat and Vert.x do, the pod speaks HTTP/1 and h2c on one port.
    let server = Server { speaks: &[Scheme::Http, Scheme::H2c], refusal: b"" };
    for (is_known, length) in [(true, 5), (true, 300_000), (false, 300_000)] {
        let is_dying = Arc::new(AtomicBool::new(!is_known));
        let dies = is_dying.clone();
        let serve = move |pod, mut stream: DuplexStream| {
            let dies = dies.clone();
            drop(tokio::spawn(async move {
                let mut first = Vec::new();
                while sniff(&first) == Sniff::NeedMore && stream.read_buf(&mut first).await.is_ok_and(|count| count > 0)
                {
                }
                if dies.load(Ordering::SeqCst) && sniff(&first) == Sniff::Is(Protocol::Http1) {
                    while first.len() < length && stream.read_buf(&mut first).await.is_ok_and(|count| count > 0) {}
                    return;
                }
                accept(pod, Prefixed::new(first.into(), stream), server).await;
            }));
        };
        let world = World::routed("port: 8000", port(8000, Some("http")), Scheme::Http, Box::new(serve));
        let what = format!("known: {is_known}, {length} bytes");
        if is_known {
            assert_eq!(over_http1(&world, request("GET", body_of(""))).await.1, "http", "{what}");
        }
        is_dying.store(true, Ordering::SeqCst);
        let (status, _, page) = over_http1(&world, request("POST", streamed(length / 5, 5))).await;
        assert!(status == 502 && !page.contains("speaks h2c"), "{what}: {page}");
        is_dying.store(false, Ordering::SeqCst);
        assert_eq!(over_http1(&world, request("POST", body_of("order"))).await.1, "http", "{what}");
        assert!(world.front.protocols().wrong_hints().is_empty(), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_fails_at_times_keeps_its_protocol() {
    // As a Go handler that panics does, the pod closes without an answer.
    let server = Server { speaks: &[Scheme::Http, Scheme::H2c], refusal: b"" };
    let failures = Arc::new(AtomicUsize::new(0));
    let left = failures.clone();
    let serve = move |pod, mut stream: DuplexStream| {
        let left = left.clone();
        drop(tokio::spawn(async move {
            let mut first = Vec::new();
            while sniff(&first) == Sniff::NeedMore && stream.read_buf(&mut first).await.is_ok_and(|count| count > 0) {}
            let takes_one = |left: usize| left.checked_sub(1);
            if sniff(&first) == Sniff::Is(Protocol::Http1)
                && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, takes_one).is_ok()
            {
                return;
            }
            accept(pod, Prefixed::new(first.into(), stream), server).await;
        }));
    };
    let world = World::routed("port: 8000", port(8000, Some("http")), Scheme::Http, Box::new(serve));
    // The streamed body needs a new connection each time.
    let delete = || request("DELETE", streamed(2, 700));
    assert_eq!(over_http1(&world, delete()).await.1, "http");
    for _ in 0..3 {
        failures.store(4, Ordering::SeqCst);
        assert_eq!(over_http1(&world, delete()).await.0, 200);
        failures.store(0, Ordering::SeqCst);
        assert_eq!(over_http1(&world, delete()).await.1, "http");
        assert!(world.front.protocols().wrong_hints().is_empty());
    }
    // Another version may speak only the other protocol.
    failures.store(usize::MAX, Ordering::SeqCst);
    assert_eq!(over_http1(&world, delete()).await.1, "h2c");
    tokio::time::sleep(Duration::from_secs(6)).await;
    for next in [delete(), request("POST", body_of("order"))] {
        assert_eq!(over_http1(&world, next).await.1, "h2c");
    }
}

#[tokio::test]
async fn the_error_of_a_failing_backend_is_that_of_its_protocol() {
    // As Go does for a handler that panics: HTTP/1 ends, and HTTP/2 resets the stream.
    let is_failing = Arc::new(AtomicBool::new(false));
    let fails = is_failing.clone();
    let serve = move |pod, mut stream: DuplexStream| {
        let fails = fails.load(Ordering::SeqCst);
        drop(tokio::spawn(async move {
            let mut first = Vec::new();
            while sniff(&first) == Sniff::NeedMore && stream.read_buf(&mut first).await.is_ok_and(|count| count > 0) {}
            match sniff(&first) {
                Sniff::Is(Protocol::Http1) if fails => {}
                Sniff::Is(Protocol::Http2) => {
                    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
                    let reset = [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 2];
                    stream.write_all(&settings).await.unwrap();
                    let is_headers = |bytes: &[u8]| bytes.windows(6).any(|frame| frame == [1, 4, 0, 0, 0, 1]);
                    while !is_headers(&first) && stream.read_buf(&mut first).await.is_ok_and(|count| count > 0) {}
                    stream.write_all(&reset).await.unwrap();
                    while stream.read_buf(&mut first).await.is_ok_and(|count| count > 0) {}
                }
                _ => accept(pod, Prefixed::new(first.into(), stream), Server { speaks: HTTP, refusal: b"" }).await,
            }
        }));
    };
    let world = World::routed("port: 8000", port(8000, Some("http")), Scheme::Http, Box::new(serve));
    let delete = || request("DELETE", streamed(2, 700));
    assert_eq!(over_http1(&world, delete()).await.1, "http");
    is_failing.store(true, Ordering::SeqCst);
    let (status, _, page) = over_http1(&world, delete()).await;
    assert!(status == 502 && page.contains("closed the connection before it had answered"), "{page}");
    assert!(page.contains("adit doctor"), "{page}");
}

/// A server that wants HTTP/1.1 for what HTTP/2 cannot do, as IIS does for Windows authentication.
fn wants_http1(resets: Arc<AtomicUsize>, hint: &str, speaks: Scheme) -> World {
    let certs = Arc::<Certs>::default();
    let serve = move |pod: Arc<Pod>, stream: DuplexStream| {
        let (resets, certs) = (resets.clone(), certs.clone());
        tokio::spawn(async move {
            let (is_h2, stream): (bool, BoxedIo) = match speaks {
                Scheme::Https => {
                    let acceptor = TlsAcceptor::from(certs.server_config(&[b"h2", b"http/1.1"]).unwrap());
                    let stream = acceptor.accept(stream).await.unwrap();
                    (stream.get_ref().1.alpn_protocol() == Some(b"h2"), Box::new(stream))
                }
                _ => {
                    let (mut stream, mut first) = (stream, [0; 3]);
                    stream.read_exact(&mut first).await.unwrap();
                    (first == *b"PRI", Box::new(Prefixed::new(Bytes::copy_from_slice(&first), stream)))
                }
            };
            if is_h2 {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    resets.fetch_add(1, Ordering::SeqCst);
                    let _: &mut h2::server::SendResponse<Bytes> = &mut respond;
                    respond.send_reset(h2::Reason::HTTP_1_1_REQUIRED);
                }
                return;
            }
            let service = service_fn(move |request| {
                pod.requests.fetch_add(1, Ordering::SeqCst);
                echo(request, Scheme::Http)
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    };
    let port = ServicePort { number: 443, name: None, app_protocol: (!hint.is_empty()).then(|| hint.to_owned()) };
    World::routed("port: 443", port, speaks, Box::new(serve))
}

#[tokio::test]
async fn a_server_that_requires_http1_gets_it_and_is_remembered() {
    for (hint, speaks) in [("https", Scheme::Https), ("kubernetes.io/h2c", Scheme::H2c)] {
        let resets = Arc::<AtomicUsize>::default();
        let world = wants_http1(resets.clone(), hint, speaks);
        for _ in 0..3 {
            let (status, _, body) = over_http1(&world, request("POST", body_of("text"))).await;
            assert_eq!((status, &*body), (200, "text"), "{hint}");
        }
        assert_eq!((resets.load(Ordering::SeqCst), world.seen()), (1, 3), "{hint}");
    }
}
