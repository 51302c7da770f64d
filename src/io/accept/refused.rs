//! Clients that are being refused. Each may send its request and read the error, but must not make other clients wait.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Timeout, sleep_until, timeout};

/// How long a refused client may take to send its request and read the answer.
const WHOLE: Duration = Duration::from_millis(50);

/// Minimum part of that time if other clients wait. A client sends its request at once, and after a wait in the accept
/// queue it has already sent it: a queue of 100 silent clients passes in a few milliseconds.
const LEAST: Duration = Duration::from_millis(1);

/// Clients that are being refused, oldest first.
pub(super) struct Refused<F>(VecDeque<(Instant, Pin<Box<Timeout<F>>>)>);

impl<F> Default for Refused<F> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<F: Future<Output = ()>> Refused<F> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn push(&mut self, refusing: F) {
        self.0.push_back((Instant::now(), Box::pin(timeout(WHOLE, refusing))));
    }

    /// Waits until one has ended. Never returns if there is none.
    pub(super) async fn one_ended(&mut self) {
        poll_fn(|cx| self.poll_one_ended(cx)).await;
    }

    fn poll_one_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let before = self.0.len();
        self.0.retain_mut(|(_, refusing)| refusing.as_mut().poll(cx).is_pending());
        if self.0.len() < before { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Waits until one has ended, or closes the oldest once its minimum time is over.
    pub(super) async fn make_room(&mut self) {
        let Some(since) = self.0.front().map(|(since, _)| *since) else { return };
        tokio::select! {
            () = self.one_ended() => return,
            () = sleep_until(since + LEAST) => {}
        }
        self.0.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn refused_clients_that_say_nothing_keep_no_other_waiting() {
        let (mut refused, began) = (Refused::default(), Instant::now());
        for _ in 0..100 {
            while refused.len() >= 8 {
                refused.make_room().await;
            }
            refused.push(std::future::pending());
        }
        assert!(began.elapsed() < Duration::from_millis(50), "{:?}", began.elapsed());
        // No other client waits: the refused client has its full time to read the answer.
        refused.one_ended().await;
        assert!(began.elapsed() >= WHOLE, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_client_that_has_its_answer_makes_room_at_once() {
        let (mut refused, began) = (Refused::default(), Instant::now());
        refused.push(std::future::pending().boxed());
        refused.push(std::future::ready(()).boxed());
        refused.make_room().await;
        assert_eq!((refused.len(), began.elapsed()), (1, Duration::ZERO));
    }
}
