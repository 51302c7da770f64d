//! HTTP/2 (RFC 9113), as a server of clients and as a client of pods: streams whose bodies are those of the proxy, and
//! interim responses, which pass in both places.

pub mod client;
mod flood;
mod keepalive;
mod request_body;
pub mod server;
mod tunnel;
mod windows;

use std::{
    error::Error,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, header::CONTENT_LENGTH};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tower::BoxError;

use self::windows::Pace;
pub use self::{request_body::glance_at, tunnel::Tunnel};
use super::body::Body;

/// How much of one stream may wait for its reader. Clients are near; for pods see [`windows`].
const STREAM_WINDOW: u32 = 1024 * 1024;

/// How much of all streams of a connection may wait, so that readers that stall leave room for the others.
const CONNECTION_WINDOW: u32 = 32 * STREAM_WINDOW;

/// The longest head that is taken, by the rule of RFC 9113, section 6.5.2.
const LONGEST_HEAD: u32 = 256 * 1024;

/// The same for the answers of pods: 256 KiB as HTTP/1.1 counts them, which leaves 32 bytes of each header out.
const LONGEST_ANSWER_HEAD: u32 = 512 * 1024;

/// The body of a message that comes in.
struct Received {
    stream: RecvStream,
    /// Bytes of Content-Length that have not arrived yet.
    left: Option<u64>,
    /// The data is over: what is left are trailers.
    is_at_trailers: bool,
    /// Of an answer of a pod.
    pace: Option<Pace>,
}

impl Received {
    fn new(stream: RecvStream, headers: &HeaderMap) -> Self {
        let left = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { stream, left, is_at_trailers: false, pace: None }
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if !self.is_at_trailers {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It is with the reader now, who asks for more when it has gone. Fails where the stream has ended.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    if let Some(pace) = &mut self.pace {
                        pace.took(data.len());
                    }
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(ended(error)),
                None => self.is_at_trailers = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => ended(error),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A reset with NO_ERROR says that the rest is not wanted, which is no failure (RFC 9113, section 8.1).
fn ended(error: h2::Error) -> Option<Result<Frame<Bytes>, BoxError>> {
    (error.reason() != Some(Reason::NO_ERROR)).then(|| Err(error.into()))
}

/// Sends a body to its end; where it breaks the stream is reset, for the same reason as the stream that it comes from.
async fn send_body(mut stream: SendStream<Bytes>, mut body: Body) -> Result<(), BoxError> {
    loop {
        let frame = poll_fn(|cx| match stream.poll_reset(cx) {
            Poll::Ready(reset) => Poll::Ready(Err(reset.map_or_else(|error| error, h2::Error::from))),
            Poll::Pending => Pin::new(&mut body).poll_frame(cx).map(Ok),
        });
        match frame.await? {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let is_last = body.is_end_stream();
                    if !data.is_empty() {
                        // Little: the room of the connection is for those who can send. h2 asks for the rest by itself.
                        stream.reserve_capacity(1);
                        poll_fn(|cx| poll_room(&mut stream, cx)).await?;
                    }
                    stream.send_data(data, is_last)?;
                    if is_last {
                        return Ok(());
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        return Ok(stream.send_trailers(trailers)?);
                    }
                }
            },
            Some(Err(error)) => {
                stream.send_reset(reason(&*error));
                return Err(error);
            }
            None => return Ok(stream.send_data(Bytes::new(), true)?),
        }
    }
}

/// Waits until something of what was asked for with `reserve_capacity` can be sent.
fn poll_room(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Result<usize, h2::Error>> {
    while stream.capacity() == 0 {
        match ready!(stream.poll_capacity(cx)) {
            Some(room) => room?,
            // The stream takes no data any more.
            None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
        };
    }
    Poll::Ready(Ok(stream.capacity()))
}

/// Returns why another stream ended, where that is the cause of an error.
fn reason(error: &(dyn Error + 'static)) -> Reason {
    let of_stream = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason);
    of_stream.or_else(|| error.source().map(reason)).unwrap_or(Reason::INTERNAL_ERROR)
}
