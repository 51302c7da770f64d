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
    io::BoxedIo,
};

/// What is kept of the first bytes, so that they can be sent again.
const KEPT: usize = 64 * 1024;

/// How long a refusing port is asked again. A container that restarts in place refuses for 0.5 to 1 s; a port on which
/// nothing listens should not look like one that is slow.
const REFUSED_GRACE: Duration = Duration::from_secs(3);
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// The next stream, while it is being opened.
type Moving = BoxFuture<'static, Result<(BoxedIo, Arc<Running>), OpenError>>;

/// A stream through a tunnel.
///
/// Until the first byte has come back, it can be moved: a pod that is gone or refuses has certainly seen none of its
/// bytes, so they are sent again, in order and once, over a new stream.
pub(super) struct TunnelStream {
    tunnel: Arc<Tunnel>,
    inner: BoxedIo,
    running: Arc<Running>,
    /// What was written so far. None: it can no longer be moved.
    kept: Option<BytesMut>,
    /// How much of `kept` the present stream has not been given yet.
    unsent: usize,
    shut_down: bool,
    moving: Option<Moving>,
    opened: Instant,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl TunnelStream {
    pub fn new(tunnel: Arc<Tunnel>, inner: BoxedIo, running: Arc<Running>) -> Self {
        let stopped = Box::pin(tunnel.stop.clone().cancelled_owned());
        Self {
            tunnel,
            inner,
            running,
            kept: Some(BytesMut::new()),
            unsent: 0,
            shut_down: false,
            moving: None,
            opened: Instant::now(),
            stopped,
        }
    }

    /// Starts to move the stream if its failure allows that; gives the error back otherwise.
    fn move_after(&mut self, error: io::Error) -> Result<(), io::Error> {
        let Some(kept) = &self.kept else { return Err(error) };
        let Some(fault) = StreamFault::of(&error) else { return Err(error) };
        let is_unused = kept.is_empty() && matches!(fault, StreamFault::Lost { .. });
        if !fault.never_reached_the_pod() && !is_unused {
            return Err(error);
        }
        let is_refused = matches!(fault, StreamFault::Refused { .. });
        let patience = if is_refused { REFUSED_GRACE } else { BUDGET };
        let deadline = self.opened + BUDGET;
        if self.opened.elapsed() >= patience {
            return Err(error);
        }
        debug!(target = %self.tunnel.target, %fault, "stream is moved");
        self.tunnel.note_error(fault);
        let hold = Hold::new(self.tunnel.clone());
        let avoid = (!is_refused).then(|| self.running.clone());
        self.moving = Some(Box::pin(async move {
            if is_refused {
                sleep(REFUSED_PAUSE).await;
            }
            connect(&hold.0, avoid, deadline).await
        }));
        Ok(())
    }

    /// Gets the stream into a state in which it can be used: moved, and with everything kept written again.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(StreamFault::Lost { detail: "the tunnel was stopped".to_owned() }.into()));
        }
        loop {
            if let Some(moving) = &mut self.moving {
                let moved = ready!(moving.as_mut().poll(cx));
                self.moving = None;
                match moved {
                    Ok((inner, running)) => {
                        (self.inner, self.running) = (inner, running);
                        self.unsent = self.kept.as_ref().map_or(0, BytesMut::len);
                    }
                    Err(error) => return Poll::Ready(Err(StreamFault::Lost { detail: error.to_string() }.into())),
                }
            }
            let Some(kept) = self.kept.as_ref().filter(|_| self.unsent > 0) else { return Poll::Ready(Ok(())) };
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &kept[kept.len() - self.unsent..])) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.unsent -= count;
                    if self.unsent == 0 && self.shut_down {
                        let _ = Pin::new(&mut self.inner).poll_shutdown(cx);
                    }
                }
                Err(error) => self.move_after(error)?,
            }
        }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            // While the kept bytes wait for room, an answer to their first part may come already.
            if let Poll::Ready(Err(error)) = this.poll_ready(cx) {
                return Poll::Ready(Err(error));
            }
            if this.moving.is_some() {
                return Poll::Pending;
            }
            let before = buf.filled().len();
            match ready!(Pin::new(&mut this.inner).poll_read(cx, buf)) {
                Ok(()) => {
                    let count = buf.filled().len() - before;
                    if count > 0 {
                        this.tunnel.usage.down.fetch_add(count as u64, Ordering::Relaxed);
                        this.tunnel.usage.touch();
                        if this.unsent == 0 {
                            this.kept = None;
                        }
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) => {
                    this.move_after(error).inspect_err(|error| this.tunnel.note_error(error))?;
                }
            }
        }
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            ready!(this.poll_ready(cx))?;
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
        ready!(self.poll_ready(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut_down = true;
        ready!(self.poll_ready(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
