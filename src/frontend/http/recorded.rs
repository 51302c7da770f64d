//! A request's body that counts its bytes, and keeps them if a person has turned that on.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tower::BoxError;

use super::body::Body;
use crate::journal::recorder::KeptBody;

/// Number of bytes that a client has sent in a body.
pub type Sent = Arc<AtomicU64>;

struct Recorded {
    inner: Body,
    sent: Sent,
    kept: Option<Arc<KeptBody>>,
}

/// Wraps a body: counts its bytes in `sent`, and keeps them in `kept`.
pub fn record(inner: Body, sent: Sent, kept: Option<Arc<KeptBody>>) -> Body {
    Recorded { inner, sent, kept }.boxed_unsync()
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(data) = polled.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            self.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
            self.kept.iter().for_each(|kept| kept.add(data));
        }
        // A reader that knows the length does not poll for the end.
        if polled.is_none() || self.inner.is_end_stream() {
            self.kept.iter().for_each(|kept| kept.end());
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
