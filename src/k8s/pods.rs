//! Reads a Pod: its readiness, its named ports, and why it is not ready.

use std::time::Duration;

use kube::Api;
use tokio::time::sleep;

use crate::{
    config::{Label, Namespace, Subdomain, shell::quoted},
    k8s::{
        ServicePort,
        client::{AskError, Cluster},
        objects::{Container, ContainerPort, ContainerStatus, Pod},
    },
    printable::printable,
};

/// Returns whether the pod with this UID exists and is not terminating. `None`: the API server did not answer.
pub async fn is_running(cluster: &Cluster, namespace: &Namespace, name: &Subdomain, uid: &str) -> Option<bool> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    match cluster.ask("looking up the pod", namespace, api.get_metadata(name)).await {
        Ok(pod) => {
            let is_same = uid.is_empty() || pod.metadata.uid.as_deref() == Some(uid);
            Some(is_same && pod.metadata.deletion_timestamp.is_none())
        }
        Err(AskError::NotFound) => Some(false),
        Err(AskError::Failed(_)) => None,
    }
}

/// Label of the pods of relays, and its value.
pub const RELAY: (&str, &str) = ("app.kubernetes.io/name", "adit-relay");

/// Annotation of a relay's pod: the namespace whose Services it takes over, or `true` for all.
pub const EXPOSES: &str = "adit/exposes";

/// Returns whether a pod is a relay that takes over Services of a namespace.
pub fn relays_for(pod: &Pod, namespace: &str) -> bool {
    let is_relay =
        pod.metadata.labels.as_ref().and_then(|labels| labels.get(RELAY.0)).is_some_and(|name| name == RELAY.1);
    let exposes = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(EXPOSES));
    is_relay && exposes.is_some_and(|exposes| exposes == "true" || exposes == namespace)
}

/// Maximum length of a message of a node in an error, in characters.
const LONGEST_MESSAGE: usize = 200;

/// Pause between two looks at a pod that takes no new streams: while it terminates, and while it may become ready again.
const TERMINATES: Duration = Duration::from_secs(2);
const SERVES: Duration = Duration::from_secs(15);

/// Waits until the pod with this UID does not exist, or has no running container and gets none.
///
/// Asks the API server again and again, instead of watching: `get pods` is a permission that every user of adit has. Starts
/// no sign-in, because nobody waits for it.
pub async fn wait_for_end(cluster: &Cluster, namespace: &Namespace, name: &Subdomain, uid: &str) {
    let api: Api<Pod> = Api::namespaced(cluster.watches.clone(), namespace);
    loop {
        let pause = match cluster.ask("looking up the pod", namespace, api.get(name)).await {
            Ok(pod) if !uid.is_empty() && pod.metadata.uid.as_deref() != Some(uid) => return,
            Ok(pod) if has_ended(&pod) => return,
            Ok(pod) if pod.metadata.deletion_timestamp.is_some() => TERMINATES,
            Err(AskError::NotFound) => return,
            Ok(_) | Err(AskError::Failed(_)) => SERVES,
        };
        sleep(pause).await;
    }
}

/// Returns whether no container of the pod runs or will run.
pub fn has_ended(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let mut containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten().peekable();
    let is_final = pod.metadata.deletion_timestamp.is_some() && containers.peek().is_some();
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
        || (is_final
            && !containers.any(|container| container.state.as_ref().is_some_and(|state| state.terminated.is_none())))
}

/// The containers of a pod.
pub struct Containers {
    /// All names, including init and ephemeral containers: a sidecar may be one of these.
    pub all: Vec<String>,
    /// Default container: the one in the pod's annotation if there is such a container, else the first.
    pub default: Option<Label>,
}

/// Returns the containers of a pod. `None`: the API server did not answer.
pub async fn containers(cluster: &Cluster, namespace: &Namespace, name: &Subdomain) -> Option<Containers> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    containers_of(cluster.ask("looking up the pod", namespace, api.get(name)).await.ok()?)
}

fn containers_of(pod: Pod) -> Option<Containers> {
    const ANNOTATION: &str = "kubectl.kubernetes.io/default-container";
    let spec = pod.spec?;
    let others = [spec.init_containers, spec.ephemeral_containers].into_iter().flatten().flatten();
    let all: Vec<String> = spec.containers.into_iter().chain(others).map(|container| container.name).collect();
    let annotated = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ANNOTATION));
    // A chart may have renamed the container. kubectl refuses to run a command then.
    let default = annotated.filter(|name| all.contains(name)).or_else(|| all.first());
    Some(Containers { default: default.and_then(|name| name.parse().ok()), all })
}

/// Returns whether the pod accepts new connections: Running, Ready, not terminating.
pub fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod.status.as_ref().is_some_and(|status| {
            status.phase.as_deref() == Some("Running")
                && status
                    .conditions
                    .iter()
                    .flatten()
                    .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        })
}

/// Returns whether a process in the pod may listen: the pod is Running, a container runs, and it is not terminating.
pub fn runs(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let mut containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten().peekable();
    let is_running =
        |container: &ContainerStatus| container.state.as_ref().is_some_and(|state| state.running.is_some());
    pod.metadata.deletion_timestamp.is_none()
        && status.phase.as_deref() == Some("Running")
        && (containers.peek().is_none() || containers.any(is_running))
}

/// Returns the TCP ports that the pod's containers declare, including native sidecars: init containers that always
/// restart (KEP-753).
pub fn ports(pod: &Pod) -> Vec<ServicePort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars =
        spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let all = spec.containers.iter().chain(sidecars).flat_map(|container: &Container| container.ports.iter().flatten());
    all.filter(|port| is_tcp(port))
        .filter_map(|port| {
            Some(ServicePort {
                number: u16::try_from(port.container_port).ok()?,
                name: port.name.clone(),
                app_protocol: None,
            })
        })
        .collect()
}

fn is_tcp(port: &ContainerPort) -> bool {
    port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
}

/// Returns the arguments of kubectl that show why a pod is not ready.
pub fn look_at(pod: &Pod) -> String {
    let name = quoted(pod.metadata.name.as_deref().unwrap_or_default());
    let of =
        |container: &ContainerStatus, options: &str| format!("logs {name} -c {}{options}", quoted(&container.name));
    let crashed = |container: &ContainerStatus| {
        let state = container.state.as_ref()?;
        match (&state.waiting, &state.terminated) {
            (Some(waiting), _) if waiting.reason.as_deref() == Some("CrashLoopBackOff") => {
                Some(of(container, " --previous"))
            }
            (None, Some(terminated)) if terminated.exit_code != 0 => Some(of(container, "")),
            _ => None,
        }
    };
    let status = pod.status.as_ref();
    let mut all = status
        .into_iter()
        .flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses).flatten());
    all.find_map(crashed).unwrap_or_else(|| format!("describe pod {name}"))
}

/// Returns why a pod is not ready, in a few words: `CrashLoopBackOff`, `Pending: Unschedulable`, `terminating`.
pub fn why_not_ready(pod: &Pod) -> String {
    if pod.metadata.deletion_timestamp.is_some() {
        return "terminating".to_owned();
    }
    let Some(status) = &pod.status else { return "unknown".to_owned() };
    if let Some(reason) = &status.reason {
        return printable(reason);
    }
    let init = status.init_container_statuses.iter().flatten().find_map(|container| {
        Some(format!("init container {}: {}", printable(&container.name), container_problem(container)?))
    });
    if let Some(reason) = init.or_else(|| status.container_statuses.iter().flatten().find_map(container_problem)) {
        return reason;
    }
    let phase = status.phase.as_deref().unwrap_or("Unknown");
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    match (phase, unscheduled.and_then(|condition| condition.reason.as_deref())) {
        ("Pending", Some(reason)) => format!("Pending: {}", printable(reason)),
        ("Running", _) => "running, not ready".to_owned(),
        (phase, _) => printable(phase),
    }
}

fn container_problem(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref()?;
        // The message names the missing ConfigMap or Secret. Those of other reasons repeat the reason at length.
        let message = waiting.message.as_deref().filter(|_| reason.starts_with("CreateContainer"));
        let message: String = message.unwrap_or_default().chars().take(LONGEST_MESSAGE).collect();
        // A container that waits for the init containers is not the reason.
        return match reason {
            "PodInitializing" => None,
            _ if message.is_empty() => Some(printable(reason)),
            _ => Some(printable(&format!("{reason}: {message}"))),
        };
    }
    let terminated = state.terminated.as_ref()?;
    (terminated.exit_code != 0).then(|| match terminated.reason.as_deref() {
        Some("Error") | None => format!("exit code {}", terminated.exit_code),
        Some(reason) => printable(reason),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_terminating_pod_is_not_ready() {
        let status = serde_json::json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        assert!(is_ready(&pod(serde_json::json!({"status": status}))));
        let deleted =
            pod(serde_json::json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": status}));
        assert!(!is_ready(&deleted));
        assert_eq!(why_not_ready(&deleted), "terminating");
    }

    #[test]
    fn a_pod_runs_whose_container_runs_ready_or_not() {
        let runs = |metadata: serde_json::Value, status: serde_json::Value| {
            runs(&pod(serde_json::json!({"metadata": metadata, "status": status})))
        };
        let containers = |states: &[&str]| -> serde_json::Value {
            states.iter().map(|state| serde_json::json!({"state": {*state: {}}})).collect()
        };
        let (alive, none) = (serde_json::json!({}), serde_json::json!({"phase": "Running"}));
        let with = |states: &[&str]| serde_json::json!({"phase": "Running", "containerStatuses": containers(states)});
        assert!(runs(alive.clone(), none));
        assert!(runs(alive.clone(), with(&["running"])));
        assert!(runs(alive.clone(), with(&["waiting", "running"])), "one of two");
        assert!(!runs(alive.clone(), with(&["waiting"])), "between two crashes nothing listens");
        assert!(!runs(
            alive.clone(),
            serde_json::json!({"phase": "Succeeded", "containerStatuses": containers(&["terminated"])})
        ));
        assert!(!runs(serde_json::json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), with(&["running"])));
    }

    #[test]
    fn the_annotation_for_the_default_container_counts_if_there_is_such_a_container() {
        for (annotated, wanted) in [("sidecar", "sidecar"), ("renamed", "app"), ("", "app")] {
            let containers = serde_json::json!([{"name": "app"}, {"name": "sidecar"}]);
            let annotations = serde_json::json!({"kubectl.kubernetes.io/default-container": annotated});
            let pod = serde_json::json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers}});
            let default = containers_of(self::pod(pod)).unwrap().default;
            assert_eq!(default.as_deref(), Some(wanted), "{annotated:?}");
        }
    }

    #[test]
    fn a_pod_has_ended_whose_containers_have_terminated_for_good() {
        let has_ended = |is_deleted: bool, status: serde_json::Value| {
            let metadata = serde_json::json!({"deletionTimestamp": is_deleted.then_some("2026-01-01T00:00:00Z")});
            has_ended(&pod(serde_json::json!({"metadata": metadata, "status": status})))
        };
        let with = |states: &[&str]| -> serde_json::Value {
            let containers: Vec<_> = states.iter().map(|state| serde_json::json!({"state": {*state: {}}})).collect();
            serde_json::json!({"phase": "Running", "containerStatuses": containers})
        };
        assert!(!has_ended(true, with(&["running"])), "the grace period");
        assert!(!has_ended(true, with(&["terminated", "running"])));
        assert!(!has_ended(true, with(&[])), "nothing is known");
        assert!(has_ended(true, with(&["terminated", "terminated"])));
        assert!(!has_ended(false, with(&["terminated"])), "it restarts");
        assert!(has_ended(false, serde_json::json!({"phase": "Failed"})), "evicted");
        assert!(has_ended(false, serde_json::json!({"phase": "Succeeded"})));
    }

    #[test]
    fn ports_of_native_sidecars_count_and_those_of_init_containers_do_not() {
        let pod = pod(serde_json::json!({"spec": {
            "containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 53, "protocol": "UDP"}]}],
            "initContainers": [
                {"name": "b", "restartPolicy": "Always", "ports": [{"containerPort": 15001, "name": "mesh"}]},
                {"name": "c", "ports": [{"containerPort": 1}]}
            ]
        }}));
        assert_eq!(ports(&pod).iter().map(|port| port.number).collect::<Vec<_>>(), [80, 15001]);
    }

    #[test]
    fn the_reason_is_the_one_that_a_person_would_look_for() {
        let why = |status: serde_json::Value| why_not_ready(&pod(serde_json::json!({"status": status})));
        let waiting = |reason: &str| serde_json::json!([{"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": reason}}}]);
        assert_eq!(
            why(serde_json::json!({"phase": "Running", "containerStatuses": waiting("CrashLoopBackOff")})),
            "CrashLoopBackOff"
        );
        assert_eq!(
            why(serde_json::json!({"phase": "Pending", "containerStatuses": waiting("ImagePullBackOff")})),
            "ImagePullBackOff"
        );
        let unscheduled = serde_json::json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]});
        assert_eq!(why(unscheduled), "Pending: Unschedulable");
        assert_eq!(why(serde_json::json!({"phase": "Running"})), "running, not ready");
        let message = "configmap \"nothere\" not found";
        let states = serde_json::json!([{"name": "a", "state": {"waiting": {"reason": "CreateContainerConfigError", "message": message}}}]);
        assert_eq!(
            why(serde_json::json!({"phase": "Pending", "containerStatuses": states})),
            "CreateContainerConfigError: configmap \"nothere\" not found"
        );
        let waits = serde_json::json!([{"name": "app", "state": {"waiting": {"reason": "PodInitializing"}}}]);
        let status = serde_json::json!({"phase": "Pending", "initContainerStatuses": waiting("CrashLoopBackOff"), "containerStatuses": waits});
        assert_eq!(why(status), "init container a: CrashLoopBackOff");
    }

    #[test]
    fn a_pod_that_crashes_is_looked_at_in_its_log() {
        let look = |state: serde_json::Value| {
            let statuses = serde_json::json!([{"name": "migrate", "state": state}]);
            look_at(&pod(
                serde_json::json!({"metadata": {"name": "web-0"}, "status": {"initContainerStatuses": statuses}}),
            ))
        };
        let waits = |reason: &str| serde_json::json!({"waiting": {"reason": reason}});
        assert_eq!(look(waits("CrashLoopBackOff")), "logs web-0 -c migrate --previous");
        assert_eq!(look(serde_json::json!({"terminated": {"exitCode": 1}})), "logs web-0 -c migrate");
        assert_eq!(look(waits("CreateContainerConfigError")), "describe pod web-0");
        assert_eq!(look(serde_json::json!({"running": {}})), "describe pod web-0", "a readiness probe fails");
    }
}
