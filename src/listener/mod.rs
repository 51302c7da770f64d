//! Listeners: sockets, and the frontends of their connections.

pub mod bind;
pub mod dns;
pub mod inherited;
pub mod mux;
pub mod ports;
