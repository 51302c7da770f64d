//! The permissions that adit needs, and the smallest Role with them.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    time::Duration,
};

use tokio::time::timeout;

use super::{
    cluster::ask,
    relays,
    scope::{Of, Scope},
};
use crate::{cli::report::CliError, config::Namespace};

/// Time limit for information that improves a Role: the user's name, and the relays.
const WITHIN: Duration = Duration::from_secs(5);

/// A permission: verbs on a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    pub id: &'static str,
    pub group: &'static str,
    pub resource: &'static str,
    pub verbs: &'static [&'static str],
    /// Whether the request is an upgrade. Raw SPDY needs `create`; a WebSocket needs `get`, and both from Kubernetes 1.35 on.
    pub is_upgrade: bool,
    /// Whether adit reaches nothing without it.
    pub is_needed: bool,
    pub why: &'static str,
}

/// A rule of a Role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub group: &'static str,
    pub resource: &'static str,
    pub verbs: Vec<&'static str>,
    /// The only object that the rule is for. `None`: all.
    pub name: Option<String>,
}

impl Rule {
    pub fn of(group: &'static str, resource: &'static str, verbs: &[&'static str]) -> Self {
        Self { group, resource, verbs: verbs.to_vec(), name: None }
    }

    /// Merges the rule into others, so that each resource has one rule, and each verb appears once.
    fn join(self, rules: &mut Vec<Self>) {
        let is_same =
            |rule: &&mut Self| (rule.group, rule.resource, &rule.name) == (self.group, self.resource, &self.name);
        match rules.iter_mut().find(is_same) {
            Some(rule) => {
                let new = self.verbs.iter().filter(|verb| !rule.verbs.contains(verb)).copied().collect::<Vec<_>>();
                rule.verbs.extend(new);
            }
            None => rules.push(self),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, resource, verbs, name } = self;
        write!(f, "- {{apiGroups: [{group:?}], resources: [{resource}], ")?;
        if let Some(name) = name {
            write!(f, "resourceNames: [{name:?}], ")?;
        }
        write!(f, "verbs: [{}]}}", verbs.join(", "))
    }
}

pub const ALWAYS: &[Need] = &[
    Need {
        id: "permission-services",
        group: "",
        resource: "services",
        verbs: &["get"],
        is_upgrade: false,
        is_needed: true,
        why: "a name means a Service",
    },
    Need {
        id: "permission-pods",
        group: "",
        resource: "pods",
        verbs: &["get"],
        is_upgrade: false,
        is_needed: true,
        why: "the ports of a pod are in it",
    },
    Need {
        id: "permission-list-pods",
        group: "",
        resource: "pods",
        verbs: &["list", "watch"],
        is_upgrade: false,
        is_needed: false,
        why: "without list, adit cannot say why a Service has no ready pod; without watch, a tunnel does not follow the readiness of a pod that is named",
    },
    Need {
        id: "permission-endpointslices",
        group: "discovery.k8s.io",
        resource: "endpointslices",
        verbs: &["list", "watch"],
        is_upgrade: false,
        is_needed: false,
        why: "without list, adit uses the pods of the selector; without watch, it looks them up for each session",
    },
    Need {
        id: "permission-list-services",
        group: "",
        resource: "services",
        verbs: &["list", "watch"],
        is_upgrade: false,
        is_needed: false,
        why: "without list, 'adit routes' has no list, and errors list no similar names; without watch, a tunnel does not follow a changed ExternalName",
    },
    Need {
        id: "permission-portforward",
        group: "",
        resource: "pods/portforward",
        verbs: &["create", "get"],
        is_upgrade: true,
        is_needed: true,
        why: "raw SPDY needs create; WebSockets need get, and from Kubernetes 1.35 on both",
    },
];

const JUMP: Need = Need {
    id: "permission-exec",
    group: "",
    resource: "pods/exec",
    verbs: &["create", "get"],
    is_upgrade: true,
    is_needed: true,
    why: "a jump host is an exec of socat or nc in a pod",
};

const CREATE: Need = Need {
    id: "permission-create-pods",
    group: "",
    resource: "pods",
    verbs: &["create", "delete"],
    is_upgrade: false,
    is_needed: true,
    why: "the configuration has adit create the pod to jump through",
};

/// Returns the permissions that adit needs in a namespace.
pub fn needs(of: &Of, namespace: &Namespace) -> Vec<Need> {
    let mut needs = ALWAYS.to_vec();
    needs.extend(of.jumps.contains(namespace).then_some(JUMP));
    needs.extend(of.creates.contains(namespace).then_some(CREATE));
    needs
}

/// Returns the Roles and RoleBindings of the default context as YAML, one of each per namespace. kubectl applies a file to one
/// cluster, and those of several contexts may have the same namespace and name. Then also returns a note about the others.
///
/// # Errors
/// There is no context, or it is not clear which one is meant.
pub async fn roles(scope: &Scope) -> Result<(String, Option<String>), CliError> {
    let (of, note) = chosen(scope)?;
    let mut text = String::new();
    let (user, relays) = tokio::join!(who(scope, of), of_relays(scope, of));
    for namespace in
        of.namespaces.iter().filter(|namespace| scope.namespace.as_ref().is_none_or(|only| only == *namespace))
    {
        let beside = relays.get(namespace).cloned().unwrap_or_default();
        text.push_str(&role(of, namespace, beside, user.as_deref()));
    }
    Ok((text, note))
}

/// Returns the context whose Roles are printed, and the note about the others that the configuration uses.
fn chosen(scope: &Scope) -> Result<(&Of, Option<String>), CliError> {
    let contexts = &scope.router.http_contexts;
    let default = scope.router.default_context();
    let is_default = |of: &&Of| Some(&of.id.context) == default;
    let is_of_http = |of: &&Of| of.id.kubeconfig == contexts.kubeconfig;
    let all = || scope.contexts.iter();
    let found = all().filter(is_of_http).find(is_default).or_else(|| all().find(is_default));
    let names: Vec<String> =
        all().filter(|of| Some(of.context()) != found.map(Of::context)).map(|of| of.id.context.to_string()).collect();
    match (found, &scope.contexts[..]) {
        (Some(of), _) if names.is_empty() || scope.globals.context.is_some() => Ok((of, None)),
        (Some(of), _) => {
            let command = scope.globals.command_in("doctor", Some(&names[0]));
            let (context, names) = (of.context(), names.join(", "));
            let note = format!(
                "note: these are the Roles of context {context}; the configuration also uses {names}\n\
                 hint: {command} --rbac\n"
            );
            Ok((of, Some(note)))
        }
        (None, [of]) => Ok((of, None)),
        (None, []) => Err(CliError::new("the kubeconfig has no current context")
            .hint(Some(format!("{} config use-context NAME, or use --context", scope.kubectl())))),
        (None, _) => Err(CliError::new("the kubeconfig has no current context, and the configuration uses several")
            .cause(Some(format!("they are {}", names.join(", "))))
            .hint(Some("choose one with --context"))),
    }
}

async fn who(scope: &Scope, of: &Of) -> Option<String> {
    let asking = async {
        let cluster = scope.clusters.get(&of.id).await.ok()?;
        let review = serde_json::json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        ask(&cluster, "/apis/authentication.k8s.io/v1/selfsubjectreviews", Some(review)).await.ok()
    };
    let (review, _) = timeout(WITHIN, asking).await.ok().flatten()?;
    Some(review["status"]["userInfo"]["username"].as_str()?.to_owned())
}

/// Returns the rules for clients of relays, in the namespaces that the Roles are for.
async fn of_relays(scope: &Scope, of: &Of) -> BTreeMap<Namespace, Vec<Rule>> {
    let asking = async {
        let cluster = scope.clusters.get(&of.id).await.ok()?;
        relays::rules(&cluster, scope.namespace.as_ref()).await.ok()
    };
    timeout(WITHIN, asking).await.ok().flatten().unwrap_or_default()
}

/// Returns a Role and its RoleBinding. `beside`: additional rules, for relays.
fn role(of: &Of, namespace: &Namespace, beside: Vec<Rule>, user: Option<&str>) -> String {
    let mut rules = Vec::new();
    for need in needs(of, namespace) {
        Rule::of(need.group, need.resource, need.verbs).join(&mut rules);
    }
    beside.into_iter().for_each(|rule| rule.join(&mut rules));
    let mut text = format!("# context {}\napiVersion: rbac.authorization.k8s.io/v1\nkind: Role\n", of.context());
    let _ = writeln!(text, "metadata: {{name: adit, namespace: {namespace}}}\nrules:");
    for rule in rules {
        let _ = writeln!(text, "{rule}");
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

    use clap::Parser;

    use super::*;
    use crate::{cli::Cli, config::validate, routing::ClusterId};

    #[test]
    fn the_roles_are_those_of_one_context() {
        let of = |text: &str, arguments: &[&str]| {
            let mut config = validate::parse(std::path::Path::new("c"), text.as_bytes()).unwrap();
            let globals = Cli::parse_from(arguments).globals;
            globals.overrides().unwrap().apply(&mut config);
            let (clusters, router) = crate::cli::router(config);
            let scope = Scope::new(clusters, router, &globals, None);
            chosen(&scope).map(|(of, note)| (of.context().to_owned(), note)).map_err(|error| error.to_string())
        };
        let routes = "http: {k8s: {kubeconfig: /nonexistent, routes: {a.localhost: {context: dev, service: x}, \
                      b.localhost: {context: prod, service: x}}}}\n";
        let with_default = format!("default_context: dev\n{routes}");
        let (context, note) = of(&with_default, &["adit"]).unwrap();
        assert!(
            context == "dev" && note.as_ref().is_some_and(|note| note.contains("--context prod doctor --rbac")),
            "{note:?}"
        );
        assert_eq!(of(&with_default, &["adit", "--context", "prod"]), Ok(("prod".to_owned(), None)));
        assert!(of(routes, &["adit"]).unwrap_err().contains("several"));
    }

    #[test]
    fn a_role_has_each_resource_once_and_nothing_that_is_not_used() {
        let shop: Namespace = "shop".parse().unwrap();
        let id = ClusterId { kubeconfig: Default::default(), context: "prod".parse().unwrap() };
        let mut of =
            Of { id, namespaces: BTreeSet::from([shop.clone()]), jumps: BTreeSet::new(), creates: BTreeSet::new() };
        let plain = role(&of, &shop, Vec::new(), Some("ana@example.com"));
        assert!(plain.contains("- {apiGroups: [\"\"], resources: [pods], verbs: [get, list, watch]}\n"), "{plain}");
        assert!(!plain.contains("exec") && plain.contains("name: \"ana@example.com\""), "{plain}");
        of.jumps.insert(shop.clone());
        of.creates.insert(shop.clone());
        let secret = Rule { name: Some("keys".into()), ..Rule::of("", "secrets", &["get"]) };
        let beside = vec![Rule::of("", "pods", &["get", "list"]), secret];
        let jump = role(&of, &shop, beside, Some("system:serviceaccount:ci:runner"));
        assert!(jump.contains("resources: [secrets], resourceNames: [\"keys\"], verbs: [get]"), "{jump}");
        assert!(jump.contains("resources: [pods], verbs: [get, list, watch, create, delete]"), "{jump}");
        assert!(jump.contains("resources: [pods/exec], verbs: [create, get]"), "{jump}");
        assert!(jump.contains("{kind: ServiceAccount, namespace: ci, name: runner}"), "{jump}");
    }
}
