//! A connection that carries frames, kept alive by pings: the ground of WebSockets, and of an exec over SPDY.
//!
//! Gateways cut connections that are silent for 60 s, some for less. So a task sends a ping every 5 s, whether or not somebody
//! reads. A connection that answers two of them with silence is dead, unless data is on its way: a pod that does not read
//! holds up the pings behind its data for as long as it likes. Then TCP decides, by its own keep-alive.

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

/// How much is read from the connection at a time, and the most that one frame should carry.
pub const PIECE: usize = 64 * 1024;

/// A write waits while more than this is on its way out.
const MOST_UNSENT: usize = 128 * 1024;

/// kubectl's period, and below every gateway's idle time.
const PING_EVERY: Duration = Duration::from_secs(5);

/// A connection is dead when nothing has come for this long, and a ping is unanswered for [`PING_EVERY`].
const SILENCE: Duration = Duration::from_secs(15);

/// With more bytes than this on their way, silence proves nothing: the pod may not read. Less fits into any buffer.
const LITTLE: u64 = 4 * 1024;

/// A peer answers the end of the connection at once.
const END_WITHIN: Duration = Duration::from_secs(10);

/// So many pings without an answer are remembered: those of more than an hour in which nobody reads.
const MOST_PINGS: usize = 1024;

/// The frames of a protocol.
pub trait Codec: Send + 'static {
    type Item;

    /// Returns the next frame of `input` and takes its bytes. None: more bytes are needed.
    ///
    /// # Errors
    /// The connection cannot be understood any further.
    fn next(&mut self, input: &mut BytesMut) -> io::Result<Option<Incoming<Self::Item>>>;

    /// Appends ping number `number`.
    fn put_ping(&mut self, number: u32, out: &mut BytesMut);

    /// Appends the answer to a ping.
    fn put_pong(&mut self, payload: &[u8], out: &mut BytesMut);

    /// Appends the end of everything.
    fn put_close(&mut self, out: &mut BytesMut);
}

/// A received message.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<I> {
    Item(I),
    Ping(Bytes),
    Pong,
    /// The end that the protocol knows. Err: an end that says that something is missing.
    Close(Result<(), String>),
}

/// A connection of frames. Dropping it closes the connection.
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
    /// The newest ping of the peer that is not answered yet. The older ones need no answer (RFC 6455, section 5.5.3).
    pong: Option<Bytes>,
    end: Option<Result<(), Broken>>,
    /// When our Close frame was queued.
    closed: Option<Instant>,
    senders: Arc<Senders>,
    reader: Option<Waker>,
    life: Life,
}

/// How the connection broke, to be told to every caller.
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

/// All tasks that send. The socket knows one waker for each direction, the last one: it gets one that wakes them all.
#[derive(Default)]
struct Senders {
    wakers: Mutex<[Option<Waker>; 3]>,
}

#[derive(Clone, Copy)]
enum Sender {
    /// Answers pings.
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

    /// Returns what comes next. None: the peer ended everything, as its protocol has it, and nothing is missing.
    ///
    /// # Errors
    /// The connection broke, or is silent for too long.
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
                    // An error shows in the read that follows.
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

    /// Puts a ping ahead of its time.
    pub fn ping(&self) {
        self.lock().ping();
    }

    /// Returns whether the peer has sent anything.
    pub fn has_heard(&self) -> bool {
        self.lock().life.has_heard
    }

    /// Waits until there is room for another frame.
    ///
    /// # Errors
    /// The connection broke.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let core = &mut *self.lock();
        if core.unsent.len() > MOST_UNSENT {
            ready!(core.poll_send(Sender::Writer, cx))?;
        }
        Poll::Ready(core.check())
    }

    /// Puts a frame; it leaves with the next [`poll_flush`](Self::poll_flush). Wait for [`poll_ready`](Self::poll_ready) first.
    pub fn put(&self, frame: impl FnOnce(&mut C, &mut BytesMut)) {
        self.lock().put(frame);
    }

    /// Sends what was put.
    ///
    /// # Errors
    /// The connection broke.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().poll_send(Sender::Writer, cx)
    }

    /// Puts the end of everything, once. The peer has to answer it within some seconds.
    pub fn close(&self) {
        let mut core = self.lock();
        if core.closed.is_none() {
            core.closed = Some(Instant::now());
            core.put(Codec::put_close);
        }
    }

    /// Sends the end of everything, and then that of the connection.
    ///
    /// # Errors
    /// The connection broke.
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
        // An idle connection holds no buffer.
        self.unsent = BytesMut::new();
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.needs_flush = false;
        Poll::Ready(Ok(()))
    }

    /// Does what is due; returns whether there is more to keep.
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
        // A connection that does not take our bytes is not idle, and a ping would only wait with them.
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

/// Sends pings, and what else waits, for as long as the connection is used.
async fn keep<C: Codec>(core: Weak<Mutex<Core<C>>>) {
    let mut at = Instant::now() + PING_EVERY;
    loop {
        sleep_until(at).await;
        at = Instant::now() + PING_EVERY;
        let sending = poll_fn(|cx| {
            let Some(core) = core.upgrade() else { return Poll::Ready(()) };
            let mut core = core.lock().expect("no panic while the lock is held");
            // Whoever reads or writes meets an error as well.
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
    /// When bytes last came, or began to be waited for.
    inbound: Instant,
    has_heard: bool,
    /// Somebody waits for what comes. Else it is no wonder that nothing does.
    is_awaited: bool,
    pings: VecDeque<Ping>,
    last_ping: u32,
    /// How many bytes were put into frames, how many of these the socket has taken, and how many have arrived for certain.
    put: u64,
    sent: u64,
    arrived: u64,
}

struct Ping {
    /// How many bytes were put, this one included.
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
