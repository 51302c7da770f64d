//! The right to use a tunnel.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{
    BUDGET,
    stream::TunnelStream,
    task::{Running, Tunnel, View},
};
use crate::{
    backend::{Endpoint, OpenError, Placement},
    io::{BoxedIo, abandoned::Ends},
};

/// While one is held, or bytes flow, the tunnel is not idle.
pub struct Lease {
    hold: Hold,
    endpoint: Arc<Endpoint>,
}

/// Counts as use while it lives.
pub(super) struct Hold(pub(super) Arc<Tunnel>);

impl Hold {
    /// None: the tunnel has just closed, and takes nobody any more.
    pub(super) fn new(tunnel: Arc<Tunnel>) -> Option<Self> {
        tunnel.leases.take().then(|| Self(tunnel))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.usage.touch();
        if self.0.leases.give_back() {
            self.0.changed.notify_waiters();
        }
    }
}

impl Lease {
    /// Makes a lease of a hold on a tunnel that runs.
    pub(super) fn new(hold: Hold, endpoint: Arc<Endpoint>) -> Self {
        Self { hold, endpoint }
    }

    /// Opens a stream to the pod; where the pod is gone, to another, waiting at most the budget (10 s).
    ///
    /// The stream is counted, and keeps the first bytes written (up to 64 KiB) until the pod has answered,
    /// so that a pod that certainly saw none of them can be replaced behind it.
    ///
    /// `client`: for whom, so that the pod learns at once when he is gone.
    pub async fn connect(&self, client: Option<Ends>) -> Result<BoxedIo, OpenError> {
        self.stream(client).await.map(|(stream, _)| stream)
    }

    /// Does the same for streams that are kept for later use, and tells where it leads.
    pub async fn connect_placed(&self) -> Result<(BoxedIo, Placement), OpenError> {
        self.stream(None).await
    }

    async fn stream(&self, client: Option<Ends>) -> Result<(BoxedIo, Placement), OpenError> {
        let (inner, placement, running) = connect(&self.hold.0, None, client, Instant::now() + BUDGET).await?;
        Ok((Box::new(TunnelStream::new(self.hold.0.clone(), inner, running, client)), placement))
    }

    /// Returns what was reached when the lease was taken, or what is reached now: another pod after a restart.
    pub fn endpoint(&self) -> Arc<Endpoint> {
        match &*self.hold.0.view.borrow() {
            View::Running(running) => running.endpoint.clone(),
            _ => self.endpoint.clone(),
        }
    }

    /// Notes how a connection of a user failed, for `adit status`.
    pub fn note_error(&self, error: &dyn std::fmt::Display) {
        self.hold.0.note_error(error);
    }
}

/// Waits until the tunnel runs. `avoid`: not the session that is known to be of no use any more.
pub(super) async fn running(
    tunnel: &Tunnel,
    avoid: Option<&Arc<Running>>,
    deadline: Instant,
) -> Result<Arc<Running>, OpenError> {
    let mut view = tunnel.view.subscribe();
    let mut last_error = None;
    let came = Instant::now();
    let mut has_waited = false;
    loop {
        let seen = view.borrow_and_update().clone();
        match seen {
            View::Running(running) if avoid.is_none_or(|avoid| !Arc::ptr_eq(avoid, &running)) => return Ok(running),
            View::Running(_) => {}
            View::Starting(error) => {
                last_error = error.or(last_error);
                has_waited = true;
            }
            // Those who waited longest have given up; who came while they waited still has time.
            View::Failed(error, retry_at) if has_waited && came.elapsed() < error.patience() => {
                sleep_until(retry_at.min(deadline)).await;
                last_error = Some(error);
                tunnel.wanted.notify_waiters();
            }
            View::Failed(error, retry_at) if retry_at > Instant::now() => return Err(error),
            // The task starts again for whoever comes after the time.
            View::Failed(..) => tunnel.wanted.notify_waiters(),
            View::Over => return Err(OpenError::Stopped),
        }
        // Failed is looked at again in a moment: its task may not have been listening yet.
        let again = deadline.min(
            Instant::now()
                + if matches!(*view.borrow(), View::Failed(..)) { Duration::from_millis(20) } else { BUDGET },
        );
        match timeout_at(again, view.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(OpenError::Stopped),
            Err(_) if again < deadline => {}
            Err(_) => return Err(last_error.unwrap_or(OpenError::TimedOut { after: BUDGET })),
        }
    }
}

/// Opens a stream on the tunnel's session, or on the next one where that is of no use.
pub(super) async fn connect(
    tunnel: &Tunnel,
    avoid: Option<Arc<Running>>,
    client: Option<Ends>,
    deadline: Instant,
) -> Result<(BoxedIo, Placement, Arc<Running>), OpenError> {
    let mut avoid = avoid;
    loop {
        let running = running(tunnel, avoid.as_ref(), deadline).await?;
        // A session may dial for this, and a network that swallows packets tells nothing for long.
        let Ok(connected) = timeout_at(deadline, running.session.connect(client)).await else {
            return Err(OpenError::TimedOut { after: BUDGET });
        };
        match connected {
            Ok((stream, placement)) => {
                tunnel.usage.streams.fetch_add(1, Ordering::Relaxed);
                tunnel.usage.touch();
                return Ok((stream, placement.of_session(running.replaced.clone()), running));
            }
            Err(fault) => {
                tunnel.note_error(&fault);
                // The session that has failed closes, which its task is about to learn.
                avoid = Some(running);
                sleep(Duration::from_millis(1)).await;
            }
        }
    }
}
