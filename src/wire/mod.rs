//! Parsers and writers of wire formats: no I/O, no clock, no logging. Every parser is bounded and fuzzed.

pub mod bare_lf;
pub mod client_hello;
pub mod connect;
pub mod database;
pub mod dns;
pub mod http1;
pub mod postgres;
pub mod proxy_protocol;
pub mod relay;
pub mod sniff;
pub mod socks5;
pub mod spdy;
pub mod websocket;
