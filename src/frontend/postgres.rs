//! PostgreSQL by name: the TLS server name of a client selects a Service, on the HTTP listener.

pub mod sessions;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use self::sessions::{Sessions, Watched};
use super::{
    Connection,
    certs::Certs,
    client_socket::ClientSocket,
    greeting::{self, Greeting, GreetingError},
    http::HttpFrontend,
    join::join_while,
    noted,
    read_only::Unlocked,
    refusal::{Refusal, refuse_greeted},
};
use crate::{
    error_code::ErrorCode,
    io::{BoxedIo, Io, prefixed::Prefixed, read_ahead::ReadAhead},
    journal::{Kind, Ongoing},
    routing::{SharedRouter, Target},
    tunnel::{Lease, Manager, OpenError, StreamFault},
    wire::{
        client_hello::ServerName,
        postgres::{self, First},
    },
};

/// ALPN protocol that PostgreSQL clients from version 17 on may send.
pub const ALPN: &[u8] = b"postgresql";

/// Timeout for a CancelRequest, which the server answers by closing the connection.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves PostgreSQL clients by the name in their ClientHello.
pub struct PostgresFrontend {
    router: SharedRouter,
    tunnels: Manager,
    /// Knows which contexts accept only some requests.
    http: Arc<HttpFrontend>,
    /// TLS for clients of servers that speak no TLS, and for refusals.
    server: Arc<ServerConfig>,
    certs: Arc<Certs>,
    sessions: Arc<Sessions>,
}

impl PostgresFrontend {
    pub fn new(
        router: SharedRouter,
        tunnels: Manager,
        http: Arc<HttpFrontend>,
        certs: Arc<Certs>,
        server: Arc<ServerConfig>,
    ) -> Arc<Self> {
        Arc::new(Self { router, tunnels, http, server, certs, sessions: Arc::default() })
    }

    /// Returns the open sessions of all frontends.
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    /// Returns the TLS configuration for connections that end here, with the current CA of the user.
    pub async fn tls(&self) -> &Arc<ServerConfig> {
        self.certs.look().await;
        &self.server
    }

    /// Serves one connection, whose first bytes are `received`.
    pub async fn serve(self: Arc<Self>, mut stream: BoxedIo, received: BytesMut, connection: Arc<Connection>) {
        match greeting::read(&mut stream, received, connection.place.limits().first_byte).await {
            Ok(greeting) => self.serve_greeted(stream, greeting, connection).await,
            Err(GreetingError::PlainPostgres) => {
                info!(connection = connection.id, peer = %connection.peer, "refused: PostgreSQL without TLS sends no server name");
                self.refuse_plain(&mut stream).await;
            }
            Err(GreetingError::Cancel(message)) => self.cancel(&message, connection.peer, None).await,
            Err(error) => debug!(connection = connection.id, peer = %connection.peer, %error, "closed: no ClientHello"),
        }
    }

    /// Refuses a client whose start-up message came without TLS.
    pub async fn refuse_plain(&self, stream: &mut BoxedIo) {
        greeting::end_with(stream, &Refusal::plain_postgres().of_postgres()).await;
    }

    /// Refuses a client that has begun with TLS.
    pub async fn refuse_greeted(&self, stream: BoxedIo, greeting: Greeting, refusal: &Refusal) {
        refuse_greeted(stream, greeting.bytes, refusal, self.tls().await).await;
    }

    /// Passes a CancelRequest on to the server of the session. `only`: target that the session must have.
    pub async fn cancel(&self, message: &[u8], peer: SocketAddr, only: Option<&Target>) {
        let places = self.sessions.find(postgres::key_of_cancel(message), peer, only);
        if places.is_empty() {
            info!(%peer, "a request to cancel a PostgreSQL query is for no session that is open");
        }
        let sending = places.into_iter().map(|place| async move {
            let sending = async {
                let lease =
                    self.tunnels.acquire(&place.target, place.idle_timeout).await.map_err(std::io::Error::other)?;
                let connected = lease.connect_to(Some(&place.pod)).await;
                let (mut backend, _) = connected.map_err(std::io::Error::other)?;
                backend.write_all(message).await?;
                backend.flush().await?;
                // The server closes the connection after it has sent the signal; clients wait for that.
                while backend.read(&mut [0; 64]).await? > 0 {}
                Ok::<(), std::io::Error>(())
            };
            match timeout(CANCEL_TIMEOUT, sending).await {
                Ok(Ok(())) => info!(tunnel = %place.target, pod = %place.pod, "PostgreSQL query cancelled"),
                Ok(Err(error)) => {
                    warn!(tunnel = %place.target, pod = %place.pod, %error, "PostgreSQL query not cancelled")
                }
                Err(_) => warn!(tunnel = %place.target, pod = %place.pod, "PostgreSQL query not cancelled: no answer"),
            }
        });
        futures::future::join_all(sending).await;
    }

    /// Serves a client whose ClientHello was read.
    pub async fn serve_greeted(&self, stream: BoxedIo, greeting: Greeting, connection: Arc<Connection>) {
        let ServerName::Name(name) = &greeting.hello.server_name else {
            info!(connection = connection.id, peer = %connection.peer, "refused: PostgreSQL without a server name");
            return Box::pin(self.refuse_greeted(stream, greeting, &Refusal::nameless())).await;
        };
        let route = match self.router.load().http(name) {
            Ok(route) => route,
            Err(error) => {
                info!(connection = connection.id, host = name, %error, hint = error.hint(), "refused: no route");
                return Box::pin(self.refuse_greeted(stream, greeting, &Refusal::of_route(&error))).await;
            }
        };
        let mut noted = noted::begin(&self.tunnels, Kind::Postgres, name, &route, &connection).await;
        if let Some(rule) = self.http.rule(&route) {
            noted.error(ErrorCode::ReadOnly.as_str());
            info!(connection = connection.id, host = name, context = %rule.context, hint = rule.unlock(), "refused: read-only");
            return Box::pin(self.refuse_greeted(stream, greeting, &Refusal::of_rule(&rule))).await;
        }
        let reached = async {
            let lease = self.tunnels.acquire(&route.target, route.idle_timeout).await?;
            let pod = self.sessions.pod_of(connection.peer, &route.target);
            let (backend, placement) = lease.connect_to(pod.as_deref()).await?;
            Ok::<_, OpenError>((lease, backend, placement))
        };
        let (lease, mut backend, placement) = match reached.await {
            Ok(reached) => reached,
            Err(error) => {
                noted::failed(&mut noted, &error);
                warn!(host = name, tunnel = %route.target, %error, cause = error.cause(), hint = error.hint(), "closed: no tunnel");
                return Box::pin(self.refuse_greeted(stream, greeting, &Refusal::of_open(&error))).await;
            }
        };
        noted::reached(&mut noted, &lease, &placement);
        let unlocked = self.http.unlocked(&route);
        let watched = |backend: BoxedIo, is_encrypted: bool| {
            let watched = Watched::new(backend, self.sessions.clone(), connection.peer, &route, placement.pod());
            watched.of_postgres(is_encrypted)
        };
        match greeting::ask_for_tls(&mut backend, greeting::ANSWER).await {
            Ok(true) => {
                let mut client = stream;
                let backend = watched(backend, true);
                join(&mut client, backend, greeting.bytes, &lease, &unlocked, connection.socket, &mut noted).await;
            }
            // The server speaks no TLS: end the client's TLS here.
            Ok(false) => {
                let stream = ReadAhead::new(Prefixed::new(greeting.bytes, stream));
                let accept = TlsAcceptor::from(self.tls().await.clone()).accept(stream);
                match timeout(connection.place.limits().first_byte, accept).await {
                    Ok(Ok(mut client)) => {
                        let limit = connection.place.limits().first_byte;
                        let Ok(first) = timeout(limit, first_message(&mut client)).await else { return };
                        match (postgres::first(&first), postgres::whole(&first)) {
                            (First::Cancel, Some(message)) => {
                                drop(backend);
                                self.cancel(message, connection.peer, Some(&route.target)).await;
                            }
                            _ => {
                                let backend = watched(backend, false);
                                join(
                                    &mut client,
                                    backend,
                                    first.freeze(),
                                    &lease,
                                    &unlocked,
                                    connection.socket,
                                    &mut noted,
                                )
                                .await;
                            }
                        }
                    }
                    Ok(Err(error)) => debug!(connection = connection.id, %error, "tls handshake failed"),
                    Err(_) => debug!(connection = connection.id, "tls handshake timed out"),
                }
            }
            Err(error) => {
                lease.note_error(&error);
                noted.error(&error.to_string());
                warn!(host = name, tunnel = %route.target, %error, "closed: no PostgreSQL there");
                let refusal = match StreamFault::of(&error) {
                    Some(fault) => Refusal::of_stream(fault, &route.target),
                    None => Refusal::new(format!("{}: {error}", route.target), "is this PostgreSQL's port?"),
                };
                Box::pin(self.refuse_greeted(stream, greeting, &refusal)).await;
            }
        }
    }
}

/// Reads until a client's first message is recognised as a start-up message, or is whole.
async fn first_message<C: tokio::io::AsyncRead + Unpin>(client: &mut C) -> BytesMut {
    let mut received = BytesMut::new();
    while match postgres::first(&received) {
        First::NeedMore => true,
        First::Cancel => postgres::whole(&received).is_none(),
        _ => false,
    } {
        if !client.read_buf(&mut received).await.is_ok_and(|count| count > 0) {
            break;
        }
    }
    received
}

async fn join(
    client: &mut impl Io,
    mut backend: Watched,
    first: Bytes,
    lease: &Lease,
    unlocked: &Unlocked,
    socket: ClientSocket,
    noted: &mut Ongoing,
) {
    if let Err(error) = backend.write_all(&first).await {
        noted.error(&error.to_string());
        return lease.note_error(&error);
    }
    let end = join_while(unlocked, client, &mut backend, lease, socket).await;
    noted::ended(noted, &end);
    let entry = &noted.entry;
    info!(target: "adit::access", connection = entry.connection, host = entry.host, up = end.up, down = end.down, broken = end.why(), "postgres connection");
}
