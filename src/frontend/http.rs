//! The HTTP reverse proxy.

pub mod error_page;
pub mod headers;
pub mod upgrade;
pub mod upstream;

use std::sync::Arc;

use crate::{drain::Drain, frontend::Connection, io::BoxedIo, routing::SharedRouter, tunnel::Manager};

/// Serves HTTP/1.1 and HTTP/2 clients, a route and a tunnel per request.
pub struct HttpFrontend {}

impl HttpFrontend {
    /// Makes the frontend; upstream connections are pooled inside it.
    pub fn new(_router: SharedRouter, _tunnels: Manager) -> Arc<Self> {
        todo!()
    }

    /// Serves one connection until it ends, or, in a drain, until its request in progress is answered.
    ///
    /// `tls`: the client's bytes came through TLS that we ended (X-Forwarded-Proto).
    pub async fn serve(self: Arc<Self>, _stream: BoxedIo, _connection: Connection, _tls: bool, _drain: Drain) {
        todo!()
    }
}
