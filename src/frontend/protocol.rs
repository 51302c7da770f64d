//! Protocols of the backends' ports.
//!
//! A route's `scheme` is final. Without one, the port's appProtocol, name and number and the needs of the request are hints, and
//! the backend's answer confirms or corrects them. The result is kept until the tunnel gets another session.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use http::{HeaderValue, Request, Version, header::CONTENT_TYPE};
use tokio::time::Instant;
use tracing::warn;

use crate::{
    config::{ContextName, PortRef, Scheme, Workload},
    routing::{Route, Target},
    tunnel::Endpoint,
    wire::sniff::{Protocol, Sniff},
};

/// Texts in the 400 answers of https servers to a request without TLS, each with its source.
const TLS_IS_WANTED: [&str; 5] = [
    // nginx: src/http/ngx_http_special_response.c, status 497
    "plain HTTP request was sent to HTTPS port",
    // Go, and so Caddy, Traefik and Kubernetes: net/http, server.go
    "Client sent an HTTP request to an HTTPS server",
    // Apache httpd: modules/ssl/ssl_engine_kernel.c
    "speaking plain HTTP to an SSL-enabled server port",
    // Tomcat: org.apache.tomcat.util.net.TLSClientHelloExtractor
    "This combination of host and port requires TLS",
    // Cheroot: cheroot/server.py
    "this server only speaks HTTPS on this port",
];

/// Texts in the answers of HTTP/2-only servers to an HTTP/1 request.
const HTTP2_IS_WANTED: [&str; 1] = [
    // Kestrel: Core/src/CoreStrings.resx
    "An HTTP/1.x request was sent to an HTTP/2 only endpoint",
];

/// How long adit does not try other protocols again after a backend spoke none of them.
const ASKED_AGAIN: Duration = Duration::from_secs(60);

/// How long an answer proves that a backend speaks a protocol, while others get none. A rolling update is over in about this time.
const STILL_SPOKEN: Duration = Duration::from_secs(5);

/// Protocol that a request needs on the connection to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// HTTP of any version.
    Http,
    /// HTTP of any version, from a client that uses HTTP/2 without TLS, as only clients do that were configured to.
    Http2,
    /// gRPC, which exists over HTTP/2 only.
    Grpc,
    /// A switch of protocols, which exists over HTTP/1.1 only.
    Upgrade,
}

impl Asks {
    /// `tls`: the client's bytes came through TLS.
    pub fn of<B>(request: &Request<B>, tls: bool, is_upgrade: bool) -> Self {
        let is_grpc = |kind: &HeaderValue| {
            kind.as_bytes().strip_prefix(b"application/grpc").is_some_and(|rest| !rest.starts_with(b"-web"))
        };
        match request.version() {
            _ if is_upgrade => Self::Upgrade,
            Version::HTTP_2 if request.headers().get(CONTENT_TYPE).is_some_and(is_grpc) => Self::Grpc,
            Version::HTTP_2 if !tls => Self::Http2,
            _ => Self::Http,
        }
    }
}

/// Protocol to use with a backend, and its certainty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub scheme: Scheme,
    /// The route sets it: adit tries no other.
    pub is_fixed: bool,
    /// The backend has answered in it, or the route sets it.
    pub is_known: bool,
    /// The backend requires HTTP/1.1 where ALPN could choose HTTP/2.
    pub is_http1: bool,
}

/// Whether a port speaks TLS, as far as adit knows before it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpeaksTls {
    Yes,
    /// Not known yet. `is_hinted`: the port's hints say https; otherwise it has no hint.
    Perhaps {
        is_hinted: bool,
    },
    No,
}

/// Learned protocols by target.
#[derive(Default)]
pub struct Protocols(Mutex<HashMap<Target, Learned>>);

/// Protocol learned from the answers of one session's pods.
struct Learned {
    session: Weak<Endpoint>,
    grpc: Option<Scheme>,
    other: Option<Scheme>,
    /// Last answer in `grpc` or `other`.
    answered: Instant,
    /// Advice for the user if the port's hint is wrong.
    wrong: Option<String>,
    /// The backend has reset a request other than gRPC with HTTP_1_1_REQUIRED (RFC 9113, section 7).
    requires_http1: bool,
    /// When adit last found that a backend without an answer speaks no other protocol either.
    in_vain: Option<Instant>,
}

impl Protocols {
    /// Returns the protocol of the first attempt.
    pub fn choose(&self, route: &Route, endpoint: &Arc<Endpoint>, asks: Asks) -> Choice {
        let is_http1 = asks != Asks::Grpc && self.requires_http1(&route.target, endpoint);
        if let Some(scheme) = route.options.scheme {
            return Choice { scheme, is_fixed: true, is_known: true, is_http1 };
        }
        let learned = self.learned(&route.target, endpoint, asks);
        let scheme = learned.unwrap_or_else(|| by_hints(endpoint.port.hint(), asks));
        Choice { scheme, is_fixed: false, is_known: learned.is_some(), is_http1 }
    }

    /// Returns whether a port speaks TLS, as far as adit knows before it connects.
    pub fn speaks_tls(&self, route: &Route, endpoint: &Arc<Endpoint>) -> SpeaksTls {
        let known = route.options.scheme.or_else(|| self.learned(&route.target, endpoint, Asks::Http));
        match (known, endpoint.port.hint()) {
            (Some(Scheme::Https), _) => SpeaksTls::Yes,
            (None, hint @ (None | Some(Scheme::Https))) => SpeaksTls::Perhaps { is_hinted: hint.is_some() },
            _ => SpeaksTls::No,
        }
    }

    /// Records that a backend has answered in `scheme`.
    pub fn learn(&self, route: &Route, endpoint: &Arc<Endpoint>, asks: Asks, scheme: Scheme) {
        // An upgrade without TLS proves HTTP/1.1, but the port may speak HTTP/2 as well.
        if route.options.scheme.is_some() || (asks == Asks::Upgrade && scheme != Scheme::Https) {
            return;
        }
        let mut all = self.lock();
        let learned = Learned::of(&mut all, &route.target, endpoint);
        learned.answered = Instant::now();
        let of_kind = if asks == Asks::Grpc { &mut learned.grpc } else { &mut learned.other };
        if of_kind.replace(scheme) == Some(scheme) || asks == Asks::Grpc {
            return;
        }
        learned.wrong =
            endpoint.port.hint().filter(|hint| *hint != scheme).map(|_| wrong_hint(route, endpoint, scheme));
        if let Some(wrong) = &learned.wrong {
            warn!(target = %route.target, "{wrong}");
        }
    }

    /// Records that a backend requires HTTP/1.1 over TLS.
    pub fn require_http1(&self, target: &Target, endpoint: &Arc<Endpoint>) {
        Learned::of(&mut self.lock(), target, endpoint).requires_http1 = true;
    }

    fn requires_http1(&self, target: &Target, endpoint: &Arc<Endpoint>) -> bool {
        Learned::get(&self.lock(), target, endpoint).is_some_and(|learned| learned.requires_http1)
    }

    /// Returns whether a backend has just answered in the protocol that adit knows. Then silence is a failure, and no sign of
    /// another protocol: a port may speak several.
    pub fn is_still_spoken(&self, route: &Route, endpoint: &Arc<Endpoint>) -> bool {
        Learned::get(&self.lock(), &route.target, endpoint)
            .is_some_and(|learned| learned.answered.elapsed() < STILL_SPOKEN)
    }

    /// Records that a backend that does not answer speaks no other protocol.
    pub fn asked_in_vain(&self, route: &Route, endpoint: &Arc<Endpoint>) {
        Learned::of(&mut self.lock(), &route.target, endpoint).in_vain = Some(Instant::now());
    }

    /// Returns whether the backend spoke no other protocol within the last minute.
    pub fn was_asked_in_vain(&self, route: &Route, endpoint: &Arc<Endpoint>) -> bool {
        Learned::get(&self.lock(), &route.target, endpoint)
            .and_then(|learned| learned.in_vain)
            .is_some_and(|asked| asked.elapsed() < ASKED_AGAIN)
    }

    /// Returns advice on wrong hints, a sentence for each.
    pub fn wrong_hints(&self) -> Vec<String> {
        let all = self.lock();
        let mut wrong: Vec<String> = all
            .values()
            .filter(|learned| learned.session.strong_count() > 0)
            .filter_map(|learned| learned.wrong.clone())
            .collect();
        wrong.sort();
        wrong
    }

    fn learned(&self, target: &Target, endpoint: &Arc<Endpoint>, asks: Asks) -> Option<Scheme> {
        let all = self.lock();
        let learned = Learned::get(&all, target, endpoint)?;
        let (own, of_others) = match asks {
            Asks::Grpc => (learned.grpc, learned.other),
            _ => (learned.other, learned.grpc),
        };
        // Without TLS, gRPC and other requests may need different HTTP versions on one port. With TLS, ALPN chooses the version.
        own.or(of_others.filter(|scheme| *scheme == Scheme::Https))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Target, Learned>> {
        self.0.lock().expect("no panic while the lock is held")
    }
}

impl Learned {
    /// Returns what is learned of the session's pods. Another target may be the same port: that of https clients, or the port by
    /// its number.
    fn get<'a>(all: &'a HashMap<Target, Self>, target: &Target, endpoint: &Arc<Endpoint>) -> Option<&'a Self> {
        let own = all.get(target).filter(|learned| learned.is_of(endpoint));
        let is_same_port = |learned: &Self| learned.session.upgrade().is_some_and(|other| other.port == endpoint.port);
        own.or_else(|| {
            let pods = target.pods()?;
            let is_same = |other: &Target| other != target && other.pods().is_some_and(|other| other.is_beside(pods));
            all.iter().find(|(other, learned)| is_same(other) && is_same_port(learned)).map(|(_, learned)| learned)
        })
    }

    /// Returns what is learned of the session's pods, which is nothing at first.
    fn of<'a>(all: &'a mut HashMap<Target, Self>, target: &Target, endpoint: &Arc<Endpoint>) -> &'a mut Self {
        if !all.contains_key(target) {
            all.retain(|_, learned| learned.session.strong_count() > 0);
        }
        let new = || Self {
            session: Arc::downgrade(endpoint),
            grpc: None,
            other: None,
            answered: Instant::now(),
            wrong: None,
            requires_http1: false,
            in_vain: None,
        };
        let learned = all.entry(target.clone()).or_insert_with(new);
        if !learned.is_of(endpoint) {
            *learned = new();
        }
        learned
    }

    fn is_of(&self, endpoint: &Arc<Endpoint>) -> bool {
        std::ptr::eq(self.session.as_ptr(), Arc::as_ptr(endpoint))
    }
}

fn by_hints(hint: Option<Scheme>, asks: Asks) -> Scheme {
    match (hint, asks) {
        (Some(Scheme::Https), _) => Scheme::Https,
        (_, Asks::Grpc) | (None, Asks::Http2) => Scheme::H2c,
        (hint, _) => hint.unwrap_or(Scheme::Http),
    }
}

/// Returns the protocols to try next, the likeliest first, after adit spoke `spoke` and the backend answered `said`
/// ([`Sniff::NeedMore`]: nothing).
pub fn others(spoke: Scheme, said: Sniff, asks: Asks) -> &'static [Scheme] {
    use Protocol::{Http1, Http2, Tls};
    let spoke = if spoke == Scheme::H2c && asks == Asks::Upgrade { Scheme::Http } else { spoke };
    match (spoke, said, asks) {
        (Scheme::Http | Scheme::H2c, Sniff::Is(Tls), _) => &[Scheme::Https],
        (Scheme::Http, Sniff::Is(Http2), Asks::Upgrade) => &[],
        (Scheme::Http, Sniff::Is(Http2), _) => &[Scheme::H2c],
        (Scheme::Http, Sniff::NeedMore, Asks::Upgrade) => &[Scheme::Https],
        (Scheme::Http, Sniff::NeedMore, _) => &[Scheme::Https, Scheme::H2c],
        (Scheme::H2c, Sniff::Is(Http1), _) => &[Scheme::Http],
        (Scheme::H2c, Sniff::NeedMore | Sniff::Unknown, _) => &[Scheme::Https, Scheme::Http],
        (Scheme::Https, Sniff::Is(Http2), Asks::Http | Asks::Http2 | Asks::Grpc) => &[Scheme::H2c],
        (Scheme::Https, Sniff::Is(Http1) | Sniff::NeedMore | Sniff::Unknown, Asks::Http2 | Asks::Grpc) => {
            &[Scheme::H2c, Scheme::Http]
        }
        (Scheme::Https, Sniff::Is(Http1) | Sniff::NeedMore | Sniff::Unknown, _) => &[Scheme::Http],
        _ => &[],
    }
}

/// Returns the protocol that a server demands in the body of a 400 answer to HTTP/1 without TLS.
pub fn wanted(body: &[u8]) -> Option<Scheme> {
    let body = String::from_utf8_lossy(body);
    let says = |texts: &[&str]| texts.iter().any(|text| body.contains(text));
    match says(&TLS_IS_WANTED) {
        true => Some(Scheme::Https),
        false => says(&HTTP2_IS_WANTED).then_some(Scheme::H2c),
    }
}

/// Returns the scheme's name in the configuration.
pub fn name(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
        Scheme::H2c => "h2c",
    }
}

fn wrong_hint(route: &Route, endpoint: &Endpoint, scheme: Scheme) -> String {
    let port = &endpoint.port;
    let by = match (port.app_protocol.as_deref(), port.name.as_deref()) {
        (Some(protocol), _) if port.by_app_protocol().is_some() => format!("its appProtocol is {protocol:?}"),
        (_, Some(name)) if port.by_name().is_some() => format!("its name is {name:?}"),
        _ => "its number says https".to_owned(),
    };
    let speaks = name(scheme);
    format!("port {} of {} speaks {speaks}, and {by}: {}", port.number, route.target, fix(route, endpoint, scheme))
}

/// Returns advice on how to configure a port's protocol.
pub fn fix(route: &Route, endpoint: &Endpoint, scheme: Scheme) -> String {
    let scheme = name(scheme);
    let Some(target) = route.target.pods().filter(|target| target.jump.is_none()) else {
        return format!("set scheme: {scheme} for {}", route.name);
    };
    let workload = match &target.workload {
        // A route refers to a Service by its name, not by its address.
        Workload::Address(_) => return format!("make a route with scheme: {scheme} for the Service at {}", route.name),
        Workload::Service(service) => format!("service: {service}"),
        Workload::Pod(pod) | Workload::PodOfService { pod, .. } => format!("pod: {pod}"),
    };
    let port = match &target.port {
        PortRef::Name(name) => name.to_string(),
        PortRef::Number(_) | PortRef::Auto | PortRef::Https => endpoint.port.number.to_string(),
    };
    let (namespace, context) = (&target.namespace, context_key(&route.name, &target.cluster.context));
    format!(
        "set scheme: {scheme} in http.k8s.routes: {{\"{}\": {{{context}namespace: {namespace}, {workload}, port: {port}, scheme: {scheme}}}}}",
        route.name
    )
}

/// Returns the key `context` for the route of a name that contains one. Other names follow the current context.
pub fn context_key(host: &str, context: &ContextName) -> String {
    if host.contains(".cx.") { format!("context: {:?}, ", context.as_str()) } else { String::new() }
}

#[cfg(test)]
mod tests;
