//! Byte streams. Knows no protocol.

pub mod abandoned;
pub mod accept;
pub mod held;
pub mod prefixed;
pub mod read_ahead;
pub mod splice;

use tokio::io::{AsyncRead, AsyncWrite};

/// A connection in both directions, whatever carries it.
///
/// Contract of the calls on every stream of this crate:
///
/// - a read of 0 bytes: the peer ended its direction cleanly, every byte before it was delivered;
/// - an error of a read: the connection broke (`ConnectionReset` where the peer reset it), and what was
///   read so far may be incomplete. A client in front is reset in turn, never told a clean end;
/// - `shutdown`: no more bytes will be written, but the reply is still wanted;
/// - drop: nothing is wanted any more, in either direction.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// An [`Io`] whose carrier does not matter.
pub type BoxedIo = Box<dyn Io>;
