use serde_json::{Value, json};

use super::*;

/// Pods with their ports, and addresses.
type Found = (&'static [&'static str], &'static [(&'static str, u16)]);
type Case = (&'static str, Vec<EndpointSlice>, PodPort, Found);

fn slice(value: Value) -> EndpointSlice {
    serde_json::from_value(value).unwrap()
}

fn pod(value: Value) -> Pod {
    serde_json::from_value(value).unwrap()
}

/// A running pod with an address and a declared port.
fn running(name: &str, address: &str, port: u16, is_ready: bool) -> Pod {
    let ready = if is_ready { "True" } else { "False" };
    pod(json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": "web", "tier": "front"}},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}, {"ip": format!("fd00::{port:x}")}],
            "conditions": [{"type": "Ready", "status": ready}], "containerStatuses": [{"state": {"running": {}}}]
        }
    }))
}

fn named_port(name: Option<&str>) -> PodPort {
    PodPort::OfService { name: name.map(str::to_owned), target: IntOrString::Int(1) }
}

fn shown(pods: &[ReadyPod]) -> Vec<String> {
    pods.iter().map(|pod| format!("{}:{}", pod.name, pod.container_port)).collect()
}

fn addresses(all: &[(&str, u16)]) -> BTreeSet<(IpAddr, u16)> {
    all.iter().map(|(address, port)| (address.parse().unwrap(), *port)).collect()
}

#[test]
fn slices_decide_which_pods_and_which_of_their_ports() {
    let target = |name: &str| json!({"kind": "Pod", "name": name, "uid": "u"});
    let ends = |conditions: Value, target: Value| json!({"addresses": ["10.0.0.1"], "conditions": conditions, "targetRef": target});
    let http = json!([{"name": "http", "port": 8080}, {"name": "metrics", "port": 9090}]);
    let of =
        |ports: &Value, endpoints: Value| slice(json!({"addressType": "IPv4", "ports": ports, "endpoints": endpoints}));
    let nothing: Found = (&[], &[]);
    let cases: [Case; 18] = [
        (
            "ready",
            vec![of(&http, json!([ends(json!({"ready": true}), target("a"))]))],
            named_port(Some("http")),
            (&["a:8080"], &[]),
        ),
        (
            "not ready",
            vec![of(&http, json!([ends(json!({"ready": false}), target("a"))]))],
            named_port(Some("http")),
            nothing,
        ),
        (
            "unknown readiness is ready",
            vec![of(&http, json!([ends(json!({}), target("a"))]))],
            named_port(Some("http")),
            (&["a:8080"], &[]),
        ),
        (
            "terminating",
            vec![of(&http, json!([ends(json!({"ready": true, "serving": false, "terminating": true}), target("a"))]))],
            named_port(Some("http")),
            nothing,
        ),
        (
            "terminating, and none is ready",
            vec![of(&http, json!([ends(json!({"ready": false, "serving": true, "terminating": true}), target("a"))]))],
            named_port(Some("http")),
            (&["a:8080"], &[]),
        ),
        (
            "terminating, and another one is ready",
            vec![
                of(&http, json!([ends(json!({"ready": false, "serving": true, "terminating": true}), target("a"))])),
                of(&http, json!([ends(json!({"ready": true}), target("b"))])),
            ],
            named_port(Some("http")),
            (&["b:8080"], &[]),
        ),
        (
            "terminating, and the one that is ready has not the port",
            vec![
                of(&http, json!([ends(json!({"ready": false, "serving": true, "terminating": true}), target("a"))])),
                of(&json!([{"name": "grpc", "port": 1}]), json!([ends(json!({"ready": true}), target("b"))])),
            ],
            named_port(Some("http")),
            (&["a:8080"], &[]),
        ),
        (
            "another port",
            vec![of(&http, json!([ends(json!({}), target("a"))]))],
            named_port(Some("metrics")),
            (&["a:9090"], &[]),
        ),
        (
            "a port that it has not",
            vec![of(&http, json!([ends(json!({}), target("a"))]))],
            named_port(Some("grpc")),
            nothing,
        ),
        (
            "each slice has a number of its own",
            vec![
                of(&http, json!([ends(json!({}), target("a"))])),
                of(&json!([{"name": "http", "port": 8081}]), json!([ends(json!({}), target("b"))])),
            ],
            named_port(Some("http")),
            (&["a:8080", "b:8081"], &[]),
        ),
        (
            "unnamed is the empty name",
            vec![of(&json!([{"name": "", "port": 80}]), json!([ends(json!({}), target("a"))]))],
            named_port(None),
            (&["a:80"], &[]),
        ),
        (
            "no name is the empty name",
            vec![of(&json!([{"port": 80}]), json!([ends(json!({}), target("a"))]))],
            named_port(None),
            (&["a:80"], &[]),
        ),
        (
            "the pods' own port needs none in the slice",
            vec![of(&Value::Null, json!([ends(json!({}), target("a"))]))],
            PodPort::Number(5432),
            (&["a:5432"], &[]),
        ),
        (
            "an exec needs none at all",
            vec![of(&json!([]), json!([ends(json!({}), target("a"))]))],
            PodPort::Any,
            (&["a:0"], &[]),
        ),
        (
            "an address alone",
            vec![of(&http, json!([ends(json!({}), Value::Null)]))],
            named_port(Some("http")),
            (&[], &[("10.0.0.1", 8080)]),
        ),
        (
            "a node is no pod",
            vec![of(&http, json!([ends(json!({}), json!({"kind": "Node", "name": "n"}))]))],
            named_port(Some("http")),
            (&[], &[("10.0.0.1", 8080)]),
        ),
        (
            "a pod of another namespace is none of this one",
            vec![of(&http, json!([ends(json!({}), json!({"kind": "Pod", "name": "a", "namespace": "other"}))]))],
            named_port(Some("http")),
            (&[], &[("10.0.0.1", 8080)]),
        ),
        ("no endpoints", vec![of(&http, Value::Null)], named_port(Some("http")), nothing),
    ];
    for (what, slices, port, (wanted, others)) in cases {
        let found = in_slices(&slices, &port, "shop");
        assert_eq!(shown(&found.pods), wanted, "{what}");
        assert_eq!(found.addresses, addresses(others), "{what}");
    }
}

#[test]
fn a_pod_of_two_address_families_counts_once() {
    let twice = vec![ReadyPod { name: "a".parse().unwrap(), uid: "u".into(), container_port: 80 }; 2];
    assert_eq!(Reachable::ready(twice).pods.len(), 1);
}

#[test]
fn a_search_for_addresses_ends_when_no_other_pod_can_be_preferred() {
    let mut on_node = running("0-agent", "10.0.0.9", 9100, true);
    on_node.spec.as_mut().unwrap().host_network = Some(true);
    let (api, own) = (running("api", "10.0.0.9", 6443, true), running("own", "10.0.0.1", 80, true));
    let at = |all: &[(&str, u16)], candidates: &[&Pod]| {
        are_certain(&addresses(all), &candidates.iter().map(|pod| (*pod).clone()).collect::<Vec<_>>())
    };
    assert!(!at(&[("10.0.0.9", 6443)], &[&on_node]), "a pod of a later page may declare the port");
    assert!(at(&[("10.0.0.9", 9100)], &[&on_node]) && at(&[("10.0.0.9", 6443)], &[&on_node, &api]));
    assert!(at(&[("10.0.0.1", 1)], &[&own]) && !at(&[("10.0.0.1", 80), ("10.0.0.2", 80)], &[&own, &own]));
    assert!(is_at_any(&addresses(&[("10.0.0.1", 80)]), &own) && !is_at_any(&addresses(&[("10.0.0.2", 80)]), &own));
}

#[test]
fn what_runs_at_an_address_is_found() {
    let ended = pod(json!({"metadata": {"name": "0-job"}, "status": {"phase": "Succeeded", "podIP": "10.0.0.1"}}));
    let all = [
        ended,
        running("a", "10.0.0.1", 8080, true),
        running("b", "10.0.0.2", 9090, false),
        running("host-1", "192.0.2.1", 9100, true),
        running("host-2", "192.0.2.1", 10250, true),
    ];
    for (wanted, found) in [
        (&[("10.0.0.1", 8080)][..], &["a:8080"][..]),
        (&[("10.0.0.1", 1)], &["a:1"]),
        (&[("10.0.0.2", 9090)], &["b:9090"]),
        (&[("fd00::1f90", 8080)], &["a:8080"]),
        (&[("FD00:0:0:0:0:0:0:1F90", 8080)], &["a:8080"]),
        (&[("192.0.2.1", 10250)], &["host-2:10250"]),
        (&[("192.0.2.1", 22)], &["host-1:22"]),
        (&[("10.0.0.1", 8080), ("10.0.0.2", 9090), ("192.0.2.7", 80)], &["a:8080", "b:9090"]),
        (&[("192.0.2.7", 80)], &[]),
    ] {
        let addresses = wanted.iter().map(|(address, port)| (address.to_lowercase().parse().unwrap(), *port)).collect();
        assert_eq!(shown(&at_addresses(&addresses, &all)), found, "{wanted:?}");
    }
}

#[test]
fn without_slices_the_selected_pods_have_the_port_that_target_port_says() {
    let all = [
        running("a", "10.0.0.1", 8080, true),
        running("b", "10.0.0.2", 8081, true),
        running("c", "10.0.0.3", 8080, false),
    ];
    let port = |target| PodPort::OfService { name: Some("x".into()), target };
    let number = port(IntOrString::Int(9000));
    let name = port(IntOrString::String("http".into()));
    assert_eq!(shown(&selected(&all, &number, false)), ["a:9000", "b:9000"]);
    assert_eq!(shown(&selected(&all, &name, false)), ["a:8080", "b:8081"]);
    assert_eq!(shown(&selected(&all, &port(IntOrString::String("grpc".into())), false)), [""; 0]);
    assert_eq!(shown(&selected(&all, &port(IntOrString::String("9000".into())), false)), ["a:9000", "b:9000"]);
    assert_eq!(shown(&selected(&all, &number, true)), ["a:9000", "b:9000", "c:9000"], "publishNotReadyAddresses");
}

#[test]
fn a_named_pod_is_reached_when_it_runs_and_says_that_it_is_not_ready() {
    let ready = named(&running("a", "10.0.0.1", 8080, true), 9187);
    assert_eq!((shown(&ready.pods), ready.not_ready), (vec!["a:9187".to_owned()], None));
    let not_ready = named(&running("a", "10.0.0.1", 8080, false), 9187);
    assert_eq!(shown(&not_ready.pods), ["a:9187"]);
    assert_eq!(not_ready.not_ready.as_deref(), Some("running, not ready"));
    let pending = pod(json!({"metadata": {"name": "a"}, "status": {"phase": "Pending"}}));
    assert_eq!(named(&pending, 1), Reachable::default());
}

#[test]
fn a_selector_takes_pods_with_all_of_its_labels() {
    let pod = running("a", "10.0.0.1", 1, true);
    let selector =
        |terms: &[(&str, &str)]| terms.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    for (terms, wanted) in [
        (&[("app", "web")][..], true),
        (&[("app", "web"), ("tier", "front")], true),
        (&[("app", "web"), ("tier", "back")], false),
        (&[("owner", "me")], false),
        (&[], false),
    ] {
        assert_eq!(selects(&selector(terms), &pod), wanted, "{terms:?}");
    }
}

#[test]
fn an_endpoints_object_says_what_slices_say() {
    let endpoints: Endpoints = serde_json::from_value(json!({"subsets": [{
        "addresses": [{"ip": "10.0.0.1", "targetRef": {"kind": "Pod", "name": "pg-0", "uid": "u"}}],
        "notReadyAddresses": [{"ip": "10.0.0.2", "targetRef": {"kind": "Pod", "name": "pg-1", "uid": "v"}}],
        "ports": [{"name": "postgresql", "port": 5432, "protocol": "TCP"}]
    }]}))
    .unwrap();
    let slices = as_slices(endpoints);
    assert_eq!(shown(&in_slices(&slices, &named_port(Some("postgresql")), "data").pods), ["pg-0:5432"]);
    assert!(as_slices(Endpoints::default()).is_empty());
}
