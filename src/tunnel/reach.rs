//! Waits until a target can be reached, for those who start something that needs it.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{BUDGET, Lease, Manager, lease::connect, task::View};
use crate::{
    backend::{Endpoint, OpenError, StreamFault},
    error_code::ErrorCode,
    routing::Target,
};

/// Between two attempts, and between two looks at why an attempt takes so long.
const PAUSE: Duration = Duration::from_millis(250);

/// The program in the pod has to start, to resolve a name and to connect; an answer is there sooner where there is one.
const SETTLE_OF_JUMP: Duration = Duration::from_secs(3);

/// How a caller waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// When it gives up.
    pub until: Instant,
    /// How long a pod may take to refuse a connection: the port-forward protocol says nothing of one that was taken.
    pub settle: Duration,
    /// Whether an error may pass while the caller waits; others end it at once.
    pub may_pass: fn(&OpenError) -> bool,
}

/// Returns whether an error is of something that starts, restarts, or is away for a moment.
pub fn passes(error: &OpenError) -> bool {
    match error {
        OpenError::Stream(fault) => !matches!(fault, StreamFault::Other { .. } | StreamFault::Jump { .. }),
        OpenError::TimedOut { .. } | OpenError::TooManyNew => true,
        error => !error.patience().is_zero() || error.code() == ErrorCode::TimedOut,
    }
}

impl Manager {
    /// Returns once the tunnel to `target` runs and a connection to the pod was taken. Each new error that may pass is
    /// given to `told`.
    ///
    /// # Errors
    /// The last error, once the caller's patience is over, or an error that does not pass.
    pub async fn reach(
        &self,
        target: &Target,
        idle_timeout: Duration,
        patience: Patience,
        mut told: impl FnMut(&OpenError),
    ) -> Result<Arc<Endpoint>, OpenError> {
        let (started, mut last): (_, Option<OpenError>) = (Instant::now(), None);
        let mut tell = |error: OpenError| {
            if last.as_ref() != Some(&error) {
                told(&error);
            }
            last = Some(error.clone());
            error
        };
        loop {
            let mut attempt = std::pin::pin!(self.attempt(target, idle_timeout, patience.settle));
            let failed = loop {
                tokio::select! {
                    attempted = &mut attempt => match attempted {
                        Ok(endpoint) => return Ok(endpoint),
                        Err(error) => break error,
                    },
                    () = sleep(PAUSE) => if let Some(error) = self.trouble(target) {
                        tell(error);
                    },
                    () = sleep_until(patience.until) => {
                        return Err(match self.trouble(target) {
                            Some(error) => tell(error),
                            None => last.unwrap_or(OpenError::TimedOut { after: started.elapsed() }),
                        });
                    }
                }
            };
            if !(patience.may_pass)(&failed) || Instant::now() + PAUSE >= patience.until {
                return Err(failed);
            }
            tell(failed);
            sleep(PAUSE).await;
        }
    }

    async fn attempt(
        &self,
        target: &Target,
        idle_timeout: Duration,
        settle: Duration,
    ) -> Result<Arc<Endpoint>, OpenError> {
        let lease = self.acquire(target, idle_timeout).await?;
        lease.probe(settle).await?;
        Ok(lease.endpoint())
    }

    /// Returns why the tunnel to a target does not run yet, where there is one and an attempt has failed.
    pub fn trouble(&self, target: &Target) -> Option<OpenError> {
        match &*self.tunnel(target)?.view.borrow() {
            View::Starting(error) => error.clone(),
            View::Failed(error, _) => Some(error.clone()),
            View::Running(_) | View::Over => None,
        }
    }
}

impl Lease {
    /// Opens a connection to the pod, and closes it again once the pod has had the time to refuse it.
    ///
    /// # Errors
    /// The pod refused it, or it cannot be reached.
    pub async fn probe(&self, settle: Duration) -> Result<(), OpenError> {
        let deadline = Instant::now() + BUDGET;
        let (mut stream, ..) = connect(self.tunnel(), None, None, deadline).await?;
        let is_jump = self.tunnel().target.pods().is_some_and(|pods| pods.jump.is_some());
        let settle = if is_jump { settle.max(SETTLE_OF_JUMP) } else { settle };
        if is_jump {
            // Most servers end a connection whose other end says nothing, and that is how it is known that there is one.
            let _ = stream.shutdown().await;
        }
        match timeout(settle, stream.read(&mut [0; 1])).await {
            // It has taken the connection, and ended it, or waits for us to speak.
            Ok(Ok(_)) | Err(_) => Ok(()),
            Ok(Err(error)) => match StreamFault::of(&error) {
                Some(StreamFault::Reset) | None => Ok(()),
                Some(fault) => {
                    self.note_error(fault);
                    Err(fault.clone().into())
                }
            },
        }
    }
}
