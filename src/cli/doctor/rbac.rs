//! The permissions that adit needs, and the smallest Role that has them.

use std::fmt::Write;

use super::{
    cluster::ask,
    scope::{Of, Scope},
};
use crate::{cli::report::CliError, config::Namespace};

/// Verbs on a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    pub id: &'static str,
    pub group: &'static str,
    pub resource: &'static str,
    pub verbs: &'static [&'static str],
    /// One of the verbs is enough.
    pub any: bool,
    /// Without it nothing can be reached.
    pub is_needed: bool,
    pub why: &'static str,
}

const ALWAYS: &[Need] = &[
    Need {
        id: "right-services",
        group: "",
        resource: "services",
        verbs: &["get"],
        any: false,
        is_needed: true,
        why: "a name means a Service",
    },
    Need {
        id: "right-pods",
        group: "",
        resource: "pods",
        verbs: &["get"],
        any: false,
        is_needed: true,
        why: "the ports of a pod are in it",
    },
    Need {
        id: "right-list-pods",
        group: "",
        resource: "pods",
        verbs: &["list"],
        any: false,
        is_needed: false,
        why: "without it adit cannot say why a Service has no ready pod",
    },
    Need {
        id: "right-endpointslices",
        group: "discovery.k8s.io",
        resource: "endpointslices",
        verbs: &["list", "watch"],
        any: false,
        is_needed: false,
        why: "without list, adit takes the pods of the selector; without watch, it looks them up for each session",
    },
    Need {
        id: "right-list-services",
        group: "",
        resource: "services",
        verbs: &["list"],
        any: false,
        is_needed: false,
        why: "without it 'adit routes' has no list, and errors know no names that are alike",
    },
    Need {
        id: "right-portforward",
        group: "",
        resource: "pods/portforward",
        verbs: &["create", "get"],
        any: true,
        is_needed: true,
        why: "create is for raw SPDY, and from Kubernetes 1.35 on for WebSockets too; get is for WebSockets before that",
    },
];

const JUMP: Need = Need {
    id: "right-exec",
    group: "",
    resource: "pods/exec",
    verbs: &["create", "get"],
    any: true,
    is_needed: true,
    why: "a jump host is an exec of socat or nc in a pod",
};

const CREATE: Need = Need {
    id: "right-create-pods",
    group: "",
    resource: "pods",
    verbs: &["create", "delete"],
    any: false,
    is_needed: true,
    why: "the configuration has adit create the pod to jump through",
};

/// Returns what is needed in a namespace.
pub fn needs(of: &Of, namespace: &Namespace) -> Vec<Need> {
    let mut needs = ALWAYS.to_vec();
    needs.extend(of.jumps.contains(namespace).then_some(JUMP));
    needs.extend(of.creates.contains(namespace).then_some(CREATE));
    needs
}

/// Returns the Roles and RoleBindings of all contexts, as YAML: one of each for a namespace.
///
/// # Errors
/// There is no context.
pub async fn roles(scope: &Scope) -> Result<String, CliError> {
    if scope.contexts.is_empty() {
        return Err(CliError::new("the kubeconfig has no current context")
            .hint(Some("kubectl config use-context NAME, or use --context")));
    }
    let mut text = String::new();
    for of in &scope.contexts {
        let user = who(scope, of).await;
        for namespace in
            of.namespaces.iter().filter(|namespace| scope.namespace.as_ref().is_none_or(|only| only == *namespace))
        {
            text.push_str(&role(of, namespace, user.as_deref()));
        }
    }
    Ok(text)
}

async fn who(scope: &Scope, of: &Of) -> Option<String> {
    let cluster = scope.clusters.get(&of.id).await.ok()?;
    let review = serde_json::json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let (review, _) = ask(&cluster, "/apis/authentication.k8s.io/v1/selfsubjectreviews", Some(review)).await.ok()?;
    Some(review["status"]["userInfo"]["username"].as_str()?.to_owned())
}

fn role(of: &Of, namespace: &Namespace, user: Option<&str>) -> String {
    let mut rules: Vec<(&str, &str, Vec<&str>)> = Vec::new();
    for need in needs(of, namespace) {
        match rules.iter_mut().find(|(group, resource, _)| (*group, *resource) == (need.group, need.resource)) {
            Some((.., verbs)) => verbs.extend(need.verbs),
            None => rules.push((need.group, need.resource, need.verbs.to_vec())),
        }
    }
    let mut text = format!("# context {}\napiVersion: rbac.authorization.k8s.io/v1\nkind: Role\n", of.context());
    let _ = writeln!(text, "metadata: {{name: adit, namespace: {namespace}}}\nrules:");
    for (group, resource, verbs) in rules {
        let _ = writeln!(text, "- {{apiGroups: [{group:?}], resources: [{resource}], verbs: [{}]}}", verbs.join(", "));
    }
    let subject = subject(user);
    let _ = writeln!(
        text,
        "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {{name: adit, namespace: {namespace}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: adit}}\nsubjects:\n- {subject}\n---"
    );
    text
}

fn subject(user: Option<&str>) -> String {
    let account = user.and_then(|user| user.strip_prefix("system:serviceaccount:")?.split_once(':'));
    match (account, user) {
        (Some((namespace, name)), _) => format!("{{kind: ServiceAccount, namespace: {namespace}, name: {name}}}"),
        (None, user) => {
            let user = user.unwrap_or("USER");
            format!("{{apiGroup: rbac.authorization.k8s.io, kind: User, name: {user:?}}}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{config::ContextName, routing::ClusterId};

    #[test]
    fn a_role_has_each_resource_once_and_nothing_that_is_not_used() {
        let shop = Namespace("shop".into());
        let id = ClusterId { kubeconfig: Default::default(), context: ContextName("prod".into()) };
        let mut of =
            Of { id, namespaces: BTreeSet::from([shop.clone()]), jumps: BTreeSet::new(), creates: BTreeSet::new() };
        let plain = role(&of, &shop, Some("ana@example.com"));
        assert!(plain.contains("- {apiGroups: [\"\"], resources: [pods], verbs: [get, list]}\n"), "{plain}");
        assert!(!plain.contains("exec") && plain.contains("name: \"ana@example.com\""), "{plain}");
        of.jumps.insert(shop.clone());
        of.creates.insert(shop.clone());
        let jump = role(&of, &shop, Some("system:serviceaccount:ci:runner"));
        assert!(jump.contains("resources: [pods], verbs: [get, list, create, delete]"), "{jump}");
        assert!(jump.contains("resources: [pods/exec], verbs: [create, get]"), "{jump}");
        assert!(jump.contains("{kind: ServiceAccount, namespace: ci, name: runner}"), "{jump}");
    }
}
