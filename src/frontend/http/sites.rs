//! What names mean to the HTTP front: a laptop asks its router, a relay its tunnels.

use arc_swap::ArcSwap;
use http::{Request, uri::Authority};

use super::{body::Body, error_page::Page, pages};
use crate::routing::{Route, RouteError, Router, table};

/// Gives each request its route.
pub trait Sites: Send + Sync + 'static {
    /// Returns the route of a request. `host`: whom it is for, in lower case, without port.
    ///
    /// # Errors
    /// There is none: the page to answer with.
    fn route(&self, host: &str, request: &Request<Body>) -> Result<Route, Page>;

    /// Returns the port of https for a client without TLS that named no port. `local`: the port that it has connected to. None: it is
    /// 443, or the client's port, which something in between may have changed.
    fn https_port(&self, authority: &str, local: u16) -> Option<u16>;

    /// Returns whether a name means this machine: what a browser remembers of it concerns every name below the same suffix.
    fn is_local(&self, host: &str) -> bool;
}

impl Sites for ArcSwap<Router> {
    fn route(&self, host: &str, _: &Request<Body>) -> Result<Route, Page> {
        let router = self.load();
        router.http(host).map_err(|error| match error {
            RouteError::Unknown { .. } if table::is_own_name(host) => pages::index(&router),
            error => pages::of_route(&router, &error),
        })
    }

    /// The HTTP listener speaks TLS, too.
    fn https_port(&self, authority: &str, local: u16) -> Option<u16> {
        let has_port = authority.parse::<Authority>().is_ok_and(|authority| authority.port().is_some());
        let is_ours = !has_port && local == 80;
        (is_ours && self.load().config.http.listen.iter().all(|listen| listen.port() != 443)).then_some(local)
    }

    fn is_local(&self, host: &str) -> bool {
        let below = |name: &str| host.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        below("localhost") || below(&self.load().config.http.dynamic_host)
    }
}
