//! Connects to a pod's port through the API server's portforward.
//!
//! ```text
//! PortForward -> session (the ready pods of a target) -> pool (the connections to a pod) -> connection -> stream
//! ```

pub mod affinity;
pub mod channel_stream;
pub mod connection;
mod dialling;
pub mod pool;
pub mod session;
pub mod stream;

use std::sync::Arc;

use tracing::warn;

use self::{affinity::Affinities, session::TargetSession};
use crate::{
    backend::{OpenError, Session},
    k8s::{
        ClusterError,
        client::Clusters,
        resolve::resolve,
        upgrade::{self, UpgradeError},
    },
    routing::PodTarget,
};

/// Number of pods to try if each is gone by the time of the upgrade.
const MOST_PODS: usize = 3;

/// The backend of all targets in pods.
pub struct PortForward {
    clusters: Arc<Clusters>,
    affinities: Affinities,
}

impl PortForward {
    pub fn new(clusters: Arc<Clusters>) -> Self {
        Self { clusters, affinities: Affinities::default() }
    }

    /// Opens a session to the ready pods of `target`.
    pub async fn open(&self, target: &PodTarget) -> Result<Box<dyn Session>, OpenError> {
        let cluster = self.clusters.get(&target.cluster).await?;
        let look_up = resolve(&cluster, &target.namespace, &target.workload, &target.port);
        // In parallel: the dial to the API server (TCP, TLS) does not depend on the pod.
        let (resolved, dialled) = tokio::join!(look_up, upgrade::dial(&cluster));
        let (mut resolution, dialled) = (resolved?, dialled?);
        let affinity = resolution.affinity.map(|lasts| self.affinities.of(target, lasts));
        if let Some(affinity) = &affinity {
            affinity.sort(&mut resolution.reachable.pods);
        }
        let mut dialled = Some(dialled);
        let mut gone = String::new();
        if let Some(reason) = &resolution.reachable.not_ready {
            warn!(%target, reason, "the pod is not ready; it was named, and is reached all the same");
        }
        for pod in resolution.reachable.pods.iter().take(MOST_PODS) {
            let (namespace, port) = (&resolution.namespace, pod.container_port);
            match upgrade::port_forward(&cluster, namespace, &pod.name, port, dialled.take()).await {
                Ok(upgraded) => {
                    let first = (pod.clone(), upgraded);
                    return Ok(Box::new(TargetSession::start(cluster, resolution, affinity, first)));
                }
                Err(UpgradeError::Cluster(error)) => return Err(error.into()),
                Err(UpgradeError::PodGone(message)) => gone = message,
            }
        }
        Err(OpenError::Cluster(ClusterError::NotReady {
            what: target.to_string(),
            context: cluster.context.clone(),
            cause: gone,
            hint: format!("{} -n {} get pods", cluster.kubectl(), resolution.namespace),
        }))
    }
}
