//! Pods behind a port that is taken over in part. They get the requests that match no condition.
//!
//! The cluster's controllers remove the port from the Service's slices, but still write which pods are ready. The
//! takeover's record has the port at the pods: a number, or a name that each pod resolves itself.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::Value;

use super::{
    endpoints::{self, CONTROLLER, Field, MIRRORING, SLICE_MANAGED_BY},
    service::{self, TakenPort},
    text,
};

/// A ready endpoint behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    pub address: IpAddr,
    pub port: PodPort,
    /// Name and UID of the pod. `None`: the endpoint is not a pod.
    pub pod: Option<(String, String)>,
}

/// A port of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodPort {
    Number(u16),
    /// Name of a container's port.
    Name(String),
}

/// Returns the endpoints behind a port. `endpoints`: the Endpoints object, if the Service has no selector.
pub fn behind(service: &Value, slices: &[Value], endpoints: Option<&Value>, taken: &TakenPort) -> Vec<Behind> {
    let name = service::port_name(service, taken.port);
    let has_selector = service::has_selector(service);
    let (mut ready, mut leaving) = (Vec::new(), Vec::new());
    for slice in slices.iter().filter(|slice| !endpoints::is_ours(slice)) {
        let port = match slice["metadata"]["labels"][SLICE_MANAGED_BY].as_str() {
            Some(CONTROLLER) if has_selector => match number_of(&slice["ports"], &name) {
                Some(port) => Some(PodPort::Number(port)),
                None => target(taken),
            },
            // This controller copies Endpoints, which are read directly.
            Some(MIRRORING) if endpoints.is_some() => None,
            _ => number_of(&endpoints::whole(slice, Field::Ports), &name).map(PodPort::Number),
        };
        let Some(port) = port else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let conditions = &endpoint["conditions"];
            let list = match (conditions["ready"] == false, conditions["serving"] == true) {
                (false, _) => &mut ready,
                // As in kube-proxy, terminating pods serve if there are no others (KEP-1669).
                (true, true) => &mut leaving,
                (true, false) => continue,
            };
            let addresses = endpoint["addresses"].as_array().into_iter().flatten();
            let addresses = addresses.filter_map(|address| address.as_str()?.parse::<IpAddr>().ok());
            let pod = of_pod(&endpoint["targetRef"]);
            list.extend(addresses.map(|address| Behind { address, port: port.clone(), pod: pod.clone() }));
        }
    }
    for subset in endpoints.map(|object| endpoints::whole(object, Field::Subsets)).iter().flat_map(subsets) {
        let Some(port) = number_of(&subset["ports"], &name) else { continue };
        let addresses = subset["addresses"].as_array().into_iter().flatten();
        ready.extend(addresses.filter_map(|address| {
            let port = PodPort::Number(port);
            Some(Behind { address: text(&address["ip"]).parse().ok()?, port, pod: of_pod(&address["targetRef"]) })
        }));
    }
    let mut found = if ready.is_empty() { leaving } else { ready };
    found.sort_by_key(|behind| behind.address);
    found.dedup();
    found
}

fn subsets(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// Returns the port at pods whose slice does not name another.
fn target(taken: &TakenPort) -> Option<PodPort> {
    match &taken.target_port {
        Value::Null => Some(PodPort::Number(taken.port)),
        Value::String(name) => Some(PodPort::Name(name.clone())),
        number => Some(PodPort::Number(u16::try_from(number.as_u64()?).ok()?)),
    }
}

fn number_of(ports: &Value, name: &str) -> Option<u16> {
    let is_it = |port: &&Value| {
        text(&port["name"]) == name && port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP")
    };
    let port = ports.as_array()?.iter().find(is_it)?;
    u16::try_from(port["port"].as_u64()?).ok()
}

fn of_pod(target: &Value) -> Option<(String, String)> {
    (target["kind"] == "Pod").then(|| (text(&target["name"]).to_owned(), text(&target["uid"]).to_owned()))
}

/// Returns the named ports of a pod, as controllers find them: those of containers, and of init containers that keep
/// running.
pub fn named_ports(pod: &Value) -> BTreeMap<String, u16> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let sidecars = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    let sidecars = sidecars.filter(|container| container["restartPolicy"] == "Always");
    let mut named = BTreeMap::new();
    for port in containers.chain(sidecars).flat_map(|container| container["ports"].as_array().into_iter().flatten()) {
        let is_tcp = port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP");
        let number = port["containerPort"].as_u64().and_then(|number| u16::try_from(number).ok());
        if let (Some(name), Some(number), true) = (port["name"].as_str(), number, is_tcp) {
            named.entry(name.to_owned()).or_insert(number);
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taken(target_port: Value) -> TakenPort {
        TakenPort { port: 80, target_port, owner: "ana".into(), since: String::new(), personal: Vec::new() }
    }

    fn service(selector: Value) -> Value {
        json!({"spec": {"selector": selector, "ports": [{"name": "http", "port": 80, "targetPort": "adit-80"}]}})
    }

    fn slice(managed_by: &str, ports: Value, endpoints: Value) -> Value {
        json!({"metadata": {"labels": {SLICE_MANAGED_BY: managed_by}}, "ports": ports, "endpoints": endpoints})
    }

    fn endpoint(address: &str, ready: bool, serving: bool) -> Value {
        json!({
            "addresses": [address], "conditions": {"ready": ready, "serving": serving},
            "targetRef": {"kind": "Pod", "name": format!("pod-{address}"), "uid": "u"}
        })
    }

    #[test]
    fn ready_pods_are_found_although_the_port_is_left_out_of_their_slice() {
        let pods = json!([
            endpoint("10.0.0.2", true, true),
            endpoint("10.0.0.1", true, true),
            endpoint("10.0.0.3", false, false)
        ]);
        let slices =
            [slice(CONTROLLER, Value::Null, pods), slice("adit", json!([]), json!([endpoint("10.0.0.9", true, true)]))];
        let service = service(json!({"app": "web"}));
        for (target, port) in [
            (json!("web"), PodPort::Name("web".into())),
            (json!(8080), PodPort::Number(8080)),
            (Value::Null, PodPort::Number(80)),
        ] {
            let found = behind(&service, &slices, None, &taken(target));
            let addresses: Vec<_> = found.iter().map(|behind| behind.address.to_string()).collect();
            assert_eq!(addresses, ["10.0.0.1", "10.0.0.2"]);
            assert!(found.iter().all(|behind| behind.port == port), "{found:?}");
        }
        assert!(behind(&service, &slices, None, &taken(json!(70_000))).is_empty());
    }

    #[test]
    fn pods_that_terminate_serve_where_no_other_does() {
        let service = service(json!({"app": "web"}));
        let both = json!([endpoint("10.0.0.1", false, true), endpoint("10.0.0.2", true, true)]);
        let found = behind(&service, &[slice(CONTROLLER, Value::Null, both)], None, &taken(json!(8080)));
        assert_eq!(found.len(), 1);
        let last = json!([endpoint("10.0.0.1", false, true)]);
        let found = behind(&service, &[slice(CONTROLLER, Value::Null, last)], None, &taken(json!(8080)));
        assert_eq!(found[0].address.to_string(), "10.0.0.1");
    }

    #[test]
    fn a_pod_that_is_in_two_slices_is_one_and_a_copy_of_endpoints_counts_no_more_than_they_do() {
        let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
        // While controllers move a pod from one slice to another.
        let of = |by| slice(by, ports.clone(), json!([endpoint("10.0.0.1", true, true)]));
        let found = behind(&service(json!({"app": "web"})), &[of(CONTROLLER), of(CONTROLLER)], None, &taken(json!(80)));
        assert_eq!(found.len(), 1);
        let object = json!({"metadata": {}, "subsets": []});
        assert_eq!(behind(&service(Value::Null), &[of(MIRRORING)], Some(&object), &taken(json!(80))), []);
    }

    #[test]
    fn a_port_that_a_slice_still_has_tells_its_number() {
        let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
        let slices = [slice(CONTROLLER, ports, json!([endpoint("10.0.0.1", true, true)]))];
        let found = behind(&service(json!({"app": "web"})), &slices, None, &taken(json!("web")));
        assert_eq!(found[0].port, PodPort::Number(8080));
    }

    #[test]
    fn endpoints_that_were_written_by_hand_are_what_they_were() {
        let (service, names) = (service(Value::Null), std::collections::BTreeSet::from(["http".to_owned()]));
        let ports = json!([{"name": "http", "port": 81, "protocol": "TCP"}]);
        let by_hand = slice("staff", ports.clone(), json!([{"addresses": ["10.9.9.9"]}]));
        let object = json!({"metadata": {}, "subsets": [{"addresses": [{"ip": "10.9.9.8"}], "ports": ports}]});
        let left_out = |object: &Value, field: Field, list: &str| {
            let patch = endpoints::change(object, field, &names).unwrap();
            let mut object = object.clone();
            object["metadata"]["annotations"] = patch["metadata"]["annotations"].clone();
            object[list] = patch[list].clone();
            object
        };
        let mirrored = slice(MIRRORING, json!([]), json!([endpoint("10.9.9.8", true, true)]));
        for (slices, endpoints) in [
            ([by_hand.clone(), mirrored.clone()], object.clone()),
            ([left_out(&by_hand, Field::Ports, "ports"), mirrored], left_out(&object, Field::Subsets, "subsets")),
        ] {
            let found = behind(&service, &slices, Some(&endpoints), &taken(json!(81)));
            let addresses: Vec<_> = found.iter().map(|behind| behind.address.to_string()).collect();
            assert_eq!(addresses, ["10.9.9.8", "10.9.9.9"]);
            assert!(found.iter().all(|behind| behind.port == PodPort::Number(81)), "{found:?}");
        }
    }

    #[test]
    fn a_pods_ports_are_those_of_all_that_runs_in_it() {
        let port = |name: &str, number: u16| json!({"name": name, "containerPort": number});
        let mut dns = port("dns", 53);
        dns["protocol"] = json!("UDP");
        let pod = json!({"spec": {
            "containers": [{"ports": [port("web", 80), dns]}, {"ports": [port("web", 81)]}],
            "initContainers": [{"ports": [port("once", 1)]}, {"restartPolicy": "Always", "ports": [port("mesh", 2)]}]
        }});
        assert_eq!(named_ports(&pod), BTreeMap::from([("web".to_owned(), 80), ("mesh".to_owned(), 2)]));
    }
}
