//! State that the server and the normaliser of a connection share, with one type for each topic.

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

/// State shared by the server and the normaliser of one connection.
#[derive(Default)]
pub struct Gate {
    pub(super) limits: Limits,
    pub progress: Arc<Progress>,
    pub upgrade: Upgrade,
    pub interim: InterimHeads,
    refused: OnceLock<Refused>,
    /// An answer was cut off.
    is_cut: AtomicBool,
}

impl Gate {
    pub fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self { limits: *limits, ..Self::default() })
    }

    /// Marks an answer as cut off although its head gives no length: the connection must end with a reset.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }

    /// Records why a request was replaced by the stand-in. It is the last request of its connection.
    pub(super) fn refuse(&self, refused: Refused) {
        // Only the first reason counts.
        let _ = self.refused.set(refused);
    }

    /// Returns why the request with the method [`REFUSED`](super::REFUSED) was refused.
    pub fn refused(&self) -> Option<Refused> {
        self.refused.get().copied()
    }
}
