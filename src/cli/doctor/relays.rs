//! Checks the permissions for `adit expose`, if the cluster has relays.

use std::collections::BTreeMap;

use futures::future::join_all;

use super::{
    kubeconfig::of_error,
    rbac::Rule,
    report::{Check, Group, Status},
    rights::{Asked, may},
    scope::Of,
};
use crate::{
    cli::expose::find,
    config::Namespace,
    k8s::{ClusterError, client::Cluster},
};

const ID: &str = "permission-expose";

/// Returns the rules for clients of relays, by the relays' namespaces. `only`: namespace to search for relays; `None`: all.
///
/// # Errors
/// The pods cannot be listed.
pub async fn rules(
    cluster: &Cluster,
    only: Option<&Namespace>,
) -> Result<BTreeMap<Namespace, Vec<Rule>>, ClusterError> {
    let mut rules: BTreeMap<Namespace, Vec<Rule>> = BTreeMap::new();
    for relay in find::ready(cluster, only).await? {
        let of_namespace = rules.entry(relay.target.0).or_insert_with(|| {
            vec![Rule::of("", "pods", &["get", "list"]), Rule::of("", "pods/portforward", &["create", "get"])]
        });
        let secret = relay.keys.map(|name| Rule { name: Some(name), ..Rule::of("", "secrets", &["get"]) });
        of_namespace.extend(secret.filter(|rule| !of_namespace.contains(rule)));
    }
    Ok(rules)
}

/// Checks whether the user may connect to the relays of the cluster.
pub async fn checks(of: &Of, cluster: &Cluster) -> Vec<Check> {
    let skip = |needs: &str| vec![Check::new(ID, Group::Rights, Status::Skip, format!("adit expose (needs {needs})"))];
    let mut found = rules(cluster, None).await;
    if matches!(found, Err(ClusterError::Forbidden { .. })) {
        // A user without cluster-wide permissions may have them in the namespaces of the configuration.
        let near = join_all(of.namespaces.iter().map(|namespace| rules(cluster, Some(namespace)))).await;
        let near: BTreeMap<_, _> = near.into_iter().flatten().flatten().collect();
        if near.is_empty() {
            return skip("permission to list the pods of all namespaces, or a relay in one of these");
        }
        found = Ok(near);
    }
    let rules = match found {
        Ok(rules) if rules.is_empty() => return skip("a relay: this cluster has none"),
        Ok(rules) => rules,
        Err(error) => return vec![of_error(ID, Group::Rights, &error)],
    };
    join_all(rules.iter().map(|(namespace, rules)| of_namespace(cluster, namespace, rules))).await
}

async fn of_namespace(cluster: &Cluster, namespace: &Namespace, rules: &[Rule]) -> Check {
    let mut missing = Vec::new();
    for rule in rules {
        for verb in rule.verbs.iter().filter(|verb| **verb != "get" || rule.resource == "secrets") {
            let asked = Asked { verb, resource: rule.resource, group: rule.group, name: rule.name.as_deref() };
            match may(cluster, namespace, asked).await {
                Ok(true) => {}
                Ok(false) => missing.push((format!("{verb} {}", rule.resource), rule)),
                Err(error) => return of_error(ID, Group::Rights, &error),
            }
        }
    }
    if missing.is_empty() {
        let says = format!("may use the relay in namespace {namespace} (adit expose)");
        return Check::new(ID, Group::Rights, Status::Ok, says);
    }
    let words: Vec<&str> = missing.iter().map(|(what, _)| what.as_str()).collect();
    let mut lines: Vec<String> = missing.iter().map(|(_, rule)| rule.to_string()).collect();
    lines.dedup();
    let says = format!("cannot {} in namespace {namespace}: adit expose needs it", words.join(" and "));
    Check::new(ID, Group::Rights, Status::Warn, says)
        .detail(Some(lines.join("\n")))
        .fix("ask for this Role", Some(format!("adit doctor --rbac -n {namespace}")))
}
