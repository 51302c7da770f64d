//! Framing for a connection that carries one visitor's stream after another.
//!
//! ```text
//! chunk: length 4, big-endian, 1 to 65,536 | bytes
//! end of a direction: length 0
//! ```

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::Io;

/// Longest accepted chunk, in bytes.
const LONGEST: usize = 64 * 1024;

const HEADER: usize = 4;

/// Longest chunk that adit sends: with its header it fills four TLS records.
const LONGEST_SENT: usize = 64 * 1024 - HEADER;

/// One stream on a connection that outlives it. Each direction has its own end, and the stream reads nothing after it.
#[derive(Debug)]
pub struct Carrier<S> {
    inner: S,
    reading: Reading,
    writing: Writing,
}

/// Position of the reader: in a header, in a chunk, or after the end.
#[derive(Debug)]
enum Reading {
    Header { bytes: [u8; HEADER], count: usize },
    Chunk { left: usize },
    Ended,
}

#[derive(Debug, Default)]
struct Writing {
    header: [u8; HEADER],
    /// Bytes of the header, and of the chunk after it, that are not yet written.
    header_left: usize,
    chunk_left: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    Ending,
    Ended,
}

impl<S> Carrier<S> {
    /// Returns a stream that starts with the next byte of `inner`, in both directions.
    pub fn new(inner: S) -> Self {
        Self { inner, reading: Reading::Header { bytes: [0; HEADER], count: 0 }, writing: Writing::default() }
    }

    /// Returns the connection for the next stream, if both directions of this stream have ended.
    pub fn into_inner(self) -> Option<S> {
        let has_ended = matches!(self.reading, Reading::Ended) && self.writing.stage == Stage::Ended;
        has_ended.then_some(self.inner)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Carrier<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.reading {
                Reading::Header { bytes, count } => {
                    let mut rest = ReadBuf::new(&mut bytes[*count..]);
                    ready!(Pin::new(&mut this.inner).poll_read(cx, &mut rest))?;
                    match rest.filled().len() {
                        0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                        more => *count += more,
                    }
                    if *count < HEADER {
                        continue;
                    }
                    this.reading = match u32::from_be_bytes(*bytes) as usize {
                        0 => Reading::Ended,
                        left if left <= LONGEST => Reading::Chunk { left },
                        left => {
                            let problem = format!("a chunk of {left} bytes");
                            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, problem)));
                        }
                    };
                }
                Reading::Chunk { left } => {
                    let count = if *left >= buf.remaining() {
                        let before = buf.filled().len();
                        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
                        buf.filled().len() - before
                    } else {
                        let mut part = ReadBuf::new(buf.initialize_unfilled_to(*left));
                        ready!(Pin::new(&mut this.inner).poll_read(cx, &mut part))?;
                        let count = part.filled().len();
                        buf.advance(count);
                        count
                    };
                    if count == 0 && buf.remaining() > 0 {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    *left -= count;
                    if *left == 0 {
                        this.reading = Reading::Header { bytes: [0; HEADER], count: 0 };
                    }
                    return Poll::Ready(Ok(()));
                }
                Reading::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl Writing {
    /// Writes the header, then `chunk`. Returns how many bytes of the chunk were written.
    fn poll<S>(&mut self, cx: &mut Context<'_>, inner: &mut S, chunk: &[u8]) -> Poll<io::Result<usize>>
    where
        S: AsyncWrite + Unpin,
    {
        loop {
            let header = &self.header[HEADER - self.header_left..];
            let count = if header.is_empty() {
                ready!(Pin::new(&mut *inner).poll_write(cx, chunk))?
            } else {
                ready!(Pin::new(&mut *inner).poll_write_vectored(cx, &[IoSlice::new(header), IoSlice::new(chunk)]))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_header = count.min(self.header_left);
            self.header_left -= of_header;
            if count > of_header || (chunk.is_empty() && self.header_left == 0) {
                self.chunk_left -= count - of_header;
                return Poll::Ready(Ok(count - of_header));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Carrier<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.writing.stage != Stage::Open {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let writing = &mut this.writing;
        if writing.chunk_left == 0 {
            writing.chunk_left = buf.len().min(LONGEST_SENT);
            writing.header = (writing.chunk_left as u32).to_be_bytes();
            writing.header_left = HEADER;
        }
        let chunk = &buf[..buf.len().min(writing.chunk_left)];
        let polled = writing.poll(cx, &mut this.inner, chunk);
        if polled.is_pending() && writing.header_left == HEADER {
            // No byte of the header is written yet: the next write may have another length.
            (writing.header_left, writing.chunk_left) = (0, 0);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    /// Ends this direction of the stream, but not of the connection.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let writing = &mut this.writing;
        if writing.stage == Stage::Open {
            if writing.chunk_left > 0 {
                // The other end would read the end marker as part of the chunk.
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "ended within a chunk")));
            }
            (writing.header, writing.header_left, writing.stage) = ([0; HEADER], HEADER, Stage::Ending);
        }
        if writing.header_left > 0 {
            ready!(writing.poll(cx, &mut this.inner, &[]))?;
        }
        ready!(Pin::new(&mut this.inner).poll_flush(cx))?;
        this.writing.stage = Stage::Ended;
        Poll::Ready(Ok(()))
    }
}

impl<S: Io> Io for Carrier<S> {}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio_test::io::Builder;

    use super::*;

    #[tokio::test]
    async fn a_connection_carries_one_stream_after_another_byte_for_byte() {
        // Pipes smaller and larger than a chunk.
        for room in [3, 1000, 200_000] {
            let (near, far) = duplex(room);
            let (mut near, mut far) = (near, far);
            for length in [0, 1, 5, 70_000, 200_001] {
                let sent: Vec<u8> = (0..length).map(|number: u32| (number * 7 % 251) as u8).collect();
                let (mut client, mut server) = (Carrier::new(near), Carrier::new(far));
                let expected = sent.clone();
                let echo = tokio::spawn(async move {
                    let mut all = Vec::new();
                    server.read_to_end(&mut all).await.unwrap();
                    server.write_all(&all).await.unwrap();
                    server.shutdown().await.unwrap();
                    server
                });
                let mut rest = &sent[..];
                while !rest.is_empty() {
                    let (first, others) = rest.split_at(rest.len().div_ceil(3));
                    client.write_all(first).await.unwrap();
                    rest = others;
                }
                client.shutdown().await.unwrap();
                let mut received = Vec::new();
                client.read_to_end(&mut received).await.unwrap();
                assert!(received == expected, "{length} bytes through {room}");
                near = client.into_inner().unwrap();
                far = echo.await.unwrap().into_inner().unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_within_a_stream_has_broken() {
        for cut in [&b""[..], b"\0\0", b"\0\0\0\x03", b"\0\0\0\x03ab", b"\0\0\0\x02ab"] {
            let mut carrier = Carrier::new(Builder::new().read(cut).build());
            let error = carrier.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{cut:?}");
            assert!(carrier.into_inner().is_none());
        }
        let mut carrier = Carrier::new(Builder::new().read(b"\0\x01\0\x01").build());
        assert_eq!(carrier.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn nothing_is_read_behind_the_end_and_no_connection_is_used_again_before_it() {
        let (near, mut far) = duplex(64);
        let mut carrier = Carrier::new(near);
        far.write_all(b"\0\0\0\x02ab\0\0\0\0next").await.unwrap();
        let mut all = Vec::new();
        carrier.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"ab");
        carrier.shutdown().await.unwrap();
        assert!(carrier.write_all(b"late").await.is_err());
        let mut next = [0; 4];
        carrier.into_inner().unwrap().read_exact(&mut next).await.unwrap();
        assert_eq!(&next, b"next");
        assert!(Carrier::new(far).into_inner().is_none());
    }
}
