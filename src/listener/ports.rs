//! The set of listeners, and how a reload changes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::future::BoxFuture;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tracing::{debug, info, warn};

use super::mux::Mux;
use crate::{
    config::Config,
    drain::Drain,
    frontend::{Connection, sni::SniFrontend, tcp::TcpFrontend},
    io::{abandoned::Ends, accept},
};

/// A socket that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}", reason(source))]
pub struct BindError {
    pub address: SocketAddr,
    pub source: io::Error,
}

impl BindError {
    /// Returns what to do about it.
    pub fn hint(&self) -> Option<String> {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                Some("is another adit running? try 'adit status', or set http.listen".to_owned())
            }
            io::ErrorKind::PermissionDenied => Some("ports below 1024 need rights: use a higher one".to_owned()),
            io::ErrorKind::AddrNotAvailable => Some("this machine does not have that address".to_owned()),
            _ => None,
        }
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the port is already in use".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// What accepted connections are handed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Http,
    Tcp,
    Sni,
    Admin,
}

impl Kind {
    /// Returns how many open files are kept for clients that are refused when there are no others. The answers to a few can
    /// be under way while the next ones are read.
    fn spare(self) -> usize {
        match self {
            Self::Http => 8,
            Self::Tcp | Self::Sni | Self::Admin => 1,
        }
    }
}

/// The frontends behind the listeners.
pub struct Frontends {
    pub mux: Mux,
    pub tcp: Arc<TcpFrontend>,
    pub sni: Arc<SniFrontend>,
    /// What `admin.listen` serves.
    pub admin: Box<dyn Fn(TcpStream, SocketAddr) -> BoxFuture<'static, ()> + Send + Sync>,
}

/// Returns what `config` listens on, and whether an address may be left out where the machine does not have it.
fn wanted(config: &Config) -> impl Iterator<Item = (Kind, SocketAddr, bool)> {
    let http = config.http.listen.iter().enumerate().map(|(at, address)| (Kind::Http, *address, at > 0));
    let tcp = config.tcp.routes.keys().map(|address| (Kind::Tcp, *address, false));
    let sni = config.sni.iter().flat_map(|sni| sni.listen.iter().enumerate());
    let sni = sni.map(|(at, address)| (Kind::Sni, *address, at > 0));
    let admin = config.admin.listen.iter().map(|address| (Kind::Admin, *address, false));
    http.chain(tcp).chain(sni).chain(admin)
}

/// Sockets that are bound and not served yet.
pub struct Sockets(Vec<(Kind, SocketAddr, TcpListener)>);

/// The listeners in service, by kind and configured address.
pub struct Ports {
    frontends: Arc<Frontends>,
    drain: Drain,
    serving: BTreeMap<(Kind, SocketAddr), Serving>,
    next_connection: Arc<AtomicU64>,
}

struct Serving {
    local: SocketAddr,
    drain: Drain,
    /// Ends when the socket is closed.
    closed: oneshot::Receiver<()>,
}

impl Sockets {
    /// Binds what `config` wants and `have` does not. All or nothing; a second address for HTTP (`[::1]`) that the
    /// machine does not have is left out.
    pub fn bind(config: &Config, have: impl Fn(Kind, SocketAddr) -> bool) -> Result<Self, BindError> {
        let mut sockets = Vec::new();
        let mut first_port = None;
        for (kind, configured, is_extra) in wanted(config) {
            if have(kind, configured) {
                continue;
            }
            // Port 0 is chosen once: both loopback addresses get the same.
            let mut address = configured;
            if let (true, 0, Some(port)) = (is_extra, address.port(), first_port) {
                address.set_port(port);
            }
            match accept::listen(address) {
                Ok(listener) => {
                    if kind == Kind::Http {
                        first_port = first_port.or_else(|| listener.local_addr().ok().map(|local| local.port()));
                    }
                    sockets.push((kind, configured, listener));
                }
                Err(error) if is_extra && error.kind() != io::ErrorKind::AddrInUse => {
                    debug!(%address, %error, "not listening there")
                }
                Err(source) => return Err(BindError { address, source }),
            }
        }
        Ok(Self(sockets))
    }

    /// Returns where they listen.
    pub fn addresses(&self, kind: Kind) -> Vec<SocketAddr> {
        self.0
            .iter()
            .filter(|(other, ..)| *other == kind)
            .filter_map(|(_, _, listener)| listener.local_addr().ok())
            .collect()
    }
}

impl Ports {
    pub fn new(frontends: Frontends, drain: Drain) -> Self {
        Self {
            frontends: Arc::new(frontends),
            drain,
            serving: BTreeMap::new(),
            next_connection: Arc::new(AtomicU64::new(1)),
        }
    }

    /// Starts to accept on bound sockets.
    pub fn serve(&mut self, sockets: Sockets) {
        for (kind, configured, listener) in sockets.0 {
            let Ok(local) = listener.local_addr() else { continue };
            let drain = self.drain.child();
            let (frontends, next, of_listener) = (self.frontends.clone(), self.next_connection.clone(), drain.clone());
            let refusing = frontends.clone();
            // The loop itself ends with the drain; its connections are tracked by the whole process.
            let all = self.drain.clone();
            let (closed_tx, closed) = oneshot::channel();
            self.drain.spawn(async move {
                let _closed = closed_tx;
                let listener = listener;
                let accepting = accept::accept(
                    &listener,
                    kind.spare(),
                    |stream, peer| {
                        let (id, local) = (next.fetch_add(1, Ordering::Relaxed), stream.local_addr().unwrap_or(local));
                        let connection = Arc::new(Connection { id, peer, local, ends: Ends::between(peer, local) });
                        let (frontends, drain) = (frontends.clone(), of_listener.clone());
                        all.spawn(async move {
                            match kind {
                                Kind::Http => frontends.mux.serve(stream, connection, drain).await,
                                Kind::Tcp => {
                                    Box::pin(frontends.tcp.clone().serve(stream, configured, connection, drain)).await
                                }
                                Kind::Sni => Box::pin(frontends.sni.clone().serve(stream, connection)).await,
                                Kind::Admin => (frontends.admin)(stream, local).await,
                            }
                        });
                    },
                    |stream| {
                        let frontends = refusing.clone();
                        async move {
                            match kind {
                                Kind::Http => frontends.mux.refuse(stream).await,
                                // A close that is no reset would look like an answer.
                                Kind::Tcp => frontends.tcp.refuse(stream),
                                Kind::Sni | Kind::Admin => {}
                            }
                        }
                    },
                );
                tokio::select! {
                    never = accepting => match never {},
                    () = of_listener.started() => {}
                }
            });
            self.serving.insert((kind, configured), Serving { local, drain, closed });
        }
    }

    /// Changes to what a new configuration wants: binds what is new before it leaves what is gone, except where both
    /// are the same port (`127.0.0.1:80` becomes `0.0.0.0:80`). Connections of a listener that is left finish what
    /// they do.
    ///
    /// # Errors
    /// A new address cannot be bound: what was served before is served again.
    pub async fn change(&mut self, config: &Config) -> Result<(), BindError> {
        let kept: BTreeSet<_> = wanted(config).map(|(kind, address, _)| (kind, address)).collect();
        let leaving: Vec<_> = self.serving.keys().copied().filter(|key| !kept.contains(key)).collect();
        let sockets = match self.bind_missing(config) {
            Err(error) if error.source.kind() == io::ErrorKind::AddrInUse => {
                let in_the_way: Vec<_> =
                    leaving.iter().copied().filter(|(_, address)| address.port() == error.address.port()).collect();
                if in_the_way.is_empty() {
                    return Err(error);
                }
                for key in &in_the_way {
                    self.leave(key).await;
                }
                match self.bind_missing(config) {
                    Ok(sockets) => sockets,
                    Err(error) => {
                        self.restore(&in_the_way);
                        return Err(error);
                    }
                }
            }
            bound => bound?,
        };
        self.serve(sockets);
        for key in &leaving {
            self.leave(key).await;
        }
        Ok(())
    }

    fn bind_missing(&self, config: &Config) -> Result<Sockets, BindError> {
        Sockets::bind(config, |kind, address| self.serving.contains_key(&(kind, address)))
    }

    /// Stops listening, and returns once the socket is closed.
    async fn leave(&mut self, key: &(Kind, SocketAddr)) {
        let Some(serving) = self.serving.remove(key) else { return };
        info!(address = %serving.local, "no longer listening");
        serving.drain.start();
        // An error is what tells that it is closed.
        let _ = serving.closed.await;
    }

    fn restore(&mut self, left: &[(Kind, SocketAddr)]) {
        for (kind, address) in left {
            match accept::listen(*address) {
                Ok(listener) => self.serve(Sockets(vec![(*kind, *address, listener)])),
                Err(error) => warn!(%address, %error, "no longer listening there: somebody else has taken the port"),
            }
        }
    }

    /// Returns where it listens.
    pub fn addresses(&self, kind: Kind) -> Vec<SocketAddr> {
        self.serving.iter().filter(|((other, _), _)| *other == kind).map(|(_, serving)| serving.local).collect()
    }
}
