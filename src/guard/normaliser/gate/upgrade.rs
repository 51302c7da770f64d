//! Holds the bytes behind a request with an Upgrade header until its answer.

use std::{
    sync::atomic::{AtomicU8, Ordering},
    task::Waker,
};

use futures::task::AtomicWaker;

const WAITING: u8 = 0;
const HTTP: u8 = 1;
const SWITCHED: u8 = 2;

/// Meaning of the bytes behind such a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    Http,
    /// Bytes of another protocol.
    Switched,
}

/// How the last request with an Upgrade header was answered.
#[derive(Default)]
pub struct Upgrade {
    state: AtomicU8,
    normaliser: AtomicWaker,
}

impl Upgrade {
    /// Says how such a request was answered: whether the protocol has been switched.
    pub fn answered(&self, switched: bool) {
        self.state.store(if switched { SWITCHED } else { HTTP }, Ordering::Release);
        self.normaliser.wake();
    }

    /// Returns what follows, once. None: the answer is due; the normaliser is woken when it has come.
    pub(in super::super) fn take(&self, normaliser: Option<&Waker>) -> Option<Follows> {
        if let Some(normaliser) = normaliser {
            // Registered first: the answer may come in between.
            self.normaliser.register(normaliser);
        }
        match self.state.swap(WAITING, Ordering::Acquire) {
            WAITING => None,
            HTTP => Some(Follows::Http),
            _ => Some(Follows::Switched),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_is_told_once() {
        let upgrade = Upgrade::default();
        assert_eq!(upgrade.take(None), None);
        for (switched, follows) in [(false, Follows::Http), (true, Follows::Switched)] {
            upgrade.answered(switched);
            assert_eq!(upgrade.take(None), Some(follows));
            assert_eq!(upgrade.take(None), None);
        }
    }
}
