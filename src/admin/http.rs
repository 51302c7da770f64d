//! An HTTP server for programs: one request per connection, answered within seconds unless the answer is a stream.

use std::{
    convert::Infallible,
    future::pending,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::sleep,
};

use crate::metrics;

/// Time limit until a client has sent its request.
const ASKED_WITHIN: Duration = Duration::from_secs(5);

/// Time limit of a whole exchange. A list of Services waits for an API server.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Maximum bytes of an answer buffered for a client that does not read.
const MOST_BUFFERED: usize = 64 * 1024;

pub const TEXT: &str = "text/plain; charset=utf-8";
pub const HTML: &str = "text/html; charset=utf-8";
pub const JSON: &str = "application/json";
pub const NO_CONTENT: StatusCode = StatusCode::NO_CONTENT;

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Extension that marks a response without a time limit.
#[derive(Clone)]
struct Endless;

/// Answers the first request of a connection, then closes it.
pub async fn serve_one<F: Future<Output = Response<Body>>>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answer: impl Fn(Request<Incoming>) -> F,
) {
    let is_endless = AtomicBool::new(false);
    let service = service_fn(|request| {
        let answering = answer(request);
        let is_endless = &is_endless;
        async move {
            let response = answering.await;
            is_endless.store(response.extensions().get::<Endless>().is_some(), Ordering::Relaxed);
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http1::Builder::new();
    builder.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(ASKED_WITHIN).max_buf_size(MOST_BUFFERED);
    let late = async {
        sleep(ANSWER_WITHIN).await;
        if is_endless.load(Ordering::Relaxed) {
            pending().await
        }
    };
    tokio::select! {
        // Errors of the connection are the client's to report.
        _ = builder.serve_connection(TokioIo::new(stream), service).with_upgrades() => {}
        () = late => {}
    }
}

/// Answers a request for health or metrics. `None`: the path is another one.
pub fn probe<B>(request: &Request<B>, is_ready: bool, metrics: impl FnOnce() -> String) -> Option<Response<Body>> {
    Some(match request.uri().path() {
        "/healthz" | "/readyz" | "/metrics" if !is_read(request.method()) => read_only(),
        "/healthz" => respond(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" if is_ready => respond(StatusCode::OK, TEXT, "ready\n"),
        "/readyz" => respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, "stopping\n"),
        "/metrics" => respond(StatusCode::OK, metrics::CONTENT_TYPE, metrics()),
        _ => return None,
    })
}

/// Returns whether a method only reads. The server removes the body of an answer to HEAD.
pub fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Returns the answer to a method that is not [`is_read`], for a path that is only read.
pub fn read_only() -> Response<Body> {
    let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "this path is read with GET or HEAD\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// Returns a response. `kind`: its media type.
pub fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Returns a response without a body.
pub fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::default().boxed_unsync());
    *response.status_mut() = status;
    response
}

/// Marks a response that has no time limit: a stream or an upgrade.
pub fn endless(mut response: Response<Body>) -> Response<Body> {
    response.extensions_mut().insert(Endless);
    response
}
