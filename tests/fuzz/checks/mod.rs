//! What must hold for every input; run by the fuzz targets, and by the suite over their corpus.

pub mod carrier;
pub mod client_hello;
pub mod config;
pub mod connect;
pub mod dns;
pub mod exec_frames;
pub mod hostname;
pub mod http1;
pub mod postgres;
pub mod proxy_protocol;
pub mod relay;
pub mod sniff;
pub mod socks5;
pub mod spdy;
pub mod websocket;
