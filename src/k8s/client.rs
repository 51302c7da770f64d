//! Clients for the contexts of a kubeconfig.

use std::{path::PathBuf, sync::Arc};

use http::HeaderMap;

use crate::{
    config::{ContextName, KubeconfigPaths, Namespace},
    k8s::ClusterError,
    routing::{ClusterId, Contexts},
};

/// All clusters that the kubeconfigs describe; one cached [`Cluster`] for each that was used.
pub struct Clusters {}

/// One cluster as one user: the API client, and what an upgrade needs beside it.
pub struct Cluster {
    pub context: ContextName,
    /// The namespace that the context names, else `default`.
    pub namespace: Namespace,
    /// For requests and watches.
    pub client: kube::Client,
    /// The API server, e.g. `https://10.0.0.1:6443/k8s/clusters/c-1`: upgrades keep its path prefix.
    pub server: http::Uri,
    /// For upgrades: the cluster's roots and client certificate, ALPN `http/1.1`. None: `http://`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The name that the API server's certificate is verified against.
    pub tls_server_name: Option<rustls::pki_types::ServerName<'static>>,
    /// `proxy-url` of the kubeconfig, or HTTPS_PROXY.
    pub proxy: Option<http::Uri>,
}

impl Clusters {
    /// `exec_path`: folders in front of PATH for credential plugins.
    pub fn new(_exec_path: Vec<PathBuf>) -> Arc<Self> {
        todo!()
    }

    /// Reads the kubeconfig files and returns what names and routes need of them. Never fails: see [`Contexts::problem`].
    pub fn contexts(&self, _paths: &Arc<KubeconfigPaths>) -> Contexts {
        todo!()
    }

    /// Returns the cluster, made at its first use; again made when its kubeconfig files have changed.
    pub async fn get(&self, _id: &ClusterId) -> Result<Arc<Cluster>, ClusterError> {
        todo!()
    }
}

impl Cluster {
    /// Returns the headers that authenticate an upgrade: Authorization, impersonation. Refreshes what has expired.
    pub async fn auth_headers(&self) -> Result<HeaderMap, ClusterError> {
        todo!()
    }
}
