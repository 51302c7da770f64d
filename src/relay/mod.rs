//! Reverse tunnels: a port of this machine, made reachable through a relay.
//!
//! ```text
//! visitor --> public port, or name.domain --> server --(Incoming)--> client        on the control connection
//!                                             server <--(Claim)----- client        a connection of its own
//!             raw bytes  <------------------> server <-------------> client <----> local port
//! ```
//!
//! The client dials for everything, so that it may sit behind any NAT. Each stream is a connection of its own, with the flow
//! control of TCP. `docs/relay-protocol.md` describes the protocol.

pub mod admin;
pub mod auth;
pub mod backend;
pub mod client;
pub mod conversation;
pub mod ports;
pub mod registrar;
pub mod server;
pub mod tls;

pub use crate::wire::relay::Kind;
