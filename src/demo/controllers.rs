//! Controllers of the demo cluster: they start and stop pods, replace pods of workloads, and update EndpointSlices.
//!
//! Everything is derived from the current state, so the order of events does not matter.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::time::sleep_until;

use super::{
    kinds,
    process::{Process, Sandbox},
    selector::Selector,
    world::{State, World, now},
};

/// Name of the only node.
pub const NODE: &str = "demo";

/// Time from a pod's creation until it is ready: the image is present, and the program starts at once.
const STARTING: Duration = Duration::from_millis(300);

/// Time from SIGTERM to the end: the demo's programs have nothing to finish.
const STOPPING: Duration = Duration::from_millis(200);

/// Time from a container's end to its next start, in which connections are refused (measured: 0.5 to 1 s).
const RESTARTING: Duration = Duration::from_millis(700);

/// Kinds of workloads whose controllers create pods.
const OWNERS: [&str; 2] = ["replicasets", "statefulsets"];

/// Name of the controller that writes the EndpointSlices of Services with a selector.
const CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// Runs the controllers until the future is dropped.
pub async fn run(world: &World) {
    let mut versions = world.versions();
    loop {
        versions.mark_unchanged();
        let next = world.change(settle);
        let wait = async {
            match next {
                Some(next) => sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = versions.changed() => if changed.is_err() { return },
            () = wait => {}
        }
    }
}

impl World {
    /// Deletes a pod as `kubectl delete` does: it terminates, disappears, and is replaced. Returns the pod before the change.
    ///
    /// With a grace of zero it disappears at once.
    pub fn terminate_pod(&self, namespace: &str, name: &str, grace: Option<Duration>) -> Option<Arc<Value>> {
        let found = self.change(|state| {
            let pod = state.get("pods", namespace, name)?;
            if grace == Some(Duration::ZERO) {
                remove_pod(state, &pod);
            } else if pod["metadata"]["deletionTimestamp"].is_null() {
                let mut changed = (*pod).clone();
                let grace = grace.unwrap_or(Duration::from_secs(30));
                changed["metadata"]["deletionTimestamp"] = json!(now());
                changed["metadata"]["deletionGracePeriodSeconds"] = json!(grace.as_secs());
                state.put("pods", changed);
                state.due.insert(text(&pod["metadata"]["uid"]).to_owned(), Instant::now() + STOPPING.min(grace));
            }
            Some(state.get("pods", namespace, name).unwrap_or(pod))
        });
        self.change(settle);
        found
    }

    /// Removes a pod at once, as if its node had crashed. With `replace`, a pod with that name runs in its place on return.
    /// Returns whether the pod existed.
    pub fn delete_pod(&self, namespace: &str, name: &str, replace: Option<&str>) -> bool {
        self.change(|state| {
            let Some(old) = state.get("pods", namespace, name) else { return false };
            remove_pod(state, &old);
            if let Some(new) = replace {
                let mut pod = json!({"metadata": old["metadata"], "spec": old["spec"]});
                for of_the_old in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
                    if let Some(metadata) = pod["metadata"].as_object_mut() {
                        metadata.remove(of_the_old);
                    }
                }
                pod["metadata"]["name"] = json!(new);
                state.put("pods", pod);
                start_pod(state, namespace, new);
            }
            settle(state);
            true
        })
    }

    /// Kills the container of a pod; the node restarts it in place. Returns whether a container was running.
    pub fn restart_container(&self, namespace: &str, name: &str) -> bool {
        self.change(|state| {
            let Some(pod) = state.get("pods", namespace, name) else { return false };
            let uid = text(&pod["metadata"]["uid"]).to_owned();
            let Some(process) = state.processes.remove(&uid) else { return false };
            process.tasks.end();
            let mut pod = (*pod).clone();
            set_ready(&mut pod, false);
            let status = &mut pod["status"]["containerStatuses"][0];
            let ended = json!({"terminated": {"exitCode": 137, "reason": "Error", "finishedAt": now()}});
            (status["state"], status["lastState"]) = (ended.clone(), ended);
            status["restartCount"] = json!(status["restartCount"].as_u64().unwrap_or_default() + 1);
            state.put("pods", pod);
            state.due.insert(uid, Instant::now() + RESTARTING);
            settle(state);
            true
        })
    }

    /// Sets the number of replicas of a workload. Returns the workload, if it exists.
    pub fn scale(&self, plural: &'static str, namespace: &str, name: &str, replicas: u64) -> Option<Arc<Value>> {
        let found = self.change(|state| {
            let mut workload = (*state.get(plural, namespace, name)?).clone();
            workload["spec"]["replicas"] = json!(replicas);
            workload["metadata"]["generation"] = json!(workload["metadata"]["generation"].as_u64().unwrap_or(1) + 1);
            state.put(plural, workload);
            state.get(plural, namespace, name)
        });
        self.change(settle);
        found
    }
}

/// Updates the state to follow from what is due now. Returns the next time to do so.
pub(super) fn settle(state: &mut State) -> Option<Instant> {
    let now = Instant::now();
    for pod in state.list("pods", None) {
        let uid = text(&pod["metadata"]["uid"]);
        if state.due.get(uid).is_some_and(|due| *due <= now) {
            state.due.remove(uid);
            match pod["metadata"]["deletionTimestamp"].is_null() {
                true => start_pod(state, text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"])),
                false => remove_pod(state, &pod),
            }
        }
    }
    for deployment in state.list("deployments", None) {
        hand_down(state, &deployment);
    }
    for plural in OWNERS {
        for owner in state.list(plural, None) {
            keep_replicas(state, &owner, now);
            tell_status(state, plural, &owner);
        }
    }
    for deployment in state.list("deployments", None) {
        tell_status(state, "deployments", &deployment);
    }
    for service in state.list("services", None) {
        if service["spec"]["selector"].is_object() {
            let slice = endpoint_slice(state, &service);
            state.put("endpointslices", slice);
        }
    }
    collect_garbage(state);
    state.due.values().min().copied()
}

/// Kinds whose objects are deleted with their last owner.
const OWNED: [&str; 3] = ["services", "endpointslices", "leases"];

fn collect_garbage(state: &mut State) {
    for plural in OWNED {
        for object in state.list(plural, None) {
            let namespace = text(&object["metadata"]["namespace"]);
            let owners = object["metadata"]["ownerReferences"].as_array().map_or(&[][..], Vec::as_slice);
            let is_there = |owner: &Value| {
                let kind = kinds::ALL.iter().find(|kind| owner["kind"] == kind.name);
                let found = kind.and_then(|kind| state.get(kind.plural, namespace, text(&owner["name"])));
                found.is_some_and(|found| found["metadata"]["uid"] == owner["uid"])
            };
            if !owners.is_empty() && !owners.iter().any(is_there) {
                state.remove(plural, namespace, text(&object["metadata"]["name"]));
            }
        }
    }
}

/// Creates the ReplicaSet of a Deployment, and returns it.
pub(super) fn replica_set(state: &mut State, namespace: &str, deployment: &str, name: &str) -> Arc<Value> {
    let owner = state.get("deployments", namespace, deployment).expect("its Deployment was put before it");
    let mut set = json!({"metadata": {"namespace": namespace, "name": name, "labels": owner["metadata"]["labels"]}, "spec": owner["spec"]});
    set["metadata"]["ownerReferences"] = json!([owner_reference(&owner)]);
    state.put("replicasets", set);
    state.get("replicasets", namespace, name).expect("it was just put")
}

/// Adds a ready pod to a workload.
pub(super) fn add_running_pod(state: &mut State, owner: &Value, name: &str) {
    state.put("pods", new_pod(owner, name));
    start_pod(state, text(&owner["metadata"]["namespace"]), name);
}

fn new_pod(owner: &Value, name: &str) -> Value {
    let (template, mut labels) = (&owner["spec"]["template"], owner["spec"]["template"]["metadata"]["labels"].clone());
    let mut spec = template["spec"].clone();
    spec["nodeName"] = json!(NODE);
    if owner["kind"] == "StatefulSet" {
        labels["statefulset.kubernetes.io/pod-name"] = json!(name);
        (spec["hostname"], spec["subdomain"]) = (json!(name), owner["spec"]["serviceName"].clone());
    }
    json!({
        "metadata": {"namespace": owner["metadata"]["namespace"], "name": name, "labels": labels, "ownerReferences": [owner_reference(owner)]},
        "spec": spec,
        "status": {"phase": "Pending", "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
            "containerStatuses": [{
                "name": spec_container(template)["name"], "image": spec_container(template)["image"], "imageID": "", "ready": false,
                "started": false, "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}, "lastState": {}
            }]}
    })
}

fn spec_container(template: &Value) -> &Value {
    &template["spec"]["containers"][0]
}

fn owner_reference(owner: &Value) -> Value {
    let metadata = &owner["metadata"];
    json!({"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": metadata["name"], "uid": metadata["uid"], "controller": true, "blockOwnerDeletion": true})
}

/// Starts the container of a pod, for the first time or again.
fn start_pod(state: &mut State, namespace: &str, name: &str) {
    let Some(pod) = state.get("pods", namespace, name) else { return };
    let mut pod = (*pod).clone();
    let container = &pod["spec"]["containers"][0];
    let ports = container["ports"].as_array().into_iter().flatten();
    let ports = ports
        .filter(|port| port["protocol"] != "UDP")
        .filter_map(|port| u16::try_from(port["containerPort"].as_u64()?).ok())
        .collect();
    let (container_name, image) = (container["name"].clone(), container["image"].clone());
    let uid = text(&pod["metadata"]["uid"]).to_owned();
    let sandbox = Sandbox { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.clone() };
    let process = Process::start(sandbox, ports, state.tasks.child());
    state.processes.insert(uid, process);
    let before = pod["status"]["containerStatuses"][0].clone();
    if pod["status"]["podIP"].is_null() {
        let address = state.new_address();
        pod["status"] = json!({"podIP": address, "podIPs": [{"ip": address}], "hostIP": "127.0.0.1", "startTime": now(), "qosClass": "BestEffort"});
    }
    pod["status"]["phase"] = json!("Running");
    pod["status"]["containerStatuses"] = json!([{
        "name": container_name, "image": image, "imageID": "", "started": true, "state": {"running": {"startedAt": now()}},
        "restartCount": before["restartCount"].as_u64().unwrap_or_default(), "lastState": if before["lastState"].is_object() { before["lastState"].clone() } else { json!({}) }
    }]);
    set_ready(&mut pod, true);
    state.put("pods", pod);
}

fn set_ready(pod: &mut Value, is_ready: bool) {
    let status = if is_ready { "True" } else { "False" };
    let condition = |kind: &str| json!({"type": kind, "status": status, "lastTransitionTime": now()});
    pod["status"]["conditions"] = json!([
        {"type": "PodScheduled", "status": "True"}, {"type": "Initialized", "status": "True"}, condition("Ready"), condition("ContainersReady")
    ]);
    pod["status"]["containerStatuses"][0]["ready"] = json!(is_ready);
}

fn remove_pod(state: &mut State, pod: &Value) {
    let uid = text(&pod["metadata"]["uid"]);
    state.due.remove(uid);
    if let Some(process) = state.processes.remove(uid) {
        process.tasks.end();
    }
    state.remove("pods", text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
}

/// Copies the number of replicas of a Deployment to its ReplicaSet.
fn hand_down(state: &mut State, deployment: &Value) {
    for set in owned(state, "replicasets", deployment) {
        let mut set = (*set).clone();
        set["spec"]["replicas"] = deployment["spec"]["replicas"].clone();
        state.put("replicasets", set);
    }
}

/// Creates missing pods, and ends surplus ones.
fn keep_replicas(state: &mut State, owner: &Value, now_is: Instant) {
    let (namespace, name) = (text(&owner["metadata"]["namespace"]), text(&owner["metadata"]["name"]));
    let wanted = owner["spec"]["replicas"].as_u64().unwrap_or_default();
    let pods = owned(state, "pods", owner);
    let missing: Vec<String> = if owner["kind"] == "StatefulSet" {
        // A new pod of a StatefulSet has the same name as the old one, so it waits until the old one is gone.
        (0..wanted).map(|n| format!("{name}-{n}")).filter(|pod| state.get("pods", namespace, pod).is_none()).collect()
    } else {
        let live = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).count() as u64;
        (live..wanted).map(|_| format!("{name}-{}", state.new_suffix())).collect()
    };
    for pod in missing {
        state.put("pods", new_pod(owner, &pod));
        let made = state.get("pods", namespace, &pod).expect("it was just put");
        state.due.insert(text(&made["metadata"]["uid"]).to_owned(), now_is + STARTING);
    }
    let mut live: Vec<_> = pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect();
    // A StatefulSet ends the highest ordinal first. Sort by length first, because web-10 comes after web-9.
    live.sort_by_key(|pod| (text(&pod["metadata"]["name"]).len(), text(&pod["metadata"]["name"]).to_owned()));
    for pod in live.into_iter().skip(wanted as usize) {
        let mut ending = (*pod).clone();
        ending["metadata"]["deletionTimestamp"] = json!(now());
        ending["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        state.put("pods", ending);
        state.due.insert(text(&pod["metadata"]["uid"]).to_owned(), now_is + STOPPING);
    }
}

fn tell_status(state: &mut State, plural: &'static str, owner: &Value) {
    let sets = if plural == "deployments" { owned(state, "replicasets", owner) } else { vec![Arc::new(owner.clone())] };
    let pods: Vec<_> = sets
        .iter()
        .flat_map(|set| owned(state, "pods", set))
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .collect();
    let (all, ready) = (pods.len(), pods.iter().filter(|pod| is_ready(pod)).count());
    let mut owner = (*state
        .get(plural, text(&owner["metadata"]["namespace"]), text(&owner["metadata"]["name"]))
        .expect("it was just listed"))
    .clone();
    owner["status"] = json!({"replicas": all, "readyReplicas": ready, "availableReplicas": ready, "observedGeneration": owner["metadata"]["generation"]});
    if plural != "replicasets" {
        owner["status"]["updatedReplicas"] = json!(all);
    }
    state.put(plural, owner);
}

fn owned(state: &State, plural: &'static str, owner: &Value) -> Vec<Arc<Value>> {
    let metadata = &owner["metadata"];
    let mut all = state.list(plural, metadata["namespace"].as_str());
    all.retain(|object| object["metadata"]["ownerReferences"][0]["uid"] == metadata["uid"]);
    all
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["containerStatuses"][0]["ready"] == true
}

fn endpoint_slice(state: &mut State, service: &Value) -> Value {
    let (namespace, name) = (text(&service["metadata"]["namespace"]), text(&service["metadata"]["name"]));
    let selector: Vec<String> = service["spec"]["selector"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", text(value)))
        .collect();
    let selector = Selector::parse(Some(&selector.join(",")), None).unwrap_or_default();
    let mut pods = state.list("pods", Some(namespace));
    pods.retain(|pod| selector.matches(pod) && !pod["status"]["podIP"].is_null());
    let ports: Vec<Value> = service["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|port| endpoint_port(port, &pods))
        .collect();
    let endpoints: Vec<Value> = pods.iter().map(|pod| endpoint(pod)).collect();
    // Other controllers' EndpointSlices are left alone.
    let of_service = format!("kubernetes.io/service-name={name},endpointslice.kubernetes.io/managed-by={CONTROLLER}");
    let of_service = Selector::parse(Some(&of_service), None).unwrap_or_default();
    let existing = state.list("endpointslices", Some(namespace)).into_iter().find(|slice| of_service.matches(slice));
    let slice = existing
        .map_or_else(|| format!("{name}-{}", state.new_suffix()), |slice| text(&slice["metadata"]["name"]).to_owned());
    json!({
        "metadata": {
            "namespace": namespace, "name": slice, "ownerReferences": [owner_reference(service)],
            "labels": {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": CONTROLLER}
        },
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints
    })
}

/// Returns the port of a Service as in its EndpointSlice. `None`: no pod has a port with the name.
fn endpoint_port(port: &Value, pods: &[Arc<Value>]) -> Option<Value> {
    let number = match &port["targetPort"] {
        Value::String(name) => pods.iter().find_map(|pod| {
            let mut ports = pod["spec"]["containers"][0]["ports"].as_array().into_iter().flatten();
            ports.find(|port| port["name"] == name.as_str()).map(|port| port["containerPort"].clone())
        })?,
        Value::Null => port["port"].clone(),
        number => number.clone(),
    };
    let mut found =
        json!({"name": port["name"].as_str().unwrap_or_default(), "port": number, "protocol": port["protocol"]});
    if !port["appProtocol"].is_null() {
        found["appProtocol"] = port["appProtocol"].clone();
    }
    Some(found)
}

fn endpoint(pod: &Value) -> Value {
    let (metadata, is_terminating) = (&pod["metadata"], !pod["metadata"]["deletionTimestamp"].is_null());
    let serving = is_ready(pod);
    let mut endpoint = json!({
        "addresses": [pod["status"]["podIP"]], "nodeName": NODE,
        "conditions": {"ready": serving && !is_terminating, "serving": serving, "terminating": is_terminating},
        "targetRef": {"kind": "Pod", "namespace": metadata["namespace"], "name": metadata["name"], "uid": metadata["uid"]}
    });
    if !pod["spec"]["hostname"].is_null() {
        endpoint["hostname"] = pod["spec"]["hostname"].clone();
    }
    endpoint
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests;
