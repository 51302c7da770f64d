//! A Service that `adit expose` has taken over, through a relay in another namespace.

use super::Lookup;
use crate::{
    config::Namespace,
    k8s::{
        ClusterError,
        client::AskError,
        endpoints::{PodPort, ReadyPod, of_relay},
        objects::{EndpointSlice, Pod},
        pods,
    },
};

impl Lookup<'_> {
    /// Returns the relay's namespace and pod. `None`: the port is not taken over, or the relay is in the Service's namespace.
    ///
    /// Anybody who may write slices could name any pod of any namespace, and lead others there with their permissions. So the pod
    /// has to be a relay for this namespace, by its own words.
    pub(super) async fn relay(
        &self,
        slices: &[EndpointSlice],
        port: &PodPort,
    ) -> Result<Option<(Namespace, ReadyPod)>, ClusterError> {
        let Some((namespace, pod)) = of_relay(slices, port, &self.namespace) else { return Ok(None) };
        let there = Lookup { namespace, ..*self };
        match there.get::<Pod>(&format!("pod {}/{}", there.namespace, pod.name), &pod.name).await {
            Ok(found) => Ok(pods::relays_for(&found, &self.namespace).then_some((there.namespace, pod))),
            Err(AskError::NotFound) => Ok(None),
            Err(AskError::Failed(error)) => Err(error),
        }
    }
}
