//! Cluster and namespace of a command that does not serve.

use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::Arc,
};

use super::{Globals, report::CliError, running::Running};
use crate::{
    admin::api::services::named_context,
    app,
    config::{ContextName, InvalidValue, Namespace, shell::kubectl},
    k8s::client::{Cluster, Clusters},
    routing::{ClusterId, RouteError, Router, alias},
};

pub struct Place {
    pub clusters: Arc<Clusters>,
    pub router: Router,
    pub id: ClusterId,
    /// Namespace of the command line, else of the context's alias, else of the kubeconfig.
    pub namespace: Namespace,
}

impl Place {
    /// # Errors
    /// The configuration is invalid, or there is no context.
    pub fn of(globals: &Globals) -> Result<Self, CliError> {
        let (clusters, router) = super::router(globals.load()?);
        Self::at(clusters, router, globals)
    }

    /// Does the same with a kubeconfig that was read already: it may be a pipe, which can be read only once.
    ///
    /// # Errors
    /// There is no context.
    pub fn at(clusters: Arc<Clusters>, router: Router, globals: &Globals) -> Result<Self, CliError> {
        let id = ClusterId { kubeconfig: router.http_contexts.kubeconfig.clone(), context: context(&router)? };
        let of_alias = router.config.contexts.values().find(|alias| alias.name == id.context);
        let namespace = globals.namespace.clone();
        let namespace = namespace.or_else(|| of_alias.and_then(|alias| alias.namespace.clone()));
        let of_context = || router.http_contexts.namespaces.get(&id.context).cloned().transpose();
        let namespace = match namespace {
            Some(namespace) => namespace,
            None => of_context().map_err(|invalid| no_namespace(&id, invalid))?.unwrap_or_default(),
        };
        Ok(Self { clusters, router, id, namespace })
    }

    /// # Errors
    /// The context is invalid, or its credentials cannot be used.
    pub async fn cluster(&self) -> Result<Arc<Cluster>, CliError> {
        Ok(self.clusters.get(&self.id).await?)
    }

    pub fn context(&self) -> &ContextName {
        &self.id.context
    }

    /// Returns the port of the HTTP listener; 0: there is none.
    pub fn listener(&self) -> u16 {
        listener(None, &self.router)
    }
}

/// Returns the port of the HTTP listener: that of the running adit, else of the configuration. 0: there is none.
pub fn listener(running: Option<&Running>, router: &Router) -> u16 {
    let configured = || router.config.http.listen.first().map_or(0, SocketAddr::port);
    running.map_or_else(configured, |running| running.port)
}

/// Prints a note that no running adit serves these URLs.
pub fn note_not_running(listener: u16) {
    let note = format!("note: no adit is running with this configuration on port {listener}: start it with 'adit'\n");
    // If stderr is closed, nobody can be told.
    let _ = io::stderr().write_all(note.as_bytes());
}

/// Returns the router for the names in URLs, and the running adit that serves them.
///
/// With `--context`, the adit that serves the URLs may run with another current context. Then a name without a context would
/// mean another cluster, so that the names have to contain theirs.
///
/// # Errors
/// The configuration is invalid.
pub async fn serving(
    globals: &Globals,
    clusters: &Clusters,
    router: Router,
) -> Result<(Option<Running>, Router), CliError> {
    let running = Running::find(globals, &router).await;
    let context = router.config.default_context.clone();
    let Some(context) = context.filter(|_| globals.context.is_some() && running.is_none()) else {
        return Ok((running, router));
    };
    let others = Globals { context: None, ..globals.clone() };
    let of_others = app::route(clusters, Arc::new(others.load()?));
    if named_context(&of_others, &context).is_err() {
        let advice = alias::advice(&context, &router.http_contexts);
        let note = format!(
            "note: these names mean context {context} only if adit runs with --context: no URL can contain its name\n\
             hint: {advice}\n"
        );
        // If stderr is closed, nobody can be told.
        let _ = io::stderr().write_all(note.as_bytes());
        return Ok((None, router));
    }
    Ok((Running::find(&others, &of_others).await, of_others))
}

/// Returns the error of a context with an invalid namespace.
fn no_namespace(id: &ClusterId, invalid: InvalidValue) -> CliError {
    let error = RouteError::NoNamespace { context: id.context.clone(), invalid, kubectl: kubectl(&id.kubeconfig) };
    CliError::new(&error).hint(error.hint())
}

/// Returns the default context.
fn context(router: &Router) -> Result<ContextName, CliError> {
    let contexts = &router.http_contexts;
    router.default_context().cloned().ok_or_else(|| match &contexts.problem {
        Some(problem) => CliError::new("cannot read the kubeconfig").cause(Some(problem)).hint(Some(
            if problem.ends_with("does not exist") || problem.starts_with("there is no") {
                "set $KUBECONFIG, or use --kubeconfig"
            } else {
                "correct the file, or name another with --kubeconfig"
            },
        )),
        None => CliError::new("the kubeconfig has no current context")
            .hint(Some(format!("{} config use-context NAME, or use --context", kubectl(&contexts.kubeconfig)))),
    })
}
