//! The set of listeners, and its change by a reload.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use socket2::SockRef;
use tokio::{net::TcpStream, sync::oneshot, time::sleep};
use tracing::{info, warn};

use super::{
    bind::{self, BindError, Key, Kind, Sockets, Wanted},
    dns,
    inherited::Inherited,
    mux::Mux,
};
use crate::{
    config::{Config, listen::overlap},
    drain::Drain,
    frontend::{Connection, client_socket::ClientSocket, door::Door, sni::SniFrontend, tcp::TcpFrontend},
    io::accept::{self, Admission, Limits, Names},
};

/// Pause after an accept that failed for lack of open files.
const PAUSE: Duration = Duration::from_secs(1);

impl Kind {
    /// Returns the number of open files reserved for refusing clients at the open-file limit. With several, one client
    /// can be answered while the next request is read.
    fn spare(self) -> usize {
        match self {
            Self::Http | Self::Proxy => 8,
            Self::Tcp | Self::Sni | Self::Admin => 1,
        }
    }
}

/// The frontends behind the listeners.
pub struct Frontends {
    pub mux: Mux,
    pub tcp: Arc<TcpFrontend>,
    pub sni: Arc<SniFrontend>,
    /// Handler of `admin.listen`.
    pub admin: Box<dyn Fn(TcpStream, SocketAddr) -> BoxFuture<'static, ()> + Send + Sync>,
}

/// The active listeners, by kind and configured address.
pub struct Ports {
    frontends: Arc<Frontends>,
    drain: Drain,
    admission: Arc<Admission>,
    inherited: Arc<Inherited>,
    serving: BTreeMap<Key, Serving>,
    /// Listeners that a failed reload had closed, and whose port another program took meanwhile; and addresses that the machine
    /// does not have yet.
    lost: BTreeMap<Key, SocketAddr>,
    /// Inherited sockets that no listener uses.
    refusing: BTreeMap<SocketAddr, Drain>,
    next_connection: Arc<AtomicU64>,
}

/// Why a configuration has no listeners.
pub struct Refused {
    pub error: BindError,
    /// Listeners were closed for a while, which has ended their idle connections.
    pub has_closed: bool,
}

/// Bound sockets of a reload, and the listeners that it removes.
pub struct Change {
    sockets: Sockets,
    leaving: Vec<Key>,
}

struct Serving {
    local: SocketAddr,
    drain: Drain,
    /// Resolves when the socket is closed.
    closed: oneshot::Receiver<()>,
}

impl Ports {
    pub fn new(frontends: Frontends, inherited: Arc<Inherited>, drain: Drain) -> Self {
        Self {
            frontends: Arc::new(frontends),
            drain,
            // The only limit is that of open files, which has its own messages.
            admission: Admission::new(Limits::default(), Names::default()),
            inherited,
            serving: BTreeMap::new(),
            lost: BTreeMap::new(),
            refusing: BTreeMap::new(),
            next_connection: Arc::new(AtomicU64::new(1)),
        }
    }

    /// Starts to accept on bound sockets.
    pub fn serve(&mut self, sockets: Sockets) {
        self.lost.extend(sockets.missing.into_iter().map(|key| (key, key.1)));
        for ((kind, configured), listener) in sockets.bound {
            let Ok(local) = listener.local_addr() else { continue };
            if let Some(drain) = self.refusing.remove(&local) {
                drain.start();
            }
            // Probes get answers until the process ends, so the drain does not wait for this listener.
            let is_to_the_end = kind == Kind::Admin;
            let drain = if is_to_the_end { Drain::new() } else { self.drain.child() };
            let (frontends, next, of_listener) = (self.frontends.clone(), self.next_connection.clone(), drain.clone());
            let (refusing, answering_for) = (frontends.clone(), frontends.clone());
            // The accept loop ends with the listener's drain. The process's drain tracks its connections.
            let all = self.drain.clone();
            let admission = self.admission.clone();
            let (closed_tx, closed) = oneshot::channel();
            let serving = async move {
                let _closed = closed_tx;
                let listener = listener;
                let accepting = accept::accept(
                    &listener,
                    &admission,
                    kind.spare(),
                    |stream, peer, place| {
                        if !bind::takes(configured, peer) {
                            return;
                        }
                        let (id, local) = (next.fetch_add(1, Ordering::Relaxed), stream.local_addr().unwrap_or(local));
                        let socket = ClientSocket::between(peer, local);
                        let door = match kind {
                            Kind::Http | Kind::Proxy => frontends.mux.door(kind == Kind::Proxy),
                            Kind::Tcp | Kind::Sni | Kind::Admin => Door::Closed,
                        };
                        let connection = Arc::new(Connection { id, peer, local, dialled: local, socket, place, door });
                        let (frontends, drain) = (frontends.clone(), of_listener.clone());
                        let serving: BoxFuture<'static, ()> = match kind {
                            Kind::Http | Kind::Proxy => {
                                Box::pin(async move { frontends.mux.serve(stream, connection, drain).await })
                            }
                            Kind::Tcp => Box::pin(frontends.tcp.clone().serve(stream, configured, connection)),
                            Kind::Sni => Box::pin(frontends.sni.clone().serve(stream, connection)),
                            Kind::Admin => (frontends.admin)(stream, local),
                        };
                        all.spawn(serving);
                    },
                    |stream, full| {
                        let frontends = refusing.clone();
                        async move {
                            match kind {
                                Kind::Http | Kind::Proxy => frontends.mux.refuse(stream, full).await,
                                // A reset: a clean close would look like an answer.
                                Kind::Tcp => frontends.tcp.refuse(stream),
                                Kind::Sni | Kind::Admin => {}
                            }
                        }
                    },
                );
                // In this task, so that the DNS socket, too, is closed with the listener: the next one may want the same port.
                let answering = async {
                    match kind {
                        Kind::Http => dns::serve(local, |host| answering_for.mux.addresses(host)).await,
                        _ => pending().await,
                    }
                };
                tokio::select! {
                    never = accepting => match never {},
                    never = answering => match never {},
                    () = of_listener.started() => {}
                }
            };
            if is_to_the_end {
                tokio::spawn(serving);
            } else {
                self.drain.spawn(serving);
            }
            self.serving.insert((kind, configured), Serving { local, drain, closed });
        }
    }

    /// Binds the new addresses of a configuration. If an old listener is in the way (`127.0.0.1:80` becomes
    /// `0.0.0.0:80`), closes it first. All others go on as before. `is_again`: the log has both lines about that already.
    ///
    /// # Errors
    /// A new address cannot be bound. Listeners that were closed for it are restored.
    pub async fn prepare(&mut self, config: &Config, is_again: bool) -> Result<Change, Refused> {
        let wanted = bind::wanted(config);
        let kept: BTreeSet<Key> = wanted.iter().map(|wanted| wanted.key).collect();
        let leaving = |key: &Key| !kept.contains(key);
        let overlaps = |serving: &Serving, wanted: &Wanted| overlap(serving.local, wanted.key.1);
        let missing = wanted.into_iter().filter(|wanted| !self.serving.contains_key(&wanted.key));
        let (blocked, free): (Vec<_>, Vec<_>) = missing
            .partition(|wanted| self.serving.iter().any(|(key, serving)| leaving(key) && overlaps(serving, wanted)));
        let mut sockets = Sockets::bind(&free, &self.inherited, |key| Some(self.serving.get(key)?.local))
            .map_err(|error| Refused { error, has_closed: false })?;
        let in_the_way: Vec<(Key, SocketAddr)> = self
            .serving
            .iter()
            .filter(|(key, serving)| leaving(key) && blocked.iter().any(|wanted| overlaps(serving, wanted)))
            .map(|(key, serving)| (*key, serving.local))
            .collect();
        for (key, _) in &in_the_way {
            self.leave(key, is_again).await;
        }
        match Sockets::bind(&blocked, &self.inherited, |key| Some(self.serving.get(key)?.local)) {
            Ok(more) => {
                sockets.bound.extend(more.bound);
                sockets.missing.extend(more.missing);
            }
            Err(error) => {
                // Free an address that both old and new listeners want.
                drop(sockets);
                self.restore(&in_the_way, is_again);
                return Err(Refused { error, has_closed: !in_the_way.is_empty() });
            }
        }
        Ok(Change { sockets, leaving: self.serving.keys().copied().filter(leaving).collect() })
    }

    /// Serves the new sockets, and stops the removed listeners. The router of the new configuration must already be in
    /// force. Connections of a stopped listener may finish.
    pub async fn complete(&mut self, change: Change) {
        // The new configuration has bound again those of them that it wants.
        self.lost.clear();
        self.serve(change.sockets);
        for serving in change.leaving.iter().filter_map(|key| self.serving.get(key)) {
            // All at once, so that none of them accepts a connection that no longer has a route.
            serving.drain.start();
        }
        for key in &change.leaving {
            self.leave(key, false).await;
        }
        self.refuse_unused();
    }

    /// Resets the connections of inherited sockets that no listener uses. Their clients would wait for ever.
    pub fn refuse_unused(&mut self) {
        let used: Vec<SocketAddr> = self.serving.values().map(|serving| serving.local).collect();
        let unused = self.inherited.unused(&used);
        for address in unused {
            if self.refusing.contains_key(&address) {
                continue;
            }
            warn!(%address, "the service manager listens there, and nothing in the configuration does: 'adit service install' writes its units again");
            let Some(Ok(listener)) = self.inherited.listener(address) else { continue };
            let drain = self.drain.child();
            self.refusing.insert(address, drain.clone());
            self.drain.spawn(async move {
                let refusing = async {
                    loop {
                        match listener.accept().await {
                            // A reset, because a clean close would look like an answer.
                            Ok((client, _)) => drop(SockRef::from(&client).set_linger(Some(Duration::ZERO))),
                            Err(_) => sleep(PAUSE).await,
                        }
                    }
                };
                tokio::select! {
                    () = refusing => {}
                    () = drain.started() => {}
                }
            });
        }
    }

    /// Stops a listener, and returns once its socket is closed.
    async fn leave(&mut self, key: &Key, is_again: bool) {
        let Some(serving) = self.serving.remove(key) else { return };
        if !is_again {
            info!(address = %serving.local, "no longer listening");
        }
        serving.drain.start();
        // The sender is dropped with the socket, so an error means that it is closed.
        let _ = serving.closed.await;
    }

    fn restore(&mut self, left: &[(Key, SocketAddr)], is_again: bool) {
        for (key, address) in left {
            match self.listen_again(*key, *address) {
                Ok(()) if is_again => {}
                Ok(()) => info!(%address, "listening again"),
                Err(error) => {
                    let error = bind::reason(&error);
                    warn!(%address, error, "no longer listening there: trying again until the port is free");
                    self.lost.insert(*key, *address);
                }
            }
        }
    }

    fn listen_again(&mut self, key: Key, address: SocketAddr) -> io::Result<()> {
        let listener = self.inherited.listener(address).unwrap_or_else(|| bind::listen(address))?;
        self.serve(Sockets { bound: vec![(key, listener)], missing: Vec::new() });
        Ok(())
    }

    /// Returns whether a listener of the configuration lacks its socket.
    pub fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Tries to listen on the ports that lack their socket. Returns whether a listener is back.
    pub fn recover(&mut self) -> bool {
        let before = self.lost.len();
        for (key, address) in std::mem::take(&mut self.lost) {
            match self.listen_again(key, address) {
                Ok(()) => info!(%address, "listening"),
                Err(_) => drop(self.lost.insert(key, address)),
            }
        }
        self.lost.len() < before
    }

    /// Returns the local addresses of the listeners of one kind.
    pub fn addresses(&self, kind: Kind) -> Vec<SocketAddr> {
        self.serving.iter().filter(|((other, _), _)| *other == kind).map(|(_, serving)| serving.local).collect()
    }
}
