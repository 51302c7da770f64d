//! Trailers of HTTP/1.1 messages (RFC 9112, section 7.1.2).
//!
//! hyper sends only those trailers that the Trailer header has announced. That header is optional, and gRPC servers do not
//! send it. So the body and the stream below hyper pass the trailers on together:
//!
//! ```text
//! body: trailers come, and wait --> stream: hyper flushes, so everything before them is written
//! --> body: ends --> stream: hyper writes the last chunk, which gets the trailers
//! ```

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use futures::task::AtomicWaker;
use http::{
    HeaderMap, HeaderName,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HOST,
        MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
    },
};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower::BoxError;

use super::body::Body;
use crate::io::{BoxedIo, Io, poll_write_all, through::said_through};

/// End of a chunked body without trailers.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Fields about framing, routing, authentication or content, which no trailer may have (RFC 9110, section 6.5.1).
const FORBIDDEN: [HeaderName; 12] = [
    AUTHORIZATION,
    CACHE_CONTROL,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    HOST,
    MAX_FORWARDS,
    SET_COOKIE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
];

/// Trailers of the message that is being sent on one HTTP/1.1 connection.
#[derive(Clone, Default)]
pub struct Trailers(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    waker: AtomicWaker,
}

#[derive(Default)]
enum State {
    #[default]
    None,
    /// A last chunk that waits until everything before it is written.
    Waiting(BytesMut),
    /// A last chunk to send in place of hyper's, which is next.
    Due(BytesMut),
}

impl Trailers {
    /// Wraps the stream that hyper writes to. It is boxed, so that [`connection_of`](crate::io::upgraded::connection_of) finds it
    /// below an upgraded connection.
    pub fn on(&self, inner: BoxedIo) -> BoxedIo {
        Box::new(TrailersStream { inner, trailers: self.clone(), last: BytesMut::new() })
    }

    /// Wraps the body of a message with chunks that hyper writes to this stream.
    pub fn of(&self, inner: Body) -> Body {
        TrailersBody { inner, trailers: self.clone(), is_told: false }.boxed_unsync()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic while the lock is held")
    }

    fn poll_due(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.waker.register(cx.waker());
        if matches!(*self.lock(), State::Waiting(_)) { Poll::Pending } else { Poll::Ready(()) }
    }

    fn flushed(&self) {
        let mut state = self.lock();
        if let State::Waiting(last) = &mut *state {
            *state = State::Due(std::mem::take(last));
            self.0.waker.wake();
        }
    }

    /// Returns the chunk to send in place of `written`.
    fn in_place_of(&self, written: &[u8]) -> Option<BytesMut> {
        let mut state = self.lock();
        match &mut *state {
            State::Due(last) if written.starts_with(LAST_CHUNK) => {
                let last = std::mem::take(last);
                *state = State::None;
                Some(last)
            }
            _ => None,
        }
    }
}

/// Returns the last chunk with these trailers.
fn last_chunk(trailers: &HeaderMap) -> BytesMut {
    let mut last = BytesMut::from(&b"0\r\n"[..]);
    for (name, value) in trailers.iter().filter(|(name, _)| !FORBIDDEN.contains(name)) {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            last.extend_from_slice(part);
        }
    }
    last.extend_from_slice(b"\r\n");
    last
}

struct TrailersBody {
    inner: Body,
    trailers: Trailers,
    /// The stream has the trailers.
    is_told: bool,
}

impl HttpBody for TrailersBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if !this.is_told {
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) if frame.is_trailers() => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    *this.trailers.lock() = State::Waiting(last_chunk(&trailers));
                    this.is_told = true;
                }
                other => return Poll::Ready(other),
            }
        }
        this.trailers.poll_due(cx).map(|()| None)
    }

    fn is_end_stream(&self) -> bool {
        !self.is_told && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A stream that adds the trailers to the last chunk of a message.
struct TrailersStream {
    inner: BoxedIo,
    trailers: Trailers,
    /// Unwritten rest of a last chunk.
    last: BytesMut,
}

impl TrailersStream {
    fn poll_last(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_write_all(cx, &mut self.inner, &mut self.last)
    }

    /// Takes hyper's last chunk, if it gets trailers. Returns its length.
    fn replace(&mut self, written: &[u8]) -> Option<usize> {
        self.last = self.trailers.in_place_of(written)?;
        Some(LAST_CHUNK.len())
    }
}

impl AsyncRead for TrailersStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for TrailersStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_last(cx))?;
        match self.replace(buf) {
            Some(count) => Poll::Ready(Ok(count)),
            None => Pin::new(&mut self.inner).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_last(cx))?;
        let first = bufs.iter().find(|buf| !buf.is_empty());
        match first.and_then(|first| self.replace(first)) {
            Some(count) => Poll::Ready(Ok(count)),
            None => Pin::new(&mut self.inner).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_last(cx))?;
        // hyper flushes only when it has written everything.
        self.trailers.flushed();
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_last(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl Io for TrailersStream {
    said_through!();
}
