//! A stream that holds a value until it is dropped: a count, a lease, a process.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Io,
    through::{said_through, write_through},
};

/// Passes on reads and writes; `G` lives as long as the stream.
#[derive(Debug)]
pub struct Held<T, G> {
    inner: T,
    _held: G,
}

impl<T, G> Held<T, G> {
    pub fn new(inner: T, held: G) -> Self {
        Self { inner, _held: held }
    }
}

impl<T: AsyncRead + Unpin, G: Unpin> AsyncRead for Held<T, G> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin, G: Unpin> AsyncWrite for Held<T, G> {
    write_through!();
}

impl<T: Io, G: Send + Unpin + 'static> Io for Held<T, G> {
    said_through!();
}
