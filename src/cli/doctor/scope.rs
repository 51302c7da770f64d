//! Scope of the checks: the contexts and namespaces of the configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use super::report::quoted;
use crate::{
    cli::Globals,
    config::{ContextName, Namespace, shell},
    k8s::client::Clusters,
    routing::{ClusterId, Named, NamedError, Router, Target},
};

/// A context that the configuration uses.
#[derive(Clone, Debug)]
pub struct Of {
    pub id: ClusterId,
    pub namespaces: BTreeSet<Namespace>,
    /// Namespaces with jump hosts (`via`, `tcp.k8s.jump`).
    pub jumps: BTreeSet<Namespace>,
    /// Namespaces in which adit creates the jump pod.
    pub creates: BTreeSet<Namespace>,
}

/// Everything that the checks are about.
pub struct Scope {
    pub clusters: Arc<Clusters>,
    pub router: Router,
    pub contexts: Vec<Of>,
    /// Namespace of the command line.
    pub namespace: Option<Namespace>,
    /// Global options, for commands to copy.
    pub globals: Globals,
}

impl Scope {
    /// Returns the scope. `target`: a target to check in addition to the configuration.
    pub fn new(clusters: Arc<Clusters>, router: Router, globals: &Globals, target: Option<&str>) -> Self {
        let namespace = globals.namespace.clone();
        let mut contexts: BTreeMap<ClusterId, Of> = BTreeMap::new();
        let named = target.and_then(|target| router.named(target, namespace.as_ref()).ok()).map(|named| named.route);
        let http = router.config.http.routes.keys().filter_map(|host| router.http(host).ok());
        let tcp = router.config.tcp.routes.keys().filter_map(|address| router.tcp(*address).ok());
        let sni = router.config.sni.iter().flat_map(|sni| sni.routes.keys());
        let sni = sni.filter_map(|name| router.sni(name).ok()).map(|(route, _)| route);
        for route in http.chain(tcp).chain(sni).chain(named) {
            if let Target::Pods(pods) = &route.target {
                let of = contexts.entry(pods.cluster.clone()).or_insert_with(|| Of::new(pods.cluster.clone()));
                of.namespaces.insert(pods.namespace.clone());
                if let Some(jump) = &pods.jump {
                    of.jumps.insert(pods.namespace.clone());
                    if jump.create.is_some() {
                        of.creates.insert(pods.namespace.clone());
                    }
                }
            }
        }
        if let Some(context) = router.default_context().cloned() {
            let id = ClusterId { kubeconfig: router.http_contexts.kubeconfig.clone(), context };
            let of = contexts.entry(id.clone()).or_insert_with(|| Of::new(id.clone()));
            match &namespace {
                Some(namespace) => _ = of.namespaces.insert(namespace.clone()),
                // Dynamic names reach every namespace; the context's own stands for them.
                None if of.namespaces.is_empty() => _ = of.namespaces.insert(default_namespace(&router, &id)),
                None => {}
            }
        }
        Self { clusters, router, contexts: contexts.into_values().collect(), namespace, globals: globals.clone() }
    }

    pub fn named(&self, target: &str) -> Result<Named, NamedError> {
        self.router.named(target, self.namespace.as_ref())
    }

    /// Returns the kubectl command that reads the same kubeconfig.
    pub fn kubectl(&self) -> String {
        shell::kubectl(&self.router.http_contexts.kubeconfig)
    }

    /// Returns the kubectl command for a context.
    pub fn kubectl_of(&self, context: &ContextName) -> String {
        format!("{} --context {}", self.kubectl(), quoted(context))
    }

    /// Returns the option with the configuration file, for commands to copy. Empty: it is not needed.
    pub fn option(&self) -> String {
        match self.globals.config_path() {
            (Some(path), true) => format!(" --config {}", quoted(&path.display().to_string())),
            _ => String::new(),
        }
    }

    /// Returns the port of the HTTP listener; 0: there is none.
    pub fn port(&self) -> u16 {
        self.router.config.http.listen.first().map_or(0, SocketAddr::port)
    }
}

impl Of {
    fn new(id: ClusterId) -> Self {
        Self { id, namespaces: BTreeSet::new(), jumps: BTreeSet::new(), creates: BTreeSet::new() }
    }

    pub fn context(&self) -> &str {
        &self.id.context
    }
}

fn default_namespace(router: &Router, id: &ClusterId) -> Namespace {
    let of_alias = router.config.alias_of(&id.context).and_then(|(_, alias)| alias.namespace.clone());
    let of_context = || router.http_contexts.namespaces.get(&id.context).cloned()?.ok();
    of_alias.or_else(of_context).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{cli::Cli, config::validate};

    #[test]
    fn the_namespaces_of_every_kind_of_route_are_checked() {
        let text = "default_context: dev\n\
                    http: {k8s: {routes: {a.localhost: {namespace: a, service: x}}}}\n\
                    tcp: {k8s: {routes: {10: {namespace: b, service: x}}}}\n\
                    sni: {listen: \"127.0.0.1:0\", routes: {\"*.c.test\": {k8s: {namespace: c, service: x}}}}\n";
        let (clusters, router) =
            crate::cli::router(validate::parse(std::path::Path::new("c"), text.as_bytes()).unwrap());
        let scope = Scope::new(clusters, router, &Cli::parse_from(["adit"]).globals, None);
        let namespaces: Vec<_> = scope.contexts.iter().flat_map(|of| &of.namespaces).map(ToString::to_string).collect();
        assert_eq!(namespaces, ["a", "b", "c"]);
    }
}
