//! SPDY/3.1, the part of it that Kubernetes speaks.

pub mod frame;
pub mod headers;
pub mod session;
