//! The requests that are answered, and to whom.
//!
//! | | |
//! |---|---|
//! | `GET /healthz` | 200 while the process serves |
//! | `GET /readyz` | 200 while it takes new connections, 503 once it ends |
//! | `GET /metrics` | OpenMetrics text |
//! | `GET /status` | what `adit status -o json` prints; the Unix socket only |
//! | `POST /stop?TUNNEL` | stops a tunnel; the Unix socket only |

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    http::{JSON, TEXT, respond, serve_one},
    status::Source,
};
use crate::{guard::origin::is_of_this_machine, metrics};

/// Who can send a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The user of the process, by the file's mode.
    Owner,
    /// Every process of this machine, and every page in its browsers.
    Machine,
}

/// Answers one request.
pub async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, source: Source, reach: Reach) {
    serve_one(stream, |request| answer(&source, request, reach)).await;
}

fn answer(source: &Source, request: &Request<Incoming>, reach: Reach) -> Response<Full<Bytes>> {
    if reach == Reach::Machine && !is_of_this_machine(request.headers()) {
        return respond(StatusCode::FORBIDDEN, TEXT, "this is for programs of this machine\n");
    }
    match (request.method(), request.uri().path(), reach) {
        (&Method::GET, "/healthz", _) => respond(StatusCode::OK, TEXT, "ok\n"),
        (&Method::GET, "/readyz", _) if source.is_ready() => respond(StatusCode::OK, TEXT, "ready\n"),
        (&Method::GET, "/readyz", _) => respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, "stopping\n"),
        (&Method::GET, "/metrics", _) => respond(StatusCode::OK, metrics::CONTENT_TYPE, source.metrics()),
        (&Method::GET, "/status", Reach::Owner) => match serde_json::to_vec(&source.status()) {
            Ok(body) => respond(StatusCode::OK, JSON, body),
            Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
        },
        (&Method::POST, "/stop", Reach::Owner) => {
            let tunnel = percent_encoding::percent_decode_str(request.uri().query().unwrap_or("")).decode_utf8_lossy();
            let status = if source.stop(&tunnel) { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND };
            respond(status, TEXT, "")
        }
        _ => respond(StatusCode::NOT_FOUND, TEXT, "there are /healthz, /readyz and /metrics\n"),
    }
}
