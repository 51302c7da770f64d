//! A stream whose first bytes were already read, and are replayed.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Io,
    through::{said_through, write_through},
};

/// Reads `prefix` first, then the inner stream. Writes pass through.
#[derive(Debug)]
pub struct Prefixed<T> {
    prefix: Bytes,
    inner: T,
}

impl<T> Prefixed<T> {
    pub fn new(prefix: Bytes, inner: T) -> Self {
        Self { prefix, inner }
    }
}

/// Moves as many bytes of `rest` into `buf` as fit. Frees the buffer of an empty `rest`.
pub fn take(rest: &mut Bytes, buf: &mut ReadBuf<'_>) {
    let count = rest.len().min(buf.remaining());
    buf.put_slice(&rest[..count]);
    rest.advance(count);
    if rest.is_empty() {
        // It is a slice of a read buffer, which should not live as long as the connection.
        *rest = Bytes::new();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Prefixed<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        take(&mut self.prefix, buf);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Prefixed<T> {
    write_through!();
}

impl<T: Io> Io for Prefixed<T> {
    said_through!();
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn the_prefix_comes_first_and_nothing_is_lost() {
        let (inner, mut peer) = tokio::io::duplex(64);
        let mut stream = Prefixed::new(Bytes::from_static(b"first "), inner);
        peer.write_all(b"then").await.unwrap();
        peer.shutdown().await.unwrap();
        let mut small = [0; 4];
        stream.read_exact(&mut small).await.unwrap();
        assert_eq!(&small, b"firs");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "t then");
        stream.write_all(b"back").await.unwrap();
        drop(stream);
        let mut back = String::new();
        peer.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, "back");
    }
}
