//! The first stage: finds the route of a request and checks the rules. It asks no cluster.

use http::{HeaderValue, Method, Request, Response, StatusCode, header::HOST};
use http_body_util::BodyExt;

use super::{HttpFrontend, body::Body, error_page::Page, exchange::Exchange, pages, rules, upgrade};
use crate::{
    error_code::ErrorCode,
    frontend::{
        Connection,
        forward::{Asked, is_internet},
    },
    guard::{normaliser::Refused, origin},
    routing::{Route, RouteError, table},
    wire::http1::Refusal,
};

/// A request that has a route and is allowed.
pub struct Admitted {
    pub route: Route,
    /// As the client wrote it.
    pub authority: String,
    /// Lower case, without port.
    pub host: String,
}

impl HttpFrontend {
    /// Answers a request for adit itself. `None`: the request is for a route.
    pub(super) fn own(&self, request: &Request<Body>, exchange: &mut Exchange) -> Option<Response<Body>> {
        let authority = authority(request).ok()?;
        let host = table::normalise(&authority);
        let Connection { local, door, .. } = &*exchange.arrival.connection;
        // A forward proxy takes an IP address as that of a pod or a Service.
        let is_address = table::is_own_name(&host) && !table::is_here(&host);
        if (request.uri().scheme().is_some() && !door.is_closed() && is_address)
            || exchange.arrival.is_for_another_port(request)
        {
            return None;
        }
        let response = self.sites.answer(&host, request, *local)?;
        exchange.access.host(&authority);
        exchange.access.answered(response.status(), response.headers());
        Some(response.map(|body| exchange.track(body).boxed_unsync()))
    }

    /// Finds the route of a request, and checks whether the request is allowed.
    pub(super) fn admit(&self, request: &Request<Body>, exchange: &mut Exchange) -> Result<Admitted, Page> {
        let authority = authority(request)?;
        exchange.access.host(&authority);
        let host = table::normalise(&authority);
        if exchange.arrival.is_for_another_port(request) {
            return Err(Page::of_route(&RouteError::Elsewhere { host }));
        }
        if self.identity.is_loop(request.headers()) {
            return Err(pages::in_a_circle(&host));
        }
        let door = &exchange.arrival.connection.door;
        let route = self.sites.route(&host, request, door).map_err(|page| match page.code {
            ErrorCode::Index => page.with_hints(self.waits()),
            _ => page,
        })?;
        let route = route.for_client(exchange.arrival.tls);
        exchange.access.route(&route);
        let switches = upgrade::asked_protocol(request).is_some();
        origin::check(request.method(), request.headers(), &host, switches, &route.options.allow_origins)
            .map_err(|foreign| pages::foreign(&foreign, &host, &route))?;
        rules::check_replay(request, &route)?;
        self.check_rules(request, &route)?;
        Ok(Admitted { route, authority, host })
    }

    /// Returns the host of another network that a request may be for, if the configuration allows such hosts.
    pub(super) fn elsewhere(&self, request: &Request<Body>, exchange: &Exchange) -> Option<Asked> {
        let host = table::normalise(&authority(request).ok()?);
        self.sites.elsewhere(&host, request, &exchange.arrival.connection.door)
    }

    /// Returns whether a host is outside the cluster. `admitted`: the result of [`admit`](Self::admit) for the request.
    pub(super) fn is_elsewhere(
        &self,
        asked: &Asked,
        admitted: &Result<Admitted, Page>,
        request: &Request<Body>,
        exchange: &Exchange,
    ) -> impl Future<Output = bool> + Send + use<'_> {
        let has_two_meanings = asked.has_two_meanings();
        // `None`: only the cluster can tell.
        let (decided, route) = match admitted {
            Ok(_) if is_internet(&asked.host) => (Some(true), None),
            Ok(Admitted { route, .. }) if has_two_meanings => (None, Some(route.clone())),
            Ok(_) => (Some(false), None),
            Err(page) => match page.code {
                ErrorCode::Elsewhere => (Some(true), None),
                ErrorCode::NoContext => (Some(has_two_meanings), None),
                // Rules of contexts and routes are about the cluster, which only some of these names are of.
                ErrorCode::ReadOnly | ErrorCode::ForeignOrigin if is_internet(&asked.host) => (Some(true), None),
                ErrorCode::ReadOnly | ErrorCode::ForeignOrigin if has_two_meanings => {
                    let host = table::normalise(&asked.host);
                    (None, self.sites.route(&host, request, &exchange.arrival.connection.door).ok())
                }
                _ => (Some(false), None),
            },
        };
        async move {
            match (decided, route) {
                (None, Some(route)) => {
                    let acquired = self.tunnels.acquire(&route.target, route.idle_timeout).await;
                    acquired.is_err_and(|error| error.is_of_no_service())
                }
                (decided, _) => decided.unwrap_or(false),
            }
        }
    }

    /// Returns the wrong hints of ports and the output of sign-ins, for the page of adit's own names.
    fn waits(&self) -> impl Iterator<Item = String> {
        let waits = self.tunnels.sign_ins().into_iter().flat_map(|sign_in| {
            let user = sign_in.user;
            sign_in.said.into_iter().map(move |line| format!("{user} says: {line}"))
        });
        self.protocols.wrong_hints().into_iter().chain(waits)
    }
}

/// Returns the authority of a request: that of its target, else its Host header.
pub(super) fn authority<B>(request: &Request<B>) -> Result<String, Page> {
    let refuse = |refusal: Refusal| Err(pages::refused(Some(Refused::Ambiguous(refusal))));
    // Over HTTP/2 it may be an extended CONNECT.
    if request.method() == Method::CONNECT && upgrade::asked_protocol(request).is_none() {
        return refuse(Refusal::Connect);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match hosts.next().map(HeaderValue::to_str).transpose() {
        Ok(host) => host,
        Err(_) => return refuse(Refusal::Host),
    };
    if hosts.next().is_some() {
        return refuse(Refusal::TwoHosts);
    }
    match (request.uri().authority(), host) {
        (Some(authority), Some(host)) if table::normalise(authority.as_str()) != table::normalise(host) => {
            let title = "the request is for one host and names another";
            Err(Page::new(StatusCode::BAD_REQUEST, ErrorCode::Ambiguous, title))
        }
        (Some(authority), _) if authority.as_str().contains('@') => refuse(Refusal::Host),
        (Some(authority), None) => Ok(authority.to_string()),
        (_, Some(host)) if !host.is_empty() => Ok(host.to_owned()),
        _ => Err(Page::new(StatusCode::BAD_REQUEST, ErrorCode::NoHost, "the request has no Host header")),
    }
}
