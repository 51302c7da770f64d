//! Frontends: what a client speaks, from its first byte to a tunnel.

mod client;
pub mod door;
pub mod forward;
pub mod greeting;
pub mod http;
mod join;
mod noted;
pub mod postgres;
pub mod protocol;
pub mod proxied;
pub mod refusal;
pub mod sni;
pub mod socks;
pub mod tcp;
pub mod tls;

use std::net::SocketAddr;

use self::door::Door;
use crate::io::{abandoned::Ends, accept::Place};

/// Facts about an accepted connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Counts up from 1 for the whole process; the id in logs.
    pub id: u64,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// Those of the socket itself, where the client is on this machine.
    pub ends: Option<Ends>,
    /// Its place among the others, with the limits for it.
    pub place: Place,
    /// Whether its listener is a forward proxy.
    pub door: Door,
}
