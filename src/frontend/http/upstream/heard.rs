//! What is known of a message while it is under way: whether the backend has said anything, and whether the client's body broke.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower::BoxError;

use super::Body;
use crate::io::{BoxedIo, held::write_through};

/// Whether a byte has come from a backend.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<AtomicBool>);

impl Heard {
    /// Returns the stream, which takes note of what is read from it.
    pub fn on(&self, inner: BoxedIo) -> Listening {
        Listening { inner, heard: self.clone() }
    }

    /// Begins anew, for the next request.
    pub fn forget(&self) {
        self.0.store(false, Ordering::Release);
    }

    pub fn anything(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A stream that takes note of what is read from it.
pub struct Listening {
    inner: BoxedIo,
    heard: Heard,
}

impl AsyncRead for Listening {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.heard.0.store(true, Ordering::Release);
        }
        polled
    }
}

impl AsyncWrite for Listening {
    write_through!();
}

/// Why the body of a client's request broke.
#[derive(Clone, Debug, Default)]
pub struct Broken(Arc<Mutex<Option<String>>>);

impl Broken {
    /// Returns the body, which tells here why it broke.
    pub fn watch(&self, inner: Body) -> Body {
        match inner.is_end_stream() {
            true => inner,
            false => Watched { inner, broken: self.clone() }.boxed_unsync(),
        }
    }

    /// Returns why the body broke. None: it did not.
    pub fn cause(&self) -> Option<String> {
        self.0.lock().expect("no panic while the lock is held").clone()
    }
}

struct Watched {
    inner: Body,
    broken: Broken,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = &polled {
            *self.broken.0.lock().expect("no panic while the lock is held") = Some(innermost(&**error));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Returns the words of the cause that has no other.
pub fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}
