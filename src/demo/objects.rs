//! The initial objects of the demo: Services of every relevant kind, and their pods.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{
    controllers::{self, NODE},
    world::{State, World},
};

/// Namespace of the demo's kubeconfig.
pub const NAMESPACE: &str = "shop";

/// Adds the initial objects.
pub fn create(world: &World) {
    world.change(|state| {
        for namespace in ["default", NAMESPACE, "data"] {
            let labels = json!({"kubernetes.io/metadata.name": namespace});
            state.put(
                "namespaces",
                json!({"metadata": {"name": namespace, "labels": labels}, "status": {"phase": "Active"}}),
            );
        }
        state.put("nodes", node());
        web(state);
        tools(state);
        postgres(state);
        unreachable(state);
        controllers::settle(state);
    });
}

fn node() -> Value {
    json!({
        "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}},
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": NODE}],
            "nodeInfo": {"kubeletVersion": super::VERSION, "osImage": "adit demo", "kernelVersion": "none", "containerRuntimeVersion": "adit://demo"}
        }
    })
}

/// Adds a Service with one port, which has a named targetPort, and two pods.
fn web(state: &mut State) {
    let ports = json!([{"name": "http", "containerPort": 8080, "protocol": "TCP"}]);
    state.put("deployments", workload("shop", "web", 2, &ports));
    let owner = controllers::replica_set(state, "shop", "web", "web-6d5f");
    for name in ["web-6d5f-a1", "web-6d5f-b2"] {
        controllers::add_running_pod(state, &owner, name);
    }
    service(state, "shop", "web", "web", json!([{"name": "http", "port": 80, "targetPort": "http"}]));
}

/// Adds a Service with one port per protocol, and a second one for the same pod without an obvious port.
fn tools(state: &mut State) {
    let port = |name: &str, number: u16| json!({"name": name, "containerPort": number, "protocol": "TCP"});
    let ports = [port("web", 8080), port("h2c", 8081), port("https", 8443), port("echo", 7000), port("greeting", 7001)];
    let set = workload("shop", "tools", 1, &json!(ports));
    stateful_set(state, set);
    let ports = json!([
        {"name": "web", "port": 80, "targetPort": 8080},
        {"name": "h2c", "port": 81, "targetPort": "h2c", "appProtocol": "kubernetes.io/h2c"},
        {"name": "https", "port": 443, "targetPort": "https", "appProtocol": "https"},
        {"name": "echo", "port": 7000, "targetPort": 7000},
        {"name": "greeting", "port": 7001, "targetPort": 7001}
    ]);
    service(state, "shop", "tools", "tools", ports);
    let ports =
        json!([{"name": "amqp", "port": 5672, "targetPort": 7000}, {"name": "mqtt", "port": 1883, "targetPort": 7001}]);
    service(state, "shop", "queue", "tools", ports);
}

/// Adds a headless Service, whose pods have stable names.
fn postgres(state: &mut State) {
    let set = workload("data", "postgres", 2, &json!([{"name": "postgres", "containerPort": 5432, "protocol": "TCP"}]));
    stateful_set(state, set);
    service(state, "data", "postgres", "postgres", json!([{"name": "postgres", "port": 5432, "targetPort": 5432}]));
    let mut headless = (*state.get("services", "data", "postgres").expect("it was just put")).clone();
    (headless["spec"]["clusterIP"], headless["spec"]["clusterIPs"]) = (json!("None"), json!(["None"]));
    state.put("services", headless);
    let data = json!({"user": BASE64_STANDARD.encode("demo"), "password": BASE64_STANDARD.encode("open sesame")});
    state
        .put("secrets", json!({"metadata": {"namespace": "data", "name": "postgres"}, "type": "Opaque", "data": data}));
}

/// Adds Services that a port-forward cannot reach, each for a different reason.
fn unreachable(state: &mut State) {
    // No pod is ready.
    let pod = json!({
        "metadata": {"namespace": "shop", "name": "broken-7c4", "labels": {"app": "broken"}},
        "spec": {"nodeName": NODE, "containers": [{"name": "broken", "image": "demo/broken", "ports": [{"containerPort": 8080, "protocol": "TCP"}]}]},
        "status": {
            "phase": "Running", "podIP": "10.244.9.9", "startTime": super::world::now(),
            "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
            "containerStatuses": [{
                "name": "broken", "image": "demo/broken", "imageID": "", "ready": false, "started": false, "restartCount": 17,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container"}},
                "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}
            }]
        }
    });
    state.put("pods", pod);
    service(state, "shop", "broken", "broken", json!([{"name": "http", "port": 80, "targetPort": 8080}]));
    // It has only a UDP port.
    service(state, "shop", "dns", "tools", json!([{"name": "dns", "port": 53, "targetPort": 53, "protocol": "UDP"}]));
    // Without selectors: one has no endpoints, and the other has endpoints that are not pods.
    for name in ["legacy", "mainframe"] {
        let spec = json!({"type": "ClusterIP", "clusterIP": address(name), "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}]});
        state.put("services", json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec}));
    }
    state.put(
        "endpointslices",
        json!({
            "metadata": {"namespace": "shop", "name": "mainframe-1", "labels": {"kubernetes.io/service-name": "mainframe"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["192.0.2.7"], "conditions": {"ready": true, "serving": true, "terminating": false}}]
        }),
    );
    // It is an alias of an external name.
    let spec = json!({"type": "ExternalName", "externalName": "api.example.com", "sessionAffinity": "None"});
    state.put("services", json!({"metadata": {"namespace": "shop", "name": "payments"}, "spec": spec}));
}

fn service(state: &mut State, namespace: &str, name: &str, app: &str, mut ports: Value) {
    for port in ports.as_array_mut().into_iter().flatten() {
        if port["protocol"].is_null() {
            port["protocol"] = json!("TCP");
        }
    }
    let address = address(name);
    let spec = json!({
        "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "selector": {"app": app}, "ports": ports,
        "sessionAffinity": "None", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster"
    });
    state.put(
        "services",
        json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec, "status": {"loadBalancer": {}}}),
    );
}

/// Fills in the defaults that the API server sets for a new Service.
pub(super) fn default_service(service: &mut Value) {
    let address = address(service["metadata"]["name"].as_str().unwrap_or_default());
    let spec = &mut service["spec"];
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        let number = port["port"].clone();
        for (field, default) in [("protocol", json!("TCP")), ("targetPort", number)] {
            if port[field].is_null() {
                port[field] = default;
            }
        }
    }
    for (field, default) in [
        ("type", json!("ClusterIP")),
        ("clusterIP", json!(address)),
        ("clusterIPs", json!([address])),
        ("sessionAffinity", json!("None")),
        ("ipFamilies", json!(["IPv4"])),
        ("ipFamilyPolicy", json!("SingleStack")),
        ("internalTrafficPolicy", json!("Cluster")),
    ] {
        if spec[field].is_null() {
            spec[field] = default;
        }
    }
    service["status"] = json!({"loadBalancer": {}});
}

/// Returns an address like a ClusterIP; no server in the demo listens on it.
fn address(name: &str) -> String {
    let sum = name.bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    format!("10.96.{}.{}", sum >> 8 & 0xff, sum & 0xff)
}

/// Returns the common part of a Deployment and a StatefulSet.
fn workload(namespace: &str, name: &str, replicas: u32, ports: &Value) -> Value {
    let labels = json!({"app": name});
    let container = json!({"name": name, "image": format!("demo/{name}"), "ports": ports, "resources": {}});
    let template =
        json!({"metadata": {"labels": labels}, "spec": {"containers": [container], "restartPolicy": "Always"}});
    json!({
        "metadata": {"namespace": namespace, "name": name, "labels": labels, "generation": 1},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    })
}

fn stateful_set(state: &mut State, mut set: Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text(&set["metadata"]["namespace"]), text(&set["metadata"]["name"]));
    let replicas = set["spec"]["replicas"].as_u64().unwrap_or_default();
    set["spec"]["serviceName"] = json!(name);
    state.put("statefulsets", set);
    let owner = state.get("statefulsets", &namespace, &name).expect("it was just put");
    for ordinal in 0..replicas {
        controllers::add_running_pod(state, &owner, &format!("{name}-{ordinal}"));
    }
}
