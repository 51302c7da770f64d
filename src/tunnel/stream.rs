//! A tunnel's stream: counted, and replayed to another pod while its first pod cannot have acted on it.

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

/// Maximum number of first bytes kept for a replay.
const KEPT: usize = 64 * 1024;

/// How long bytes beyond [`KEPT`] wait for the pod's first byte or its refusal: once they are sent, a replay is
/// impossible. A refusal takes the round trip to the node and 5 to 30 ms there.
const SETTLES: Duration = Duration::from_millis(100);

/// How long a refused stream is retried. A container that restarts in place refuses for 0.5 to 1 s. A longer wait would
/// make a port without a listener look like a slow one.
const REFUSED_GRACE: Duration = Duration::from_secs(3);

/// Pause between attempts to open a stream.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// The next stream while it opens.
type Moving = BoxFuture<'static, Result<(BoxedIo, Arc<Running>), OpenError>>;

/// A stream through a tunnel. It ends with the tunnel.
pub(super) struct TunnelStream {
    tunnel: Arc<Tunnel>,
    number: u64,
    cell: Arc<Cell>,
}

/// State of a [`TunnelStream`] while its tunnel lives.
///
/// Until the first byte of an answer, the stream can move to another pod: a pod that is gone or refuses has certainly
/// seen no byte. The new stream gets the same bytes in the same order, once, and then the FIN if there was one.
pub(super) struct Stream {
    tunnel: Arc<Tunnel>,
    inner: BoxedIo,
    running: Arc<Running>,
    /// Bytes written so far. `None`: the stream can no longer move.
    kept: Option<BytesMut>,
    /// Number of bytes at the end of `kept` that the present stream has not got yet.
    unsent: usize,
    /// The pod has answered, so the stream must not move.
    answered: bool,
    end: End,
    is_abandoned: bool,
    moving: Option<Moving>,
    /// Attempts to move the stream.
    moves: u32,
    /// The stream has moved, or a waiting writer has room again: the half that did not poll needs a wake-up.
    has_moved: bool,
    opened: Instant,
    /// When the present stream was opened.
    since: Instant,
    /// Timer of a writer that waits for [`SETTLES`].
    settling: Option<Pin<Box<Sleep>>>,
}

/// End of our direction: the FIN to the pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// Sent after the bytes before it.
    Owed,
    Told,
}

/// A stream may have its reader in one task and its writer in another.
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
            moves: 0,
            has_moved: false,
            opened: Instant::now(),
            since: Instant::now(),
            settling: None,
        });
        Self { tunnel, number, cell }
    }

    /// Returns how long the stream has been with its present pod. Zero: it is moving to another.
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
    /// Returns whether both halves have to be polled again, and resets that: the stream has moved, or a writer has room again.
    pub fn has_moved(&mut self) -> bool {
        std::mem::take(&mut self.has_moved)
    }

    fn taken_for(&self) -> Duration {
        if self.moving.is_some() { Duration::ZERO } else { self.since.elapsed() }
    }

    /// Starts to move the stream if the error allows it. Returns the error otherwise.
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
        // The whole grace period has passed in vain: streams after this one do not wait for another one.
        if is_refused && self.opened.elapsed() >= patience {
            self.tunnel.refuses.store(true, Ordering::Relaxed);
        }
        // A drain waits for this stream, and has less time than a container needs to restart.
        let is_hopeless =
            is_refused && (self.tunnel.drain.is_draining() || self.tunnel.refuses.load(Ordering::Relaxed));
        if self.opened.elapsed() >= patience || is_hopeless {
            return Err(error);
        }
        debug!(tunnel = %self.tunnel.target, %fault, "stream is moved");
        self.tunnel.note_error(fault);
        self.tunnel.history.note(Noted::Retried, &fault.to_string());
        // A restarting container or runtime refuses for seconds, and the session still lists its pod: do not retry in a
        // tight loop. A pod that is gone may be listed for a while, too.
        let pauses = is_refused || matches!(fault, StreamFault::Unavailable { .. }) || self.moves > 0;
        self.moves += 1;
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

    /// Waits until the stream has moved, if it is moving.
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

    /// Replays the kept bytes and the FIN that the present stream has not got yet.
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

    /// Waits for a move and its replay, so that the stream can be written to.
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
            // The pod may answer the first part while the rest of the replay waits for room: read without waiting for it.
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
                Err(error) => self.move_after(error).inspect_err(|error| {
                    // A reset may be how a server closes: the reader knows.
                    if StreamFault::of(error) != Some(&StreamFault::Reset) {
                        self.tunnel.note_error(error);
                    }
                })?,
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

    /// Returns how many bytes may be written now: the rest of [`KEPT`] while the stream is new, else any number.
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
    fn reset(&mut self) {
        self.cell.with(|stream| stream.inner.reset());
    }

    fn abandon(&mut self) {
        self.cell.with(Stream::abandon);
    }
}

#[cfg(test)]
mod tests;
