//! TCP routes: a local port whose connections go to a pod.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    frontend::{
        Connection,
        join::{carry, join},
        noted,
        postgres::{PostgresFrontend, sessions::Watched},
        proxied,
        refusal::{self, Refusal},
    },
    io::{Io, prefixed::Prefixed, splice::Side},
    journal::Kind,
    metrics::Metrics,
    routing::{Route, Router, SharedRouter},
    tunnel::{Manager, OpenError, StreamFault},
    wire::{
        database::Database,
        postgres::{self, First},
    },
};

/// Timeout for the first message of a PostgreSQL client; after that, adit routes it to any pod.
const FIRST_MESSAGE: Duration = Duration::from_millis(300);

/// Serves the clients of TCP routes.
pub struct TcpFrontend {
    router: SharedRouter,
    tunnels: Manager,
    postgres: Arc<PostgresFrontend>,
    metrics: Arc<Metrics>,
}

impl TcpFrontend {
    pub fn new(
        router: SharedRouter,
        tunnels: Manager,
        postgres: Arc<PostgresFrontend>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self { router, tunnels, postgres, metrics })
    }

    /// Refuses a client at the open-file limit.
    pub fn refuse(&self, mut client: TcpStream) {
        self.metrics.refused_connections.fetch_add(1, Ordering::Relaxed);
        client.reset();
    }

    /// Serves one connection of the route that listens on `listener`, until both sides have ended or a drain cuts it off.
    ///
    /// Loads the router now: a reload between accept and the first poll does not change the route.
    pub fn serve(
        self: Arc<Self>,
        client: TcpStream,
        listener: SocketAddr,
        connection: Arc<Connection>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let router = self.router.load_full();
        self.serve_with(router, client, listener, connection)
    }

    async fn serve_with(
        self: Arc<Self>,
        router: Arc<Router>,
        mut client: TcpStream,
        listener: SocketAddr,
        connection: Arc<Connection>,
    ) {
        let started = Instant::now();
        let _open = self.metrics.tcp_connections.open();
        let _connected = self.tunnels.journal().connection();
        let proxied = proxied::accept(&mut client, &router.config.tcp.proxy_protocol, &connection).await;
        let (connection, mut received) = match proxied {
            Ok(proxied) => proxied,
            Err(error) => {
                info!(connection = connection.id, peer = %connection.peer, %listener, %error, "closed");
                return client.reset();
            }
        };
        let route = router.tcp(listener);
        drop(router);
        let route = match route {
            Ok(route) => route,
            Err(error) => {
                warn!(%listener, %error, hint = error.hint(), "closed: no route");
                return client.reset();
            }
        };
        let mut noted = noted::begin(&self.tunnels, Kind::Tcp, &listener.to_string(), &route, &connection).await;
        let reached = self.tunnels.acquire(&route.target, route.idle_timeout);
        // If the client resets while the tunnel starts, the pod should not see a connection.
        let reached = tokio::select! {
            reached = reached => reached,
            () = gone(&client) => return debug!(connection = connection.id, %listener, "client gone before the tunnel ran"),
        };
        let database = refusal::database_of(&route.target, listener.port());
        let sessions = self.postgres.sessions();
        if database == Some(Database::Postgres) || sessions.has(&route.target) {
            received = refusal::first_words(&mut client, received, FIRST_MESSAGE).await;
            if postgres::first(&received) == First::Cancel && sessions.has(&route.target) {
                return self.cancel(client, received, &route, &connection).await;
            }
        }
        let connected = match reached {
            Ok(lease) => {
                let pod = sessions.pod_of(connection.peer, &route.target);
                let connected = tokio::select! {
                    connected = lease.connect_to(pod.as_deref()) => connected,
                    () = gone(&client) => return debug!(connection = connection.id, %listener, "client gone before it was served"),
                };
                connected.map(|(backend, placement)| (lease, backend, placement))
            }
            Err(error) => Err(error),
        };
        let (lease, backend, placement) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                noted::failed(&mut noted, &error);
                warn!(%listener, tunnel = %route.target, %error, cause = error.cause(), hint = error.hint(), "closed: no tunnel");
                return Box::pin(self.turn_away(client, received, database, &Refusal::of_open(&error))).await;
            }
        };
        noted::reached(&mut noted, &lease, &placement);
        let mut backend = Watched::new(backend, sessions.clone(), connection.peer, &route, placement.pod());
        let mut greeted = Prefixed::new(received.freeze(), &mut client);
        let end = carry(&mut greeted, &mut backend, &lease, connection.socket).await;
        noted::ended(&mut noted, &end);
        match &end.broken {
            Some((Side::Backend, error)) => {
                info!(connection = connection.id, %listener, tunnel = %route.target, %error, "connection broken by the backend");
                match StreamFault::of(error) {
                    // The client has received no byte, so it can still read an error in its own protocol.
                    Some(fault) if end.down == 0 => {
                        let refusal = Refusal::of_stream(fault, &route.target);
                        Box::pin(self.turn_away(client, backend.first().into(), database, &refusal)).await;
                    }
                    _ => client.reset(),
                }
            }
            Some((Side::Client, error)) => {
                debug!(connection = connection.id, %listener, %error, "connection broken by the client")
            }
            None => {}
        }
        info!(target: "adit::access", connection = connection.id, %listener, route = %route.target, up = end.up, down = end.down, took = format_args!("{:.1?}", started.elapsed()), "tcp connection");
    }
}

impl TcpFrontend {
    /// Refuses a database client in its own protocol; resets any other client.
    async fn turn_away(
        &self,
        mut client: TcpStream,
        received: BytesMut,
        database: Option<Database>,
        refusal: &Refusal,
    ) {
        if !refusal::refuse(&mut client, received, database, refusal, self.postgres.tls().await).await {
            client.reset();
        }
    }

    /// Passes a PostgreSQL CancelRequest on.
    async fn cancel(&self, mut client: TcpStream, mut received: BytesMut, route: &Route, connection: &Connection) {
        while postgres::whole(&received).is_none() {
            let reading = timeout(FIRST_MESSAGE, client.read_buf(&mut received)).await;
            if !reading.is_ok_and(|read| read.is_ok_and(|count| count > 0)) {
                return;
            }
        }
        if let Some(message) = postgres::whole(&received) {
            self.postgres.cancel(message, connection.peer, Some(&route.target)).await;
        }
    }
}

/// Joins a client of a port that was opened for a command with a pod of its target, until both sides have ended.
pub async fn forward(
    tunnels: &Manager,
    mut client: TcpStream,
    route: &Route,
    connection: &Connection,
    listener: SocketAddr,
) {
    let mut noted = noted::begin(tunnels, Kind::Tcp, &listener.to_string(), route, connection).await;
    let reached = async {
        let lease = tunnels.acquire(&route.target, route.idle_timeout).await?;
        let (stream, placement) = lease.connect_to(None).await?;
        Ok::<_, OpenError>((lease, stream, placement))
    };
    // If the client resets while the tunnel starts, the pod should not see a connection.
    let reached = tokio::select! {
        reached = reached => reached,
        () = gone(&client) => return debug!(connection = connection.id, %listener, "client gone before the tunnel ran"),
    };
    let (lease, mut backend, placement) = match reached {
        Ok(reached) => reached,
        Err(error) => {
            noted::failed(&mut noted, &error);
            warn!(%listener, tunnel = %route.target, %error, cause = error.cause(), hint = error.hint(), "closed: no tunnel");
            return client.reset();
        }
    };
    noted::reached(&mut noted, &lease, &placement);
    let end = join(&mut client, &mut backend, &lease, connection.socket).await;
    noted::ended(&mut noted, &end);
    if let Some((Side::Backend, error)) = &end.broken {
        info!(connection = connection.id, %listener, tunnel = %route.target, %error, "connection broken by the backend");
    }
}

/// Resolves when the client has reset its connection. A client that half-closed may still want an answer.
async fn gone(client: &TcpStream) {
    // Waits for error readiness alone: bytes that the client sends early stay in the socket.
    match client.ready(tokio::io::Interest::ERROR).await {
        Ok(_) | Err(_) if client.take_error().ok().flatten().is_some() => {}
        _ => std::future::pending().await,
    }
}
