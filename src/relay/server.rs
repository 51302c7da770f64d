//! The relay: its settings, and the control connections of its clients.

mod demand;
mod greeting;
mod idle;
pub mod options;
mod quotas;
pub mod refused;
pub mod tunnels;
pub mod usage;
mod visitors;

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use futures::future::{BoxFuture, OptionFuture};
use rustls::ServerConfig;
use secrecy::SecretString;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    time::{Duration, Instant, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

pub use self::options::{Limits, Options, PublicOrigin};
use self::{
    idle::{Idle, Ready},
    quotas::Notices,
    refused::VisitorError,
    tunnels::{HttpName, Tunnel, Wanted},
    usage::Refusals,
    visitors::{Pending, StreamName},
};
use super::{
    auth::Key,
    conversation::{self, DEAD, FAREWELL, HEARTBEAT, Over, Reader},
    expose::ServiceName,
    personal::{Parted, SharedPort},
    ports::Ports,
    reservations::Reservations,
};
use crate::{
    drain::Drain,
    io::accept::{self, Admission, Names, Place},
    random,
    wire::relay::{Frame, Kind, Token},
};

/// Maximum number of frames that wait for a client that does not read.
const MOST_FRAMES: usize = 1024;

/// Maximum number of frames that wait while a port or a name opens: all requests of a client with the default number of tunnels.
const MOST_DEFERRED: usize = 64;

/// A running relay.
pub struct Server {
    options: Options,
    /// Current keys, at first those of the options; see [`set_keys`](Self::set_keys).
    keys: ArcSwap<Vec<Key>>,
    tls: ArcSwap<ServerConfig>,
    ports: Ports,
    state: Mutex<State>,
    /// Connections before authentication.
    handshakes: Arc<Admission>,
    visitors: Arc<Admission>,
    notices: Notices,
    drain: Drain,
    /// Called when a name is added or removed.
    names_changed: Box<dyn Fn(Vec<HttpName>, Vec<String>) + Send + Sync>,
    pub counters: Counters,
    /// Counters of ports that are taken over in part.
    pub parted: Arc<Parted>,
    /// The latest refusals.
    pub refusals: Refusals,
}

/// Counters since the start.
#[derive(Default)]
pub struct Counters {
    pub sessions: AtomicU64,
    pub rejected: AtomicU64,
    pub visitors: AtomicU64,
    pub refused_visitors: AtomicU64,
    pub up: AtomicU64,
    pub down: AtomicU64,
}

#[derive(Default)]
struct State {
    sessions: HashMap<Token, Arc<Session>>,
    tunnels: HashMap<u64, Arc<Tunnel>>,
    next_tunnel: u64,
    /// Visitors that wait for a connection, by stream.
    pending: HashMap<StreamName, Pending>,
    /// Tunnels to Services that are being opened. The client may close them before that is done.
    opening: HashMap<(Token, u32), Opening>,
    /// Ports of Services that are taken over in part. Each ends with the last of its tunnels.
    shared: HashMap<(ServiceName, u16), Weak<SharedPort>>,
    /// Ports and names of lost clients.
    reservations: Reservations,
    /// Ports that pass visitors to pods for a moment after a takeover.
    passing: HashMap<u16, CancellationToken>,
    /// Notified when a tunnel opens, or its client is lost.
    changed: watch::Sender<()>,
}

struct Opening {
    key: String,
    closed: CancellationToken,
}

/// Control connection of a client.
struct Session {
    token: Token,
    key: Key,
    is_v1: bool,
    peer: SocketAddr,
    frames: mpsc::Sender<Frame>,
    idle: Idle,
    ready: Mutex<Ready>,
    /// The user's token for the API server, as sent by the client; see [`Authority`](super::expose::Authority).
    token_of_user: Mutex<Option<SecretString>>,
    /// Who the client claims to be, for messages only. Empty: it does not say.
    claimed: Mutex<String>,
    /// Time of the last frame from the client.
    heard: Mutex<Instant>,
    /// When a visitor has waited in vain. A later frame from the client proves that it answers again.
    unanswered: Mutex<Option<Instant>>,
    /// Who waits for the answer to a ping, by its cookie. The next Pong may follow at once, so each has its own.
    awaited: Mutex<HashMap<u64, oneshot::Sender<()>>>,
    gone: CancellationToken,
}

impl Session {
    /// Returns whether the client has sent nothing since a visitor waited for it in vain.
    fn is_silent(&self) -> bool {
        let unanswered = *self.unanswered.lock().expect("no panic while the lock is held");
        unanswered.is_some_and(|at| *self.heard.lock().expect("no panic while the lock is held") < at)
    }

    /// Returns what receives the answer to the ping with this cookie.
    fn awaits(&self, cookie: u64) -> oneshot::Receiver<()> {
        let (answered, answer) = oneshot::channel();
        let mut awaited = self.awaited.lock().expect("no panic while the lock is held");
        awaited.retain(|_, waiting| !waiting.is_closed());
        awaited.insert(cookie, answered);
        answer
    }

    fn answered(&self, cookie: u64) {
        if let Some(waiting) = self.awaited.lock().expect("no panic while the lock is held").remove(&cookie) {
            // It may have given up.
            let _ = waiting.send(());
        }
    }

    /// Records that a visitor has waited for this long in vain, unless the client has sent something meanwhile.
    fn did_not_answer(&self, waited: Duration) {
        let (now, heard) = (Instant::now(), *self.heard.lock().expect("no panic while the lock is held"));
        if self.is_v1 || now.duration_since(heard) < waited {
            return;
        }
        *self.unanswered.lock().expect("no panic while the lock is held") = Some(now);
        // Its answer ends the silence. If the queue is full, the client does not read, and its session ends soon.
        let _ = self.frames.try_send(Frame::Ping { cookie: 0 });
    }
}

impl Server {
    /// Returns a relay. Calls `names_changed` whenever an HTTP name is added or removed, with all names and with those
    /// whose clients were lost a moment ago.
    pub fn new(
        options: Options,
        tls: Arc<ServerConfig>,
        drain: Drain,
        names_changed: impl Fn(Vec<HttpName>, Vec<String>) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let accepted = options.limits.accepted;
        let unproven = accept::Limits { connections: Some(options.limits.handshakes), per_address: None, ..accepted };
        let (connections, counted) = ("--max-handshakes", "clients that have not authenticated");
        let handshakes = Admission::new(unproven, Names { counted, connections, per_address: "" });
        let (connections, per_address) = ("--max-connections", "--max-connections-per-address");
        let visitors = Admission::new(accepted, Names { counted: "connections of visitors", connections, per_address });
        Arc::new(Self {
            ports: Ports::new(options.bind, options.ports.clone()),
            handshakes,
            visitors,
            notices: Notices::default(),
            keys: ArcSwap::from_pointee(options.keys.clone()),
            options,
            tls: ArcSwap::new(tls),
            state: Mutex::default(),
            drain,
            names_changed: Box::new(names_changed),
            counters: Counters::default(),
            parted: Arc::default(),
            refusals: Refusals::default(),
        })
    }

    /// Replaces the keys. Connected clients stay, even if their key was removed.
    pub fn set_keys(&self, keys: Vec<Key>) {
        info!(keys = keys.len(), "relay: keys read again");
        self.keys.store(Arc::new(keys));
    }

    /// Replaces the certificate. Open connections stay.
    pub fn set_tls(&self, tls: Arc<ServerConfig>) {
        self.tls.store(tls);
    }

    /// Returns the admission that counts all connections of visitors, over TCP and HTTP.
    pub fn visitors(&self) -> &Arc<Admission> {
        &self.visitors
    }

    /// Accepts connections of clients until the drain starts. `listener`: the control port.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let serve = |stream: TcpStream, peer: SocketAddr, place: Place| {
            let this = self.clone();
            self.drain.spawn(async move {
                // After authentication, a connection releases its place and can no longer be evicted.
                let greeting = place.run(this.clone().greet(stream, peer, place.clone()));
                drop(place);
                match greeting.await {
                    Some(Ok(())) => {}
                    Some(Err(error)) => debug!(%peer, %error, "relay: connection ended"),
                    None => {
                        this.counters.rejected.fetch_add(1, Ordering::Relaxed);
                        debug!(%peer, "relay: connection ended: it did not authenticate, and others came");
                    }
                }
            });
        };
        tokio::select! {
            never = accept::accept(&listener, &self.handshakes, 1, serve, |_, _| async {}) => match never {},
            () = self.drain.started() => {}
        }
    }

    fn new_session(
        &self,
        key: Key,
        peer: SocketAddr,
        is_v1: bool,
    ) -> io::Result<(Arc<Session>, mpsc::Receiver<Frame>)> {
        let (frames_tx, frames) = mpsc::channel(MOST_FRAMES);
        let token = random::bytes()?;
        let session = Arc::new(Session {
            token,
            key,
            is_v1,
            peer,
            frames: frames_tx,
            idle: Idle::new(),
            ready: Mutex::default(),
            token_of_user: Mutex::default(),
            claimed: Mutex::default(),
            heard: Mutex::new(Instant::now()),
            unanswered: Mutex::default(),
            awaited: Mutex::default(),
            gone: CancellationToken::new(),
        });
        self.counters.sessions.fetch_add(1, Ordering::Relaxed);
        self.state().sessions.insert(token, session.clone());
        info!(%peer, key = session.key.name, version = if is_v1 { 1 } else { 2 }, "relay: client");
        Ok((session, frames))
    }

    /// Serves a control connection until it ends.
    async fn converse<S>(
        self: Arc<Self>,
        connection: S,
        session: Arc<Session>,
        mut frames: mpsc::Receiver<Frame>,
    ) -> Result<(), Over>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (read, mut write) = tokio::io::split(connection);
        let mut reader = Reader::new(read);
        let writing = async {
            while let Some(frame) = frames.recv().await {
                let mut all = vec![frame];
                while let Ok(frame) = frames.try_recv() {
                    all.push(frame);
                }
                conversation::send(&mut write, &all).await?;
            }
            Ok::<(), Over>(())
        };
        let mut is_clean = false;
        let reading = async {
            let mut beat = interval(HEARTBEAT);
            let mut has_said_goodbye = false;
            // While a port or a name opens, which may wait for another client's Pong, this client's Pongs must be read: two
            // clients that want each other's port would both count as dead. Other frames wait for their turn.
            let mut opening: Option<BoxFuture<'_, Frame>> = None;
            let mut deferred = VecDeque::new();
            loop {
                let next = if opening.is_none() { deferred.pop_front() } else { None };
                let frame = match next {
                    Some(frame) => frame,
                    None => tokio::select! {
                        frame = reader.next(), if deferred.len() < MOST_DEFERRED => {
                            // An error or the end of the connection must not count as a sign of life.
                            let frame = frame?;
                            *session.heard.lock().expect("no panic while the lock is held") = Instant::now();
                            frame
                        }
                        Some(answer) = OptionFuture::from(opening.as_mut()) => {
                            opening = None;
                            session.frames.send(answer).await.map_err(|_| Over::Closed)?;
                            continue;
                        }
                        // Version 1 has no heartbeat.
                        _ = beat.tick(), if !session.is_v1 => {
                            if session.heard.lock().expect("no panic while the lock is held").elapsed() > DEAD {
                                return Err(Over::Silent(DEAD));
                            }
                            // If the queue is full, the client does not read, and the heartbeat timeout ends the session.
                            let _ = session.frames.try_send(Frame::Ping { cookie: 0 });
                            session.idle.sweep();
                            session.prepare();
                            continue;
                        }
                        () = self.drain.started(), if !has_said_goodbye => {
                            has_said_goodbye = true;
                            if session.is_v1 {
                                return Ok(());
                            }
                            let _ = session.frames.try_send(Frame::Goodbye { reason: "the relay is shutting down".to_owned() });
                            continue;
                        }
                    },
                };
                match frame {
                    frame if opening.is_some() && !matches!(frame, Frame::Ping { .. } | Frame::Pong { .. }) => {
                        deferred.push_back(frame);
                    }
                    Frame::Open { tunnel: id, kind: kind @ (Kind::Tcp | Kind::Http), port, resume, name }
                        if !session.is_v1 =>
                    {
                        let (this, session) = (&self, &session);
                        opening = Some(Box::pin(async move {
                            let wanted = Wanted { id, kind, port, name, resume };
                            this.answer(id, &this.open(session, &wanted).await)
                        }));
                    }
                    frame => {
                        if self.clone().on_frame(&session, frame).await? {
                            is_clean = true;
                            return Ok(());
                        }
                    }
                }
            }
        };
        let ended: Result<(), Over> = tokio::select! {
            ended = reading => ended,
            ended = writing => ended,
            () = session.gone.cancelled() => Ok(()),
        };
        self.forget(&session, is_clean);
        info!(peer = %session.peer, key = session.key.name, clean = is_clean, "relay: client gone");
        if is_clean {
            // The client waits for this. Through a port-forward, the end of the connection itself arrives a second later.
            let _ = timeout(FAREWELL, write.shutdown()).await;
        }
        ended
    }

    /// Handles a frame of the client, except an Open of a port or a name. Returns whether it was a goodbye.
    async fn on_frame(self: Arc<Self>, session: &Arc<Session>, frame: Frame) -> Result<bool, Over> {
        match frame {
            Frame::Open { tunnel: id, kind, port, resume, name } if !session.is_v1 => {
                let wanted = Wanted { id, kind, port, name, resume };
                match self.begin_opening(session, id) {
                    // The API server may hang: the session must go on meanwhile, and the client may close the tunnel again.
                    Ok(closed) => {
                        let (this, session) = (self.clone(), session.clone());
                        self.drain.spawn(async move { this.open_service(&session, wanted, closed).await });
                    }
                    Err(error) => {
                        let answer = self.answer(id, &Err(error));
                        session.frames.send(answer).await.map_err(|_| Over::Closed)?;
                    }
                }
            }
            Frame::Identity { token } if !session.is_v1 => match conversation::claimed(&token) {
                Some(name) => *session.claimed.lock().expect("no panic while the lock is held") = name,
                None => {
                    *session.token_of_user.lock().expect("no panic while the lock is held") = Some(token.into());
                }
            },
            Frame::Close { tunnel } => {
                if let Some(opening) = self.state().opening.get(&(session.token, tunnel)) {
                    opening.closed.cancel();
                }
                let found = self
                    .state()
                    .tunnels
                    .values()
                    .find(|open| open.id == tunnel && open.session.token == session.token)
                    .cloned();
                if let Some(tunnel) = found {
                    self.close(&tunnel, true);
                }
            }
            Frame::Decline { stream, reason } => {
                let pending = {
                    let mut state = self.state();
                    let name = StreamName::V2(stream);
                    let is_theirs = state.pending.get(&name).is_some_and(|pending| pending.session == session.token);
                    if is_theirs { state.pending.remove(&name) } else { None }
                };
                if let Some(pending) = pending {
                    // The visitor may be gone.
                    let _ = pending.to.send(Err(VisitorError::Declined(reason)));
                }
            }
            Frame::Ping { cookie } => drop(session.frames.try_send(Frame::Pong { cookie })),
            Frame::Pong { cookie } => session.answered(cookie),
            Frame::Goodbye { .. } => return Ok(true),
            other => return Err(Over::Unexpected(conversation::name(&other))),
        }
        Ok(false)
    }

    pub(super) fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Records a visitor that was refused.
    pub(super) fn refused(&self, peer: SocketAddr, what: &str, reason: &str) {
        self.counters.refused_visitors.fetch_add(1, Ordering::Relaxed);
        self.refusals.add(peer, what, reason);
    }

    pub fn is_ready(&self) -> bool {
        !self.drain.is_draining()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }
}
