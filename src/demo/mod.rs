//! A Kubernetes API server with a little world behind it, in this process: for people without a cluster,
//! and for the tests.
//!
//! The other side of the wire: it shares nothing with the client side but [`crate::wire`].

pub mod api_server;
pub mod faults;
pub mod objects;
pub mod streams;
pub mod workloads;

use std::{io, net::SocketAddr, path::Path};

/// A running demo cluster. Dropping it stops everything and removes its folder.
pub struct Demo {}

impl Demo {
    /// Starts the API server on 127.0.0.1 with a free port, with the little world in it, and writes its kubeconfig.
    pub async fn start() -> io::Result<Self> {
        todo!()
    }

    /// The API server's address.
    pub fn address(&self) -> SocketAddr {
        todo!()
    }

    /// A kubeconfig with the context `demo`, in a temporary folder.
    pub fn kubeconfig(&self) -> &Path {
        todo!()
    }

    /// How to make it misbehave.
    pub fn faults(&self) -> &faults::Faults {
        todo!()
    }
}
