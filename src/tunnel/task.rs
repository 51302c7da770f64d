//! The one task that owns a Session, and what others see of it.

use std::{
    future::pending,
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

/// One tunnel: the part that its task, its leases and its streams share.
pub(super) struct Tunnel {
    pub target: Target,
    backend: Arc<dyn Backend>,
    /// Display of the target.
    pub id: Arc<str>,
    pub view: watch::Sender<View>,
    pub leases: Leases,
    /// Streams dropped when the tunnel ends.
    pub streams: Streams,
    /// Notified when the last lease is given back.
    pub changed: Notify,
    /// Somebody wants another attempt of a tunnel that has failed.
    pub wanted: Notify,
    /// Somebody wants another session, whatever the present one is like.
    pub reconnect: Notify,
    /// Ends the tunnel and its streams; cancelled when the tunnel is over, whatever ended it.
    pub stop: CancellationToken,
    /// Ends the tunnel with its last lease.
    pub retired: CancellationToken,
    pub usage: Usage,
    pub last_error: Mutex<Option<String>>,
    pub history: Arc<History>,
    pub journal: Arc<Journal>,
    pub drain: Drain,
    /// The port refused connections for a whole grace, and has not answered since.
    pub refuses: AtomicBool,
    /// The pods have answered a stream, and have not failed one since.
    pub answers: AtomicBool,
    /// Whether it counts as a new name still: until it has led somewhere.
    pub has_token: AtomicBool,
    idle_timeout: AtomicU64,
}

/// State of the tunnel for callers.
#[derive(Clone)]
pub(super) enum View {
    /// The error of the last attempt, until `retry_at`.
    Starting(Option<OpenError>),
    Running(Arc<Running>),
    Failed(OpenError, Instant),
    Over,
}

/// A session in use. A tunnel that is opened again gets another one.
pub(super) struct Running {
    pub session: Box<dyn Session>,
    pub endpoint: Arc<Endpoint>,
    /// Cancelled when another session takes its place, or the tunnel is over.
    pub replaced: CancellationToken,
}

/// Counters of a tunnel.
pub(super) struct Usage {
    pub up: AtomicU64,
    pub down: AtomicU64,
    pub streams: AtomicU64,
    /// Sessions that were opened, and attempts that failed.
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

    /// Takes note that the tunnel is used now.
    pub fn touch(&self) {
        self.last.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    pub fn last_use(&self) -> Instant {
        self.started + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// How many leases are held; and whether the tunnel has closed because there were none, which is decided at once with
/// that, so that nobody gets a lease of a tunnel that is about to close.
#[derive(Debug, Default)]
pub(super) struct Leases(AtomicUsize);

impl Leases {
    const CLOSED: usize = usize::MAX;

    /// Returns whether another could be taken.
    pub fn take(&self) -> bool {
        let more = |held: usize| (held != Self::CLOSED).then(|| held + 1);
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    /// Returns whether it was the last one.
    pub fn give_back(&self) -> bool {
        self.0.fetch_sub(1, Ordering::SeqCst) == 1
    }

    pub fn count(&self) -> usize {
        match self.0.load(Ordering::SeqCst) {
            Self::CLOSED => 0,
            held => held,
        }
    }

    /// Returns whether there were none, and from now on can be none.
    pub fn close(&self) -> bool {
        let closed = self.0.compare_exchange(0, Self::CLOSED, Ordering::SeqCst, Ordering::SeqCst);
        matches!(closed, Ok(_) | Err(Self::CLOSED))
    }
}

impl Tunnel {
    pub fn new(
        target: Target,
        backend: Arc<dyn Backend>,
        idle_timeout: Duration,
        drain: Drain,
        journal: Arc<Journal>,
    ) -> Self {
        let id: Arc<str> = target.to_string().into();
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

    /// Keeps the tunnel for at least this long without use. Zero: without limit.
    pub fn extend_idle_timeout(&self, timeout: Duration) {
        self.idle_timeout.fetch_max(to_millis(timeout), Ordering::Relaxed);
    }

    /// Returns until when a caller waits for a stream: a session that has to be made again needs its own time.
    pub fn stream_deadline(&self) -> Instant {
        Instant::now() + BUDGET + self.target.startup_time()
    }

    /// Returns until when a caller waits whose time is over. None: no longer. While somebody signs in, and a
    /// budget after that, it does.
    pub fn put_off(&self) -> Option<Instant> {
        self.backend.sign_in(&self.target)?.put_off(BUDGET, Instant::now())
    }

    /// Returns whether callers for `target` can use it.
    pub fn serves(&self, target: &Target) -> bool {
        self.target == *target || target.pods().is_some_and(|pods| self.leads_to(pods))
    }

    /// Returns whether it runs to the pods and the port that are wanted, though the port has another name there.
    pub fn leads_to(&self, wanted: &PodTarget) -> bool {
        self.is_beside(wanted).is_some()
            && matches!(&*self.view.borrow(), View::Running(running) if running.session.leads_to(&wanted.port))
    }

    /// Returns whether it starts, and may lead to the port that is wanted once it runs.
    pub fn may_lead_to(&self, wanted: &PodTarget) -> bool {
        self.is_beside(wanted).is_some_and(|port| port.may_be(&wanted.port))
            && matches!(&*self.view.borrow(), View::Starting(_))
    }

    /// Returns its port where it is one of the pods that are wanted.
    fn is_beside(&self, wanted: &PodTarget) -> Option<&PortRef> {
        let pods = self.target.pods().filter(|_| !self.retired.is_cancelled())?;
        let is_beside = (&pods.workload, &pods.namespace, &pods.cluster, &pods.jump)
            == (&wanted.workload, &wanted.namespace, &wanted.cluster, &wanted.jump);
        is_beside.then_some(&pods.port)
    }

    pub fn is_used(&self) -> bool {
        self.leases.count() > 0
    }

    /// Returns when the tunnel has been idle for long enough, if nothing happens meanwhile. None: never.
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

/// Opens the session of a tunnel, keeps it while it is used, and returns when the tunnel is over.
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
    // A connection that is kept for later requests holds no lease, and a stream whose client does not read notices nothing: they
    // end here, and with them the session that they use.
    tunnel.stop.cancel();
    tunnel.streams.end();
    tunnel.view.send_replace(View::Over);
}

/// Takes down what happens to a tunnel, for those who ask afterwards. Why a session was lost is known elsewhere.
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
        // In a drain, those who wait already are still served.
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

/// Resolves when nobody holds a lease.
async fn unused(tunnel: &Tunnel) {
    loop {
        let changed = tunnel.changed.notified();
        tokio::pin!(changed);
        // Registered before the look, so that a lease given back in between is not missed.
        changed.as_mut().enable();
        if !tunnel.is_used() {
            return;
        }
        changed.await;
    }
}

/// Closes the tunnel as soon as nobody holds a lease.
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

/// Resolves when no lease was held and no byte moved for the idle time. Nothing is polled: the only wake-ups are the
/// ends of leases, and the moment at which the time would be over.
async fn idle(tunnel: &Tunnel) {
    loop {
        unused(tunnel).await;
        let Some(at) = tunnel.idle_at() else { return pending().await };
        tokio::select! {
            () = sleep_until(at) => {}
            () = tunnel.changed.notified() => continue,
        }
        if tunnel.idle_at().is_some_and(|at| at <= Instant::now()) && tunnel.leases.close() {
            return;
        }
    }
}

async fn while_failed(tunnel: &Tunnel, retry_at: Instant, drain: &Drain) -> Event {
    // An error is kept a little past its time, for those who look at the status.
    let forget_at = retry_at + Duration::from_secs(30);
    tokio::select! {
        () = async { sleep_until(retry_at).await; tunnel.wanted.notified().await } => Event::Acquired,
        () = async { sleep_until(forget_at).await; closed_unused(tunnel).await } => Event::Unused,
        () = tunnel.reconnect.notified() => Event::Reconnect,
        () = tunnel.stop.cancelled() => Event::Stopped,
        () = drain.started() => Event::Stopped,
    }
}
