//! The connection below hyper's `Upgraded`.

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{BoxedIo, Io, prefixed::Prefixed};

/// hyper's stream hides the inner connection, so a reset does not reach it.
impl<T> Io for TokioIo<T> where Self: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

/// Returns the upgraded connection, with the bytes that hyper has read ahead. `T`: type of the stream that hyper was given.
pub fn connection_of<T: Io>(upgraded: Upgraded) -> BoxedIo {
    match upgraded.downcast::<TokioIo<T>>() {
        Ok(parts) => Box::new(Prefixed::new(parts.read_buf, parts.io.into_inner())),
        Err(upgraded) => Box::new(TokioIo::new(upgraded)),
    }
}
