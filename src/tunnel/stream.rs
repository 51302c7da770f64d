//! A tunnel's stream: counted, and replayed elsewhere while its pod cannot have acted.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until},
};
use tracing::debug;

use super::{
    BUDGET,
    lease::{Hold, connect},
    streams::Cell,
    task::{Running, Tunnel},
};
use crate::{
    backend::{OpenError, StreamFault},
    io::{BoxedIo, Io},
    journal::Event as Noted,
};

/// Most first bytes that are kept to send them again.
const KEPT: usize = 64 * 1024;

/// How long what is beyond that waits for a first byte of the pod, or for the refusal that takes the round trip to the node and 5 to 30 ms
/// there: afterwards it could not be sent to another pod.
const SETTLES: Duration = Duration::from_millis(100);

/// How long a refusing port is tried again. A container that restarts in place refuses for 0.5 to 1 s; a port on which
/// nothing listens should not look like one that is slow.
const REFUSED_GRACE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(100);

/// The next stream, while it is being opened.
type Moving = BoxFuture<'static, Result<(BoxedIo, Arc<Running>), OpenError>>;

/// A stream through a tunnel, which ends with the tunnel.
pub(super) struct TunnelStream {
    tunnel: Arc<Tunnel>,
    number: u64,
    cell: Arc<Cell>,
}

/// A [`TunnelStream`] while its tunnel lives.
///
/// Until the first byte has come back, it can be moved: a pod that is gone or refuses has certainly seen none of its
/// bytes, so they are sent again, in order and once, over a new stream, and the end after them if it was told.
pub(super) struct Stream {
    tunnel: Arc<Tunnel>,
    inner: BoxedIo,
    running: Arc<Running>,
    /// Written bytes so far. None: the stream can no longer be moved.
    kept: Option<BytesMut>,
    /// How much of `kept` the present stream has not been given yet.
    unsent: usize,
    /// The pod has said something: another one is not asked the same.
    answered: bool,
    end: End,
    is_abandoned: bool,
    moving: Option<Moving>,
    /// It has just been moved, which only the half that was polled knows.
    has_moved: bool,
    opened: Instant,
    /// When the present stream was opened.
    since: Instant,
    /// Ends what waits for [`SETTLES`].
    settling: Option<Pin<Box<Sleep>>>,
}

/// The end of our direction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// To be told to the pod after the bytes before it.
    Owed,
    Told,
}

/// A stream may be read in one task and written in another.
#[derive(Clone, Copy)]
pub(super) enum Half {
    Read,
    Write,
}

impl TunnelStream {
    pub fn new(tunnel: Arc<Tunnel>, inner: BoxedIo, running: Arc<Running>) -> Self {
        let (number, cell) = tunnel.streams.add(Stream {
            tunnel: tunnel.clone(),
            inner,
            running,
            kept: Some(BytesMut::new()),
            unsent: 0,
            answered: false,
            end: End::Open,
            is_abandoned: false,
            moving: None,
            has_moved: false,
            opened: Instant::now(),
            since: Instant::now(),
            settling: None,
        });
        Self { tunnel, number, cell }
    }

    /// Returns for how long the pod has had the stream. Zero: it is on its way to another.
    pub fn taken_for(&self) -> Duration {
        self.cell.with(|stream| stream.taken_for()).unwrap_or_default()
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        self.tunnel.streams.remove(self.number);
    }
}

impl Stream {
    /// Returns whether the stream was moved since this was asked before: then both halves have to look.
    pub fn has_moved(&mut self) -> bool {
        std::mem::take(&mut self.has_moved)
    }

    fn taken_for(&self) -> Duration {
        if self.moving.is_some() { Duration::ZERO } else { self.since.elapsed() }
    }

    /// Starts to move the stream if its failure allows that; gives the error back otherwise.
    fn move_after(&mut self, error: io::Error) -> Result<(), io::Error> {
        let Some(kept) = self.kept.as_ref().filter(|_| !self.answered) else { return Err(error) };
        let Some(fault) = StreamFault::of(&error) else { return Err(error) };
        self.tunnel.answers.store(false, Ordering::Relaxed);
        let is_unused = kept.is_empty() && matches!(fault, StreamFault::Lost { .. });
        if !fault.never_reached_the_pod() && !is_unused {
            return Err(error);
        }
        let is_refused = matches!(fault, StreamFault::Refused { .. });
        let patience = if is_refused { REFUSED_GRACE } else { BUDGET };
        // A drain has less time than a container that restarts, and waits for this.
        if is_refused && self.opened.elapsed() >= patience {
            self.tunnel.refuses.store(true, Ordering::Relaxed);
        }
        // If a whole grace period has just passed in vain, does not wait for another one.
        let is_hopeless =
            is_refused && (self.tunnel.drain.is_draining() || self.tunnel.refuses.load(Ordering::Relaxed));
        if self.opened.elapsed() >= patience || is_hopeless {
            return Err(error);
        }
        debug!(tunnel = %self.tunnel.target, %fault, "stream is moved");
        self.tunnel.note_error(fault);
        self.tunnel.history.note(Noted::Retried, &fault.to_string());
        // A runtime that restarts refuses for seconds, and the session keeps the pod.
        let pauses = is_refused || matches!(fault, StreamFault::Unavailable { .. });
        let deadline = self.opened + BUDGET + self.tunnel.target.startup_time();
        let Some(hold) = Hold::new(self.tunnel.clone()) else { return Err(error) };
        self.moving = Some(Box::pin(async move {
            if pauses {
                sleep(PAUSE).await;
            }
            let (stream, _, running) = connect(&hold.0, None, None, deadline).await?;
            Ok((stream, running))
        }));
        Ok(())
    }

    /// Waits until the stream is where it is used: an error means that there is no such place.
    fn poll_moved(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(moving) = &mut self.moving else { return Poll::Ready(Ok(())) };
        let moved = ready!(moving.as_mut().poll(cx));
        (self.moving, self.has_moved) = (None, true);
        match moved {
            Ok((inner, running)) => {
                (self.inner, self.running, self.since) = (inner, running, Instant::now());
                self.unsent = self.kept.as_ref().map_or(0, BytesMut::len);
                if self.end == End::Told {
                    self.end = End::Owed;
                }
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                self.kept = None;
                let fault = match error {
                    OpenError::Stream(fault) => fault,
                    error => StreamFault::Lost { detail: error.to_string() },
                };
                Poll::Ready(Err(fault.into()))
            }
        }
    }

    /// Gives the present stream what another was given before it: the bytes kept, and the end after them.
    fn poll_owed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.unsent > 0
            && let Some(kept) = &self.kept
        {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &kept[kept.len() - self.unsent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.unsent -= count,
            }
        }
        if self.answered {
            self.kept = None;
        }
        if self.end == End::Owed {
            ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
            self.end = End::Told;
            if self.is_abandoned {
                self.inner.abandon();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Gets the stream into a state in which it can be written to.
    fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_moved(cx))?;
            match ready!(self.poll_owed(cx)) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(error) => self.move_after(error)?,
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (before, had_room) = (buf.filled().len(), buf.remaining() > 0);
        loop {
            ready!(self.poll_moved(cx))?;
            // While what is owed waits for room, or is not taken at all, an answer to its first part may come.
            if let Poll::Ready(Err(error)) = self.poll_owed(cx)
                && self.move_after(error).is_ok()
            {
                continue;
            }
            match ready!(Pin::new(&mut self.inner).poll_read(cx, buf)) {
                Ok(()) => {
                    let count = buf.filled().len() - before;
                    if count > 0 {
                        if self.kept.is_some() {
                            self.tunnel.refuses.store(false, Ordering::Relaxed);
                            self.tunnel.answers.store(true, Ordering::Relaxed);
                        }
                        self.tunnel.usage.down.fetch_add(count as u64, Ordering::Relaxed);
                        self.tunnel.journal.bytes(0, count as u64);
                        self.tunnel.usage.touch();
                    }
                    if had_room && !std::mem::replace(&mut self.answered, true) {
                        // A writer that waits for room can go on.
                        self.has_moved |= self.settling.take().is_some();
                    }
                    if self.answered && self.unsent == 0 {
                        self.kept = None;
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) => self.move_after(error).inspect_err(|error| self.tunnel.note_error(error))?,
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_settled(cx))?;
            let room = ready!(self.poll_room(cx));
            let buf = &buf[..room.min(buf.len())];
            match ready!(Pin::new(&mut self.inner).poll_write(cx, buf)) {
                Ok(count) => {
                    self.tunnel.usage.up.fetch_add(count as u64, Ordering::Relaxed);
                    self.tunnel.journal.bytes(count as u64, 0);
                    self.tunnel.usage.touch();
                    match &mut self.kept {
                        Some(kept) if kept.len() + count <= KEPT => kept.extend_from_slice(&buf[..count]),
                        kept => *kept = None,
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) => self.move_after(error)?,
            }
        }
    }

    /// Returns how many bytes may be written now: what is kept of a stream that is new, else all.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        let left = SETTLES.saturating_sub(self.since.elapsed());
        let Some(kept) = self.kept.as_ref().filter(|_| !left.is_zero() && !self.answered) else {
            return Poll::Ready(usize::MAX);
        };
        if kept.len() < KEPT {
            return Poll::Ready(KEPT - kept.len());
        }
        let until = self.since + SETTLES;
        let settling = self.settling.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if settling.deadline() != until {
            settling.as_mut().reset(until);
        }
        settling.as_mut().poll(cx).map(|()| usize::MAX)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_settled(cx))?;
            match ready!(Pin::new(&mut self.inner).poll_flush(cx)) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(error) => self.move_after(error)?,
            }
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.end == End::Open {
            self.end = End::Owed;
        }
        self.poll_settled(cx)
    }

    fn abandon(&mut self) {
        self.is_abandoned = true;
        if self.end == End::Told {
            self.inner.abandon();
        }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.cell.poll(cx, Half::Read, |stream, cx| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.cell.poll(cx, Half::Write, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cell.poll(cx, Half::Write, Stream::poll_flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cell.poll(cx, Half::Write, Stream::poll_shutdown)
    }
}

impl Io for TunnelStream {
    fn abandon(&mut self) {
        self.cell.with(Stream::abandon);
    }
}

#[cfg(test)]
mod tests;
