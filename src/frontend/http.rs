//! The HTTP reverse proxy: each request passes these stages.
//!
//! ```text
//! client --> http1 behind guard::normaliser, or http2::server
//!                          |
//!                      exchange -- admit -- forward -- upstream --> pod
//!                          |         |                     |
//!                          |         direct --> another network
//!                          |                               |
//! client <------------ exchange ------------------- respond
//! ```

pub mod access;
mod admit;
pub mod body;
mod direct;
pub mod error_page;
mod exchange;
mod forward;
pub mod headers;
mod http2;
mod interim;
pub mod own;
mod pac;
mod pages;
pub mod proxy_connect;
mod recorded;
pub mod replay;
mod respond;
pub mod rewrite;
pub mod rules;
pub mod sites;
mod trailers;
pub mod upgrade;
pub mod upstream;
mod websocket;

use std::{
    convert::Infallible,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{
    HeaderValue, Request, Response, Version,
    header::{CONNECTION, CONTENT_LENGTH},
};
use http_body_util::BodyExt;
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::rt::TokioIo;
use tower::BoxError;
use tracing::debug;

use self::{
    body::{Body, Watched},
    exchange::Arrival,
    headers::Identity,
    own::OwnSite,
    sites::Sites,
    trailers::Trailers,
    upstream::{Owner, Upstreams},
};
use crate::{
    drain::Drain,
    frontend::{Connection, client, protocol::Protocols},
    guard::{
        locks::Locks,
        normaliser::{Gate, Normaliser},
    },
    io::BoxedIo,
    metrics::Metrics,
    tunnel::Manager,
    wire::http1::MOST_HEADERS,
};

/// Serves HTTP/1.1 and HTTP/2 clients, a route and a tunnel per request.
pub struct HttpFrontend {
    sites: Arc<dyn Sites>,
    tunnels: Manager,
    upstreams: Arc<Upstreams>,
    protocols: Arc<Protocols>,
    identity: Identity,
    metrics: Arc<Metrics>,
    /// Site for adit's own names.
    own: OnceLock<Arc<dyn OwnSite>>,
    locks: Arc<Locks>,
    /// Number of client connections so far.
    served: AtomicU64,
}

/// Protocol of a client, as detected from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    Http1,
    Http2,
}

impl HttpFrontend {
    /// Returns a frontend with its own pool of upstream connections, which close with `drain`.
    pub fn new(sites: Arc<dyn Sites>, tunnels: Manager, metrics: Arc<Metrics>, drain: Drain) -> Arc<Self> {
        let protocols = Arc::<Protocols>::default();
        let upstreams = Upstreams::new(protocols.clone(), metrics.clone(), drain);
        Arc::new(Self {
            sites,
            tunnels,
            upstreams,
            protocols,
            identity: Identity::default(),
            metrics,
            own: OnceLock::new(),
            locks: Arc::default(),
            served: AtomicU64::new(0),
        })
    }

    /// Returns the protocols learned from backends.
    pub fn protocols(&self) -> Arc<Protocols> {
        self.protocols.clone()
    }

    /// Returns which contexts are unlocked.
    pub fn locks(&self) -> Arc<Locks> {
        self.locks.clone()
    }

    /// Serves one connection until it ends, or, in a drain, until its requests in progress are answered.
    ///
    /// `tls`: the client's TLS ends here (X-Forwarded-Proto).
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
        let client = client::look_for(self.tunnels.journal(), &connection);
        let owner = gate.is_some().then(|| Arc::new(Owner::new(self.served.fetch_add(1, Ordering::Relaxed))));
        let arrival =
            Arrival { connection: connection.clone(), tls, drain: drain.clone(), gate: gate.clone(), client, owner };
        // Each future is boxed separately, so that an idle HTTP/1 connection holds no memory for HTTP/2 or for a request.
        let served = match gate {
            Some(gate) => {
                let trailers = Trailers::default();
                let socket = connection.socket;
                let stream = Normaliser::new(trailers.on(stream), gate).asking(move || socket.owner().is_some());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (this, arrival, trailers) = (self.clone(), arrival.clone(), trailers.clone());
                    let answering = async move {
                        let takes_chunks = request.version() == Version::HTTP_11;
                        let (parts, body) = request.into_parts();
                        let (body, is_read) = Watched::new(body);
                        let request = Request::from_parts(parts, body.map_err(BoxError::from).boxed_unsync());
                        let mut response = this.answer(request, arrival).await;
                        if takes_chunks && response.status().as_u16() >= 300 && !is_read.load(Ordering::Relaxed) {
                            // hyper closes a connection whose upload nobody reads. A client that was not told may reuse it
                            // (RFC 9112, section 9.6).
                            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                        }
                        let has_length = response.headers().contains_key(CONTENT_LENGTH)
                            || response.body().size_hint().exact().is_some();
                        Ok::<_, Infallible>(match takes_chunks && !has_length {
                            true => response.map(|body| trailers.of(body)),
                            false => response,
                        })
                    };
                    Box::pin(answering)
                });
                Box::pin(serve_http1(stream, service, drain)).await.map_err(BoxError::from)
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
}

async fn serve_http1<S>(stream: Normaliser<BoxedIo>, service: S, drain: Drain) -> hyper::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send>,
{
    let mut builder = http1::Builder::new();
    // The normaliser enforces the client's timeouts.
    builder.header_read_timeout(None).preserve_header_case(true).max_headers(MOST_HEADERS);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
    tokio::select! {
        served = serving.as_mut() => served,
        () = drain.started() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    }
}

#[cfg(test)]
mod tests;
