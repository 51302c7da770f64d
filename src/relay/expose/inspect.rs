//! What people ask and do by hand: which Services are taken over, and put one back.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    EXPOSED, Relay, ServiceName,
    kube::{Kind, Kube, KubeError},
    lease,
    reconcile::{Expiry, Failure, Step},
    service::{self, Takeover},
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

/// Whether the relay of a Service runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RelayState {
    Running,
    /// Its pod does not exist any more, or has ended.
    Gone,
    /// Pods may not be read.
    Unknown,
}

/// Lists the Services that are taken over, in one namespace or in all.
///
/// # Errors
/// Services may not be listed, or there is no answer.
pub async fn list(kube: &Kube, namespace: Option<&str>) -> Result<Vec<Exposed>, KubeError> {
    let mut exposed = Vec::new();
    for service in kube.list(Kind::Service, namespace, EXPOSED).await? {
        let metadata = &service["metadata"];
        let name = ServiceName { namespace: text(&metadata["namespace"]).into(), name: text(&metadata["name"]).into() };
        let lease = kube.get(Kind::Lease, &name.namespace, &lease::name(&name)).await.ok().flatten();
        let Ok(Some(takeover)) = service::takeover(&service, &name, lease::takeover(lease.as_ref()).as_ref()) else {
            continue;
        };
        let state = state(kube, &takeover.relay).await;
        exposed.push(Exposed { service: name, relay: Relay::shown(&takeover.relay), takeover, state });
    }
    exposed.sort_by(|a, b| a.service.cmp(&b.service));
    Ok(exposed)
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

/// Puts a Service back as it was, whoever holds it. Returns the Service; None: it was created by a relay, and is deleted.
///
/// # Errors
/// It cannot be put back, a permission is missing, or there is no answer.
pub async fn restore(kube: &Kube, name: &ServiceName) -> Result<Option<Value>, Failure> {
    let relay = Relay {
        namespace: "adit".to_owned(),
        pod: "restore".to_owned(),
        uid: String::new(),
        start: start().unwrap_or_default(),
        addresses: Vec::new(),
        node: None,
    };
    let (wanted, expiry) = (BTreeMap::new(), Expiry::default());
    let step = Step { kube, relay: &relay, name, wanted: &wanted, renews: false, is_forced: true, expiry: &expiry };
    step.run().await
}
