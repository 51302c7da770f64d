//! State that the server and the normaliser of a connection share, one type for each matter.

mod interim;
mod progress;
mod upgrade;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub use self::{
    interim::InterimHeads,
    progress::{Busy, Progress},
    upgrade::{Follows, Upgrade},
};
use crate::{io::accept::Limits, wire::http1::Refusal};

/// Why a request was refused before the server saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Ambiguous(#[from] Refusal),
    #[error("the request's headers were not complete {0:?} after their first byte")]
    Slow(Duration),
}

/// State between the server and the normaliser of one connection.
#[derive(Default)]
pub struct Gate {
    pub(super) limits: Limits,
    pub progress: Arc<Progress>,
    pub upgrade: Upgrade,
    pub interim: InterimHeads,
    refused: OnceLock<Refused>,
    /// The answer broke off.
    is_cut: AtomicBool,
}

impl Gate {
    pub fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self { limits: *limits, ..Self::default() })
    }

    /// Says that bytes of an answer are missing that its head has not counted: the connection is to end with a reset.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }

    /// Says why the request that stands in for another is there. It is the last one of its connection.
    pub(super) fn refuse(&self, refused: Refused) {
        // The first reason counts.
        let _ = self.refused.set(refused);
    }

    /// Returns why the request of the method [`REFUSED`](super::REFUSED) is one.
    pub fn refused(&self) -> Option<Refused> {
        self.refused.get().copied()
    }
}
