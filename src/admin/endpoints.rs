//! The paths that adit answers, and for which clients.
//!
//! | | |
//! |---|---|
//! | `GET /healthz` | 200 while the process serves |
//! | `GET /readyz` | 200 while adit accepts new connections, 503 once it drains |
//! | `GET /metrics` | OpenMetrics text |
//! | `/api/v1/...` | see [`api`]; the Unix socket only |

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    api,
    api::source::Source,
    http::{Body, TEXT, probe, respond, serve_one},
};
use crate::guard::origin::is_of_this_machine;

/// Origin of a request: anyone on loopback, or the user of the Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The user of the process; the socket's file mode ensures it.
    Owner,
    /// Any process of this machine, and any page in its browsers.
    Machine,
}

/// Answers one request.
pub async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, source: Source, reach: Reach) {
    serve_one(stream, |request| answer(source.clone(), request, reach)).await;
}

async fn answer(source: Source, request: Request<Incoming>, reach: Reach) -> Response<Body> {
    if reach == Reach::Machine && !is_of_this_machine(request.headers()) {
        return respond(StatusCode::FORBIDDEN, TEXT, "this is for programs of this machine\n");
    }
    let path = request.uri().path();
    if reach == Reach::Owner && path.starts_with("/api/") {
        return api::answer_owner(&source, request).await;
    }
    probe(&request, source.is_ready(), || source.metrics())
        .unwrap_or_else(|| respond(StatusCode::NOT_FOUND, TEXT, "there are /healthz, /readyz and /metrics\n"))
}
