//! Local ports that forward to targets, for a command or for requests to the API.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::net::{TcpListener, TcpStream};

use super::BindError;
use crate::{
    backend::Backend,
    drain::Drain,
    frontend::{Connection, client_socket::ClientSocket, door::Door, tcp},
    io::{
        Io,
        accept::{self, Admission, Limits, Names, Place},
    },
    listener::bind::Kind,
    routing::Route,
    tunnel::Manager,
};

/// File descriptors that each port reserves, to accept and refuse clients at the open-file limit.
const SPARE: usize = 1;

/// Local ports and the tunnels behind them. The drain ends them.
#[derive(Clone)]
pub struct Forwards {
    tunnels: Manager,
    drain: Drain,
    next_connection: Arc<AtomicU64>,
}

impl Forwards {
    /// Returns an instance with tunnels of its own, for a command.
    pub fn new(backend: Arc<dyn Backend>, drain: Drain) -> Self {
        Self::over(Manager::new(backend, drain.clone()), drain)
    }

    /// Returns an instance that shares the tunnels of a running adit.
    pub fn over(tunnels: Manager, drain: Drain) -> Self {
        Self { tunnels, drain, next_connection: Arc::new(AtomicU64::new(1)) }
    }

    /// Returns an instance with the same tunnels, and a drain of its own below this one's.
    pub fn child(&self) -> Self {
        Self { drain: self.drain.child(), ..self.clone() }
    }

    /// Ends all ports and connections at once, and waits for the [last tasks](Drain::spawn_last): a connection may have left
    /// a process in a pod.
    pub async fn end(&self) {
        self.drain.finish(Duration::ZERO).await;
    }

    pub fn tunnels(&self) -> &Manager {
        &self.tunnels
    }

    /// Binds a port. The system accepts connections from now on, and they wait until the port is [served](Self::serve).
    /// `asked_by`: the option or key that requests the port.
    ///
    /// # Errors
    /// Another program uses the port, or the system denies it.
    pub fn bind(&self, address: SocketAddr, asked_by: &str) -> Result<(TcpListener, SocketAddr), BindError> {
        let failed = |source| BindError { kind: Kind::Tcp, address, asked_by: asked_by.to_owned(), source };
        let listener = accept::listen(address).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        Ok((listener, local))
    }

    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Forwards every connection of `listener` to the target of `route`.
    pub fn serve(&self, listener: TcpListener, route: Route) {
        let (tunnels, route) = (self.tunnels.clone(), Arc::new(route));
        self.accept(listener, Door::Closed, move |stream, connection| {
            let (tunnels, route) = (tunnels.clone(), route.clone());
            async move { tcp::forward(&tunnels, stream, &route, &connection, connection.local).await }
        });
    }

    /// Accepts the connections of `listener`, and runs `serve` for each.
    pub fn accept<S, F>(&self, listener: TcpListener, door: Door, serve: S)
    where
        S: Fn(TcpStream, Arc<Connection>) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let this = self.clone();
        self.drain.spawn(async move {
            let Ok(local) = listener.local_addr() else { return };
            let admission = Admission::new(Limits::default(), Names::default());
            let serve = |stream: TcpStream, peer, place: Place| {
                let (id, door) = (this.next_connection.fetch_add(1, Ordering::Relaxed), door.clone());
                let connection = Connection {
                    id,
                    peer,
                    local,
                    dialled: local,
                    socket: ClientSocket::between(peer, local),
                    place,
                    door,
                };
                this.drain.spawn(serve(stream, Arc::new(connection)));
            };
            let refuse = |mut stream: TcpStream, _| async move { stream.reset() };
            tokio::select! {
                never = accept::accept(&listener, &admission, SPARE, serve, refuse) => match never {},
                () = this.drain.started() => {}
            }
        });
    }
}
