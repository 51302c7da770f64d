//! Filters the bytes for the HTTP/1 server: no ambiguous request reaches it, and the normaliser notices a client that
//! stalls or leaves.
//!
//! Bytes pass unchanged, except characters of a target that must be percent-encoded. A head (request line and headers)
//! passes once it is complete and has exactly one interpretation. Then its body passes, by its length or chunk by
//! chunk, and then the next head is checked. In place of a refused head, the server gets a request with the method
//! [`REFUSED`], which no client can send, so that its answer follows those to the requests before it.

mod gate;

use std::{
    future::Future,
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use self::gate::Follows;
pub use self::gate::{Busy, Gate, Refused};
use crate::{
    io::{Io, poll_write_all, through::said_through},
    wire::http1::{self, Framing, Piece, Refusal},
};

/// Longer than any method that the sniffer recognises as HTTP.
pub const REFUSED: &str = "ADIT-REFUSED-THE-REQUEST-THAT-STOOD-HERE";

/// A client that has sent its FIN may still wait for its answer, or may be gone: the two look the same. It counts as
/// gone when nothing could be sent to it for this long, unless its program is on this machine and still has its socket.
const QUIET: Duration = Duration::from_secs(10);

/// How long to read the client's bytes after our FIN. A close with unread bytes is a reset, which can overtake the answer.
const LINGER: Duration = Duration::from_secs(2);

/// Size of a read while the normaliser parses.
const CHUNK: usize = 8 * 1024;

/// Maximum bytes held of a client: an incomplete head, and the bytes read after it.
pub const MOST_HELD: usize = http1::LONGEST_HEAD + http1::LONGEST_TARGET + CHUNK;

/// Connection of a client, as the HTTP/1 server reads it.
pub struct Normaliser<T: Io> {
    inner: T,
    gate: Arc<Gate>,
    /// Bytes read and not yet passed on.
    pending: BytesMut,
    /// Heads of interim responses, on their way to the client.
    interim: BytesMut,
    /// Number of bytes of `pending` that were searched for the end of a head.
    searched: usize,
    /// Number of empty lines before the next head.
    empty_lines: usize,
    /// When the first byte of an incomplete head arrived.
    head_since: Option<Instant>,
    /// Bytes to pass before parsing resumes.
    pass: u64,
    next: Next,
    client_ended: bool,
    /// Since when the expected bytes have been missing.
    since: Option<Instant>,
    /// When bytes were last sent after the client's FIN, or its socket was last seen open.
    last_write: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    shut_down: bool,
    /// Returns whether the client's program still has its socket; false if that is not known.
    is_open: Box<dyn Fn() -> bool + Send>,
}

/// Parser state after the bytes that pass.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Head,
    Chunk {
        has_upgrade: bool,
    },
    /// Bytes after an upgrade request: the answer decides about them.
    Held,
    /// Bytes of another protocol.
    Switched,
    Nothing,
}

impl Next {
    fn after(has_upgrade: bool) -> Self {
        if has_upgrade { Self::Held } else { Self::Head }
    }
}

impl<T: Io> Normaliser<T> {
    pub fn new(inner: T, gate: Arc<Gate>) -> Self {
        Self {
            inner,
            gate,
            pending: BytesMut::new(),
            interim: BytesMut::new(),
            searched: 0,
            empty_lines: 0,
            head_since: None,
            pass: 0,
            next: Next::Head,
            client_ended: false,
            since: None,
            last_write: None,
            timer: None,
            shut_down: false,
            is_open: Box::new(|| false),
        }
    }

    /// Asks `is_open` before a client counts as gone: whether its program still has its socket. False if that is not known.
    pub fn asking(mut self, is_open: impl Fn() -> bool + Send + 'static) -> Self {
        self.is_open = Box::new(is_open);
        self
    }

    /// Returns the number of the client's bytes held, at most [`MOST_HELD`].
    pub fn held(&self) -> usize {
        self.pending.len()
    }

    /// Parses the start of `pending`, until bytes may pass or more bytes are needed.
    fn look(&mut self) -> io::Result<Look> {
        match self.next {
            Next::Head => match self.head() {
                Ok(Some(())) => Ok(Look::Again),
                Ok(None) => Ok(Look::Fill),
                Err(Refusal::NotHttp) => {
                    self.pending = BytesMut::new();
                    // The client would not understand an answer, so the server sees the end of the connection.
                    (self.searched, self.client_ended) = (0, true);
                    Ok(Look::Fill)
                }
                Err(refusal) => {
                    self.refuse(refusal.into());
                    Ok(Look::Again)
                }
            },
            Next::Chunk { has_upgrade } => {
                match http1::chunk(&self.pending).map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))? {
                    Piece::Chunk(length) => self.pass = length,
                    Piece::Last(length) => (self.pass, self.next) = (length as u64, Next::after(has_upgrade)),
                    Piece::NeedMore => return Ok(Look::Fill),
                }
                Ok(Look::Again)
            }
            Next::Held => Ok(self.take_upgrade(None)),
            Next::Switched => {
                self.pass = u64::MAX;
                Ok(Look::Again)
            }
            Next::Nothing => Ok(Look::Held),
        }
    }

    /// Checks whether the answer to an upgrade has been sent. If not, its arrival wakes `waker`.
    fn take_upgrade(&mut self, waker: Option<&Waker>) -> Look {
        match self.gate.upgrade.take(waker) {
            None => return Look::Held,
            Some(Follows::Http) => self.next = Next::Head,
            Some(Follows::Switched) => self.next = Next::Switched,
        }
        Look::Again
    }

    fn head(&mut self) -> Result<Option<()>, Refusal> {
        if self.searched == 0 {
            self.leave_out_empty_lines()?;
        }
        let Some(length) = http1::head_end(&self.pending, self.searched)? else {
            // A lone CR may be the first half of another empty line.
            self.searched = if self.pending[..] == *b"\r" { 0 } else { self.pending.len() };
            if !self.pending.is_empty() {
                self.head_since.get_or_insert_with(Instant::now);
            }
            return Ok(None);
        };
        (self.searched, self.empty_lines, self.head_since) = (0, 0, None);
        let head = http1::check_head(&self.pending[..length])?;
        let mut length = length;
        if let Some(encoded) = http1::encode_target(&self.pending[..length])? {
            let rest = self.pending.split_off(length);
            length = encoded.len();
            self.pending = BytesMut::from(&encoded[..]);
            self.pending.unsplit(rest);
        }
        self.gate.progress.let_through();
        (self.pass, self.next) = match head.framing {
            Framing::Length(body) => ((length as u64).saturating_add(body), Next::after(head.has_upgrade)),
            Framing::Chunked => (length as u64, Next::Chunk { has_upgrade: head.has_upgrade }),
        };
        Ok(Some(()))
    }

    /// Drops empty lines before a request line at once, so that they need neither memory nor time.
    fn leave_out_empty_lines(&mut self) -> Result<(), Refusal> {
        let count = http1::empty_lines(&self.pending);
        self.pending.advance(2 * count);
        self.empty_lines += count;
        if self.pending.is_empty() {
            // A waiting connection holds no buffer.
            (self.pending, self.head_since) = (BytesMut::new(), None);
        }
        if self.empty_lines > http1::MOST_EMPTY_LINES { Err(Refusal::EmptyLines) } else { Ok(()) }
    }

    fn refuse(&mut self, refused: Refused) {
        self.gate.refuse(refused);
        let stand_in = format!("{REFUSED} / HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n");
        self.pending = BytesMut::from(stand_in.as_bytes());
        (self.pass, self.next) = (self.pending.len() as u64, Next::Nothing);
    }

    /// Reads more into `pending`. `Ready(false)`: the client has sent its FIN.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.client_ended {
            return Poll::Ready(Ok(false));
        }
        let mut chunk = [MaybeUninit::uninit(); CHUNK];
        let mut buf = ReadBuf::uninit(&mut chunk);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf))?;
        self.since = None;
        self.client_ended = buf.filled().is_empty();
        self.pending.extend_from_slice(buf.filled());
        Poll::Ready(Ok(!self.client_ended))
    }

    /// Ready once `limit` has passed since `since`.
    fn poll_waited(&mut self, cx: &mut Context<'_>, since: Instant, limit: Duration) -> Poll<()> {
        let until = since + limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        timer.as_mut().poll(cx)
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>, limit: Duration) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.poll_waited(cx, since, limit)
    }

    /// Ready when the client counts as gone: it has sent its FIN, and nothing could be sent to it for a while.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ended = *self.since.get_or_insert_with(Instant::now);
        loop {
            let since = self.last_write.map_or(ended, |write| write.max(ended));
            ready!(self.poll_waited(cx, since, QUIET));
            if !(self.is_open)() {
                return Poll::Ready(());
            }
            self.last_write = Some(Instant::now());
        }
    }

    fn poll_pass(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let most = usize::try_from(self.pass).unwrap_or(usize::MAX);
        let before = buf.filled().len();
        if !self.pending.is_empty() {
            let count = most.min(self.pending.len()).min(buf.remaining());
            buf.put_slice(&self.pending[..count]);
            self.pending.advance(count);
            if self.pending.is_empty() {
                // A waiting connection holds no buffer.
                self.pending = BytesMut::new();
            }
        } else if most >= buf.remaining() {
            ready!(self.poll_inner(cx, buf))?;
        } else {
            let mut limited = ReadBuf::new(buf.initialize_unfilled_to(most));
            ready!(self.poll_inner(cx, &mut limited))?;
            let count = limited.filled().len();
            buf.advance(count);
        }
        if self.pass != u64::MAX {
            self.pass -= (buf.filled().len() - before) as u64;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.client_ended {
            return Poll::Ready(Ok(()));
        }
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            // Another protocol has its own timeouts.
            Poll::Pending if self.next == Next::Switched => Poll::Pending,
            Poll::Pending => {
                ready!(self.poll_stalled(cx, self.gate.limits.body));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the rest of the request's body did not come")))
            }
            read => {
                self.since = None;
                read
            }
        }
    }
}

/// Next step before a byte passes.
enum Look {
    Again,
    Fill,
    Held,
}

impl<T: Io> AsyncRead for Normaliser<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.pass > 0 {
                return this.poll_pass(cx, buf);
            }
            match this.look()? {
                Look::Again => {}
                Look::Fill => match this.poll_fill(cx) {
                    Poll::Ready(Ok(true)) => {}
                    // The server gets the end of a client that waits for its answer only once the client counts as gone.
                    Poll::Ready(Ok(false)) if this.next == Next::Head && this.gate.progress.is_busy(cx.waker()) => {
                        return this.poll_gone(cx).map(Ok);
                    }
                    Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => match this.next {
                        Next::Head if this.pending.is_empty() => {
                            // The server does not poll again by itself when the answer has ended. Without this wake-up,
                            // the idle timeout would never start.
                            if this.gate.progress.is_busy(cx.waker()) {
                                this.since = None;
                                return Poll::Pending;
                            }
                            return this.poll_stalled(cx, this.gate.limits.idle).map(Ok);
                        }
                        Next::Head => {
                            let limit = this.gate.limits.head;
                            let since = *this.head_since.get_or_insert_with(Instant::now);
                            ready!(this.poll_waited(cx, since, limit));
                            this.refuse(Refused::Slow(limit));
                        }
                        _ => {
                            ready!(this.poll_stalled(cx, this.gate.limits.body));
                            let what = "the rest of the request's body did not come";
                            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, what)));
                        }
                    },
                },
                Look::Held => {
                    if this.next == Next::Held && matches!(this.take_upgrade(Some(cx.waker())), Look::Again) {
                        continue;
                    }
                    if this.pending.len() < CHUNK && !this.client_ended && this.next == Next::Held {
                        match this.poll_fill(cx) {
                            Poll::Ready(read) => {
                                read?;
                                continue;
                            }
                            Poll::Pending => return Poll::Pending,
                        }
                    }
                    return match this.client_ended || this.next == Next::Nothing {
                        true => this.poll_gone(cx).map(Ok),
                        false => Poll::Pending,
                    };
                }
            }
        }
    }
}

impl<T: Io> AsyncWrite for Normaliser<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.note_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.note_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// Sends interim responses here: earlier answers are flushed, and the next one has not begun.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_interim(cx))?;
        self.interim = self.gate.interim.take();
        ready!(self.poll_interim(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    /// Sends our FIN, and reads the client's remaining bytes for a moment.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.shut_down {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            (this.shut_down, this.since) = (true, Some(Instant::now()));
        }
        if this.next == Next::Switched {
            return Poll::Ready(Ok(()));
        }
        let since = this.since.unwrap_or_else(Instant::now);
        loop {
            let mut chunk = [MaybeUninit::uninit(); CHUNK];
            let mut unwanted = ReadBuf::uninit(&mut chunk);
            match Pin::new(&mut this.inner).poll_read(cx, &mut unwanted) {
                Poll::Ready(Ok(())) if !unwanted.filled().is_empty() => {}
                // An error is an end, too.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return this.poll_waited(cx, since, LINGER).map(Ok),
            }
            if since.elapsed() > LINGER {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<T: Io> Io for Normaliser<T> {
    said_through!();
}

impl<T: Io> Drop for Normaliser<T> {
    fn drop(&mut self) {
        if self.gate.is_cut() {
            self.inner.reset();
        }
    }
}

impl<T: Io> Normaliser<T> {
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_write_all(cx, &mut self.inner, &mut self.interim)
    }

    /// Only after the client's FIN is the time of a write needed.
    fn note_write(&mut self, written: &Poll<io::Result<usize>>) {
        if self.client_ended && matches!(written, Poll::Ready(Ok(_))) {
            self.last_write = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
