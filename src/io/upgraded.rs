//! The connection below an upgrade of hyper.

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{BoxedIo, Io, prefixed::Prefixed};

/// A stream of hyper's hides what it stands on, so a reset does not get through.
impl<T> Io for TokioIo<T> where Self: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

/// Returns the connection that was upgraded, with the bytes that hyper has read ahead. `T`: the type of the stream that hyper was given.
pub fn connection_of<T: Io>(upgraded: Upgraded) -> BoxedIo {
    match upgraded.downcast::<TokioIo<T>>() {
        Ok(parts) => Box::new(Prefixed::new(parts.read_buf, parts.io.into_inner())),
        Err(upgraded) => Box::new(TokioIo::new(upgraded)),
    }
}
