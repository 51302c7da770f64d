//! Tracks whether a connection answers requests. The timeouts of its client depend on that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Waker,
};

use futures::task::AtomicWaker;

/// Requests in progress on a connection.
#[derive(Default)]
pub struct Progress {
    answering: AtomicUsize,
    /// Heads that have passed but are not being answered yet.
    let_through: AtomicUsize,
    normaliser: AtomicWaker,
}

/// Counts as a request in progress until it is dropped.
pub struct Busy(Arc<Progress>);

impl Progress {
    /// Records that a head has passed to the server.
    pub(in super::super) fn let_through(&self) {
        self.let_through.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that the server begins to answer a request.
    pub fn begin(self: &Arc<Self>) -> Busy {
        let busy = self.another();
        let less = |heads: usize| heads.checked_sub(1);
        // There is no such head if the server answers bytes that are not a request.
        let _ = self.let_through.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        busy
    }

    /// Returns whether a request is or will be answered. The end of the last one wakes `normaliser`.
    pub(in super::super) fn is_busy(&self, normaliser: &Waker) -> bool {
        // Register first, because the answer may end in between.
        self.normaliser.register(normaliser);
        self.answering.load(Ordering::Acquire) > 0 || self.let_through.load(Ordering::Relaxed) > 0
    }

    fn another(self: &Arc<Self>) -> Busy {
        self.answering.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }
}

impl Busy {
    /// Returns another guard for the same connection.
    pub fn another(&self) -> Self {
        self.0.another()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.answering.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.normaliser.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker;

    use super::*;

    #[test]
    fn a_connection_is_busy_from_a_head_to_the_end_of_its_answer() {
        let (progress, waker) = (Arc::<Progress>::default(), noop_waker());
        assert!(!progress.is_busy(&waker));
        progress.let_through();
        assert!(progress.is_busy(&waker));
        let busy = progress.begin();
        let body = busy.another();
        drop(busy);
        assert!(progress.is_busy(&waker), "the body goes on");
        drop(body);
        assert!(!progress.is_busy(&waker));
        // An answer to bytes that are not a request.
        drop(progress.begin());
        assert!(!progress.is_busy(&waker));
    }
}
