//! What the server and the normaliser of one connection tell each other.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use futures::task::AtomicWaker;

use crate::{io::accept::Limits, wire::http1::Refusal};

/// Why a request was refused before the server saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Ambiguous(#[from] Refusal),
    #[error("the request's headers were not complete {0:?} after their first byte")]
    Slow(Duration),
}

/// What the server tells the normaliser of one connection.
#[derive(Default)]
pub struct Gate {
    pub(super) limits: Limits,
    /// [`WAITING`], [`HTTP`] or [`SWITCHED`].
    pub(super) after_upgrade: AtomicU8,
    pub(super) server: AtomicWaker,
    busy: AtomicUsize,
    /// Heads that were let through and are not being answered yet.
    pub(super) let_through: AtomicUsize,
    pub(super) refused: OnceLock<Refused>,
    interim: Mutex<Interim>,
    /// Woken when there is an interim response for the request that is being answered.
    pub interim_said: AtomicWaker,
}

/// Interim responses that the client has not got yet.
#[derive(Default)]
struct Interim {
    /// Of which request of the connection.
    number: u64,
    heads: BytesMut,
}

/// How much waits for a client that does not read; the rest is left out.
const LONGEST_INTERIM: usize = 64 * 1024;

pub(super) const WAITING: u8 = 0;
pub(super) const HTTP: u8 = 1;
const SWITCHED: u8 = 2;

/// A request that is being answered, until this is dropped.
pub struct Busy(Arc<Gate>);

impl Busy {
    /// Returns one more for the same connection.
    pub fn another(&self) -> Self {
        self.0.another()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.server.wake();
        }
    }
}

impl Gate {
    pub fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self { limits: *limits, ..Self::default() })
    }

    /// Says that a request is being answered.
    pub fn busy(self: &Arc<Self>) -> Busy {
        let busy = self.another();
        let less = |heads: usize| heads.checked_sub(1);
        // There is none where the answer is to something else than a head.
        let _ = self.let_through.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        busy
    }

    fn another(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// Says how a request with an Upgrade header was answered: whether what follows is still HTTP.
    pub fn answered_upgrade(&self, switched: bool) {
        self.after_upgrade.store(if switched { SWITCHED } else { HTTP }, Ordering::Release);
        self.server.wake();
    }

    /// Returns why the request of the method [`REFUSED`] is one.
    pub fn refused(&self) -> Option<Refused> {
        self.refused.get().copied()
    }

    fn interim(&self) -> MutexGuard<'_, Interim> {
        self.interim.lock().expect("no panic while the lock is held")
    }

    /// Begins with the interim responses of the next request, and returns its number.
    pub fn hear_interim(&self) -> u64 {
        let mut interim = self.interim();
        interim.heads.clear();
        interim.number += 1;
        interim.number
    }

    /// Has the head of an interim response sent before the answer to the request `number`, if that has not been answered.
    pub fn tell_interim(&self, number: u64, head: &[u8]) {
        let mut interim = self.interim();
        if interim.number == number && interim.heads.len() + head.len() <= LONGEST_INTERIM {
            interim.heads.extend_from_slice(head);
            drop(interim);
            self.interim_said.wake();
        }
    }

    /// Says that the request `number` is answered: what was not sent by now belongs nowhere.
    pub fn forget_interim(&self, number: u64) {
        let mut interim = self.interim();
        if interim.number == number {
            (interim.number, interim.heads) = (number + 1, BytesMut::new());
        }
    }

    /// Takes what is to be sent; the server has flushed what belongs before it.
    pub(super) fn take_interim(&self) -> BytesMut {
        std::mem::take(&mut self.interim().heads)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire) > 0 || self.let_through.load(Ordering::Relaxed) > 0
    }
}
