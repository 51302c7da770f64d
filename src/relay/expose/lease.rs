//! The Lease of a Service that is taken over: which relay may change it (coordination.k8s.io/v1).
//!
//! Every other object is changed by the holder of the Lease alone. It is created before the first change, renewed as long as the
//! Service is taken over, and deleted after the last. A relay that takes it over from a lost one first restores the objects of that one.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{EXPOSED, MANAGED_BY, Relay, ServiceName, TAKEOVER, service::Takeover, text};

/// For how long a Lease holds that is not renewed.
pub const DURATION: Duration = Duration::from_secs(40);

/// How often it is renewed: three times may fail.
pub const RENEW_EVERY: Duration = Duration::from_secs(10);

/// Owner of a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is none.
    Free,
    Ours,
    /// Of another relay, named as [`Relay`] is shown.
    Other(String),
    /// An object of that name that no relay has created.
    Foreign,
}

/// Returns the name of the Lease for a Service.
pub fn name(service: &ServiceName) -> String {
    format!("adit-{}", service.name)
}

pub fn standing(lease: Option<&Value>, us: &str) -> Standing {
    let Some(lease) = lease else { return Standing::Free };
    if lease["metadata"]["labels"][MANAGED_BY] != "adit" {
        return Standing::Foreign;
    }
    match text(&lease["spec"]["holderIdentity"]) {
        holder if holder == us => Standing::Ours,
        // Its holder has given it up.
        "" => Standing::Free,
        holder => Standing::Other(holder.to_owned()),
    }
}

/// Returns a Lease to create. `service`: the Service, where it exists; the Lease goes with it.
pub fn new(name_of: &ServiceName, relay: &Relay, service: Option<&Value>, takeover: Option<&Takeover>) -> Value {
    let owners = match service {
        Some(service) => {
            let metadata = &service["metadata"];
            json!([{"apiVersion": "v1", "kind": "Service", "name": metadata["name"], "uid": metadata["uid"]}])
        }
        None => json!([]),
    };
    let mut lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": name(name_of), "namespace": name_of.namespace, "ownerReferences": owners,
            "labels": {EXPOSED: "true", MANAGED_BY: "adit"}
        },
        "spec": {"holderIdentity": relay.to_string(), "leaseDurationSeconds": DURATION.as_secs(), "leaseTransitions": 0, "acquireTime": now(), "renewTime": now()}
    });
    if let Some(takeover) = takeover {
        lease["metadata"]["annotations"] = json!({TAKEOVER: json!(takeover).to_string()});
    }
    lease
}

/// Returns the patch that takes or renews a Lease. `takeover`: what is about to be done, with everything that has to be kept.
pub fn renewed(lease: &Value, relay: &Relay, takeover: Option<&Takeover>) -> Value {
    let mut patch = json!({"spec": {"holderIdentity": relay.to_string(), "renewTime": now()}});
    if lease["spec"]["holderIdentity"] != relay.to_string() {
        let transitions = lease["spec"]["leaseTransitions"].as_u64().unwrap_or_default() + 1;
        patch["spec"]["acquireTime"] = json!(now());
        patch["spec"]["leaseTransitions"] = json!(transitions);
        patch["spec"]["leaseDurationSeconds"] = json!(DURATION.as_secs());
    }
    if let Some(takeover) = takeover {
        patch["metadata"] = json!({"annotations": {TAKEOVER: json!(takeover).to_string()}});
    }
    patch
}

/// Returns what a Lease says of the takeover that it is for.
pub fn takeover(lease: Option<&Value>) -> Option<Takeover> {
    serde_json::from_str(lease?["metadata"]["annotations"][TAKEOVER].as_str()?).ok()
}

/// Returns the time as a Lease carries it (MicroTime).
fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}
