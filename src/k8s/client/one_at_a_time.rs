//! Opens connections one at a time. Otherwise concurrent requests would each dial, because only the handshake tells that
//! one HTTP/2 connection serves them all.

use std::{
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::Connection;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};
use tower::{BoxError, Service};

use crate::k8s::dial::CONNECT_TIMEOUT;

/// Requests that waited for an HTTP/2 connection get it from the pool, and their own dials are dropped. A dial that still
/// waits after this time goes on, because its request cannot use that connection.
const LATE: Duration = Duration::from_secs(1);

/// Connector that runs one call at a time. A call that takes longer than [`CONNECT_TIMEOUT`] fails: it holds up the others,
/// and the caller that polls it may be busy.
#[derive(Clone, Debug)]
pub struct OneAtATime<C> {
    inner: C,
    /// Time of the last HTTP/2 connection. Locked during a dial.
    shared: Arc<Mutex<Option<Instant>>>,
}

impl<C> OneAtATime<C> {
    pub fn new(inner: C) -> Self {
        Self { inner, shared: Arc::default() }
    }
}

impl<C> Service<Uri> for OneAtATime<C>
where
    C: Service<Uri> + Clone + Send + 'static,
    C::Response: Connection + Send,
    C::Error: Into<BoxError>,
    C::Future: Send,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<C::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (mut inner, shared, came) = (self.inner.clone(), self.shared.clone(), Instant::now());
        Box::pin(async move {
            let mut last = shared.lock().await;
            if last.is_some_and(|at| at >= came) {
                drop(last);
                sleep(LATE).await;
                last = shared.lock().await;
            }
            let dialled = timeout(CONNECT_TIMEOUT, inner.call(uri)).await;
            let connection = dialled.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map_err(Into::into)?;
            *last = connection.connected().is_negotiated_h2().then(Instant::now);
            Ok(connection)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::{join_all, select};
    use hyper_util::client::legacy::connect::Connected;

    use super::*;

    struct Dialled {
        is_h2: bool,
    }

    impl Connection for Dialled {
        fn connected(&self) -> Connected {
            if self.is_h2 { Connected::new().negotiated_h2() } else { Connected::new() }
        }
    }

    /// Connects after 10 ms, and counts its calls.
    #[derive(Clone, Default)]
    struct Dialer {
        is_h2: bool,
        fails: bool,
        is_silent: bool,
        dials: Arc<AtomicUsize>,
    }

    impl Service<Uri> for Dialer {
        type Response = Dialled;
        type Error = &'static str;
        type Future = BoxFuture<'static, Result<Dialled, &'static str>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Uri) -> Self::Future {
            self.dials.fetch_add(1, Ordering::SeqCst);
            let Self { is_h2, fails, is_silent, .. } = *self;
            Box::pin(async move {
                sleep(if is_silent { Duration::MAX } else { Duration::from_millis(10) }).await;
                if fails { Err("refused") } else { Ok(Dialled { is_h2 }) }
            })
        }
    }

    /// Dials for three concurrent requests that give up after a time. Returns the number of dials.
    async fn dials(dialer: Dialer, patience: Duration) -> usize {
        let connector = OneAtATime::new(dialer.clone());
        let calls = (0..3).map(|_| {
            let call = connector.clone().call(Uri::from_static("https://api.test"));
            select(call, Box::pin(sleep(patience)))
        });
        join_all(calls).await;
        dialer.dials.load(Ordering::SeqCst)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_begin_together_make_one_connection_of_http2() {
        let h2 = Dialer { is_h2: true, ..Dialer::default() };
        assert_eq!(dials(h2.clone(), LATE / 2).await, 1);
        let h2 = Dialer { is_h2: true, ..Dialer::default() };
        assert_eq!(dials(h2, LATE * 4).await, 3, "who cannot use it dials in the end");
    }

    #[tokio::test(start_paused = true)]
    async fn others_dial_one_after_the_other() {
        assert_eq!(dials(Dialer::default(), LATE / 2).await, 3, "HTTP/1.1 serves one request at a time");
        assert_eq!(dials(Dialer { fails: true, ..Dialer::default() }, LATE / 2).await, 3, "a failure is nobody else's");
    }
    #[tokio::test(start_paused = true)]
    async fn a_handshake_without_an_answer_holds_up_the_others_for_the_timeout_only() {
        let connector = OneAtATime::new(Dialer { is_silent: true, ..Dialer::default() });
        let uri = || Uri::from_static("https://api.test");
        let results = timeout(CONNECT_TIMEOUT * 2, join_all((0..2).map(|_| connector.clone().call(uri())))).await;
        for result in results.expect("both dials end") {
            let error = result.err().expect("nobody answered");
            assert_eq!(error.downcast_ref::<io::Error>().map(io::Error::kind), Some(io::ErrorKind::TimedOut));
        }
    }
}
