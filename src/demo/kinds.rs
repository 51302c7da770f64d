//! The kinds of objects that the demo cluster supports.

/// A kind, with its names in paths and discovery documents.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    pub plural: &'static str,
    pub singular: &'static str,
    pub name: &'static str,
    /// API group. Empty: the core group.
    pub group: &'static str,
    pub short: &'static [&'static str],
    pub is_namespaced: bool,
    /// Subresources such as `log`, each with the kind of its request and answer.
    pub subresources: &'static [(&'static str, &'static str)],
}

const fn kind(
    plural: &'static str,
    singular: &'static str,
    name: &'static str,
    group: &'static str,
    short: &'static [&'static str],
) -> Kind {
    Kind { plural, singular, name, group, short, is_namespaced: true, subresources: &[] }
}

const SCALE: &[(&str, &str)] = &[("scale", "Scale")];
const OF_PODS: &[(&str, &str)] =
    &[("exec", "PodExecOptions"), ("log", "Pod"), ("portforward", "PodPortForwardOptions")];

/// Every kind. The version is `v1` in each group.
pub const ALL: &[Kind] = &[
    Kind { is_namespaced: false, ..kind("namespaces", "namespace", "Namespace", "", &["ns"]) },
    Kind { is_namespaced: false, ..kind("nodes", "node", "Node", "", &["no"]) },
    Kind { subresources: OF_PODS, ..kind("pods", "pod", "Pod", "", &["po"]) },
    kind("services", "service", "Service", "", &["svc"]),
    kind("secrets", "secret", "Secret", "", &[]),
    kind("serviceaccounts", "serviceaccount", "ServiceAccount", "", &["sa"]),
    kind("events", "event", "Event", "", &["ev"]),
    Kind { subresources: SCALE, ..kind("deployments", "deployment", "Deployment", "apps", &["deploy"]) },
    Kind { subresources: SCALE, ..kind("replicasets", "replicaset", "ReplicaSet", "apps", &["rs"]) },
    Kind { subresources: SCALE, ..kind("statefulsets", "statefulset", "StatefulSet", "apps", &["sts"]) },
    kind("endpoints", "endpoints", "Endpoints", "", &["ep"]),
    kind("endpointslices", "endpointslice", "EndpointSlice", "discovery.k8s.io", &[]),
    kind("leases", "lease", "Lease", "coordination.k8s.io", &[]),
    kind("roles", "role", "Role", "rbac.authorization.k8s.io", &[]),
    kind("rolebindings", "rolebinding", "RoleBinding", "rbac.authorization.k8s.io", &[]),
];

/// API groups besides the core group, including those that only answer questions about access.
pub const GROUPS: &[&str] = &[
    "apps",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "rbac.authorization.k8s.io",
];

impl Kind {
    pub fn api_version(&self) -> String {
        group_version(self.group)
    }

    /// Returns whether it has a number of replicas, which is then the only thing that can be patched.
    pub fn is_scaled(&self) -> bool {
        self.subresources.iter().any(|(sub, _)| *sub == "scale")
    }

    /// Returns the name with its group, as in errors: `deployments.apps`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// Returns the kind with a plural name that is a constant of this crate.
pub fn of_plural(plural: &'static str) -> &'static Kind {
    ALL.iter().find(|kind| kind.plural == plural).expect("plurals are taken from the table")
}

/// Returns the kind that a path names. `None`: unknown.
pub fn find(group: &str, plural: &str) -> Option<&'static Kind> {
    ALL.iter().find(|kind| kind.group == group && kind.plural == plural)
}

pub fn group_version(group: &str) -> String {
    if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") }
}
