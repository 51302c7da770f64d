//! The HTTP frontend over a scripted backend: hyper servers in memory.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version,
    header::{CONNECTION, HOST, UPGRADE},
};
use http_body_util::StreamBody;
use hyper::{body::Frame, client::conn, server::conn::http2};
use hyper_util::rt::TokioExecutor;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    super::{certs::Certs, protocol},
    admit::authority,
    body::body_of,
    *,
};
use crate::{
    backend::{Backend, CloseReason, ConnectError, Placement, Session, SessionGauges},
    config::{Scheme, validate},
    error_code::ErrorCode,
    frontend::{client_socket::ClientSocket, door::Door},
    io::{Io, accept::Place, through::write_through},
    routing::{Contexts, Router, Target},
    tunnel::{Endpoint, OpenError, ServicePort},
};

mod around;
mod backends;
mod detection;
mod differential;
mod floods;
mod frames;
mod grpc;
mod lives;
mod stalls;
mod streams;

const PATIENCE: Duration = Duration::from_secs(10);

type Answered = BoxFuture<'static, io::Result<Response<Body>>>;

/// Serves the connections of a pod.
type Serve = Box<dyn Fn(Arc<Pod>, DuplexStream) + Send + Sync>;

/// A pod, and the requests that it has received.
struct Pod {
    speaks: Scheme,
    serve: Serve,
    /// Of each connection.
    placements: Mutex<Vec<Placement>>,
    requests: AtomicUsize,
    resets: AtomicUsize,
    endpoint: Endpoint,
    gauges: SessionGauges,
    /// Made once: minting keys takes longer than a request.
    certs: Arc<Certs>,
}

/// A stream to a pod that counts how often it was reset.
struct Watched {
    inner: DuplexStream,
    pod: Arc<Pod>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    write_through!();
}

impl Io for Watched {
    fn reset(&mut self) {
        self.pod.resets.fetch_add(1, Ordering::SeqCst);
    }
}

struct Shared(Arc<Pod>);

impl Backend for Shared {
    fn open<'a>(&'a self, _: &'a Target) -> BoxFuture<'a, Result<Box<dyn Session>, OpenError>> {
        Box::pin(async { Ok(Box::new(Shared(self.0.clone())) as Box<dyn Session>) })
    }
}

impl Session for Shared {
    fn connect(&self) -> BoxFuture<'_, Result<(BoxedIo, Placement), ConnectError>> {
        let (near, far) = duplex(64 * 1024);
        let placement = Placement::new("web-0");
        self.0.placements.lock().unwrap().push(placement.clone());
        (self.0.serve)(self.0.clone(), far);
        let stream = Watched { inner: near, pod: self.0.clone() };
        Box::pin(async { Ok((Box::new(stream) as BoxedIo, placement)) })
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(std::future::pending())
    }

    fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    fn gauges(&self) -> &SessionGauges {
        &self.0.gauges
    }
}

async fn serve_pod<A>(pod: Arc<Pod>, stream: DuplexStream, answer: Arc<A>)
where
    A: Fn(Request<Incoming>) -> Answered + Send + Sync + 'static,
{
    let counting = pod.clone();
    let service = service_fn(move |request| {
        counting.requests.fetch_add(1, Ordering::SeqCst);
        answer(request)
    });
    // The tests look at how the frontend ends a connection.
    let _ = match pod.speaks {
        Scheme::Http => {
            let builder = &mut http1::Builder::new();
            builder.max_headers(4_000).serve_connection(TokioIo::new(stream), service).with_upgrades().await
        }
        Scheme::H2c => {
            let builder = &mut http2::Builder::new(TokioExecutor::new());
            builder.max_header_list_size(1 << 20).serve_connection(TokioIo::new(stream), service).await
        }
        Scheme::Https => {
            let acceptor = TlsAcceptor::from(pod.certs.clone().server_config(&[b"h2", b"http/1.1"]).unwrap());
            let stream = TokioIo::new(acceptor.accept(stream).await.unwrap());
            http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await
        }
    };
}

/// The frontend, and the pod that serves web.localhost.
struct World {
    front: Arc<HttpFrontend>,
    tunnels: Manager,
    pod: Arc<Pod>,
    drain: Drain,
}

impl World {
    /// Returns a world whose pod answers each request with `answer`.
    fn new(speaks: Scheme, answer: impl Fn(Request<Incoming>) -> Answered + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self::over(speaks, Box::new(move |pod, stream| drop(tokio::spawn(serve_pod(pod, stream, answer.clone())))))
    }

    fn over(speaks: Scheme, serve: Serve) -> Self {
        let scheme = format!("scheme: {}", protocol::name(speaks));
        Self::routed(&scheme, ServicePort { number: 80, name: None, app_protocol: None }, speaks, serve)
    }

    /// Returns a world whose route has `options`, and whose Service has `port`.
    fn routed(options: &str, port: ServicePort, speaks: Scheme, serve: Serve) -> Self {
        let route = format!("{{service: web, {options}}}");
        let text = format!("http: {{k8s: {{routes: {{web.localhost: {route}, web.example.test: {route}}}}}}}\n");
        let config = Arc::new(validate::parse(Path::new("c"), text.as_bytes()).unwrap());
        let contexts = Arc::new(Contexts {
            kubeconfig: Arc::new(config.http.kubeconfig.clone()),
            current: Some("dev".parse().unwrap()),
            namespaces: Default::default(),
            problem: None,
        });
        let router = Router { config, http_contexts: contexts.clone(), tcp_contexts: contexts };
        let pod = Arc::new(Pod {
            speaks,
            serve,
            placements: Mutex::default(),
            requests: AtomicUsize::new(0),
            resets: AtomicUsize::new(0),
            endpoint: Endpoint { pod: "web-0".into(), container_port: 80, port, protocol: "test" },
            gauges: SessionGauges::default(),
            certs: Arc::default(),
        });
        let drain = Drain::new();
        let tunnels = Manager::new(Arc::new(Shared(pod.clone())), drain.clone());
        let router = Arc::new(arc_swap::ArcSwap::from_pointee(router));
        Self { front: HttpFrontend::new(router, tunnels.clone(), Arc::default(), drain.clone()), tunnels, pod, drain }
    }

    /// Returns the client's end of a connection to the frontend.
    fn connect(&self, version: HttpVersion) -> DuplexStream {
        let (near, far) = duplex(64 * 1024);
        self.serve(Box::new(far), version);
        near
    }

    /// Serves a client.
    fn serve(&self, stream: BoxedIo, version: HttpVersion) {
        let address = "127.0.0.1:8989".parse().unwrap();
        let connection = Arc::new(Connection {
            id: 1,
            peer: address,
            local: address,
            dialled: address,
            socket: ClientSocket::UNKNOWN,
            place: Place::uncounted(),
            door: Door::Open,
        });
        self.drain.spawn(self.front.clone().serve(stream, version, connection, false, self.drain.clone()));
    }

    /// Writes bytes, and returns the answer up to the end of the connection.
    async fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect(HttpVersion::Http1);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("the front closes").unwrap();
        answer
    }

    async fn http1(&self) -> conn::http1::SendRequest<Body> {
        let stream = TokioIo::new(self.connect(HttpVersion::Http1));
        let (sender, connection) = conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn http2(&self) -> conn::http2::SendRequest<Body> {
        let stream = TokioIo::new(self.connect(HttpVersion::Http2));
        let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    fn leases(&self) -> u64 {
        self.tunnels.snapshot().iter().map(|tunnel| tunnel.leases).sum()
    }

    fn seen(&self) -> usize {
        self.pod.requests.load(Ordering::SeqCst)
    }

    fn connections(&self) -> usize {
        self.pod.placements.lock().unwrap().len()
    }
}

fn get(uri: &str) -> Request<Body> {
    Request::get(uri).header(HOST, "web.localhost").body(body_of("")).unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    let body = timeout(PATIENCE, response.into_body().collect()).await.expect("the body ends").unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

/// Answers with the headers of the request, one on each line.
fn show_headers(request: Request<Incoming>) -> Answered {
    let lines: Vec<String> =
        request.headers().iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect();
    Box::pin(async move { Ok(Response::new(body_of(lines.concat()))) })
}

fn break_off(_: Request<Incoming>) -> Answered {
    Box::pin(async { Err(io::ErrorKind::BrokenPipe.into()) })
}

#[tokio::test]
async fn framings_that_could_be_read_in_two_ways_are_refused() {
    let world = World::new(Scheme::Http, show_headers);
    for framing in [
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
    ] {
        let rest = "GET /smuggled HTTP/1.1\r\nHost: web.localhost\r\n\r\n";
        let answer =
            world.exchange(&format!("POST / HTTP/1.1\r\nHost: web.localhost\r\n{framing}\r\n0\r\n\r\n{rest}")).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("x-adit-error: ambiguous"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "what follows is no request: {answer}");
    }
    assert_eq!(world.connections(), 0);
    let chunked = "POST / HTTP/1.1\r\nHost: web.localhost\r\nTransfer-Encoding: Chunked\r\nConnection: close\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    assert!(world.exchange(chunked).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn cookies_that_http2_splits_are_one_field_for_http1() {
    let world = World::new(Scheme::Http, show_headers);
    let request = Request::get("http://web.localhost/").header("cookie", "a=1").header("cookie", "b=2; c=3");
    let response = world.http2().await.send_request(request.body(body_of("")).unwrap()).await.unwrap();
    let shown = text(response).await;
    assert!(shown.contains("cookie: a=1; b=2; c=3\n"), "{shown}");
    assert_eq!(shown.matches("cookie").count(), 1, "{shown}");
}

#[tokio::test]
async fn how_many_headers_a_request_has_is_the_servers_own_matter() {
    const COUNT: usize = 1_990;
    for speaks in [Scheme::Http, Scheme::H2c] {
        let world = World::new(speaks, |request| {
            let count = |name: &str| request.headers().get_all(name).iter().count();
            let cookies = request.headers().get_all("cookie").iter().map(HeaderValue::len).max();
            let counts = format!("{} {}", count("x-many"), cookies.unwrap_or_default());
            Box::pin(async { Ok(Response::new(body_of(counts))) })
        });
        let many = "X-Many: v\r\n".repeat(COUNT);
        let head = format!("GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: close\r\n{many}\r\n");
        let answer = world.exchange(&head).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(&format!("{COUNT} 0")), "{speaks:?}: {answer}");
        let mut request = get("http://web.localhost/");
        for number in 0..COUNT {
            request.headers_mut().append("x-many", HeaderValue::from_static("v"));
            request.headers_mut().append("cookie", HeaderValue::try_from(format!("c{number:04}=v")).unwrap());
        }
        let response = world.http2().await.send_request(request).await.unwrap();
        // HTTP/1.1 has one Cookie field, with "; " between the pairs; hyper's server may join them over HTTP/2, too.
        assert_eq!(response.status(), StatusCode::OK, "{speaks:?}");
        let shown = text(response).await;
        assert!(shown.starts_with(&format!("{COUNT} ")), "{speaks:?}: {shown}");
        if speaks == Scheme::Http {
            assert_eq!(shown, format!("{COUNT} {}", COUNT * 9 - 2));
        }
    }
}

#[tokio::test]
async fn a_post_whose_fate_is_unknown_is_sent_once() {
    let world = World::new(Scheme::Http, break_off);
    let request = Request::post("/").header(HOST, "web.localhost").body(body_of("order")).unwrap();
    let response = world.http1().await.send_request(request).await.unwrap();
    assert_eq!((response.status(), world.seen()), (StatusCode::BAD_GATEWAY, 1));
}

#[tokio::test]
async fn behind_tls_all_requests_share_a_connection_of_http2() {
    let world = World::new(Scheme::Https, show_headers);
    let mut client = world.http1().await;
    for method in ["POST", "GET", "GET", "POST", "POST"] {
        client.ready().await.unwrap();
        let request =
            Request::builder().method(method).uri("/").header(HOST, "web.localhost").body(body_of("")).unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        text(response).await;
        assert_eq!(world.connections(), 1, "{method}");
    }
}

#[tokio::test]
async fn answers_without_a_body_pass_with_what_they_say_of_it() {
    let world = World::new(Scheme::Http, |request| {
        Box::pin(async move {
            let status = if request.uri().path() == "/304" { 304 } else { 200 };
            let has_body = request.method() != Method::HEAD && status != 304;
            let response = Response::builder().status(status).header("content-length", "5").header("etag", "\"e\"");
            Ok(response.body(body_of(if has_body { "hello" } else { "" })).unwrap())
        })
    });
    let mut client = world.http1().await;
    // hyper's own server takes the length from a 304, where it is optional (RFC 9110, section 8.6).
    for (method, path, length, body) in
        [("HEAD", "/", Some("5"), ""), ("GET", "/304", None, ""), ("GET", "/", Some("5"), "hello")]
    {
        client.ready().await.unwrap();
        let request =
            Request::builder().method(method).uri(path).header(HOST, "web.localhost").body(body_of("")).unwrap();
        let response = client.send_request(request).await.unwrap();
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!((header("content-length"), header("etag")), (length, Some("\"e\"")), "{method} {path}");
        assert_eq!(text(response).await, body, "{method} {path}");
    }
}

#[tokio::test]
async fn a_target_of_http2_is_one_that_http1_may_carry() {
    for speaks in [Scheme::Http, Scheme::H2c] {
        let world = World::new(speaks, |request| {
            let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
            Box::pin(async move { Ok(Response::new(body_of(target))) })
        });
        let mut client = world.http2().await;
        for (target, sent) in [
            (r#"/a"{b}|c^d?x={job="#, r#"/a"{b}|c^d?x={job="#),
            ("/?`{x}|^[y]", "/?`{x}|^[y]"),
            ("/\u{e9}", "/%C3%A9"),
            ("/a?b=\u{1f600}", "/a?b=%F0%9F%98%80"),
        ] {
            client.ready().await.unwrap();
            let response = client.send_request(get(&format!("http://web.localhost{target}"))).await.unwrap();
            assert_eq!(text(response).await, sent, "{speaks:?}");
        }
    }
}

#[tokio::test]
async fn a_head_is_answered_though_the_backend_sends_content() {
    for speaks in [Scheme::Http, Scheme::H2c] {
        // hyper's HTTP/2 server sends the headers unchanged.
        let world = World::new(speaks, |_| Box::pin(async { Ok(Response::new(body_of("hello"))) }));
        let head = || Request::head("http://web.localhost/").header(HOST, "web.localhost").body(body_of("")).unwrap();
        let mut client = world.http2().await;
        for _ in 0..2 {
            client.ready().await.unwrap();
            let response = client.send_request(head()).await.unwrap();
            let length = response.headers().get("content-length").map(|value| value.to_str().unwrap().to_owned());
            assert_eq!((response.status().as_u16(), length.as_deref()), (200, Some("5")), "{speaks:?}");
            assert_eq!(text(response).await, "", "{speaks:?}");
        }
        let answer = world.exchange("HEAD / HTTP/1.1\r\nHost: web.localhost\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn the_tunnel_is_in_use_until_the_body_has_ended() {
    let (pieces_tx, pieces_rx) = tokio::sync::mpsc::channel(1);
    let pieces_rx = Mutex::new(Some(pieces_rx));
    let world = World::new(Scheme::Http, move |_| {
        let pieces_rx = pieces_rx.lock().unwrap().take().expect("one request");
        let pieces = futures::stream::unfold(pieces_rx, |mut pieces_rx| async {
            let piece: &'static str = pieces_rx.recv().await?;
            Some((Ok(Frame::data(Bytes::from(piece))), pieces_rx))
        });
        Box::pin(async { Ok(Response::new(StreamBody::new(pieces).boxed_unsync())) })
    });
    let mut client = world.http1().await;
    let response = client.send_request(get("/")).await.unwrap();
    pieces_tx.send("first ").await.unwrap();
    assert_eq!(world.leases(), 1);
    pieces_tx.send("last").await.unwrap();
    drop(pieces_tx);
    assert_eq!(text(response).await, "first last");
    assert_eq!(world.leases(), 0);
}

#[tokio::test]
async fn a_drain_lets_the_request_in_progress_finish_and_closes() {
    let world = World::new(Scheme::Http, |_| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            Ok(Response::new(body_of("done")))
        })
    });
    let mut client = world.http1().await;
    let asking = client.send_request(get("/"));
    let draining = async {
        while world.seen() == 0 {
            tokio::task::yield_now().await;
        }
        world.drain.start();
    };
    let (response, ()) = tokio::join!(asking, draining);
    assert_eq!(text(response.unwrap()).await, "done");
    assert!(timeout(PATIENCE, client.ready()).await.expect("the front closes").is_err());
}

#[test]
fn a_request_has_to_name_one_host() {
    let request = |uri: &str, hosts: &[&str]| {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        authority(&request.body(()).unwrap()).map_err(|page| page.code)
    };
    assert_eq!(request("/", &["a:80"]), Ok("a:80".into()));
    assert_eq!(request("http://a:80/", &["A"]), Ok("A".into()));
    assert_eq!(request("http://a/", &["b"]), Err(ErrorCode::Ambiguous));
    assert_eq!(request("/", &["a", "a"]), Err(ErrorCode::Ambiguous));
    assert_eq!(request("/", &[]), Err(ErrorCode::NoHost));
}

/// Returns a header in what [`show_headers`] has answered.
fn shown<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[tokio::test]
async fn a_backend_with_its_own_host_gets_an_origin_that_fits() {
    let serve =
        || -> Serve { Box::new(|pod, stream| drop(tokio::spawn(serve_pod(pod, stream, Arc::new(show_headers))))) };
    let port = ServicePort { number: 8080, name: None, app_protocol: None };
    let world = World::routed("rewrite_host: true, scheme: http", port, Scheme::Http, serve());
    let asked = async |host: &str, origin: &str| {
        world.exchange(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n{origin}Connection: close\r\n\r\n")).await
    };
    let own = "web.default.svc.cluster.local:8080";
    let answer = asked("web.localhost:8989", "Origin: http://web.localhost:8989\r\n").await;
    assert_eq!(shown(&answer, "host"), Some(own));
    assert_eq!(shown(&answer, "origin"), Some(&*format!("http://{own}")));
    // Servers behind a proxy compare Origin with these.
    assert_eq!(shown(&answer, "x-forwarded-host"), Some(own));
    assert_eq!(shown(&answer, "x-forwarded-port"), Some("8080"));
    for (origin, sent) in [("", None), ("Origin: https://foreign.example\r\n", Some("https://foreign.example"))] {
        let answer = asked("web.localhost:8989", origin).await;
        assert_eq!((shown(&answer, "host"), shown(&answer, "origin")), (Some(own), sent));
        assert_eq!(shown(&answer, "x-forwarded-host"), Some("web.localhost:8989"));
    }
    // A backend of https has an Origin of https, and X-Forwarded-Proto agrees with it.
    let port = ServicePort { number: 443, name: None, app_protocol: None };
    let world = World::routed("rewrite_host: true, scheme: https", port, Scheme::Https, serve());
    let mut request = get("/");
    request.headers_mut().insert(http::header::ORIGIN, HeaderValue::from_static("http://web.localhost"));
    let answer = text(world.http1().await.send_request(request).await.unwrap()).await;
    assert_eq!(shown(&answer, "origin"), Some("https://web.default.svc.cluster.local"));
    assert_eq!(shown(&answer, "x-forwarded-proto"), Some("https"));
    assert_eq!(shown(&answer, "x-forwarded-port"), Some("443"));
}

#[tokio::test]
async fn the_forwarded_port_of_a_request_to_the_forward_proxy_is_that_of_its_url() {
    let world = World::new(Scheme::Http, show_headers);
    for (target, host, port) in [
        ("http://web.example.test/", "web.example.test", "80"),
        ("http://web.example.test:81/", "web.example.test:81", "81"),
        ("/", "web.example.test", "8989"),
        ("/", "web.example.test:81", "81"),
    ] {
        let answer =
            world.exchange(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(shown(&answer, "x-forwarded-port"), Some(port), "{target} {host}: {answer}");
    }
}
