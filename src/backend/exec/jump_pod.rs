//! The pod that a jump creates where it does not exist.

use std::time::Duration;

use kube::{
    Api,
    api::{ApiResource, DynamicObject, PostParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tracing::info;

use crate::{
    config::{Jump, Namespace},
    k8s::{
        ClusterError,
        client::{AskError, Cluster},
        objects::Pod,
        pods,
    },
};

/// How often a pod that starts is looked at.
const PAUSE: Duration = Duration::from_millis(500);

/// A pod that was forgotten goes by itself after this long.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Creates the pod, unless somebody else has, and waits until it is ready.
///
/// # Errors
/// It may not be created, or is not ready within the configured time; the error tells its state.
pub async fn ensure(cluster: &Cluster, namespace: &Namespace, name: &str, jump: &Jump) -> Result<(), ClusterError> {
    let Some(create) = &jump.create else { return Ok(()) };
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace.0);
    let created: Api<DynamicObject> =
        Api::namespaced_with(cluster.client.clone(), &namespace.0, &ApiResource::erase::<Pod>(&()));
    let what = format!("pod {namespace}/{name}");
    let until = Instant::now() + create.timeout;
    let pod = pod(name, jump.container.as_deref(), &create.image, &create.command)
        .map_err(|error| ClusterError::Protocol { context: cluster.context.clone(), reason: error.to_string() })?;
    let answer = async {
        match created.create(&PostParams::default(), &pod).await {
            // Whoever came first has made it.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            created => created.map(|_| info!(pod = name, image = create.image, "created a pod to jump through")),
        }
    };
    match cluster.ask(&format!("creating {what}"), namespace, answer).await {
        Ok(()) => {}
        Err(AskError::Failed(error)) => return Err(error),
        Err(AskError::NotFound) => {
            let hint =
                format!("there is no namespace {namespace}: kubectl --context {} get namespaces", cluster.context);
            return Err(ClusterError::NotFound {
                what,
                context: cluster.context.clone(),
                near: Vec::new(),
                hint: Some(hint),
            });
        }
    }
    loop {
        let cause = match cluster.ask(&format!("looking up {what}"), namespace, api.get(name)).await {
            Ok(pod) if pods::is_ready(&pod) => return Ok(()),
            Ok(pod) => pods::why_not_ready(&pod),
            Err(AskError::NotFound) => "it was deleted".to_owned(),
            Err(AskError::Failed(error)) => return Err(error),
        };
        if Instant::now() >= until {
            return Err(ClusterError::NotReady {
                what,
                context: cluster.context.clone(),
                cause: format!("the pod is not ready after {} s ({cause})", create.timeout.as_secs()),
                hint: format!("kubectl --context {} -n {namespace} describe pod {name}", cluster.context),
            });
        }
        sleep(PAUSE).await;
    }
}

fn pod(name: &str, container: Option<&str>, image: &str, command: &[String]) -> serde_json::Result<DynamicObject> {
    // Something that waits, and ends when it is told to.
    let sleep = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"].map(str::to_owned);
    let command = if command.is_empty() { &sleep[..] } else { command };
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/name": "adit-jump", "app.kubernetes.io/managed-by": "adit"},
            "annotations": {"adit/created-by": format!("adit {}", env!("CARGO_PKG_VERSION"))}
        },
        "spec": {
            "automountServiceAccountToken": false, "enableServiceLinks": false, "restartPolicy": "Always",
            "activeDeadlineSeconds": LIFETIME.as_secs(), "terminationGracePeriodSeconds": 2,
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
