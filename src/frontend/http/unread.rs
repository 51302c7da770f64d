//! What a client of HTTP/2 still sends when its answer is there.
//!
//! A stream that is let go before its end is reset, and the reason is NO_ERROR only where the answer has been sent in full:
//! then clients take the answer (RFC 9113, section 8.1). Otherwise it is CANCEL, and they report a failure. So what the
//! backend does not read of a request is kept until the answer has ended.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::timeout;
use tower::BoxError;

use super::upstream;

/// How much of a body that nobody wants is read before the answer, and for how long: what is wrong with the rest of its
/// stream is told instead of the answer.
const MOST_UNWANTED: usize = 64 * 1024;
const UNWANTED_TIME: Duration = Duration::from_millis(50);

/// The rest of a request's body, as soon as nobody reads it any more.
#[derive(Clone, Default)]
pub struct Rest(Arc<Mutex<Option<Incoming>>>);

impl Rest {
    /// Returns a request's body that leaves its rest here.
    pub fn of(&self, body: Incoming) -> Rested {
        Rested { body: Some(body), rest: self.clone() }
    }

    /// Reads a body that nobody wants, for a moment, and keeps what is left of it.
    pub async fn of_unwanted(&self, mut body: Incoming) {
        let reading = async {
            let mut length = 0;
            while let Some(Ok(frame)) = body.frame().await {
                length += frame.data_ref().map_or(0, Bytes::len);
                if length > MOST_UNWANTED {
                    return;
                }
            }
        };
        // The client has more to say, and will be told when it has.
        let _ = timeout(UNWANTED_TIME, reading).await;
        drop(self.of(body));
    }

    /// Returns the answer's body, which keeps the rest for as long as it lives.
    pub fn kept_by(self, answer: upstream::Body) -> upstream::Body {
        Keeping { answer, _rest: self }.boxed_unsync()
    }
}

pub struct Rested {
    body: Option<Incoming>,
    rest: Rest,
}

impl Body for Rested {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            self.body = None;
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for Rested {
    fn drop(&mut self) {
        *self.rest.0.lock().expect("no panic while the lock is held") = self.body.take();
    }
}

struct Keeping {
    answer: upstream::Body,
    _rest: Rest,
}

impl Body for Keeping {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.answer).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}
