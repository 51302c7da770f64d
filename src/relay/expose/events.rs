//! Events on Services: a port is taken over, or restored.

use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::debug;

use super::{
    Relay, ServiceName,
    kube::{Kind, Kube},
    start, text,
};

/// Reason of an Event on a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    TakenOver,
    GivenBack,
    TakeoverUndone,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::TakenOver => "TakenOver",
            Self::GivenBack => "GivenBack",
            Self::TakeoverUndone => "TakeoverUndone",
        }
    }

    fn kind(self) -> &'static str {
        if self == Self::TakeoverUndone { "Warning" } else { "Normal" }
    }
}

/// Writes an Event. If that fails, only the relay's log has the message.
pub async fn write(kube: &Kube, relay: &Relay, service: &Value, reason: Reason, message: &str) {
    let metadata = &service["metadata"];
    let name = ServiceName { namespace: text(&metadata["namespace"]).into(), name: text(&metadata["name"]).into() };
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let Ok(unique) = start() else { return };
    let event = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"namespace": name.namespace, "name": format!("{}.{unique}", name.name)},
        "involvedObject": {
            "apiVersion": "v1", "kind": "Service", "namespace": name.namespace, "name": name.name, "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"]
        },
        "type": reason.kind(), "reason": reason.name(), "message": message, "action": reason.name(),
        "source": {"component": "adit"}, "reportingComponent": "adit", "reportingInstance": relay.pod,
        "firstTimestamp": now, "lastTimestamp": now, "count": 1
    });
    if let Err(error) = kube.create(Kind::Event, &name.namespace, &event).await {
        debug!(service = %name, %error, "relay: no Event was written");
    }
}
