//! Answers of status 400 from servers that speak another protocol than HTTP/1 without TLS.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Response, Version, header::CONNECTION};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, timeout_at};
use tower::BoxError;

use crate::{
    config::Scheme,
    frontend::{
        http::body::Body,
        protocol::{self, Asks},
    },
};

/// Maximum number of bytes read of the body, and the timeout for them. The longest known page has 700 bytes.
const LONGEST: usize = 4 * 1024;
const PATIENCE: Duration = Duration::from_millis(250);

/// How a server refuses the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Wants(Scheme),
    /// It closes the connection, as TLS servers do after a request without TLS.
    Closes,
}

impl Refusal {
    /// Returns the protocols to try instead.
    pub fn wanted(self, asks: Asks) -> &'static [Scheme] {
        match self {
            Self::Wants(Scheme::Https) | Self::Closes => &[Scheme::Https],
            Self::Wants(Scheme::H2c) if asks != Asks::Upgrade => &[Scheme::H2c],
            Self::Wants(_) => &[],
        }
    }
}

/// Reads the start of an answer's body, and returns the answer complete. `may_ask`: also report an answer that may be a refusal.
pub async fn read(response: Response<Body>, method: &Method, may_ask: bool) -> (Response<Body>, Option<Refusal>) {
    let closes = response.version() == Version::HTTP_10
        || response.headers().get(CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
    let perhaps = (may_ask && closes).then_some(Refusal::Closes);
    if *method == Method::HEAD || response.body().is_end_stream() {
        return (response, perhaps);
    }
    let (parts, mut rest) = response.into_parts();
    let (mut read, mut text) = (VecDeque::new(), Vec::new());
    let deadline = Instant::now() + PATIENCE;
    while text.len() < LONGEST {
        let Ok(Some(frame)) = timeout_at(deadline, rest.frame()).await else { break };
        let is_broken = frame.is_err();
        if let Ok(frame) = &frame {
            text.extend(frame.data_ref().into_iter().flatten());
        }
        read.push_back(frame);
        if is_broken {
            break;
        }
    }
    let body = Ahead { read, rest }.boxed_unsync();
    (Response::from_parts(parts, body), protocol::wanted(&text).map(Refusal::Wants).or(perhaps))
}

/// Body whose start was read before.
struct Ahead {
    read: VecDeque<Result<Frame<Bytes>, BoxError>>,
    rest: Body,
}

impl HttpBody for Ahead {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.read.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.read.iter().flatten().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum::<u64>();
        let (mut hint, rest) = (SizeHint::new(), self.rest.size_hint());
        hint.set_lower(read + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(read + upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::http::body::body_of;

    async fn refusal(body: &str, closes: bool, method: Method, may_ask: bool) -> Option<Refusal> {
        let mut response = Response::new(body_of(body.to_owned()));
        if closes {
            response.headers_mut().insert(CONNECTION, "Close".parse().unwrap());
        }
        let (response, refusal) = read(response, &method, may_ask).await;
        assert_eq!(response.body().size_hint().exact(), Some(body.len() as u64));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body, "the answer is as it was");
        refusal
    }

    #[tokio::test]
    async fn a_refusal_is_told_by_its_words_or_by_a_connection_that_closes() {
        let go = "Client sent an HTTP request to an HTTPS server.\n";
        let wants = Some(Refusal::Wants(Scheme::Https));
        assert_eq!(refusal(go, false, Method::POST, false).await, wants);
        assert_eq!(refusal(go, true, Method::GET, true).await, wants);
        assert_eq!(refusal("no such field", true, Method::GET, true).await, Some(Refusal::Closes));
        assert_eq!(refusal("", true, Method::HEAD, true).await, Some(Refusal::Closes));
        assert_eq!(refusal("no such field", false, Method::GET, true).await, None);
        assert_eq!(refusal("no such field", true, Method::POST, false).await, None);
        assert_eq!(refusal("", true, Method::HEAD, false).await, None);
    }
}
