//! Checks the user's permissions in each namespace of the configuration.

use futures::future::join_all;
use serde_json::json;

use super::{
    cluster::ask,
    kubeconfig::of_error,
    rbac::{Need, Rule, needs},
    report::{Check, Group, Status},
    scope::Of,
};
use crate::{
    config::Namespace,
    k8s::{ClusterError, client::Cluster},
};

const GROUP: Group = Group::Rights;

/// Minor version from which a WebSocket needs `create` too (KEP-4006, feature AuthorizePodWebsocketUpgradeCreatePermission).
const WEBSOCKETS_NEED_CREATE: u32 = 35;

/// Returns the checks of a context. `minor`: minor version of the API server.
pub async fn checks(of: &Of, cluster: &Cluster, minor: u32) -> Vec<Check> {
    let asked =
        of.namespaces.iter().flat_map(|namespace| needs(of, namespace).into_iter().map(move |need| (namespace, need)));
    let answers = join_all(asked.map(async |(namespace, need)| {
        let asked = |verb| Asked { verb, resource: need.resource, group: need.group, name: None };
        let answers = need.verbs.iter().map(|verb| may(cluster, namespace, asked(verb)));
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
            None => judged(&need, namespace, &missing, minor),
        }
    }))
    .await;
    let mut all: Vec<Check> = Vec::new();
    // If nothing is missing, one line says so.
    let is_well = answers.iter().all(|check| check.status == Status::Ok);
    if is_well {
        let namespaces: Vec<String> = of.namespaces.iter().map(ToString::to_string).collect();
        all.push(Check::new(
            "permissions",
            GROUP,
            Status::Ok,
            format!("the user has every permission in {}", namespaces.join(", ")),
        ));
    } else {
        all.extend(answers.into_iter().filter(|check| check.status != Status::Ok));
    }
    all.into_iter().map(|check| check.of_context(of.context())).collect()
}

fn judged(need: &Need, namespace: &Namespace, missing: &[&str], minor: u32) -> Check {
    let resource =
        if need.group.is_empty() { need.resource.to_owned() } else { format!("{}.{}", need.resource, need.group) };
    let lacks = |verb| missing.contains(&verb);
    let status = match need.is_upgrade {
        _ if missing.is_empty() => {
            let says = format!("may {} {resource} in {namespace}", need.verbs.join(" and "));
            return Check::new(need.id, GROUP, Status::Ok, says);
        }
        // The user may use one of the two transports.
        true if !lacks("create") || (!lacks("get") && minor < WEBSOCKETS_NEED_CREATE) => Status::Warn,
        _ if need.is_needed => Status::Fail,
        _ => Status::Warn,
    };
    let rule = Rule::of(need.group, need.resource, need.verbs);
    Check::new(need.id, GROUP, status, format!("cannot {} {resource} in namespace {namespace}", missing.join(" or ")))
        .detail(Some(format!("{}\n{rule}", need.why)))
        .fix("ask for this Role", Some(format!("adit doctor --rbac -n {namespace}")))
}

/// A permission to ask the API server about.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub verb: &'a str,
    pub resource: &'a str,
    pub group: &'a str,
    pub name: Option<&'a str>,
}

/// Returns whether the user has a permission.
///
/// # Errors
/// The API server does not answer the question.
pub async fn may(cluster: &Cluster, namespace: &Namespace, asked: Asked<'_>) -> Result<bool, ClusterError> {
    let Asked { verb, resource, group, name } = asked;
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {
            "namespace": namespace.as_str(), "verb": verb, "group": group, "resource": resource, "subresource": subresource,
            "name": name.unwrap_or_default(),
        }},
    });
    let (answer, _) = ask(cluster, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", Some(review)).await?;
    Ok(answer["status"]["allowed"] == true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::rbac::ALWAYS;

    #[test]
    fn a_permission_of_upgrades_is_judged_by_the_version() {
        let forward = ALWAYS.iter().find(|need| need.is_upgrade).unwrap();
        let status = |missing: &[&str], minor| judged(forward, &"shop".parse().unwrap(), missing, minor).status;
        assert_eq!(status(&[], 36), Status::Ok);
        assert_eq!((status(&["get"], 30), status(&["get"], 36)), (Status::Warn, Status::Warn), "raw SPDY is left");
        assert_eq!((status(&["create"], 34), status(&["create"], 35)), (Status::Warn, Status::Fail));
        assert_eq!(status(&["create", "get"], 30), Status::Fail);
    }
}
