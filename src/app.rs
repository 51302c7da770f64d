//! Puts the pieces together.

use std::net::SocketAddr;

use crate::{config::Config, drain::Drain};

/// The whole program, before it listens.
pub struct App {}

/// Every socket is bound; nothing is served yet.
pub struct Bound {}

/// A socket that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct BindError {
    pub address: SocketAddr,
    pub source: std::io::Error,
}

impl App {
    /// Binds every listener of `config`. All or nothing.
    pub async fn bind(_config: Config) -> Result<Bound, BindError> {
        todo!()
    }
}

impl Bound {
    /// Returns the addresses of the HTTP and TLS listener.
    pub fn http_addresses(&self) -> &[SocketAddr] {
        todo!()
    }

    /// Serves until `drain` starts, then lets what is in progress finish until the cut.
    pub async fn run(self, _drain: Drain) {
        todo!()
    }
}
