//! Kubernetes: clients, look-ups, and the upgraded connections that everything else rides on.

pub mod client;
pub mod error;
pub mod exec_path;
pub mod resolve;
pub mod upgrade;

pub use error::{ClusterError, ServicePort};
