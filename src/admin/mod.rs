//! The admin interface of a running adit: the Unix socket for its user, and `admin.listen` for probes and metrics.

pub mod api;
pub mod endpoints;
pub mod http;
pub mod keys;
pub mod socket;
