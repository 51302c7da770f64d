//! What a running adit tells of itself: over a Unix socket to its user, and over `admin.listen` to whoever watches it.

pub mod api;
pub mod endpoints;
pub mod http;
pub mod keys;
pub mod socket;
pub mod status;
