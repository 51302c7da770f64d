//! The HTTP reverse proxy.

pub mod access;
pub mod body;
pub mod error_page;
pub mod headers;
mod http2;
mod interim;
mod pages;
pub mod rewrite;
pub mod sites;
pub mod upgrade;
pub mod upstream;
mod websocket;

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, HOST, UPGRADE},
    uri::PathAndQuery,
};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::rt::TokioIo;
use tower::BoxError;
use tracing::debug;

use self::{
    access::{Access, Tracked},
    body::{Body, body_of},
    error_page::{NOT_READY, Page},
    headers::{Hop, Identity},
    interim::Interim,
    rewrite::{Names, Redirects},
    sites::Sites,
    upgrade::Asked,
    upstream::{Answered, Upstreams, Way},
};
use crate::{
    config::{HostHeader, Scheme},
    drain::Drain,
    frontend::{
        Connection,
        protocol::{Asks, Protocols},
    },
    guard::{
        normaliser::{Busy, Gate, Normaliser, REFUSED, Refused},
        origin,
    },
    io::BoxedIo,
    metrics::Metrics,
    routing::{Route, table},
    tunnel::{Lease, Manager},
    wire::http1::Refusal,
};

/// Serves HTTP/1.1 and HTTP/2 clients, a route and a tunnel per request.
pub struct HttpFrontend {
    sites: Arc<dyn Sites>,
    tunnels: Manager,
    upstreams: Arc<Upstreams>,
    protocols: Arc<Protocols>,
    identity: Identity,
    metrics: Arc<Metrics>,
}

/// What a client speaks, when its first bytes have told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    Http1,
    Http2,
}

/// A request that may go on.
struct Admitted {
    route: Route,
    /// As the client wrote it.
    authority: String,
    /// Lower case, without port.
    host: String,
}

/// How a request came.
#[derive(Clone)]
struct Arrival {
    connection: Arc<Connection>,
    /// The client's bytes came through TLS that we ended.
    tls: bool,
    drain: Drain,
    /// What stands before the server; None for HTTP/2.
    gate: Option<Arc<Gate>>,
}

impl HttpFrontend {
    /// Makes the frontend; upstream connections are pooled inside it, and end with `drain`.
    pub fn new(sites: Arc<dyn Sites>, tunnels: Manager, metrics: Arc<Metrics>, drain: Drain) -> Arc<Self> {
        let protocols = Arc::<Protocols>::default();
        let upstreams = Upstreams::new(protocols.clone(), metrics.clone(), drain);
        Arc::new(Self { sites, tunnels, upstreams, protocols, identity: Identity::default(), metrics })
    }

    /// Returns what was learned of the ports of backends.
    pub fn protocols(&self) -> Arc<Protocols> {
        self.protocols.clone()
    }

    /// Serves one connection until it ends, or, in a drain, until its requests in progress are answered.
    ///
    /// `tls`: the client's bytes came through TLS that we ended (X-Forwarded-Proto).
    pub async fn serve(
        self: Arc<Self>,
        stream: BoxedIo,
        version: HttpVersion,
        connection: Arc<Connection>,
        tls: bool,
        drain: Drain,
    ) {
        let metrics = self.metrics.clone();
        let _open = metrics.http_connections.open();
        let _connected = (!tls).then(|| self.tunnels.journal().connection());
        let limits = *connection.place.limits();
        let gate = (version == HttpVersion::Http1).then(|| Gate::new(&limits));
        let arrival = Arrival { connection: connection.clone(), tls, drain: drain.clone(), gate: gate.clone() };
        // Each on the heap by itself: an idle connection of HTTP/1 holds no room for one of HTTP/2, nor for a request.
        let served = match gate {
            Some(gate) => {
                let service = service_fn(move |request: Request<Incoming>| {
                    let (this, arrival) = (self.clone(), arrival.clone());
                    let answering = async move {
                        let request = request.map(|body| body.map_err(BoxError::from).boxed_unsync());
                        Ok::<_, Infallible>(this.answer(request, arrival).await)
                    };
                    Box::pin(answering)
                });
                Box::pin(serve_http1(Normaliser::new(stream, gate), service, drain)).await.map_err(BoxError::from)
            }
            None => {
                let answer = move |request| {
                    let (this, arrival) = (self.clone(), arrival.clone());
                    async move { this.answer(request, arrival).await }
                };
                Box::pin(http2::server::serve(stream, answer, limits, drain)).await
            }
        };
        if let Err(error) = served {
            debug!(connection = connection.id, peer = %connection.peer, %error, "http connection ended");
        }
    }

    async fn answer(&self, request: Request<Body>, arrival: Arrival) -> Response<Body> {
        let busy = arrival.gate.as_ref().map(Gate::busy);
        let mut access =
            Access::start(&request, arrival.connection.id, self.metrics.clone(), self.tunnels.journal().clone());
        let request_headers = request.headers().clone();
        let (is_head, version) = (request.method() == Method::HEAD, request.version());
        let is_refused = request.method().as_str() == REFUSED;
        if !is_refused {
            arrival.connection.place.settle();
        }
        let admitted = match (is_refused, &arrival.gate) {
            (true, Some(gate)) => Err(pages::refused(gate.refused())),
            _ => self.admit(&request, arrival.tls, &mut access),
        };
        let answered = match admitted {
            Ok(admitted) => self.proxy(request, admitted, &arrival, &mut access, &busy).await,
            Err(page) => {
                if version == Version::HTTP_2 {
                    http2::glance_at(request.into_body()).await;
                }
                Err(page)
            }
        };
        let response = answered.unwrap_or_else(|page| {
            let page_code = page.code;
            access.error = Some(page_code);
            let port = arrival.connection.local.port();
            let (mut parts, body) = page.into_response(&request_headers, port, arrival.tls).into_parts();
            access.status = parts.status;
            if (is_refused || page_code == "ambiguous") && version < Version::HTTP_2 {
                // Where one reader sees the end of such a request another sees the start of the next one.
                parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            let body = if is_head { Bytes::new() } else { body };
            Response::from_parts(parts, Tracked::new(body_of(body), access).keeping(busy).boxed_unsync())
        });
        if let Some(gate) = arrival.gate.filter(|_| request_headers.contains_key(UPGRADE)) {
            gate.answered_upgrade(response.status() == StatusCode::SWITCHING_PROTOCOLS);
        }
        response
    }

    /// Decides whether a request may go on, and where to, before anything is asked of a cluster.
    fn admit(&self, request: &Request<Body>, tls: bool, access: &mut Access) -> Result<Admitted, Page> {
        let authority = authority(request)?;
        access.host(&authority);
        let host = table::normalise(&authority);
        if self.identity.is_loop(request.headers()) {
            return Err(pages::in_a_circle(&host));
        }
        let route = self.sites.route(&host, request).map_err(|page| match page.code {
            pages::INDEX => {
                let waits = self.tunnels.sign_ins().into_iter().flat_map(|sign_in| {
                    let user = sign_in.user;
                    sign_in.said.into_iter().map(move |line| format!("{user} says: {line}"))
                });
                page.with_hints(self.protocols.wrong_hints().into_iter().chain(waits))
            }
            _ => page,
        })?;
        let route = route.for_client(tls);
        access.route(&route.name);
        let switches = upgrade::asked_protocol(request).is_some();
        origin::check(request.method(), request.headers(), &host, switches, &route.options.allow_origins)
            .map_err(|foreign| pages::foreign(&foreign, &host))?;
        Ok(Admitted { route, authority, host })
    }

    /// Returns the lease. A browser, which shows what it gets, has a page meanwhile where a person has to sign in first.
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

    async fn proxy(
        &self,
        mut request: Request<Body>,
        Admitted { route, authority, host }: Admitted,
        arrival: &Arrival,
        access: &mut Access,
        busy: &Option<Busy>,
    ) -> Result<Response<Body>, Page> {
        let lease = self.acquire(&route, &host, pages::is_shown(&request)).await?;
        access.tunnel(&lease);
        let endpoint = lease.endpoint();
        let server_name = route.options.tls.server_name.as_deref();
        let asked = Asked::of(&mut request);
        let asks = Asks::of(&request, arrival.tls, asked.is_some());
        let scheme = self.protocols.choose(&route, &endpoint, asks).scheme;
        let comes_back = route.options.rewrite_location;
        let names = match &route.options.host {
            HostHeader::Fixed(host) => Some(Names::fixed(host)),
            header => (*header == HostHeader::Own || comes_back == Some(true))
                .then_some(route.target.pods())
                .flatten()
                .map(|target| Names::of(target, scheme, endpoint.port.number, server_name)),
        };
        let target = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));

        let version = request.version();
        let headers = request.headers_mut();
        headers::remove_hop_by_hop(headers);
        let (peer, local) = (arrival.connection.peer, arrival.connection.local);
        let mut hop = Hop { peer, local, host: &authority, tls: arrival.tls };
        match (&route.options.host, &names) {
            (HostHeader::Own, Some(names)) => names.into_request(headers),
            (HostHeader::Fixed(_), Some(names)) => {
                names.into_request(headers);
                names.into_origin(headers, &authority, arrival.tls);
                hop.host = names.own();
            }
            _ => {}
        }
        headers::set_forwarded(headers, hop);
        self.identity.mark(headers, version);
        headers::apply(&route.options.request_headers, headers);
        if let Some(asked) = &asked {
            asked.into_http1(&mut request);
        }
        let interim = Interim::of(&mut request, version, arrival.gate.as_ref());
        let way = Way { route: &route, lease: &lease, host: &host, asks };
        let sent = interim.beside(self.upstreams.send(&way, request)).await;
        let Answered { mut response, returning, scheme, pod, retries } = sent.map_err(|error| {
            lease.note_error(&pages::describe(&error));
            pages::unanswered(&error, &host, &route, &lease)
        })?;

        access.sent(&pod, retries);
        access.answered(response.status(), response.headers());
        let switched = (response.status() == StatusCode::SWITCHING_PROTOCOLS)
            .then(|| (headers::upgrade(response.headers()), hyper::upgrade::on(&mut response)));
        let (mut parts, body) = response.into_parts();
        headers::remove_hop_by_hop(&mut parts.headers);
        if comes_back != Some(false) {
            let redirects = Redirects {
                authority: &authority,
                tls: arrival.tls,
                target: &target,
                https_port: self.sites.https_port(&authority, local.port()),
                backend_tls: scheme == Scheme::Https,
                own: names.as_ref().filter(|_| comes_back == Some(true)),
            };
            redirects.lead_back(&mut parts.headers);
        }
        if let Some(reason) = lease.not_ready().and_then(|reason| HeaderValue::try_from(reason).ok()) {
            parts.headers.insert(NOT_READY, reason);
        }
        headers::apply(&route.options.response_headers, &mut parts.headers);
        match (asked, switched) {
            (Some(asked), Some((Some(_), backend))) => {
                asked.tell(&mut parts.headers);
                if asked.is_extended() {
                    // What 101 is in HTTP/1.1 (RFC 8441, section 5).
                    parts.status = StatusCode::OK;
                }
                asked.join(backend, lease, access.take(), &arrival.drain);
                return Ok(Response::from_parts(parts, body_of("")));
            }
            (_, Some(_)) => {
                let cause = Some("it answered 101 without being asked to switch, or does not say to what".to_owned());
                let title = format!("no answer from {}", route.target);
                return Err(Page { cause, ..Page::new(StatusCode::BAD_GATEWAY, "switched", title) });
            }
            // A success would tell the client that there is a tunnel now.
            (Some(asked), None) if asked.is_extended() && parts.status.is_success() => {
                let cause = Some(format!("it answered {} to a request to switch the protocol", parts.status));
                let title = format!("{} does not switch", route.target);
                return Err(Page { cause, ..Page::new(StatusCode::BAD_GATEWAY, "no-switch", title) });
            }
            _ => {}
        }
        let tracked = Tracked::new(body, access.take());
        let body = tracked.holding(lease, returning).keeping(busy.as_ref().map(Busy::another));
        Ok(Response::from_parts(parts, body.boxed_unsync()))
    }
}

async fn serve_http1<S>(stream: Normaliser<BoxedIo>, service: S, drain: Drain) -> hyper::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send>,
{
    let mut builder = http1::Builder::new();
    // The normaliser knows how long a client may take for what.
    builder.header_read_timeout(None).preserve_header_case(true);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
    tokio::select! {
        served = serving.as_mut() => served,
        () = drain.started() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    }
}

/// Returns whom a request is for: the authority of its target, else its Host header.
fn authority<B>(request: &Request<B>) -> Result<String, Page> {
    let refuse = |refusal: Refusal| Err(pages::refused(Some(Refused::Ambiguous(refusal))));
    // Over HTTP/2 it may be an extended one.
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
            Err(Page::new(StatusCode::BAD_REQUEST, "ambiguous", title))
        }
        (Some(authority), _) if authority.as_str().contains('@') => refuse(Refusal::Host),
        (Some(authority), None) => Ok(authority.to_string()),
        (_, Some(host)) if !host.is_empty() => Ok(host.to_owned()),
        _ => Err(Page::new(StatusCode::BAD_REQUEST, "no-host", "the request does not say for which host it is")),
    }
}

#[cfg(test)]
mod tests;
