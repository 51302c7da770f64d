//! The objects of the little world, and what changes in it.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::{Value, json};
use tokio::sync::broadcast;

/// The namespace that the demo's kubeconfig names.
pub const NAMESPACE: &str = "shop";

/// A kind as a path names it, with its namespace and name; cluster-scoped ones have an empty namespace.
pub type Id = (&'static str, String, String);

/// Every object, and the news of changes for those who watch.
pub struct World {
    objects: Mutex<BTreeMap<Id, Value>>,
    version: AtomicU64,
    news: broadcast::Sender<(&'static str, &'static str, Value)>,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// Returns the world at its beginning.
    pub fn new() -> Self {
        let world = Self { objects: Mutex::default(), version: AtomicU64::new(1), news: broadcast::channel(1024).0 };
        for namespace in ["default", NAMESPACE, "data"] {
            world.put("namespaces", "", json!({"metadata": {"name": namespace}, "status": {"phase": "Active"}}));
        }
        // One port; two pods; what it is told by the port's name and a named targetPort.
        world.service(
            "shop",
            "web",
            json!({"app": "web"}),
            json!([{"name": "http", "port": 80, "targetPort": "http"}]),
        );
        world.endpoints("shop", "web", &["web-6d5f-a1", "web-6d5f-b2"], json!([{"name": "http", "port": 8080}]));
        for pod in ["web-6d5f-a1", "web-6d5f-b2"] {
            world.pod("shop", pod, "web", json!([{"name": "http", "containerPort": 8080}]), true);
        }
        // Several ports: HTTP, h2c by appProtocol, TLS of its own, and echoes.
        let ports = json!([
            {"name": "web", "port": 80, "targetPort": 8080},
            {"name": "h2c", "port": 81, "targetPort": 8081, "appProtocol": "kubernetes.io/h2c"},
            {"name": "https", "port": 443, "targetPort": 8443, "appProtocol": "https"},
            {"name": "echo", "port": 7000, "targetPort": 7000},
            {"name": "greeting", "port": 7001, "targetPort": 7001}
        ]);
        world.service("shop", "tools", json!({"app": "tools"}), ports);
        world.endpoints(
            "shop",
            "tools",
            &["tools-0"],
            json!([
                {"name": "web", "port": 8080}, {"name": "h2c", "port": 8081}, {"name": "https", "port": 8443},
                {"name": "echo", "port": 7000}, {"name": "greeting", "port": 7001}
            ]),
        );
        world.pod("shop", "tools-0", "tools", json!([{"containerPort": 8080}, {"containerPort": 8081}, {"containerPort": 8443}, {"containerPort": 7000}, {"containerPort": 7001}]), true);
        // Several ports of which none is obvious.
        world.service("shop", "queue", json!({"app": "tools"}), json!([{"name": "amqp", "port": 5672, "targetPort": 7000}, {"name": "mqtt", "port": 1883, "targetPort": 7001}]));
        world.endpoints(
            "shop",
            "queue",
            &["tools-0"],
            json!([{"name": "amqp", "port": 7000}, {"name": "mqtt", "port": 7001}]),
        );
        // Headless, with pods that have names of their own.
        let mut postgres = service(
            "data",
            "postgres",
            json!({"app": "postgres"}),
            json!([{"name": "postgres", "port": 5432, "targetPort": 5432}]),
        );
        postgres["spec"]["clusterIP"] = json!("None");
        world.put("services", "data", postgres);
        world.endpoints("data", "postgres", &["postgres-0", "postgres-1"], json!([{"name": "postgres", "port": 5432}]));
        for pod in ["postgres-0", "postgres-1"] {
            world.pod("data", pod, "postgres", json!([{"name": "postgres", "containerPort": 5432}]), true);
        }
        // What cannot be reached, each for its own reason.
        world.put("services", "shop", json!({"metadata": {"name": "legacy"}, "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80, "protocol": "TCP"}]}}));
        world.put("services", "shop", json!({"metadata": {"name": "payments"}, "spec": {"type": "ExternalName", "externalName": "api.example.com"}}));
        world.service("shop", "dns", json!({"app": "tools"}), json!([{"name": "dns", "port": 53, "protocol": "UDP"}]));
        world.service(
            "shop",
            "broken",
            json!({"app": "broken"}),
            json!([{"name": "http", "port": 80, "targetPort": 8080}]),
        );
        world.pod("shop", "broken-7c4", "broken", json!([{"containerPort": 8080}]), false);
        world
    }

    fn service(&self, namespace: &str, name: &str, selector: Value, ports: Value) {
        self.put("services", namespace, service(namespace, name, selector, ports));
    }

    fn endpoints(&self, namespace: &str, service: &str, pods: &[&str], ports: Value) {
        let endpoint = |pod: &&str| json!({"addresses": ["10.1.0.1"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": pod, "namespace": namespace, "uid": format!("uid-{pod}")}});
        let endpoints: Vec<Value> = pods.iter().map(endpoint).collect();
        self.put(
            "endpointslices",
            namespace,
            json!({
                "metadata": {"name": format!("{service}-x1"), "labels": {"kubernetes.io/service-name": service}},
                "addressType": "IPv4", "ports": ports, "endpoints": endpoints
            }),
        );
    }

    fn pod(&self, namespace: &str, name: &str, app: &str, ports: Value, is_ready: bool) {
        let state = if is_ready {
            json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})
        } else {
            json!({"waiting": {"reason": "CrashLoopBackOff"}})
        };
        self.put("pods", namespace, json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "labels": {"app": app}, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "demo", "containers": [{"name": app, "image": format!("demo/{app}"), "ports": ports}]},
            "status": {
                "phase": "Running", "podIP": "10.1.0.1",
                "conditions": [{"type": "Ready", "status": if is_ready { "True" } else { "False" }}],
                "containerStatuses": [{"name": app, "image": "", "imageID": "", "ready": is_ready, "restartCount": if is_ready { 0 } else { 17 }, "state": state}]
            }
        }));
    }

    /// Adds or replaces an object, and tells those who watch.
    pub fn put(&self, kind: &'static str, namespace: &str, mut object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        object["metadata"]["resourceVersion"] = json!(self.next_version().to_string());
        if !namespace.is_empty() {
            object["metadata"]["namespace"] = json!(namespace);
        }
        let (singular, api) = type_of(kind);
        (object["kind"], object["apiVersion"]) = (json!(singular), json!(api));
        let before = self.lock().insert((kind, namespace.to_owned(), name), object.clone());
        // Nobody may be watching.
        let _ = self.news.send((kind, if before.is_some() { "MODIFIED" } else { "ADDED" }, object));
    }

    pub fn get(&self, kind: &'static str, namespace: &str, name: &str) -> Option<Value> {
        self.lock().get(&(kind, namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Returns the objects of a kind, of one namespace or of all.
    pub fn list(&self, kind: &'static str, namespace: Option<&str>) -> Vec<Value> {
        let objects = self.lock();
        objects
            .iter()
            .filter(|((of, within, _), _)| *of == kind && namespace.is_none_or(|namespace| namespace == within))
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Deletes a pod: it leaves its EndpointSlices, its connections end, and where `replace` is given, a pod of that name
    /// takes its place. Returns whether there was one.
    pub fn delete_pod(&self, namespace: &str, name: &str, replace: Option<&str>) -> bool {
        let Some(old) = self.lock().remove(&("pods", namespace.to_owned(), name.to_owned())) else { return false };
        let _ = self.news.send(("pods", "DELETED", old.clone()));
        for mut slice in self.list("endpointslices", Some(namespace)) {
            let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
            let changed: Vec<Value> = endpoints
                .iter()
                .filter_map(|endpoint| match endpoint["targetRef"]["name"] == name {
                    false => Some(endpoint.clone()),
                    true => replace.map(|new| {
                        let mut endpoint = endpoint.clone();
                        (endpoint["targetRef"]["name"], endpoint["targetRef"]["uid"]) =
                            (json!(new), json!(format!("uid-{new}")));
                        endpoint
                    }),
                })
                .collect();
            if changed != endpoints {
                slice["endpoints"] = json!(changed);
                self.put("endpointslices", namespace, slice);
            }
        }
        if let Some(new) = replace {
            let mut pod = old;
            (pod["metadata"]["name"], pod["metadata"]["uid"]) = (json!(new), json!(format!("uid-{new}")));
            self.put("pods", namespace, pod);
        }
        true
    }

    /// Returns what changes from now on: kind, type of event, object.
    pub fn watch(&self) -> broadcast::Receiver<(&'static str, &'static str, Value)> {
        self.news.subscribe()
    }

    pub fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    fn next_version(&self) -> u64 {
        self.version.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Id, Value>> {
        self.objects.lock().expect("no panic while the lock is held")
    }
}

fn service(namespace: &str, name: &str, selector: Value, ports: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": namespace}, "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.1", "selector": selector, "ports": ports}})
}

/// Returns kind and apiVersion of what a path calls `plural`.
pub fn type_of(plural: &str) -> (&'static str, &'static str) {
    match plural {
        "namespaces" => ("Namespace", "v1"),
        "services" => ("Service", "v1"),
        "pods" => ("Pod", "v1"),
        _ => ("EndpointSlice", "discovery.k8s.io/v1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deleted_pod_leaves_its_service_and_another_takes_its_place() {
        let world = World::new();
        let mut news = world.watch();
        assert!(world.delete_pod("shop", "web-6d5f-a1", Some("web-6d5f-c3")));
        assert!(!world.delete_pod("shop", "web-6d5f-a1", None));
        let slice = world.get("endpointslices", "shop", "web-x1").unwrap();
        assert_eq!(slice["endpoints"][0]["targetRef"]["name"], "web-6d5f-c3");
        assert_eq!(news.try_recv().unwrap().1, "DELETED");
        assert!(world.get("pods", "shop", "web-6d5f-c3").is_some());
    }
}
