//! Bodies of messages. The start of a request's body is kept, so that the request can be retried.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tower::BoxError;

/// Body of a request or an answer, from any source.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Maximum number of bytes of a request's body that are kept for a retry.
pub const LONGEST_KEPT: usize = 64 * 1024;

/// How long a body longer than [`LONGEST_KEPT`] waits for the first bytes of a backend whose protocol is not known. A backend
/// with another protocol rejects the request at once, and then it can still be retried.
const HOLD: Duration = Duration::from_millis(500);

/// How long a body waits for the backend's 100 if its client sent `Expect: 100-continue`. Some backends never send one.
const ASKED_WITHIN: Duration = Duration::from_secs(1);

/// Returns a body of these bytes; it may be empty.
pub fn body_of(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Returns a body that holds a value as long as it exists.
pub fn holding(body: Body, held: impl Send + 'static) -> Body {
    let keep = move |error| {
        let _held = &held;
        error
    };
    body.map_err(keep).boxed_unsync()
}

/// Returns the message of the innermost cause.
pub fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

/// Body of a request, which tells its server whether it was read to its end.
pub struct Watched<B> {
    inner: B,
    is_read: Arc<AtomicBool>,
}

impl<B: HttpBody> Watched<B> {
    /// Returns the body, and whether it was read to its end.
    pub fn new(inner: B) -> (Self, Arc<AtomicBool>) {
        let is_read = Arc::new(AtomicBool::new(inner.is_end_stream()));
        (Self { inner, is_read: is_read.clone() }, is_read)
    }
}

impl<B: HttpBody + Unpin> HttpBody for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || self.inner.is_end_stream() {
            self.is_read.store(true, Ordering::Relaxed);
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

/// A request's body that can be read again from its start, until more than [`LONGEST_KEPT`] of it was read.
pub struct Kept(Arc<Mutex<State>>);

struct State {
    inner: Body,
    is_over: bool,
    /// Why the client's body broke.
    broken: Option<String>,
    /// Everything that was read of `inner`. `None`: more than [`LONGEST_KEPT`].
    pieces: Option<Vec<Piece>>,
    length: usize,
    /// Piece that was read, and that does not fit into `pieces`.
    outgrown: Option<Piece>,
    /// The client waits for a 100, and was not asked for the body yet.
    unasked: Option<Unasked>,
    /// Whether bytes beyond [`LONGEST_KEPT`] wait for the backend's first bytes.
    is_held: bool,
    hold: Option<Pin<Box<Sleep>>>,
    waker: Option<Waker>,
    /// Number of the current read; earlier ones have ended.
    reading: u64,
}

/// State of a body whose client waits for a 100 (RFC 9110, section 10.1.1).
enum Unasked {
    Waiting(Option<Pin<Box<Sleep>>>),
    /// The backend has answered without asking for the body.
    Unwanted,
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl From<Piece> for Frame<Bytes> {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Data(data) => Self::data(data),
            Piece::Trailers(trailers) => Self::trailers(trailers),
        }
    }
}

impl Kept {
    /// `waits_for_100`: the client sends no body before a 100.
    pub fn new(inner: Body, waits_for_100: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            inner,
            unasked: waits_for_100.then_some(Unasked::Waiting(None)),
            is_over: false,
            broken: None,
            pieces: Some(Vec::new()),
            length: 0,
            outgrown: None,
            is_held: false,
            hold: None,
            waker: None,
            reading: 0,
        })))
    }

    /// Returns the body from its start; earlier readings get no more of it.
    ///
    /// `is_held`: bytes beyond [`LONGEST_KEPT`] wait for [`Kept::release`], or half a second. Call this only while
    /// [`Kept::is_whole`] holds.
    pub fn read(&self, is_held: bool) -> Body {
        let mut state = self.lock();
        state.reading += 1;
        (state.is_held, state.hold) = (is_held, None);
        if state.inner.is_end_stream() && state.length == 0 && state.pieces.as_ref().is_some_and(Vec::is_empty) {
            return body_of("");
        }
        Reading { kept: self.another(), reading: state.reading, position: 0 }.boxed_unsync()
    }

    /// Returns whether everything that was read is kept, so that the body can be read again.
    pub fn is_whole(&self) -> bool {
        let state = self.lock();
        state.pieces.is_some() && state.broken.is_none()
    }

    /// Asks the client for the body, as the backend does. This must happen at once: after an answer the client gets no 100.
    pub fn ask(&self) {
        let mut state = self.lock();
        if state.unasked.take().is_none() {
            return;
        }
        let (waker, is_held) = (state.waker.take(), std::mem::replace(&mut state.is_held, true));
        // The poll's result stays in the state for the next read.
        let _ = state.poll_next(&mut Context::from_waker(Waker::noop()));
        (state.is_held, state.hold, state.waker) = (is_held, None, None);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Returns whether the client still waits for a 100.
    pub fn is_unasked(&self) -> bool {
        self.lock().unasked.is_some()
    }

    /// Gives up a body that the backend has not asked for before its answer. The client need not send it; the backend's
    /// connection breaks when the returned value is dropped.
    pub fn refuse(&self) -> Option<Unsent> {
        let mut state = self.lock();
        let unasked = state.unasked.as_mut()?;
        *unasked = Unasked::Unwanted;
        state.inner = body_of("");
        Some(Unsent(self.another()))
    }

    /// Releases held bytes: the backend has begun to answer.
    pub fn release(&self) {
        let mut state = self.lock();
        state.is_held = false;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// Returns why the client's body broke. `None`: it did not.
    pub fn broken(&self) -> Option<String> {
        self.lock().broken.clone()
    }

    /// Returns another handle of the same body.
    pub fn another(&self) -> Self {
        Self(self.0.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while the lock is held")
    }
}

/// A body that the backend did not ask for: the request that waits for it breaks off when this is dropped.
pub struct Unsent(Kept);

impl Drop for Unsent {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.reading += 1;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

/// One reading of a [`Kept`] body.
struct Reading {
    kept: Kept,
    reading: u64,
    /// Number of pieces that it has returned.
    position: usize,
}

impl State {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, BoxError>>> {
        if self.outgrown.is_none() {
            if let Some(broken) = &self.broken {
                return Poll::Ready(Some(Err(broken.clone().into())));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            match &mut self.unasked {
                Some(Unasked::Waiting(timer)) => {
                    let timer = timer.get_or_insert_with(|| Box::pin(sleep(ASKED_WITHIN)));
                    if timer.as_mut().poll(cx).is_pending() {
                        self.waker = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                    self.unasked = None;
                }
                Some(Unasked::Unwanted) => {
                    self.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                None => {}
            }
            let piece = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                None => {
                    self.is_over = true;
                    return Poll::Ready(None);
                }
                Some(Err(error)) => {
                    self.broken = Some(innermost(&*error));
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => Piece::Data(data),
                    Err(frame) => Piece::Trailers(frame.into_trailers().unwrap_or_default()),
                },
            };
            let length = match &piece {
                Piece::Data(data) => data.len(),
                Piece::Trailers(_) => 0,
            };
            match &mut self.pieces {
                Some(pieces) if self.length + length <= LONGEST_KEPT => {
                    self.length += length;
                    pieces.push(piece.clone());
                    return Poll::Ready(Some(Ok(piece)));
                }
                Some(_) => self.outgrown = Some(piece),
                None => return Poll::Ready(Some(Ok(piece))),
            }
        }
        if self.is_held {
            let hold = self.hold.get_or_insert_with(|| Box::pin(sleep(HOLD)));
            if hold.as_mut().poll(cx).is_pending() {
                self.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            self.is_held = false;
        }
        self.pieces = None;
        Poll::Ready(self.outgrown.take().map(Ok))
    }

    /// Returns how many bytes that were read are left for a reader that has had `position` pieces.
    fn left(&self, position: usize) -> u64 {
        let kept = self.pieces.iter().flatten().skip(position);
        kept.chain(&self.outgrown)
            .map(|piece| match piece {
                Piece::Data(data) => data.len() as u64,
                Piece::Trailers(_) => 0,
            })
            .sum()
    }
}

impl HttpBody for Reading {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let mut state = this.kept.lock();
        if state.reading != this.reading {
            return Poll::Ready(Some(Err("the request is sent again".into())));
        }
        if let Some(piece) = state.pieces.as_ref().and_then(|pieces| pieces.get(this.position)) {
            this.position += 1;
            return Poll::Ready(Some(Ok(piece.clone().into())));
        }
        let polled = ready!(state.poll_next(cx));
        this.position += 1;
        Poll::Ready(polled.map(|piece| piece.map(Frame::from)))
    }

    fn is_end_stream(&self) -> bool {
        let state = self.kept.lock();
        let is_read = state.pieces.as_ref().is_none_or(|pieces| self.position >= pieces.len());
        let is_over = state.is_over || (state.inner.is_end_stream() && state.unasked.is_none());
        is_read && state.outgrown.is_none() && is_over
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.kept.lock();
        let (left, rest) = (state.left(self.position), state.inner.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + left);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + left);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};
    use http_body_util::StreamBody;
    use tokio::time::Instant;

    use super::*;

    fn streamed(pieces: Vec<Result<Frame<Bytes>, BoxError>>) -> Body {
        StreamBody::new(stream::iter(pieces).chain(stream::empty())).boxed_unsync()
    }

    fn data(length: usize) -> Result<Frame<Bytes>, BoxError> {
        Ok(Frame::data(Bytes::from(vec![b'a'; length])))
    }

    async fn length(body: Body) -> Result<usize, String> {
        body.collect().await.map(|all| all.to_bytes().len()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_body_is_read_again_from_its_start() {
        let trailers = HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("1"))]);
        let kept = Kept::new(streamed(vec![data(3), data(4), Ok(Frame::trailers(trailers.clone()))]), false);
        let mut first = kept.read(false);
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "aaa");
        for _ in 0..2 {
            let again = kept.read(false).collect().await.unwrap();
            assert_eq!(again.trailers(), Some(&trailers));
            assert_eq!(again.to_bytes().len(), 7);
        }
        assert!(first.frame().await.unwrap().is_err(), "a reading that was given up is not the end of a body");
        assert!(kept.is_whole());
    }

    #[tokio::test]
    async fn a_body_without_bytes_has_ended() {
        let kept = Kept::new(body_of(""), false);
        assert!(kept.read(false).is_end_stream() && kept.read(true).is_end_stream());
        assert_eq!(Kept::new(body_of("abc"), false).read(false).size_hint().exact(), Some(3));
    }

    #[tokio::test]
    async fn what_is_long_is_not_kept() {
        let kept = Kept::new(streamed(vec![data(LONGEST_KEPT), data(0), data(1), data(5)]), false);
        let mut body = kept.read(false);
        for _ in 0..2 {
            body.frame().await.unwrap().unwrap();
            assert!(kept.is_whole());
        }
        body.frame().await.unwrap().unwrap();
        assert!(!kept.is_whole());
        assert_eq!(length(body).await, Ok(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_body_waits_for_the_first_word_of_the_backend() {
        let kept = Kept::new(streamed(vec![data(LONGEST_KEPT), data(1)]), false);
        let mut body = kept.read(true);
        body.frame().await.unwrap().unwrap();
        // The backend spoke another protocol: the next reading contains the held piece, too.
        assert!(tokio::time::timeout(HOLD / 2, body.frame()).await.is_err());
        assert!(kept.is_whole());
        let started = Instant::now();
        assert_eq!(length(kept.read(true)).await, Ok(LONGEST_KEPT + 1));
        assert_eq!(started.elapsed(), HOLD);
        let kept = Kept::new(streamed(vec![data(LONGEST_KEPT + 1)]), false);
        let (body, started) = (kept.read(true), Instant::now());
        let (read, ()) = tokio::join!(length(body), async { kept.release() });
        assert_eq!((read, started.elapsed()), (Ok(LONGEST_KEPT + 1), Duration::ZERO));
    }

    #[tokio::test]
    async fn a_body_that_breaks_says_why() {
        let kept = Kept::new(streamed(vec![data(1), Err("the client has gone".into())]), false);
        assert_eq!(length(kept.read(false)).await, Err("the client has gone".to_owned()));
        assert_eq!((kept.is_whole(), kept.broken().as_deref()), (false, Some("the client has gone")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_waits_for_100_is_asked_for_or_stays_with_the_client() {
        let kept = Kept::new(body_of("abc"), true);
        let (body, started) = (kept.read(false), Instant::now());
        let (read, ()) = tokio::join!(length(body), async { kept.ask() });
        assert_eq!((read, started.elapsed()), (Ok(3), Duration::ZERO));
        let kept = Kept::new(body_of("abc"), true);
        assert_eq!(length(kept.read(false)).await, Ok(3));
        assert_eq!(started.elapsed(), ASKED_WITHIN);
        let kept = Kept::new(body_of("abc"), true);
        let body = kept.read(false);
        let unsent = kept.refuse();
        let mut reading = tokio::spawn(length(body));
        assert!(tokio::time::timeout(2 * ASKED_WITHIN, &mut reading).await.is_err());
        drop(unsent);
        assert!(reading.await.unwrap().is_err());
    }
}
