//! What a running adit tells of itself, over a Unix socket.

pub mod socket;
pub mod status;
