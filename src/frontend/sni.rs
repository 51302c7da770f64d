//! The SNI listener: the server name of a client's TLS decides where its bytes go. TLS is never ended here.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tracing::{info, warn};

use super::{
    Connection,
    greeting::{self, DECODE_ERROR, Greeting, GreetingError, HANDSHAKE_FAILURE, INTERNAL_ERROR, UNRECOGNIZED_NAME},
    join::join,
    proxied,
};
use crate::{
    config::ProxyProtocol,
    io::BoxedIo,
    metrics::Metrics,
    routing::SharedRouter,
    tunnel::{Lease, Manager, OpenError},
    wire::{
        client_hello::{HelloError, ServerName},
        proxy_protocol,
    },
};

/// Serves the clients of `sni.listen`.
pub struct SniFrontend {
    router: SharedRouter,
    tunnels: Manager,
    metrics: Arc<Metrics>,
}

impl SniFrontend {
    pub fn new(router: SharedRouter, tunnels: Manager, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { router, tunnels, metrics })
    }

    /// Serves one connection until both sides have ended.
    pub async fn serve(self: Arc<Self>, mut stream: TcpStream, connection: Arc<Connection>) {
        let metrics = self.metrics.clone();
        let _open = metrics.sni_connections.open();
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
            Err(error) => {
                self.count();
                info!(connection = connection.id, peer = %connection.peer, %error, "sni: refused");
                return match error {
                    GreetingError::PlainPostgres => greeting::refuse_plain_postgres(&mut stream).await,
                    // Who does not speak TLS would not understand.
                    GreetingError::Hello(HelloError::NotTls) => {}
                    GreetingError::Hello(_) => greeting::alert(&mut stream, DECODE_ERROR).await,
                    _ => {}
                };
            }
        };
        if let Err((description, error)) = self.lead(&mut stream, greeting, &connection).await {
            self.count();
            info!(connection = connection.id, peer = %connection.peer, error, "sni: refused");
            greeting::alert(&mut stream, description).await;
        }
    }

    fn count(&self) {
        self.metrics.refused_names.fetch_add(1, Ordering::Relaxed);
    }

    /// Leads a client to its backend and moves its bytes. Until then an error is a TLS alert.
    async fn lead(
        &self,
        stream: &mut BoxedIo,
        greeting: Greeting,
        connection: &Connection,
    ) -> Result<(), (u8, String)> {
        let ServerName::Name(name) = &greeting.hello.server_name else {
            return Err((UNRECOGNIZED_NAME, "the ClientHello has no server name".to_owned()));
        };
        let (route, send_proxy) = self.router.load().sni(name).map_err(|error| {
            let hint = error.near().map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            (UNRECOGNIZED_NAME, format!("{name} is none of sni.routes{hint}"))
        })?;
        let reached = async {
            let lease = self.tunnels.acquire(&route.target, route.idle_timeout).await?;
            let backend = lease.connect(connection.ends).await?;
            Ok::<(Lease, BoxedIo), OpenError>((lease, backend))
        };
        let (lease, mut backend) = reached.await.map_err(|error| {
            warn!(host = name, tunnel = %route.target, %error, cause = error.cause(), hint = error.hint(), "no tunnel");
            (INTERNAL_ERROR, format!("{name}: {error}"))
        })?;
        let failed = |error: std::io::Error| {
            lease.note_error(&error);
            (HANDSHAKE_FAILURE, format!("{name}: {error}"))
        };
        if let Some(version) = send_proxy {
            let header = proxy_protocol::write(version, connection.peer, connection.local);
            backend.write_all(&header).await.map_err(failed)?;
        }
        if greeting.is_postgres && !greeting::ask_for_tls(&mut backend).await.map_err(failed)? {
            return Err((HANDSHAKE_FAILURE, format!("{name}: the server speaks no TLS (it answered N)")));
        }
        let hello: Bytes = greeting.bytes;
        backend.write_all(&hello).await.map_err(failed)?;
        let end = join(stream, &mut backend, &lease).await;
        info!(target: "adit::access", connection = connection.id, peer = %connection.peer, host = name, tunnel = %route.target, up = end.up, down = end.down, broken = ?end.broken, "sni connection");
        Ok(())
    }
}
