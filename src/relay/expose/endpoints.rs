//! Endpoints of a Service that is taken over: the relay's own EndpointSlices, and endpoints written by hand.
//!
//! If a Service has no selector, no controller of the cluster would restore its endpoints. The relay removes the taken
//! ports from them, and the same patch saves the original in an annotation of the object.

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

/// Controller that writes the slices of Services with a selector.
pub(super) const CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// Controller that copies Endpoints written by hand into slices.
pub(super) const MIRRORING: &str = "endpointslicemirroring-controller.k8s.io";

/// Tools that people write objects with, by their name in `managedFields`. Any other writer counts as a controller, which
/// would undo a change.
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

/// Returns whether the relay owns a slice.
pub fn is_ours(slice: &Value) -> bool {
    slice["metadata"]["labels"][SLICE_MANAGED_BY] == "adit"
}

/// Returns the slices that route to the relay, one per address family of the Service. `ports`: for each taken port, the
/// tunnel's port and the port's entry in endpoints.
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

/// Returns the family of an address as Services and slices spell it.
pub fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Returns whether `found` contains all of `wanted`. The API server adds fields to the objects that it gets.
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

/// Returns whether the ports of a slice or of Endpoints are written by hand, so that no controller would restore them.
/// `has_selector`: whether the Service has one.
pub fn is_by_hand(object: &Value, has_selector: bool) -> bool {
    match object["metadata"]["labels"][SLICE_MANAGED_BY].as_str() {
        // After the selector is removed, the controller no longer owns its old slices.
        Some(CONTROLLER) => !has_selector,
        Some(MIRRORING | "adit") => false,
        _ => true,
    }
}

/// Returns the controller that would undo a change of endpoints that seem to be written by hand. `None`: no controller.
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

/// Field with the ports of endpoints, by kind: a list of ports, or subsets that each have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Field `ports` of an EndpointSlice.
    Ports,
    /// Field `subsets` of Endpoints.
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
            Self::Ports => json!(without(list(value), names)),
            Self::Subsets => {
                let subsets = list(value).iter().map(|subset| {
                    let mut subset = subset.clone();
                    let ports = json!(without(list(&subset["ports"]), names));
                    // Anyone may have written the annotation with the original.
                    if let Some(subset) = subset.as_object_mut() {
                        subset.insert("ports".to_owned(), ports);
                    }
                    subset
                });
                subsets.collect()
            }
        }
    }

    /// Returns whether two values are equivalent. The API server stores an empty list as null or not at all, and repacks
    /// subsets.
    fn is_same(self, a: &Value, b: &Value) -> bool {
        match self {
            Self::Ports => list(a) == list(b),
            Self::Subsets => addresses(a) == addresses(b),
        }
    }

    /// Returns the object's state without the takeover: `kept`, plus changes that others made since.
    fn restored(self, now: &Value, kept: &Value, names: &BTreeSet<String>) -> Value {
        if self.is_same(now, &self.without(kept, names)) {
            return kept.clone();
        }
        match self {
            Self::Ports => json!(with(list(now), list(kept), names)),
            Self::Subsets => {
                let mut now = addresses(now);
                let kept = addresses(kept);
                for (address, ports) in &mut now {
                    let same_ip = || kept.iter().find(|(kept, _)| kept.value()["ip"] == address.value()["ip"]);
                    let same_ports = || kept.iter().find(|(_, kept)| without(kept, names) == *ports);
                    // The ports of an added address are unknown: it gets those of another address.
                    if let Some((_, kept)) = same_ip().or_else(same_ports).or_else(|| kept.iter().next()) {
                        *ports = with(ports, kept, names);
                    }
                }
                packed(now)
            }
        }
    }
}

/// Returns the items of a list. Null and an absent field are an empty list.
fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn is_named(port: &Value, names: &BTreeSet<String>) -> bool {
    port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP") && names.contains(text(&port["name"]))
}

fn without(ports: &[Value], names: &BTreeSet<String>) -> Vec<Value> {
    ports.iter().filter(|port| !is_named(port, names)).cloned().collect()
}

/// Returns the ports of `now`, and the removed ports of `kept` unless somebody has added them again.
fn with(now: &[Value], kept: &[Value], names: &BTreeSet<String>) -> Vec<Value> {
    if *now == without(kept, names) {
        return kept.to_vec();
    }
    let is_there =
        |port: &&Value| now.iter().any(|other| is_named(other, &BTreeSet::from([text(&port["name"]).to_owned()])));
    let left_out = kept.iter().filter(|port| is_named(port, names) && !is_there(port));
    now.iter().chain(left_out).cloned().collect()
}

/// An address of Endpoints: the name of its list, and its JSON.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    list: &'static str,
    json: String,
}

impl Address {
    fn value(&self) -> Value {
        serde_json::from_str(&self.json).unwrap_or_default()
    }
}

/// Returns the addresses of subsets, each with its ports.
fn addresses(subsets: &Value) -> BTreeMap<Address, Vec<Value>> {
    let mut found: BTreeMap<Address, Vec<Value>> = BTreeMap::new();
    for subset in list(subsets) {
        for name in ["addresses", "notReadyAddresses"] {
            for address in list(&subset[name]) {
                let ports = found.entry(Address { list: name, json: address.to_string() }).or_default();
                ports.extend(list(&subset["ports"]).iter().cloned());
                ports.sort_by_cached_key(Value::to_string);
            }
        }
    }
    found
}

/// Returns subsets with these addresses. Addresses with the same ports share one subset.
fn packed(addresses: BTreeMap<Address, Vec<Value>>) -> Value {
    let mut subsets: Vec<Value> = Vec::new();
    for (address, ports) in addresses {
        let at = subsets.iter().position(|subset| list(&subset["ports"]) == ports);
        let at = at.unwrap_or_else(|| {
            subsets.push(json!({"ports": ports}));
            subsets.len() - 1
        });
        let mut of_list = list(&subsets[at][address.list]).to_vec();
        of_list.push(address.value());
        subsets[at][address.list] = json!(of_list);
    }
    json!(subsets)
}

/// Returns whether an object has an annotation with its original.
pub fn is_changed(object: &Value) -> bool {
    object["metadata"]["annotations"][ORIGINAL].is_string()
}

/// Returns whether there are pods but none of them is behind one of these ports. `slices`: all slices of the Service.
pub fn lack(slices: &[Value], names: &BTreeSet<String>) -> bool {
    let theirs = slices.iter().filter(|slice| !is_ours(slice) && !list(&slice["endpoints"]).is_empty());
    let theirs: Vec<&Value> = theirs.collect();
    let has = |slice: &&Value, name: &String| {
        list(&slice["ports"]).iter().any(|port| is_named(port, &BTreeSet::from([name.clone()])))
    };
    !theirs.is_empty() && !names.iter().all(|name| theirs.iter().any(|slice| has(slice, name)))
}

/// Returns the original state of an object.
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

/// Returns the merge patch that removes ports from an object, and restores ports that were removed before. `None`:
/// nothing to change.
pub fn change(object: &Value, field: Field, names: &BTreeSet<String>) -> Option<Value> {
    let (now, whole) = (&object[field.name()], whole(object, field));
    let after = field.without(&whole, names);
    let annotation = match field.is_same(&after, &whole) {
        true => Value::Null,
        false => {
            let mut kept = json!({"names": names});
            kept[field.name()] = whole;
            json!(kept.to_string())
        }
    };
    let is_so = field.is_same(&after, now);
    if is_so && object["metadata"]["annotations"][ORIGINAL] == annotation {
        return None;
    }
    let mut patch = json!({"metadata": {"annotations": {ORIGINAL: annotation}}});
    if !is_so {
        patch[field.name()] = after;
    }
    Some(patch)
}

/// Checks that no controller owns one of the objects to change.
///
/// # Errors
/// One does.
pub fn check(
    name: &ServiceName,
    objects: &[(&'static str, Field, &Value)],
    names: &BTreeSet<String>,
) -> Result<(), Refusal> {
    for (kind, field, object) in objects {
        if let Some(by) = controller_of(object).filter(|_| change(object, *field, names).is_some()) {
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
        // The API server stores an empty list as null.
        if object["ports"] == json!([]) {
            object["ports"] = Value::Null;
        }
        for subset in object.get_mut("subsets").and_then(Value::as_array_mut).into_iter().flatten() {
            subset.as_object_mut().unwrap().retain(|_, list| *list != json!([]));
        }
        if object["metadata"]["annotations"] == json!({}) {
            object["metadata"].as_object_mut().unwrap().remove("annotations");
        }
        object
    }

    #[test]
    fn an_original_that_somebody_has_damaged_ends_no_task() {
        for kept in
            [r#"{"names":["http"],"subsets":["x",1,null,{"ports":7}]}"#, r#"{"names":7,"subsets":"x"}"#, "[]", "7"]
        {
            let metadata = json!({"annotations": {ORIGINAL: kept}});
            let ports = json!([{"name": "http", "port": 80}]);
            let object =
                json!({"metadata": metadata, "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": ports}]});
            for names in [BTreeSet::new(), BTreeSet::from(["http".to_owned()])] {
                change(&object, Field::Subsets, &names);
                change(&object, Field::Ports, &names);
            }
        }
    }

    #[test]
    fn a_port_that_has_no_pods_of_a_service_yet_is_seen() {
        let slice = |by: &str, ports: &[&str], address: &[&str]| {
            let ports: Vec<Value> = ports.iter().map(|name| json!({"name": name, "port": 80})).collect();
            let endpoints: Vec<Value> = address.iter().map(|address| json!({"addresses": [address]})).collect();
            json!({"metadata": {"labels": {SLICE_MANAGED_BY: by}}, "ports": ports, "endpoints": endpoints})
        };
        let (ours, of_http) = (slice("adit", &["http"], &["10.0.0.9"]), names(&["http"]));
        for (theirs, is_lacking) in [
            (slice(CONTROLLER, &["alt"], &["10.0.0.1"]), true),
            (slice(CONTROLLER, &["alt", "http"], &["10.0.0.1"]), false),
            // Without pods, none are missing.
            (slice(CONTROLLER, &[], &[]), false),
        ] {
            assert_eq!(lack(&[ours.clone(), theirs.clone()], &of_http), is_lacking, "{theirs}");
        }
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

    fn one_port() -> Value {
        json!({"metadata": {"name": "s"}, "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]})
    }

    fn one_subset() -> Value {
        json!({"metadata": {"name": "s"}, "subsets": [
            {"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}
        ]})
    }

    #[test]
    fn what_is_left_out_is_kept_and_written_again_in_any_order() {
        for (field, object) in [
            (Field::Ports, slice()),
            (Field::Ports, one_port()),
            (Field::Subsets, endpoints()),
            (Field::Subsets, one_subset()),
        ] {
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
        for object in [endpoints(), one_subset()] {
            let mut taken = patched(&object, change(&object, Field::Subsets, &names(&["http"])));
            taken["subsets"][0]["addresses"][0]["ip"] = json!("10.0.0.9");
            // The patch saves the original once more, and then there is nothing to change.
            taken = patched(&taken, change(&taken, Field::Subsets, &names(&["http"])));
            assert_eq!(change(&taken, Field::Subsets, &names(&["http"])), None);
            let back = patched(&taken, change(&taken, Field::Subsets, &names(&[])));
            let mut wanted = object;
            wanted["subsets"][0]["addresses"][0]["ip"] = json!("10.0.0.9");
            assert_eq!(back["metadata"], wanted["metadata"]);
            assert_eq!(
                addresses(&back["subsets"]),
                addresses(&wanted["subsets"]),
                "the address is the new one, and the ports are back"
            );
        }
    }

    #[test]
    fn a_port_that_somebody_has_added_stays_beside_the_one_that_comes_back() {
        let new = json!({"name": "new", "port": 90, "protocol": "TCP"});
        for object in [slice(), one_port()] {
            let mut taken = patched(&object, change(&object, Field::Ports, &names(&["http"])));
            let mut ports = list(&taken["ports"]).to_vec();
            ports.push(new.clone());
            taken["ports"] = json!(ports);
            // The change triggers another step of the relay.
            let taken = patched(&taken, change(&taken, Field::Ports, &names(&["http"])));
            let back = patched(&taken, change(&taken, Field::Ports, &names(&[])));
            let set = |ports: &[Value]| ports.iter().map(Value::to_string).collect::<BTreeSet<_>>();
            assert_eq!(set(list(&back["ports"])), set(&[list(&object["ports"]), std::slice::from_ref(&new)].concat()));
            assert_eq!(back["metadata"], object["metadata"]);
        }
        let object = one_subset();
        let mut taken = patched(&object, change(&object, Field::Subsets, &names(&["http"])));
        taken["subsets"][0]["ports"] = json!([new]);
        let back = patched(&taken, change(&taken, Field::Subsets, &names(&[])));
        assert_eq!(back["subsets"][0]["ports"].as_array().map(Vec::len), Some(2), "{back}");
    }

    #[test]
    fn subsets_that_the_api_server_packs_anew_are_no_change() {
        let port = |number: u16| json!([{"name": "http", "port": number, "protocol": "TCP"}]);
        let object = json!({"metadata": {"name": "s"}, "subsets": [
            {"addresses": [{"ip": "10.0.0.1"}], "ports": port(80)}, {"addresses": [{"ip": "10.0.0.2"}], "ports": port(8080)}
        ]});
        let mut taken = patched(&object, change(&object, Field::Subsets, &names(&["http"])));
        taken["subsets"] = json!([{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]}]);
        assert_eq!(change(&taken, Field::Subsets, &names(&["http"])), None);
        assert_eq!(patched(&taken, change(&taken, Field::Subsets, &names(&[]))), object);
        // Each address gets its own ports back, even next to a new address.
        taken["subsets"][0]["addresses"].as_array_mut().unwrap().push(json!({"ip": "10.0.0.3"}));
        let back = patched(&taken, change(&taken, Field::Subsets, &names(&[])));
        let back = addresses(&back["subsets"]);
        let of = |ip: &str| back.iter().find(|(address, _)| address.value()["ip"] == ip).map(|(_, ports)| json!(ports));
        assert_eq!(
            [of("10.0.0.1"), of("10.0.0.2"), of("10.0.0.3")],
            [Some(port(80)), Some(port(8080)), Some(port(80))]
        );
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
        for owner in
            [json!({"kind": "Cluster", "name": "pg"}), json!({"kind": "Service", "name": "web", "controller": true})]
        {
            assert_eq!(controller_of(&with(json!({"ownerReferences": [owner]}))), None, "{owner}");
        }
        let left = json!({"labels": {SLICE_MANAGED_BY: CONTROLLER}, "managedFields": [{"manager": "Patroni"}]});
        assert_eq!(controller_of(&with(left)), None, "the controller has let go of it");
        let leader = with(json!({"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}}));
        assert!(controller_of(&leader).is_some());
        assert_eq!(controller_of(&slice()), None);
        let of = |manager: &str| with(json!({"labels": {SLICE_MANAGED_BY: manager}}));
        assert!(!is_by_hand(&of(CONTROLLER), true) && is_by_hand(&of(CONTROLLER), false));
        assert!(!is_by_hand(&of(MIRRORING), false) && !is_by_hand(&of("adit"), false));
        assert!(is_by_hand(&of("staff"), true) && is_by_hand(&slice(), true));
    }

    #[test]
    fn a_service_gets_a_slice_of_each_of_its_families() {
        let name = ServiceName { namespace: "shop".into(), name: "web".into() };
        let relay = Relay {
            namespace: "relay".into(),
            pod: "one".into(),
            uid: "u".into(),
            start: "s".into(),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            node: Some("node-1".into()),
        };
        for (families, wanted) in [
            (json!(null), &["web-adit"][..]),
            (json!(["IPv4"]), &["web-adit"]),
            (json!(["IPv6"]), &["web-adit-ipv6"]),
            (json!(["IPv6", "IPv4"]), &["web-adit", "web-adit-ipv6"]),
        ] {
            let service = json!({"spec": {"ipFamilies": families}});
            let slices = own_slices(&name, &service, &relay, &BTreeMap::new());
            let names: Vec<_> = slices.iter().map(|slice| text(&slice["metadata"]["name"])).collect();
            assert_eq!(names, wanted, "{families}");
            // A Service may prefer endpoints near its clients.
            assert!(slices.iter().all(|slice| slice["endpoints"][0]["nodeName"] == "node-1"));
        }
    }

    #[test]
    fn what_the_api_server_adds_is_no_difference() {
        let wanted = json!({"a": [{"b": 1}], "c": {"d": "x"}});
        assert!(covers(&json!({"a": [{"b": 1, "more": 2}], "c": {"d": "x"}, "e": null}), &wanted));
        assert!(!covers(&json!({"a": [{"b": 1}, {"b": 2}], "c": {"d": "x"}}), &wanted));
        assert!(!covers(&json!({"a": [{"b": 1}]}), &wanted));
    }
}
