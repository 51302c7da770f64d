//! Kubernetes: clients, look-ups, and upgraded connections.

pub mod client;
pub mod credential;
pub mod credentials;
pub mod dial;
pub mod endpoints;
pub mod error;
pub mod exec_path;
pub mod framed;
pub mod kubeconfig;
pub mod kubectl;
pub mod list;
pub mod objects;
pub mod own_pod;
pub mod pods;
pub mod ports;
pub mod proxy;
pub mod reach;
pub mod resolve;
pub mod secret;
pub mod sign_in;
pub mod spare;
pub mod transports;
pub mod upgrade;
pub mod watch;
pub mod websocket;

pub use error::{ClusterError, Namespaces, ServicePort};
