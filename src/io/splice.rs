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
    time::timeout,
};

/// What is read before it is written. It is on the stack: a connection that is idle, or whose reader keeps up, holds no
/// buffer. Four records of TLS, less what a layer between may put before it: a few bytes more would be a record of their own.
const CHUNK: usize = 64 * 1024 - 4;

/// With less room than a record of TLS in a chunk, it is written before more is read.
const ROOM: usize = 16 * 1024;

/// After this many chunks in a row other tasks get their turn.
const TURNS: usize = 4;

/// How long the client may go on after the backend has ended. What it sends leads nowhere, but closing over bytes
/// that nobody read is a reset, which can overtake the end of the backend's answer.
const LINGER: Duration = Duration::from_secs(5);

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Backend,
}

/// How a splice ended, and what it moved.
#[derive(Debug)]
pub struct SpliceEnd {
    /// Bytes from the client to the backend.
    pub up: u64,
    /// Bytes from the backend to the client.
    pub down: u64,
    /// The side that broke, and how. None: both ended cleanly.
    pub broken: Option<(Side, io::Error)>,
}

/// Copies both ways until both have ended, or one breaks.
///
/// An end of one direction is passed on as an end (`shutdown`), and the other direction goes on. When a side breaks,
/// everything that came from it before has been delivered; the caller resets the other side.
pub async fn splice<C, B>(client: &mut C, backend: &mut B) -> SpliceEnd
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Direction::default(), Direction::default());
    let mut broken = poll_fn(|cx| {
        // The backend's direction first: what it said before it broke is delivered before a write notices the break.
        match down.poll(cx, backend, client) {
            Poll::Ready(Ok(())) => return Poll::Ready(None),
            Poll::Ready(Err(Failure::Read(error))) => return Poll::Ready(Some((Side::Backend, error))),
            Poll::Ready(Err(Failure::Write(error))) => return Poll::Ready(Some((Side::Client, error))),
            Poll::Pending => {}
        }
        match up.poll(cx, client, backend) {
            Poll::Ready(Err(Failure::Read(error))) => Poll::Ready(Some((Side::Client, error))),
            // A backend that takes no more may still have something to say: its reads tell how it ended.
            Poll::Ready(_) | Poll::Pending => Poll::Pending,
        }
    })
    .await;
    if broken.is_none() && !up.is_done() {
        (up.stage, up.rest) = (Stage::Copying, Bytes::new());
        let rest = poll_fn(|cx| up.poll(cx, client, &mut Sink));
        if let Ok(Err(Failure::Read(error))) = timeout(LINGER, rest).await {
            broken = Some((Side::Client, error));
        }
    }
    SpliceEnd { up: up.count, down: down.count, broken }
}

enum Failure {
    Read(io::Error),
    Write(io::Error),
}

/// One direction of a splice.
#[derive(Default)]
struct Direction {
    /// Bytes that were read and not yet written.
    rest: Bytes,
    count: u64,
    needs_flush: bool,
    /// How the reader broke, to be told when what came before is written.
    broken: Option<io::Error>,
    stage: Stage,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Copying,
    /// The reader has ended; the writer is to be told.
    Ending,
    Done,
    /// The writer takes no more. It was said once.
    Failed,
}

impl Direction {
    fn is_done(&self) -> bool {
        self.stage == Stage::Done
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

/// Takes everything and keeps nothing.
struct Sink;

impl AsyncWrite for Sink {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio_test::io::Builder;

    use super::*;

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

    /// Takes no bytes, and has something to say.
    struct Refusing(DuplexStream);

    impl AsyncRead for Refusing {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

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
