//! The relay of `adit expose --create`: a pod beside the Service, with permissions only in its namespace.

use std::time::Duration;

use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::find::{KEYS, Relay};
use crate::{
    cli::report::{CliError, print},
    config::{Namespace, RELAY_PORT},
    k8s::{
        ClusterError,
        client::{AskError, Cluster},
        own_pod, pods,
    },
    relay::{
        auth,
        expose::{
            inspect::{self, RelayState},
            kube::PERMISSIONS,
        },
    },
};

/// Name of every object that it creates.
const NAME: &str = "adit-relay";

const RBAC: &str = "rbac.authorization.k8s.io";

/// Time limit until the pod is ready.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Time limit until the pod is gone: it restores its Services, and lets open streams finish.
const GONE_WITHIN: Duration = Duration::from_secs(40);

/// Creates the relay's missing objects, and waits until the pod is ready.
///
/// # Errors
/// An object cannot be created, or the pod is not ready in time; the error has its state.
pub async fn ensure(cluster: &Cluster, namespace: &Namespace, image: &str) -> Result<(), CliError> {
    for (group, kind, object) in beside(namespace)? {
        let object = named(group, kind, object)?;
        make(cluster, namespace, group, kind, &object).await?;
    }
    let pod = named("", "Pod", pod(namespace, image))?;
    let waits_for = |state: &str| info!(%namespace, name = NAME, state, "waiting for the relay's pod");
    let ready = own_pod::ensure(cluster, namespace, NAME, &pod, TIMEOUT, waits_for);
    let mut waiting = Waiting { namespace, is_over: false };
    let ready = ready.await;
    waiting.is_over = true;
    ready.map_err(|error| match (&error, error.hint()) {
        (ClusterError::NotReady { .. }, Some(look)) => {
            CliError::from(error).hint(Some(format!("{look}\n{} deletes it", cleaning(namespace))))
        }
        _ => error.into(),
    })
}

/// The wait for the pod. If it is dropped before its end, a signal has ended the command.
struct Waiting<'a> {
    namespace: &'a Namespace,
    is_over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let (namespace, cleaning) = (self.namespace, cleaning(self.namespace));
            warn!("interrupted: the relay {namespace}/{NAME}, which is not ready, stays; {cleaning} deletes it");
        }
    }
}

/// Returns the command that deletes what [`ensure`] has created.
fn cleaning(namespace: &Namespace) -> String {
    format!("'adit expose clean -n {namespace}'")
}

/// Returns whether [`ensure`] has created this relay in this namespace.
pub fn is_created(relay: &Relay, namespace: &Namespace) -> bool {
    relay.target.0 == *namespace && relay.target.1 == NAME
}

/// Replaces the relay if it runs another image.
///
/// # Errors
/// As [`ensure`].
pub async fn renew(cluster: &Cluster, namespace: &Namespace, image: &str, now: Option<&str>) -> Result<(), CliError> {
    if now == Some(image) {
        return Ok(());
    }
    info!(%namespace, name = NAME, from = now.unwrap_or_default(), to = image, "replacing the relay, which runs another image");
    delete(cluster, namespace, "", "Pod").await?;
    ensure(cluster, namespace, image).await
}

/// Deletes the relay of a namespace, restores the Services that it has left, and deletes its other objects.
///
/// # Errors
/// A permission is missing, or the cluster does not answer.
pub async fn clean(cluster: &Cluster, namespace: &Namespace) -> Result<(), CliError> {
    // The pod first: it restores its Services while it terminates, and needs its permissions for that.
    let mut count = usize::from(delete(cluster, namespace, "", "Pod").await?);
    let kube = super::taken::kube(cluster).await?;
    let failed = |error: String| CliError::new("cannot restore what the relay has left").cause(Some(error));
    let (left, _) = inspect::list(&kube, Some(namespace)).await.map_err(|error| failed(error.to_string()))?;
    for exposed in left.iter().filter(|exposed| exposed.state == RelayState::Gone) {
        inspect::restore(&kube, &exposed.service).await.map_err(|error| failed(error.to_string()))?;
        print(&format!("restored {}\n", exposed.service))?;
    }
    for (group, kind) in [(RBAC, "RoleBinding"), (RBAC, "Role"), ("", "ServiceAccount"), ("", "Secret")] {
        count += usize::from(delete(cluster, namespace, group, kind).await?);
    }
    match count {
        0 => print(&format!("there is no relay of adit's in namespace {namespace}\n")),
        _ => Ok(()),
    }
}

/// Deletes an object that adit has created, and waits until it is gone. Returns whether it existed.
async fn delete(cluster: &Cluster, namespace: &Namespace, group: &str, kind: &str) -> Result<bool, CliError> {
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), namespace, &resource(group, kind));
    let (until, mut was_there) = (Instant::now() + GONE_WITHIN, false);
    loop {
        let found = match cluster.ask(&format!("reading {kind} {namespace}/{NAME}"), namespace, api.get(NAME)).await {
            Ok(found) => found,
            Err(AskError::NotFound) => {
                if was_there {
                    print(&format!("deleted {kind} {namespace}/{NAME}\n"))?;
                }
                return Ok(was_there);
            }
            Err(AskError::Failed(error)) => return Err(error.into()),
        };
        let (label, adit) = own_pod::MANAGED_BY;
        if found.metadata.labels.as_ref().and_then(|labels| labels.get(label)).is_none_or(|by| by != adit) {
            return Ok(false);
        }
        if !was_there {
            let deleting = async { api.delete(NAME, &DeleteParams::default()).await.map(drop) };
            match cluster.ask(&format!("deleting {kind} {namespace}/{NAME}"), namespace, deleting).await {
                Ok(()) | Err(AskError::NotFound) => was_there = true,
                Err(AskError::Failed(error)) => return Err(error.into()),
            }
            continue;
        }
        if Instant::now() > until {
            return Err(CliError::new(format!(
                "{kind} {namespace}/{NAME} still exists {} s after it was deleted",
                GONE_WITHIN.as_secs()
            ))
            .hint(Some(format!(
                "{} -n {namespace} get {} {NAME} -o yaml",
                cluster.kubectl(),
                kind.to_lowercase()
            ))));
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Creates an object. An existing one is kept, but the rules of a Role are updated, because an older adit may have created it.
async fn make(
    cluster: &Cluster,
    namespace: &Namespace,
    group: &str,
    kind: &str,
    object: &DynamicObject,
) -> Result<(), CliError> {
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), namespace, &resource(group, kind));
    let answer = async {
        match api.create(&PostParams::default(), object).await {
            Ok(_) => info!(kind, %namespace, name = NAME, "created"),
            Err(kube::Error::Api(status)) if status.code == 409 && kind == "Role" => {
                let patch = Patch::Merge(json!({"rules": object.data["rules"]}));
                api.patch(NAME, &PatchParams::default(), &patch).await?;
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error),
        }
        Ok(())
    };
    let failed = |cause: String| {
        CliError::new(format!("cannot create {kind} {namespace}/{NAME}"))
            .cause(Some(cause))
            .hint(Some("somebody with more permissions can install one for all: helm install relay charts/adit"))
    };
    match cluster.ask(&format!("creating {kind} {namespace}/{NAME}"), namespace, answer).await {
        Ok(()) => Ok(()),
        Err(AskError::NotFound) => Err(failed(format!("namespace {namespace} does not exist"))),
        Err(AskError::Failed(error)) => Err(failed(error.to_string())),
    }
}

fn resource(group: &str, kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind))
}

/// Returns an object with adit's name and labels.
fn named(group: &str, kind: &str, mut object: Value) -> Result<DynamicObject, CliError> {
    let (managed_by, adit) = own_pod::MANAGED_BY;
    object["apiVersion"] = json!(resource(group, kind).api_version);
    object["kind"] = json!(kind);
    object["metadata"]["name"] = json!(NAME);
    object["metadata"]["labels"] = json!({"app.kubernetes.io/name": NAME, managed_by: adit});
    serde_json::from_value(object)
        .map_err(|error| CliError::new(format!("cannot write the {kind} of the relay: {error}")))
}

/// Returns the objects that a relay's pod needs, each with its API group and kind.
fn beside(namespace: &str) -> Result<[(&'static str, &'static str, Value); 4], CliError> {
    let rules = PERMISSIONS
        .map(|(group, resource, verbs)| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs}));
    let binding = json!({
        "metadata": {},
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": NAME},
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": namespace}]
    });
    Ok([
        ("", "Secret", json!({"metadata": {}, "stringData": {"keys": auth::new_secret()?}})),
        ("", "ServiceAccount", json!({"metadata": {}, "automountServiceAccountToken": false})),
        (RBAC, "Role", json!({"metadata": {}, "rules": rules})),
        (RBAC, "RoleBinding", binding),
    ])
}

fn pod(namespace: &str, image: &str) -> Value {
    let told = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    json!({
        "metadata": {"annotations": {KEYS: NAME, pods::EXPOSES: namespace}},
        "spec": {
            "serviceAccountName": NAME, "automountServiceAccountToken": true, "enableServiceLinks": false,
            "activeDeadlineSeconds": own_pod::LIFETIME.as_secs(), "terminationGracePeriodSeconds": 20,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"}
            },
            "containers": [{
                "name": "relay", "image": image, "imagePullPolicy": "IfNotPresent",
                "args": [
                    "server", format!("--listen=0.0.0.0:{RELAY_PORT}"), "--bind=0.0.0.0", "--ports=20000-20999",
                    "--secret-file=/keys/keys", "--register=$(POD_NAMESPACE)"
                ],
                "env": [
                    told("POD_NAME", "metadata.name"), told("POD_NAMESPACE", "metadata.namespace"),
                    told("POD_UID", "metadata.uid"), told("POD_IPS", "status.podIPs"),
                    told("NODE_NAME", "spec.nodeName")
                ],
                "ports": [{"name": "control", "containerPort": RELAY_PORT}],
                "readinessProbe": {"tcpSocket": {"port": "control"}, "periodSeconds": 1},
                "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}
                },
                "volumeMounts": [{"name": "keys", "mountPath": "/keys", "readOnly": true}]
            }],
            "volumes": [{"name": "keys", "secret": {"secretName": NAME, "defaultMode": 0o440}}]
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_has_the_rights_of_its_namespace_alone_and_is_found_as_one() {
        let beside = beside("shop").unwrap();
        assert!(beside.iter().all(|(_, kind, _)| !kind.starts_with("Cluster")));
        let ((_, _, secret), pod) = (&beside[0], pod("shop", "registry/adit:1"));
        assert!(auth::parse_keys(secret["stringData"]["keys"].as_str().unwrap()).is_ok());
        assert_eq!(pod["metadata"]["annotations"][pods::EXPOSES], "shop");
        assert_eq!(pod["spec"]["volumes"][0]["secret"]["secretName"], pod["metadata"]["annotations"][KEYS]);
        assert_eq!(pod["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"], true);
    }
}
