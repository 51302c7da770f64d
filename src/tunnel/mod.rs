//! Tunnels: adit opens them on demand, shares them between clients, and closes them when idle.
//!
//! [`Manager::acquire`] returns a [`Lease`] on the tunnel of a target. [`Lease::connect`] opens a stream through it.
//! Dropping the lease ends that use of the tunnel.

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

/// Longest time that a caller waits for a ready pod before it gets the error.
pub const BUDGET: Duration = Duration::from_secs(10);

/// How long it waits while the first attempt still goes on: a slow API server is asked two or three things
/// until a tunnel runs, each for at most 15 s or 30 s.
pub const SLOW_START: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
