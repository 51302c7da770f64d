//! Frontends: what a client speaks, from its first byte to a tunnel.

mod client;
pub mod client_socket;
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

use self::{client_socket::ClientSocket, door::Door};
use crate::io::accept::Place;

/// Facts about an accepted connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Counts up from 1 for the whole process; the id in logs.
    pub id: u64,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// That of the connection itself, whatever a proxy before it says.
    pub socket: ClientSocket,
    /// Its place among the others, with the limits for it.
    pub place: Place,
    /// Whether its listener is a forward proxy.
    pub door: Door,
}

impl Connection {
    /// Returns one of a client of which only the address is known, at a listener that is no forward proxy.
    pub fn remote(id: u64, peer: SocketAddr, local: SocketAddr, place: Place) -> Self {
        Self { id, peer, local, socket: ClientSocket::UNKNOWN, place, door: Door::Closed }
    }
}
