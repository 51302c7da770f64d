//! A stream that reads large pieces from the inner one, even if its reader asks for small ones.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::{
    Io,
    prefixed::take,
    through::{said_through, write_through},
};

/// Size of one read: four TLS records.
const CHUNK: usize = 64 * 1024;

/// Read buffer below TLS: rustls asks for 4 KiB at a time, which makes five system calls for each record.
///
/// Holds a buffer only while there are bytes in it.
#[derive(Debug)]
pub struct ReadAhead<T> {
    inner: T,
    rest: Bytes,
}

impl<T> ReadAhead<T> {
    pub fn new(inner: T) -> Self {
        Self { inner, rest: Bytes::new() }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadAhead<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            let mut chunk = BytesMut::with_capacity(CHUNK);
            ready!(poll_read_buf(Pin::new(&mut this.inner), cx, &mut chunk))?;
            this.rest = chunk.freeze();
        }
        take(&mut this.rest, buf);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadAhead<T> {
    write_through!();
}

impl<T: Io> Io for ReadAhead<T> {
    said_through!();
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn small_reads_see_every_byte_in_order_and_the_end() {
        let (inner, mut peer) = tokio::io::duplex(1 << 20);
        let mut stream = ReadAhead::new(inner);
        let sent: Vec<u8> = (0..200_000u32).map(|number| (number * 7 % 251) as u8).collect();
        peer.write_all(&sent).await.unwrap();
        drop(peer);
        let mut received = Vec::new();
        let mut small = [0; 4096];
        loop {
            match stream.read(&mut small).await.unwrap() {
                0 => break,
                count => received.extend_from_slice(&small[..count]),
            }
        }
        assert!(received == sent);
        assert!(!stream.rest.is_unique(), "an idle stream holds no buffer");
    }

    #[tokio::test]
    async fn an_error_comes_behind_the_bytes_before_it() {
        let broken = io::ErrorKind::ConnectionReset;
        let inner = tokio_test::io::Builder::new().read(b"half").read_error(broken.into()).build();
        let mut stream = ReadAhead::new(inner);
        let mut received = Vec::new();
        assert_eq!(stream.read_to_end(&mut received).await.unwrap_err().kind(), broken);
        assert_eq!(received, b"half");
    }
}
