//! The second stage: sends a request to the pod, as a proxy does.

use std::pin::pin;

use http::{Request, Response, Version, uri::PathAndQuery};

use super::{
    HttpFrontend,
    admit::Admitted,
    body::Body,
    error_page::Page,
    exchange::Exchange,
    headers::{self, Hop},
    interim::Interim,
    pages,
    respond::Forwarded,
    rewrite::Names,
    upgrade::Asked,
    upstream::Way,
};
use crate::{config::HostHeader, frontend::protocol::Asks, routing::Route, tunnel::Lease};

impl HttpFrontend {
    /// Sends a request to its pod, and returns the answer for the client.
    pub(super) async fn forward(
        &self,
        mut request: Request<Body>,
        admitted: Admitted,
        exchange: &mut Exchange,
    ) -> Result<Response<Body>, Page> {
        let Admitted { route, host, .. } = &admitted;
        let lease = self.acquire(route, host, pages::is_shown(&request)).await?;
        exchange.access.tunnel(&lease);
        let asked = Asked::of(&mut request);
        let asks = Asks::of(&request, exchange.arrival.tls, asked.is_some());
        let names = self.names(route, &lease, asks);
        let target = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        self.prepare(&mut request, &admitted, names.as_ref(), exchange);
        if let Some(asked) = &asked {
            asked.into_http1(&mut request);
        }
        let interim = Interim::of(&mut request, exchange.version, exchange.arrival.gate.as_ref());
        let owner = exchange.arrival.owner.clone();
        let way = Way { route, lease: &lease, host, asks, owner: owner.as_deref() };
        let sent = interim.beside(pin!(self.upstreams.send(&way, request))).await;
        let answered = sent.map_err(|error| {
            lease.note_error(&pages::describe(&error));
            pages::unanswered(&error, host, route, &lease)
        })?;
        self.respond(answered, Forwarded { admitted, lease, asked, names, target }, exchange)
    }

    /// Returns the lease. If a person has to sign in first, a browser gets a page meanwhile (`is_shown`).
    async fn acquire(&self, route: &Route, host: &str, is_shown: bool) -> Result<Lease, Page> {
        let acquiring = async {
            let acquired = self.tunnels.acquire(&route.target, route.idle_timeout).await;
            acquired.map_err(|error| pages::unopened(&error, host, route))
        };
        if !is_shown {
            return acquiring.await;
        }
        tokio::select! {
            acquired = acquiring => acquired,
            report = self.tunnels.sign_in_due(&route.target) => Err(pages::signing_in(&report)),
        }
    }

    /// Returns the backend's names. `None`: the route neither sends them as Host nor rewrites redirects to them.
    fn names(&self, route: &Route, lease: &Lease, asks: Asks) -> Option<Names> {
        let endpoint = lease.endpoint();
        let scheme = self.protocols.choose(route, &endpoint, asks).scheme;
        let server_name = route.options.tls.server_name.as_deref();
        match &route.options.host {
            HostHeader::Fixed(host) => Some(Names::fixed(host, scheme)),
            header => (*header == HostHeader::Own || route.options.rewrite_location == Some(true))
                .then_some(route.target.pods())
                .flatten()
                .map(|target| Names::of(target, scheme, endpoint.port.number, server_name)),
        }
    }

    /// Sets and removes headers as a proxy must, and as the route says.
    fn prepare(
        &self,
        request: &mut Request<Body>,
        Admitted { route, authority, .. }: &Admitted,
        names: Option<&Names>,
        exchange: &Exchange,
    ) {
        let (connection, tls) = (&exchange.arrival.connection, exchange.arrival.tls);
        // A client of the forward proxy has not connected to its listener's port: the URL has the port.
        let is_whole = exchange.version < Version::HTTP_2 && request.uri().scheme().is_some();
        let asked = if is_whole { headers::default_port(tls) } else { connection.local.port() };
        let (port, is_behind_proxy) = self.sites.public().unwrap_or((asked, false));
        let headers = request.headers_mut();
        headers::remove_hop_by_hop(headers);
        let mut hop = Hop { peer: connection.peer, host: authority, port, tls };
        if let (HostHeader::Own | HostHeader::Fixed(_), Some(names)) = (&route.options.host, names) {
            names.into_request(headers);
            // Some servers compare Origin with Host, others with the forwarded scheme, host and port: all of them have to agree.
            let tls = tls || names.tls;
            let is_own = names.into_origin(headers, authority, tls);
            if is_own {
                hop = Hop { host: names.own(), port: headers::default_port(tls), tls, ..hop };
            } else if route.options.host != HostHeader::Own {
                hop.host = names.own();
            }
        }
        match (self.sites.is_first(), is_behind_proxy) {
            (false, _) => headers::add_forwarded(headers, hop.peer),
            (true, true) => headers::keep_forwarded(headers, hop),
            (true, false) => headers::set_forwarded(headers, hop),
        }
        self.identity.mark(headers);
        headers::apply(&route.options.request_headers, headers);
    }
}
