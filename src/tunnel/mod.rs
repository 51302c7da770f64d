//! Tunnels: opened on demand, shared, kept while used, closed when idle.
//!
//! [`Manager::acquire`] gives a [`Lease`] on the one tunnel of a target; [`Lease::connect`] gives streams;
//! dropping the lease says that it is no longer in use.

pub mod lease;
pub mod manager;
pub mod reach;
pub mod state;
pub mod stream;
mod streams;
mod taken;
pub mod task;

use std::time::Duration;

pub use lease::Lease;
pub use manager::{Manager, SignInSnapshot, TunnelSnapshot};
pub use reach::Patience;

pub use crate::backend::{Blame, ClusterError, Endpoint, OpenError, Placement, ServicePort, SignInReport, StreamFault};

/// How long a caller waits for a ready pod before it gets the reason that there is none.
pub const BUDGET: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
