//! Public HTTP side of a relay: names below a domain, one per tunnel.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use http::{Request, Response, StatusCode};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info};

use super::{
    backend::Tunnels,
    server::{PublicOrigin, Server, tunnels::HttpName},
};
use crate::{
    config::{HostHeader, HttpOptions},
    drain::Drain,
    error_code::ErrorCode,
    frontend::{
        Connection,
        door::Door,
        http::{HttpFrontend, HttpVersion, body::Body, error_page::Page, sites::Sites},
    },
    io::{
        BoxedIo,
        accept::{self, Place},
        prefixed::Prefixed,
        read_ahead::ReadAhead,
    },
    listener::mux::{first_bytes, refuse_http},
    metrics::Metrics,
    routing::{Route, Target},
    tunnel::Manager,
    wire::sniff::Protocol,
};

/// Number of open files reserved to refuse visitors when all others are in use.
const SPARE_FILES: usize = 8;

/// How long an unused upstream to a client's tunnel stays open.
const IDLE: Duration = Duration::from_secs(60);

/// HTTP names of a relay.
pub struct Front {
    /// In lower case, without a dot at either end.
    domain: String,
    /// Scheme and port of a load balancer before the relay. `None`: visitors connect to the relay itself.
    public: Option<PublicOrigin>,
    /// The relay terminates TLS.
    has_tls: bool,
    /// Options of each name.
    names: ArcSwap<BTreeMap<String, Arc<HttpOptions>>>,
}

impl Front {
    pub fn new(domain: String, public: Option<PublicOrigin>, has_tls: bool) -> Arc<Self> {
        Arc::new(Self { domain, public, has_tls, names: ArcSwap::default() })
    }

    /// Replaces the names. `awaited`: names that stay as they were, until their clients are back.
    pub fn set(&self, names: impl IntoIterator<Item = HttpName>, awaited: Vec<String>) {
        let of_name = |HttpName { name, host }: HttpName| {
            let (rewrite_location, host) =
                (host.is_some().then_some(true), host.map_or_else(HostHeader::default, HostHeader::Fixed));
            // The service itself decides which pages may use it.
            let allow_origins = vec!["*".to_owned()];
            (name, Arc::new(HttpOptions { allow_origins, host, rewrite_location, ..HttpOptions::default() }))
        };
        let names: BTreeMap<_, _> = names.into_iter().map(of_name).collect();
        self.names.rcu(|before| {
            let awaited = awaited.iter().filter_map(|name| Some((name.clone(), before.get(name)?.clone())));
            let mut all: BTreeMap<_, _> = awaited.collect();
            all.extend(names.clone());
            all
        });
    }

    /// Accepts visitors until the drain starts. `https`: `None` for visitors without TLS.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        server: Arc<Server>,
        https: Option<Arc<ArcSwap<ServerConfig>>>,
        drain: Drain,
    ) {
        let tunnels = Manager::new(Arc::new(Tunnels(server.clone())), drain.clone());
        let is_https = self.public.map_or(https.is_some(), |public| public.is_https);
        let front = HttpFrontend::new(self, tunnels, Arc::new(Metrics::default()), drain.clone());
        let mut id = 0;
        let is_plain = https.is_none();
        let serve = |stream: TcpStream, peer: SocketAddr, place: Place| {
            id += 1;
            let local = stream.local_addr().unwrap_or(peer);
            let connection = Arc::new(Connection::remote(id, peer, local, place.clone()));
            let https = https.as_ref().map(|https| https.load_full());
            let visiting = place.run(visit(stream, connection, front.clone(), https, is_https, drain.clone()));
            drain.spawn(async move {
                if visiting.await.is_none() {
                    debug!(%peer, "connection of a visitor ended: it was silent, and others came");
                }
            });
        };
        let refuse = |stream, full| async move {
            if is_plain {
                refuse_http(stream, full).await;
            }
        };
        tokio::select! {
            never = accept::accept(&listener, server.visitors(), SPARE_FILES, serve, refuse) => match never {},
            () = drain.started() => {}
        }
    }
}

impl Sites for Front {
    fn answer(&self, _: &str, _: &Request<Body>, _: SocketAddr) -> Option<Response<Body>> {
        None
    }

    fn route(&self, host: &str, _: &Request<Body>, _: &Door) -> Result<Route, Page> {
        let name = host.strip_suffix(&self.domain).and_then(|name| name.strip_suffix('.'));
        let names = self.names.load();
        match name.and_then(|name| Some((name, names.get(name)?))) {
            Some((name, options)) => Ok(Route {
                name: host.into(),
                target: Target::Named(name.into()),
                idle_timeout: IDLE,
                options: options.clone(),
            }),
            None => {
                let page =
                    Page::new(StatusCode::NOT_FOUND, ErrorCode::UnknownHost, format!("nothing is served at {host}"));
                Err(Page { cause: Some("no client of this relay serves this name now".to_owned()), ..page })
            }
        }
    }

    /// A load balancer that terminates TLS is an HTTP proxy, and sets these headers itself. Otherwise a visitor may have set them.
    fn public(&self) -> Option<(u16, bool)> {
        let PublicOrigin { is_https, port } = self.public?;
        Some((port.unwrap_or(if is_https { 443 } else { 80 }), is_https && !self.has_tls))
    }

    /// Visitors are strangers: where the local service is, and how it fails, is for the operator and the client.
    fn shown(&self, page: Page) -> Page {
        if !page.status.is_server_error() || page.code == ErrorCode::NoClient {
            return Page { hint: None, links: Vec::new(), ..page };
        }
        info!(error = page.code.as_str(), cause = page.cause, "no answer for a visitor: {}", page.title);
        let title = "the service behind this name does not answer".to_owned();
        Page { title, cause: None, hint: None, links: Vec::new(), ..page }
    }
}

/// `is_https`: visitors use https, here or at a proxy before the relay.
async fn visit(
    mut stream: TcpStream,
    connection: Arc<Connection>,
    front: Arc<HttpFrontend>,
    https: Option<Arc<ServerConfig>>,
    is_https: bool,
    drain: Drain,
) {
    let limit = connection.place.limits().first_byte;
    // A visitor that has not sent a request has nothing in progress.
    let is_over = drain.clone();
    if let Some(https) = https {
        let accepting = timeout(limit, TlsAcceptor::from(https).accept(ReadAhead::new(stream)));
        let accepted = tokio::select! {
            accepted = accepting => accepted,
            () = is_over.started() => return,
        };
        if let Ok(Ok(tls)) = accepted {
            let is_h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
            let version = if is_h2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
            front.serve(Box::new(tls), version, connection, is_https, drain).await;
        }
        return;
    }
    let first = tokio::select! {
        biased;
        first = timeout(limit, first_bytes(&mut stream, BytesMut::new())) => first,
        () = is_over.started() => return,
    };
    let Ok(Ok((received, protocol))) = first else { return };
    let version = match protocol {
        Some(Protocol::Http1) => HttpVersion::Http1,
        Some(Protocol::Http2) => HttpVersion::Http2,
        _ => return,
    };
    let stream: BoxedIo = Box::new(Prefixed::new(received.freeze(), stream));
    front.serve(stream, version, connection, is_https, drain).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::http::body::body_of;

    #[test]
    fn a_host_is_a_name_below_the_domain_that_a_client_has() {
        let front = Front::new("relay.test".to_owned(), None, false);
        let ask = |host: &str| front.route(host, &Request::new(body_of("")), &Door::Closed);
        assert!(ask("web.relay.test").is_err());
        front.set([HttpName { name: "web".to_owned(), host: Some("localhost".to_owned()) }], Vec::new());
        let fixed = ask("web.relay.test").unwrap().options;
        // The client is lost, and then does not return.
        front.set([], vec!["web".to_owned(), "never".to_owned()]);
        assert!(Arc::ptr_eq(&ask("web.relay.test").unwrap().options, &fixed) && ask("never.relay.test").is_err());
        front.set([], Vec::new());
        assert!(ask("web.relay.test").is_err());
        front.set([HttpName { name: "web".to_owned(), host: None }], Vec::new());
        assert_eq!(ask("web.relay.test").unwrap().target, Target::Named("web".into()));
        for host in ["web", "relay.test", "web.other.test", "webrelay.test", "a.web.relay.test", "api.relay.test", ""] {
            let page = ask(host).expect_err(host);
            assert_eq!((page.status, page.code), (StatusCode::NOT_FOUND, ErrorCode::UnknownHost), "{host}");
            assert!(page.hint.is_none() && page.links.is_empty(), "a visitor has no adit: {page:?}");
        }
    }
}
