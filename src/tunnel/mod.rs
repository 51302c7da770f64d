//! Tunnels: opened on demand, shared, kept while used, closed when idle.
//!
//! [`Manager::acquire`] gives a [`Lease`] on the one tunnel of a target; [`Lease::connect`] gives streams;
//! dropping the lease says that it is no longer in use.

pub mod manager;
pub mod state;
pub mod stream;
pub mod task;

pub use manager::{Lease, Manager, TunnelSnapshot};

pub use crate::backend::{Endpoint, OpenError, StreamFault};
