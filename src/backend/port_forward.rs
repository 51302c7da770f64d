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

use std::{future::pending, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::sleep;
use tracing::warn;

use self::{affinity::Affinities, session::TargetSession};
use crate::{
    backend::{OpenError, Session},
    k8s::{
        ClusterError,
        client::{Cluster, Clusters},
        endpoints::ReadyPod,
        resolve::{Resolution, resolve},
        upgrade::{self, Dialled, UpgradeError, Upgraded},
    },
    routing::PodTarget,
};

/// Number of pods to try if each is gone by the time of the upgrade, or on a node that does not forward ports.
const MOST_PODS: usize = 3;

/// How long a pod has no answer until the next one is tried too: longer than all transports on a healthy path take, so
/// that a caller's 10 s are enough for three pods.
const SLOW_POD: Duration = Duration::from_secs(3);

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
    ///
    /// # Errors
    /// The target has no ready pod, or no pod can be connected to.
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
        if let Some(reason) = &resolution.reachable.not_ready {
            warn!(%target, reason, "the pod is not ready; it was named, and is reached all the same");
        }
        match first_of(&cluster, &resolution, dialled).await {
            Ok(first) => Ok(Box::new(TargetSession::start(cluster, resolution, affinity, first))),
            Err(UpgradeError::Cluster(error)) => Err(error.into()),
            Err(UpgradeError::PodGone(cause)) => Err(OpenError::Cluster(ClusterError::NotReady {
                what: target.to_string(),
                context: cluster.context.clone(),
                cause,
                hint: format!("{} -n {} get pods", cluster.kubectl(), resolution.namespace),
            })),
        }
    }
}

/// Upgrades a connection to the first pod. Tries the next one if the pod is gone or its node does not forward ports, and
/// beside it if there is no answer for [`SLOW_POD`].
///
/// # Errors
/// All have failed, or one of them for a reason that has nothing to do with its node. Returns the first reason.
async fn first_of(
    cluster: &Cluster,
    resolution: &Resolution,
    dialled: Dialled,
) -> Result<(ReadyPod, Upgraded), UpgradeError> {
    let mut dialled = Some(dialled);
    let mut left = resolution.reachable.pods.iter().take(MOST_PODS);
    let mut running = FuturesUnordered::new();
    let mut first_error = None;
    loop {
        if let Some(pod) = left.next() {
            let (namespace, dialled) = (&resolution.namespace, dialled.take());
            running.push(async move {
                (pod, upgrade::port_forward(cluster, namespace, &pod.name, pod.container_port, dialled).await)
            });
        }
        let slow = async {
            match left.len() {
                0 => pending().await,
                _ => sleep(SLOW_POD).await,
            }
        };
        let (pod, upgraded) = tokio::select! {
            ended = running.next() => match ended {
                Some(ended) => ended,
                None => break,
            },
            () = slow => continue,
        };
        match upgraded {
            Ok(upgraded) => return Ok((pod.clone(), upgraded)),
            Err(error) if !is_of_node(&error) => return Err(error),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    Err(first_error.unwrap_or_else(|| UpgradeError::PodGone("no pod is ready".to_owned())))
}

fn is_of_node(error: &UpgradeError) -> bool {
    match error {
        UpgradeError::PodGone(_) => true,
        UpgradeError::Cluster(error) => error.is_of_node(),
    }
}
