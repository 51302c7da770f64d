//! The client of a relay. It keeps the control connection and the tunnels open.

mod first_answer;
mod local_end;
pub mod supervisor;
mod visitors;

pub use local_end::LocalEnd;
pub use supervisor::{ClientState, Refusals, run};

use std::{
    io,
    sync::{Arc, Mutex},
};

use futures::future::BoxFuture;
use rustls::{AlertDescription, ClientConfig, pki_types::ServerName};
use socket2::SockRef;
use tokio::{
    net::lookup_host,
    sync::mpsc,
    time::{Instant, interval, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    auth::{Role, Transcript},
    conversation::{self, DEAD, FAREWELL, HEARTBEAT, Over, Reader, STEP},
    tls::{self, Trust},
};
use crate::{
    drain::Drain,
    io::{BoxedIo, accept::Limits, dial, read_ahead::ReadAhead},
    printable::printable,
    random,
    wire::relay::{Frame, Kind, Token},
};

/// Maximum length of a text of the relay in messages, in characters.
const LONGEST_SHOWN: usize = 1000;

/// Maximum number of frames that wait to be sent.
const MOST_FRAMES: usize = 1024;

/// Options of a client.
#[derive(Clone)]
pub struct Options {
    /// Dialler for connections to the relay.
    pub dial: Arc<dyn Dial>,
    pub key: String,
    pub secret: String,
    pub trust: Trust,
    /// Host of the local services. `None`: 127.0.0.1 or `[::1]`, whichever answers.
    pub local_host: Option<String>,
    pub tunnels: Vec<Wanted>,
}

/// Purpose of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Control,
    Stream,
}

/// Opens connections to the control port of a relay.
pub trait Dial: Send + Sync + 'static {
    /// Opens a connection. A stream must reach the same relay as the last control connection.
    fn dial(&self, purpose: Purpose) -> BoxFuture<'_, io::Result<BoxedIo>>;

    /// Returns the name of the relay for messages.
    fn name(&self) -> String;

    /// Returns the user's token for the relay's cluster, if the relay asks for it (`--authorize kubernetes`).
    fn token(&self) -> BoxFuture<'_, io::Result<Option<String>>> {
        Box::pin(async { Ok(None) })
    }

    /// Returns the host name in the relay's certificate and in public addresses.
    fn host(&self) -> String;
}

/// Dials the relay over the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direct {
    pub host: String,
    pub port: u16,
}

impl Dial for Direct {
    fn dial(&self, _: Purpose) -> BoxFuture<'_, io::Result<BoxedIo>> {
        Box::pin(async move {
            let stream = dial::connect(lookup_host((self.host(), self.port)).await?).await?;
            stream.set_nodelay(true)?;
            // With TCP keep-alive, idle streams notice too that the relay has vanished.
            SockRef::from(&stream).set_tcp_keepalive(&Limits::default().tcp_keepalive())?;
            Ok(Box::new(stream) as BoxedIo)
        })
    }

    fn name(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn host(&self) -> String {
        self.host.trim_matches(['[', ']']).to_owned()
    }
}

/// A tunnel that the client requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub local_port: u16,
    pub kind: Kind,
    /// Public port. 0: any.
    pub port: u16,
    /// Public name. Empty: any. For HTTP, `NAME=HOST` also sets the Host header for the local service.
    pub name: String,
}

/// An open tunnel.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Open {
    pub local_port: u16,
    /// `tcp` or `http`.
    pub kind: &'static str,
    /// `relay.example.com:20000`, or `https://web.example.com`.
    pub public: String,
}

/// Errors that a retry does not solve.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    #[error("the relay at {to} refused the client: {reason}")]
    Rejected { to: String, reason: String },
    #[error("the relay at {to} does not have the secret: wrong relay, or a man in the middle")]
    Stranger { to: String },
    #[error("the relay at {to} does not open a tunnel for port {port}: {reason}")]
    Refused { to: String, port: u16, reason: String },
    /// The tunnel was open, and then another client or user restored the Service.
    #[error("the relay at {to} has ended the tunnel for port {port}: {reason}")]
    Undone { to: String, port: u16, reason: String },
    #[error("the certificate of the relay at {to} is not the right one: {reason}")]
    Certificate { to: String, reason: String },
    #[error("there is no adit relay at {to}: the server does not speak its protocol")]
    NoRelay { to: String },
    #[error("{0}")]
    Setup(String),
}

/// Reasons for the end of a control connection.
enum Ended {
    Lost(Over),
    Fatal(Fatal),
    Goodbye(String),
    Drained,
}

impl From<Over> for Ended {
    fn from(over: Over) -> Self {
        Self::Lost(over)
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.into())
    }
}

/// Name or port that the relay assigned, requested again after a reconnect.
#[derive(Clone, Debug, Default)]
struct Given {
    port: u16,
    name: String,
    resume: Token,
}

/// Returns a text of the relay that a terminal may show, cut to a maximum length.
fn shown(text: &str) -> String {
    printable(text).chars().take(LONGEST_SHOWN).collect()
}

/// Returns the user and the host of this process, as far as they are known: `anna@laptop`.
fn user() -> String {
    let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()));
    format!("{}@{}", user.unwrap_or_default(), rustix::system::uname().nodename().to_string_lossy())
}

/// Returns the error of a failed dial. A retry does not change a server's certificate or protocol, so these are fatal.
fn refused(error: io::Error, to: String) -> Ended {
    match tls_error(&error) {
        Some(
            rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol | AlertDescription::ProtocolVersion)
            | rustls::Error::PeerIncompatible(_)
            | rustls::Error::InvalidMessage(_),
        ) => Ended::Fatal(Fatal::NoRelay { to }),
        Some(rustls::Error::General(reason)) => Ended::Fatal(Fatal::Certificate { to, reason: reason.clone() }),
        Some(invalid @ rustls::Error::InvalidCertificate(_)) => {
            Ended::Fatal(Fatal::Certificate { to, reason: invalid.to_string() })
        }
        _ => error.into(),
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// TLS connection to the relay.
type Connection = TlsStream<ReadAhead<BoxedIo>>;

struct Client {
    options: Options,
    /// One per tunnel.
    local_ends: Vec<LocalEnd>,
    config: Arc<ClientConfig>,
    /// One per tunnel. Outlives the client, for the next attempt.
    given: Arc<Mutex<Vec<Given>>>,
    /// From the connections of visitors to the control connection, with room for one state of each tunnel.
    states: mpsc::Sender<ClientState>,
    drain: Drain,
}

impl Client {
    async fn dial(&self, purpose: Purpose) -> io::Result<Connection> {
        let stream = ReadAhead::new(timeout(STEP, self.options.dial.dial(purpose)).await??);
        let name = ServerName::try_from(self.options.dial.host());
        let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        timeout(STEP, TlsConnector::from(self.config.clone()).connect(name, stream)).await?
    }

    /// Opens a control connection, and serves it until it ends.
    async fn once(
        self: Arc<Self>,
        states: mpsc::Receiver<ClientState>,
        tell: &impl Fn(&ClientState),
        was_open: &mut bool,
    ) -> Ended {
        match self.converse(states, tell, was_open).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn converse(
        self: Arc<Self>,
        mut states: mpsc::Receiver<ClientState>,
        tell: &impl Fn(&ClientState),
        was_open: &mut bool,
    ) -> Result<std::convert::Infallible, Ended> {
        let mut tls = tokio::select! {
            dialled = self.dial(Purpose::Control) => dialled.map_err(|error| refused(error, self.options.dial.name()))?,
            () = self.drain.started() => return Err(Ended::Drained),
        };
        let given = self.given.lock().expect("no panic while the lock is held").clone();
        let session = self.authenticate(&mut tls, given.first()).await?;
        conversation::send(&mut tls, &self.requests(&given)).await?;

        let (read, mut write) = tokio::io::split(tls);
        let mut reader = Reader::new(read);
        let (frames, mut waiting) = mpsc::channel::<Frame>(MOST_FRAMES);
        let open = vec![None; self.options.tunnels.len()];
        let mut control = Control { client: self.clone(), session, given, open, frames };
        let mut heard = Instant::now();
        let mut beat = interval(HEARTBEAT);
        loop {
            tokio::select! {
                frame = reader.next() => {
                    heard = Instant::now();
                    if let Some(open) = control.take(frame?)? {
                        *was_open = true;
                        tell(&ClientState::Open(open));
                    }
                }
                Some(state) = states.recv() => tell(&state),
                Some(frame) = waiting.recv() => conversation::send(&mut write, &[frame]).await?,
                _ = beat.tick() => {
                    if heard.elapsed() > DEAD {
                        return Err(Over::Silent(DEAD).into());
                    }
                    conversation::send(&mut write, &[Frame::Ping { cookie: 0 }]).await?;
                }
                () = self.drain.started() => {
                    // With this frame the relay frees our ports at once. An error does not matter: the relay may be gone.
                    let _ = conversation::send(&mut write, &[Frame::Goodbye { reason: "the client ends".to_owned() }]).await;
                    // Bytes that the relay has not read yet are lost with the port-forward. The relay closes once it has read them.
                    let _ = timeout(FAREWELL, async { while reader.next().await.is_ok() {} }).await;
                    return Err(Ended::Drained);
                }
            }
        }
    }

    /// Authenticates both ends, and returns the session. `first`: port or name of the first tunnel before a reconnect.
    async fn authenticate(&self, tls: &mut Connection, first: Option<&Given>) -> Result<Token, Ended> {
        let to = || self.options.dial.name();
        let rejected = |reason: String| Ended::Fatal(Fatal::Rejected { to: to(), reason: shown(&reason) });
        let exporter = tls::exporter(tls.get_ref().1)?;
        let wanted = self.options.tunnels.first().map_or(0, |tunnel| tunnel.port);
        let port = first.map(|given| given.port).filter(|port| *port != 0).unwrap_or(wanted);
        let (nonce, key) = (random::bytes()?, self.options.key.clone());
        conversation::send(tls, &[Frame::Hello { version: 2, nonce, port, key: key.clone() }]).await?;
        let server = match conversation::step(tls).await? {
            Frame::Challenge { nonce } => nonce,
            Frame::Reject { reason } => return Err(rejected(reason)),
            other => return Err(Over::Unexpected(conversation::name(&other)).into()),
        };
        let transcript = Transcript { key, port, client: nonce, server, exporter };
        let proof = transcript.proof(&self.options.secret, Role::Client);
        conversation::send(tls, &[Frame::Proof { proof }]).await?;
        let (session, proof) = match conversation::step(tls).await? {
            Frame::Welcome { session, proof, .. } => (session, proof),
            Frame::Reject { reason } => return Err(rejected(reason)),
            other => return Err(Over::Unexpected(conversation::name(&other)).into()),
        };
        if !transcript.is_proven(&self.options.secret, Role::Server, &proof) {
            return Err(Ended::Fatal(Fatal::Stranger { to: to() }));
        }
        let takes_over = |wanted: &Wanted| matches!(wanted.kind, Kind::Service | Kind::ReplacedService);
        if self.options.tunnels.iter().any(takes_over) {
            // Before the token: a relay that knows no such claims keeps the last Identity.
            conversation::send(tls, &[conversation::claimed_name(&user())]).await?;
        }
        // The token must not leave before the relay is authenticated.
        if let Some(token) = self.options.dial.token().await? {
            conversation::send(tls, &[Frame::Identity { token }]).await?;
        }
        Ok(session)
    }

    /// Returns the frames that request the tunnels, with the ports and names from before a reconnect.
    fn requests(&self, given: &[Given]) -> Vec<Frame> {
        let wanted = self.options.tunnels.iter().enumerate().map(|(at, wanted)| {
            let given = given.get(at).cloned().unwrap_or_default();
            let port = if given.port != 0 { given.port } else { wanted.port };
            let name = match wanted.name.split_once('=') {
                _ if given.name.is_empty() => wanted.name.clone(),
                Some((_, host)) => format!("{}={host}", given.name),
                None => given.name,
            };
            Frame::Open { tunnel: at as u32, kind: wanted.kind, port, resume: given.resume, name }
        });
        wanted.collect()
    }
}

/// A control connection after authentication of both ends.
struct Control {
    client: Arc<Client>,
    session: Token,
    /// Ports and names from before the reconnect, one per tunnel.
    given: Vec<Given>,
    /// `None`: the relay has not opened it yet.
    open: Vec<Option<Open>>,
    /// Queue of frames to send.
    frames: mpsc::Sender<Frame>,
}

impl Control {
    /// Handles a frame of the relay. Returns all tunnels when the last one is open.
    fn take(&mut self, frame: Frame) -> Result<Option<Vec<Open>>, Ended> {
        match frame {
            Frame::Opened { tunnel, port, resume, address } => {
                return Ok(self.opened(tunnel as usize, port, resume, &shown(&address)));
            }
            Frame::Refused { tunnel, reason } => return Err(self.refused(tunnel as usize, shown(&reason))),
            Frame::Incoming { tunnel, stream, peer } => {
                let (client, session, frames) = (self.client.clone(), self.session, self.frames.clone());
                self.client.drain.spawn(async move { client.serve(tunnel, session, stream, peer, frames).await });
            }
            Frame::Prepare { stream } => {
                let (client, session) = (self.client.clone(), self.session);
                self.client.drain.spawn(async move { client.prepare(session, stream).await });
            }
            // If the queue is full, the relay gets other frames, which prove that the client is alive.
            Frame::Ping { cookie } => drop(self.frames.try_send(Frame::Pong { cookie })),
            Frame::Pong { .. } => {}
            Frame::Goodbye { reason } => return Err(Ended::Goodbye(shown(&reason))),
            other => return Err(Over::Unexpected(conversation::name(&other)).into()),
        }
        Ok(None)
    }

    fn opened(&mut self, at: usize, port: u16, resume: Token, address: &str) -> Option<Vec<Open>> {
        let options = &self.client.options;
        let wanted = options.tunnels.get(at)?;
        let (kind, public) = match wanted.kind {
            Kind::Tcp => ("tcp", format!("{}:{port}", options.dial.host())),
            Kind::Http => ("http", address.to_owned()),
            Kind::Service | Kind::ReplacedService => ("service", address.to_owned()),
        };
        let given = match wanted.kind {
            Kind::Tcp => Given { port, name: String::new(), resume },
            Kind::Http => {
                let host = address.split("://").nth(1);
                let name = host.and_then(|host| host.split('.').next()).unwrap_or_default().to_owned();
                Given { port: 0, name, resume }
            }
            // The client requests the Service's name again each time.
            Kind::Service | Kind::ReplacedService => Given { port: 0, name: String::new(), resume },
        };
        // Saved at once: if the connection breaks before the other tunnels are open, this one must keep its port.
        if let Some(known) = self.client.given.lock().expect("no panic while the lock is held").get_mut(at) {
            *known = given;
        }
        self.open[at] = Some(Open { local_port: wanted.local_port, kind, public });
        self.open.iter().cloned().collect()
    }

    fn refused(&self, at: usize, reason: String) -> Ended {
        let Options { dial, tunnels, .. } = &self.client.options;
        let (to, port) = (dial.name(), tunnels.get(at).map_or(0, |wanted| wanted.local_port));
        let is_open = self.open.get(at).is_some_and(Option::is_some);
        let was_given = self.given.get(at).is_some_and(|given| given.resume != [0; 16]);
        match (is_open, was_given) {
            (true, _) => Ended::Fatal(Fatal::Undone { to, port, reason }),
            // After a lost connection the relay may still hold our old tunnel, so a retry can help.
            (false, true) => Over::Rejected(reason).into(),
            (false, false) => Ended::Fatal(Fatal::Refused { to, port, reason }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_cannot_write_to_a_terminal() {
        assert_eq!(shown("no\u{1b}[2J\u{7}"), "no [2J");
        assert_eq!(shown(&"x".repeat(100_000)).len(), LONGEST_SHOWN);
    }
}
