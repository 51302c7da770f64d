//! A Service that `adit expose` has taken over, through a relay in another namespace.

use std::fmt;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use serde::Deserialize;

use super::Lookup;
use crate::{
    config::{Namespace, Subdomain},
    k8s::{
        ClusterError,
        client::AskError,
        endpoints::{PodPort, ReadyPod, of_relay},
        objects::{EndpointSlice, Pod, Service, ServiceSpec},
        pods,
    },
    printable::printable,
};

/// Annotation of a Service that is taken over, with a [`Record`] as JSON. The relay writes it.
const TAKEOVER: &str = "adit/takeover";

/// Record of a takeover, as far as clients need it.
#[derive(Default, Deserialize)]
struct Record {
    /// NAMESPACE/POD/UID, and more.
    #[serde(default)]
    relay: String,
    ports: Vec<TakenPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TakenPort {
    port: u16,
    /// `None`: the Service had none.
    target_port: Option<IntOrString>,
    owner: String,
    /// In RFC 3339.
    #[serde(default)]
    since: String,
}

impl Record {
    /// Returns the record of a Service: an empty one if there is none, or it is damaged.
    fn of(service: &ObjectMeta) -> Self {
        let text = service.annotations.as_ref().and_then(|annotations| annotations.get(TAKEOVER));
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }
}

/// Takeover of a port of a Service, from the Service's annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Takeover {
    port: u16,
    owner: String,
    /// In RFC 3339.
    since: String,
    relay: (Namespace, Subdomain),
    /// UID of the relay's pod.
    uid: String,
}

impl Takeover {
    /// Returns the takeover of a port. `None`: the port is not taken over, or the annotation is damaged.
    pub(super) fn of(service: &ObjectMeta, port: u16) -> Option<Self> {
        let Record { relay, ports } = Record::of(service);
        let taken = ports.into_iter().find(|taken| taken.port == port)?;
        let mut relay = relay.split('/');
        let pod = (relay.next()?.parse().ok()?, relay.next()?.parse().ok()?);
        let (owner, since) = (printable(&taken.owner), printable(&taken.since));
        Some(Self { port, owner, since, relay: pod, uid: relay.next()?.to_owned() })
    }
}

/// As `port 80 is taken over by anna (10.0.0.7) since 2026-01-01T00:00:00Z, through relay/adit-relay-0`.
impl fmt::Display for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, owner, since, relay: (namespace, pod), .. } = self;
        write!(f, "port {port} is taken over by {owner} since {since}, through {namespace}/{pod}")
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
    let known = Takeover::of(metadata, port).map(|takeover| takeover.to_string());
    Some(known.unwrap_or_else(|| format!("port {port} is taken over by 'adit expose'")))
}

/// Returns the Service as it was before the takeover: its pods keep their ports.
pub(super) fn before(service: Service) -> ServiceSpec {
    let record = Record::of(&service.metadata);
    let mut spec = service.spec.unwrap_or_default();
    for object in spec.ports.iter_mut().flatten() {
        let port = object.target_port.as_ref().and_then(taken);
        if let Some(taken) = record.ports.iter().find(|taken| Some(taken.port) == port) {
            object.target_port.clone_from(&taken.target_port);
        }
    }
    spec
}

impl Lookup<'_> {
    /// Returns the error for a takeover without a relay: the Service still routes to the relay's pod. `None`: the relay's pod exists,
    /// or cannot be read.
    pub(super) async fn relay_is_gone(&self, what: &str, service: &str, takeover: &Takeover) -> Option<ClusterError> {
        let (namespace, pod) = &takeover.relay;
        let there = Lookup { namespace: namespace.clone(), ..*self };
        match there.get::<Pod>(&format!("pod {namespace}/{pod}"), pod).await {
            Ok(found) if found.metadata.uid.as_deref() == Some(&*takeover.uid) && !pods::has_ended(&found) => {
                return None;
            }
            Ok(_) | Err(AskError::NotFound) => {}
            Err(AskError::Failed(_)) => return None,
        }
        Some(ClusterError::NotReady {
            what: what.to_owned(),
            context: self.cluster.context.clone(),
            cause: format!("{takeover}, and this relay is gone"),
            hint: format!("{} expose restore {service}.{}", self.cluster.adit(), self.namespace),
        })
    }

    /// Returns the relay's namespace and pod. `None`: the port is not taken over, or the relay is in the Service's namespace.
    ///
    /// Anybody who may write slices could name any pod of any namespace, and lead others there with their permissions. So the pod
    /// has to be a relay for this namespace, by its own words.
    pub(super) async fn relay(
        &self,
        slices: impl IntoIterator<Item = &EndpointSlice>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_takeover_of_a_port_is_read_from_the_annotation() {
        let of = |record: &str, port| {
            let annotations = Some([(TAKEOVER.to_owned(), record.to_owned())].into());
            Takeover::of(&ObjectMeta { annotations, ..ObjectMeta::default() }, port)
        };
        let record = r#"{"relay": "t1r/relay-0/u-1/s", "ports": [{"port": 80, "targetPort": 8080, "owner": "ann\u001ba", "since": "2026-01-01T00:00:00Z"}]}"#;
        let takeover = of(record, 80).unwrap();
        assert_eq!(
            takeover.to_string(),
            "port 80 is taken over by ann a since 2026-01-01T00:00:00Z, through t1r/relay-0"
        );
        assert_eq!(takeover.uid, "u-1");
        for (record, port) in [(record, 81), ("", 80), ("{}", 80), (r#"{"relay": "x", "ports": [{"port": 80}]}"#, 80)] {
            assert_eq!(of(record, port), None, "{record}");
        }
    }
}
