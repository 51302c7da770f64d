//! The byte stream of an extended CONNECT (RFC 8441), after its answer.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::io::Io;

/// An HTTP/2 stream as a byte stream.
pub struct Tunnel {
    receiving: RecvStream,
    sending: SendStream<Bytes>,
    /// Received bytes that were not read yet.
    read: Bytes,
    is_shut: bool,
    /// Keeps the connection from counting as idle.
    _open: TaskTrackerToken,
}

impl Tunnel {
    pub(super) fn new(receiving: RecvStream, sending: SendStream<Bytes>, open: TaskTrackerToken) -> Self {
        Self { receiving, sending, read: Bytes::new(), is_shut: false, _open: open }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.read.is_empty() {
            match ready!(this.receiving.poll_data(cx)) {
                Some(Ok(data)) => this.read = data,
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let count = this.read.len().min(buf.remaining());
        buf.put_slice(&this.read[..count]);
        this.read.advance(count);
        // Fails only if the stream has ended, and no more data can arrive.
        let _ = this.receiving.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.sending.reserve_capacity(buf.len());
        let room = ready!(super::poll_room(&mut self.sending, cx)).map_err(broken)?;
        let count = room.min(buf.len());
        self.sending.send_data(Bytes::copy_from_slice(&buf[..count]), false).map_err(broken)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.is_shut, true) {
            self.sending.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Io for Tunnel {}

/// Returns the I/O error for a reset, or for the end of the connection.
fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
