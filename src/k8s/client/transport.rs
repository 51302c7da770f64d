//! Connections to one API server for requests, watches and upgrades, separate for each client certificate.

use std::{
    env,
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

use super::{
    connection::{Limit, Noting},
    one_at_a_time::OneAtATime,
};
use crate::{
    k8s::dial::Dialer,
    tls::{Pinned, bundle::Bundle, identity, system},
    wire::http1::MOST_HEADERS,
};

type Connector = Noting<HttpsConnector<Dialer>>;
pub type HttpClient = Client<OneAtATime<Connector>, Body>;

/// Idle timeout of a connection to an API server. Longer than a watch lasts: while a tunnel is open, the next watch
/// starts before the timeout, so look-ups always find a connection.
const IDLE: Duration = Duration::from_secs(300);

/// Idle timeout of a connection with only watches, which found no room on the connection of requests.
const IDLE_WATCHES: Duration = Duration::from_secs(5);

/// Maximum number of watches on the connection of requests, and at most half of the server's limit of streams.
const WATCHES_BESIDE_REQUESTS: usize = 32;

/// Maximum number of watches on a separate connection, if the server announces no limit: the minimum that RFC 9113
/// recommends.
const WATCHES_ALONE: usize = 100;

/// Connections with one client certificate.
pub struct Transport {
    identity: Option<Arc<CertifiedKey>>,
    connector: Connector,
    /// Client for requests, with HTTP/2 if the server supports it.
    requests: HttpClient,
    /// Client with a new connection per request.
    alone: HttpClient,
    /// Connection of requests, then connections for watches that find no room there: each watch occupies a stream for
    /// minutes.
    lanes: Mutex<Vec<Lane>>,
    limit: Limit,
    /// TLS settings for upgrades: ALPN `http/1.1`.
    pub upgrades: Arc<ClientConfig>,
}

/// HTTP/2 connection with watches on it.
struct Lane {
    client: HttpClient,
    watches: Arc<()>,
}

/// A watch's place on its connection, held until it ends.
pub type Room = Arc<()>;

impl Transport {
    /// Returns the client for requests with a quick answer.
    pub fn for_requests(&self) -> &HttpClient {
        &self.requests
    }

    /// Returns the client that opens a connection per request.
    pub fn alone(&self) -> &HttpClient {
        &self.alone
    }

    /// Returns the client for a watch: the one of requests, as long as it has room. An excess stream would not be
    /// refused, but would wait until another one ends.
    pub fn for_watch(&self) -> (HttpClient, Room) {
        let limit = self.limit.get().unwrap_or(WATCHES_ALONE);
        let mut lanes = self.lanes.lock().expect("no panic while the lock is held");
        let has_room = |(index, lane): (usize, &Lane)| {
            let room = if index == 0 { (limit / 2).min(WATCHES_BESIDE_REQUESTS) } else { limit.min(WATCHES_ALONE) };
            Arc::strong_count(&lane.watches) <= room
        };
        let index = lanes.iter().enumerate().position(has_room).unwrap_or_else(|| {
            lanes.push(Lane { client: client(&self.connector, IDLE_WATCHES), watches: Arc::default() });
            lanes.len() - 1
        });
        (lanes[index].client.clone(), lanes[index].watches.clone())
    }
}

/// Creates a [`Transport`] per client certificate, and caches the last one.
pub struct Transports {
    tls: ClientConfig,
    dialer: Dialer,
    server_name: Option<ServerName<'static>>,
    last: Mutex<Arc<Transport>>,
}

impl Transports {
    /// Returns transports. `tls`: with the CA bundle, without a client certificate. `server_name`: replaces the server's
    /// host.
    pub fn new(tls: ClientConfig, dialer: Dialer, server_name: Option<ServerName<'static>>) -> Self {
        let last = Mutex::new(Arc::new(make(&tls, &dialer, server_name.as_ref(), None)));
        Self { tls, dialer, server_name, last }
    }

    /// Returns the connections for a certificate. Closes idle connections of another certificate, as in client-go.
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
    // A resumed session keeps the identity of the original one, so each certificate needs its own session cache.
    tls.resumption = Resumption::in_memory_sessions(32);
    if let Some(identity) = identity {
        tls.client_auth_cert_resolver = identity::resolver((**identity).clone());
    }
    let mut https = HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http();
    if let Some(name) = server_name {
        https = https.with_server_name_resolver(FixedServerNameResolver::new(name.clone()));
    }
    let limit = Limit::default();
    // As in client-go, for proxies that break HTTP/2.
    let https = match env::var_os("DISABLE_HTTP2").is_some_and(|value| !value.is_empty()) {
        true => https.enable_http1().wrap_connector(dialer.clone()),
        false => https.enable_all_versions().wrap_connector(dialer.clone()),
    };
    let connector = Noting::new(https, limit.clone());
    let requests = client(&connector, IDLE);
    let alone =
        Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(OneAtATime::new(connector.clone()));
    let lanes = Mutex::new(vec![Lane { client: requests.clone(), watches: Arc::default() }]);
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Transport { identity: identity.cloned(), connector, requests, alone, lanes, limit, upgrades: Arc::new(tls) }
}

fn client(connector: &Connector, idle: Duration) -> HttpClient {
    Client::builder(TokioExecutor::new())
        // With HTTP/2 pings, a connection that broke while the laptop slept is detected.
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(idle)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .http2_keep_alive_timeout(Duration::from_secs(5))
        .http1_max_headers(MOST_HEADERS)
        .build(OneAtATime::new(connector.clone()))
}

/// Returns the TLS settings without a client certificate.
///
/// # Errors
/// Fails if the system's CA bundle is needed and cannot be read.
pub fn tls_config(config: &kube::Config, bundle: Option<Bundle>) -> kube::Result<ClientConfig> {
    let mut config = config.clone();
    // The verifier of the platform is stricter than Go on Linux. Elsewhere Go uses the same one.
    let is_of_system = bundle.is_none() && !config.accept_invalid_certs && cfg!(target_os = "linux");
    let bundle = bundle.or_else(|| is_of_system.then(|| system::bundle(&crate::tls::provider())));
    if bundle.is_some() || config.accept_invalid_certs {
        // Without this, kube would load the system's CA bundle for nothing.
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

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use rustls::pki_types::PrivateKeyDer;
    use tokio::{
        net::{TcpListener, TcpStream},
        time::timeout,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Answers each request, but never ends the answers to `/watch`.
    async fn serve(io: TcpStream, acceptor: TlsAcceptor, most: u32) {
        let io = acceptor.accept(io).await.unwrap();
        let server = h2::server::Builder::new().max_concurrent_streams(most).handshake(io).await;
        let mut server: h2::server::Connection<_, bytes::Bytes> = server.unwrap();
        let mut open = Vec::new();
        while let Some(Ok((request, mut respond))) = server.accept().await {
            let is_watch = request.uri().path() == "/watch";
            open.extend(respond.send_response(Response::new(()), !is_watch));
        }
    }

    #[tokio::test]
    async fn watches_never_wait_for_streams_that_the_server_does_not_allow() {
        for most in [1, 2, 5] {
            let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
            let mut server = rustls::ServerConfig::builder_with_provider(crate::tls::provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![own.cert.der().clone()], key)
                .unwrap();
            server.alpn_protocols = vec![b"h2".to_vec()];
            let acceptor = TlsAcceptor::from(Arc::new(server));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("https://{}", listener.local_addr().unwrap());
            tokio::spawn(async move {
                while let Ok((io, _)) = listener.accept().await {
                    tokio::spawn(serve(io, acceptor.clone(), most));
                }
            });
            let provider = crate::tls::provider();
            let tls = ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Pinned::to_nothing(provider))
                .with_no_client_auth();
            let transports = Transports::new(tls.clone(), Dialer::new(None, &tls).unwrap(), None);
            let transport = transports.of(None);
            let request = |path: &str| Request::get(format!("{url}{path}")).body(Body::empty()).unwrap();
            let mut open = Vec::new();
            for number in 0..7 {
                let looked_up = timeout(PATIENCE, transport.for_requests().request(request("/"))).await;
                looked_up.unwrap_or_else(|_| panic!("{most}: look-up {number}")).unwrap();
                let (client, room) = transport.for_watch();
                let watch = timeout(PATIENCE, client.request(request("/watch"))).await;
                open.push((watch.unwrap_or_else(|_| panic!("{most}: watch {number}")).unwrap(), room));
            }
            let lanes = || transport.lanes.lock().unwrap().len();
            let before = lanes();
            open.pop();
            transport.for_watch();
            assert_eq!(lanes(), before, "room that is given back is used again");
        }
    }
}
