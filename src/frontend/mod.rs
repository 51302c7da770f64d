//! Frontends: they handle a client's protocol, from the first byte to a tunnel.

mod backend_tls;
pub mod certs;
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
mod read_only;
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
    /// Id in logs; counts up from 1 for the whole process.
    pub id: u64,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// Address that the client connected to: `local`, or the one that a PROXY header names.
    pub dialled: SocketAddr,
    /// Peer's end of the TCP connection: the client's, or that of a proxy that sends PROXY headers.
    pub socket: ClientSocket,
    /// Slot among the open connections, with their limits.
    pub place: Place,
    /// Whether its listener is a forward proxy.
    pub door: Door,
}

impl Connection {
    /// Returns a connection of a client that is known by its address alone, on a listener that is not a forward proxy.
    pub fn remote(id: u64, peer: SocketAddr, local: SocketAddr, place: Place) -> Self {
        Self { id, peer, local, dialled: local, socket: ClientSocket::UNKNOWN, place, door: Door::Closed }
    }
}
