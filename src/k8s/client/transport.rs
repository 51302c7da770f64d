//! Connections to one API server, for requests and watches, and for upgrades; others for each client certificate.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use kube::client::{Body, ConfigExt};
use rustls::{ClientConfig, client::Resumption, pki_types::ServerName, sign::CertifiedKey};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::one_at_a_time::OneAtATime;
use crate::{
    k8s::dial::Dialer,
    tls::{Pinned, bundle::Bundle, identity},
};

pub type HttpClient = Client<OneAtATime<HttpsConnector<Dialer>>, Body>;

/// How long a connection to an API server is kept after the last request on it. Longer than a watch lasts: while a tunnel is open, a
/// watch begins before that, and the connection is there when somebody looks something up.
const IDLE: Duration = Duration::from_secs(300);

/// The same for a connection that only the watches have which found no room on that of the requests.
const IDLE_WATCHES: Duration = Duration::from_secs(5);

/// How many watches share the connection of the requests. API servers allow 100 streams on a connection, or 250, and
/// gateways may allow fewer.
const WATCHES_BESIDE_REQUESTS: usize = 32;

/// Connections with one client certificate.
pub struct Transport {
    identity: Option<Arc<CertifiedKey>>,
    /// HTTP/2 where the server has it.
    requests: HttpClient,
    /// For more watches than there is room for on the connection of the requests: each takes up a stream for minutes.
    watches: HttpClient,
    room: Arc<Semaphore>,
    /// For upgrades: ALPN `http/1.1`.
    pub upgrades: Arc<ClientConfig>,
}

/// Permit of a watch, held until it ends.
pub type Room = Option<OwnedSemaphorePermit>;

impl Transport {
    /// Returns what sends requests that are answered at once.
    pub fn for_requests(&self) -> &HttpClient {
        &self.requests
    }

    /// Returns what sends a watch, on the connection of the requests while it has room.
    pub fn for_watch(&self) -> (&HttpClient, Room) {
        match self.room.clone().try_acquire_owned() {
            Ok(room) => (&self.requests, Some(room)),
            Err(_) => (&self.watches, None),
        }
    }
}

/// Makes a [`Transport`] for each client certificate, and keeps that of the last one.
pub struct Transports {
    tls: ClientConfig,
    dialer: Dialer,
    server_name: Option<ServerName<'static>>,
    last: Mutex<Arc<Transport>>,
}

impl Transports {
    /// `tls`: with the CA bundle, and without a client certificate. `server_name`: instead of the server's host.
    pub fn new(tls: ClientConfig, dialer: Dialer, server_name: Option<ServerName<'static>>) -> Self {
        let last = Mutex::new(Arc::new(make(&tls, &dialer, server_name.as_ref(), None)));
        Self { tls, dialer, server_name, last }
    }

    /// Returns the connections for a certificate. Idle ones of another certificate are closed, as in client-go.
    pub fn of(&self, identity: Option<&Arc<CertifiedKey>>) -> Arc<Transport> {
        let mut last = self.last.lock().expect("no panic while the lock is held");
        let is_same = match (identity, &last.identity) {
            (Some(wanted), Some(present)) => Arc::ptr_eq(wanted, present) || wanted.cert == present.cert,
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            *last = Arc::new(make(&self.tls, &self.dialer, self.server_name.as_ref(), identity));
        }
        last.clone()
    }
}

fn make(
    tls: &ClientConfig,
    dialer: &Dialer,
    server_name: Option<&ServerName<'static>>,
    identity: Option<&Arc<CertifiedKey>>,
) -> Transport {
    let mut tls = tls.clone();
    // A resumed session keeps the identity that began it.
    tls.resumption = Resumption::in_memory_sessions(32);
    if let Some(identity) = identity {
        tls.client_auth_cert_resolver = identity::resolver((**identity).clone());
    }
    let mut https = HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http();
    if let Some(name) = server_name {
        https = https.with_server_name_resolver(FixedServerNameResolver::new(name.clone()));
    }
    let https = https.enable_all_versions().wrap_connector(dialer.clone());
    let client = |idle: Duration| {
        Client::builder(TokioExecutor::new())
            // A connection that a sleeping laptop has lost is found out, and not waited for.
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(idle)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .http2_keep_alive_timeout(Duration::from_secs(5))
            .build(OneAtATime::new(https.clone()))
    };
    let (requests, watches) = (client(IDLE), client(IDLE_WATCHES));
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let room = Arc::new(Semaphore::new(WATCHES_BESIDE_REQUESTS));
    Transport { identity: identity.cloned(), requests, watches, room, upgrades: Arc::new(tls) }
}

/// Returns the TLS settings without a client certificate.
///
/// # Errors
/// The system's CA bundle is needed, and cannot be read.
pub fn tls_config(config: &kube::Config, bundle: Option<Bundle>) -> kube::Result<ClientConfig> {
    let mut config = config.clone();
    if bundle.is_some() || config.accept_invalid_certs {
        // Else kube would load the system's CA bundle, for nothing.
        config.root_cert = Some(Vec::new());
    }
    let mut tls = config.rustls_client_config()?;
    if config.accept_invalid_certs {
        let provider = tls.crypto_provider().clone();
        tls.dangerous().set_certificate_verifier(Pinned::to_nothing(provider));
    } else if let Some(bundle) = bundle {
        tls.dangerous().set_certificate_verifier(Arc::new(bundle));
    }
    Ok(tls)
}
