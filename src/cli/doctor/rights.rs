//! Checks the user's permissions in each namespace of the configuration.

use futures::future::join_all;
use serde_json::json;

use super::{
    cluster::ask,
    kubeconfig::of_error,
    rbac::{Need, needs},
    report::{Check, Group, Status},
    scope::Of,
};
use crate::{
    config::Namespace,
    k8s::{ClusterError, client::Cluster},
};

const GROUP: Group = Group::Rights;

pub async fn checks(of: &Of, cluster: &Cluster) -> Vec<Check> {
    let asked =
        of.namespaces.iter().flat_map(|namespace| needs(of, namespace).into_iter().map(move |need| (namespace, need)));
    let answers = join_all(asked.map(async |(namespace, need)| {
        let answers = need.verbs.iter().map(|verb| may(cluster, namespace, verb, need.resource, need.group));
        let answers: Vec<Result<bool, ClusterError>> = join_all(answers).await;
        let missing: Vec<&str> = need
            .verbs
            .iter()
            .zip(&answers)
            .filter(|(_, may)| matches!(may, Ok(false)))
            .map(|(verb, _)| *verb)
            .collect();
        match answers.into_iter().find_map(Result::err) {
            Some(error) => of_error(need.id, GROUP, &error),
            None => judged(&need, namespace, &missing),
        }
    }))
    .await;
    let mut all: Vec<Check> = Vec::new();
    // One line says that all is well.
    let is_well = answers.iter().all(|check| check.status == Status::Ok);
    if is_well {
        let namespaces: Vec<String> = of.namespaces.iter().map(ToString::to_string).collect();
        all.push(Check::new(
            "permissions",
            GROUP,
            Status::Ok,
            format!("every permission is there in {}", namespaces.join(", ")),
        ));
    } else {
        all.extend(answers.into_iter().filter(|check| check.status != Status::Ok));
    }
    all.into_iter().map(|check| check.of_context(of.context())).collect()
}

fn judged(need: &Need, namespace: &Namespace, missing: &[&str]) -> Check {
    // Raw SPDY and the WebSockets of older servers need one of the two.
    let is_enough = missing.is_empty() || (need.any && missing.len() < need.verbs.len());
    let resource =
        if need.group.is_empty() { need.resource.to_owned() } else { format!("{}.{}", need.resource, need.group) };
    if is_enough {
        return Check::new(
            need.id,
            GROUP,
            Status::Ok,
            format!("may {} {resource} in {namespace}", need.verbs.join(" and ")),
        );
    }
    let status = if need.is_needed { Status::Fail } else { Status::Warn };
    Check::new(need.id, GROUP, status, format!("cannot {} {resource} in namespace {namespace}", missing.join(" or ")))
        .detail(Some(format!("{}\n{}", need.why, lines(need))))
        .fix("ask for this Role", Some(format!("adit doctor --rbac -n {namespace}")))
}

/// The rule of a Role that grants it.
fn lines(need: &Need) -> String {
    format!("- {{apiGroups: [{:?}], resources: [{}], verbs: [{}]}}", need.group, need.resource, need.verbs.join(", "))
}

async fn may(
    cluster: &Cluster,
    namespace: &Namespace,
    verb: &str,
    resource: &str,
    group: &str,
) -> Result<bool, ClusterError> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {
            "namespace": namespace.0, "verb": verb, "group": group, "resource": resource, "subresource": subresource,
        }},
    });
    let (answer, _) = ask(cluster, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", Some(review)).await?;
    Ok(answer["status"]["allowed"] == true)
}
