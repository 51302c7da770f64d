//! Tunnels of a relay: how they open, are taken over by a returning client, and close.

mod opening;

use std::{
    collections::hash_map::Entry,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use secrecy::ExposeSecret;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Opening, PublicOrigin, Server, Session, State, quotas::Quota, refused::TunnelError, usage::Usage};
use crate::{
    config::names::{host_header, is_label},
    random,
    relay::{
        expose::{Claim, ClaimOver, ExposeRequest, Pods},
        personal::{LINGER, Passage, Seat, SharedPort},
        ports::PortError,
        reservations::{AWAITED_FOR, Public},
    },
    wire::relay::{Frame, Kind, Token},
};

/// How long a reconnecting tunnel waits for its old listener to close.
const TAKE_OVER: Duration = Duration::from_secs(2);

/// Time for a client to answer a ping before another client of its key gets its port or name.
const ALIVE_WITHIN: Duration = Duration::from_secs(2);

/// A public port or name, and the client behind it.
pub struct Tunnel {
    pub(super) number: u64,
    /// Number that the client uses for the tunnel.
    pub(super) id: u32,
    pub(super) session: Arc<Session>,
    pub(super) kind: Kind,
    /// 0 for HTTP.
    pub(super) port: u16,
    pub(super) name: String,
    /// For HTTP: the Host header for the local service. `None`: the public name.
    pub(super) host: Option<String>,
    /// Service that the tunnel was opened for.
    pub(super) exposed: Option<ExposeRequest>,
    /// Claim on the Service's port that routes to the tunnel.
    pub(super) claim: Mutex<Option<Claim>>,
    pub(super) end: watch::Sender<ClaimEnd>,
    /// The tunnel's part of the port, if it does not have the whole.
    pub(super) seat: Mutex<Option<Seat>>,
    pub(super) resume: Token,
    pub(super) streams: AtomicUsize,
    pub(super) usage: Usage,
    /// Permits to request a connection from the client.
    pub(super) turns: Semaphore,
    pub(super) rate: Mutex<(f64, Instant)>,
    /// Listener of the public port, until the tunnel closes.
    pub(super) listener: Mutex<Option<Arc<TcpListener>>>,
    pub(super) gone: CancellationToken,
}

/// What becomes of the claim of a tunnel.
///
/// ```text
/// Open --close()----------------------------------> GivenBack, or Over without a claim
///   `--take_over()--> TakenOver --a new claim-----> Over
///                         `------no new claim-----> GivenBack
/// ```
#[derive(Clone, Debug)]
pub(super) enum ClaimEnd {
    Open,
    /// A new tunnel of the same client is opening, and may get the claim. It needs the port.
    TakenOver,
    /// The Service routes to its pods again. Late visitors are passed on to them, from the listener of the new tunnel if that
    /// has failed.
    GivenBack(Option<Arc<TcpListener>>),
    /// Another tunnel has the claim, or there was none.
    Over,
}

/// Name of an HTTP tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpName {
    pub name: String,
    /// Host header for the local service. `None`: the public name.
    pub host: Option<String>,
}

/// Entrance for the visitors of a tunnel.
enum Entrance {
    Port((Arc<TcpListener>, u16)),
    /// Part of a Service's port.
    Shared(Arc<SharedPort>),
    Name(String),
}

/// A tunnel as shown by `/` and `adit status`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TunnelSnapshot {
    pub key: String,
    pub client: SocketAddr,
    /// `tcp` or `http`.
    pub kind: &'static str,
    pub public: String,
    pub streams: usize,
    /// Visitors since the tunnel opened.
    pub visitors: u64,
    /// Visitors of these that were refused.
    pub refused: u64,
    /// Bytes from visitors to the client.
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// Time since the tunnel opened, in seconds.
    pub open_seconds: u64,
}

/// A tunnel that a client requests.
pub(super) struct Wanted {
    pub id: u32,
    pub kind: Kind,
    /// Public port. 0: any.
    pub port: u16,
    pub name: String,
    /// Resume token of the tunnel before a reconnect. Zeros: none.
    pub resume: Token,
}

impl Server {
    /// Returns how many tunnels a key may still open.
    fn spare_tunnels(&self, state: &State, key: &str) -> usize {
        let open = state.tunnels.values().filter(|tunnel| tunnel.session.key.name == key).count();
        self.options.limits.tunnels_per_key.saturating_sub(open)
    }

    /// Returns the address of a tunnel for operators of the relay.
    pub(super) fn shown(&self, tunnel: &Tunnel) -> String {
        match tunnel.kind {
            Kind::Http | Kind::Service | Kind::ReplacedService => self.public_address(tunnel),
            Kind::Tcp => SocketAddr::new(self.options.bind, tunnel.port).to_string(),
        }
    }

    /// Closes a tunnel. Unless the client wanted that, its port or name stays reserved, and visitors wait for a while.
    pub(super) fn close(self: &Arc<Self>, tunnel: &Arc<Tunnel>, is_clean: bool) {
        // Requests go to the pods from now on. A task that no longer finds the tunnel must find no claim either.
        let (seat, claim) = (tunnel.seat().take(), tunnel.claim().take());
        let back = claim.as_ref().map(Claim::back);
        tunnel.end.send_if_modified(|end| {
            let is_open = matches!(end, ClaimEnd::Open);
            if is_open {
                *end = if claim.is_some() { ClaimEnd::GivenBack(None) } else { ClaimEnd::Over };
            }
            is_open
        });
        let is_kept = !is_clean && !tunnel.session.is_v1 && (tunnel.has_port() || tunnel.kind == Kind::Http);
        {
            let mut state = self.state();
            if !state.tunnels.contains_key(&tunnel.number) {
                return;
            }
            drop(claim);
            state.tunnels.remove(&tunnel.number);
            let listener = tunnel.listener.lock().expect("no panic while the lock is held").take();
            if is_kept {
                state.reservations.keep(tunnel.public(), &tunnel.session.key.name, tunnel.resume, listener);
            }
            state.changed.send_replace(());
        }
        tunnel.gone.cancel();
        // Visitors still arrive at a shared port until every node of the cluster routes to the pods again.
        if let Some((shared, back)) = seat.as_ref().map(|seat| seat.shared().clone()).zip(back) {
            self.drain.spawn(async move {
                back.await;
                sleep(LINGER).await;
                drop(shared);
            });
        }
        drop(seat);
        if tunnel.kind == Kind::Http {
            self.tell_names();
        }
        if tunnel.kind == Kind::Http && is_kept {
            let this = self.clone();
            self.drain.spawn(async move {
                tokio::select! {
                    () = sleep(AWAITED_FOR) => this.tell_names(),
                    () = this.drain.started() => {}
                }
            });
        }
    }

    /// Returns the tunnel with the same port or name, once the client is back. `None`: visitors do not wait for it.
    pub(super) async fn successor(&self, gone: &Tunnel) -> Option<Arc<Tunnel>> {
        if gone.exposed.is_some() {
            // The Service routes to the pods again.
            return None;
        }
        // The session may have ended a moment earlier.
        timeout(Duration::from_secs(1), gone.gone.cancelled()).await.ok()?;
        let public = gone.public();
        let is_next = |next: &&Arc<Tunnel>| next.session.key.name == gone.session.key.name && next.public() == public;
        self.awaited(&public, is_next).await
    }

    /// Returns the tunnel of a name, once its client is back. `None`: visitors do not wait for it.
    pub async fn returning(&self, name: &str) -> Option<Arc<Tunnel>> {
        let public = Public::Name(name.to_owned());
        self.awaited(&public, |next| next.public() == public).await
    }

    async fn awaited(&self, public: &Public, is_next: impl Fn(&&Arc<Tunnel>) -> bool) -> Option<Arc<Tunnel>> {
        let mut changed = self.state().changed.subscribe();
        loop {
            let until = {
                let state = self.state();
                if let Some(next) = state.tunnels.values().find(&is_next) {
                    return Some(next.clone());
                }
                state.reservations.awaited(public)?.until
            };
            tokio::select! {
                changed = timeout_at(until, changed.changed()) => changed.ok()?.ok()?,
                () = self.drain.started() => return None,
            }
        }
    }

    pub(super) fn forget(self: &Arc<Self>, session: &Session, is_clean: bool) {
        session.gone.cancel();
        session.idle.close();
        let tunnels: Vec<_> = {
            let mut state = self.state();
            state.sessions.remove(&session.token);
            state.pending.retain(|_, pending| pending.session != session.token);
            state.tunnels.values().filter(|tunnel| tunnel.session.token == session.token).cloned().collect()
        };
        tunnels.iter().for_each(|tunnel| self.close(tunnel, is_clean));
    }

    pub(super) fn tell_names(&self) {
        let state = self.state();
        let names = state
            .tunnels
            .values()
            .filter(|tunnel| tunnel.kind == Kind::Http)
            .map(|tunnel| HttpName { name: tunnel.name.clone(), host: tunnel.host.clone() })
            .collect();
        let awaited = state.reservations.awaited_names().map(str::to_owned).collect();
        // Under the lock, so that the last call has the latest state.
        (self.names_changed)(names, awaited);
    }

    /// Returns the tunnel of a name.
    pub fn tunnel(&self, name: &str) -> Option<Arc<Tunnel>> {
        self.state().tunnels.values().find(|tunnel| tunnel.kind == Kind::Http && tunnel.name == name).cloned()
    }

    /// Returns a tunnel by its [`number`](Tunnel::number).
    pub(in crate::relay) fn tunnel_by_number(&self, number: u64) -> Option<Arc<Tunnel>> {
        self.state().tunnels.get(&number).cloned()
    }

    /// Returns every tunnel, sorted.
    pub fn snapshot(&self) -> Vec<TunnelSnapshot> {
        let tunnels: Vec<_> = self.state().tunnels.values().cloned().collect();
        let mut snapshots: Vec<_> = tunnels
            .iter()
            .map(|tunnel| TunnelSnapshot {
                key: tunnel.session.key.name.clone(),
                client: tunnel.session.peer,
                kind: match tunnel.kind {
                    Kind::Tcp => "tcp",
                    Kind::Http => "http",
                    Kind::Service | Kind::ReplacedService => "service",
                },
                public: self.shown(tunnel),
                streams: tunnel.streams.load(Ordering::Relaxed),
                visitors: tunnel.usage.visitors.load(Ordering::Relaxed),
                refused: tunnel.usage.refused.load(Ordering::Relaxed),
                bytes_up: tunnel.usage.up.load(Ordering::Relaxed),
                bytes_down: tunnel.usage.down.load(Ordering::Relaxed),
                open_seconds: tunnel.usage.since.elapsed().as_secs(),
            })
            .collect();
        snapshots.sort_by(|a, b| a.public.cmp(&b.public));
        snapshots
    }
}

/// Returns whether a client answers a ping.
async fn answers(session: &Session) -> bool {
    if session.is_v1 {
        return true;
    }
    // A random cookie: frames that were in flight when the client died do not count as an answer.
    let Ok(cookie) = random::bytes().map(u64::from_be_bytes) else { return true };
    let answer = session.awaits(cookie);
    // If the queue is full, the client does not read.
    if session.frames.try_send(Frame::Ping { cookie }).is_err() {
        return false;
    }
    tokio::select! {
        answer = timeout(ALIVE_WITHIN, answer) => matches!(answer, Ok(Ok(()))),
        () = session.gone.cancelled() => false,
    }
}

impl Tunnel {
    fn claim(&self) -> MutexGuard<'_, Option<Claim>> {
        self.claim.lock().expect("no panic while the lock is held")
    }

    fn seat(&self) -> MutexGuard<'_, Option<Seat>> {
        self.seat.lock().expect("no panic while the lock is held")
    }

    /// Returns the public port or name that only this tunnel has.
    pub(super) fn public(&self) -> Public {
        match self.kind {
            Kind::Tcp | Kind::Service | Kind::ReplacedService => Public::Port(self.port),
            Kind::Http => Public::Name(self.name.clone()),
        }
    }

    /// Returns whether the tunnel has its own port.
    fn has_port(&self) -> bool {
        let has_part = self.exposed.as_ref().is_some_and(|exposed| exposed.condition.is_some());
        self.kind != Kind::Http && !has_part
    }

    /// Takes a token from the bucket of visitors per second. Returns whether there was one.
    pub(super) fn takes_another(&self, per_second: u32) -> bool {
        let mut rate = self.rate.lock().expect("no panic while the lock is held");
        let (most, now) = (f64::from(per_second), Instant::now());
        let tokens = (rate.0 + now.duration_since(rate.1).as_secs_f64() * most).min(most);
        *rate = ((tokens - 1.0).max(0.0), now);
        tokens >= 1.0
    }

    /// Waits until the tunnel is closed.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }
}
