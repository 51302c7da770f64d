//! Listeners: sockets, and what each accepted connection is handed to.

pub mod bind;
pub mod dns;
pub mod inherited;
pub mod mux;
pub mod ports;
