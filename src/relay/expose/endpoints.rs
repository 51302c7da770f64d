//! The endpoints of a Service that is taken over: the relay's own EndpointSlices, and those that somebody has written by hand.
//!
//! A Service without a selector has endpoints that no controller of the cluster would write again. The ports that are taken are
//! left out of them, and each object keeps what it said in an annotation of its own, written by the same patch.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde_json::{Value, json};

use super::{EXPOSED, ORIGINAL, RELAY, Relay, ServiceName, service::Refusal, text};

/// Label that names the controller of a slice.
pub const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// Label that names the Service of a slice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Writes the slices of Services with a selector.
pub(super) const CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// Copies Endpoints that were written by hand into slices.
pub(super) const MIRRORING: &str = "endpointslicemirroring-controller.k8s.io";

/// Programs through which people write objects, by how they call themselves in `managedFields`. Everything else is taken for a
/// controller, which would write its object again.
const TOOLS: [&str; 15] = [
    "adit",
    "argocd",
    "before-first-apply",
    "flux",
    "helm",
    "kubectl",
    "kustomize-controller",
    "curl",
    "headlamp",
    "k9s",
    "kube-controller-manager",
    "lens",
    "openlens",
    "pulumi",
    "terraform",
];

/// Returns whether a slice is the relay's own.
pub fn is_ours(slice: &Value) -> bool {
    slice["metadata"]["labels"][SLICE_MANAGED_BY] == "adit"
}

/// Returns the slices that are to lead to the relay, one for each address family of the Service. `ports`: for each port that is
/// taken, the tunnel's port and how endpoints name it.
pub fn own_slices(
    name: &ServiceName,
    service: &Value,
    relay: &Relay,
    ports: &BTreeMap<u16, (u16, Value)>,
) -> Vec<Value> {
    let families = super::service::families(service);
    let is_wanted = |address: &&IpAddr| families.is_empty() || families.iter().any(|wanted| wanted == family(address));
    let mut addresses: Vec<&IpAddr> = relay.addresses.iter().filter(is_wanted).collect();
    if families.is_empty() {
        addresses.truncate(1);
    }
    let metadata = &service["metadata"];
    let owner = json!([{"apiVersion": "v1", "kind": "Service", "name": metadata["name"], "uid": metadata["uid"]}]);
    let ports: Vec<Value> = ports
        .values()
        .map(|(port, named)| {
            let mut port = json!({"port": port, "protocol": "TCP"});
            for (key, value) in named.as_object().into_iter().flatten() {
                port[key] = value.clone();
            }
            port
        })
        .collect();
    let slice = |address: &&IpAddr| {
        let mut endpoint = json!({
            "addresses": [address.to_string()], "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "namespace": relay.namespace, "name": relay.pod, "uid": relay.uid}
        });
        if let Some(node) = &relay.node {
            endpoint["nodeName"] = json!(node);
        }
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": slice_name(name, address), "namespace": name.namespace, "ownerReferences": owner,
                "labels": {EXPOSED: "true", SERVICE_NAME: name.name, SLICE_MANAGED_BY: "adit"},
                "annotations": {RELAY: relay.to_string()}
            },
            "addressType": family(address), "endpoints": [endpoint], "ports": ports
        })
    };
    addresses.iter().map(slice).collect()
}

fn slice_name(name: &ServiceName, address: &IpAddr) -> String {
    let family = if address.is_ipv4() { "" } else { "-ipv6" };
    format!("{}-adit{family}", name.name)
}

/// Returns the family of an address, as Services and slices name it.
pub fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Returns whether `found` says everything that `wanted` does; the API server adds to what it is sent.
pub fn covers(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| covers(found.get(key).unwrap_or(&Value::Null), wanted))
        }
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(found, wanted)| covers(found, wanted))
        }
        (found, wanted) => found == wanted,
    }
}

/// Returns whether the ports of a slice, or of Endpoints, are written by hand: nobody else would write them again.
/// `has_selector`: of the Service.
pub fn is_by_hand(object: &Value, has_selector: bool) -> bool {
    match object["metadata"]["labels"][SLICE_MANAGED_BY].as_str() {
        // Slices that it left when the selector was removed have no owner.
        Some(CONTROLLER) => !has_selector,
        Some(MIRRORING | "adit") => false,
        _ => true,
    }
}

/// Says who would undo a change of endpoints that seem to be written by hand. None: nobody.
pub fn controller_of(object: &Value) -> Option<String> {
    let metadata = &object["metadata"];
    let owners = metadata["ownerReferences"].as_array().into_iter().flatten();
    let mut owners = owners.filter(|owner| owner["controller"] == true && owner["kind"] != "Service");
    if let Some(owner) = owners.next() {
        return Some(format!("{} {}", text(&owner["kind"]), text(&owner["name"])));
    }
    if metadata["annotations"]["control-plane.alpha.kubernetes.io/leader"].is_string() {
        return Some("a leader election".to_owned());
    }
    if metadata["labels"][SLICE_MANAGED_BY] == CONTROLLER {
        return None;
    }
    let writers = metadata["managedFields"].as_array().into_iter().flatten();
    let mut writers = writers.map(|writer| text(&writer["manager"]));
    let is_tool = |writer: &str| TOOLS.iter().any(|tool| writer.to_ascii_lowercase().starts_with(tool));
    writers.find(|writer| !writer.is_empty() && !is_tool(writer)).map(|writer| format!("\"{writer}\""))
}

/// Endpoints as one of the two kinds has them: a list of ports, or subsets of which each has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `ports` of an EndpointSlice.
    Ports,
    /// `subsets` of Endpoints.
    Subsets,
}

impl Field {
    fn name(self) -> &'static str {
        match self {
            Self::Ports => "ports",
            Self::Subsets => "subsets",
        }
    }

    fn without(self, value: &Value, names: &BTreeSet<String>) -> Value {
        match self {
            Self::Ports => without(value, names),
            Self::Subsets => {
                let subsets = value.as_array().into_iter().flatten().map(|subset| {
                    let mut subset = subset.clone();
                    subset["ports"] = without(&subset["ports"], names);
                    subset
                });
                Value::Array(subsets.collect())
            }
        }
    }

    /// Returns what the object would say had the ports never been taken: `kept`, unless somebody has written it again meanwhile.
    fn restored(self, now: &Value, kept: &Value, names: &BTreeSet<String>) -> Value {
        match self {
            Self::Ports if *now == without(kept, names) => kept.clone(),
            Self::Ports => now.clone(),
            Self::Subsets if addresses(now) == addresses(kept) => kept.clone(),
            Self::Subsets => {
                let subsets = now.as_array().into_iter().flatten().map(|subset| {
                    let kept = kept.as_array().into_iter().flatten();
                    let mut kept = kept.filter(|kept| without(&kept["ports"], names) == subset["ports"]);
                    let mut subset = subset.clone();
                    if let Some(kept) = kept.next() {
                        subset["ports"] = kept["ports"].clone();
                    }
                    subset
                });
                Value::Array(subsets.collect())
            }
        }
    }
}

fn without(ports: &Value, names: &BTreeSet<String>) -> Value {
    let Some(ports) = ports.as_array() else { return ports.clone() };
    let stays = |port: &&Value| {
        let is_tcp = port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP");
        !(is_tcp && names.contains(text(&port["name"])))
    };
    Value::Array(ports.iter().filter(stays).cloned().collect())
}

fn addresses(subsets: &Value) -> BTreeSet<String> {
    let of_subset = |subset: &Value| -> Vec<String> {
        let lists = ["addresses", "notReadyAddresses"];
        lists.iter().flat_map(|list| subset[list].as_array().into_iter().flatten().map(Value::to_string)).collect()
    };
    subsets.as_array().into_iter().flatten().flat_map(of_subset).collect()
}

/// Returns whether something was left out of an object.
pub fn is_changed(object: &Value) -> bool {
    object["metadata"]["annotations"][ORIGINAL].is_string()
}

/// Returns what an object would say if nothing was left out of it.
pub fn whole(object: &Value, field: Field) -> Value {
    let now = &object[field.name()];
    let kept =
        object["metadata"]["annotations"][ORIGINAL].as_str().and_then(|kept| serde_json::from_str::<Value>(kept).ok());
    match &kept {
        Some(kept) => {
            let names = kept["names"].as_array().into_iter().flatten().map(|name| text(name).to_owned()).collect();
            field.restored(now, &kept[field.name()], &names)
        }
        None => now.clone(),
    }
}

/// Returns the merge patch that leaves ports out of an object, and what was left out before is written again. None: it is so.
pub fn change(object: &Value, field: Field, names: &BTreeSet<String>) -> Option<Value> {
    let (now, whole) = (&object[field.name()], whole(object, field));
    let after = field.without(&whole, names);
    let annotation = match after == whole {
        true => Value::Null,
        false => {
            let mut kept = json!({"names": names});
            kept[field.name()] = whole;
            json!(kept.to_string())
        }
    };
    if after == *now && object["metadata"]["annotations"][ORIGINAL] == annotation {
        return None;
    }
    let mut patch = json!({"metadata": {"annotations": {ORIGINAL: annotation}}});
    if after != *now {
        patch[field.name()] = after;
    }
    Some(patch)
}

/// Returns a refusal where one of the objects that would be changed belongs to a controller.
pub fn check(
    name: &ServiceName,
    has_selector: bool,
    objects: &[(&'static str, Field, &Value)],
    names: &BTreeSet<String>,
) -> Result<(), Refusal> {
    for (kind, field, object) in objects {
        let is_touched = is_by_hand(object, has_selector) && change(object, *field, names).is_some();
        if let Some(by) = controller_of(object).filter(|_| is_touched) {
            let object = format!("{kind} {}/{}", name.namespace, text(&object["metadata"]["name"]));
            return Err(Refusal::Controlled { service: name.clone(), object, by });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn patched(object: &Value, patch: Option<Value>) -> Value {
        fn merge(target: &mut Value, patch: Value) {
            let Value::Object(patch) = patch else { return *target = patch };
            if !target.is_object() {
                *target = json!({});
            }
            for (key, value) in patch {
                match value {
                    Value::Null => drop(target.as_object_mut().unwrap().remove(&key)),
                    value => merge(&mut target[&key], value),
                }
            }
        }
        let mut object = object.clone();
        merge(&mut object, patch.unwrap_or_default_object());
        if object["metadata"]["annotations"] == json!({}) {
            object["metadata"].as_object_mut().unwrap().remove("annotations");
        }
        object
    }

    trait OrObject {
        fn unwrap_or_default_object(self) -> Value;
    }

    impl OrObject for Option<Value> {
        fn unwrap_or_default_object(self) -> Value {
            self.unwrap_or_else(|| json!({}))
        }
    }

    fn slice() -> Value {
        let port = |name: &str, number: u16| json!({"name": name, "port": number, "protocol": "TCP"});
        let mut dns = port("dns", 53);
        dns["protocol"] = json!("UDP");
        json!({"metadata": {"name": "s"}, "ports": [port("http", 80), port("alt", 81), dns]})
    }

    fn endpoints() -> Value {
        let port = |name: &str, number: u16| json!({"name": name, "port": number, "protocol": "TCP"});
        json!({"metadata": {"name": "s"}, "subsets": [
            {"addresses": [{"ip": "10.0.0.1"}], "ports": [port("http", 80), port("alt", 81)]},
            {"addresses": [{"ip": "10.0.0.2"}], "notReadyAddresses": [{"ip": "10.0.0.3"}], "ports": [port("http", 8080)]}
        ]})
    }

    #[test]
    fn what_is_left_out_is_kept_and_written_again_in_any_order() {
        for (field, object) in [(Field::Ports, slice()), (Field::Subsets, endpoints())] {
            let steps: [&[&str]; 5] = [&["http"], &["http", "alt"], &["alt"], &["dns", "nothing"], &[]];
            let mut now = object.clone();
            for step in steps {
                now = patched(&now, change(&now, field, &names(step)));
                assert_eq!(change(&now, field, &names(step)), None, "{step:?}: it is so already");
                assert!(!now[field.name()].to_string().contains("\"http\"") || !step.contains(&"http"), "{now}");
            }
            assert_eq!(now, object);
        }
    }

    #[test]
    fn what_somebody_has_written_meanwhile_stays() {
        let mut taken = patched(&slice(), change(&slice(), Field::Ports, &names(&["http"])));
        taken["ports"] = json!([{"name": "http", "port": 9090, "protocol": "TCP"}]);
        let back = patched(&taken, change(&taken, Field::Ports, &names(&[])));
        assert_eq!(back["ports"], taken["ports"]);
        let mut taken = patched(&endpoints(), change(&endpoints(), Field::Subsets, &names(&["http"])));
        taken["subsets"][0]["addresses"][0]["ip"] = json!("10.0.0.9");
        let back = patched(&taken, change(&taken, Field::Subsets, &names(&[])));
        let mut wanted = endpoints();
        wanted["subsets"][0]["addresses"][0]["ip"] = json!("10.0.0.9");
        assert_eq!(back, wanted, "the address is the new one, and the ports are back");
    }

    #[test]
    fn endpoints_that_a_controller_would_write_again_are_known() {
        let with = |metadata: Value| json!({"metadata": metadata});
        let managers = |names: &[&str]| {
            let fields: Vec<Value> = names.iter().map(|name| json!({"manager": name})).collect();
            with(json!({"managedFields": fields}))
        };
        assert_eq!(controller_of(&managers(&["kubectl-client-side-apply", "Helm", "argocd-controller", "adit"])), None);
        assert_eq!(controller_of(&managers(&["kubectl-edit", "Patroni"])).unwrap(), "\"Patroni\"");
        let owner = with(json!({"ownerReferences": [{"kind": "Cluster", "name": "pg", "controller": true}]}));
        assert_eq!(controller_of(&owner).unwrap(), "Cluster pg");
        let leader = with(json!({"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}}));
        assert!(controller_of(&leader).is_some());
        assert_eq!(controller_of(&slice()), None);
        let of = |manager: &str| with(json!({"labels": {SLICE_MANAGED_BY: manager}}));
        assert!(!is_by_hand(&of(CONTROLLER), true) && is_by_hand(&of(CONTROLLER), false));
        assert!(!is_by_hand(&of(MIRRORING), false) && !is_by_hand(&of("adit"), false));
        assert!(is_by_hand(&of("staff"), true) && is_by_hand(&slice(), true));
    }

    #[test]
    fn what_the_api_server_adds_is_no_difference() {
        let wanted = json!({"a": [{"b": 1}], "c": {"d": "x"}});
        assert!(covers(&json!({"a": [{"b": 1, "more": 2}], "c": {"d": "x"}, "e": null}), &wanted));
        assert!(!covers(&json!({"a": [{"b": 1}, {"b": 2}], "c": {"d": "x"}}), &wanted));
        assert!(!covers(&json!({"a": [{"b": 1}]}), &wanted));
    }
}
