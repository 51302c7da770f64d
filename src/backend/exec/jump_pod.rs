//! The jump pod that adit creates if it does not exist.

use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ListParams},
};
use serde_json::json;

use crate::{
    config::{Jump, Namespace, Subdomain},
    k8s::{
        ClusterError,
        client::{AskError, Cluster},
        objects::Pod,
        own_pod, pods,
    },
    printable::printable,
};

/// Creates the pod if it does not exist, and waits until it is ready.
///
/// # Errors
/// The user has no permission to create it, or it is not ready within the configured time. The error includes its state.
pub async fn ensure(cluster: &Cluster, namespace: &Namespace, name: &str, jump: &Jump) -> Result<(), ClusterError> {
    let Some(create) = &jump.create else { return Ok(()) };
    let pod = pod(name, jump.container.as_deref(), &create.image, &create.command)
        .map_err(|error| ClusterError::Protocol { context: cluster.context.clone(), reason: error.to_string() })?;
    own_pod::ensure(cluster, namespace, name, &pod, create.timeout, |_| {}).await
}

/// Label selector of the pods that adit creates. adit never deletes any other pod.
const OURS: &str = "app.kubernetes.io/name=adit-jump,app.kubernetes.io/managed-by=adit";

/// Annotation that names the creator of a pod.
const OWNER: &str = "adit/owner";

/// A pod that adit has created.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Created {
    #[serde(serialize_with = "as_text")]
    pub namespace: Namespace,
    #[serde(serialize_with = "as_text")]
    pub name: Subdomain,
    /// `ready`, or why it is not.
    pub state: String,
    pub owner: Option<String>,
    /// RFC 3339.
    pub created: Option<String>,
}

fn as_text<S: serde::Serializer>(name: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}

/// Lists the pods that adit has created, in one namespace or in all (`None`).
///
/// # Errors
/// The pods cannot be listed.
pub async fn list(cluster: &Cluster, namespace: Option<&Namespace>) -> Result<Vec<Created>, ClusterError> {
    let api: Api<Pod> = match namespace {
        Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
        None => Api::all(cluster.client.clone()),
    };
    let listed = match cluster.ask("listing jump pods", namespace, api.list(&ListParams::default().labels(OURS))).await
    {
        Ok(listed) => listed.items,
        Err(AskError::NotFound) => Vec::new(),
        Err(AskError::Failed(error)) => return Err(error),
    };
    let created = listed.into_iter().filter_map(|pod| {
        Some(Created {
            state: if pods::is_ready(&pod) { "ready".to_owned() } else { pods::why_not_ready(&pod) },
            namespace: pod.metadata.namespace?.parse().ok()?,
            name: pod.metadata.name?.parse().ok()?,
            owner: pod.metadata.annotations.and_then(|mut of| of.remove(OWNER)).map(|owner| printable(&owner)),
            created: pod.metadata.creation_timestamp.map(|time| time.0.to_string()),
        })
    });
    Ok(created.collect())
}

/// Deletes a pod from [`list`]. A pod that is already gone is not an error.
///
/// # Errors
/// The API server refuses, or cannot be reached.
pub async fn delete(cluster: &Cluster, pod: &Created) -> Result<(), ClusterError> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &pod.namespace);
    let doing = format!("deleting pod {}/{}", pod.namespace, pod.name);
    let answer = async { api.delete(&pod.name, &DeleteParams::default()).await.map(drop) };
    match cluster.ask(&doing, &pod.namespace, answer).await {
        Ok(()) | Err(AskError::NotFound) => Ok(()),
        Err(AskError::Failed(error)) => Err(error),
    }
}

/// Returns the owner of the pods that this process creates: `ana@laptop`.
fn owner() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "unknown".to_owned());
    format!("{user}@{}", rustix::system::uname().nodename().to_string_lossy())
}

fn pod(name: &str, container: Option<&str>, image: &str, command: &[String]) -> serde_json::Result<DynamicObject> {
    // A command that waits, and exits on SIGTERM.
    let sleep = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"].map(str::to_owned);
    let command = if command.is_empty() { &sleep[..] } else { command };
    // 65532: the user "nonroot" of distroless images. Without a UID, runAsNonRoot rejects images whose user is root or a name.
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/name": "adit-jump", "app.kubernetes.io/managed-by": "adit"},
            "annotations": {"adit/created-by": format!("adit {}", env!("CARGO_PKG_VERSION")), OWNER: owner()}
        },
        "spec": {
            "automountServiceAccountToken": false, "enableServiceLinks": false, "restartPolicy": "Always",
            "activeDeadlineSeconds": own_pod::LIFETIME.as_secs(), "terminationGracePeriodSeconds": 2,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": container.unwrap_or("jump"), "image": image, "imagePullPolicy": "IfNotPresent", "command": command,
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "500m", "memory": "64Mi"}},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}
            }]
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_ours_by_its_labels_and_has_no_rights() {
        let pod = pod("jump", None, "alpine/socat", &[]).unwrap();
        let labels = pod.metadata.labels.unwrap();
        assert_eq!(labels["app.kubernetes.io/managed-by"], "adit");
        let spec = &pod.data["spec"];
        assert_eq!(
            (&spec["automountServiceAccountToken"], &spec["activeDeadlineSeconds"]),
            (&json!(false), &json!(86_400))
        );
        assert_eq!(spec["containers"][0]["command"][0], "sh");
    }
}
