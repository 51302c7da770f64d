//! What a command that does not serve is about: one cluster, and a namespace of it.

use std::{net::SocketAddr, sync::Arc};

use super::{Globals, report::CliError};
use crate::{
    config::{ContextName, Namespace},
    k8s::client::{Cluster, Clusters},
    routing::{ClusterId, Router},
};

pub struct Place {
    pub clusters: Arc<Clusters>,
    pub router: Router,
    pub id: ClusterId,
    pub cluster: Arc<Cluster>,
    /// Of the command line, else of the context's alias, else of the kubeconfig.
    pub namespace: Namespace,
}

impl Place {
    /// # Errors
    /// The configuration is wrong, no context is meant, or it cannot be reached.
    pub async fn find(globals: &Globals) -> Result<Self, CliError> {
        let (clusters, router) = super::router(globals.load()?);
        let id = ClusterId { kubeconfig: router.http_contexts.kubeconfig.clone(), context: context(&router)? };
        let cluster = clusters.get(&id).await?;
        let of_alias = router.config.contexts.values().find(|alias| alias.name == id.context);
        let namespace = globals.namespace.clone().map(Namespace);
        let namespace = namespace.or_else(|| of_alias.and_then(|alias| alias.namespace.clone()));
        let namespace = namespace.unwrap_or_else(|| cluster.namespace.clone());
        Ok(Self { clusters, router, id, cluster, namespace })
    }

    pub fn context(&self) -> &ContextName {
        &self.id.context
    }

    /// Returns how a hostname has to name the context. None: it is the one that names without a context mean.
    pub fn named_context(&self) -> Option<String> {
        if self.router.http_contexts.current.as_ref() == Some(self.context()) {
            return None;
        }
        let alias = self.router.config.contexts.iter().find(|(_, alias)| alias.name == *self.context());
        Some(alias.map_or_else(|| self.context().to_string(), |(alias, _)| alias.clone()))
    }

    /// Returns the port of the HTTP listener, 0 where there is none.
    pub fn listener(&self) -> u16 {
        self.router.config.http.listen.first().map_or(0, SocketAddr::port)
    }
}

/// Returns the context that is meant where none is said.
fn context(router: &Router) -> Result<ContextName, CliError> {
    let contexts = &router.http_contexts;
    router.config.default_context.clone().or_else(|| contexts.current.clone()).ok_or_else(|| match &contexts.problem {
        Some(problem) => CliError::new("cannot read the kubeconfig")
            .cause(Some(problem))
            .hint(Some("set $KUBECONFIG, or use --kubeconfig")),
        None => CliError::new("the kubeconfig has no current context")
            .hint(Some("kubectl config use-context NAME, or use --context")),
    })
}
