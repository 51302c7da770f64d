//! Visitors of tunnels, and the clients' connections that the relay joins them with.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    io::AsyncWrite,
    net::{TcpListener, TcpStream},
    sync::{mpsc::error::TrySendError, oneshot},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    Server,
    quotas::Quota,
    refused::VisitorError,
    tunnels::{ClaimEnd, Tunnel},
    usage::Counting,
};
use crate::{
    io::{
        BoxedIo, Io,
        accept::{self, Place},
        held::Held,
        splice::splice,
    },
    random,
    relay::{
        conversation::{self, Over},
        personal::Passage,
        reservations::Awaited,
    },
    wire::relay::{Frame, Token, Uuid},
};

/// How long a visitor waits for a client's connection.
const VISITOR_WAITS: Duration = Duration::from_secs(30);

/// The same for a visitor of a takeover that the pods could serve: a laptop that sleeps must not stop the Service until its
/// session is dead.
const VISITOR_OF_PODS_WAITS: Duration = Duration::from_secs(5);

/// Pause between two looks at the pods and the API server, for a visitor that has waited so long.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum StreamName {
    V1(Uuid),
    V2(Token),
}

pub(super) struct Pending {
    pub(super) session: Token,
    pub(super) to: oneshot::Sender<Result<BoxedIo, VisitorError>>,
}

impl Server {
    /// Accepts visitors of a public port. `after`: where visitors go after the tunnel is gone, until the future resolves.
    pub(super) async fn serve_port(
        self: Arc<Self>,
        listener: Arc<TcpListener>,
        tunnel: Arc<Tunnel>,
        after: Option<(Passage, impl Future<Output = ()> + Send)>,
    ) {
        let passage = after.as_ref().map(|(passage, _)| passage.clone());
        let serve = |visitor: TcpStream, peer: SocketAddr, place: Place| {
            // The relay does not know the visitor's protocol, in which the server may speak first.
            place.settle();
            let (this, tunnel, passage) = (self.clone(), tunnel.clone(), passage.clone());
            // Not bound to the tunnel's end: the stream has its own connection.
            self.drain.spawn(async move {
                match (this.visit(visitor, peer, &tunnel, passage.as_ref()).await, passage) {
                    (Some(visitor), Some(passage)) => passage.pass(&this, visitor, peer, place).await,
                    (Some(mut visitor), None) => visitor.reset(),
                    (None, _) => drop(place),
                }
            });
        };
        let refuse = |mut visitor: TcpStream, _| {
            self.counters.refused_visitors.fetch_add(1, Ordering::Relaxed);
            visitor.reset();
            async {}
        };
        let ended = async {
            tunnel.gone.cancelled().await;
            if tunnel.exposed.is_some() {
                return;
            }
            // The client may return. Visitors wait until it has the port again.
            let awaited = self.state().reservations.awaited(&tunnel.public());
            if let Some(Awaited { until, over }) = awaited
                && timeout_at(until, over.cancelled()).await.is_err()
            {
                drop(self.state().reservations.listener(tunnel.port));
            }
        };
        tokio::select! {
            never = accept::accept(&listener, &self.visitors, 1, serve, refuse) => match never {},
            () = ended => {}
            () = self.drain.started() => {}
        }
        // If another tunnel takes the port over, it binds the port and serves the visitors itself.
        let mut end = tunnel.end.subscribe();
        let listener = Some(listener).filter(|_| !matches!(*end.borrow(), ClaimEnd::TakenOver));
        let end = tokio::select! {
            biased;
            () = self.drain.started() => ClaimEnd::GivenBack(None),
            end = end.wait_for(|end| !matches!(end, ClaimEnd::TakenOver)) => end.map_or(ClaimEnd::Over, |end| end.clone()),
        };
        let listener = match end {
            ClaimEnd::GivenBack(of_new) => of_new.or(listener),
            _ => None,
        };
        if let Some(((passage, back), listener)) = after.zip(listener) {
            let over = CancellationToken::new();
            self.state().passing.insert(tunnel.port, over.clone());
            let is_needed = tokio::select! {
                () = passage.serve(&self, &listener, back) => false,
                () = over.cancelled() => true,
            };
            self.state().passing.remove(&tunnel.port);
            if is_needed {
                return;
            }
        }
        if tunnel.exposed.is_some() {
            // The Service has its pods again. A client that returns later can have any port.
            self.state().reservations.release(&tunnel.public(), &tunnel.resume);
        }
    }

    /// Joins a visitor with the client of a tunnel. If the client is gone, or pods could serve the visitor and the client does
    /// not answer, returns the visitor, from which nothing was read.
    async fn visit(
        &self,
        mut visitor: TcpStream,
        peer: SocketAddr,
        tunnel: &Arc<Tunnel>,
        passage: Option<&Passage>,
    ) -> Option<TcpStream> {
        let mut asking = pin!(self.stream(tunnel, peer));
        let asked = match passage {
            Some(passage) if tunnel.session.is_silent() && passage.has_pods() => return Some(visitor),
            Some(passage) => tokio::select! {
                biased;
                asked = &mut asking => asked,
                () = self.waited_for_long(passage) => {
                    tunnel.session.did_not_answer(VISITOR_OF_PODS_WAITS);
                    return Some(visitor);
                }
            },
            None => asking.await,
        };
        let mut stream = match asked {
            Ok(stream) => stream,
            Err(error) => {
                debug!(%peer, port = tunnel.port, %error, "relay: visitor refused");
                if matches!(error, VisitorError::ClientGone) {
                    return Some(visitor);
                }
                visitor.reset();
                return None;
            }
        };
        let end = splice(&mut visitor, &mut stream).await;
        self.counters.up.fetch_add(end.up, Ordering::Relaxed);
        self.counters.down.fetch_add(end.down, Ordering::Relaxed);
        None
    }

    /// Waits until a visitor of a takeover should go to the pods: it has waited for long, and the client sleeps or is gone.
    ///
    /// The connection of a client leads through the API server. While that hangs, each client is silent, and none has left.
    async fn waited_for_long(&self, passage: &Passage) {
        sleep(VISITOR_OF_PODS_WAITS).await;
        while !(passage.has_pods() && self.hears_api_server().await) {
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn hears_api_server(&self) -> bool {
        match &self.options.exposer {
            Some(exposer) => exposer.hears_api_server(VISITOR_OF_PODS_WAITS).await,
            None => true,
        }
    }

    /// Opens a stream to the client of a tunnel, on an idle connection or on a new one. Waits for a lost client.
    ///
    /// # Errors
    /// Fails if there are too many streams, if the client does not answer, or if it declines.
    pub async fn stream(&self, tunnel: &Arc<Tunnel>, peer: SocketAddr) -> Result<BoxedIo, VisitorError> {
        self.counters.visitors.fetch_add(1, Ordering::Relaxed);
        let (mut tunnel, mut asked) = (tunnel.clone(), self.ask(tunnel, peer).await);
        while let Err(VisitorError::ClientGone) = asked {
            let Some(_waiting) = StreamCount::new(&tunnel, self.options.limits.streams_per_tunnel) else { break };
            let Some(next) = self.successor(&tunnel).await else { break };
            asked = self.ask(&next, peer).await;
            tunnel = next;
        }
        let tunnel = &tunnel;
        tunnel.usage.visitors.fetch_add(1, Ordering::Relaxed);
        if let Err(reason) = &asked {
            tunnel.usage.refused.fetch_add(1, Ordering::Relaxed);
            self.refused(peer, &self.shown(tunnel), &reason.to_string());
        }
        asked
    }

    pub(super) async fn ask(&self, tunnel: &Arc<Tunnel>, peer: SocketAddr) -> Result<BoxedIo, VisitorError> {
        if tunnel.gone.is_cancelled() {
            return Err(VisitorError::ClientGone);
        }
        let limits = &self.options.limits;
        let used_up = |quota| self.notices.used_up(quota, limits, &self.shown(tunnel));
        if !tunnel.takes_another(limits.visitors_per_second) {
            return Err(used_up(Quota::Rate).into());
        }
        let count = StreamCount::new(tunnel, limits.streams_per_tunnel).ok_or_else(|| used_up(Quota::Streams))?;
        tunnel.session.came();
        let started = tunnel.session.start(tunnel.id, peer).await;
        if let Some(answer) = started {
            tunnel.session.prepare();
            return Ok(Box::new(Held::new(Counting::new(answer?, tunnel.clone()), count)));
        }
        // Limits a burst: the client dials one connection per visitor, and all at once would be slower.
        let turn = tokio::select! {
            turn = timeout(VISITOR_WAITS, tunnel.turns.acquire()) => turn,
            () = tunnel.gone.cancelled() => return Err(VisitorError::ClientGone),
        };
        let Ok(Ok(turn)) = turn else { return Err(used_up(Quota::Pending).into()) };
        // A stream that ended meanwhile may have left an idle connection.
        if let Some(answer) = tunnel.session.start(tunnel.id, peer).await {
            return Ok(Box::new(Held::new(Counting::new(answer?, tunnel.clone()), count)));
        }
        let (name, frame) = if tunnel.session.is_v1 {
            let stream = new_uuid()?;
            (StreamName::V1(stream), Frame::Connect { stream })
        } else {
            let stream = random::bytes()?;
            (StreamName::V2(stream), Frame::Incoming { tunnel: tunnel.id, stream, peer: peer.to_string() })
        };
        let (to, from) = oneshot::channel();
        self.state().pending.insert(name, Pending { session: tunnel.session.token, to });
        let _forgotten = Forgotten { server: self, name };
        tunnel.session.frames.try_send(frame).map_err(|error| match error {
            TrySendError::Full(_) => VisitorError::Slow,
            TrySendError::Closed(_) => VisitorError::ClientGone,
        })?;
        let asked = Instant::now();
        let answered = tokio::select! {
            biased;
            answered = timeout(VISITOR_WAITS, from) => answered.map_err(|_| VisitorError::Absent)?,
            // The client may be back with another session, while the old one is silent.
            () = tunnel.gone.cancelled() => return Err(VisitorError::ClientGone),
        };
        let stream = answered.map_err(|_| VisitorError::ClientGone)??;
        tunnel.session.made(asked.elapsed());
        // Requested after the visitor's own connection, which must come first.
        tunnel.session.prepare();
        drop(turn);
        Ok(Box::new(Held::new(Counting::new(stream, tunnel.clone()), count)))
    }

    /// Finds the visitor that a client's connection is for, and answers the client.
    pub(super) async fn join<S>(
        &self,
        connection: &mut S,
        name: StreamName,
        session: Option<Token>,
    ) -> Result<Option<Pending>, Over>
    where
        S: AsyncWrite + Unpin,
    {
        let pending = {
            let mut state = self.state();
            let is_theirs = state.pending.get(&name).is_some_and(|pending| Some(pending.session) == session);
            if is_theirs { state.pending.remove(&name) } else { None }
        };
        let answer = match &pending {
            Some(_) => Frame::StreamAccept,
            None => Frame::StreamReject { reason: "nobody waits for this stream".to_owned() },
        };
        conversation::send(connection, &[answer]).await?;
        Ok(pending)
    }
}

/// Counts a visitor of a tunnel until its stream is dropped.
struct StreamCount(Arc<Tunnel>);

impl StreamCount {
    /// Returns `None` if the tunnel has its maximum number of streams.
    fn new(tunnel: &Arc<Tunnel>, most: usize) -> Option<Self> {
        let count = Self(tunnel.clone());
        (tunnel.streams.fetch_add(1, Ordering::Relaxed) < most).then_some(count)
    }
}

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Removes the pending entry of a visitor that no longer waits.
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
    let mut bytes: Token = random::bytes()?;
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
