//! TLS by SNI: passed through byte for byte if the backend speaks TLS, otherwise ended here.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info};

use super::{
    certs::Certs,
    client_socket::ClientSocket,
    greeting::{self, DECODE_ERROR, GreetingError},
    http::{HttpFrontend, HttpVersion},
    join::join_while,
    postgres::{self, PostgresFrontend},
    protocol::{Asks, SpeaksTls},
    read_only::Unlocked,
};
use crate::{
    config::{ClientTls, PortRef, Scheme},
    drain::Drain,
    frontend::{Connection, noted},
    io::{BoxedIo, prefixed::Prefixed, read_ahead::ReadAhead},
    journal::{Kind, Ongoing},
    metrics::Metrics,
    routing::{Route, SharedRouter},
    trust,
    tunnel::{Lease, Manager, Placement},
    wire::{
        client_hello::{ClientHello, ServerName},
        sniff::{Protocol, Sniff, sniff_server},
    },
};

/// Timeout for a backend's first byte. A TLS server answers a ClientHello at once, and most servers without TLS reject it at
/// once.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves TLS clients by the name in their ClientHello.
pub struct TlsFrontend {
    router: SharedRouter,
    tunnels: Manager,
    http: Arc<HttpFrontend>,
    postgres: Arc<PostgresFrontend>,
    certs: Arc<Certs>,
    server: Arc<ServerConfig>,
    metrics: Arc<Metrics>,
}

impl TlsFrontend {
    /// # Errors
    /// The crypto provider supports no safe TLS version.
    pub fn new(
        router: SharedRouter,
        tunnels: Manager,
        http: Arc<HttpFrontend>,
        metrics: Arc<Metrics>,
    ) -> io::Result<Arc<Self>> {
        let certs = Certs::following(trust::folder());
        let server = certs.clone().server_config(&[b"h2", b"http/1.1"])?;
        let of_postgres = certs.clone().server_config(&[postgres::ALPN])?;
        let postgres = PostgresFrontend::new(router.clone(), tunnels.clone(), http.clone(), certs.clone(), of_postgres);
        Ok(Arc::new(Self { router, tunnels, http, postgres, certs, server, metrics }))
    }

    /// Serves one connection, whose first bytes are `received`.
    ///
    /// A name whose backend speaks TLS is passed through. Any other connection ends here, with a certificate minted for the name:
    /// adit proxies to a plain HTTP backend, and shows an error as a page.
    pub async fn serve(
        self: Arc<Self>,
        mut stream: BoxedIo,
        received: BytesMut,
        connection: Arc<Connection>,
        drain: Drain,
    ) {
        let metrics = self.metrics.clone();
        let _open = metrics.tls_connections.open();
        let _connected = self.tunnels.journal().connection();
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
            return Box::pin(self.postgres.serve_greeted(stream, greeting, connection)).await;
        }
        self.certs.look().await;
        let (hello, received) = (greeting.hello, greeting.bytes);
        match self.backend(&hello, &received, &connection).await {
            Some(passed) => pass_through(stream, passed, connection.socket).await,
            None => Box::pin(self.terminate(Prefixed::new(received, stream), connection, drain)).await,
        }
    }

    /// Returns the connection to the backend of the client's name. `None`: the TLS ends here, as the route or its rules demand it,
    /// the backend speaks no TLS, or there is no connection, which an error page reports.
    async fn backend(&self, hello: &ClientHello, received: &Bytes, connection: &Connection) -> Option<Passed> {
        let ServerName::Name(name) = &hello.server_name else { return None };
        let route = self.router.load().http(name).ok()?.for_client(true);
        // Unless the route says so, adit terminates only HTTP: its clients offer it by ALPN (RFC 7301), or its port has a hint.
        // Clients of other protocols may offer theirs: `imap`, `tds/8.0`, `dot`.
        let may_be_http = hello.alpn.is_empty() || offers_http(&hello.alpn);
        let ends = (route.options.client_tls.is_some() || may_be_http) && self.ends(&route, name);
        if ends && (route.options.client_tls.is_some() || !hello.alpn.is_empty()) {
            return None;
        }
        if route.options.scheme.is_some_and(|scheme| scheme != Scheme::Https) {
            return None;
        }
        // Request rules cannot apply to TLS that is passed through.
        if self.http.has_rules(&route) {
            return None;
        }
        // Ignore the error: the error page tries again, and reports it.
        let lease = self.tunnels.acquire(&route.target, route.idle_timeout).await.ok()?;
        let (endpoint, protocols) = (lease.endpoint(), self.http.protocols());
        if ends && endpoint.port.hint().is_some() {
            return None;
        }
        let speaks_tls = protocols.speaks_tls(&route, &endpoint);
        let waits = match speaks_tls {
            SpeaksTls::No => return None,
            SpeaksTls::Perhaps { is_hinted } => is_hinted,
            SpeaksTls::Yes => true,
        };
        let passed = async |backend: BoxedIo, lease: Lease, placement: &Placement| {
            let mut noted = noted::begin(&self.tunnels, Kind::Tls, name, &route, connection).await;
            noted::reached(&mut noted, &lease, placement);
            Some(Passed { backend, lease, noted, unlocked: self.http.unlocked(&route) })
        };
        match greet(&lease, received, waits).await {
            Ok(Greeted::Tls(backend, placement)) => {
                protocols.learn(&route, &endpoint, Asks::Http, Scheme::Https);
                return passed(backend, lease, &placement).await;
            }
            // A backend that is known or hinted to speak TLS may only be slow to start.
            Ok(Greeted::Silent(backend, placement)) => {
                return passed(backend, lease, &placement).await;
            }
            Ok(Greeted::Otherwise) => {}
            Err(error) => lease.note_error(&error),
        }
        None
    }

    /// Returns whether a client's TLS ends here even if the backend speaks TLS.
    fn ends(&self, route: &Route, name: &str) -> bool {
        match route.options.client_tls {
            Some(client_tls) => client_tls == ClientTls::Terminate,
            // A name that contains a port means the protocol of that port.
            None => {
                let is_named = |port: &PortRef| matches!(port, PortRef::Number(_) | PortRef::Name(_));
                let names_port = route.target.pods().is_some_and(|target| is_named(&target.port));
                !names_port && self.certs.vouches_for(&name.to_ascii_lowercase())
            }
        }
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

/// Returns whether a client offers a version of HTTP by ALPN.
fn offers_http(alpn: &[Vec<u8>]) -> bool {
    alpn.iter().any(|protocol| protocol == b"h2" || protocol.starts_with(b"http/"))
}

/// Answer of a backend to a ClientHello.
enum Greeted {
    Tls(BoxedIo, Placement),
    /// No byte within [`FIRST_BYTE_TIMEOUT`].
    Silent(BoxedIo, Placement),
    /// Another protocol, or no answer, because the port refuses or the pod is gone.
    Otherwise,
}

/// Opens a stream to the backend, sends the ClientHello, and waits for the first bytes: from a TLS server, a handshake or an
/// alert (RFC 8446, section 5.1). The client has received no byte yet, so it can still get an error page.
///
/// `waits`: a backend that stays silent may speak TLS.
async fn greet(lease: &Lease, hello: &Bytes, waits: bool) -> io::Result<Greeted> {
    let (mut backend, placement) = lease.connect_to(None).await.map_err(io::Error::other)?;
    backend.write_all(hello).await?;
    let mut first = BytesMut::with_capacity(16 * 1024);
    let deadline = Instant::now() + FIRST_BYTE_TIMEOUT;
    while sniff_server(&first) == Sniff::NeedMore {
        match timeout_at(deadline, backend.read_buf(&mut first)).await {
            Ok(Ok(count)) if count > 0 => {}
            Err(_) if waits && first.is_empty() => return Ok(Greeted::Silent(backend, placement)),
            _ => return Ok(Greeted::Otherwise),
        }
    }
    Ok(match sniff_server(&first) {
        Sniff::Is(Protocol::Tls) => Greeted::Tls(Box::new(Prefixed::new(first.freeze(), backend)), placement),
        _ => Greeted::Otherwise,
    })
}

/// A connection that is passed through.
struct Passed {
    /// Has the ClientHello already.
    backend: BoxedIo,
    lease: Lease,
    noted: Ongoing,
    unlocked: Unlocked,
}

async fn pass_through(mut client: BoxedIo, passed: Passed, socket: ClientSocket) {
    let Passed { mut backend, lease, mut noted, unlocked } = passed;
    let end = join_while(&unlocked, &mut client, &mut backend, &lease, socket).await;
    noted::ended(&mut noted, &end);
    let entry = &noted.entry;
    info!(target: "adit::access", connection = entry.connection, host = entry.host, up = end.up, down = end.down, broken = end.why(), "tls connection");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clients_that_offer_http_by_alpn_are_taken_for_clients_of_http() {
        let offers = |alpn: &[&str]| offers_http(&alpn.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>());
        assert!(offers(&["h2", "http/1.1"]) && offers(&["http/1.0"]) && offers(&["imap", "http/1.1"]));
        for other in ["tds/8.0", "imap", "xmpp-client", "mqtt", "dot", "h3", "ftp"] {
            assert!(!offers(&[other]), "{other}");
        }
    }
}
