//! Interim responses that the client has not got yet.

use std::{
    sync::{Mutex, MutexGuard},
    task::Waker,
};

use bytes::BytesMut;
use futures::task::AtomicWaker;

/// How much waits for a client that does not read; the rest is left out.
const LONGEST: usize = 64 * 1024;

/// The heads of interim responses to the request that is being answered.
#[derive(Default)]
pub struct InterimHeads {
    waiting: Mutex<Waiting>,
    server: AtomicWaker,
}

#[derive(Default)]
struct Waiting {
    /// Of which request of the connection.
    number: u64,
    heads: BytesMut,
}

impl InterimHeads {
    /// Begins with those of the next request, and returns its number.
    pub fn hear(&self) -> u64 {
        let mut waiting = self.lock();
        waiting.heads.clear();
        waiting.number += 1;
        waiting.number
    }

    /// Has a head sent before the answer to the request `number`, if that has not been answered.
    pub fn tell(&self, number: u64, head: &[u8]) {
        let mut waiting = self.lock();
        if waiting.number == number && waiting.heads.len() + head.len() <= LONGEST {
            waiting.heads.extend_from_slice(head);
            drop(waiting);
            self.server.wake();
        }
    }

    /// Has the server's task woken when there is a head: it flushes, and that is when the client gets it.
    pub fn register(&self, server: &Waker) {
        self.server.register(server);
    }

    /// Returns whether there are heads of the request `number` that were not sent yet.
    pub fn is_waiting(&self, number: u64) -> bool {
        let waiting = self.lock();
        waiting.number == number && !waiting.heads.is_empty()
    }

    /// Says that the request `number` is answered: what was not sent by now belongs nowhere.
    pub fn forget(&self, number: u64) {
        let mut waiting = self.lock();
        if waiting.number == number {
            *waiting = Waiting { number: number + 1, heads: BytesMut::new() };
        }
    }

    /// Takes what is to be sent; the server has flushed what belongs before it.
    pub(in super::super) fn take(&self) -> BytesMut {
        std::mem::take(&mut self.lock().heads)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no panic while the lock is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_belong_to_the_request_that_is_being_answered() {
        let heads = InterimHeads::default();
        let first = heads.hear();
        heads.tell(first, b"one");
        assert_eq!(heads.take(), "one");
        heads.tell(first, b"late");
        heads.forget(first);
        heads.tell(first, b"later");
        assert_eq!(heads.take(), "");
        let second = heads.hear();
        heads.tell(first, b"of the first");
        heads.tell(second, &[b'a'; LONGEST]);
        heads.tell(second, b"more than is kept");
        assert_eq!(heads.take().len(), LONGEST);
    }
}
