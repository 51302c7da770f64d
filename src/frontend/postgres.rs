//! PostgreSQL by name: the server name of a client's TLS leads to a Service, on the listener that HTTP has.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustls::ServerConfig;
use tokio::{io::AsyncWriteExt, time::timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::{
    Connection,
    greeting::{self, Greeting, GreetingError, HANDSHAKE_FAILURE, INTERNAL_ERROR, UNRECOGNIZED_NAME},
    join,
};
use crate::{
    io::{BoxedIo, prefixed::Prefixed, read_ahead::ReadAhead},
    routing::SharedRouter,
    tunnel::{Lease, Manager},
    wire::client_hello::ServerName,
};

/// The protocol that clients of version 17 on may name in their ClientHello.
pub const ALPN: &[u8] = b"postgresql";

/// Serves PostgreSQL clients by the name in their ClientHello.
pub struct PostgresFrontend {
    router: SharedRouter,
    tunnels: Manager,
    /// For servers that speak no TLS themselves.
    server: Arc<ServerConfig>,
}

impl PostgresFrontend {
    pub fn new(router: SharedRouter, tunnels: Manager, server: Arc<ServerConfig>) -> Arc<Self> {
        Arc::new(Self { router, tunnels, server })
    }

    /// Serves one connection, whose first bytes are `received`.
    pub async fn serve(self: Arc<Self>, mut stream: BoxedIo, received: BytesMut, connection: Arc<Connection>) {
        match greeting::read(&mut stream, received, connection.place.limits().first_byte).await {
            Ok(greeting) => self.serve_greeted(stream, greeting, connection).await,
            Err(GreetingError::PlainPostgres) => {
                info!(connection = connection.id, peer = %connection.peer, "refused: PostgreSQL without TLS says no name");
                greeting::refuse_plain_postgres(&mut stream).await;
            }
            Err(error) => debug!(connection = connection.id, peer = %connection.peer, %error, "closed: no ClientHello"),
        }
    }

    /// Serves a client that has said whom it wants.
    pub async fn serve_greeted(&self, mut stream: BoxedIo, greeting: Greeting, connection: Arc<Connection>) {
        let ServerName::Name(name) = &greeting.hello.server_name else {
            info!(connection = connection.id, peer = %connection.peer, "refused: PostgreSQL without a server name");
            return greeting::alert(&mut stream, UNRECOGNIZED_NAME).await;
        };
        let route = match self.router.load().http(name) {
            Ok(route) => route,
            Err(error) => {
                info!(connection = connection.id, host = name, %error, hint = error.hint(), "refused: no route");
                return greeting::alert(&mut stream, UNRECOGNIZED_NAME).await;
            }
        };
        let reached = async {
            let lease = self.tunnels.acquire(&route.target, route.idle_timeout).await?;
            let backend = lease.connect(connection.ends).await?;
            Ok::<_, crate::tunnel::OpenError>((lease, backend))
        };
        let (lease, mut backend) = match reached.await {
            Ok(reached) => reached,
            Err(error) => {
                warn!(host = name, tunnel = %route.target, %error, cause = error.cause(), hint = error.hint(), "closed: no tunnel");
                return greeting::alert(&mut stream, INTERNAL_ERROR).await;
            }
        };
        match greeting::ask_for_tls(&mut backend).await {
            Ok(true) => {
                let client = &mut stream;
                join(client, &mut backend, greeting.bytes, &lease, name, connection).await;
            }
            // It speaks plaintext from here on.
            Ok(false) => {
                let stream = ReadAhead::new(Prefixed::new(greeting.bytes, stream));
                let accept = TlsAcceptor::from(self.server.clone()).accept(stream);
                match timeout(connection.place.limits().first_byte, accept).await {
                    Ok(Ok(mut client)) => {
                        join(&mut client, &mut backend, Bytes::new(), &lease, name, connection).await;
                    }
                    Ok(Err(error)) => debug!(connection = connection.id, %error, "tls handshake failed"),
                    Err(_) => debug!(connection = connection.id, "tls handshake timed out"),
                }
            }
            Err(error) => {
                lease.note_error(&error);
                warn!(host = name, tunnel = %route.target, %error, "closed: no PostgreSQL there");
                greeting::alert(&mut stream, HANDSHAKE_FAILURE).await;
            }
        }
    }
}

async fn join<C>(
    client: &mut C,
    backend: &mut BoxedIo,
    first: Bytes,
    lease: &Lease,
    name: &str,
    connection: Arc<Connection>,
) where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    if let Err(error) = backend.write_all(&first).await {
        return lease.note_error(&error);
    }
    let end = join::join(client, backend, lease).await;
    info!(target: "adit::access", connection = connection.id, host = name, up = end.up, down = end.down, broken = ?end.broken, "postgres connection");
}
