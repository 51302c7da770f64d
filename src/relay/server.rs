//! The relay: control connections, public ports, and the streams between visitors and clients.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, interval, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{
    auth::{self, Key, Role, Transcript},
    conversation::{self, DEAD, HEARTBEAT, Over, Reader, STEP},
    ports::{PortError, Ports},
    registrar::{Registrar, Registration},
    tls,
};
use crate::{
    config::names::is_label,
    drain::Drain,
    io::{
        BoxedIo, accept,
        prefixed::Prefixed,
        splice::{Side, splice},
    },
    wire::relay::{Frame, Kind, Token, Uuid},
};

/// How long a visitor is kept waiting for a client's connection.
const VISITOR_WAITS: Duration = Duration::from_secs(30);

/// How many frames may wait for a client that does not read.
const MOST_FRAMES: usize = 1024;

/// How long a tunnel that comes back waits for what is left of itself.
const TAKE_OVER: Duration = Duration::from_secs(2);

/// For how long a name waits for a client that was lost.
const NAME_REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// What a relay is told at its start.
#[derive(Clone)]
pub struct Options {
    pub keys: Vec<Key>,
    /// The public ports.
    pub ports: RangeInclusive<u16>,
    /// Where they listen.
    pub bind: IpAddr,
    /// The names of HTTP tunnels are below this.
    pub domain: Option<String>,
    /// How HTTP tunnels are reached: `https` or `http`, and the port where it is not the usual one.
    pub http_public: (&'static str, Option<u16>),
    /// Serves version 1 too: the secret and all bytes cross the network as they are.
    pub allow_v1: bool,
    pub limits: Limits,
    /// Makes Services of the cluster lead to tunnels. None: the relay is in no cluster.
    pub registrar: Option<Arc<dyn Registrar>>,
}

/// What one client, or one visitor, can take from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Default: 64.
    pub tunnels_per_key: usize,
    /// Default: 1,024.
    pub streams_per_tunnel: usize,
    /// Visitors that wait for the client. Default: 256.
    pub pending_per_tunnel: usize,
    /// Connections that have not yet said who they are. Default: 512.
    pub handshakes: usize,
    /// New visitors of a tunnel in a second. Default: 2,000.
    pub visitors_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tunnels_per_key: 64,
            streams_per_tunnel: 1024,
            pending_per_tunnel: 256,
            handshakes: 512,
            visitors_per_second: 2000,
        }
    }
}

/// A relay that runs.
pub struct Server {
    options: Options,
    tls: Arc<ServerConfig>,
    ports: Mutex<Ports>,
    state: Mutex<State>,
    handshakes: Arc<Semaphore>,
    drain: Drain,
    /// Told when a name comes or goes.
    names_changed: Box<dyn Fn(Vec<String>) + Send + Sync>,
    pub counters: Counters,
}

/// What has happened since the start.
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
    /// Visitors that wait, by the name of their stream.
    pending: HashMap<StreamName, Pending>,
    /// Names of clients that were lost, with what they were given for them.
    lost_names: HashMap<String, (Token, Instant)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum StreamName {
    V1(Uuid),
    V2(Token),
}

struct Pending {
    session: Token,
    to: oneshot::Sender<Result<BoxedIo, String>>,
}

/// A client's control connection.
struct Session {
    token: Token,
    key: Key,
    is_v1: bool,
    peer: SocketAddr,
    frames: mpsc::Sender<Frame>,
    gone: CancellationToken,
}

/// A public port or name, and the client behind it.
pub struct Tunnel {
    number: u64,
    /// As its client numbers it.
    id: u32,
    session: Arc<Session>,
    kind: Kind,
    /// 0 for HTTP.
    port: u16,
    name: String,
    registration: Option<Registration>,
    resume: Token,
    streams: AtomicUsize,
    pending: AtomicUsize,
    rate: Mutex<(f64, Instant)>,
    gone: CancellationToken,
    /// Its public port is closed.
    unbound: CancellationToken,
}

/// A tunnel as `/` and `adit status` show it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TunnelSnapshot {
    pub key: String,
    pub client: SocketAddr,
    /// `tcp` or `http`.
    pub kind: &'static str,
    pub public: String,
    pub streams: usize,
}

impl Server {
    /// `names_changed` is told all names of HTTP tunnels each time that one comes or goes.
    pub fn new(
        options: Options,
        tls: Arc<ServerConfig>,
        drain: Drain,
        names_changed: impl Fn(Vec<String>) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            ports: Mutex::new(Ports::new(options.bind, options.ports.clone())),
            handshakes: Arc::new(Semaphore::new(options.limits.handshakes)),
            options,
            tls,
            state: Mutex::default(),
            drain,
            names_changed: Box::new(names_changed),
            counters: Counters::default(),
        })
    }

    /// Takes connections of clients until the drain starts. `listener`: the control port.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let serve = |stream: TcpStream, peer: SocketAddr| {
            // Who does not say who he is does not keep others from it.
            let Ok(permit) = self.handshakes.clone().try_acquire_owned() else {
                self.counters.rejected.fetch_add(1, Ordering::Relaxed);
                return;
            };
            let this = self.clone();
            self.drain.spawn(async move {
                if let Err(error) = this.clone().greet(stream, peer, permit).await {
                    debug!(%peer, %error, "relay: connection ended");
                }
            });
        };
        tokio::select! {
            never = accept::accept(&listener, 1, serve, |_| async {}) => match never {},
            () = self.drain.started() => {}
        }
    }

    async fn greet(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), Over> {
        let mut first = [0];
        let count = timeout(STEP, stream.peek(&mut first)).await.map_err(|_| Over::Silent(STEP))??;
        match (count, first[0]) {
            (0, _) => Err(Over::Closed),
            // A TLS record with a handshake.
            (_, 0x16) => {
                let accepting = TlsAcceptor::from(self.tls.clone()).accept(stream);
                let tls = timeout(STEP, accepting).await.map_err(|_| Over::Silent(STEP))??;
                self.greet_v2(tls, peer, permit).await
            }
            _ => self.greet_v1(stream, peer, permit).await,
        }
    }

    async fn greet_v2(
        self: Arc<Self>,
        tls: TlsStream<TcpStream>,
        peer: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), Over> {
        let exporter = tls::exporter(tls.get_ref().1)?;
        let mut reader = Reader::new(tls, BytesMut::new());
        match reader.step().await? {
            Frame::Hello { version: 2, nonce, port, key } => {
                let known = self.options.keys.iter().find(|known| known.name == key).cloned();
                let transcript = Transcript { key, port, client: nonce, server: auth::random()?, exporter };
                // Whether there is such a key is not told: its proof is that of a secret that nobody has.
                let secret = known.as_ref().map_or(auth::new_secret()?, |key| key.secret.clone());
                let proof = transcript.proof(&secret, Role::Server);
                conversation::send(reader.get_mut(), &[Frame::Challenge { nonce: transcript.server, proof }]).await?;
                let Frame::Proof { proof } = reader.step().await? else {
                    return Err(Over::Unexpected("another frame"));
                };
                let is_proven = transcript.is_proven(&secret, Role::Client, &proof);
                let Some(key) = known.filter(|_| is_proven) else {
                    self.counters.rejected.fetch_add(1, Ordering::Relaxed);
                    info!(%peer, key = transcript.key, "relay: rejected: wrong secret");
                    return self.reject(&mut reader, "the secret is not the one of this relay").await;
                };
                let (session, frames) = self.new_session(key, peer, false)?;
                let heartbeat = HEARTBEAT.as_secs() as u16;
                conversation::send(reader.get_mut(), &[Frame::Welcome { session: session.token, heartbeat }]).await?;
                drop(permit);
                self.converse(reader, session, frames).await
            }
            Frame::Hello { version, .. } => {
                self.reject(&mut reader, &format!("version {version} is not served here: 2 is")).await
            }
            Frame::Claim { session, stream, proof } => {
                let is_ours = {
                    let state = self.state();
                    state.sessions.get(&session).is_some_and(|known| {
                        !known.is_v1 && auth::is_claimed(&known.key.secret, &session, &stream, &exporter, &proof)
                    })
                };
                self.join(reader, StreamName::V2(stream), is_ours.then_some(session), permit).await
            }
            other => Err(Over::Unexpected(conversation::name(&other))),
        }
    }

    async fn greet_v1(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), Over> {
        // It fails only on a socket that is closed already.
        let _ = stream.set_nodelay(true);
        let mut reader = Reader::new(stream, BytesMut::new());
        if !self.options.allow_v1 {
            return self.reject(&mut reader, "this relay serves version 2 alone, within TLS").await;
        }
        match reader.step().await? {
            Frame::Handshake { version: 1, secret } => {
                let key = self.options.keys.iter().find(|key| auth::is_same(key.secret.as_bytes(), &secret)).cloned();
                let Some(key) = key else {
                    self.counters.rejected.fetch_add(1, Ordering::Relaxed);
                    info!(%peer, "relay: rejected: wrong secret");
                    return self.reject(&mut reader, "the secret is not the one of this relay").await;
                };
                let host = reader.get_mut().local_addr()?.ip().to_string();
                let (session, frames) = self.new_session(key, peer, true)?;
                drop(permit);
                match self.open(&session, 0, Kind::Tcp, 0, "", [0; 16]).await {
                    Ok(tunnel) => {
                        conversation::send(reader.get_mut(), &[Frame::Accept { port: tunnel.port, host }]).await?;
                        self.converse(reader, session, frames).await
                    }
                    Err(reason) => {
                        self.forget(&session, true);
                        self.reject(&mut reader, &reason).await
                    }
                }
            }
            Frame::Handshake { version, .. } => {
                self.reject(&mut reader, &format!("version {version} is not served here: 1 and 2 are")).await
            }
            Frame::StreamHandshake { stream } => {
                let name = StreamName::V1(stream);
                let session = self.state().pending.get(&name).map(|pending| pending.session);
                self.join(reader, name, session, permit).await
            }
            other => Err(Over::Unexpected(conversation::name(&other))),
        }
    }

    async fn reject<S>(&self, reader: &mut Reader<S>, reason: &str) -> Result<(), Over>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        conversation::send(reader.get_mut(), &[Frame::Reject { reason: reason.to_owned() }]).await?;
        // What it sent meanwhile must not turn our close into a reset.
        let _ = timeout(Duration::from_secs(1), async { while reader.next().await.is_ok() {} }).await;
        Ok(())
    }

    fn new_session(
        &self,
        key: Key,
        peer: SocketAddr,
        is_v1: bool,
    ) -> io::Result<(Arc<Session>, mpsc::Receiver<Frame>)> {
        let (frames_tx, frames) = mpsc::channel(MOST_FRAMES);
        let token = auth::random()?;
        let session = Session { token, key, is_v1, peer, frames: frames_tx, gone: CancellationToken::new() };
        let session = Arc::new(session);
        self.counters.sessions.fetch_add(1, Ordering::Relaxed);
        self.state().sessions.insert(token, session.clone());
        info!(%peer, key = session.key.name, version = if is_v1 { 1 } else { 2 }, "relay: client");
        Ok((session, frames))
    }

    /// Follows a control connection to its end.
    async fn converse<S>(
        self: Arc<Self>,
        reader: Reader<S>,
        session: Arc<Session>,
        mut frames: mpsc::Receiver<Frame>,
    ) -> Result<(), Over>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (inner, received) = reader.into_parts();
        let (read, mut write) = tokio::io::split(inner);
        let mut reader = Reader::new(read, BytesMut::from(&received[..]));
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
            let mut heard = Instant::now();
            let mut beat = interval(HEARTBEAT);
            let mut has_said_goodbye = false;
            loop {
                tokio::select! {
                    frame = reader.next() => {
                        heard = Instant::now();
                        if self.clone().on_frame(&session, frame?).await? {
                            is_clean = true;
                            return Ok(());
                        }
                    }
                    // Version 1 has no heartbeat.
                    _ = beat.tick(), if !session.is_v1 => {
                        if heard.elapsed() > DEAD {
                            return Err(Over::Silent(DEAD));
                        }
                        // A full queue is one that will be found dead.
                        let _ = session.frames.try_send(Frame::Ping { cookie: 0 });
                    }
                    () = self.drain.started(), if !has_said_goodbye => {
                        has_said_goodbye = true;
                        if session.is_v1 {
                            return Ok(());
                        }
                        let _ = session.frames.try_send(Frame::Goodbye { reason: "the relay is shutting down".to_owned() });
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
        ended
    }

    /// Returns whether the client has said goodbye.
    async fn on_frame(self: Arc<Self>, session: &Arc<Session>, frame: Frame) -> Result<bool, Over> {
        match frame {
            Frame::Open { tunnel, kind, port, resume, name } if !session.is_v1 => {
                let answer = match self.open(session, tunnel, kind, port, &name, resume).await {
                    Ok(opened) => {
                        let address = self.public_address(&opened);
                        Frame::Opened { tunnel, port: opened.port, resume: opened.resume, address }
                    }
                    Err(reason) => Frame::Refused { tunnel, reason },
                };
                session.frames.send(answer).await.map_err(|_| Over::Closed)?;
            }
            Frame::Close { tunnel } => {
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
                    // The visitor may have gone.
                    let _ = pending.to.send(Err(reason));
                }
            }
            Frame::Ping { cookie } => drop(session.frames.try_send(Frame::Pong { cookie })),
            Frame::Pong { .. } => {}
            Frame::Goodbye { .. } => return Ok(true),
            other => return Err(Over::Unexpected(conversation::name(&other))),
        }
        Ok(false)
    }

    async fn open(
        self: &Arc<Self>,
        session: &Arc<Session>,
        id: u32,
        kind: Kind,
        port: u16,
        name: &str,
        resume: Token,
    ) -> Result<Arc<Tunnel>, String> {
        self.take_over(session, resume).await;
        let count = self.state().tunnels.values().filter(|tunnel| tunnel.session.key.name == session.key.name).count();
        if count >= self.options.limits.tunnels_per_key {
            return Err(format!("the key has {count} tunnels, and may not have more"));
        }
        let (listener, port, name) = match kind {
            Kind::Tcp => {
                let opened = self.ports().open(&session.key, port, &resume);
                let (listener, port) = opened.map_err(|error: PortError| error.to_string())?;
                (Some(listener), port, String::new())
            }
            Kind::Http => (None, 0, self.checked_name(session, name, &resume)?),
            Kind::Service | Kind::ReplacedService => {
                let opened = self.ports().open(&session.key, 0, &resume);
                let (listener, port) = opened.map_err(|error: PortError| error.to_string())?;
                (Some(listener), port, name.to_owned())
            }
        };
        let registration = self.register(session, kind, &name, port).await?;
        let resume = auth::random().map_err(|error| error.to_string())?;
        let tunnel = {
            let mut state = self.state();
            if kind == Kind::Http && state.tunnels.values().any(|tunnel| tunnel.name == name) {
                return Err(format!("the name {name} is taken"));
            }
            state.lost_names.remove(&name);
            state.next_tunnel += 1;
            let rate = Mutex::new((f64::from(self.options.limits.visitors_per_second), Instant::now()));
            let tunnel = Arc::new(Tunnel {
                number: state.next_tunnel,
                id,
                session: session.clone(),
                kind,
                port,
                name,
                registration,
                resume,
                streams: AtomicUsize::new(0),
                pending: AtomicUsize::new(0),
                rate,
                gone: CancellationToken::new(),
                unbound: CancellationToken::new(),
            });
            state.tunnels.insert(tunnel.number, tunnel.clone());
            tunnel
        };
        info!(key = session.key.name, public = self.public_address(&tunnel), port = tunnel.port, "relay: tunnel open");
        match listener {
            Some(listener) => self.drain.spawn(self.clone().serve_port(listener, tunnel.clone())),
            None => self.tell_names(),
        }
        Ok(tunnel)
    }

    async fn register(
        &self,
        session: &Session,
        kind: Kind,
        name: &str,
        port: u16,
    ) -> Result<Option<Registration>, String> {
        if !matches!(kind, Kind::Service | Kind::ReplacedService) {
            return Ok(None);
        }
        let Some(registrar) = &self.options.registrar else {
            return Err(
                "this relay makes no Services: it is in no cluster, or was started without --register".to_owned()
            );
        };
        let owner = format!("{} ({})", session.key.name, session.peer.ip());
        let wanted = Registration::parse(name, kind == Kind::ReplacedService, owner);
        let wanted = wanted.ok_or_else(|| format!("{name:?} is not service.namespace:port"))?;
        registrar.register(&wanted, port).await?;
        Ok(Some(wanted))
    }

    /// What is left of a client that was cut off makes room for its return.
    async fn take_over(&self, session: &Session, resume: Token) {
        let same = |tunnel: &&Arc<Tunnel>| {
            resume != [0; 16] && tunnel.resume == resume && tunnel.session.key.name == session.key.name
        };
        let Some(old) = self.state().tunnels.values().find(same).cloned() else { return };
        self.close(&old, false);
        if old.kind != Kind::Http {
            // What happens if it takes longer is told by the port.
            let _ = timeout(TAKE_OVER, old.unbound.cancelled()).await;
        }
    }

    fn checked_name(&self, session: &Session, name: &str, resume: &Token) -> Result<String, String> {
        if self.options.domain.is_none() {
            return Err("this relay has no domain for names".to_owned());
        }
        let name = match name.is_empty() {
            true => {
                let random = auth::random::<5>().map_err(|error| error.to_string())?;
                random
                    .iter()
                    .map(|byte| char::from(b"abcdefghijkmnpqrstuvwxyz23456789"[usize::from(byte % 32)]))
                    .collect()
            }
            false => name.to_ascii_lowercase(),
        };
        if !is_label(&name) {
            return Err(format!("{name:?} cannot be a part of a hostname"));
        }
        if !session.key.allows_name(&name) {
            return Err(format!("the key may not have the name {name}"));
        }
        let kept = self.state().lost_names.get(&name).copied();
        match kept.is_some_and(|(token, until)| token != *resume && until > Instant::now()) {
            true => Err(format!("the name {name} is kept for another client")),
            false => Ok(name),
        }
    }

    fn public_address(&self, tunnel: &Tunnel) -> String {
        match (tunnel.kind, &self.options.domain) {
            (Kind::Service | Kind::ReplacedService, _) => tunnel.name.clone(),
            (Kind::Http, Some(domain)) => {
                let (scheme, port) = self.options.http_public;
                let port = port.map_or(String::new(), |port| format!(":{port}"));
                format!("{scheme}://{}.{domain}{port}", tunnel.name)
            }
            _ => String::new(),
        }
    }

    /// Ends a tunnel; unless its client wanted that, its port or name waits for the client's return.
    fn close(&self, tunnel: &Tunnel, is_clean: bool) {
        if self.state().tunnels.remove(&tunnel.number).is_none() {
            return;
        }
        tunnel.gone.cancel();
        if let (Some(registrar), Some(registration)) = (self.options.registrar.clone(), tunnel.registration.clone()) {
            // In a drain it is the last that is done.
            self.drain.spawn(async move { registrar.unregister(&registration).await });
        }
        if !is_clean && !tunnel.session.is_v1 {
            match tunnel.kind {
                Kind::Tcp | Kind::Service | Kind::ReplacedService => self.ports().remember(tunnel.resume, tunnel.port),
                Kind::Http => {
                    let mut state = self.state();
                    state.lost_names.retain(|_, (_, until)| *until > Instant::now());
                    state.lost_names.insert(tunnel.name.clone(), (tunnel.resume, Instant::now() + NAME_REMEMBERED));
                }
            }
        }
        if tunnel.kind == Kind::Http {
            self.tell_names();
        }
    }

    fn forget(&self, session: &Session, is_clean: bool) {
        session.gone.cancel();
        let tunnels: Vec<_> = {
            let mut state = self.state();
            state.sessions.remove(&session.token);
            state.pending.retain(|_, pending| pending.session != session.token);
            state.tunnels.values().filter(|tunnel| tunnel.session.token == session.token).cloned().collect()
        };
        tunnels.iter().for_each(|tunnel| self.close(tunnel, is_clean));
    }

    fn tell_names(&self) {
        let names = self
            .state()
            .tunnels
            .values()
            .filter(|tunnel| tunnel.kind == Kind::Http)
            .map(|tunnel| tunnel.name.clone())
            .collect();
        (self.names_changed)(names);
    }

    /// Takes the visitors of a public port.
    async fn serve_port(self: Arc<Self>, listener: TcpListener, tunnel: Arc<Tunnel>) {
        let serve = |visitor: TcpStream, peer: SocketAddr| {
            let (this, tunnel) = (self.clone(), tunnel.clone());
            // It lives on when the tunnel is gone: its stream is a connection of its own.
            self.drain.spawn(async move { this.visit(visitor, peer, &tunnel).await });
        };
        tokio::select! {
            never = accept::accept(&listener, 1, serve, |_| async {}) => match never {},
            () = tunnel.gone.cancelled() => {}
            () = self.drain.started() => {}
        }
        drop(listener);
        tunnel.unbound.cancel();
    }

    async fn visit(&self, mut visitor: TcpStream, peer: SocketAddr, tunnel: &Arc<Tunnel>) {
        let mut stream = match self.stream(tunnel, peer).await {
            Ok(stream) => stream,
            Err(error) => {
                debug!(%peer, port = tunnel.port, %error, "relay: visitor refused");
                // A close that is no reset would look like an answer.
                return drop(socket2::SockRef::from(&visitor).set_linger(Some(Duration::ZERO)));
            }
        };
        let end = splice(&mut visitor, &mut stream).await;
        self.counters.up.fetch_add(end.up, Ordering::Relaxed);
        self.counters.down.fetch_add(end.down, Ordering::Relaxed);
        if let Some((Side::Backend, _)) = end.broken {
            let _ = socket2::SockRef::from(&visitor).set_linger(Some(Duration::ZERO));
        }
    }

    /// Asks the client of a tunnel for a connection, and waits for it.
    ///
    /// # Errors
    /// In words: there are too many, or the client does not come, or says why it cannot.
    pub async fn stream(&self, tunnel: &Arc<Tunnel>, peer: SocketAddr) -> Result<BoxedIo, String> {
        self.counters.visitors.fetch_add(1, Ordering::Relaxed);
        let asked = self.ask(tunnel, peer).await;
        if asked.is_err() {
            self.counters.refused_visitors.fetch_add(1, Ordering::Relaxed);
        }
        asked
    }

    async fn ask(&self, tunnel: &Arc<Tunnel>, peer: SocketAddr) -> Result<BoxedIo, String> {
        let limits = self.options.limits;
        if !tunnel.takes_another(limits.visitors_per_second) {
            return Err("too many visitors in a short time".to_owned());
        }
        if tunnel.streams.load(Ordering::Relaxed) >= limits.streams_per_tunnel {
            return Err(format!("the tunnel has {} streams", limits.streams_per_tunnel));
        }
        let waiting = Waiting::new(tunnel, limits.pending_per_tunnel)?;
        let (name, frame) = if tunnel.session.is_v1 {
            let stream = new_uuid().map_err(|error| error.to_string())?;
            (StreamName::V1(stream), Frame::Connect { stream })
        } else {
            let stream = auth::random().map_err(|error| error.to_string())?;
            (StreamName::V2(stream), Frame::Incoming { tunnel: tunnel.id, stream, peer: peer.to_string() })
        };
        let (to, from) = oneshot::channel();
        self.state().pending.insert(name, Pending { session: tunnel.session.token, to });
        let _forgotten = Forgotten { server: self, name };
        tunnel.session.frames.try_send(frame).map_err(|_| "the client does not keep up".to_owned())?;
        let answered = timeout(VISITOR_WAITS, from).await.map_err(|_| "the client did not come".to_owned())?;
        let stream = answered.map_err(|_| "the client is gone".to_owned())??;
        drop(waiting);
        tunnel.streams.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Joined { inner: stream, tunnel: tunnel.clone() }))
    }

    /// Gives the connection of a client to the visitor that waits for it.
    async fn join<S>(
        self: Arc<Self>,
        mut reader: Reader<S>,
        name: StreamName,
        session: Option<Token>,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), Over>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let pending = {
            let mut state = self.state();
            let is_theirs = state.pending.get(&name).is_some_and(|pending| Some(pending.session) == session);
            if is_theirs { state.pending.remove(&name) } else { None }
        };
        let Some(pending) = pending else {
            let reason = "nobody waits for this stream".to_owned();
            return conversation::send(reader.get_mut(), &[Frame::StreamReject { reason }]).await;
        };
        conversation::send(reader.get_mut(), &[Frame::StreamAccept]).await?;
        drop(permit);
        let (inner, rest) = reader.into_parts();
        // The visitor may have gone: the client sees the end of its stream.
        let _ = pending.to.send(Ok(Box::new(Prefixed::new(rest, inner))));
        Ok(())
    }

    /// Returns the tunnel of a name.
    pub fn tunnel(&self, name: &str) -> Option<Arc<Tunnel>> {
        self.state().tunnels.values().find(|tunnel| tunnel.kind == Kind::Http && tunnel.name == name).cloned()
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
                public: match tunnel.kind {
                    Kind::Http | Kind::Service | Kind::ReplacedService => self.public_address(tunnel),
                    Kind::Tcp => SocketAddr::new(self.options.bind, tunnel.port).to_string(),
                },
                streams: tunnel.streams.load(Ordering::Relaxed),
            })
            .collect();
        snapshots.sort_by(|a, b| a.public.cmp(&b.public));
        snapshots
    }

    pub fn is_ready(&self) -> bool {
        !self.drain.is_draining()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }

    fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().expect("no panic while the lock is held")
    }
}

impl Tunnel {
    /// A token bucket.
    fn takes_another(&self, per_second: u32) -> bool {
        let mut rate = self.rate.lock().expect("no panic while the lock is held");
        let (most, now) = (f64::from(per_second), Instant::now());
        let tokens = (rate.0 + now.duration_since(rate.1).as_secs_f64() * most).min(most);
        *rate = ((tokens - 1.0).max(0.0), now);
        tokens >= 1.0
    }

    /// Returns where its client is.
    pub fn client(&self) -> SocketAddr {
        self.session.peer
    }

    /// Resolves when its client is gone.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }
}

/// A stream to a client, counted while it lives.
struct Joined {
    inner: BoxedIo,
    tunnel: Arc<Tunnel>,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.tunnel.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsyncRead for Joined {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Joined {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A visitor that waits.
struct Waiting<'t>(&'t Tunnel);

impl<'t> Waiting<'t> {
    fn new(tunnel: &'t Tunnel, most: usize) -> Result<Self, String> {
        let waiting = Self(tunnel);
        match tunnel.pending.fetch_add(1, Ordering::Relaxed) < most {
            true => Ok(waiting),
            false => Err(format!("{most} visitors are waiting already")),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A visitor that does not wait any more leaves nothing behind.
struct Forgotten<'s> {
    server: &'s Server,
    name: StreamName,
}

impl Drop for Forgotten<'_> {
    fn drop(&mut self) {
        self.server.state().pending.remove(&self.name);
    }
}

/// Returns a random UUID (version 4; RFC 9562, section 5.4) as text.
fn new_uuid() -> io::Result<Uuid> {
    let mut bytes: Token = auth::random()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for byte in bytes {
        if matches!(at, 8 | 13 | 18 | 23) {
            at += 1;
        }
        text[at] = b"0123456789abcdef"[usize::from(byte >> 4)];
        text[at + 1] = b"0123456789abcdef"[usize::from(byte & 15)];
        at += 2;
    }
    Ok(text)
}
