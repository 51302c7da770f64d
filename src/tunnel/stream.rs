//! A tunnel's stream: counted, and replayed elsewhere while its pod cannot have acted.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::BytesMut;
use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::debug;

use super::{
    BUDGET,
    lease::{Hold, connect},
    task::{Running, Tunnel},
};
use crate::{
    backend::{OpenError, StreamFault},
    io::{BoxedIo, abandoned::Ends},
};

/// What is kept of the first bytes, so that they can be sent again.
const KEPT: usize = 64 * 1024;

/// How long a refusing port is asked again. A container that restarts in place refuses for 0.5 to 1 s; a port on which
/// nothing listens should not look like one that is slow.
const REFUSED_GRACE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(100);

/// The next stream, while it is being opened.
type Moving = BoxFuture<'static, Result<(BoxedIo, Arc<Running>), OpenError>>;

/// A stream through a tunnel.
///
/// Until the first byte has come back, it can be moved: a pod that is gone or refuses has certainly seen none of its
/// bytes, so they are sent again, in order and once, over a new stream, and the end after them if it was told.
pub(super) struct TunnelStream {
    tunnel: Arc<Tunnel>,
    inner: BoxedIo,
    running: Arc<Running>,
    client: Option<Ends>,
    /// What was written so far. None: it can no longer be moved.
    kept: Option<BytesMut>,
    /// How much of `kept` the present stream has not been given yet.
    unsent: usize,
    /// The pod has said something: another one is not asked the same.
    answered: bool,
    end: End,
    moving: Option<Moving>,
    /// Who waits for the move: only the last of them is known to what is waited for.
    waiting: [Option<Waker>; 2],
    opened: Instant,
    /// One for each half, so that both learn of it.
    stopped: [Pin<Box<WaitForCancellationFutureOwned>>; 2],
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
enum Half {
    Read,
    Write,
}

impl TunnelStream {
    pub fn new(tunnel: Arc<Tunnel>, inner: BoxedIo, running: Arc<Running>, client: Option<Ends>) -> Self {
        let stopped = [(), ()].map(|()| Box::pin(tunnel.stop.clone().cancelled_owned()));
        Self {
            tunnel,
            inner,
            running,
            client,
            kept: Some(BytesMut::new()),
            unsent: 0,
            answered: false,
            end: End::Open,
            moving: None,
            waiting: [None, None],
            opened: Instant::now(),
            stopped,
        }
    }

    /// Starts to move the stream if its failure allows that; gives the error back otherwise.
    fn move_after(&mut self, error: io::Error) -> Result<(), io::Error> {
        let Some(kept) = self.kept.as_ref().filter(|_| !self.answered) else { return Err(error) };
        let Some(fault) = StreamFault::of(&error) else { return Err(error) };
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
        // Where a whole grace has not helped just now, the next one is not waited out again.
        let is_hopeless =
            is_refused && (self.tunnel.drain.is_draining() || self.tunnel.refuses.load(Ordering::Relaxed));
        if self.opened.elapsed() >= patience || is_hopeless {
            return Err(error);
        }
        debug!(tunnel = %self.tunnel.target, %fault, "stream is moved");
        self.tunnel.note_error(fault);
        // A runtime that restarts refuses for seconds, and the session keeps the pod.
        let pauses = is_refused || matches!(fault, StreamFault::Unavailable { .. });
        let (client, deadline) = (self.client, self.opened + BUDGET + self.tunnel.target.startup_time());
        let Some(hold) = Hold::new(self.tunnel.clone()) else { return Err(error) };
        self.moving = Some(Box::pin(async move {
            if pauses {
                sleep(PAUSE).await;
            }
            let (stream, _, running) = connect(&hold.0, None, client, deadline).await?;
            Ok((stream, running))
        }));
        Ok(())
    }

    /// Waits until the stream is where it is used: an error means that there is no such place.
    fn poll_moved(&mut self, cx: &mut Context<'_>, half: Half) -> Poll<io::Result<()>> {
        if self.stopped[half as usize].as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(StreamFault::Lost { detail: "the tunnel was stopped".to_owned() }.into()));
        }
        let Some(moving) = &mut self.moving else { return Poll::Ready(Ok(())) };
        let Poll::Ready(moved) = moving.as_mut().poll(cx) else {
            self.waiting[half as usize] = Some(cx.waker().clone());
            return Poll::Pending;
        };
        self.moving = None;
        self.waiting.iter_mut().filter_map(Option::take).for_each(Waker::wake);
        match moved {
            Ok((inner, running)) => {
                (self.inner, self.running) = (inner, running);
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
        }
        Poll::Ready(Ok(()))
    }

    /// Gets the stream into a state in which it can be written to.
    fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_moved(cx, Half::Write))?;
            match ready!(self.poll_owed(cx)) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(error) => self.move_after(error)?,
            }
        }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let (before, had_room) = (buf.filled().len(), buf.remaining() > 0);
        loop {
            ready!(this.poll_moved(cx, Half::Read))?;
            // While what is owed waits for room, or is not taken at all, an answer to its first part may come.
            if let Poll::Ready(Err(error)) = this.poll_owed(cx)
                && this.move_after(error).is_ok()
            {
                continue;
            }
            match ready!(Pin::new(&mut this.inner).poll_read(cx, buf)) {
                Ok(()) => {
                    let count = buf.filled().len() - before;
                    if count > 0 {
                        if this.kept.is_some() {
                            this.tunnel.refuses.store(false, Ordering::Relaxed);
                        }
                        this.tunnel.usage.down.fetch_add(count as u64, Ordering::Relaxed);
                        this.tunnel.usage.touch();
                    }
                    this.answered |= had_room;
                    if this.answered && this.unsent == 0 {
                        this.kept = None;
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) => this.move_after(error).inspect_err(|error| this.tunnel.note_error(error))?,
            }
        }
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            ready!(this.poll_settled(cx))?;
            match ready!(Pin::new(&mut this.inner).poll_write(cx, buf)) {
                Ok(count) => {
                    this.tunnel.usage.up.fetch_add(count as u64, Ordering::Relaxed);
                    this.tunnel.usage.touch();
                    match &mut this.kept {
                        Some(kept) if kept.len() + count <= KEPT => kept.extend_from_slice(&buf[..count]),
                        kept => *kept = None,
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) => this.move_after(error)?,
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            ready!(this.poll_settled(cx))?;
            match ready!(Pin::new(&mut this.inner).poll_flush(cx)) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(error) => this.move_after(error)?,
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.end == End::Open {
            self.end = End::Owed;
        }
        self.poll_settled(cx)
    }
}

#[cfg(test)]
mod tests;
