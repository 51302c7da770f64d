//! All tunnels, by target.

use std::{sync::Arc, time::Duration};

use crate::{
    backend::{Backend, Endpoint},
    drain::Drain,
    io::BoxedIo,
    routing::Target,
    tunnel::{OpenError, StreamFault},
};

/// Hands out leases on tunnels; makes a tunnel where there is none.
#[derive(Clone)]
pub struct Manager {}

/// The right to use a tunnel; while one is held, or bytes flow, the tunnel is not idle.
pub struct Lease {}

/// One tunnel as `adit status` shows it.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct TunnelSnapshot {
    /// Display of the target.
    pub target: String,
    /// `starting`, `running`, `failed`, `stopping`, `idle`.
    pub state: String,
    pub pod: Option<String>,
    pub protocol: Option<String>,
    /// Upgraded connections open now.
    pub connections: u64,
    /// Streams open now.
    pub streams: u64,
    /// Streams opened since the tunnel exists.
    pub streams_total: u64,
    /// Leases held now.
    pub leases: u64,
    /// Bytes from the client to the pod.
    pub bytes_up: u64,
    /// Bytes from the pod to the client.
    pub bytes_down: u64,
    /// Seconds since the last use; None: in use.
    pub idle_seconds: Option<u64>,
    pub last_error: Option<String>,
}

impl Manager {
    /// `drain` tracks the tunnels' tasks; when it starts, acquire answers [`OpenError::Stopped`].
    pub fn new(_backend: Arc<dyn Backend>, _drain: Drain) -> Self {
        todo!()
    }

    /// Returns a lease once the tunnel to `target` runs, waiting at most the budget (10 s).
    /// `idle_timeout`: the tunnel closes after this long without use; zero: never. Where routes differ, the longest counts.
    pub async fn acquire(&self, _target: &Target, _idle_timeout: Duration) -> Result<Lease, OpenError> {
        todo!()
    }

    /// Returns every tunnel that exists, sorted by target.
    pub fn snapshot(&self) -> Vec<TunnelSnapshot> {
        todo!()
    }

    /// Stops the tunnel whose target displays as `id`; its open streams end. Returns whether there was one.
    pub fn stop(&self, _id: &str) -> bool {
        todo!()
    }

    /// Lets the tunnels to targets that `keep` refuses finish: no new leases, closed when the last one is dropped.
    pub fn retain(&self, _keep: impl Fn(&Target) -> bool) {
        todo!()
    }
}

impl Lease {
    /// Opens a stream to the pod; where the pod is gone, to another, waiting at most the budget (10 s).
    ///
    /// The stream is counted, and keeps the first bytes written (up to 64 KiB) until the pod has answered,
    /// so that a pod that certainly saw none of them can be replaced behind it.
    pub async fn connect(&self) -> Result<BoxedIo, OpenError> {
        todo!()
    }

    /// Returns what is reached now: another pod after a restart.
    pub fn endpoint(&self) -> Arc<Endpoint> {
        todo!()
    }
}

#[allow(dead_code)]
fn _uses(_: StreamFault) {}
