//! Pods that adit creates. The first caller creates one and others wait for it; an ended pod is replaced.

use std::time::Duration;

use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, PostParams, Preconditions},
};
use tokio::time::{Instant, sleep};
use tracing::info;

use crate::{
    config::Namespace,
    k8s::{
        ClusterError,
        client::{AskError, Cluster},
        objects::Pod,
        pods,
    },
};

/// Label of all objects that adit creates. adit deletes no others.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "adit");

/// Lifetime of a pod, so that a forgotten one ends by itself.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Interval of checks on a starting pod.
const PAUSE: Duration = Duration::from_millis(500);

/// How long the node may report that it cannot pull the image. Its second attempt comes after about 10 s, and a registry may fail
/// for a moment.
const NO_IMAGE_WITHIN: Duration = Duration::from_secs(15);

/// Creates the pod `name` if it does not exist, or if adit's own has ended or never started with another image, and waits until it
/// is ready. Calls `waits_for` with each new state of the pod.
///
/// # Errors
/// Fails if the user may not create it, if the node cannot pull its image, or if it is not ready `within` that time. The error has
/// its state.
pub async fn ensure(
    cluster: &Cluster,
    namespace: &Namespace,
    name: &str,
    pod: &DynamicObject,
    within: Duration,
    waits_for: impl Fn(&str),
) -> Result<(), ClusterError> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let what = format!("pod {namespace}/{name}");
    let until = Instant::now() + within;
    let wanted = pod.data["spec"]["containers"][0]["image"].as_str();
    let (mut said, mut no_image_since) = (String::new(), None);
    let mut may_replace = true;
    loop {
        let cause = match cluster.ask(&format!("looking up {what}"), namespace, api.get(name)).await {
            Ok(found) if pods::is_ready(&found) => return Ok(()),
            Ok(found) => {
                if is_ours(&found) && (has_ended(&found) || (may_replace && is_stuck(&found, wanted))) {
                    may_replace = false;
                    delete(cluster, namespace, name, &found).await?;
                }
                pods::why_not_ready(&found)
            }
            Err(AskError::NotFound) => {
                // An admission webhook may change the image of the pod that this call creates.
                may_replace = false;
                make(cluster, namespace, name, pod).await?;
                "it was just created".to_owned()
            }
            Err(AskError::Failed(error)) => return Err(error),
        };
        if cause != said {
            waits_for(&cause);
            said.clone_from(&cause);
        }
        let now = Instant::now();
        no_image_since = lacks_image(&cause).then(|| no_image_since.unwrap_or(now));
        // A name that is invalid stays so.
        let is_hopeless =
            cause == "InvalidImageName" || no_image_since.is_some_and(|since| now - since > NO_IMAGE_WITHIN);
        if is_hopeless || now >= until {
            let cause = match (is_hopeless, wanted) {
                (true, Some(image)) => format!("its image {image:?} cannot be pulled ({cause})"),
                _ => format!("the pod is not ready after {} s ({cause})", within.as_secs()),
            };
            return Err(ClusterError::NotReady {
                what,
                context: cluster.context.clone(),
                cause,
                hint: format!("{} -n {namespace} describe pod {name}", cluster.kubectl()),
            });
        }
        sleep(PAUSE).await;
    }
}

/// Returns whether a pod waits for an image, by the node's reason.
fn lacks_image(reason: &str) -> bool {
    matches!(reason, "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull")
}

/// Returns whether a pod cannot start because of its image, and another one is wanted.
fn is_stuck(pod: &Pod, wanted: Option<&str>) -> bool {
    let image = pod.spec.as_ref().and_then(|spec| spec.containers.first()).and_then(|first| first.image.as_deref());
    image != wanted && lacks_image(&pods::why_not_ready(pod))
}

/// Creates the pod. Succeeds if it was created by another client meanwhile.
async fn make(cluster: &Cluster, namespace: &Namespace, name: &str, pod: &DynamicObject) -> Result<(), ClusterError> {
    let api: Api<DynamicObject> =
        Api::namespaced_with(cluster.client.clone(), namespace, &ApiResource::erase::<Pod>(&()));
    let answer = async {
        match api.create(&PostParams::default(), pod).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            made => made.map(|_| info!(pod = name, %namespace, "created a pod")),
        }
    };
    let what = format!("pod {namespace}/{name}");
    match cluster.ask(&format!("creating {what}"), namespace, answer).await {
        Ok(()) => Ok(()),
        Err(AskError::Failed(error)) => Err(error),
        Err(AskError::NotFound) => {
            let hint = format!("there is no namespace {namespace}: {} get namespaces", cluster.kubectl());
            Err(ClusterError::NotFound { what, context: cluster.context.clone(), near: Vec::new(), hint: Some(hint) })
        }
    }
}

/// Deletes the pod with this UID. Succeeds if it is already gone or replaced.
async fn delete(cluster: &Cluster, namespace: &Namespace, name: &str, pod: &Pod) -> Result<(), ClusterError> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    let this_one = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    let answer = async {
        match api.delete(name, &this_one).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            deleted => deleted
                .map(|_| info!(pod = name, %namespace, "deleted a pod of adit that had ended or could not start")),
        }
    };
    match cluster.ask(&format!("deleting pod {namespace}/{name}"), namespace, answer).await {
        Ok(()) | Err(AskError::NotFound) => Ok(()),
        Err(AskError::Failed(error)) => Err(error),
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

fn is_ours(pod: &Pod) -> bool {
    let (label, value) = MANAGED_BY;
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(label)).is_some_and(|found| found == value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_whose_image_cannot_be_pulled_makes_room_for_another_image() {
        let pod = |image: &str, reason: &str| -> Pod {
            let status = json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": reason}}}]});
            let spec = json!({"containers": [{"name": "relay", "image": image}]});
            serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status})).unwrap()
        };
        for (image, reason, stuck) in [
            ("wrong:1", "ErrImagePull", true),
            ("wrong:1", "ImagePullBackOff", true),
            ("WRONG", "InvalidImageName", true),
            ("wrong:1", "ErrImageNeverPull", true),
            ("right:1", "ErrImagePull", false),
            ("wrong:1", "ContainerCreating", false),
        ] {
            assert_eq!(is_stuck(&pod(image, reason), Some("right:1")), stuck, "{image} {reason}");
        }
    }
}
