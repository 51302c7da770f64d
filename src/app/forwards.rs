//! Local ports that lead to targets, for as long as somebody needs them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::net::TcpListener;

use super::BindError;
use crate::{
    backend::Backend,
    drain::Drain,
    frontend::{Connection, tcp},
    io::{
        abandoned::Ends,
        accept::{self, Admission, Limits, Names, Place},
    },
    listener::bind::Kind,
    routing::Route,
    tunnel::Manager,
};

/// How many descriptors each port keeps for clients that are turned away when there are no others.
const SPARE: usize = 1;

/// The ports, and the tunnels behind them. They end with the drain.
#[derive(Clone)]
pub struct Forwards {
    tunnels: Manager,
    drain: Drain,
    next_connection: Arc<AtomicU64>,
}

impl Forwards {
    /// Those of a command, which has tunnels of its own.
    pub fn new(backend: Arc<dyn Backend>, drain: Drain) -> Self {
        Self::over(Manager::new(backend, drain.clone()), drain)
    }

    /// Those that share the tunnels of a program that serves.
    pub fn over(tunnels: Manager, drain: Drain) -> Self {
        Self { tunnels, drain, next_connection: Arc::new(AtomicU64::new(1)) }
    }

    /// Ends them all at once.
    pub fn end(&self) {
        self.drain.cut();
    }

    pub fn tunnels(&self) -> &Manager {
        &self.tunnels
    }

    /// Binds a port, which takes connections from then on; they wait until it is [served](Self::serve). `asked_by`: the
    /// option or key that asks for it.
    ///
    /// # Errors
    /// Another program has it, or the system does not allow it.
    pub fn bind(&self, address: SocketAddr, asked_by: &str) -> Result<(TcpListener, SocketAddr), BindError> {
        let failed = |source| BindError { kind: Kind::Tcp, address, asked_by: asked_by.to_owned(), source };
        let listener = accept::listen(address).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        Ok((listener, local))
    }

    /// Leads every connection of `listener` to the target of `route`.
    pub fn serve(&self, listener: TcpListener, route: Route) {
        let (this, route) = (self.clone(), Arc::new(route));
        self.drain.spawn(async move {
            let Ok(local) = listener.local_addr() else { return };
            let admission = Admission::new(Limits::default(), Names::default());
            let serve = |stream: tokio::net::TcpStream, peer, place: Place| {
                let (id, of_client) = (this.next_connection.fetch_add(1, Ordering::Relaxed), route.clone());
                let connection = Connection { id, peer, local, ends: Ends::between(peer, local), place };
                let tunnels = this.tunnels.clone();
                this.drain.spawn(async move {
                    tcp::forward(&tunnels, stream, &of_client, &connection, local).await;
                });
            };
            let refuse = |stream, _| async move { tcp::reset(&stream) };
            tokio::select! {
                never = accept::accept(&listener, &admission, SPARE, serve, refuse) => match never {},
                () = this.drain.started() => {}
            }
        });
    }
}
