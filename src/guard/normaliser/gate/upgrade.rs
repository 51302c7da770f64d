//! Holds back the bytes after a request with an Upgrade header until its answer is known.

use std::{
    sync::atomic::{AtomicU8, Ordering},
    task::Waker,
};

use futures::task::AtomicWaker;

const WAITING: u8 = 0;
const HTTP: u8 = 1;
const SWITCHED: u8 = 2;

/// Protocol of the bytes after such a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    Http,
    /// Bytes of another protocol.
    Switched,
}

/// Answer to the last request with an Upgrade header.
#[derive(Default)]
pub struct Upgrade {
    state: AtomicU8,
    normaliser: AtomicWaker,
}

impl Upgrade {
    /// Records whether the answer has switched the protocol.
    pub fn answered(&self, switched: bool) {
        self.state.store(if switched { SWITCHED } else { HTTP }, Ordering::Release);
        self.normaliser.wake();
    }

    /// Returns the protocol that follows, once. `None`: there is no answer yet; it will wake `normaliser`.
    pub(in super::super) fn take(&self, normaliser: Option<&Waker>) -> Option<Follows> {
        if let Some(normaliser) = normaliser {
            // Register first, because the answer may come in between.
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
