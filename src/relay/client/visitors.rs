//! Visitors of a client's tunnels. Each gets a connection to the local service, and a connection to the relay, which
//! later visitors reuse.

use std::{io, time::Duration};

use socket2::SockRef;
use tokio::{sync::mpsc, time::timeout};
use tracing::{debug, info, warn};

use super::{Client, Connection, Purpose, first_answer::FirstAnswer, local_end::Unreached};
use crate::{
    io::{
        accept::Limits,
        splice::{Side, splice},
    },
    relay::{
        auth,
        backend::MANY,
        carrier::Carrier,
        conversation::{self, Over},
        tls,
    },
    wire::relay::{Frame, Token},
};

/// How long a connection waits for its next visitor. A relay closes it long before; if it does not, the relay is gone.
const LONGEST_WAIT: Duration = Duration::from_secs(90);

/// A visitor, and the connection to the local service for it.
struct Visit {
    peer: String,
    local_end: String,
    local: FirstAnswer,
}

/// Reasons why a visitor does not reach the local service.
#[derive(Debug, thiserror::Error)]
enum Unserved {
    #[error("there is no such tunnel")]
    NoTunnel,
    #[error(transparent)]
    Unreached(#[from] Unreached),
}

impl Client {
    /// Serves a visitor, then further visitors that the relay sends on the same connection.
    pub(super) async fn serve(
        &self,
        tunnel: u32,
        session: Token,
        stream: Token,
        peer: String,
        frames: mpsc::Sender<Frame>,
    ) {
        // Connects to the local service first, so that a visitor gets the error of a service that is down before its
        // stream exists.
        let visit = match self.receive(tunnel, peer).await {
            Ok(visit) => visit,
            // Without this frame, the visitor waits for the timeout of the relay.
            Err(error) => {
                return drop(frames.send(Frame::Decline { stream, reason: error.to_string() }).await);
            }
        };
        match self.claim(session, stream).await {
            Ok(connection) => self.carry_all(connection, Some(visit)).await,
            Err(error) => debug!(peer = visit.peer, %error, "a visitor's stream was not opened"),
        }
    }

    /// Opens a connection ahead of need, and serves the visitors that the relay sends on it.
    pub(super) async fn prepare(&self, session: Token, stream: Token) {
        match self.claim(session, stream).await {
            Ok(connection) => self.carry_all(connection, None).await,
            Err(error) => debug!(%error, "no connection ahead of need"),
        }
    }

    /// Serves one visitor after another on a connection, as long as it can be reused.
    async fn carry_all(&self, mut connection: Connection, mut first: Option<Visit>) {
        loop {
            let visit = match first.take() {
                Some(visit) => visit,
                None => tokio::select! {
                    next = self.next(&mut connection) => match next {
                        Ok(visit) => visit,
                        Err(_) => return,
                    },
                    () = self.drain.started() => return,
                },
            };
            connection = match carry(connection, visit).await {
                Some(ended) => ended,
                None => return,
            };
        }
    }

    /// Connects to the local service of a tunnel for a visitor.
    ///
    /// # Errors
    /// Fails if the service does not answer.
    async fn receive(&self, tunnel: u32, peer: String) -> Result<Visit, Unserved> {
        let tunnel = tunnel as usize;
        let local_end = self.local_ends.get(tunnel).ok_or(Unserved::NoTunnel)?;
        let wanted = self.options.tunnels.get(tunnel).ok_or(Unserved::NoTunnel)?;
        match local_end.connect().await {
            Ok(local) => {
                // Both fail only on a socket that is already closed.
                let _ = local.set_nodelay(true);
                let _ = SockRef::from(&local).set_tcp_keepalive(&Limits::default().tcp_keepalive());
                let local = FirstAnswer::new(local, local_end, wanted, self.states.clone());
                Ok(Visit { peer, local_end: local_end.to_string(), local })
            }
            Err(error) => {
                warn!(peer = known(&peer), %error, "no local service: visitor refused");
                Err(error.into())
            }
        }
    }

    /// Opens the connection for a waiting visitor.
    async fn claim(&self, session: Token, stream: Token) -> Result<Connection, Over> {
        let mut connection = self.dial(Purpose::Stream).await?;
        let exporter = tls::exporter(connection.get_ref().1)?;
        let proof = auth::claim(&self.options.secret, &session, &stream, &exporter);
        conversation::send(&mut connection, &[Frame::Claim { session, stream, proof }]).await?;
        match conversation::step(&mut connection).await? {
            Frame::StreamAccept => Ok(connection),
            Frame::StreamReject { reason } => Err(Over::Rejected(reason)),
            other => Err(Over::Unexpected(conversation::name(&other))),
        }
    }

    /// Waits for the next visitor of a connection.
    async fn next(&self, connection: &mut Connection) -> Result<Visit, Over> {
        loop {
            let waiting = timeout(LONGEST_WAIT, conversation::receive(connection));
            let (tunnel, peer) = match waiting.await.map_err(|_| Over::Silent(LONGEST_WAIT))?? {
                Frame::Start { tunnel, peer } => (tunnel, peer),
                other => return Err(Over::Unexpected(conversation::name(&other))),
            };
            match self.receive(tunnel, peer).await {
                Ok(visit) => {
                    conversation::send(connection, &[Frame::StreamAccept]).await?;
                    return Ok(visit);
                }
                Err(error) => {
                    conversation::send(connection, &[Frame::StreamReject { reason: error.to_string() }]).await?;
                }
            }
        }
    }
}

/// Returns the address of a visitor. `None`: the stream is for requests of several visitors.
fn known(peer: &str) -> Option<&str> {
    Some(peer).filter(|peer| *peer != MANY.to_string())
}

/// Carries a visitor's bytes. Returns the connection if it can be reused.
async fn carry(connection: Connection, visit: Visit) -> Option<Connection> {
    let Visit { peer, local_end, mut local } = visit;
    let mut stream = Carrier::new(connection);
    let end = splice(&mut stream, &mut local).await;
    let broken: Option<&(Side, io::Error)> = end.broken.as_ref();
    let peer = known(&peer);
    info!(target: "adit::access", peer, local = local_end, up = end.up, down = end.down, ?broken, "relayed connection");
    stream.into_inner()
}
