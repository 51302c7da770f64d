//! Stands before the HTTP/1 server: what can be read in two ways does not get to it, and a client that stalls or goes away is noticed.
//!
//! Bytes pass unchanged, but for characters of a target that have to be percent-encoded. A head is let through once it is whole and there is one way to read it; then its body passes, by its
//! length or chunk by chunk; then the next head is looked at. In place of a head that is refused the server gets a request of the
//! method [`REFUSED`], which no client can send, so that its answer comes in its turn, behind those of the requests before it.

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
    io::{Io, through::said_through},
    wire::http1::{self, Framing, Piece, Refusal},
};

/// Longer than any method that is taken for HTTP when a connection is sniffed.
pub const REFUSED: &str = "ADIT-REFUSED-THE-REQUEST-THAT-STOOD-HERE";

/// A client that has ended its direction may still want its answer, or may be gone: the two look the same. It is taken for gone
/// when nothing could be sent to it for this long.
const QUIET: Duration = Duration::from_secs(10);

/// How long the client's bytes are taken after our end. Closing over unread bytes is a reset, which can overtake the answer.
const LINGER: Duration = Duration::from_secs(2);

/// Size of a read while the normaliser parses.
const CHUNK: usize = 8 * 1024;

/// The most that is held of what a client has sent: a head that is not whole, and what was read behind it.
pub const MOST_HELD: usize = http1::LONGEST_HEAD + http1::LONGEST_TARGET + CHUNK;

/// A client's connection, for the HTTP/1 server.
pub struct Normaliser<T: Io> {
    inner: T,
    gate: Arc<Gate>,
    /// Read and not passed on yet.
    pending: BytesMut,
    /// Of an interim response, on its way to the client.
    interim: BytesMut,
    /// How much of `pending` was searched for the end of a head.
    searched: usize,
    /// How many empty lines came before the head that is looked for.
    empty_lines: usize,
    /// When the first byte of a head came that is not whole yet.
    head_since: Option<Instant>,
    /// Bytes to pass before parsing resumes.
    pass: u64,
    next: Next,
    client_ended: bool,
    /// Since when nothing has come that is waited for.
    since: Option<Instant>,
    last_write: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    shut_down: bool,
}

/// Parser state after the bytes that pass.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Head,
    Chunk {
        has_upgrade: bool,
    },
    /// Bytes behind an upgrade: the answer decides on them.
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
        }
    }

    /// Returns how many bytes of the client are held, at most [`MOST_HELD`].
    pub fn held(&self) -> usize {
        self.pending.len()
    }

    /// Lets what is at the front of `pending` be looked at, until there are bytes that pass or more are needed.
    fn look(&mut self) -> io::Result<Look> {
        match self.next {
            Next::Head => match self.head() {
                Ok(Some(())) => Ok(Look::Again),
                Ok(None) => Ok(Look::Fill),
                Err(Refusal::NotHttp) => {
                    self.pending = BytesMut::new();
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

    /// Looks whether the answer to an upgrade has come; where it has not, `waker` is woken when it does.
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
            // A lone CR may be the first half of one more empty line.
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

    /// Drops the empty lines before a request line at once, so that they take neither room nor time.
    fn leave_out_empty_lines(&mut self) -> Result<(), Refusal> {
        let count = http1::empty_lines(&self.pending);
        self.pending.advance(2 * count);
        self.empty_lines += count;
        if self.pending.is_empty() {
            // No buffer is held for a connection that waits.
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

    /// Reads more into `pending`. Ready(false): the client has ended its direction.
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

    /// Ready when it has been waited for since `since` for as long as `limit`.
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

    /// Ready when the client is gone, as far as can be told: it has ended its direction, and nothing was sent to it for a while.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ended = *self.since.get_or_insert_with(Instant::now);
        let since = self.last_write.map_or(ended, |write| write.max(ended));
        self.poll_waited(cx, since, QUIET)
    }

    fn poll_pass(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let most = usize::try_from(self.pass).unwrap_or(usize::MAX);
        let before = buf.filled().len();
        if !self.pending.is_empty() {
            let count = most.min(self.pending.len()).min(buf.remaining());
            buf.put_slice(&self.pending[..count]);
            self.pending.advance(count);
            if self.pending.is_empty() {
                // No buffer is held for a connection that waits.
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
            // Another protocol knows best how long its silences are.
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
                    // The server learns of the end of a client that waits for its answer when it is gone.
                    Poll::Ready(Ok(false)) if this.next == Next::Head && this.gate.progress.is_busy(cx.waker()) => {
                        return this.poll_gone(cx).map(Ok);
                    }
                    Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => match this.next {
                        Next::Head if this.pending.is_empty() => {
                            // The server does not ask again by itself when the answer has ended: without this, the time
                            // of an idle connection would never begin.
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

    /// Interim responses go here: earlier answers are flushed, and the next one has not begun.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_interim(cx))?;
        self.interim = self.gate.interim.take();
        ready!(self.poll_interim(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    /// Ends our direction, and takes what the client still sends for a moment.
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
                // An error is an end too.
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
        while !self.interim.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.interim))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.interim.advance(count),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Only an end of the client makes it worth the look at the clock.
    fn note_write(&mut self, written: &Poll<io::Result<usize>>) {
        if self.client_ended && matches!(written, Poll::Ready(Ok(_))) {
            self.last_write = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
