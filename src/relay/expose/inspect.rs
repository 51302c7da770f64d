//! Manual commands for takeovers: list them, and restore a Service.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    EXPOSED, Relay, ServiceName,
    kube::{Kind, Kube, KubeError},
    lease,
    reconcile::{BY_HAND, Expiry, Failure, Step, Want},
    service::{self, Refusal, Takeover},
    start, text,
};

/// A Service that is taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    pub service: ServiceName,
    pub takeover: Takeover,
    /// `namespace/pod`.
    pub relay: String,
    pub state: RelayState,
}

/// State of the relay that has taken over a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RelayState {
    Running,
    /// Its pod does not exist any more, or has ended.
    Gone,
    /// The relay's pod could not be read.
    Unknown,
}

/// Lists the Services that are taken over, in one namespace or in all. Also returns the Services that cannot be restored,
/// with the reasons.
///
/// # Errors
/// Fails if Services may not be listed, or the API server does not answer.
pub async fn list(kube: &Kube, namespace: Option<&str>) -> Result<(Vec<Exposed>, Vec<Refusal>), KubeError> {
    let (mut exposed, mut damaged) = (Vec::new(), Vec::new());
    for service in kube.list(Kind::Service, namespace, EXPOSED).await? {
        let metadata = &service["metadata"];
        let name = ServiceName { namespace: text(&metadata["namespace"]).into(), name: text(&metadata["name"]).into() };
        let lease = kube.get(Kind::Lease, &name.namespace, &lease::name(&name)).await.ok().flatten();
        let takeover = match service::takeover(&service, &name, lease::takeover(lease.as_ref()).as_ref()) {
            Ok(Some(takeover)) => takeover,
            Ok(None) => continue,
            Err(refusal) => {
                damaged.push(refusal);
                continue;
            }
        };
        let state = state(kube, &takeover.relay).await;
        exposed.push(Exposed { service: name, relay: Relay::shown(&takeover.relay), takeover, state });
    }
    exposed.sort_by(|a, b| a.service.cmp(&b.service));
    Ok((exposed, damaged))
}

async fn state(kube: &Kube, relay: &str) -> RelayState {
    let Some([namespace, pod, uid, _]) = Relay::parse(relay) else { return RelayState::Unknown };
    match kube.get(Kind::Pod, namespace, pod).await {
        Ok(Some(found)) if found["metadata"]["uid"] == uid => match text(&found["status"]["phase"]) {
            "Succeeded" | "Failed" => RelayState::Gone,
            _ => RelayState::Running,
        },
        Ok(_) => RelayState::Gone,
        Err(_) => RelayState::Unknown,
    }
}

/// Returns whether a relay has left a trace on a Service.
///
/// # Errors
/// Fails if a permission is missing, or the API server does not answer.
pub async fn is_touched(kube: &Kube, name: &ServiceName) -> Result<bool, KubeError> {
    by_hand(kube, &us(), name, &BTreeMap::new(), &Expiry::default()).is_touched().await
}

/// Returns whether a Service exists.
///
/// # Errors
/// A permission is missing, or the API server does not answer.
pub async fn exists(kube: &Kube, name: &ServiceName) -> Result<bool, KubeError> {
    Ok(kube.get(Kind::Service, &name.namespace, &name.name).await?.is_some())
}

/// Restores a Service, even if a relay holds it. Returns the Service; `None`: a relay had created it, and it is now
/// deleted.
///
/// # Errors
/// Fails if the Service cannot be restored, a permission is missing, or the API server does not answer.
pub async fn restore(kube: &Kube, name: &ServiceName) -> Result<Option<Value>, Failure> {
    Ok(by_hand(kube, &us(), name, &BTreeMap::new(), &Expiry::default()).run().await?.service)
}

/// Returns the namespace and name of the relay's pod for a Service. `None`: it is not taken over, or the API server does
/// not answer.
pub async fn relay_of(kube: &Kube, name: &ServiceName) -> Option<(String, String)> {
    let service = kube.get(Kind::Service, &name.namespace, &name.name).await.ok()??;
    let takeover = service::takeover(&service, name, None).ok()??;
    let [namespace, pod, ..] = Relay::parse(&takeover.relay)?;
    Some((namespace.to_owned(), pod.to_owned()))
}

fn us() -> Relay {
    let (namespace, pod) = BY_HAND.split_once('/').unwrap_or_default();
    Relay {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        uid: String::new(),
        start: start().unwrap_or_default(),
        addresses: Vec::new(),
        node: None,
    }
}

fn by_hand<'a>(
    kube: &'a Kube,
    relay: &'a Relay,
    name: &'a ServiceName,
    wanted: &'a BTreeMap<u16, Want>,
    expiry: &'a Expiry,
) -> Step<'a> {
    Step { kube, relay, name, wanted, renews: false, is_forced: true, known: None, expiry }
}
