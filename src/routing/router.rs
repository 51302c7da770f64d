//! From a name to a route.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;

use crate::{
    config::Config,
    routing::{Contexts, Route},
};

/// The meaning of every name, for one configuration and one state of the kubeconfig.
#[derive(Clone, Debug)]
pub struct Router {
    pub config: Arc<Config>,
    /// The contexts of `http.k8s.kubeconfig`.
    pub http_contexts: Arc<Contexts>,
    /// The contexts of `tcp.k8s.kubeconfig`.
    pub tcp_contexts: Arc<Contexts>,
}

/// Why a name leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Display: `no route for argo.localhost`.
    #[error("no route for {host}")]
    Unknown { host: String, near: Vec<String> },
    /// A dynamic name whose parts are not what its grammar wants.
    #[error("{host} is not a name that can be reached: {reason}")]
    Malformed { host: String, reason: String },
    #[error("context {context} is closed to names without a route")]
    DynamicDenied { host: String, context: String },
    /// The name gives no context, and there is no current one (or no kubeconfig at all).
    #[error("no context for {host}: {reason}")]
    NoContext { host: String, reason: String },
}

impl Router {
    /// Returns the route of a Host header or SNI: in any case, with or without port and trailing dot.
    ///
    /// Static routes first (exact, then wildcards, the longest first), then the dynamic forms.
    pub fn http(&self, _host: &str) -> Result<Route, RouteError> {
        todo!()
    }

    /// Returns the route of a TCP listener.
    pub fn tcp(&self, _listener: SocketAddr) -> Result<Route, RouteError> {
        todo!()
    }
}

impl RouteError {
    /// Returns a stable, machine-readable name: `unknown-host`, `malformed-host`, `dynamic-denied`, `no-context`.
    pub fn code(&self) -> &'static str {
        todo!()
    }

    /// Returns what to do about it.
    pub fn hint(&self) -> Option<String> {
        todo!()
    }
}

/// The router in force; swapped by a reload or a change of the kubeconfig, read once per request.
pub type SharedRouter = Arc<ArcSwap<Router>>;
