//! The SNI listener: routes TLS connections by their server name and passes them through. adit ends TLS here only to tell a
//! PostgreSQL client why it is refused.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tracing::{info, warn};

use super::{
    Connection,
    greeting::{self, DECODE_ERROR, Greeting, GreetingError, HANDSHAKE_FAILURE, INTERNAL_ERROR, UNRECOGNIZED_NAME},
    join::join,
    noted,
    postgres::{self, PostgresFrontend, sessions::Watched},
    proxied,
    refusal::{Refusal, refuse_greeted},
};
use crate::{
    config::ProxyProtocol,
    io::BoxedIo,
    journal::Kind,
    metrics::Metrics,
    routing::{SharedRouter, Target},
    tunnel::{Lease, Manager, OpenError, Placement},
    wire::{
        client_hello::{HelloError, ServerName},
        proxy_protocol,
    },
};

/// Timeout for the first byte of a command's server: a person may have to sign in first, in a browser.
const SIGN_IN: Duration = Duration::from_secs(5 * 60);

/// Why a client gets no backend.
struct Refused {
    alert: u8,
    refusal: Refusal,
}

/// Serves the clients of `sni.listen`.
pub struct SniFrontend {
    router: SharedRouter,
    tunnels: Manager,
    postgres: Arc<PostgresFrontend>,
    metrics: Arc<Metrics>,
}

impl SniFrontend {
    pub fn new(
        router: SharedRouter,
        tunnels: Manager,
        postgres: Arc<PostgresFrontend>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self { router, tunnels, postgres, metrics })
    }

    /// Serves one connection until both sides have ended.
    pub async fn serve(self: Arc<Self>, mut stream: TcpStream, connection: Arc<Connection>) {
        let metrics = self.metrics.clone();
        let _open = metrics.sni_connections.open();
        let _connected = self.tunnels.journal().connection();
        let router = self.router.load_full();
        let off = ProxyProtocol::Off;
        let policy = router.config.sni.as_ref().map_or(&off, |sni| &sni.proxy_protocol);
        let proxied = proxied::accept(&mut stream, policy, &connection).await;
        let (connection, received) = match proxied {
            Ok(proxied) => proxied,
            Err(error) => {
                self.count();
                return info!(connection = connection.id, peer = %connection.peer, %error, "sni: refused");
            }
        };
        let mut stream: BoxedIo = Box::new(stream);
        let greeting = match greeting::read(&mut stream, received, connection.place.limits().first_byte).await {
            Ok(greeting) => greeting,
            Err(GreetingError::Cancel(message)) => {
                return self.postgres.cancel(&message, connection.peer, None).await;
            }
            Err(error) => {
                self.count();
                info!(connection = connection.id, peer = %connection.peer, %error, "sni: refused");
                return match error {
                    GreetingError::PlainPostgres => self.postgres.refuse_plain(&mut stream).await,
                    // A client without TLS cannot read an alert.
                    GreetingError::Hello(HelloError::NotTls) => {}
                    GreetingError::Hello(_) => greeting::alert(&mut stream, DECODE_ERROR).await,
                    _ => {}
                };
            }
        };
        let is_postgres = greeting.is_postgres || greeting.hello.alpn.iter().any(|protocol| protocol == postgres::ALPN);
        let hello = greeting.bytes.clone();
        if let Err(Refused { alert, refusal }) = self.lead(&mut stream, greeting, is_postgres, &connection).await {
            self.count();
            info!(connection = connection.id, peer = %connection.peer, error = refusal.message, "sni: refused");
            match is_postgres {
                true => Box::pin(refuse_greeted(stream, hello, &refusal, self.postgres.tls().await)).await,
                false => greeting::alert(&mut stream, alert).await,
            }
        }
    }

    fn count(&self) {
        self.metrics.refused_names.fetch_add(1, Ordering::Relaxed);
    }

    /// Connects a client to its backend and copies bytes. The client can be refused until the backend has its ClientHello.
    async fn lead(
        &self,
        stream: &mut BoxedIo,
        greeting: Greeting,
        is_postgres: bool,
        connection: &Connection,
    ) -> Result<(), Refused> {
        let ServerName::Name(name) = &greeting.hello.server_name else {
            let refusal = match is_postgres {
                true => Refusal::nameless(),
                false => Refusal::new("the ClientHello has no server name", ""),
            };
            return Err(Refused { alert: UNRECOGNIZED_NAME, refusal });
        };
        let (route, send_proxy) = self.router.load().sni(name).map_err(|error| {
            let hint = error.near().map(|near| format!("did you mean {near}?")).unwrap_or_default();
            Refused { alert: UNRECOGNIZED_NAME, refusal: Refusal::new(format!("{name} is none of sni.routes"), hint) }
        })?;
        let mut noted = noted::begin(&self.tunnels, Kind::Sni, name, &route, connection).await;
        let reached = async {
            let lease = self.tunnels.acquire(&route.target, route.idle_timeout).await?;
            let pod = is_postgres.then(|| self.postgres.sessions().pod_of(connection.peer, &route.target)).flatten();
            let (backend, placement) = lease.connect_to(pod.as_deref()).await?;
            Ok::<(Lease, BoxedIo, Placement), OpenError>((lease, backend, placement))
        };
        let (lease, mut backend, placement) = reached.await.map_err(|error| {
            noted::failed(&mut noted, &error);
            warn!(host = name, tunnel = %route.target, %error, cause = error.cause(), hint = error.hint(), "no tunnel");
            Refused { alert: INTERNAL_ERROR, refusal: Refusal::of_open(&error) }
        })?;
        noted::reached(&mut noted, &lease, &placement);
        let failed = |error: std::io::Error| {
            lease.note_error(&error);
            Refused { alert: HANDSHAKE_FAILURE, refusal: Refusal::new(format!("{name}: {error}"), "") }
        };
        if let Some(version) = send_proxy {
            let header = proxy_protocol::write(version, connection.peer, connection.dialled);
            backend.write_all(&header).await.map_err(failed)?;
        }
        let limit = if matches!(route.target, Target::Command(_)) { SIGN_IN } else { greeting::ANSWER };
        if greeting.is_postgres && !greeting::ask_for_tls(&mut backend, limit).await.map_err(failed)? {
            let hint =
                "connect through a name on the HTTP listener, which ends TLS, or through a route of tcp.k8s.routes";
            let refusal = Refusal::new(format!("{name}: the server speaks no TLS"), hint);
            return Err(Refused { alert: HANDSHAKE_FAILURE, refusal });
        }
        let hello: Bytes = greeting.bytes;
        backend.write_all(&hello).await.map_err(failed)?;
        let end = match is_postgres && send_proxy.is_none() {
            true => {
                let sessions = self.postgres.sessions().clone();
                let backend = Watched::new(backend, sessions, connection.peer, &route, placement.pod());
                join(stream, &mut backend.of_postgres(true), &lease, connection.socket).await
            }
            false => join(stream, &mut backend, &lease, connection.socket).await,
        };
        noted::ended(&mut noted, &end);
        info!(target: "adit::access", connection = connection.id, peer = %connection.peer, host = name, tunnel = %route.target, up = end.up, down = end.down, broken = end.why(), "sni connection");
        Ok(())
    }
}
