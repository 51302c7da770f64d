//! A WebSocket between a client and a backend: bytes pass unchanged, and adit parses the frames to know when it ends.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy, sink},
    time::timeout,
};

use crate::{
    drain::Drain,
    io::{
        Io,
        through::{flush_through, said_through},
    },
    wire::websocket::Boundary,
};

/// Close frame with 1001, "going away" (RFC 6455, sections 5.5.1 and 7.4.1).
const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];

/// Timeout for the backend's end after both Close frames. A backend ends at once, and a node passes that on a second later.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Backend of a WebSocket.
///
/// It ends for its client when both Close frames have passed (RFC 6455, section 7.1.1), without the node's delay of a second. In
/// a drain it sends a Close frame to the client, between two frames of the backend.
pub struct WebSocketBackend<T> {
    inner: T,
    from_backend: Boundary,
    from_client: Boundary,
    /// Waker of the reader, which waits for the backend and for the client's Close frame.
    reader: Option<Waker>,
    drain: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_leaving: bool,
    /// Unsent rest of adit's own Close frame.
    close: &'static [u8],
}

impl<T> WebSocketBackend<T> {
    /// `drain`: its start closes the WebSocket.
    pub fn new(inner: T, drain: Drain) -> Self {
        Self {
            inner,
            from_backend: Boundary::default(),
            from_client: Boundary::default(),
            reader: None,
            drain: Box::pin(async move { drain.started().await }),
            is_leaving: false,
            close: &GOING_AWAY,
        }
    }

    /// Returns the number of messages from the client, and from the backend.
    pub fn messages(&self) -> (u64, u64) {
        (self.from_client.messages(), self.from_backend.messages())
    }

    fn has_ended(&self) -> bool {
        self.from_backend.has_closed() && self.from_client.has_closed()
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> WebSocketBackend<T> {
    /// Waits until the backend ends its connection, so that it receives the client's Close frame.
    pub async fn finish(mut self) {
        if self.has_ended() {
            let ending = async {
                self.inner.shutdown().await?;
                copy(&mut self.inner, &mut sink()).await
            };
            // The backend has received everything, however this ends.
            let _ = timeout(LAST_WORDS, ending).await;
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketBackend<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.has_ended() {
            return Poll::Ready(Ok(()));
        }
        this.is_leaving = this.is_leaving || this.drain.as_mut().poll(cx).is_ready();
        let left = usize::try_from(this.from_backend.left()).unwrap_or(usize::MAX);
        if this.is_leaving && left == 0 {
            let count = this.close.len().min(buf.remaining());
            buf.put_slice(&this.close[..count]);
            this.close = &this.close[count..];
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = if this.is_leaving && left < buf.remaining() {
            let mut of_frame = ReadBuf::new(buf.initialize_unfilled_to(left));
            let polled = Pin::new(&mut this.inner).poll_read(cx, &mut of_frame);
            let count = of_frame.filled().len();
            buf.advance(count);
            polled
        } else {
            Pin::new(&mut this.inner).poll_read(cx, buf)
        };
        if polled.is_pending() && !this.reader.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            this.reader = Some(cx.waker().clone());
        }
        ready!(polled)?;
        this.from_backend.pass(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for WebSocketBackend<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let count = ready!(Pin::new(&mut this.inner).poll_write(cx, buf))?;
        if this.from_backend.has_closed() && is_close(&buf[..count]) {
            // The backend has closed in the middle of a client's frame, which will not be finished.
            this.from_client = Boundary::default();
        }
        this.from_client.pass(&buf[..count]);
        if this.has_ended()
            && let Some(reader) = this.reader.take()
        {
            reader.wake();
        }
        Poll::Ready(Ok(count))
    }

    flush_through!();
}

impl<T: Io> Io for WebSocketBackend<T> {
    said_through!();
}

/// Returns whether the bytes are exactly one Close frame of a client.
fn is_close(bytes: &[u8]) -> bool {
    matches!(bytes, [0x88, length, rest @ ..] if length & 0x80 != 0 && rest.len() == usize::from(length & 0x7f) + 4)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, duplex};

    use super::*;
    use crate::io::splice::splice;

    const CLOSE: &[u8] = b"\x88\x02\x03\xe8";
    const MASKED_CLOSE: &[u8] = b"\x88\x82\0\0\0\0\x03\xe8";

    #[tokio::test]
    async fn goodbye_is_said_between_frames() {
        let (mut backend, inner) = duplex(64);
        let drain = Drain::new();
        let mut client = WebSocketBackend::new(inner, drain.clone());
        backend.write_all(b"\x81\x05he").await.unwrap();
        let mut begun = [0; 4];
        client.read_exact(&mut begun).await.unwrap();
        drain.start();
        backend.write_all(b"llo\x81\x03new").await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, [b"llo", &GOING_AWAY[..]].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn the_clients_connection_ends_when_both_close_frames_have_passed() {
        // The client's partial frame when the backend closes.
        for unfinished in [&b""[..], b"\x81\x85\0\0\0\0he"] {
            for client_first in [true, false] {
                let ((mut client, mut front), (inner, mut backend)) = (duplex(64), duplex(64));
                let splicing = tokio::spawn(async move {
                    let mut inner = WebSocketBackend::new(inner, Drain::new());
                    let end = splice(&mut front, &mut inner).await;
                    drop(front);
                    inner.finish().await;
                    end
                });
                let mut got = vec![0; CLOSE.len()];
                if client_first {
                    client.write_all(MASKED_CLOSE).await.unwrap();
                    backend.read_exact(&mut [0; MASKED_CLOSE.len()]).await.unwrap();
                    backend.write_all(CLOSE).await.unwrap();
                    client.read_exact(&mut got).await.unwrap();
                } else {
                    client.write_all(unfinished).await.unwrap();
                    backend.read_exact(&mut vec![0; unfinished.len()]).await.unwrap();
                    backend.write_all(CLOSE).await.unwrap();
                    client.read_exact(&mut got).await.unwrap();
                    let early = timeout(Duration::from_secs(60), client.read(&mut [0; 1])).await;
                    assert!(early.is_err(), "the client's Close is still to come");
                    client.write_all(MASKED_CLOSE).await.unwrap();
                    backend.read_exact(&mut [0; MASKED_CLOSE.len()]).await.unwrap();
                }
                assert_eq!(got, CLOSE);
                let started = tokio::time::Instant::now();
                assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
                assert_eq!(started.elapsed(), Duration::ZERO);
                drop(client);
                assert_eq!(backend.read(&mut [0; 1]).await.unwrap(), 0);
                drop(backend);
                assert!(splicing.await.unwrap().broken.is_none());
            }
        }
    }
}
