//! Byte streams, without any protocol.

pub mod accept;
pub mod dial;
pub mod held;
pub mod prefixed;
pub mod read_ahead;
pub mod splice;
pub mod through;
pub mod upgraded;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Buf;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{client, server};

/// A connection in both directions, on any transport.
///
/// Contract of every stream in this crate:
///
/// - a read of 0 bytes: the peer has ended its direction cleanly, and every byte before that was delivered;
/// - a read error: the connection broke (`ConnectionReset` if the peer reset it), and the bytes read so far may be
///   incomplete. adit then resets the client, and never ends its connection cleanly;
/// - `shutdown`: no more bytes will be written, but the reply is still wanted;
/// - drop: nothing is wanted any more, in either direction. After a `shutdown` the peer sees a clean end. Without one,
///   the transport tells the peer that bytes are missing, if it can; a TCP socket needs [`reset`](Self::reset) for
///   that.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Turns the next drop into a reset, so that the peer does not take incomplete bytes for all of them.
    fn reset(&mut self) {}

    /// Tells the stream, after `shutdown`, that no client waits for the reply. It still delivers the bytes written.
    fn abandon(&mut self) {}
}

/// Writes all of `bytes`, and consumes what is written.
///
/// # Errors
/// `WriteZero` if the stream takes nothing.
pub fn poll_write_all(
    cx: &mut Context<'_>,
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &mut impl Buf,
) -> Poll<io::Result<()>> {
    while bytes.has_remaining() {
        match ready!(Pin::new(&mut *stream).poll_write(cx, bytes.chunk()))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            count => bytes.advance(count),
        }
    }
    Poll::Ready(Ok(()))
}

/// An [`Io`] on any transport.
pub type BoxedIo = Box<dyn Io>;

impl Io for BoxedIo {
    fn reset(&mut self) {
        (**self).reset();
    }

    fn abandon(&mut self) {
        (**self).abandon();
    }
}

impl Io for TcpStream {
    fn reset(&mut self) {
        // Fails only on a socket that is already closed.
        let _ = SockRef::from(&*self).set_linger(Some(Duration::ZERO));
    }
}

impl<T: Io> Io for client::TlsStream<T> {
    fn reset(&mut self) {
        self.get_mut().0.reset();
    }
}

impl<T: Io> Io for server::TlsStream<T> {
    fn reset(&mut self) {
        self.get_mut().0.reset();
    }
}

impl Io for UnixStream {}

impl Io for DuplexStream {}

#[cfg(test)]
impl Io for tokio_test::io::Mock {}
