//! One forwarded connection as a byte stream.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Buf;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::connection::{Connection, Shared, Stream};
use crate::{backend::StreamFault, io::Io};

/// How long to hold back the client's FIN while the pod is silent. A node never passes on a half-close: after our FIN
/// it gives the pod 1.0 s in all for its reply, and then closes both directions. So the FIN leaves late while the pod
/// may still work on a request, and soon if the client has sent nothing.
pub(super) const HOLD_UNANSWERED: Duration = Duration::from_secs(30);
pub(super) const HOLD_UNUSED: Duration = Duration::from_secs(1);

/// Silence after which an answered exchange is over, without the node's second: the client gets its FIN within 2 s of
/// the last byte, and an answer with shorter pauses arrives whole.
pub(super) const HOLD_ANSWERED: Duration = Duration::from_millis(1_900);

/// A stream on an upgraded connection. The connection lives as long as its last stream.
pub struct MuxStream {
    _connection: Arc<Connection>,
    shared: Arc<Shared>,
    number: u64,
    /// The exchange is over for the client: reads end without the node's FIN.
    is_over: bool,
    /// When `shutdown` was called.
    shut_down: Option<Instant>,
    hold: Option<Pin<Box<Sleep>>>,
}

impl MuxStream {
    pub(super) fn new(connection: Arc<Connection>, shared: Arc<Shared>, number: u64) -> Self {
        Self { _connection: connection, shared, number, is_over: false, shut_down: None, hold: None }
    }

    /// Ends the hold on the FIN once the pod has been silent for long enough.
    fn poll_hold(&mut self, cx: &mut Context<'_>) {
        let Some(shut_down) = self.shut_down else { return };
        loop {
            let now = Instant::now();
            let quiet_until = {
                let state = self.shared.lock();
                let Some(stream) = state.streams.get(&self.number).filter(|stream| stream.local.is_open_for_node())
                else {
                    self.hold = None;
                    return;
                };
                let since = match stream.is_answered() && state.has_more_to_send(self.number) {
                    // The pod answers while it still reads.
                    true => now,
                    false => stream.last_received.map_or(shut_down, |at| at.max(shut_down)),
                };
                since + quiet_time(stream)
            };
            if quiet_until <= now {
                return self.end_hold(false);
            }
            let hold = self.hold.get_or_insert_with(|| Box::pin(sleep_until(quiet_until)));
            if hold.deadline() != quiet_until {
                hold.as_mut().reset(quiet_until);
            }
            if hold.as_mut().poll(cx).is_pending() {
                return;
            }
        }
    }

    /// Sends the FIN to the node. If the exchange is over, ends the reads instead, and the FIN leaves when the stream
    /// is dropped.
    fn end_hold(&mut self, is_gone: bool) {
        self.hold = None;
        let mut state = self.shared.lock();
        let stream = state.streams.get(&self.number);
        self.is_over = stream
            .is_some_and(|stream| stream.outbox.is_empty() && !stream.unanswered && (is_gone || stream.is_answered()));
        if !self.is_over {
            state.release(self.number);
            self.shared.wake_writer(&mut state, self.number);
        }
    }
}

fn quiet_time(stream: &Stream) -> Duration {
    match (stream.is_answered(), stream.unanswered) {
        (true, _) => HOLD_ANSWERED,
        (false, true) => HOLD_UNANSWERED,
        (false, false) => HOLD_UNUSED,
    }
}

fn gone() -> StreamFault {
    StreamFault::Lost { detail: "the stream is gone".to_owned() }
}

impl AsyncRead for MuxStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        {
            let mut state = self.shared.lock();
            let fault = state.fault().cloned();
            let Some(stream) = state.streams.get_mut(&self.number) else {
                return Poll::Ready(Err(fault.unwrap_or_else(gone).into()));
            };
            let mut taken = 0;
            while buf.remaining() > 0
                && let Some(first) = stream.inbox.front_mut()
            {
                let count = first.len().min(buf.remaining());
                buf.put_slice(&first[..count]);
                first.advance(count);
                taken += count;
                if first.is_empty() {
                    stream.inbox.pop_front();
                }
            }
            if taken > 0 {
                stream.inbox_bytes -= taken;
                stream.last_taken = Some(Instant::now());
                self.shared.taken(&mut state, taken);
                return Poll::Ready(Ok(()));
            }
            if let Some(end) = stream.end(self.shared.port) {
                return Poll::Ready(end.map_err(Into::into));
            }
            if let Some(fault) = fault {
                return Poll::Ready(Err(fault.into()));
            }
            stream.reader = Some(cx.waker().clone());
        }
        self.poll_hold(cx);
        if self.is_over { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        let fault = state.fault().cloned();
        let outbox = state.outbox(self.number);
        let Some(stream) = state.streams.get_mut(&self.number) else {
            return Poll::Ready(Err(fault.unwrap_or_else(gone).into()));
        };
        if let Some(end) = stream.end(self.shared.port) {
            return Poll::Ready(Err(end.err().unwrap_or(StreamFault::Reset).into()));
        }
        if let Some(fault) = fault {
            return Poll::Ready(Err(fault.into()));
        }
        if self.shut_down.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = outbox.saturating_sub(stream.outbox.len());
        if room == 0 {
            stream.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = buf.len().min(room);
        stream.outbox.extend_from_slice(&buf[..count]);
        stream.unanswered = true;
        self.shared.wake_writer(&mut state, self.number);
        Poll::Ready(Ok(count))
    }

    /// Bytes leave as soon as the connection takes them, without a flush.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shut_down.is_none() {
            self.shut_down = Some(Instant::now());
            // A waiting reader has to set the timer.
            let reader = self.shared.lock().hold(self.number);
            if let Some(reader) = reader {
                reader.wake();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Io for MuxStream {
    fn abandon(&mut self) {
        if self.shut_down.is_some() {
            let reader = self.shared.lock().hold(self.number);
            self.end_hold(true);
            if let Some(reader) = reader {
                reader.wake();
            }
        }
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        self.shared.dropped(self.number);
    }
}
