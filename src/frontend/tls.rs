//! TLS by SNI: passed through byte for byte, or, where that cannot be, answered with an error page.

pub mod certs;

use std::sync::Arc;

use crate::{
    drain::Drain, frontend::Connection, frontend::http::HttpFrontend, io::BoxedIo, routing::SharedRouter,
    tunnel::Manager,
};

/// Serves TLS clients by the name in their ClientHello.
pub struct TlsFrontend {}

impl TlsFrontend {
    pub fn new(_router: SharedRouter, _tunnels: Manager, _http: Arc<HttpFrontend>) -> Arc<Self> {
        todo!()
    }

    /// Serves one connection; `stream` yields the ClientHello from its first byte.
    pub async fn serve(self: Arc<Self>, _stream: BoxedIo, _connection: Connection, _drain: Drain) {
        todo!()
    }
}
