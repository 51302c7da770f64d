//! Connections to an API server. As in Go, an end without `close_notify` is a clean end. They also record the server's
//! limit of HTTP/2 streams, which hyper does not expose.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower::Service;

use crate::io::through::write_through;

/// The first frame of a server is SETTINGS (RFC 9113, section 3.4): a header of 9 bytes, then 6 bytes per setting.
const HEADER: usize = 9;
const SETTING: usize = 6;
const SETTINGS: u8 = 4;
const MAX_CONCURRENT_STREAMS: u16 = 3;

/// Longer than any SETTINGS frame, in bytes.
const LONGEST: usize = 1024;

/// Maximum number of streams on an HTTP/2 connection, as announced on the server's last connection.
#[derive(Clone, Debug, Default)]
pub struct Limit(Arc<AtomicUsize>);

impl Limit {
    /// Returns the limit. `None`: the server has announced none.
    pub fn get(&self) -> Option<usize> {
        Some(self.0.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }
}

/// Returns the limit in the first bytes of a server. Pending: more bytes are needed.
fn limit(bytes: &[u8]) -> Poll<Option<usize>> {
    let [a, b, c, kind, ..] = *bytes else { return Poll::Pending };
    let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
    if kind != SETTINGS || length > LONGEST {
        return Poll::Ready(None);
    }
    let Some(settings) = bytes.get(HEADER..HEADER + length) else { return Poll::Pending };
    let mut limits = settings.chunks_exact(SETTING).filter_map(|setting| {
        let [id_high, id_low, a, b, c, d] = *setting else { return None };
        let is_limit = u16::from_be_bytes([id_high, id_low]) == MAX_CONCURRENT_STREAMS;
        is_limit.then(|| u32::from_be_bytes([a, b, c, d]))
    });
    // The last setting counts. A limit of zero is temporary, and must not open a connection per request.
    Poll::Ready(limits.next_back().map(|limit| usize::try_from(limit).unwrap_or(usize::MAX).max(1)))
}

/// Connector that wraps its connections in [`Noted`].
#[derive(Clone, Debug)]
pub struct Noting<C> {
    inner: C,
    limit: Limit,
}

impl<C> Noting<C> {
    pub fn new(inner: C, limit: Limit) -> Self {
        Self { inner, limit }
    }
}

impl<C> Service<Uri> for Noting<C>
where
    C: Service<Uri>,
    C::Response: Connection + Read + Write + Send + Unpin + 'static,
    C::Future: Future<Output = Result<C::Response, C::Error>> + Send + 'static,
{
    type Response = TokioIo<Noted<TokioIo<C::Response>>>;
    type Error = C::Error;
    type Future = BoxFuture<'static, Result<Self::Response, C::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, limit) = (self.inner.call(uri), self.limit.clone());
        Box::pin(async move {
            let inner = connecting.await?;
            let head = inner.connected().is_negotiated_h2().then(Vec::new);
            Ok(TokioIo::new(Noted { inner: TokioIo::new(inner), head, limit }))
        })
    }
}

/// Connection that records the server's limit of streams.
pub struct Noted<T> {
    inner: T,
    /// First bytes of the HTTP/2 connection. `None`: the limit is known, or cannot be.
    head: Option<Vec<u8>>,
    limit: Limit,
}

impl<T> Noted<T> {
    fn note(&mut self, read: &[u8]) {
        let Some(head) = &mut self.head else { return };
        head.extend_from_slice(&read[..read.len().min(HEADER + LONGEST)]);
        if let Poll::Ready(limit) = limit(head) {
            self.limit.0.store(limit.unwrap_or(0), Ordering::Relaxed);
            self.head = None;
        }
    }
}

impl<T: Connection> Connection for Noted<TokioIo<T>> {
    fn connected(&self) -> Connected {
        self.inner.inner().connected()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Noted<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            // A truncated body is still detected, by its length or its chunks.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            Poll::Ready(Ok(())) => {
                self.note(&buf.filled()[before..]);
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Noted<T> {
    write_through!();
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn the_limit_is_read_from_each_prefix_of_the_first_frame() {
        let frame = [
            &[0, 0, 12, SETTINGS, 0, 0, 0, 0, 0][..],
            &[0, 4, 0, 1, 0, 0],
            &[0, 3, 0, 0, 1, 4],
            &[0, 0, 0, SETTINGS, 1],
        ]
        .concat();
        for end in 0..frame.len() {
            let wanted = if end < 21 { Poll::Pending } else { Poll::Ready(Some(260)) };
            assert_eq!(limit(&frame[..end]), wanted, "{end}");
        }
        assert_eq!(limit(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]), Poll::Ready(None), "no limit");
        assert_eq!(limit(b"HTTP/1.1"), Poll::Ready(None));
        assert_eq!(limit(&[0, 0, 6, SETTINGS, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0]), Poll::Ready(Some(1)));
    }

    #[tokio::test]
    async fn an_end_without_close_notify_is_an_end() {
        let inner = tokio_test::io::Builder::new()
            .read(b"answer")
            .read_error(io::Error::from(io::ErrorKind::UnexpectedEof))
            .build();
        let mut connection = Noted { inner, head: None, limit: Limit::default() };
        let mut read = String::new();
        connection.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "answer");
    }
}
