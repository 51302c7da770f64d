//! Waits until a target is reachable, for callers that start a program which needs it.

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

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(250);

/// Time for the program in the jump pod to start, resolve the name and connect. If the server answers, the probe ends sooner.
const SETTLE_OF_JUMP: Duration = Duration::from_secs(3);

/// How long and for which errors a caller waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// When the caller gives up.
    pub until: Instant,
    /// Time for a pod to refuse a connection: the port-forward protocol does not report that it has accepted one.
    pub settle: Duration,
    /// Whether to retry after this error. Any other error ends the wait at once.
    pub may_pass: fn(&OpenError) -> bool,
}

/// Returns whether an error may go away by itself: something starts, restarts, or is away for a moment.
pub fn passes(error: &OpenError) -> bool {
    match error {
        OpenError::Stream(fault) => !matches!(fault, StreamFault::Other { .. } | StreamFault::Jump { .. }),
        OpenError::TimedOut { .. } | OpenError::SigningIn { .. } | OpenError::TooManyNew => true,
        error => !error.patience().is_zero() || error.code() == ErrorCode::TimedOut,
    }
}

/// Returns whether an error may go away for a caller that also waits for a Service, a pod or a namespace to be created.
pub fn passes_or_appears(error: &OpenError) -> bool {
    passes(error) || error.code() == ErrorCode::NotFound
}

impl Manager {
    /// Waits until the tunnel to `target` runs and a pod has accepted a connection. Calls `told` for each new error
    /// that it retries.
    ///
    /// # Errors
    /// The last error once the time is over, or the first error that is not retried.
    pub async fn reach(
        &self,
        target: &Target,
        idle_timeout: Duration,
        patience: Patience,
        mut told: impl FnMut(&OpenError),
    ) -> Result<Arc<Endpoint>, OpenError> {
        let (started, mut last): (_, Option<OpenError>) = (Instant::now(), None);
        let mut tell = |last: &mut Option<OpenError>, error: OpenError| {
            if last.as_ref() != Some(&error) {
                told(&error);
                *last = Some(error);
            }
        };
        loop {
            let mut attempt = std::pin::pin!(self.attempt(target, idle_timeout, patience.settle));
            let failed = loop {
                tokio::select! {
                    attempted = &mut attempt => match attempted {
                        Ok(endpoint) => return Ok(endpoint),
                        Err(error) => break error,
                    },
                    error = self.next_trouble(target, last.as_ref()) => tell(&mut last, error),
                    () = sleep_until(patience.until) => {
                        return Err(last.unwrap_or(OpenError::TimedOut { after: started.elapsed() }));
                    }
                }
            };
            if !(patience.may_pass)(&failed) || Instant::now() + PAUSE >= patience.until {
                return Err(failed);
            }
            tell(&mut last, failed);
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

    /// Returns the last error of a tunnel that does not run yet. `None`: it runs, no attempt has failed, or there is no tunnel.
    pub fn trouble(&self, target: &Target) -> Option<OpenError> {
        self.tunnel(target)?.view.borrow().trouble().cloned()
    }

    /// Waits for an error of the tunnel to `target` other than `known`. A tunnel that ends is followed by the next one.
    pub async fn next_trouble(&self, target: &Target, known: Option<&OpenError>) -> OpenError {
        let mut created = self.subscribe_created();
        loop {
            created.mark_unchanged();
            if let Some(tunnel) = self.tunnel(target) {
                let mut view = tunnel.view.subscribe();
                let is_news = |view: &View| view.trouble().is_some_and(|error| Some(error) != known);
                let seen = async {
                    let seen = view.wait_for(|view| is_news(view) || matches!(view, View::Over)).await;
                    seen.ok().and_then(|view| view.trouble().cloned())
                };
                tokio::select! {
                    error = seen => if let Some(error) = error {
                        return error;
                    },
                    // The target may have a tunnel of its own now.
                    _ = created.changed() => continue,
                }
            }
            // The sender lives as long as `self`.
            let _ = created.changed().await;
        }
    }
}

impl Lease {
    /// Opens a connection to the pod, and closes it once the pod has had the time to refuse it.
    ///
    /// # Errors
    /// The pod refused the connection, or cannot be reached.
    pub async fn probe(&self, settle: Duration) -> Result<(), OpenError> {
        let deadline = Instant::now() + BUDGET;
        let (mut stream, ..) = connect(self.tunnel(), None, None, deadline).await?;
        let is_jump = self.tunnel().target.pods().is_some_and(|pods| pods.jump.is_some());
        let settle = if is_jump { settle.max(SETTLE_OF_JUMP) } else { settle };
        if is_jump {
            // Most servers end a connection after a FIN. That end shows that a server is there.
            let _ = stream.shutdown().await;
        }
        match timeout(settle, stream.read(&mut [0; 1])).await {
            // The pod has accepted the connection: it sent bytes, ended it, or waits for the client's bytes.
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
