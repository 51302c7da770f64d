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
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::sleep;
    use tokio_test::io::Builder;

    use super::*;
    use crate::io::through::write_through;

    /// Precision of the timers.
    const ROUND: Duration = Duration::from_millis(10);

    /// Always has bytes, until it has none left, and takes all bytes at once.
    struct Eager {
        left: usize,
    }

    impl AsyncRead for Eager {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let count = buf.remaining().min(self.left);
            self.left -= count;
            buf.put_slice(&vec![7; count]);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Eager {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Io for Eager {}

    #[tokio::test]
    async fn other_tasks_get_a_turn_during_a_transfer_that_never_waits() {
        let (mut client, mut backend) = (Eager { left: 0 }, Eager { left: 100 * CHUNK });
        let mut splice = Splice::new(&mut client, &mut backend);
        let mut polls = 1;
        while futures::poll!(std::pin::pin!(splice.run())).is_pending() {
            assert!(splice.down.count <= (polls * TURNS * CHUNK) as u64);
            polls += 1;
        }
        assert!(polls > 20, "{polls}");
    }

    #[tokio::test]
    async fn a_half_close_leaves_the_reply_alone() {
        let (mut client, mut front) = duplex(64);
        let (mut back, mut backend) = duplex(64);
        let splicing = tokio::spawn(async move { splice(&mut front, &mut back).await });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        backend.read_to_string(&mut question).await.unwrap();
        backend.write_all(b"answer").await.unwrap();
        drop(backend);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
        let end = splicing.await.unwrap();
        assert_eq!((end.up, end.down), (8, 6));
        assert!(end.broken.is_none());
    }

    #[tokio::test]
    async fn what_came_before_a_reset_is_delivered_and_the_reset_is_told() {
        let (mut client, mut front) = duplex(64);
        let mut back = Builder::new().read(b"half an ans").read_error(io::ErrorKind::ConnectionReset.into()).build();
        let end = splice(&mut front, &mut back).await;
        assert!(matches!(&end.broken, Some((Side::Backend, error)) if error.kind() == io::ErrorKind::ConnectionReset));
        drop(front);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "half an ans");
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_resets_behind_a_client_that_is_gone_has_closed() {
        // Bytes that the backend sent before, whether the client's socket is closed, and whether the reset is a fault.
        for (said, is_gone, is_fault) in [("bye", true, false), ("bye", false, true), ("", true, true)] {
            let (mut client, mut front) = duplex(64);
            client.write_all(b"quit").await.unwrap();
            client.shutdown().await.unwrap();
            // A mock shares its errors with its builder.
            let mut back = {
                let mut builder = Builder::new();
                if !said.is_empty() {
                    builder.read(said.as_bytes());
                }
                builder.write(b"quit").read_error(io::ErrorKind::ConnectionReset.into()).build()
            };
            let is_gone = || is_gone;
            let broken = Splice::new(&mut front, &mut back).asking(&is_gone).run().await;
            assert_eq!(broken.is_some(), is_fault, "{said:?} {}", is_gone());
        }
    }

    /// Takes no bytes, but sends some.
    struct Refusing(DuplexStream);

    impl AsyncRead for Refusing {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl Io for Refusing {}

    impl AsyncWrite for Refusing {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn an_answer_is_read_though_the_question_is_no_longer_taken() {
        let (mut client, mut front) = duplex(64);
        let (back, mut backend) = duplex(64);
        client.write_all(b"a long upload").await.unwrap();
        let splicing = tokio::spawn(async move { splice(&mut front, &mut Refusing(back)).await });
        tokio::task::yield_now().await;
        backend.write_all(b"413").await.unwrap();
        drop(backend);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "413");
        drop(client);
        assert!(splicing.await.unwrap().broken.is_none());
    }

    /// Returns a client and a backend that are joined, and the splice's task.
    fn joined(room: usize) -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<SpliceEnd>) {
        let (client, mut front) = duplex(room);
        let (mut back, backend) = duplex(room);
        (client, backend, tokio::spawn(async move { splice(&mut front, &mut back).await }))
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_client_still_sends_after_the_end_of_the_backend_arrives() {
        let (mut client, mut backend, splicing) = joined(64);
        backend.write_all(b"greeting").await.unwrap();
        backend.shutdown().await.unwrap();
        let mut greeting = String::new();
        client.read_to_string(&mut greeting).await.unwrap();
        let sending = tokio::spawn(async move {
            for _ in 0..10 {
                client.write_all(&[b'x'; 100]).await.unwrap();
                sleep(HALF_CLOSED * 2 / 3).await;
            }
            client.shutdown().await.unwrap();
            client
        });
        let mut upload = Vec::new();
        backend.read_to_end(&mut upload).await.unwrap();
        drop(sending.await.unwrap());
        let end = splicing.await.unwrap();
        assert_eq!((greeting.as_str(), upload.len(), end.up, end.down), ("greeting", 1000, 1000, 8));
        assert!(end.broken.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_after_the_end_of_the_backend_is_waited_for_30_s() {
        let (mut client, mut backend, splicing) = joined(64);
        backend.shutdown().await.unwrap();
        sleep(HALF_CLOSED / 2).await;
        client.write_all(b"late").await.unwrap();
        let said = Instant::now();
        assert!(splicing.await.unwrap().broken.is_none());
        assert!((HALF_CLOSED..HALF_CLOSED + ROUND).contains(&said.elapsed()), "{:?}", said.elapsed());
        let mut late = String::new();
        backend.read_to_string(&mut late).await.unwrap();
        assert_eq!(late, "late", "and the backend sees a clean end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_ended_is_waited_with_for_as_long_as_its_answer_takes() {
        let (mut client, mut backend, splicing) = joined(64);
        client.shutdown().await.unwrap();
        sleep(HALF_CLOSED * 100).await;
        backend.write_all(b"slow").await.unwrap();
        drop(backend);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "slow");
        assert!(splicing.await.unwrap().broken.is_none());
    }

    /// A backend that records when it is abandoned.
    struct Noting {
        inner: DuplexStream,
        abandoned: Option<Instant>,
    }

    impl AsyncRead for Noting {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            match self.abandoned {
                Some(_) => Poll::Ready(Ok(())),
                None => Pin::new(&mut self.inner).poll_read(cx, buf),
            }
        }
    }

    impl AsyncWrite for Noting {
        write_through!();
    }

    impl Io for Noting {
        fn abandon(&mut self) {
            self.abandoned = Some(Instant::now());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_is_abandoned_once_its_client_is_gone_and_not_while_it_only_listens() {
        for (gone_after, noticed_after) in [(0, 0), (1, 2), (150, 200), (2_500, 3_000)] {
            let (gone_after, noticed_after) = (Duration::from_millis(gone_after), Duration::from_millis(noticed_after));
            let (mut client, mut front) = duplex(64);
            let (back, mut backend) = duplex(64);
            let mut back = Noting { inner: back, abandoned: None };
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let since = Instant::now();
            let is_gone = || since.elapsed() >= gone_after;
            let mut splice = Splice::new(&mut front, &mut back).asking(&is_gone);
            assert!(splice.run().await.is_none());
            let noticed = back.abandoned.expect("it is abandoned") - since;
            assert!((noticed_after..noticed_after + ROUND).contains(&noticed), "{gone_after:?}: {noticed:?}");
            drop(back);
            let mut question = String::new();
            backend.read_to_string(&mut question).await.unwrap();
            assert_eq!(question, "question");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_a_backend_never_takes_are_no_clean_end() {
        let (mut client, mut backend, splicing) = joined(8);
        backend.shutdown().await.unwrap();
        let writing = tokio::spawn(async move { client.write_all(&[0; 100]).await });
        let end = splicing.await.unwrap();
        assert!(matches!(&end.broken, Some((Side::Backend, error)) if error.kind() == io::ErrorKind::TimedOut));
        assert!(writing.await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_goes_on_sending_to_nobody_is_reset_after_the_answer() {
        let (client, mut front) = duplex(64);
        let (back, mut backend) = duplex(64);
        let splicing = tokio::spawn(async move { splice(&mut front, &mut Refusing(back)).await });
        backend.write_all(b"413").await.unwrap();
        drop(backend);
        let (mut read, mut write) = tokio::io::split(client);
        let writing = tokio::spawn(async move {
            while write.write_all(b"upload").await.is_ok() {
                // A paused clock advances only while all tasks wait for it.
                sleep(ROUND / 2).await;
            }
        });
        let mut answer = String::new();
        read.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "413");
        let ended = Instant::now();
        let end = splicing.await.unwrap();
        assert!(matches!(&end.broken, Some((Side::Backend, error)) if error.kind() == io::ErrorKind::BrokenPipe));
        assert!((LINGER..LINGER + ROUND).contains(&ended.elapsed()), "{:?}", ended.elapsed());
        writing.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_refuses_bytes_and_says_nothing_is_left() {
        let (mut client, mut front) = duplex(64);
        let (back, _backend) = duplex(64);
        client.write_all(b"hello").await.unwrap();
        let end = splice(&mut front, &mut Refusing(back)).await;
        assert!(matches!(&end.broken, Some((Side::Backend, error)) if error.kind() == io::ErrorKind::BrokenPipe));
    }

    #[tokio::test]
    async fn every_byte_arrives_in_order_through_small_pipes() {
        let (client, mut front) = duplex(7);
        let (mut back, backend) = duplex(1000);
        tokio::spawn(async move { splice(&mut front, &mut back).await });
        let echo = tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(backend);
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let sent: Vec<u8> = (0..200_000u32).map(|number| (number * 7 % 251) as u8).collect();
        let (mut read, mut write) = tokio::io::split(client);
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        read.read_to_end(&mut received).await.unwrap();
        writing.await.unwrap();
        echo.await.unwrap();
        assert!(received == expected);
    }
}
