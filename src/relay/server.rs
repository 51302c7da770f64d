//! The relay: what it is told, and the control connections of its clients.

pub mod options;
pub mod tunnels;
mod visitors;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, interval, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

pub use self::options::{Limits, Options};
use self::{
    tunnels::Tunnel,
    visitors::{Pending, StreamName},
};
use super::{
    auth::{self, Key, Role, Transcript},
    conversation::{self, DEAD, HEARTBEAT, Over, Reader, STEP},
    ports::Ports,
    tls,
};
use crate::{
    drain::Drain,
    io::{accept, read_ahead::ReadAhead},
    wire::relay::{Frame, Kind, Token},
};

/// How many frames may wait for a client that does not read.
const MOST_FRAMES: usize = 1024;

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

/// A client's control connection.
struct Session {
    token: Token,
    key: Key,
    is_v1: bool,
    peer: SocketAddr,
    frames: mpsc::Sender<Frame>,
    gone: CancellationToken,
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
                let accepting = TlsAcceptor::from(self.tls.clone()).accept(ReadAhead::new(stream));
                let tls = timeout(STEP, accepting).await.map_err(|_| Over::Silent(STEP))??;
                self.greet_v2(tls, peer, permit).await
            }
            _ => self.greet_v1(stream, peer, permit).await,
        }
    }

    async fn greet_v2(
        self: Arc<Self>,
        tls: TlsStream<ReadAhead<TcpStream>>,
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
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.counters.rejected.fetch_add(1, Ordering::Relaxed);
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
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
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
