//! The HTTP reverse proxy.

pub mod access;
pub mod error_page;
pub mod headers;
pub mod upgrade;
pub mod upstream;

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE},
};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tower::BoxError;
use tracing::debug;

use self::{
    access::{Access, Tracked},
    error_page::Page,
    headers::Via,
    upstream::{Body, RequestError, Upstreams},
};
use crate::{
    config::{PortRef, Scheme, Workload},
    drain::Drain,
    frontend::Connection,
    io::BoxedIo,
    routing::{Route, RouteError, SharedRouter, hostname::DynamicName, table},
    tunnel::{Endpoint, Manager, OpenError},
};

/// How long a client may take for the headers of a request. Browsers keep unused connections for minutes, and open
/// new ones when these are closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves HTTP/1.1 and HTTP/2 clients, a route and a tunnel per request.
pub struct HttpFrontend {
    router: SharedRouter,
    tunnels: Manager,
    upstreams: Arc<Upstreams>,
}

/// What a client speaks, when its first bytes have told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    Http1,
    Http2,
}

impl HttpFrontend {
    /// Makes the frontend; upstream connections are pooled inside it, and end with `drain`.
    pub fn new(router: SharedRouter, tunnels: Manager, drain: Drain) -> Arc<Self> {
        Arc::new(Self { router, tunnels, upstreams: Upstreams::new(drain) })
    }

    /// Serves one connection until it ends, or, in a drain, until its requests in progress are answered.
    ///
    /// `tls`: the client's bytes came through TLS that we ended (X-Forwarded-Proto).
    pub async fn serve(
        self: Arc<Self>,
        stream: BoxedIo,
        version: HttpVersion,
        connection: Connection,
        tls: bool,
        drain: Drain,
    ) {
        let this = self.clone();
        let drain_of_requests = drain.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (this, drain) = (this.clone(), drain_of_requests.clone());
            async move { Ok::<_, Infallible>(this.answer(request, connection, tls, drain).await) }
        });
        let stream = TokioIo::new(stream);
        let served = match version {
            HttpVersion::Http1 => {
                let mut builder = http1::Builder::new();
                // A client may end its direction behind its request and still wants the answer.
                builder
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .half_close(true)
                    .preserve_header_case(true);
                let mut serving = std::pin::pin!(builder.serve_connection(stream, service).with_upgrades());
                tokio::select! {
                    served = serving.as_mut() => served,
                    () = drain.started() => {
                        serving.as_mut().graceful_shutdown();
                        serving.await
                    }
                }
            }
            HttpVersion::Http2 => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder.timer(TokioTimer::new()).adaptive_window(true).max_concurrent_streams(250);
                let mut serving = std::pin::pin!(builder.serve_connection(stream, service));
                tokio::select! {
                    served = serving.as_mut() => served,
                    () = drain.started() => {
                        serving.as_mut().graceful_shutdown();
                        serving.await
                    }
                }
            }
        };
        if let Err(error) = served {
            debug!(connection = connection.id, peer = %connection.peer, %error, "http connection ended");
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        connection: Connection,
        tls: bool,
        drain: Drain,
    ) -> Response<Body> {
        let mut access = Access::start(&request, connection.id);
        let accept = request.headers().clone();
        let (is_head, version) = (request.method() == Method::HEAD, request.version());
        match self.proxy(request, connection, tls, drain, &mut access).await {
            Ok(response) => response,
            Err(page) => {
                access.error = Some(page.code);
                let closes = page.code == "ambiguous" && version < Version::HTTP_2;
                let (mut parts, body) = page.into_response(&accept, connection.local.port(), tls).into_parts();
                access.status = parts.status;
                if closes {
                    // Where one reader sees the end of such a request another sees the start of the next one.
                    parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
                }
                let body = if is_head { Bytes::new() } else { body };
                let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
                Response::from_parts(parts, Tracked::new(body, access).boxed_unsync())
            }
        }
    }

    async fn proxy(
        &self,
        mut request: Request<Incoming>,
        connection: Connection,
        tls: bool,
        drain: Drain,
        access: &mut Access,
    ) -> Result<Response<Body>, Page> {
        let authority = authority(&request)?;
        access.host = authority.clone();
        let host = table::normalise(&authority);
        let route = match self.router.load().http(&host) {
            Ok(route) => route,
            Err(RouteError::Unknown { .. }) if table::is_own_name(&host) => return Err(self.index()),
            Err(error) => return Err(Page::of_route(&error)),
        };
        access.route = Some(route.name.clone());
        let lease = self
            .tunnels
            .acquire(&route.target, route.idle_timeout)
            .await
            .map_err(|error| open_page(&error, &host, &route))?;
        let scheme = route.scheme.unwrap_or_else(|| scheme_of(&lease.endpoint()));

        let protocol = headers::upgrade(request.headers()).filter(|_| request.version() == Version::HTTP_11);
        let client_upgrade = protocol.is_some().then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        headers::remove_hop_by_hop(&mut parts.headers);
        headers::set_forwarded(
            &mut parts.headers,
            Via { peer: connection.peer, local: connection.local, host: &authority, tls },
        );
        if let Some(protocol) = &protocol {
            parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(UPGRADE, protocol.clone());
        }
        let request = Request::from_parts(parts, body.map_err(BoxError::from).boxed_unsync());
        let sent = self.upstreams.send(&route, scheme, &lease, &host, request, client_upgrade.is_some()).await;
        let (mut response, returning) = sent.map_err(|error| {
            lease.note_error(&describe(&error));
            request_page(&error, &host, &route)
        })?;

        access.status = response.status();
        let switched = (response.status() == StatusCode::SWITCHING_PROTOCOLS)
            .then(|| headers::upgrade(response.headers()))
            .flatten();
        if let (Some(client), Some(protocol)) = (client_upgrade, switched) {
            let backend = hyper::upgrade::on(&mut response);
            let (mut parts, _) = response.into_parts();
            headers::remove_hop_by_hop(&mut parts.headers);
            parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(UPGRADE, protocol);
            upgrade::join(client, backend, lease, &drain);
            let empty = Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync();
            return Ok(Response::from_parts(parts, empty));
        }
        let (mut parts, body) = response.into_parts();
        headers::remove_hop_by_hop(&mut parts.headers);
        let body = Tracked::new(body.map_err(BoxError::from).boxed_unsync(), access.take()).holding(lease, returning);
        Ok(Response::from_parts(parts, body.boxed_unsync()))
    }

    /// Returns the page of adit's own names: what can be reached, and how.
    fn index(&self) -> Page {
        let router = self.router.load();
        let mut page = Page::new(StatusCode::OK, "index", "adit is running");
        page.cause = Some(match &router.http_contexts.current {
            Some(context) => format!(
                "Services of context {context} are at <service>.<namespace>.localhost; 'adit routes -A' lists them."
            ),
            None => router
                .http_contexts
                .problem
                .clone()
                .unwrap_or_else(|| "The kubeconfig has no current context.".to_owned()),
        });
        page.links = router
            .config
            .http
            .routes
            .keys()
            .filter(|host| !host.starts_with('*'))
            .map(|host| (host.clone(), host.clone()))
            .collect();
        page
    }
}

/// Returns whom a request is for: the authority of its target, else its Host header.
fn authority<B>(request: &Request<B>) -> Result<String, Page> {
    let refuse = |status: StatusCode, code: &'static str, title: &str| Err(Page::new(status, code, title));
    if request.method() == Method::CONNECT {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "connect", "adit is no forward proxy: CONNECT is not taken");
    }
    if !is_plainly_framed(request.headers()) {
        return refuse(StatusCode::BAD_REQUEST, "ambiguous", "the request has a transfer coding other than chunked");
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok());
    if hosts.next().is_some() {
        return refuse(StatusCode::BAD_REQUEST, "ambiguous", "the request has two Host headers");
    }
    match (request.uri().authority(), host) {
        (Some(authority), Some(host)) if table::normalise(authority.as_str()) != table::normalise(host) => {
            refuse(StatusCode::BAD_REQUEST, "ambiguous", "the request is for one host and names another")
        }
        (Some(authority), None) => Ok(authority.to_string()),
        (_, Some(host)) if !host.is_empty() => Ok(host.to_owned()),
        _ => refuse(StatusCode::BAD_REQUEST, "no-host", "the request does not say for which host it is"),
    }
}

/// Returns whether the end of a message can be read in one way only: it is chunked once, and nothing else, or not at
/// all (RFC 9112, section 6.1). Where a length is given too, hyper has taken it out, and reads the chunks.
fn is_plainly_framed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked")) && codings.next().is_none()
}

/// Returns what a port speaks: by its appProtocol, then its name, then its number.
fn scheme_of(endpoint: &Endpoint) -> Scheme {
    told_scheme(endpoint).unwrap_or(match endpoint.port.number {
        443 => Scheme::Https,
        _ => Scheme::Http,
    })
}

/// Returns what a port says that it speaks: by its appProtocol, then its name. None: it says nothing.
pub(super) fn told_scheme(endpoint: &Endpoint) -> Option<Scheme> {
    let by_name = |name: &str| match name.split('-').next().unwrap_or(name) {
        "https" | "wss" => Some(Scheme::Https),
        "h2c" | "grpc" | "http2" => Some(Scheme::H2c),
        "http" | "ws" => Some(Scheme::Http),
        _ => None,
    };
    let of_protocol = endpoint.port.app_protocol.as_deref().and_then(|protocol| {
        by_name(&protocol.to_ascii_lowercase().trim_start_matches("kubernetes.io/").replace("http/2", "h2c"))
    });
    of_protocol.or_else(|| endpoint.port.name.as_deref().and_then(by_name))
}

/// Returns the page for a target that cannot be reached; its links lead to names that can say the port.
pub(super) fn open_page(error: &OpenError, host: &str, route: &Route) -> Page {
    let mut page = Page::of_open(error, host);
    // A static name has no place for a port: the dynamic one of the same target has.
    if !error.ports().is_empty()
        && let Workload::Service(_) = route.target.workload
    {
        let base = DynamicName {
            context: None,
            namespace: route.target.namespace.clone(),
            workload: route.target.workload.clone(),
            port: PortRef::Auto,
        };
        if !host.ends_with(&base.to_string()) && !host.ends_with(".cx.localhost") {
            page.links =
                error.ports().iter().map(|port| (port.to_string(), format!("{}.{base}", port.number))).collect();
        }
    }
    page
}

fn request_page(error: &RequestError, host: &str, route: &Route) -> Page {
    match (error, error.fault()) {
        (RequestError::Open(error), _) => open_page(error, host, route),
        (RequestError::Client(_), _) => Page::new(StatusCode::BAD_REQUEST, "body", "the body did not come to its end"),
        (_, Some(fault)) => Page::of_stream(fault, &route.target.to_string()),
        (RequestError::Tls(error), None) => Page {
            cause: Some(error.to_string()),
            hint: Some("is the backend https? set scheme: http, https or h2c for the route".to_owned()),
            ..Page::new(StatusCode::BAD_GATEWAY, "backend-tls", format!("no TLS with {}", route.target))
        },
        (RequestError::Failed(_), None) => Page {
            cause: Some(describe(error)),
            ..Page::new(StatusCode::BAD_GATEWAY, "bad-answer", format!("no answer from {}", route.target))
        },
    }
}

fn describe(error: &RequestError) -> String {
    match error {
        RequestError::Open(error) => error.to_string(),
        RequestError::Tls(error) => format!("TLS: {error}"),
        RequestError::Client(error) => format!("the request's body did not come to its end: {error}"),
        RequestError::Failed(error) => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests;
