//! Bytes to values and back: no I/O, no clock, no logging. Every parser here is bounded and fuzzed.

pub mod client_hello;
pub mod sniff;
pub mod spdy;
pub mod websocket;
