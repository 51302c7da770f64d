//! TCP routes: bytes both ways, to the pod of a local port.

use std::sync::Arc;

use tokio::net::TcpStream;

use crate::{drain::Drain, frontend::Connection, routing::SharedRouter, tunnel::Manager};

/// Serves the clients of TCP routes.
pub struct TcpFrontend {}

impl TcpFrontend {
    pub fn new(_router: SharedRouter, _tunnels: Manager) -> Arc<Self> {
        todo!()
    }

    /// Serves one connection of the route that listens on `connection.local`'s listener.
    pub async fn serve(
        self: Arc<Self>,
        _stream: TcpStream,
        _listener: std::net::SocketAddr,
        _connection: Connection,
        _drain: Drain,
    ) {
        todo!()
    }
}
