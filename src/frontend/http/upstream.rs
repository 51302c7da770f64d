//! Requests to the pod: the choice of connection and protocol, and retries.

mod admission;
pub mod connect;
mod delivery;
mod failure;
mod heard;
pub mod message;
pub mod pool;
mod refusal;
mod retry;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::{Request, Response};
use tokio::time::Instant;

pub use self::failure::RequestError;
use self::{
    admission::Admissions,
    delivery::Delivery,
    pool::{Key, Pool, Returning},
};
use super::{
    super::{
        backend_tls::ClientConfigs,
        protocol::{self, Asks, Protocols},
    },
    body::Body,
};
use crate::{config::Scheme, drain::Drain, metrics::Metrics, routing::Route, tunnel::Lease, wire::sniff::Sniff};

/// The connections of one HTTP frontend to all its backends.
pub struct Upstreams {
    pool: Arc<Pool>,
    admissions: Admissions,
    tls: ClientConfigs,
    protocols: Arc<Protocols>,
    metrics: Arc<Metrics>,
    drain: Drain,
}

/// Target of a request, and the protocol that it needs.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    pub route: &'a Route,
    pub lease: &'a Lease,
    /// The requested host, in lower case and without port.
    pub host: &'a str,
    pub asks: Asks,
    /// Owner of the connections that the request authenticates. `None`: an HTTP/2 client.
    pub owner: Option<&'a Owner>,
}

/// A client's connection that owns connections to backends. With NTLM, and often with Negotiate, a backend authenticates the
/// connection and not each request, so no other client may use it.
pub struct Owner {
    number: u64,
    /// Whether it has owned a connection.
    owns: AtomicBool,
}

/// Head of an answer, and the guard to hold until its body has ended.
pub struct Answered {
    pub response: Response<Body>,
    pub returning: Option<Returning>,
    /// Scheme of the backend.
    pub scheme: Scheme,
    pub pod: Arc<str>,
    /// Number of retries.
    pub retries: u32,
    /// When the connection of the last attempt was ready.
    pub connected: Instant,
}

impl Owner {
    /// `number`: unique for the pool.
    pub fn new(number: u64) -> Self {
        Self { number, owns: AtomicBool::new(false) }
    }

    /// Returns the number, for the key of a connection that it now owns.
    fn take(&self) -> u64 {
        self.owns.store(true, Ordering::Relaxed);
        self.number
    }

    /// Returns the number if it has owned a connection.
    fn number(&self) -> Option<u64> {
        self.owns.load(Ordering::Relaxed).then_some(self.number)
    }
}

impl Upstreams {
    pub fn new(protocols: Arc<Protocols>, metrics: Arc<Metrics>, drain: Drain) -> Arc<Self> {
        let pool = Pool::new(drain.clone());
        Arc::new(Self {
            pool,
            admissions: Admissions::default(),
            tls: ClientConfigs::default(),
            protocols,
            metrics,
            drain,
        })
    }

    /// Sends a request, and returns the head of the answer.
    ///
    /// `retry` decides on retries, and [`protocol`] on the protocol.
    ///
    /// # Errors
    /// The tunnel does not open, the backend does not answer, or its answer is malformed.
    pub async fn send(self: &Arc<Self>, way: &Way<'_>, request: Request<Body>) -> Result<Answered, RequestError> {
        let endpoint = way.lease.endpoint();
        // A database logs an error for each HTTP request.
        if let Some(database) = endpoint.port.database()
            && !self.protocols.choose(way.route, &endpoint, way.asks).is_known
        {
            return Err(RequestError::Database(database));
        }
        Delivery::new(self, way, request).deliver().await
    }
}

impl Way<'_> {
    fn key(&self, scheme: Scheme) -> Key {
        let tls = &self.route.options.tls;
        let of_jump = || self.route.target.pods()?.jump.as_ref().map(|jump| jump.target.host.to_string());
        let name = || tls.server_name.clone().or_else(of_jump).unwrap_or_else(|| self.host.to_owned());
        let tls = (scheme == Scheme::Https).then(|| (name(), tls.clone()));
        Key { target: self.route.target.clone(), scheme, tls, is_http1: false, client: None }
    }

    fn is_upgrade(&self) -> bool {
        self.asks == Asks::Upgrade
    }

    /// Returns the protocols to try instead of `spoke`. A route that verifies certificates or presents one keeps to TLS.
    fn others(&self, spoke: Scheme, said: Sniff) -> &'static [Scheme] {
        let tls = &self.route.options.tls;
        let keeps_to_tls = tls.verify || tls.client_cert.is_some();
        if spoke == Scheme::Https && keeps_to_tls { &[] } else { protocol::others(spoke, said, self.asks) }
    }
}
