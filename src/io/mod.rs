//! Byte streams. Knows no protocol.

pub mod accept;
pub mod held;
pub mod prefixed;
pub mod read_ahead;
pub mod splice;
pub mod through;
pub mod upgraded;

use std::time::Duration;

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{client, server};

/// A connection in both directions, whatever carries it.
///
/// Contract of the calls on every stream of this crate:
///
/// - a read of 0 bytes: the peer ended its direction cleanly, every byte before it was delivered;
/// - an error of a read: the connection broke (`ConnectionReset` where the peer reset it), and what was
///   read so far may be incomplete. A client in front is reset in turn, never told a clean end;
/// - `shutdown`: no more bytes will be written, but the reply is still wanted;
/// - drop: nothing is wanted any more, in either direction. After a `shutdown` the peer sees a clean end. Without one the carrier
///   tells the peer that bytes are missing, if it can; a TCP socket needs [`reset`](Self::reset) for that.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Turns the drop that follows into a reset, so that the peer does not take what it has for the whole.
    fn reset(&mut self) {}

    /// Says, after `shutdown`, that nobody waits for the reply any more. The stream still delivers what was written.
    fn abandon(&mut self) {}
}

/// An [`Io`] whose carrier does not matter.
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
        // It fails only on a socket that is closed already.
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
