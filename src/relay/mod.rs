//! Reverse tunnels: a local port that is reachable through a relay.
//!
//! ```text
//! visitor --> public port, or name.domain --> server --(Incoming)--> client        on the control connection
//!                                             server <--(Claim)----- client        a connection for the visitor
//!             bytes      <------------------> server <-------------> client <----> local port
//! the next one                                server --(Start)-----> client        on the same connection
//! ```
//!
//! The client opens all connections, so that it may be behind any NAT. A connection carries one stream at a time, with
//! the flow control of TCP. `docs/relay-protocol.md` describes the protocol.

pub mod admin;
pub mod app;
pub mod auth;
pub mod backend;
pub mod carrier;
pub mod client;
pub mod conversation;
pub mod expose;
pub mod front;
mod page;
mod pattern;
mod personal;
pub mod ports;
pub mod reservations;
pub mod server;
pub mod tls;

pub use crate::wire::relay::Kind;
