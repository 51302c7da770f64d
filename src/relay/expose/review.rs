//! Reviews a client's token and permissions in the cluster. With `--authorize kubernetes` a user cannot do anything
//! through a relay that RBAC does not allow.

use serde_json::{Value, json};

use super::{
    ExposeRequest,
    kube::{Kind, Kube, KubeError},
    text,
};
use crate::printable::{line, printable};

/// Permissions for a review, in addition to those of a takeover. The ClusterRole `system:auth-delegator` has them.
pub const PERMISSIONS: [(&str, &str, &[&str]); 2] = [
    ("authentication.k8s.io", "tokenreviews", &["create"]),
    ("authorization.k8s.io", "subjectaccessreviews", &["create"]),
];

/// Reasons why a client may not take over a Service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreviewed {
    #[error(
        "this relay asks Kubernetes whether you may {verb} Service {service}, and your client has sent no token: use a context that \
         signs in with a token, not with a client certificate"
    )]
    NoToken { verb: &'static str, service: String },
    #[error("the cluster does not accept the token of your context: {0}")]
    Unauthenticated(String),
    #[error(
        "user {user:?} may not {verb} services in namespace {namespace}: ask for the permission, or use another context"
    )]
    Forbidden { user: String, verb: &'static str, namespace: String },
    #[error("cannot ask Kubernetes whether you may have the Service: {0}")]
    Unanswered(#[from] KubeError),
}

/// Returns the user of a token, if the user may do what the request asks for.
///
/// # Errors
/// Fails if there is no token, if it is not valid in the cluster, if the user lacks a permission, or if the API server
/// does not answer.
pub async fn review(kube: &Kube, token: Option<&str>, request: &ExposeRequest) -> Result<String, Unreviewed> {
    let service = &request.service;
    let verb = if request.replaces { "patch" } else { "create" };
    let token = token.ok_or_else(|| Unreviewed::NoToken { verb, service: service.to_string() })?;
    let asked = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {"token": token}
    });
    let status = kube.create(Kind::TokenReview, "", &asked).await?["status"].take();
    if status["authenticated"] != true {
        let error = status["error"].as_str().map_or_else(|| "it is not known".to_owned(), printable);
        return Err(Unreviewed::Unauthenticated(error));
    }
    let user = &status["user"];
    may(kube, user, verb, request).await?;
    // If the Service does not exist, the user also needs `create`. The takeover itself then fails with `Refusal::Missing`.
    if request.replaces && kube.get(Kind::Service, &service.namespace, &service.name).await?.is_none() {
        may(kube, user, "create", request).await?;
    }
    Ok(line(text(&user["username"])))
}

async fn may(kube: &Kube, user: &Value, verb: &'static str, request: &ExposeRequest) -> Result<(), Unreviewed> {
    let namespace = &request.service.namespace;
    let mut attributes = json!({"namespace": namespace, "verb": verb, "version": "v1", "resource": "services"});
    if verb != "create" {
        // RBAC cannot limit a permission to create to a name.
        attributes["name"] = json!(request.service.name);
    }
    let asked = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
        "spec": {
            "user": user["username"], "groups": user["groups"], "uid": user["uid"], "extra": user["extra"],
            "resourceAttributes": attributes
        }
    });
    let status = kube.create(Kind::SubjectAccessReview, "", &asked).await?["status"].take();
    match status["allowed"] == true && status["denied"] != true {
        true => Ok(()),
        false => {
            let user = line(text(&user["username"]));
            Err(Unreviewed::Forbidden { user, verb, namespace: namespace.clone() })
        }
    }
}
