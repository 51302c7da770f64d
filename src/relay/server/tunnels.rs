//! Tunnels of a relay: how they open, are taken over by a returning client, and close.

use std::{
    collections::hash_map::Entry,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use secrecy::ExposeSecret;
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Opening, PublicOrigin, Server, Session, State, quotas::Quota, refused::TunnelError, usage::Usage};
use crate::{
    config::names::{host_header, is_label},
    relay::{
        auth,
        expose::{Claim, ExposeRequest, Pods},
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
    /// Set at the end: the tunnel had a claim, and no other tunnel has taken it over.
    pub(super) is_given_back: AtomicBool,
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

/// The Service's claim and part that the old tunnel of a returning client had.
#[derive(Default)]
struct Before {
    claim: Option<Claim>,
    shared: Option<Arc<SharedPort>>,
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
    pub(super) async fn open(
        self: &Arc<Self>,
        session: &Arc<Session>,
        wanted: &Wanted,
    ) -> Result<Arc<Tunnel>, TunnelError> {
        let before = self.take_over(session, wanted).await;
        let Wanted { kind, port, name, resume, .. } = wanted;
        let (kind, port) = (*kind, *port);
        let asked = self.exposed(session, kind, name).await?;
        self.check_quota(session, wanted.id)?;
        let (name, host) = match name.split_once('=') {
            Some((name, host)) if kind == Kind::Http => {
                let known = host_header(host, None, 0);
                (name, Some(known.ok_or_else(|| TunnelError::Host(host.to_owned()))?))
            }
            _ => (name.as_str(), None),
        };
        let entrance = match (kind, &asked) {
            (Kind::Http, _) => Entrance::Name(self.checked_name(session, name)?),
            (_, Some(asked)) if asked.condition.is_some() => Entrance::Shared(match before.shared {
                Some(shared) => shared,
                None => self.shared_port(session, asked)?,
            }),
            (_, Some(_)) => Entrance::Port(self.listen(session, 0, resume).await?),
            (_, None) => Entrance::Port(self.listen(session, port, resume).await?),
        };
        let (port, pods) = match &entrance {
            Entrance::Port((_, port)) => (*port, asked.as_ref().map(|_| Arc::new(Pods::new(Vec::new())))),
            Entrance::Shared(shared) => (shared.port, Some(shared.pods())),
            Entrance::Name(_) => (0, None),
        };
        let claim = match &asked {
            Some(asked) => self.claim(asked, port, &pods, before.claim.as_ref()).await?,
            None => None,
        };
        drop(before.claim);
        // A Service that adit created has no pods.
        let pods = pods.filter(|_| asked.as_ref().is_some_and(|asked| asked.replaces));
        let back = claim.as_ref().map(Claim::back);
        let name = match (&entrance, &asked) {
            (Entrance::Name(name), _) => name.clone(),
            (_, Some(asked)) => asked.to_string(),
            (_, None) => String::new(),
        };
        let resume = auth::random()?;
        let tunnel = self.register(session, &entrance, |number| {
            let condition = asked.as_ref().and_then(|asked| asked.condition.as_ref());
            let seat = match &entrance {
                Entrance::Shared(shared) => condition.map(|condition| shared.sit(number, condition)),
                Entrance::Port(_) | Entrance::Name(_) => None,
            };
            let listener = match &entrance {
                Entrance::Port((listener, _)) if kind == Kind::Tcp => Some(listener.clone()),
                _ => None,
            };
            let limits = &self.options.limits;
            Tunnel {
                number,
                id: wanted.id,
                session: session.clone(),
                kind,
                port,
                name,
                host,
                exposed: asked,
                claim: Mutex::new(claim),
                is_given_back: AtomicBool::new(false),
                seat: Mutex::new(seat),
                resume,
                streams: AtomicUsize::new(0),
                usage: Usage::default(),
                turns: Semaphore::new(limits.pending_per_tunnel),
                rate: Mutex::new((f64::from(limits.visitors_per_second), Instant::now())),
                listener: Mutex::new(listener),
                gone: CancellationToken::new(),
            }
        })?;
        info!(key = session.key.name, public = self.public_address(&tunnel), port = tunnel.port, "relay: tunnel open");
        match entrance {
            Entrance::Port((listener, _)) => {
                let passage = pods.map(|pods| Passage::new(self, tunnel.name.clone(), pods));
                self.drain.spawn(self.clone().serve_port(listener, tunnel.clone(), passage.zip(back)));
            }
            Entrance::Shared(_) => {}
            Entrance::Name(_) => self.tell_names(),
        }
        if tunnel.exposed.is_some() {
            self.drain.spawn(self.clone().watch_claim(tunnel.clone()));
        }
        Ok(tunnel)
    }

    /// # Errors
    /// Fails if the key has no room for another tunnel. `id`: the tunnel that is being opened.
    fn check_quota(&self, session: &Session, id: u32) -> Result<(), TunnelError> {
        let key = &session.key.name;
        let count = {
            let state = self.state();
            let others = state.opening.iter().filter(|(at, _)| **at != (session.token, id));
            let opening = others.filter(|(_, opening)| opening.key == *key).count();
            opening + state.tunnels.values().filter(|tunnel| tunnel.session.key.name == *key).count()
        };
        match count < self.options.limits.tunnels_per_key {
            true => Ok(()),
            false => Err(self.notices.used_up(Quota::Tunnels, &self.options.limits, key).into()),
        }
    }

    /// Takes over a Service, or creates it, for a port of the relay. `before`: the claim of the client's old tunnel.
    /// `None`: this relay takes over no Services.
    async fn claim(
        &self,
        asked: &ExposeRequest,
        port: u16,
        pods: &Option<Arc<Pods>>,
        before: Option<&Claim>,
    ) -> Result<Option<Claim>, TunnelError> {
        let Some(exposer) = &self.options.exposer else { return Ok(None) };
        let deadline = Instant::now() + TAKE_OVER;
        loop {
            match exposer.claim(asked.clone(), port, pods.clone(), before).await {
                // The tunnel that had the claim is closing.
                Err(error) if error.is_taken() && Instant::now() < deadline && !self.has_service(asked) => {
                    sleep(Duration::from_millis(20)).await;
                }
                claim => return Ok(Some(claim?)),
            }
        }
    }

    /// Adds the tunnel that `make` returns for a number, unless its client is gone or its name is in use.
    fn register(
        &self,
        session: &Session,
        entrance: &Entrance,
        make: impl FnOnce(u64) -> Tunnel,
    ) -> Result<Arc<Tunnel>, TunnelError> {
        let mut state = self.state();
        // If the client is gone, its session has already closed its tunnels, so nothing would ever close this one.
        if session.gone.is_cancelled() {
            return Err(TunnelError::ClientGone);
        }
        if let Entrance::Name(name) = entrance {
            if state.tunnels.values().any(|other| other.name == *name) {
                return Err(TunnelError::NameInUse(name.clone()));
            }
            state.reservations.end(&Public::Name(name.clone()));
        }
        state.next_tunnel += 1;
        let tunnel = Arc::new(make(state.next_tunnel));
        state.tunnels.insert(tunnel.number, tunnel.clone());
        let most = self.spare_tunnels(&state, &session.key.name);
        state.reservations.limit(&session.key.name, most);
        state.changed.send_replace(());
        Ok(tunnel)
    }

    /// Returns the relay port of a Service's port that is taken over in part: the existing one, or a new one.
    fn shared_port(self: &Arc<Self>, session: &Session, asked: &ExposeRequest) -> Result<Arc<SharedPort>, TunnelError> {
        let mut state = self.state();
        let State { shared, reservations, .. } = &mut *state;
        let of = (asked.service.clone(), asked.port);
        if let Some(shared) = shared.get(&of).and_then(Weak::upgrade) {
            return Ok(shared);
        }
        let (listener, port) = self.ports.open(&session.key, 0, &[0; 16], reservations)?;
        let name = format!("{}.{}:{}", asked.service.name, asked.service.namespace, asked.port);
        let opened = SharedPort::start(self, name, listener, port);
        shared.retain(|_, shared| shared.strong_count() > 0);
        shared.insert(of, Arc::downgrade(&opened));
        Ok(opened)
    }

    /// Records, before the next frame is read, that a tunnel to a Service is being opened. The returned token is
    /// cancelled when the client closes the tunnel meanwhile. `None`: it is already being opened.
    pub(super) fn begin_opening(&self, session: &Session, id: u32) -> Option<CancellationToken> {
        let closed = CancellationToken::new();
        match self.state().opening.entry((session.token, id)) {
            Entry::Occupied(_) => None,
            Entry::Vacant(free) => {
                free.insert(Opening { key: session.key.name.clone(), closed: closed.clone() });
                Some(closed)
            }
        }
    }

    /// Opens a tunnel to a Service, and answers its client, unless the client closes the tunnel first or is gone.
    pub(super) async fn open_service(
        self: &Arc<Self>,
        session: &Arc<Session>,
        wanted: Wanted,
        closed: CancellationToken,
    ) {
        let opened = tokio::select! {
            opened = self.open(session, &wanted) => opened,
            () = closed.cancelled() => Err(TunnelError::Closed),
            () = session.gone.cancelled() => Err(TunnelError::ClientGone),
        };
        self.state().opening.remove(&(session.token, wanted.id));
        let answer = self.answer(wanted.id, &opened);
        if let Ok(opened) = &opened
            && closed.is_cancelled()
        {
            self.close(opened, true);
        }
        // If the client is gone, it needs no answer.
        let _ = session.frames.send(answer).await;
    }

    /// Returns the reply to a client that requested a tunnel.
    pub(super) fn answer(&self, id: u32, opened: &Result<Arc<Tunnel>, TunnelError>) -> Frame {
        match opened {
            Ok(opened) => {
                let address = self.public_address(opened);
                Frame::Opened { tunnel: id, port: opened.port, resume: opened.resume, address }
            }
            Err(error) => Frame::Refused { tunnel: id, reason: error.to_string() },
        }
    }

    /// Returns the Service's port that a client requests, if the client may have it.
    async fn exposed(&self, session: &Session, kind: Kind, name: &str) -> Result<Option<ExposeRequest>, TunnelError> {
        if !matches!(kind, Kind::Service | Kind::ReplacedService) {
            return Ok(None);
        }
        let exposer = self.options.exposer.as_ref().ok_or(TunnelError::NoServices)?;
        let owner = format!("{} ({})", session.key.name, session.peer.ip().to_canonical());
        let mut asked = ExposeRequest::parse(name, kind == Kind::ReplacedService, owner)?;
        let token = session.token_of_user.lock().expect("no panic while the lock is held").clone();
        let token = token.as_ref().map(|token| token.expose_secret());
        exposer.authorize(&session.key, token, &mut asked).await?;
        Ok(Some(asked))
    }

    /// Tells a client that somebody else has undone its takeover, and closes the tunnel.
    pub(super) async fn watch_claim(self: Arc<Self>, tunnel: Arc<Tunnel>) {
        let over = tunnel.claim().as_ref().map(Claim::over);
        let Some(over) = over else { return };
        tokio::select! {
            reason = over => {
                // If the queue is full, the client does not read, and the heartbeat timeout ends its session.
                let _ = tunnel.session.frames.try_send(Frame::Refused { tunnel: tunnel.id, reason });
                self.close(&tunnel, true);
            }
            () = tunnel.gone.cancelled() => {}
        }
    }

    /// Closes the old tunnel of a returning client. The client proves it with the tunnel's resume token, or with the same
    /// key if the old client does not answer. Returns the old tunnel's parts of a Service: the Service stays taken over
    /// until the new tunnel has a claim, or until the result is dropped.
    async fn take_over(self: &Arc<Self>, session: &Session, wanted: &Wanted) -> Before {
        let Wanted { kind, port, name, resume, .. } = wanted;
        let (kind, port, resume) = (*kind, *port, *resume);
        let of_key = |tunnel: &&Arc<Tunnel>| tunnel.session.key.name == session.key.name;
        let same = |tunnel: &&Arc<Tunnel>| resume != [0; 16] && tunnel.resume == resume;
        let exposed = match kind {
            Kind::Tcp | Kind::Http => None,
            Kind::Service | Kind::ReplacedService => {
                ExposeRequest::parse(name, kind == Kind::ReplacedService, String::new()).ok()
            }
        };
        // An HTTP name may carry a Host header: NAME=HOST.
        let name = name.split('=').next().unwrap_or_default().to_ascii_lowercase();
        let same_public = |tunnel: &&Arc<Tunnel>| match (&exposed, &tunnel.exposed) {
            (Some(asked), Some(exposed)) => asked.is_same(exposed),
            (None, None) if kind == Kind::Tcp => tunnel.kind == Kind::Tcp && tunnel.port == port,
            (None, None) => kind == Kind::Http && tunnel.kind == Kind::Http && tunnel.name == name,
            _ => false,
        };
        let find = |wanted: &dyn Fn(&&Arc<Tunnel>) -> bool| {
            self.state().tunnels.values().filter(of_key).find(|tunnel| wanted(tunnel)).cloned()
        };
        let old = match find(&same) {
            Some(old) => old,
            None => {
                let old = find(&|tunnel| tunnel.session.token != session.token && same_public(tunnel));
                let Some(old) = old else { return Before::default() };
                if answers(&old.session).await {
                    return Before::default();
                }
                info!(peer = %old.session.peer, key = old.session.key.name, "relay: client does not answer, and is back");
                old
            }
        };
        let is_same = same_public(&&old);
        let shared = old.seat().as_ref().filter(|_| is_same).map(|seat| seat.shared().clone());
        let before = Before { claim: old.claim().take(), shared };
        self.close(&old, false);
        before
    }

    /// Listens on the port that the client had before, else on the requested port, else on any. A port without a tunnel
    /// may still be closing, so it is retried for a while.
    async fn listen(&self, session: &Session, port: u16, resume: &Token) -> Result<(Arc<TcpListener>, u16), PortError> {
        let deadline = Instant::now() + TAKE_OVER;
        loop {
            let opened = self.ports.open(&session.key, port, resume, &mut self.state().reservations);
            match opened {
                Err(PortError::Taken(port)) if Instant::now() < deadline && !self.has_port(port) => {
                    self.end_passing(|passing| passing == port);
                    sleep(Duration::from_millis(20)).await;
                }
                Err(PortError::NoneFree(_)) if Instant::now() < deadline && self.end_passing(|_| true) => {
                    sleep(Duration::from_millis(20)).await;
                }
                opened => return opened,
            }
        }
    }

    /// Closes ports that only pass visitors to pods, because they are needed. Returns whether there were any.
    fn end_passing(&self, is_needed: impl Fn(u16) -> bool) -> bool {
        let state = self.state();
        let needed = state.passing.iter().filter(|(port, _)| is_needed(**port));
        needed.inspect(|(_, over)| over.cancel()).count() > 0
    }

    fn has_service(&self, asked: &ExposeRequest) -> bool {
        let has = |exposed: &ExposeRequest| exposed.service == asked.service && exposed.port == asked.port;
        self.state().tunnels.values().any(|tunnel| tunnel.exposed.as_ref().is_some_and(has))
    }

    fn has_port(&self, port: u16) -> bool {
        self.state().tunnels.values().any(|tunnel| tunnel.has_port() && tunnel.port == port)
    }

    /// Returns how many tunnels a key may still open.
    fn spare_tunnels(&self, state: &super::State, key: &str) -> usize {
        let open = state.tunnels.values().filter(|tunnel| tunnel.session.key.name == key).count();
        self.options.limits.tunnels_per_key.saturating_sub(open)
    }

    fn checked_name(&self, session: &Session, name: &str) -> Result<String, TunnelError> {
        if self.options.domain.is_none() {
            return Err(TunnelError::NoDomain);
        }
        let name = match name.is_empty() {
            true => {
                let random = auth::random::<5>()?;
                random
                    .iter()
                    .map(|byte| char::from(b"abcdefghijkmnpqrstuvwxyz23456789"[usize::from(byte % 32)]))
                    .collect()
            }
            false => name.to_ascii_lowercase(),
        };
        if !is_label(&name) {
            return Err(TunnelError::NoLabel(name));
        }
        if !session.key.allows_name(&name) {
            return Err(TunnelError::NameNotAllowed(name));
        }
        self.state().reservations.check(&Public::Name(name.clone()), &session.key.name)?;
        Ok(name)
    }

    pub(super) fn public_address(&self, tunnel: &Tunnel) -> String {
        match (tunnel.kind, &self.options.domain) {
            (Kind::Service | Kind::ReplacedService, _) => tunnel.name.clone(),
            (Kind::Http, Some(domain)) => {
                let PublicOrigin { is_https, port } = self.options.http_public;
                let scheme = if is_https { "https" } else { "http" };
                let port = port.map_or(String::new(), |port| format!(":{port}"));
                format!("{scheme}://{}.{domain}{port}", tunnel.name)
            }
            _ => String::new(),
        }
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
        tunnel.is_given_back.store(claim.is_some(), Ordering::Relaxed);
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
                let key = &tunnel.session.key.name;
                // A key must not have more ports and names than `tunnels_per_key`, reserved ones included.
                let most = self.spare_tunnels(&state, key);
                state.reservations.keep(tunnel.public(), key, tunnel.resume, most, listener);
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
    let Ok(cookie) = auth::random().map(u64::from_be_bytes) else { return true };
    let mut answered = session.answered.subscribe();
    // If the queue is full, the client does not read.
    if session.frames.try_send(Frame::Ping { cookie }).is_err() {
        return false;
    }
    tokio::select! {
        answer = timeout(ALIVE_WITHIN, answered.wait_for(|answer| *answer == cookie)) => matches!(answer, Ok(Ok(_))),
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
