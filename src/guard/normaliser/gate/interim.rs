//! Interim responses that are not sent to the client yet.

use std::{
    sync::{Mutex, MutexGuard},
    task::Waker,
};

use bytes::BytesMut;
use futures::task::AtomicWaker;

/// Maximum bytes waiting for a client that does not read; the rest is dropped.
const LONGEST: usize = 64 * 1024;

/// Heads of interim responses to the request that is being answered.
#[derive(Default)]
pub struct InterimHeads {
    waiting: Mutex<Waiting>,
    server: AtomicWaker,
}

#[derive(Default)]
struct Waiting {
    /// Number of the request on its connection.
    number: u64,
    heads: BytesMut,
}

impl InterimHeads {
    /// Starts with the next request, and returns its number.
    pub fn hear(&self) -> u64 {
        let mut waiting = self.lock();
        waiting.heads.clear();
        waiting.number += 1;
        waiting.number
    }

    /// Queues a head before the answer to request `number`, unless that request has been answered.
    pub fn tell(&self, number: u64, head: &[u8]) {
        let mut waiting = self.lock();
        if waiting.number == number && waiting.heads.len() + head.len() <= LONGEST {
            waiting.heads.extend_from_slice(head);
            drop(waiting);
            self.server.wake();
        }
    }

    /// Registers the server's task, which is woken for each head. The server then flushes, and the flush sends the head.
    pub fn register(&self, server: &Waker) {
        self.server.register(server);
    }

    /// Returns whether heads for request `number` are still waiting.
    pub fn is_waiting(&self, number: u64) -> bool {
        let waiting = self.lock();
        waiting.number == number && !waiting.heads.is_empty()
    }

    /// Drops the waiting heads of request `number`, which has been answered.
    pub fn forget(&self, number: u64) {
        let mut waiting = self.lock();
        if waiting.number == number {
            *waiting = Waiting { number: number + 1, heads: BytesMut::new() };
        }
    }

    /// Takes the waiting heads. The caller has flushed the earlier answers.
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
