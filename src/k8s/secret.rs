//! Reads one value of a Secret.

use kube::Api;

use super::{
    ClusterError,
    client::{AskError, Cluster},
    objects::Secret,
};
use crate::config::{Namespace, Subdomain, near::near};

/// Reads the value of `key` in a Secret, with the permissions of the user.
///
/// # Errors
/// Fails if the Secret or the key does not exist, or if the user may not read it.
pub async fn value(
    cluster: &Cluster,
    namespace: &Namespace,
    name: &Subdomain,
    key: &str,
) -> Result<Vec<u8>, ClusterError> {
    let (what, context) = (format!("secret {namespace}/{name}"), cluster.context.clone());
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let mut secret = match cluster.ask(&format!("reading {what}"), namespace, api.get(name)).await {
        Ok(secret) => secret,
        Err(AskError::NotFound) => {
            let hint = Some(format!("{} -n {namespace} get secrets", cluster.kubectl()));
            return Err(ClusterError::NotFound { what, context, near: Vec::new(), hint });
        }
        // The parser's message may contain the value.
        Err(AskError::Failed(ClusterError::Protocol { context, reason })) if !reason.starts_with("403") => {
            return Err(ClusterError::Protocol { context, reason: format!("{what} cannot be read") });
        }
        Err(AskError::Failed(error)) => return Err(error),
    };
    if let Some(value) = secret.data.remove(key) {
        return Ok(value.0);
    }
    let keys: Vec<String> = secret.data.into_keys().collect();
    let hint = if keys.is_empty() { "it has no keys".to_owned() } else { format!("its keys are {}", keys.join(", ")) };
    let near = near(key, keys, |key| key);
    Err(ClusterError::NotFound { what: format!("key {key} in {what}"), context, near, hint: Some(hint) })
}
