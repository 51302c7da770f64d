//! A Service that `adit expose` has taken over, through a relay in another namespace.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use serde::Deserialize;

use super::Lookup;
use crate::{
    config::Namespace,
    k8s::{
        ClusterError,
        client::AskError,
        endpoints::{PodPort, ReadyPod, of_relay},
        objects::{EndpointSlice, Pod, Service, ServiceSpec},
        pods,
    },
};

/// Annotation with the record of a takeover. Relays write it.
const TAKEOVER: &str = "adit/takeover";

/// Record of a takeover, as far as clients need it.
#[derive(Default, Deserialize)]
struct Takeover {
    ports: Vec<TakenPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TakenPort {
    port: u16,
    /// `None`: the Service had none.
    target_port: Option<IntOrString>,
    owner: String,
}

impl Takeover {
    fn of(metadata: &ObjectMeta) -> Self {
        let text = metadata.annotations.as_ref().and_then(|annotations| annotations.get(TAKEOVER));
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }
}

/// Returns the Service's port that a takeover has given this `targetPort`. `None`: it is no takeover's.
fn taken(target: &IntOrString) -> Option<u16> {
    let IntOrString::String(name) = target else { return None };
    name.strip_prefix("adit-")?.parse().ok()
}

/// Returns who has taken over the port with this `targetPort`. `None`: nobody has.
pub(super) fn takeover(metadata: &ObjectMeta, target: &IntOrString) -> Option<String> {
    let port = taken(target)?;
    let owner = Takeover::of(metadata).ports.into_iter().find(|taken| taken.port == port).map(|taken| taken.owner);
    Some(format!("port {port} is taken over by {}", owner.as_deref().unwrap_or("'adit expose'")))
}

/// Returns the Service as it was before the takeover: its pods keep their ports.
pub(super) fn before(service: Service) -> ServiceSpec {
    let takeover = Takeover::of(&service.metadata);
    let mut spec = service.spec.unwrap_or_default();
    for object in spec.ports.iter_mut().flatten() {
        let port = object.target_port.as_ref().and_then(taken);
        if let Some(taken) = takeover.ports.iter().find(|taken| Some(taken.port) == port) {
            object.target_port.clone_from(&taken.target_port);
        }
    }
    spec
}

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
