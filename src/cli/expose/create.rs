//! A relay for `adit expose` where there is none: a pod beside the Service, with the rights for its namespace alone.

use std::time::Duration;

use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, PostParams},
};
use serde_json::{Value, json};
use tracing::info;

use super::{EXPOSES, KEYS};
use crate::{
    cli::report::CliError,
    config::{Namespace, defaults::RELAY_PORT},
    k8s::{client::Cluster, own_pod},
    relay::{auth, expose::kube::PERMISSIONS},
};

/// Of every object that is made.
const NAME: &str = "adit-relay";

const RBAC: &str = "rbac.authorization.k8s.io";

/// How long the pod may take until it is ready.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Makes what of the relay is not there yet, and waits until it is ready.
///
/// # Errors
/// An object may not be made, or the pod is not ready in time; the error tells its state.
pub async fn ensure(cluster: &Cluster, namespace: &Namespace, image: &str) -> Result<(), CliError> {
    for (group, kind, object) in beside(&namespace.0)? {
        let object = named(group, kind, object)?;
        make(cluster, namespace, group, kind, &object).await?;
    }
    let pod = named("", "Pod", pod(&namespace.0, image))?;
    Ok(own_pod::ensure(cluster, namespace, NAME, &pod, TIMEOUT).await?)
}

/// Makes an object; one that is there already is left as it is.
async fn make(
    cluster: &Cluster,
    namespace: &Namespace,
    group: &str,
    kind: &str,
    object: &DynamicObject,
) -> Result<(), CliError> {
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), &namespace.0, &resource(group, kind));
    match api.create(&PostParams::default(), object).await {
        Ok(_) => info!(kind, %namespace, name = NAME, "made"),
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(failed(kind, namespace, error)),
    }
    Ok(())
}

fn resource(group: &str, kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind))
}

/// Returns an object with our name and labels.
fn named(group: &str, kind: &str, mut object: Value) -> Result<DynamicObject, CliError> {
    let (managed_by, adit) = own_pod::MANAGED_BY;
    object["apiVersion"] = json!(resource(group, kind).api_version);
    object["kind"] = json!(kind);
    object["metadata"]["name"] = json!(NAME);
    object["metadata"]["labels"] = json!({"app.kubernetes.io/name": NAME, managed_by: adit});
    serde_json::from_value(object)
        .map_err(|error| CliError::new(format!("the {kind} is not what it should be: {error}")))
}

fn failed(kind: &str, namespace: &Namespace, error: kube::Error) -> CliError {
    CliError::new(format!("making {kind} {namespace}/{NAME} failed"))
        .cause(Some(crate::telemetry::reasons(&error)))
        .hint(Some("somebody with more rights can make one for all: helm install relay charts/adit"))
}

/// Returns what a relay's pod needs, each with its group and kind.
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
        "metadata": {"annotations": {KEYS: NAME, EXPOSES: namespace}},
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
        assert_eq!(pod["metadata"]["annotations"][EXPOSES], "shop");
        assert_eq!(pod["spec"]["volumes"][0]["secret"]["secretName"], pod["metadata"]["annotations"][KEYS]);
        assert_eq!(pod["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"], true);
    }
}
