//! Copies between two streams, both ways, with half-close.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::Io;

/// Size of the copy buffer: four TLS records, minus a few bytes for the framing of a layer in between, because more
/// would need another record. The buffer is on the stack, so that a connection without waiting bytes holds none.
const CHUNK: usize = 64 * 1024 - 4;

/// Minimum room for another read into the chunk: one TLS record. With less room, the chunk is written first.
const ROOM: usize = 16 * 1024;

/// Number of chunks in a row after which other tasks get a turn.
const TURNS: usize = 4;

/// How long a half-closed connection may stay without progress, once the backend has ended its direction or takes no
/// more. A server that has closed its socket looks the same as one that still reads, and its client may keep the other
/// half open forever: connection pools do.
pub const HALF_CLOSED: Duration = Duration::from_secs(30);

/// The same during a drain.
const IN_DRAIN: Duration = Duration::from_secs(1);

/// How long adit reads from a client that still sends after the backend has ended and takes no more. A close with
/// unread bytes is a reset, which can overtake the end of the backend's answer.
const LINGER: Duration = Duration::from_secs(5);

/// How long adit waits for the client to close, after the backend has answered and reset the connection. After that, the
/// reset is passed on.
const GOODBYE: Duration = Duration::from_millis(100);

/// Times after the client's FIN at which to check whether its socket is closed: a program may send its FIN first, and
/// close later.
const LOOKS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(2), Duration::from_millis(20), Duration::from_millis(200)];
/// Interval of the checks after these.
const LATER: Duration = Duration::from_secs(1);

/// One of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Backend,
}

/// How a splice ended, and how many bytes it moved.
#[derive(Debug)]
pub struct SpliceEnd {
    /// Bytes from the client to the backend.
    pub up: u64,
    /// Bytes from the backend to the client.
    pub down: u64,
    /// The side that broke, and its error. `None`: both ended cleanly.
    pub broken: Option<(Side, io::Error)>,
}

impl SpliceEnd {
    /// Returns the side that broke and its error, for the log. `None`: both ended cleanly.
    pub fn why(&self) -> Option<String> {
        let (side, error) = self.broken.as_ref()?;
        let side = match side {
            Side::Client => "client",
            Side::Backend => "backend",
        };
        Some(format!("{side}: {error}"))
    }

    /// Resets the side that did not break, so that it does not take incomplete bytes for all of them.
    pub fn reset_other(&self, client: &mut impl Io, backend: &mut impl Io) {
        match self.broken {
            Some((Side::Client, _)) => backend.reset(),
            Some((Side::Backend, _)) => client.reset(),
            None => {}
        }
    }
}

/// Copies both ways until both directions have ended or one side breaks. Then resets the other side. See [`Splice`].
pub async fn splice(client: &mut impl Io, backend: &mut impl Io) -> SpliceEnd {
    let mut splice = Splice::new(client, backend);
    let broken = splice.run().await;
    let end = splice.end(broken);
    end.reset_other(client, backend);
    end
}

/// A join of a client and a backend.
///
/// The end of one direction is passed on as a `shutdown`, and the other direction goes on; once the backend has ended,
/// only while bytes move at least every 30 s. If a side breaks, all its bytes before that have been delivered, and the
/// caller resets the other side. If the backend does not take all the client's bytes, the backend is the broken side.
pub struct Splice<'a, C, B> {
    client: &'a mut C,
    backend: &'a mut B,
    up: Direction,
    down: Direction,
    /// Why the backend takes no more of the client's bytes.
    refused: Option<io::Error>,
    /// Delivered bytes, and since when there were no more. Only set while a limit applies.
    delivered: Option<(u64, Instant)>,
    lingers_since: Option<Instant>,
    /// How long no byte may move once the backend has ended.
    patience: Duration,
    /// Returns whether the client's socket is closed. `None`: that is unknown, or is already handled.
    is_gone: Option<&'a (dyn Fn() -> bool + Send + Sync)>,
    /// Number of checks with `is_gone`, and the time of the client's FIN.
    looks: Option<(u32, Instant)>,
    /// The client's socket is closed.
    is_abandoned: bool,
    /// The backend's reset, and its time, until it is known whether the client waits for more.
    reset: Option<(io::Error, Instant)>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<'a, C, B> Splice<'a, C, B>
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: Io,
{
    pub fn new(client: &'a mut C, backend: &'a mut B) -> Self {
        let (up, down) = (Direction::default(), Direction::default());
        Self {
            client,
            backend,
            up,
            down,
            refused: None,
            delivered: None,
            lingers_since: None,
            patience: HALF_CLOSED,
            is_gone: None,
            looks: None,
            is_abandoned: false,
            reset: None,
            timer: None,
        }
    }

    /// Checks with `is_gone` after the client's FIN whether its socket is closed, and then abandons the backend.
    pub fn asking(self, is_gone: &'a (dyn Fn() -> bool + Send + Sync)) -> Self {
        Self { is_gone: Some(is_gone), ..self }
    }

    /// Copies until both directions have ended. Returns the side that broke, and its error.
    ///
    /// Cancel-safe: bytes that were read stay in the splice.
    pub async fn run(&mut self) -> Option<(Side, io::Error)> {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Returns the number of bytes moved, and how the splice ended.
    pub fn end(self, broken: Option<(Side, io::Error)>) -> SpliceEnd {
        SpliceEnd { up: self.up.count, down: self.down.count, broken }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Side, io::Error)>> {
        // The backend's direction first: its last bytes before a break must be delivered before a write notices the break.
        match self.down.poll(cx, self.backend, self.client) {
            Poll::Ready(Err(Failure::Read(error))) if self.may_be_over(&error) => {
                self.reset = Some((error, Instant::now()));
            }
            Poll::Ready(Err(Failure::Read(error))) => return Poll::Ready(Some((Side::Backend, error))),
            Poll::Ready(Err(Failure::Write(error))) => return Poll::Ready(Some((Side::Client, error))),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if self.reset.is_some() {
            return self.poll_over(cx);
        }
        match self.up.poll(cx, self.client, self.backend) {
            Poll::Ready(Err(Failure::Read(error))) => return Poll::Ready(Some((Side::Client, error))),
            // A backend that takes no more bytes may still send some: its reads tell how it ends.
            Poll::Ready(Err(Failure::Write(error))) => self.refused = Some(error),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        match (self.down.is_done(), self.up.stage) {
            (true, Stage::Done) => Poll::Ready(None),
            (true, Stage::Failed) => self.poll_linger(cx),
            (true, Stage::Copying | Stage::Ending) | (false, Stage::Failed) => self.poll_half_closed(cx),
            (false, Stage::Done) => self.poll_gone(cx),
            (false, Stage::Copying | Stage::Ending) => Poll::Pending,
        }
    }

    /// Returns whether a reset of the backend may be a normal close: a TLS server often closes without reading the client's
    /// close_notify, and the kernel then sends a reset.
    fn may_be_over(&self, error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::ConnectionReset
            && self.down.count > 0
            && (self.is_abandoned || self.is_gone.is_some())
    }

    /// Ready(None): the client is closed, and the backend has taken all its bytes. The client's FIN may come shortly after
    /// the reset.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Side, io::Error)>> {
        let is_reset = matches!(self.up.poll(cx, self.client, self.backend), Poll::Ready(Err(Failure::Read(_))));
        let has_ended = self.up.stage != Stage::Copying && self.up.rest.is_empty();
        if has_ended && (is_reset || self.is_abandoned || self.is_gone.is_some_and(|is_gone| is_gone())) {
            return Poll::Ready(None);
        }
        let since = self.reset.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        if self.up.rest.is_empty() {
            ready!(self.poll_timer(cx, since + GOODBYE));
        }
        Poll::Ready(self.reset.take().map(|(error, _)| (Side::Backend, error)))
    }

    /// Checks from time to time whether a client that has sent its FIN still waits for the reply.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Side, io::Error)>> {
        let Some(is_gone) = self.is_gone else { return Poll::Pending };
        loop {
            let (looks, ended) = *self.looks.get_or_insert_with(|| (0, Instant::now()));
            let next = LOOKS.get(looks as usize).copied().unwrap_or_else(|| LATER * (looks - LOOKS.len() as u32 + 1));
            ready!(self.poll_timer(cx, ended + next));
            self.looks = Some((looks + 1, ended));
            if is_gone() {
                (self.is_gone, self.is_abandoned) = (None, true);
                self.backend.abandon();
                return self.poll(cx);
            }
        }
    }

    /// Reads and discards the client's bytes for a backend that has ended and takes no more, until the client has ended, too.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Side, io::Error)>> {
        let since = *self.lingers_since.get_or_insert_with(Instant::now);
        // The time limits a fast sender, too.
        while since.elapsed() < LINGER {
            let mut chunk = [MaybeUninit::<u8>::uninit(); ROOM];
            let mut unwanted = ReadBuf::uninit(&mut chunk);
            match Pin::new(&mut *self.client).poll_read(cx, &mut unwanted) {
                Poll::Ready(Ok(())) if unwanted.filled().is_empty() => return Poll::Ready(None),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some((Side::Client, error))),
                Poll::Pending => {
                    ready!(self.poll_timer(cx, since + LINGER));
                    break;
                }
            }
        }
        let refused = self.refused.take().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
        Poll::Ready(Some((Side::Backend, refused)))
    }

    /// Shortens the wait for a silent client after the backend's end to 1 s: the process drains.
    pub fn hurry(&mut self) {
        self.patience = IN_DRAIN;
    }

    /// Ends a half-closed connection without progress: the backend gets a FIN, as if the client had closed, unless it
    /// has not taken all bytes.
    fn poll_half_closed(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Side, io::Error)>> {
        let count = self.up.delivered() + self.down.delivered();
        let since = match self.delivered {
            Some((before, since)) if before == count => since,
            _ => Instant::now(),
        };
        self.delivered = Some((count, since));
        ready!(self.poll_timer(cx, since + self.patience));
        if self.refused.is_none() && self.up.rest.is_empty() && self.up.stage == Stage::Copying {
            (self.up.stage, self.delivered) = (Stage::Ending, None);
            return self.poll(cx);
        }
        let refused = self.refused.take().unwrap_or_else(|| io::ErrorKind::TimedOut.into());
        Poll::Ready(Some((Side::Backend, refused)))
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        timer.as_mut().poll(cx)
    }
}

enum Failure {
    Read(io::Error),
    Write(io::Error),
}

/// One direction of a splice.
#[derive(Default)]
struct Direction {
    /// Bytes read and not yet written.
    rest: Bytes,
    count: u64,
    needs_flush: bool,
    /// Read error, reported once the bytes before it are written.
    broken: Option<io::Error>,
    stage: Stage,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Copying,
    /// The reader has ended; the writer still needs the FIN.
    Ending,
    Done,
    /// The writer takes no more. The error was returned once.
    Failed,
}

impl Direction {
    fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    fn delivered(&self) -> u64 {
        self.count - self.rest.len() as u64
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Failure>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        match self.stage {
            Stage::Done => return Poll::Ready(Ok(())),
            Stage::Failed => return Poll::Pending,
            Stage::Copying | Stage::Ending => {}
        }
        let polled = self.step(cx, reader, writer);
        match &polled {
            Poll::Ready(Ok(())) => self.stage = Stage::Done,
            Poll::Ready(Err(_)) => self.stage = Stage::Failed,
            Poll::Pending => {}
        }
        polled
    }

    fn step<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Failure>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..TURNS {
            while !self.rest.is_empty() {
                let count = ready!(Pin::new(&mut *writer).poll_write(cx, &self.rest)).map_err(Failure::Write)?;
                if count == 0 {
                    return Poll::Ready(Err(Failure::Write(io::ErrorKind::WriteZero.into())));
                }
                self.rest.advance(count);
                self.needs_flush = true;
            }
            self.rest = Bytes::new();
            if self.stage == Stage::Ending {
                return Pin::new(&mut *writer).poll_shutdown(cx).map_err(Failure::Write);
            }
            if let Some(error) = self.broken.take() {
                return Poll::Ready(Err(Failure::Read(error)));
            }
            let mut chunk = [MaybeUninit::<u8>::uninit(); CHUNK];
            let mut read = ReadBuf::uninit(&mut chunk);
            while read.remaining() >= ROOM {
                let before = read.filled().len();
                match Pin::new(&mut *reader).poll_read(cx, &mut read) {
                    Poll::Pending => break,
                    Poll::Ready(Err(error)) => self.broken = Some(error),
                    Poll::Ready(Ok(())) if read.filled().len() == before => self.stage = Stage::Ending,
                    Poll::Ready(Ok(())) => continue,
                }
                break;
            }
            let filled = read.filled();
            if filled.is_empty() {
                if self.broken.is_some() || self.stage == Stage::Ending {
                    continue;
                }
                if self.needs_flush {
                    ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(Failure::Write)?;
                    self.needs_flush = false;
                }
                return Poll::Pending;
            }
            self.count += filled.len() as u64;
            match Pin::new(&mut *writer).poll_write(cx, filled) {
                Poll::Ready(Ok(count)) => {
                    self.needs_flush = true;
                    if count < filled.len() {
                        self.rest = Bytes::copy_from_slice(&filled[count..]);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Write(error))),
                Poll::Pending => self.rest = Bytes::copy_from_slice(filled),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
