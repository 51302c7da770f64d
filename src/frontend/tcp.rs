//! TCP routes: bytes both ways, to the pod of a local port.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use socket2::SockRef;
use tokio::{net::TcpStream, time::Instant};
use tracing::{debug, info, warn};

use crate::{
    frontend::{Connection, join::join, proxied},
    io::{prefixed::Prefixed, splice::Side},
    metrics::Metrics,
    routing::{Router, SharedRouter},
    tunnel::Manager,
};

/// Serves the clients of TCP routes.
pub struct TcpFrontend {
    router: SharedRouter,
    tunnels: Manager,
    metrics: Arc<Metrics>,
}

impl TcpFrontend {
    pub fn new(router: SharedRouter, tunnels: Manager, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { router, tunnels, metrics })
    }

    /// Turns a client away, for want of descriptors.
    pub fn refuse(&self, client: TcpStream) {
        self.metrics.refused_connections.fetch_add(1, Ordering::Relaxed);
        reset(&client);
    }

    /// Serves one connection of the route that listens on `listener`, as that is when this is called: a reload before the
    /// future is polled does not matter. The connection lives until both sides have ended: a drain lets it go on until
    /// the cut.
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
        let proxied = proxied::accept(&mut client, &router.config.tcp.proxy_protocol, &connection).await;
        let (connection, received) = match proxied {
            Ok(proxied) => proxied,
            Err(error) => {
                info!(connection = connection.id, peer = %connection.peer, %listener, %error, "closed");
                return reset(&client);
            }
        };
        let route = router.tcp(listener);
        drop(router);
        let route = match route {
            Ok(route) => route,
            Err(error) => {
                warn!(%listener, %error, hint = error.hint(), "closed: no route");
                return reset(&client);
            }
        };
        let reached = async {
            let lease = self.tunnels.acquire(&route.target, route.idle_timeout).await?;
            let stream = lease.connect(connection.ends).await?;
            Ok::<_, crate::tunnel::OpenError>((lease, stream))
        };
        // A client that gives up while the tunnel starts is not served: the pod would see a connection for nobody.
        let reached = tokio::select! {
            reached = reached => reached,
            () = gone(&client) => return debug!(connection = connection.id, %listener, "client gone before the tunnel ran"),
        };
        let (lease, mut backend) = match reached {
            Ok(reached) => reached,
            Err(error) => {
                warn!(%listener, tunnel = %route.target, %error, cause = error.cause(), hint = error.hint(), "closed: no tunnel");
                return reset(&client);
            }
        };
        let end = join(&mut Prefixed::new(received.freeze(), &mut client), &mut backend, &lease).await;
        match &end.broken {
            Some((Side::Backend, error)) => {
                info!(connection = connection.id, %listener, tunnel = %route.target, %error, "connection broken by the backend");
                reset(&client);
            }
            Some((Side::Client, error)) => {
                debug!(connection = connection.id, %listener, %error, "connection broken by the client")
            }
            None => {}
        }
        info!(target: "adit::access", connection = connection.id, %listener, route = %route.target, up = end.up, down = end.down, took = ?started.elapsed(), "tcp connection");
    }
}

/// Lets the close that follows be a reset: the client must not take what it has for all there was.
fn reset(client: &TcpStream) {
    // It fails only on a socket that is closed already.
    let _ = SockRef::from(client).set_linger(Some(std::time::Duration::ZERO));
}

/// Resolves when the client has reset its connection. One that has ended its own direction may still want an answer.
async fn gone(client: &TcpStream) {
    // Error readiness alone: bytes of an impatient client stay where they are.
    match client.ready(tokio::io::Interest::ERROR).await {
        Ok(_) | Err(_) if client.take_error().ok().flatten().is_some() => {}
        _ => std::future::pending().await,
    }
}
