//! TLS by SNI: passed through byte for byte, or, where that cannot be, ended here.

pub mod backend;
pub mod certs;

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info};

use self::certs::Certs;
use super::{
    greeting::{self, DECODE_ERROR, GreetingError},
    http::{HttpFrontend, HttpVersion, told_scheme},
    postgres::{self, PostgresFrontend},
};
use crate::{
    config::Scheme,
    drain::Drain,
    frontend::Connection,
    io::{BoxedIo, abandoned::Ends, prefixed::Prefixed, read_ahead::ReadAhead, splice::splice},
    metrics::Metrics,
    routing::SharedRouter,
    tunnel::{Lease, Manager},
    wire::client_hello::{ClientHello, ServerName},
};

/// How long a backend may take for its first byte. A server answers a ClientHello at once, and most plain ones refuse it at once.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves TLS clients by the name in their ClientHello.
pub struct TlsFrontend {
    router: SharedRouter,
    tunnels: Manager,
    http: Arc<HttpFrontend>,
    postgres: Arc<PostgresFrontend>,
    server: Arc<ServerConfig>,
    metrics: Arc<Metrics>,
}

impl TlsFrontend {
    /// # Errors
    /// The cryptography has no safe version of TLS.
    pub fn new(
        router: SharedRouter,
        tunnels: Manager,
        http: Arc<HttpFrontend>,
        metrics: Arc<Metrics>,
    ) -> io::Result<Arc<Self>> {
        let certs = Arc::<Certs>::default();
        let server = certs.clone().server_config(&[b"h2", b"http/1.1"])?;
        let of_postgres = certs.server_config(&[postgres::ALPN])?;
        let postgres = PostgresFrontend::new(router.clone(), tunnels.clone(), of_postgres);
        Ok(Arc::new(Self { router, tunnels, http, postgres, server, metrics }))
    }

    /// Serves one connection, whose first bytes are `received`.
    ///
    /// A name that leads to a TLS backend is passed through. All else is ended here, behind a certificate minted
    /// for the name: a plain http backend is proxied, and an error becomes a page that a browser can show.
    pub async fn serve(
        self: Arc<Self>,
        mut stream: BoxedIo,
        received: BytesMut,
        connection: Arc<Connection>,
        drain: Drain,
    ) {
        let metrics = self.metrics.clone();
        let _open = metrics.tls_connections.open();
        let greeting = match greeting::read(&mut stream, received, connection.place.limits().first_byte).await {
            Ok(greeting) => greeting,
            Err(error) => {
                debug!(connection = connection.id, peer = %connection.peer, %error, "closed: no ClientHello");
                if let GreetingError::Hello(_) = error {
                    greeting::alert(&mut stream, DECODE_ERROR).await;
                }
                return;
            }
        };
        if greeting.hello.alpn.iter().any(|protocol| protocol == postgres::ALPN) {
            return self.postgres.serve_greeted(stream, greeting, connection).await;
        }
        let (hello, received) = (greeting.hello, greeting.bytes);
        let Some((lease, name, speaks_tls)) = self.backend(&hello).await else {
            return self.terminate(Prefixed::new(received, stream), connection, drain).await;
        };
        if speaks_tls == Some(false) {
            drop(lease);
            return self.terminate(Prefixed::new(received, stream), connection, drain).await;
        }
        match greet(&lease, connection.ends, &received, speaks_tls.is_none()).await {
            Ok(Some(backend)) => pass_through(stream, backend, lease, &name, connection).await,
            no_stream => {
                if let Err(error) = no_stream {
                    lease.note_error(&error);
                }
                drop(lease);
                self.terminate(Prefixed::new(received, stream), connection, drain).await;
            }
        }
    }

    /// Returns the lease on the tunnel of the client's name, and whether TLS is spoken there. None: not to be said yet.
    async fn backend(&self, hello: &ClientHello) -> Option<(Lease, String, Option<bool>)> {
        let ServerName::Name(name) = &hello.server_name else { return None };
        let route = self.router.load().http(name).ok()?;
        if route.options.scheme.is_some_and(|scheme| scheme != Scheme::Https) {
            return None;
        }
        // What keeps the tunnel from running is told by the error page, which asks again.
        let lease = self.tunnels.acquire(&route.target, route.idle_timeout).await.ok()?;
        let endpoint = lease.endpoint();
        let by_number = || (endpoint.port.number == 443).then_some(Scheme::Https);
        let scheme = route.options.scheme.or_else(|| told_scheme(&endpoint)).or_else(by_number);
        Some((lease, name.clone(), scheme.map(|scheme| scheme == Scheme::Https)))
    }

    /// Returns the frontend of PostgreSQL clients, which shares the certificates.
    pub fn postgres(&self) -> Arc<PostgresFrontend> {
        self.postgres.clone()
    }

    async fn terminate(&self, stream: Prefixed<BoxedIo>, connection: Arc<Connection>, drain: Drain) {
        let accept = TlsAcceptor::from(self.server.clone()).accept(ReadAhead::new(stream));
        let tls = match timeout(connection.place.limits().first_byte, accept).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                return debug!(connection = connection.id, peer = %connection.peer, %error, "tls handshake failed");
            }
            Err(_) => return debug!(connection = connection.id, peer = %connection.peer, "tls handshake timed out"),
        };
        let version =
            if tls.get_ref().1.alpn_protocol() == Some(b"h2") { HttpVersion::Http2 } else { HttpVersion::Http1 };
        self.http.clone().serve(Box::new(tls), version, connection, true, drain).await;
    }
}

/// Opens a stream to the backend, sends it the ClientHello, and waits for its first byte. None: there is none, because
/// the port refuses or the pod is gone; or `ask` is set and it is neither a handshake nor an alert (RFC 8446, section
/// 5.1), so that TLS is not spoken there. The client has seen nothing yet, and can still be told in a page.
async fn greet(lease: &Lease, client: Option<Ends>, hello: &Bytes, ask: bool) -> io::Result<Option<BoxedIo>> {
    let mut backend = lease.connect(client).await.map_err(io::Error::other)?;
    backend.write_all(hello).await?;
    let mut first = BytesMut::with_capacity(16 * 1024);
    Ok(match timeout(FIRST_BYTE_TIMEOUT, backend.read_buf(&mut first)).await {
        Ok(Ok(count)) if count > 0 && (!ask || matches!(first[0], 0x15 | 0x16)) => {
            Some(Box::new(Prefixed::new(first.freeze(), backend)))
        }
        // Slow, but said to speak TLS.
        Err(_) if !ask => Some(backend),
        _ => None,
    })
}

async fn pass_through(
    mut client: BoxedIo,
    mut backend: BoxedIo,
    lease: Lease,
    name: &str,
    connection: Arc<Connection>,
) {
    let end = splice(&mut client, &mut backend).await;
    if let Some((_, error)) = &end.broken {
        lease.note_error(error);
    }
    info!(target: "adit::access", connection = connection.id, host = name, up = end.up, down = end.down, broken = ?end.broken, "tls connection");
}
