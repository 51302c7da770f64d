//! The task that owns a tunnel's session, and the state that the tunnel's leases and streams share with it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::BUDGET;
use super::{
    state::{Action, Event, State},
    streams::Streams,
};
use crate::{
    backend::{Backend, Endpoint, OpenError, Session},
    config::PortRef,
    drain::Drain,
    journal::{Event as Noted, History, Journal},
    routing::{PodTarget, Target},
};

/// One tunnel: the state that its task, leases and streams share.
pub(super) struct Tunnel {
    pub target: Target,
    backend: Arc<dyn Backend>,
    pub id: Arc<str>,
    pub view: watch::Sender<View>,
    pub leases: Leases,
    /// Streams dropped when the tunnel ends.
    pub streams: Streams,
    /// Notified when the last lease is dropped, and when the idle timeout is another.
    pub changed: Notify,
    /// Notified when a caller wants another attempt after a failure.
    pub wanted: Notify,
    /// Notified when the user asks for another session, whatever state the present one is in.
    pub reconnect: Notify,
    /// Ends the tunnel and its streams. Cancelled whenever the tunnel is over, whatever ended it.
    pub stop: CancellationToken,
    /// Ends the tunnel with its last lease.
    pub retired: CancellationToken,
    pub usage: Usage,
    pub last_error: Mutex<Option<String>>,
    pub history: Arc<History>,
    pub journal: Arc<Journal>,
    pub drain: Drain,
    /// The port refused connections for a whole grace period, and has not answered since.
    pub refuses: AtomicBool,
    /// A pod has answered a stream, and no stream has failed since.
    pub answers: AtomicBool,
    /// Whether the target still counts as a new name. Cleared once the tunnel has run.
    pub has_token: AtomicBool,
    idle_timeout: AtomicU64,
}

/// State of the tunnel for callers.
#[derive(Clone)]
pub(super) enum View {
    /// Error of the last attempt. `None`: no attempt of this start has failed.
    Starting(Option<OpenError>),
    Running(Arc<Running>),
    Failed(OpenError, Instant),
    Over,
}

impl View {
    /// Returns the error of the last attempt, if the tunnel does not run yet.
    pub fn trouble(&self) -> Option<&OpenError> {
        match self {
            Self::Starting(error) => error.as_ref(),
            Self::Failed(error, _) => Some(error),
            Self::Running(_) | Self::Over => None,
        }
    }
}

/// The session in use. A tunnel that reopens gets a new one.
pub(super) struct Running {
    pub session: Box<dyn Session>,
    pub endpoint: Arc<Endpoint>,
    /// Cancelled when another session replaces this one, or the tunnel is over.
    pub replaced: CancellationToken,
}

/// Counters of a tunnel.
pub(super) struct Usage {
    pub up: AtomicU64,
    pub down: AtomicU64,
    pub streams: AtomicU64,
    /// Opened sessions, and failed attempts to open one.
    pub opens: AtomicU64,
    pub failures: AtomicU64,
    started: Instant,
    /// Milliseconds from `started` to the last use.
    last: AtomicU64,
}

impl Usage {
    fn new() -> Self {
        Self {
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            opens: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            started: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    /// Records that the tunnel is in use now.
    pub fn touch(&self) {
        self.last.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    pub fn last_use(&self) -> Instant {
        self.started + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// Number of leases held. The close of an unused tunnel is a value of the same counter, so that no caller gets a lease
/// on a tunnel that is about to close.
#[derive(Debug, Default)]
pub(super) struct Leases(AtomicUsize);

impl Leases {
    const CLOSED: usize = usize::MAX;

    /// Adds a lease. Returns `false` if the tunnel is closed.
    pub fn take(&self) -> bool {
        let more = |held: usize| (held != Self::CLOSED).then(|| held + 1);
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    /// Removes a lease. Returns whether it was the last one.
    pub fn give_back(&self) -> bool {
        self.0.fetch_sub(1, Ordering::SeqCst) == 1
    }

    pub fn count(&self) -> usize {
        match self.0.load(Ordering::SeqCst) {
            Self::CLOSED => 0,
            held => held,
        }
    }

    /// Closes the tunnel to new leases if none is held. Returns whether it is closed.
    pub fn close(&self) -> bool {
        let closed = self.0.compare_exchange(0, Self::CLOSED, Ordering::SeqCst, Ordering::SeqCst);
        matches!(closed, Ok(_) | Err(Self::CLOSED))
    }
}

impl Tunnel {
    /// Ends the tunnel for its callers. A kept-alive connection holds no lease, and a stream whose client does not read
    /// notices nothing. Both end here, and with them the session that they use.
    pub(super) fn end(&self) {
        self.stop.cancel();
        self.streams.end();
        self.view.send_replace(View::Over);
    }

    pub fn new(
        id: Arc<str>,
        target: Target,
        backend: Arc<dyn Backend>,
        idle_timeout: Duration,
        drain: Drain,
        journal: Arc<Journal>,
    ) -> Self {
        Self {
            target,
            backend,
            history: journal.history(&id),
            id,
            view: watch::Sender::new(View::Starting(None)),
            leases: Leases::default(),
            streams: Streams::default(),
            changed: Notify::new(),
            wanted: Notify::new(),
            reconnect: Notify::new(),
            stop: CancellationToken::new(),
            retired: CancellationToken::new(),
            usage: Usage::new(),
            last_error: Mutex::default(),
            journal,
            drain,
            refuses: AtomicBool::new(false),
            answers: AtomicBool::new(false),
            has_token: AtomicBool::new(true),
            idle_timeout: AtomicU64::new(to_millis(idle_timeout)),
        }
    }

    /// Raises the idle timeout to at least this. Zero: no limit.
    pub fn extend_idle_timeout(&self, timeout: Duration) {
        self.idle_timeout.fetch_max(to_millis(timeout), Ordering::Relaxed);
    }

    /// Replaces the idle timeout: a reload may shorten it. Zero: no limit.
    pub fn set_idle_timeout(&self, timeout: Duration) {
        self.idle_timeout.store(to_millis(timeout), Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Returns the deadline of a caller that waits for a stream. It includes the start-up time of a session that has to
    /// open again.
    pub fn stream_deadline(&self) -> Instant {
        Instant::now() + BUDGET + self.target.startup_time()
    }

    /// Returns the new deadline of a caller whose time is over: it waits while a sign-in runs, and a budget after that.
    /// `None`: the caller waits no longer.
    pub fn put_off(&self) -> Option<Instant> {
        self.backend.sign_in(&self.target)?.put_off(BUDGET, Instant::now())
    }

    /// Returns whether its first attempt still goes on.
    pub fn is_first_start(&self) -> bool {
        self.usage.opens.load(Ordering::Relaxed) == 0 && matches!(&*self.view.borrow(), View::Starting(None))
    }

    /// Returns whether callers for `target` can use this tunnel.
    pub fn serves(&self, target: &Target) -> bool {
        self.target == *target || target.pods().is_some_and(|pods| self.leads_to(pods))
    }

    /// Returns whether the tunnel runs to the wanted pods and port, perhaps under another name of the port.
    pub fn leads_to(&self, wanted: &PodTarget) -> bool {
        self.is_beside(wanted).is_some()
            && matches!(&*self.view.borrow(), View::Running(running) if running.session.leads_to(&wanted.port))
    }

    /// Returns whether the tunnel is starting and may turn out to reach the wanted port.
    pub fn may_lead_to(&self, wanted: &PodTarget) -> bool {
        self.is_beside(wanted).is_some_and(|port| port.may_be(&wanted.port))
            && matches!(&*self.view.borrow(), View::Starting(_))
    }

    /// Returns the tunnel's port if it goes to the wanted pods. `None` also if it is retired.
    fn is_beside(&self, wanted: &PodTarget) -> Option<&PortRef> {
        let pods = self.target.pods().filter(|_| !self.retired.is_cancelled())?;
        let is_beside = (&pods.workload, &pods.namespace, &pods.cluster, &pods.jump)
            == (&wanted.workload, &wanted.namespace, &wanted.cluster, &wanted.jump);
        is_beside.then_some(&pods.port)
    }

    pub fn is_used(&self) -> bool {
        self.leases.count() > 0
    }

    /// Returns when the tunnel becomes idle if nothing uses it until then. `None`: never.
    pub fn idle_at(&self) -> Option<Instant> {
        match self.idle_timeout.load(Ordering::Relaxed) {
            u64::MAX => None,
            millis => self.usage.last_use().checked_add(Duration::from_millis(millis)),
        }
    }

    pub fn note_error(&self, error: &dyn std::fmt::Display) {
        *self.last_error.lock().expect("no panic while the lock is held") = Some(error.to_string());
    }
}

fn to_millis(timeout: Duration) -> u64 {
    if timeout.is_zero() { u64::MAX } else { u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) }
}

/// Opens the session of a tunnel, reopens it while it is used, and returns when the tunnel is over.
pub(super) async fn run(tunnel: Arc<Tunnel>) {
    let drain = tunnel.drain.clone();
    let mut state = State::Starting { since: Instant::now() };
    let mut action = Action::Open { after: Duration::ZERO };
    let mut running: Option<Arc<Running>> = None;
    loop {
        let event = match &action {
            Action::Close => break,
            Action::Open { after } => {
                if let Some(before) = running.take() {
                    before.replaced.cancel();
                }
                open(&tunnel, *after, &drain, &mut running).await
            }
            Action::Wait => match &state {
                State::Running => while_running(&tunnel, running.as_deref(), &drain).await,
                State::Failed { retry_at, .. } => while_failed(&tunnel, *retry_at, &drain).await,
                State::Starting { .. } | State::Over => Event::Unused,
            },
        };
        if let Event::OpenFailed(error) = &event {
            tunnel.note_error(error);
        }
        note(&tunnel, &state, &event);
        (state, action) = state.on(event, Instant::now());
        tunnel.view.send_replace(view(&state, &running, &tunnel));
    }
}

/// Records an event in the tunnel's history. `while_running` records why a session was lost.
fn note(tunnel: &Tunnel, state: &State, event: &Event) {
    match (state, event) {
        (_, Event::OpenFailed(error)) => {
            let cause = error.cause().map(|cause| format!(": {cause}")).unwrap_or_default();
            tunnel.history.note(Noted::Failed, &format!("{error}{cause}"));
        }
        (State::Running, Event::Unused) => tunnel.history.note(Noted::Idle, "nobody used it"),
        (State::Running | State::Starting { .. } | State::Failed { .. }, Event::Stopped) => {
            let by = if tunnel.drain.is_draining() { "adit ends" } else { "by hand, or its route is gone" };
            tunnel.history.note(Noted::Stopped, by);
        }
        (_, Event::Reconnect) => tunnel.history.note(Noted::Reconnect, "by hand"),
        _ => {}
    }
}

fn view(state: &State, running: &Option<Arc<Running>>, tunnel: &Tunnel) -> View {
    match (state, running) {
        (State::Running, Some(running)) => View::Running(running.clone()),
        (State::Failed { error, retry_at }, _) => {
            warn!(tunnel = %tunnel.target, error = %error, cause = error.cause(), hint = error.hint(), "tunnel failed");
            View::Failed(error.clone(), *retry_at)
        }
        (State::Over, _) => View::Over,
        (State::Starting { .. } | State::Running, _) => View::Starting(match &*tunnel.view.borrow() {
            View::Starting(error) => error.clone(),
            _ => None,
        }),
    }
}

async fn open(tunnel: &Tunnel, after: Duration, drain: &Drain, running: &mut Option<Arc<Running>>) -> Event {
    let started = Instant::now();
    let opening = async {
        sleep(after).await;
        tunnel.backend.open(&tunnel.target).await
    };
    let opened = tokio::select! {
        opened = opening => opened,
        () = tunnel.stop.cancelled() => return Event::Stopped,
        () = closed_unused(tunnel) => return Event::Unused,
        // A drain still serves the callers that already wait.
        () = async { drain.started().await; closed_unused(tunnel).await } => return Event::Stopped,
    };
    match opened {
        Ok(session) => {
            let endpoint = Arc::new(session.endpoint().clone());
            info!(tunnel = %tunnel.target, pod = endpoint.pod, transport = endpoint.protocol, took = format_args!("{:.1?}", started.elapsed()), "tunnel running");
            let protocol = endpoint.protocol;
            let took = started.elapsed().as_millis();
            tunnel.history.opened(&endpoint.pod, &format!("{} by {protocol}, after {took} ms", endpoint.pod));
            *running = Some(Arc::new(Running { session, endpoint, replaced: tunnel.stop.child_token() }));
            tunnel.usage.touch();
            tunnel.usage.opens.fetch_add(1, Ordering::Relaxed);
            Event::Opened
        }
        Err(error) => {
            tunnel.view.send_replace(View::Starting(Some(error.clone())));
            tunnel.usage.failures.fetch_add(1, Ordering::Relaxed);
            Event::OpenFailed(error)
        }
    }
}

/// Waits until no lease is held.
async fn unused(tunnel: &Tunnel) {
    loop {
        let changed = tunnel.changed.notified();
        tokio::pin!(changed);
        // Register before the check, so that a lease dropped in between is not missed.
        changed.as_mut().enable();
        if !tunnel.is_used() {
            return;
        }
        changed.await;
    }
}

/// Closes the tunnel to new leases as soon as none is held.
async fn closed_unused(tunnel: &Tunnel) {
    loop {
        unused(tunnel).await;
        if tunnel.leases.close() {
            return;
        }
    }
}

async fn while_running(tunnel: &Tunnel, running: Option<&Running>, drain: &Drain) -> Event {
    let Some(running) = running else { return Event::Lost { used: !tunnel.leases.close() } };
    tokio::select! {
        reason = running.session.closed() => {
            let used = !tunnel.leases.close();
            info!(tunnel = %tunnel.target, pod = running.endpoint.pod, %reason, used, "session ended");
            tunnel.note_error(&reason);
            tunnel.history.note(Noted::Lost, &reason.to_string());
            Event::Lost { used }
        }
        () = idle(tunnel) => {
            info!(tunnel = %tunnel.target, "tunnel closed: idle");
            Event::Unused
        }
        () = tunnel.reconnect.notified() => Event::Reconnect,
        () = tunnel.stop.cancelled() => Event::Stopped,
        () = async { tunnel.retired.cancelled().await; closed_unused(tunnel).await } => Event::Stopped,
        () = async { drain.started().await; closed_unused(tunnel).await } => Event::Stopped,
    }
}

/// Waits until no lease was held and no byte moved for the idle timeout. It does not poll: it wakes when the last lease
/// is dropped, when the timeout is another, and when it ends.
async fn idle(tunnel: &Tunnel) {
    loop {
        unused(tunnel).await;
        let changed = tunnel.changed.notified();
        tokio::pin!(changed);
        // Register before the look at the timeout, so that a new one in between is not missed.
        changed.as_mut().enable();
        let at = tunnel.idle_at();
        tokio::select! {
            () = sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => {}
            () = changed => continue,
        }
        if tunnel.idle_at().is_some_and(|at| at <= Instant::now()) && tunnel.leases.close() {
            return;
        }
    }
}

async fn while_failed(tunnel: &Tunnel, retry_at: Instant, drain: &Drain) -> Event {
    // Keep the error a little longer, so that `adit status` can show it.
    let forget_at = retry_at + Duration::from_secs(30);
    tokio::select! {
        () = async { sleep_until(retry_at).await; tunnel.wanted.notified().await } => Event::Acquired,
        () = async { sleep_until(forget_at).await; closed_unused(tunnel).await } => Event::Unused,
        () = tunnel.reconnect.notified() => Event::Reconnect,
        () = tunnel.stop.cancelled() => Event::Stopped,
        // Streams of the lost session continue: the client of a relay leaves as soon as it hears of the drain, while its visitors
        // still read. Callers that only wait for a session get their error at once.
        () = async {
            drain.started().await;
            if !tunnel.streams.is_empty() {
                closed_unused(tunnel).await;
            }
        } => Event::Stopped,
    }
}
