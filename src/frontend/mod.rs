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
    /// The address that the client dialled: `local`, or what a proxy in front says.
    pub dialled: SocketAddr,
    /// The other end of the TCP connection; behind a proxy that names its clients, the proxy's.
    pub socket: ClientSocket,
    /// Its place among the others, with the limits for it.
    pub place: Place,
    /// Whether its listener is a forward proxy.
    pub door: Door,
}

impl Connection {
    /// Returns a connection whose client is known by its address alone. Its listener is no forward proxy.
    pub fn remote(id: u64, peer: SocketAddr, local: SocketAddr, place: Place) -> Self {
        Self { id, peer, local, dialled: local, socket: ClientSocket::UNKNOWN, place, door: Door::Closed }
    }
}
