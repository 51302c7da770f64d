//! Whether a connection answers requests: how long its client may be silent depends on it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Waker,
};

use futures::task::AtomicWaker;

/// The requests of a connection.
#[derive(Default)]
pub struct Progress {
    answering: AtomicUsize,
    /// Heads that were let through and are not being answered yet.
    let_through: AtomicUsize,
    normaliser: AtomicWaker,
}

/// A request that is being answered, until this is dropped.
pub struct Busy(Arc<Progress>);

impl Progress {
    /// Says that a head has been let through to the server.
    pub(in super::super) fn let_through(&self) {
        self.let_through.fetch_add(1, Ordering::Relaxed);
    }

    /// Says that the server answers a request.
    pub fn begin(self: &Arc<Self>) -> Busy {
        let busy = self.another();
        let less = |heads: usize| heads.checked_sub(1);
        // There is none where the answer is to something else than a head.
        let _ = self.let_through.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        busy
    }

    /// Returns whether a request is being answered, or about to be. The normaliser is woken when that ends.
    pub(in super::super) fn is_busy(&self, normaliser: &Waker) -> bool {
        // Registered first: the answer may end in between.
        self.normaliser.register(normaliser);
        self.answering.load(Ordering::Acquire) > 0 || self.let_through.load(Ordering::Relaxed) > 0
    }

    fn another(self: &Arc<Self>) -> Busy {
        self.answering.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }
}

impl Busy {
    /// Returns one more for the same connection.
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
        // An answer to something else than a head.
        drop(progress.begin());
        assert!(!progress.is_busy(&waker));
    }
}
