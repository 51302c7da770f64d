//! HTTP/2 (RFC 9113) on the h2 crate, as a server for clients and as a client of pods. Both sides use the proxy's body type, and
//! pass on interim responses.

pub mod client;
mod empty_data;
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
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tower::BoxError;

use self::windows::Pace;
pub use self::{request_body::glance_at, tunnel::Tunnel};
use super::body::Body;
use crate::wire::http1;

/// Bytes of one stream that may wait for their reader. Clients are near; for pods see [`windows`]. For all streams of a client's
/// connection see [`Limits::window`](crate::io::accept::Limits::window).
const STREAM_WINDOW: u32 = 1024 * 1024;

/// Maximum size of a request's head in bytes: as over HTTP/1.1, but RFC 9113, section 6.5.2, counts 32 bytes more for each
/// header.
const LONGEST_HEAD: u32 = (http1::LONGEST_HEAD + 32 * http1::MOST_HEADERS) as u32;

/// Maximum size of an answer's head in bytes. It admits 256 KiB as HTTP/1.1 counts them, without 32 bytes of each header.
const LONGEST_ANSWER_HEAD: u32 = 512 * 1024;

/// Body of a received message.
struct Received {
    stream: RecvStream,
    /// Bytes of Content-Length that have not arrived yet.
    left: Option<u64>,
    /// The data has ended; trailers may follow.
    is_at_trailers: bool,
    /// Pace of the reader; `None` for a client's request.
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
                    // The data is with the reader now, which polls for more once it is sent. Fails only if the stream has ended.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    if let Some(pace) = &mut self.pace {
                        pace.took(data.len());
                    }
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.is_at_trailers = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(error.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Sends a body to its end. If the body breaks, resets the stream with the error code of the stream that it comes from.
///
/// `is_grpc`: if the connection to the backend breaks, sends trailers with UNAVAILABLE instead. gRPC clients report this status for
/// a connection of their own.
async fn send_body(mut stream: SendStream<Bytes>, mut body: Body, is_grpc: bool) -> Result<(), BoxError> {
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
                        // Only 1 byte: reserved window is not available to other streams. h2 requests the rest by itself.
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
                match reset(&*error) {
                    None if is_grpc => stream.send_trailers(unavailable())?,
                    reset => stream.send_reset(reset.map_or(Reason::INTERNAL_ERROR, unfinished)),
                }
                return Err(error);
            }
            None => return Ok(stream.send_data(Bytes::new(), true)?),
        }
    }
}

/// Waits until some of the capacity from `reserve_capacity` is available.
fn poll_room(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Result<usize, h2::Error>> {
    while stream.capacity() == 0 {
        match ready!(stream.poll_capacity(cx)) {
            Some(room) => room?,
            // The stream is closed for sending.
            None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
        };
    }
    Poll::Ready(Ok(stream.capacity()))
}

/// Returns the error code of the reset in an error or its causes.
fn reset(error: &(dyn Error + 'static)) -> Option<Reason> {
    let of_stream = error.downcast_ref::<h2::Error>().filter(|error| error.is_reset()).and_then(h2::Error::reason);
    of_stream.or_else(|| error.source().and_then(reset))
}

/// Returns the error code for a message that is not complete. A reset with NO_ERROR is for one that is (RFC 9113, section 8.1), and
/// some peers take it for its end.
fn unfinished(reason: Reason) -> Reason {
    if reason == Reason::NO_ERROR { Reason::INTERNAL_ERROR } else { reason }
}

fn is_grpc(answer: &HeaderMap) -> bool {
    let kind =
        answer.get(CONTENT_TYPE).map(HeaderValue::as_bytes).and_then(|kind| kind.strip_prefix(b"application/grpc"));
    kind.is_some_and(|rest| !rest.starts_with(b"-web"))
}

/// Returns the trailers of a gRPC call whose connection is lost.
fn unavailable() -> HeaderMap {
    let message = HeaderValue::from_static("the connection to the server is lost");
    [("grpc-status", HeaderValue::from_static("14")), ("grpc-message", message)]
        .map(|(name, value)| (HeaderName::from_static(name), value))
        .into_iter()
        .collect()
}
