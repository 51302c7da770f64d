//! CONNECT on the HTTP listener: clients of a proxy reach Services by their names in the cluster.
//!
//! The user name in Proxy-Authorization is the context. CONNECT must be the first request of a connection.

use std::{io, sync::Arc, time::Instant};

use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode, header::CONTENT_LENGTH};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tracing::{debug, info, warn};

use super::{
    error_page::{Form, Page},
    pages,
};
use crate::{
    error_code::ErrorCode,
    frontend::{
        Connection,
        forward::{Asked, Forward, ForwardError},
    },
    io::{BoxedIo, prefixed::Prefixed},
    journal::Kind,
    metrics::Metrics,
    routing::{Router, SharedRouter},
    tunnel::OpenError,
    wire::{
        connect::{self, Malformed},
        http1::{self, Refusal},
    },
};

/// Answer to CONNECT; the tunnel begins after it (RFC 9110, section 9.3.6).
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// Serves the clients of CONNECT.
pub struct ConnectFrontend {
    forward: Arc<Forward>,
    router: SharedRouter,
    metrics: Arc<Metrics>,
}

/// Why the head of a request was not read.
enum HeadError {
    Refused(Refusal),
    Io(io::Error),
}

impl ConnectFrontend {
    pub fn new(forward: Arc<Forward>, router: SharedRouter, metrics: Arc<Metrics>) -> Self {
        Self { forward, router, metrics }
    }

    /// Serves one connection until both sides have ended. `received`: the first bytes, which [`connect::is_connect`].
    pub async fn serve(&self, mut stream: BoxedIo, mut received: BytesMut, connection: Arc<Connection>) {
        let _open = self.metrics.connect_connections.open();
        let (id, started) = (connection.id, Instant::now());
        let listener = connection.local.port();
        let limit = connection.place.limits().head;
        let head = match timeout(limit, read_head(&mut stream, &mut received)).await {
            Ok(Ok(head)) => head,
            Ok(Err(HeadError::Refused(refusal))) => {
                return refuse(&mut stream, ambiguous(&refusal.to_string()), listener).await;
            }
            Ok(Err(HeadError::Io(error))) => return debug!(connection = id, %error, "connect: closed"),
            Err(_) => return debug!(connection = id, "connect: closed: no whole request within {limit:?}"),
        };
        connection.place.settle();
        let asked = match connect::parse(&head) {
            Ok(connect::Connect { host, port, credentials }) => match connection.door.context(credentials.as_ref()) {
                Ok(context) => Asked { context, host, port },
                Err(reason) => return refuse(&mut stream, pages::not_admitted(reason), listener).await,
            },
            Err(malformed) => return refuse(&mut stream, malformed_page(malformed), listener).await,
        };
        let (host, port) = (&asked.host, asked.port);
        let (reached, noted) = match self.forward.reach(Kind::Connect, &asked, &connection).await {
            Ok(reached) => reached,
            Err(error) => {
                warn!(connection = id, host, port, code = %error.code(), %error, hint = error.hint(), "connect: refused");
                let page = page(&error, host, &self.router.load());
                return refuse(&mut stream, page, listener).await;
            }
        };
        if let Err(error) = stream.write_all(ESTABLISHED).await {
            return debug!(connection = id, %error, "connect: client gone");
        }
        let route = reached.name();
        // The client may have sent bytes behind its request, before the reply.
        let mut client: BoxedIo = Box::new(Prefixed::new(received.freeze(), stream));
        let end = reached.join(&mut client, connection.socket, noted).await;
        info!(target: "adit::access", connection = id, peer = %connection.peer, host, port, route, up = end.up, down = end.down, broken = end.why(), took = format_args!("{:.1?}", started.elapsed()), "connect connection");
    }
}

/// Reads a whole head; bytes behind it stay in `received`.
async fn read_head(stream: &mut BoxedIo, received: &mut BytesMut) -> Result<BytesMut, HeadError> {
    let mut searched = 0;
    loop {
        if let Some(end) = http1::head_end(received, searched).map_err(HeadError::Refused)? {
            return Ok(received.split_to(end));
        }
        searched = received.len();
        received.reserve(1024);
        match stream.read_buf(received).await {
            Ok(0) => return Err(HeadError::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) => return Err(HeadError::Io(error)),
        }
    }
}

fn ambiguous(reason: &str) -> Page {
    Page::new(StatusCode::BAD_REQUEST, ErrorCode::Ambiguous, reason)
}

fn malformed_page(malformed: Malformed) -> Page {
    Page::new(StatusCode::BAD_REQUEST, ErrorCode::Connect, malformed.to_string())
}

/// Returns the page that says why a client of CONNECT is not connected.
fn page(error: &ForwardError, host: &str, router: &Router) -> Page {
    match error {
        ForwardError::Route(error) => pages::of_route(error, router.config.dashboard),
        ForwardError::Open(route, OpenError::Stream(fault)) => Page::of_stream(fault, &route.target.to_string()),
        ForwardError::Open(route, error) => {
            let page = pages::unopened(error, host, route);
            // Clients show only the status: it must distinguish a denied request from a failure.
            let is_denied = error.code() == ErrorCode::Forbidden;
            Page { status: if is_denied { StatusCode::FORBIDDEN } else { page.status }, ..page }
        }
        ForwardError::ReadOnly(rule) => {
            Page { hint: Some(rule.unlock()), ..Page::new(StatusCode::FORBIDDEN, error.code(), error.to_string()) }
        }
        ForwardError::Direct { host, reason, is_timeout } => pages::undirected(host, reason, *is_timeout),
    }
}

/// Answers with a page, and closes the connection.
async fn refuse(stream: &mut BoxedIo, page: Page, port: u16) {
    let response = page.into_response(Form::Text, port, false);
    // The client may be gone already.
    if stream.write_all(&written(&response)).await.is_ok() && stream.shutdown().await.is_ok() {
        // To close with unread bytes would send an RST, which can overtake the answer.
        let mut rest = [0; 1024];
        let draining = async { while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {} };
        let _ = timeout(std::time::Duration::from_secs(2), draining).await;
    }
}

/// Writes a response as HTTP/1.1.
fn written(response: &Response<Bytes>) -> Vec<u8> {
    let status = response.status();
    let mut text =
        format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or("Unknown")).into_bytes();
    for (name, value) in response.headers().iter().filter(|(name, _)| *name != CONTENT_LENGTH) {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(
        format!("content-length: {}\r\nconnection: close\r\n\r\n", response.body().len()).as_bytes(),
    );
    text.extend_from_slice(response.body());
    text
}
