//! Leases: a tunnel with a lease is in use.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{
    BUDGET, SLOW_START,
    stream::{PAUSE, TunnelStream},
    task::{Running, Tunnel, View},
};
use crate::{
    backend::{CloseReason, ConnectError, Endpoint, OpenError, Placement, StreamFault},
    io::BoxedIo,
};

/// Use of a running tunnel. A tunnel is idle only without leases and without traffic.
pub struct Lease {
    hold: Hold,
    endpoint: Arc<Endpoint>,
}

/// Counts as a lease of the tunnel until it is dropped.
pub(super) struct Hold(pub(super) Arc<Tunnel>);

impl Hold {
    /// Returns `None` if the tunnel has just closed.
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
    /// Creates a lease on a running tunnel.
    pub(super) fn new(hold: Hold, endpoint: Arc<Endpoint>) -> Self {
        Self { hold, endpoint }
    }

    /// Opens a stream to the pod, or to another pod if that one is gone. Waits at most the budget (10 s).
    ///
    /// The stream is counted. It buffers the first bytes written (up to 64 KiB) until the pod has answered: if the pod
    /// certainly saw none of them, the stream replays them to another pod.
    ///
    /// # Errors
    /// No pod takes a stream within the budget.
    pub async fn connect(&self) -> Result<BoxedIo, OpenError> {
        self.connect_to(None).await.map(|(stream, _)| stream)
    }

    /// Opens a stream as [`connect`](Self::connect) does, and also returns its placement. `pod`: the pod to try first.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_to(&self, pod: Option<&str>) -> Result<(BoxedIo, Placement), OpenError> {
        let deadline = self.hold.0.stream_deadline();
        let (inner, placement, running) = connect(&self.hold.0, None, pod, deadline).await?;
        Ok((Box::new(TunnelStream::new(self.hold.0.clone(), inner, running)), placement))
    }

    /// Returns the id of the lease's tunnel.
    pub fn id(&self) -> Arc<str> {
        self.hold.0.id.clone()
    }

    /// Returns the current endpoint while the tunnel runs, else the one at the time of the lease. A restart may change the pod.
    pub fn endpoint(&self) -> Arc<Endpoint> {
        match &*self.hold.0.view.borrow() {
            View::Running(running) => running.endpoint.clone(),
            _ => self.endpoint.clone(),
        }
    }

    /// Returns why the pod is not ready, if the target names this pod and adit uses it all the same.
    pub fn not_ready(&self) -> Option<String> {
        match &*self.hold.0.view.borrow() {
            View::Running(running) => running.session.not_ready(),
            _ => None,
        }
    }

    /// Waits until the tunnel is over: stopped by hand, or failed when the process began to drain.
    pub async fn ended(&self) {
        self.hold.0.stop.cancelled().await;
    }

    /// Waits until the process begins to drain.
    pub async fn draining(&self) {
        self.hold.0.drain.started().await;
    }

    pub(super) fn tunnel(&self) -> &Arc<Tunnel> {
        &self.hold.0
    }

    /// Records the error of a user's connection, for `adit status`.
    pub fn note_error(&self, error: &dyn std::fmt::Display) {
        self.hold.0.note_error(error);
    }
}

/// Reason why there is no session to use.
pub(super) enum NotRunning {
    /// The tunnel is over; the caller may open another one.
    Over,
    Failed(OpenError),
}

impl From<NotRunning> for OpenError {
    fn from(not_running: NotRunning) -> Self {
        match not_running {
            NotRunning::Over => Self::Stopped,
            NotRunning::Failed(error) => error,
        }
    }
}

/// Waits until the tunnel runs. `avoid`: a session that takes no more streams; waits for its successor.
pub(super) async fn running(
    tunnel: &Tunnel,
    avoid: Option<&Arc<Running>>,
    mut deadline: Instant,
) -> Result<Arc<Running>, NotRunning> {
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
            // The start has failed, but this caller joined it later and still has time: it asks for another attempt.
            View::Failed(error, retry_at) if has_waited && came.elapsed() < error.patience() && retry_at < deadline => {
                sleep_until(retry_at).await;
                last_error = Some(error);
                tunnel.wanted.notify_waiters();
            }
            View::Failed(error, retry_at) if retry_at > Instant::now() => return Err(NotRunning::Failed(error)),
            // The task starts again for the next caller.
            View::Failed(..) => tunnel.wanted.notify_waiters(),
            View::Over => return Err(NotRunning::Over),
        }
        // The task misses this notification if it does not wait for it yet, so look again 20 ms later.
        let again = deadline.min(
            Instant::now()
                + if matches!(*view.borrow(), View::Failed(..)) { Duration::from_millis(20) } else { BUDGET },
        );
        match timeout_at(again, view.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(NotRunning::Over),
            Err(_) if again < deadline => {}
            Err(_) => match tunnel.put_off() {
                Some(later) => deadline = later,
                None if tunnel.is_first_start() && came.elapsed() < SLOW_START => deadline = came + SLOW_START,
                None => {
                    let error = last_error.unwrap_or(OpenError::TimedOut { after: came.elapsed() });
                    return Err(NotRunning::Failed(error));
                }
            },
        }
    }
}

/// Opens a stream on the tunnel's session, or on the next session if that one takes no more streams.
pub(super) async fn connect(
    tunnel: &Tunnel,
    avoid: Option<Arc<Running>>,
    pod: Option<&str>,
    deadline: Instant,
) -> Result<(BoxedIo, Placement, Arc<Running>), OpenError> {
    let (mut avoid, mut ended) = (avoid, None);
    let started = Instant::now();
    loop {
        let running = match running(tunnel, avoid.as_ref(), deadline).await {
            // If an earlier session has ended, its reason is the cause, not the timeout.
            Err(NotRunning::Failed(OpenError::TimedOut { after })) => {
                return Err(ended.map_or(OpenError::TimedOut { after }, |reason| StreamFault::from(reason).into()));
            }
            running => running?,
        };
        // Opening a stream may dial, and a network that drops packets reports no error for a long time.
        let connecting = match pod {
            Some(pod) => running.session.connect_to(pod),
            None => running.session.connect(),
        };
        let connected = tokio::select! {
            connected = within(tunnel, deadline, connecting) => connected,
            () = tunnel.stop.cancelled() => return Err(OpenError::Stopped),
        };
        let Some(connected) = connected else { return Err(OpenError::TimedOut { after: started.elapsed() }) };
        match connected {
            Ok((stream, placement)) => {
                tunnel.usage.streams.fetch_add(1, Ordering::Relaxed);
                tunnel.usage.touch();
                tunnel.history.placed(placement.pod());
                return Ok((stream, placement.of_session(running.replaced.clone()), running));
            }
            Err(ConnectError::Retry(error)) => {
                tunnel.note_error(&error);
                return Err(error);
            }
            Err(ConnectError::Over(reason)) => {
                tunnel.note_error(&reason);
                // This caller has lost a session before: do not start a command for it again and again.
                let is_last = Instant::now() >= deadline;
                if is_last || (ended.is_some() && matches!(reason, CloseReason::Command { .. })) {
                    return Err(OpenError::Stream(StreamFault::from(reason)));
                }
                // The tunnel's task has not noticed yet that the session is closed. The next sessions may end as fast.
                let pause = if ended.is_none() { Duration::from_millis(1) } else { PAUSE };
                (ended, avoid) = (Some(reason), Some(running));
                sleep(pause).await;
            }
        }
    }
}

/// Runs `work` until `deadline`, or longer while a sign-in runs. `None`: the time is over.
async fn within<T>(tunnel: &Tunnel, mut deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    loop {
        match timeout_at(deadline, &mut work).await {
            Ok(done) => return Some(done),
            Err(_) => deadline = tunnel.put_off()?,
        }
    }
}
