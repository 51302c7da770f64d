//! Connection of frames, kept alive by pings: the base of WebSockets, and of an exec over SPDY.
//!
//! Gateways close connections that are idle for 60 s, and some earlier. So a task sends a ping every 5 s, even if no task
//! reads. A connection that leaves two pings unanswered is dead, unless data is in flight: pings behind the data of a pod
//! that does not read may wait for any time. Then only TCP keep-alive decides.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::AsyncWrite,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::io::poll_read_buf;

use super::reach::of_io;
use crate::io::BoxedIo;

/// Size of one read, and maximum payload of a sent frame.
pub const PIECE: usize = 64 * 1024;

/// Writers wait while more bytes than this are unsent.
const MOST_UNSENT: usize = 128 * 1024;

/// Ping interval: that of kubectl, and below the idle timeout of every gateway.
const PING_EVERY: Duration = Duration::from_secs(5);

/// A connection is dead if no byte has arrived for this long, and a ping is unanswered for [`PING_EVERY`].
const SILENCE: Duration = Duration::from_secs(15);

/// With more bytes than this in flight, silence proves nothing: the pod may not read. Fewer bytes fit into any buffer.
const LITTLE: u64 = 4 * 1024;

/// Time for the peer to answer our Close.
const END_WITHIN: Duration = Duration::from_secs(10);

/// Maximum number of recorded unanswered pings: more than an hour during which the peer does not read.
const MOST_PINGS: usize = 1024;

/// Frames of a protocol.
pub trait Codec: Send + 'static {
    type Item;

    /// Takes the next frame from `input`. `None`: more bytes are needed.
    ///
    /// # Errors
    /// Fails if the rest of the connection cannot be parsed.
    fn next(&mut self, input: &mut BytesMut) -> io::Result<Option<Incoming<Self::Item>>>;

    /// Appends ping number `number`.
    fn put_ping(&mut self, number: u32, out: &mut BytesMut);

    /// Appends the answer to a ping.
    fn put_pong(&mut self, payload: &[u8], out: &mut BytesMut);

    /// Appends the frame that closes the connection.
    fn put_close(&mut self, out: &mut BytesMut);
}

/// A received message.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<I> {
    Item(I),
    Ping(Bytes),
    Pong,
    /// The protocol's close frame. `Err`: a close that reports missing data.
    Close(Result<(), String>),
}

/// Connection of frames. Dropping it closes the connection.
pub struct Framed<C: Codec> {
    core: Arc<Mutex<Core<C>>>,
    keeper: JoinHandle<()>,
}

struct Core<C> {
    io: BoxedIo,
    codec: C,
    received: BytesMut,
    unsent: BytesMut,
    needs_flush: bool,
    /// Latest unanswered ping of the peer. Older ones need no answer (RFC 6455, section 5.5.3).
    pong: Option<Bytes>,
    end: Option<Result<(), Broken>>,
    /// Time when our Close frame was queued.
    closed: Option<Instant>,
    senders: Arc<Senders>,
    reader: Option<Waker>,
    life: Life,
}

/// Reason why the connection broke, for every caller.
#[derive(Clone, Debug)]
struct Broken {
    kind: io::ErrorKind,
    reason: String,
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self { kind: error.kind(), reason: of_io(&error) }
    }
}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        Self::new(broken.kind, broken.reason)
    }
}

/// Wakers of all tasks that send. The socket keeps only the last waker per direction, so it gets one that wakes them all.
#[derive(Default)]
struct Senders {
    wakers: Mutex<[Option<Waker>; 3]>,
}

#[derive(Clone, Copy)]
enum Sender {
    /// Sends the answers to pings.
    Reader,
    Writer,
    Keeper,
}

impl Senders {
    fn wait(&self, sender: Sender, waker: &Waker) {
        let mut wakers = self.wakers.lock().expect("no panic while the lock is held");
        let known = &mut wakers[sender as usize];
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }
}

impl Wake for Senders {
    fn wake(self: Arc<Self>) {
        let wakers = std::mem::take(&mut *self.wakers.lock().expect("no panic while the lock is held"));
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl<C: Codec> Framed<C> {
    pub fn new(io: BoxedIo, codec: C) -> Self {
        let core = Arc::new(Mutex::new(Core {
            io,
            codec,
            received: BytesMut::new(),
            unsent: BytesMut::new(),
            needs_flush: false,
            pong: None,
            end: None,
            closed: None,
            senders: Arc::default(),
            reader: None,
            life: Life::new(Instant::now()),
        }));
        let keeper = tokio::spawn(keep(Arc::downgrade(&core)));
        Self { core, keeper }
    }

    fn lock(&self) -> MutexGuard<'_, Core<C>> {
        self.core.lock().expect("no panic while the lock is held")
    }

    /// Returns the next item. `None`: the peer has closed the connection cleanly.
    ///
    /// # Errors
    /// Fails if the connection broke, or was silent for too long.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<C::Item>>> {
        let core = &mut *self.lock();
        loop {
            if let Some(end) = &core.end {
                return Poll::Ready(end.clone().map(|()| None).map_err(io::Error::from));
            }
            match core.codec.next(&mut core.received) {
                Ok(Some(Incoming::Item(item))) => {
                    core.life.is_awaited = false;
                    return Poll::Ready(Ok(Some(item)));
                }
                Ok(Some(Incoming::Ping(payload))) => core.pong = Some(payload),
                Ok(Some(Incoming::Pong)) => core.life.answered(),
                Ok(Some(Incoming::Close(end))) => {
                    let broken = |reason| Broken { kind: io::ErrorKind::Other, reason };
                    core.end = Some(if core.closed.is_some() { Ok(()) } else { end.map_err(broken) });
                }
                Ok(None) => {
                    // The next read returns the error.
                    let _ = core.poll_send(Sender::Reader, cx);
                    core.received.reserve(PIECE);
                    match poll_read_buf(Pin::new(&mut core.io), cx, &mut core.received) {
                        Poll::Ready(Ok(0)) => core.end = Some(core.ended()),
                        Poll::Ready(Ok(_)) => (core.life.inbound, core.life.has_heard) = (Instant::now(), true),
                        Poll::Ready(Err(error)) => core.end = Some(Err(error.into())),
                        Poll::Pending => {
                            core.life.wait(Instant::now());
                            core.reader = Some(cx.waker().clone());
                            return Poll::Pending;
                        }
                    }
                }
                Err(error) => core.end = Some(Err(error.into())),
            }
        }
    }

    /// Queues an extra ping.
    pub fn ping(&self) {
        self.lock().ping();
    }

    /// Returns whether any byte has arrived.
    pub fn has_heard(&self) -> bool {
        self.lock().life.has_heard
    }

    /// Waits until there is room for another frame.
    ///
    /// # Errors
    /// Fails if the connection broke.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let core = &mut *self.lock();
        if core.unsent.len() > MOST_UNSENT {
            ready!(core.poll_send(Sender::Writer, cx))?;
        }
        Poll::Ready(core.check())
    }

    /// Queues a frame, which the next [`poll_flush`](Self::poll_flush) sends. Wait for [`poll_ready`](Self::poll_ready)
    /// first.
    pub fn put(&self, frame: impl FnOnce(&mut C, &mut BytesMut)) {
        self.lock().put(frame);
    }

    /// Sends the queued frames.
    ///
    /// # Errors
    /// Fails if the connection broke.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().poll_send(Sender::Writer, cx)
    }

    /// Queues a close frame, once. The peer must answer within 10 s.
    pub fn close(&self) {
        let mut core = self.lock();
        if core.closed.is_none() {
            core.closed = Some(Instant::now());
            core.put(Codec::put_close);
        }
    }

    /// Sends the close frame, then shuts down the connection.
    ///
    /// # Errors
    /// Fails if the connection broke.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        let core = &mut *self.lock();
        ready!(core.poll_send(Sender::Writer, cx))?;
        Pin::new(&mut core.io).poll_shutdown(cx)
    }
}

impl<C: Codec> Drop for Framed<C> {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl<C: Codec> Core<C> {
    fn put(&mut self, frame: impl FnOnce(&mut C, &mut BytesMut)) {
        let before = self.unsent.len();
        frame(&mut self.codec, &mut self.unsent);
        self.life.put += (self.unsent.len() - before) as u64;
    }

    fn check(&self) -> io::Result<()> {
        match &self.end {
            Some(Err(broken)) => Err(broken.clone().into()),
            _ => Ok(()),
        }
    }

    /// Classifies an EOF without a Close frame.
    fn ended(&self) -> Result<(), Broken> {
        match self.closed {
            Some(_) => Ok(()),
            None => Err(Broken {
                kind: io::ErrorKind::ConnectionAborted,
                reason: "the API server or a gateway closed the connection".to_owned(),
            }),
        }
    }

    fn poll_send(&mut self, sender: Sender, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        if self.unsent.len() <= MOST_UNSENT
            && let Some(payload) = self.pong.take()
        {
            self.put(|codec, out| codec.put_pong(&payload, out));
        }
        if self.unsent.is_empty() && !self.needs_flush {
            return Poll::Ready(Ok(()));
        }
        self.senders.wait(sender, cx.waker());
        let waker = Waker::from(self.senders.clone());
        let cx = &mut Context::from_waker(&waker);
        while !self.unsent.is_empty() {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, &self.unsent))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(count);
            self.needs_flush = true;
            self.life.sent(count, Instant::now());
        }
        // Frees the buffer, so that an idle connection has none.
        self.unsent = BytesMut::new();
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.needs_flush = false;
        Poll::Ready(Ok(()))
    }

    /// Does the periodic work. Returns whether the connection still needs it.
    fn keep(&mut self, now: Instant) -> bool {
        if self.end.is_some() {
            return false;
        }
        if self.life.is_dead(now) || self.closed.is_some_and(|at| now >= at + END_WITHIN) {
            let reason = "the connection is silent, and answers no ping".to_owned();
            self.end = Some(Err(Broken { kind: io::ErrorKind::TimedOut, reason }));
            self.reader.take().into_iter().for_each(Waker::wake);
            Waker::from(self.senders.clone()).wake();
            return false;
        }
        // If the connection does not accept our bytes, it is not idle, and a ping would only wait behind them.
        if self.closed.is_none() && self.unsent.is_empty() {
            self.ping();
        }
        true
    }

    fn ping(&mut self) {
        let number = self.life.next_ping();
        self.put(|codec, out| codec.put_ping(number, out));
        self.life.pinged();
    }
}

/// Sends pings and queued frames as long as the connection is in use.
async fn keep<C: Codec>(core: Weak<Mutex<Core<C>>>) {
    let mut at = Instant::now() + PING_EVERY;
    loop {
        sleep_until(at).await;
        at = Instant::now() + PING_EVERY;
        let sending = poll_fn(|cx| {
            let Some(core) = core.upgrade() else { return Poll::Ready(()) };
            let mut core = core.lock().expect("no panic while the lock is held");
            // The error is ignored, because readers and writers get it too.
            core.poll_send(Sender::Keeper, cx).map(drop)
        });
        {
            let Some(core) = core.upgrade() else { return };
            if !core.lock().expect("no panic while the lock is held").keep(Instant::now()) {
                return;
            }
        }
        let _ = timeout_at(at, sending).await;
    }
}

/// Liveness of the connection.
struct Life {
    /// Time of the last arrived bytes, or when a task started to wait for bytes.
    inbound: Instant,
    has_heard: bool,
    /// Whether a task waits for bytes. Without one, nothing is read, so silence means nothing.
    is_awaited: bool,
    pings: VecDeque<Ping>,
    last_ping: u32,
    /// Number of bytes put into frames, of these accepted by the socket, and of these certainly arrived.
    put: u64,
    sent: u64,
    arrived: u64,
}

struct Ping {
    /// Number of bytes put before and with this ping.
    end: u64,
    sent: Option<Instant>,
}

impl Life {
    fn new(now: Instant) -> Self {
        Self {
            inbound: now,
            has_heard: false,
            is_awaited: false,
            pings: VecDeque::new(),
            last_ping: 0,
            put: 0,
            sent: 0,
            arrived: 0,
        }
    }

    fn wait(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.is_awaited, true) {
            self.inbound = now;
        }
    }

    fn next_ping(&mut self) -> u32 {
        self.last_ping = self.last_ping.wrapping_add(1);
        self.last_ping
    }

    fn pinged(&mut self) {
        self.pings.push_back(Ping { end: self.put, sent: None });
        if self.pings.len() > MOST_PINGS {
            self.pings.pop_front();
        }
    }

    fn sent(&mut self, count: usize, now: Instant) {
        self.sent += count as u64;
        for ping in self.pings.iter_mut().filter(|ping| ping.sent.is_none() && ping.end <= self.sent) {
            ping.sent = Some(now);
        }
    }

    fn answered(&mut self) {
        if let Some(ping) = self.pings.pop_front() {
            self.arrived = ping.end;
        }
    }

    fn is_dead(&self, now: Instant) -> bool {
        let Some(ping) = self.pings.front().filter(|_| self.is_awaited) else { return false };
        let is_unanswered = ping.sent.is_none_or(|at| now >= at + PING_EVERY);
        is_unanswered && self.put - self.arrived <= LITTLE && now >= self.inbound + SILENCE
    }
}

#[cfg(test)]
mod tests;
