//! Lease of a Service that is taken over (coordination.k8s.io/v1): it says which relay may change the Service.
//!
//! Only the holder of the Lease changes the other objects. The Lease is created before the first change, renewed during
//! the takeover, and deleted after the last change. A relay that takes it over from a lost relay restores that relay's
//! objects first.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{EXPOSED, MANAGED_BY, Relay, ServiceName, TAKEOVER, service::Takeover, text};

/// How long a Lease is valid without a renewal.
pub const DURATION: Duration = Duration::from_secs(40);

/// Interval between renewals: three may fail.
pub const RENEW_EVERY: Duration = Duration::from_secs(10);

/// Holder of a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is no Lease, or nobody holds it.
    Free,
    Ours,
    /// Another relay holds it, by the display form of [`Relay`].
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
        // The holder has released it.
        "" => Standing::Free,
        holder => Standing::Other(holder.to_owned()),
    }
}

/// Returns a Lease to create. `service`: the Service if it exists; the Lease is deleted with it.
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

/// Returns the patch that takes or renews a Lease. `takeover`: the planned state, with all originals.
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

/// Returns the record of the takeover in a Lease.
pub fn takeover(lease: Option<&Value>) -> Option<Takeover> {
    serde_json::from_str(lease?["metadata"]["annotations"][TAKEOVER].as_str()?).ok()
}

/// Returns the current time in the format of a Lease (MicroTime).
fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_goes_with_its_service_and_counts_its_holders() {
        let name = ServiceName { namespace: "shop".into(), name: "web".into() };
        let relay = |pod: &str| Relay {
            namespace: "relay".into(),
            pod: pod.into(),
            uid: "u".into(),
            start: "s".into(),
            addresses: Vec::new(),
            node: None,
        };
        let (one, two) = (relay("one"), relay("two"));
        let service = json!({"metadata": {"name": "web", "uid": "1"}});
        let mut lease = new(&name, &one, Some(&service), None);
        let owner = json!({"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "1"});
        assert_eq!(lease["metadata"]["ownerReferences"], json!([owner]));
        let us = one.to_string();
        assert_eq!(standing(Some(&lease), &us), Standing::Ours);
        assert_eq!(standing(Some(&lease), ""), Standing::Other(us.clone()));
        let again = renewed(&lease, &one, None);
        assert_eq!(again["spec"]["leaseTransitions"], Value::Null, "the same holder");
        let taken = renewed(&lease, &two, None);
        assert_eq!(taken["spec"]["leaseTransitions"], 1);
        assert_eq!(taken["spec"]["leaseDurationSeconds"], DURATION.as_secs());
        assert!(taken["spec"]["acquireTime"].is_string());
        lease["spec"]["holderIdentity"] = Value::Null;
        assert_eq!(standing(Some(&lease), &us), Standing::Free);
    }
}
