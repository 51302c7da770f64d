//! Idle connections of a client, ready for the next visitor. They have carried other streams, or were opened ahead of
//! need.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::server::TlsStream;

use super::{Session, demand::Demand, refused::VisitorError};
use crate::{
    io::{BoxedIo, Io, read_ahead::ReadAhead},
    random,
    relay::{carrier::Carrier, conversation},
    wire::relay::{Frame, Token},
};

/// A connection of a client.
pub(super) type Connection = TlsStream<ReadAhead<TcpStream>>;

/// How long a connection may be idle. Shorter than the idle timeout of NATs.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Maximum number of idle connections per client.
const MOST: usize = 64;

/// Time for a client to answer on an idle connection. After that the connection may be dead, and the relay requests
/// another.
const ANSWER: Duration = Duration::from_secs(1);

/// Time after which a requested connection no longer counts as pending.
const LONGEST_PREPARED: Duration = Duration::from_secs(10);

/// Connections requested ahead of need for one client, and its demand.
#[derive(Default)]
pub(super) struct Ready {
    demand: Demand,
    /// Requested connections, and when.
    asked: HashMap<Token, Instant>,
}

/// Idle connections of one client. `None`: the client is gone.
pub(super) struct Idle(Mutex<Option<Vec<(Connection, Instant)>>>);

impl Idle {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }

    fn with<R>(&self, change: impl FnOnce(&mut Vec<(Connection, Instant)>) -> R) -> Option<R> {
        self.0.lock().expect("no panic while the lock is held").as_mut().map(change)
    }

    pub(super) fn put(&self, connection: Connection) {
        self.with(|waiting| {
            if waiting.len() < MOST {
                waiting.push((connection, Instant::now()));
            }
        });
    }

    /// Takes the connection with the shortest wait that the client has not closed.
    fn take(&self) -> Option<Connection> {
        self.with(|waiting| {
            while let Some((mut connection, _)) = waiting.pop() {
                if is_silent(&mut connection) {
                    return Some(connection);
                }
            }
            None
        })?
    }

    /// Closes connections that were idle for too long.
    pub(super) fn sweep(&self) {
        self.with(|waiting| waiting.retain(|(_, since)| since.elapsed() < LONGEST_WAIT));
    }

    fn count(&self) -> usize {
        self.with(|waiting| waiting.len()).unwrap_or(0)
    }

    /// Closes all: one of them was dead, so perhaps all are.
    fn distrust(&self) {
        self.with(Vec::clear);
    }

    /// Closes all, and from now on accepts none.
    pub(super) fn close(&self) {
        drop(self.0.lock().expect("no panic while the lock is held").take());
    }
}

/// Returns whether nothing can be read. Between two streams a client sends nothing, so readable bytes mean the end.
fn is_silent(connection: &mut Connection) -> bool {
    let mut byte = [0];
    let polled = Pin::new(connection).poll_read(&mut Context::from_waker(Waker::noop()), &mut ReadBuf::new(&mut byte));
    polled.is_pending()
}

impl Session {
    /// Gives a visitor an idle connection. `None`: the client answers on none of them, and does not know of the visitor.
    ///
    /// # Errors
    /// Fails if the client's service is down.
    pub(super) async fn start(
        self: &Arc<Self>,
        tunnel: u32,
        peer: SocketAddr,
    ) -> Option<Result<BoxedIo, VisitorError>> {
        let mut connection = self.idle.take()?;
        let asking = async {
            let start = Frame::Start { tunnel, peer: peer.to_string() };
            conversation::send(&mut connection, &[start]).await?;
            conversation::receive(&mut connection).await
        };
        match timeout(ANSWER, asking).await {
            Ok(Ok(Frame::StreamAccept)) => Some(Ok(Box::new(Lent::new(connection, self.clone())))),
            Ok(Ok(Frame::StreamReject { reason })) => {
                self.idle.put(connection);
                Some(Err(VisitorError::Declined(reason)))
            }
            Ok(_) | Err(_) => {
                self.idle.distrust();
                None
            }
        }
    }

    /// Records a visitor.
    pub(super) fn came(&self) {
        self.ready().demand.came(Instant::now());
    }

    /// Records how long a visitor waited for a new connection.
    pub(super) fn made(&self, took: Duration) {
        self.ready().demand.made(took);
    }

    /// Requests the connections that are missing for the demand.
    pub(super) fn prepare(&self) {
        if self.is_v1 {
            return;
        }
        let (mut ready, now) = (self.ready(), Instant::now());
        ready.asked.retain(|_, since| now.duration_since(*since) < LONGEST_PREPARED);
        let wanted = ready.demand.wanted(now).min(MOST);
        for _ in self.idle.count() + ready.asked.len()..wanted {
            let Ok(stream) = random::bytes() else { return };
            if self.frames.try_send(Frame::Prepare { stream }).is_err() {
                return;
            }
            ready.asked.insert(stream, now);
        }
    }

    /// Returns whether a connection was requested ahead of need. Returns true only once per connection.
    pub(super) fn is_prepared(&self, stream: &Token) -> bool {
        let mut ready = self.ready();
        let asked = ready.asked.remove(stream);
        asked.inspect(|since| ready.demand.made(since.elapsed())).is_some()
    }

    fn ready(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().expect("no panic while the lock is held")
    }
}

/// Stream of a visitor. If both directions end, its connection becomes idle again.
pub(super) struct Lent {
    stream: Option<Carrier<Connection>>,
    session: Arc<Session>,
}

impl Lent {
    pub(super) fn new(connection: Connection, session: Arc<Session>) -> Self {
        Self { stream: Some(Carrier::new(connection)), session }
    }

    fn stream(&mut self) -> Pin<&mut Carrier<Connection>> {
        Pin::new(self.stream.as_mut().expect("it is taken at the end alone"))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = self.stream.take().and_then(Carrier::into_inner) {
            self.session.idle.put(connection);
        }
    }
}

impl AsyncRead for Lent {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buf)
    }
}

impl AsyncWrite for Lent {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}

impl Io for Lent {}
