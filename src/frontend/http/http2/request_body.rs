//! Body of a client's request, and its rest if nobody reads it to its end.
//!
//! A server need not read a whole upload: after the end of its answer it resets the stream with NO_ERROR, and the client accepts
//! the answer (RFC 9113, section 8.1). h2 would reset earlier, with CANCEL, which clients report as a failure. So adit keeps the
//! rest until the answer has ended. It then reads a short rest, and pauses before it resets a long one: curl 7.88 loses an answer
//! that it reads together with the reset.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    sync::oneshot,
    time::{Sleep, sleep, timeout},
};
use tower::BoxError;

use super::{Received, STREAM_WINDOW, server::InterimSender};
use crate::frontend::http::body::Body;

/// Timeout for a short rest after the answer. A short rest fits into the client's window: clients that have their answer do not
/// all process window updates.
const LINGER: Duration = Duration::from_secs(5);

/// Time between the answer and the reset of a long rest. A client that has read the answer stops by itself.
const PAUSE: Duration = Duration::from_millis(200);

/// Maximum number of bytes of an unwanted body that adit reads before the answer, and the timeout for them. An error in the rest
/// of the stream is sent instead of the answer.
const MOST_UNWANTED: usize = 64 * 1024;
const UNWANTED_TIME: Duration = Duration::from_millis(50);

/// A body whose rest is kept for [`Rest`] when it is dropped before its end.
pub struct RequestBody {
    /// `None`: the body has ended.
    received: Option<Received>,
    back: Option<oneshot::Sender<Received>>,
    /// Sends a 100 to a client that waits for it (RFC 9110, section 10.1.1).
    asked: Option<InterimSender>,
    /// The body is a stream of messages that may be far apart: gRPC or Connect.
    is_conversation: bool,
    /// Maximum time without a byte.
    stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

/// The unread rest of a [`RequestBody`].
pub struct Rest(oneshot::Receiver<Received>);

impl RequestBody {
    pub(super) fn new(
        received: Received,
        headers: &HeaderMap,
        stall: Duration,
        asked: Option<InterimSender>,
    ) -> (Self, Rest) {
        let (back, rest) = oneshot::channel();
        let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes).to_ascii_lowercase();
        let is_conversation = [&b"application/grpc"[..], b"application/connect+"].iter().any(|of| kind.starts_with(of));
        let body = Self { received: Some(received), back: Some(back), asked, is_conversation, stall, stalled: None };
        (body, Rest(rest))
    }

    /// Resolves when the client has sent nothing for too long. Its window is open: everything received is with the reader.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_conversation {
            return Poll::Pending;
        }
        self.stalled.get_or_insert_with(|| Box::pin(sleep(self.stall))).as_mut().poll(cx)
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(received) = &mut self.received else { return Poll::Ready(None) };
        let polled = Pin::new(received).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            self.received = None;
        }
        if let Some(client) = self.asked.take().filter(|_| polled.is_pending()) {
            client.send(StatusCode::CONTINUE, HeaderMap::new());
        }
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        ready!(self.poll_stalled(cx));
        // This drop resets the stream.
        self.received = None;
        let error = io::Error::new(io::ErrorKind::TimedOut, "the rest of the request's body did not come");
        Poll::Ready(Some(Err(error.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.received.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.received.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let (Some(received), Some(back)) = (self.received.take(), self.back.take()) {
            // Fails if the client is gone, or if `LINGER` is over.
            let _ = back.send(received);
        }
    }
}

impl Rest {
    /// Once the backend reads no more, reads a short rest, or pauses before a long one. If the client is not done then, the
    /// stream is reset.
    pub(super) async fn read(self) {
        let reading = async {
            let Ok(mut received) = self.0.await else { return };
            match received.left {
                Some(left) if left <= STREAM_WINDOW.into() => while let Some(Ok(_)) = received.frame().await {},
                _ => sleep(PAUSE).await,
            }
        };
        // If the client is slower, its stream is reset.
        let _ = timeout(LINGER, reading).await;
    }
}

/// Reads an unwanted body for a moment.
pub async fn glance_at(mut body: Body) {
    let reading = async {
        let mut length = 0;
        while let Some(Ok(frame)) = body.frame().await {
            length += frame.data_ref().map_or(0, Bytes::len);
            if length > MOST_UNWANTED {
                return;
            }
        }
    };
    // A client with more to send gets a reset after the answer.
    let _ = timeout(UNWANTED_TIME, reading).await;
}
