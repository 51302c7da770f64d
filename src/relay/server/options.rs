//! Options of a relay.

use std::{net::IpAddr, ops::RangeInclusive, sync::Arc};

use crate::{
    io::accept,
    relay::{auth::Key, expose::Exposer},
};

/// Options of a relay.
#[derive(Clone)]
pub struct Options {
    pub keys: Vec<Key>,
    /// The public ports.
    pub ports: RangeInclusive<u16>,
    /// Address that public ports bind to.
    pub bind: IpAddr,
    /// The names of HTTP tunnels are below this.
    pub domain: Option<String>,
    /// How HTTP tunnels are reached: `https` or `http`, and the port where it is not the usual one.
    pub http_public: (&'static str, Option<u16>),
    /// Serves version 1 too: the secret and all bytes cross the network as they are.
    pub allow_v1: bool,
    pub limits: Limits,
    /// Makes Services of the cluster lead to tunnels. None: the relay is in no cluster.
    pub exposer: Option<Arc<Exposer>>,
}

/// Limits for one client and one visitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Default: 64.
    pub tunnels_per_key: usize,
    /// Default: 1,024.
    pub streams_per_tunnel: usize,
    /// Visitors that wait for a connection of the client at a time; others queue behind them. Default: 256.
    pub pending_per_tunnel: usize,
    /// Connections that have not authenticated. Default: 512.
    pub handshakes: usize,
    /// New visitors of a tunnel in a second. Default: 2,000.
    pub visitors_per_second: u32,
    /// The connections of visitors, and how long each may take for what. Clients' connections have the same times.
    pub accepted: accept::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tunnels_per_key: 64,
            streams_per_tunnel: 1024,
            pending_per_tunnel: 256,
            handshakes: 512,
            visitors_per_second: 2000,
            accepted: accept::Limits::of_relay(),
        }
    }
}
