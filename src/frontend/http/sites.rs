//! Resolves names for the HTTP frontend: by the router on a laptop, by the tunnels on a relay.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use http::{
    Request, Response, Version,
    header::PROXY_AUTHORIZATION,
    uri::{self, Authority},
};

use super::{body::Body, error_page::Page, pac, pages};
use crate::{
    config::{Elsewhere, HttpOptions},
    frontend::{door::Door, forward::Asked, read_only::ReadOnly},
    routing::{Route, RouteError, Router, table},
    wire::connect::{Credentials, basic},
};

/// Gives each request its route.
pub trait Sites: Send + Sync + 'static {
    /// Answers a request for adit itself. `None`: the request is for a route. `local`: address that the client connected to.
    fn answer(&self, host: &str, request: &Request<Body>, local: SocketAddr) -> Option<Response<Body>>;

    /// Returns the route of a request.
    ///
    /// `host`: its authority, in lower case, without port. `door`: whether it came to a forward proxy.
    ///
    /// # Errors
    /// There is no route: the page to answer with.
    fn route(&self, host: &str, request: &Request<Body>, door: &Door) -> Result<Route, Page>;

    /// Returns the host of another network that a request to a forward proxy may be for, if no Service or pod has that name.
    fn elsewhere(&self, host: &str, request: &Request<Body>, door: &Door) -> Option<Asked> {
        let _ = (host, request, door);
        None
    }

    /// Returns the rule of a route's context. `None`: it accepts every method.
    fn read_only(&self, route: &Route) -> Option<ReadOnly> {
        let _ = route;
        None
    }

    /// Returns the port for https, for a client without TLS that named no port. `None`: 443, or the client's own port, which
    /// something between may have changed. `local`: the port that the client has connected to.
    fn https_port(&self, authority: &str, local: u16) -> Option<u16> {
        let _ = (authority, local);
        None
    }

    /// Returns whether a name means this machine alone. What a browser remembers of such a name affects all names below its
    /// suffix, and outlives adit.
    fn is_local(&self, host: &str) -> bool {
        let _ = host;
        false
    }

    /// Returns whether clients reach this proxy before any other. The first proxy replaces X-Forwarded-For, which a client could
    /// forge; a proxy behind others passes it on.
    fn is_first(&self) -> bool {
        true
    }

    /// Returns the public port of a load balancer in front of this proxy, and whether its forwarded headers can be trusted.
    /// `None`: clients connect to this proxy.
    fn public(&self) -> Option<(u16, bool)> {
        None
    }

    /// Returns an error page as the clients of these sites may see it.
    fn shown(&self, page: Page) -> Page {
        page
    }
}

impl Sites for ArcSwap<Router> {
    fn answer(&self, host: &str, request: &Request<Body>, local: SocketAddr) -> Option<Response<Body>> {
        pac::answer(request, &self.load(), host, local)
    }

    fn route(&self, host: &str, request: &Request<Body>, door: &Door) -> Result<Route, Page> {
        let router = self.load();
        let is_own = table::is_own_name(host);
        let forward = |asked: Asked| {
            let route = router.forward(asked.context.as_ref(), &asked.host, asked.port)?;
            // A client of the forward proxy can reach the names in redirects itself.
            let options = HttpOptions { rewrite_location: Some(false), ..(*route.options).clone() };
            Ok(Route { options: Arc::new(options), ..route })
        };
        let route = match to_proxy(request, &router, door).filter(|_| !table::is_here(host)) {
            // The context that a client names is the one of every name, as by SOCKS and CONNECT.
            Some(asked) if asked.context.is_some() => forward(asked),
            asked => router.http(host).or_else(|error| asked.map_or(Err(error), forward)),
        };
        route.map_err(|error| match error {
            RouteError::Unknown { .. } if is_own => pages::index(router.config.dashboard),
            error => pages::of_route(&error, router.config.dashboard),
        })
    }

    fn read_only(&self, route: &Route) -> Option<ReadOnly> {
        ReadOnly::of(&self.load().config, route)
    }

    fn elsewhere(&self, host: &str, request: &Request<Body>, door: &Door) -> Option<Asked> {
        let router = self.load();
        let is_direct = router.config.proxy.as_ref().is_some_and(|proxy| proxy.elsewhere == Elsewhere::Direct);
        let asked = to_proxy(request, &router, door).filter(|_| is_direct && !table::is_here(host))?;
        (asked.context.is_none() && router.http(host).is_err()).then_some(asked)
    }

    /// The HTTP listener speaks TLS, too.
    fn https_port(&self, authority: &str, local: u16) -> Option<u16> {
        let has_port = authority.parse::<Authority>().is_ok_and(|authority| authority.port().is_some());
        let is_ours = !has_port && local == 80;
        (is_ours && self.load().config.http.listen.iter().all(|listen| listen.port() != 443)).then_some(local)
    }

    fn is_local(&self, host: &str) -> bool {
        let below = |name: &str| host.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let router = self.load();
        let has_route = table::find(&router.config.http.routes, host).is_some();
        has_route || below("localhost") || below(&router.config.http.dynamic_host)
    }
}

/// Returns the destination of a request to a forward proxy: an absolute URL, which no web page can make a browser send.
fn to_proxy<B>(request: &Request<B>, router: &Router, door: &Door) -> Option<Asked> {
    let is_whole = request.version() < Version::HTTP_2 && request.uri().scheme() == Some(&uri::Scheme::HTTP);
    if !is_whole || router.config.proxy.is_none() || door.is_closed() {
        return None;
    }
    let context = door.context(credentials(request).as_ref()).ok()?;
    let host = request.uri().host()?.trim_matches(['[', ']']).to_owned();
    Some(Asked { context, host, port: request.uri().port_u16().unwrap_or(80) })
}

/// Returns the credentials for the proxy in a request.
pub fn credentials<B>(request: &Request<B>) -> Option<Credentials> {
    basic(request.headers().get(PROXY_AUTHORIZATION)?.to_str().ok()?)
}
