//! All tunnels, by target.

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{
    BUDGET,
    lease::{self, Hold, Lease, NotRunning},
    task::{self, Tunnel, Usage, View},
};
use crate::{
    backend::{Backend, OpenError, SignInReport},
    drain::Drain,
    journal::{Journal, Percentiles},
    routing::Target,
};

/// Number of tunnels that may be created at once, and per second after that. A page may use a hundred names. A stream
/// of random names is an attack or a mistake, and each name costs calls to the API server.
const NEW_AT_ONCE: f64 = 200.0;
const NEW_PER_SECOND: f64 = 20.0;

/// Minimum age of a sign-in with output before a page shows it. Most sign-ins are over by then.
const SAID: Duration = Duration::from_millis(1_500);

/// Longer than any caller waits.
const FAR: Duration = Duration::from_secs(3600);

/// Returns leases on tunnels, and creates the tunnels.
#[derive(Clone)]
pub struct Manager {
    shared: Arc<Shared>,
}

struct Shared {
    backend: Arc<dyn Backend>,
    drain: Drain,
    journal: Arc<Journal>,
    tunnels: Mutex<Tunnels>,
    /// Tells callers of [`Manager::next_trouble`] that there is a new tunnel.
    created_tx: watch::Sender<()>,
}

/// Tunnels that start, run, or have failed recently. All others are forgotten, so that random names cannot fill the map.
struct Tunnels {
    by_target: HashMap<Target, Arc<Tunnel>>,
    /// Targets that another target's tunnel serves as well.
    same: HashMap<Target, Target>,
    /// Totals of ended tunnels.
    past: Totals,
    /// Tokens for new tunnels.
    tokens: f64,
    filled: Instant,
}

/// Totals of all tunnels since the process started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Number of sessions opened.
    pub opens: u64,
    /// Number of failed attempts to open a session.
    pub failures: u64,
    pub streams: u64,
    /// Bytes from clients to pods.
    pub up: u64,
    /// Bytes from pods to clients.
    pub down: u64,
}

impl Totals {
    fn add(&mut self, usage: &Usage) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.opens += of(&usage.opens);
        self.failures += of(&usage.failures);
        self.streams += of(&usage.streams);
        self.up += of(&usage.up);
        self.down += of(&usage.down);
    }
}

/// A sign-in as `adit status` shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct SignInSnapshot {
    /// `user "ana" of /home/ana/.kube/config`.
    pub user: String,
    /// Program or provider that issues the credential: `'aws'`.
    pub issuer: String,
    /// `running` or `failed`.
    pub state: String,
    /// Time since it began; if it failed, time until the next attempt is allowed.
    pub seconds: u64,
    /// Reason of the failure.
    pub error: Option<String>,
    /// Last lines of its output.
    pub said: Vec<String>,
}

impl SignInSnapshot {
    fn of(report: SignInReport) -> Self {
        let (state, seconds, error) = match (report.since, report.failure) {
            (Some(since), _) => ("running", since.elapsed(), None),
            (None, Some((reason, retry_at))) => ("failed", retry_at.duration_since(Instant::now()), Some(reason)),
            (None, None) => ("over", Duration::ZERO, None),
        };
        let SignInReport { user, issuer, said, .. } = report;
        Self { user, issuer, state: state.to_owned(), seconds: seconds.as_secs(), error, said }
    }
}

/// State and counters of one tunnel at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TunnelSnapshot {
    /// Display of the target, and a number if another tunnel has the same.
    pub id: Arc<str>,
    pub target: Option<Target>,
    /// Port of the Service that the target names, and the port of the pod. `None`: no session.
    pub ports: Option<(u16, u16)>,
    /// `starting`, `running`, `failed` or `stopping`.
    pub state: &'static str,
    /// Pods that the session uses now.
    pub pods: Vec<String>,
    pub transport: Option<&'static str>,
    /// Upgraded connections open now.
    pub connections: u64,
    /// Streams open now.
    pub streams: u64,
    /// Streams opened since the tunnel was created.
    pub streams_total: u64,
    /// Leases held now.
    pub leases: u64,
    /// Bytes from the client to the pod.
    pub bytes_up: u64,
    /// Bytes from the pod to the client.
    pub bytes_down: u64,
    /// Time since the last use. `None`: in use.
    pub idle: Option<Duration>,
    /// Time until the tunnel closes as idle. `None`: in use, or no idle timeout.
    pub closes_in: Option<Duration>,
    /// Ended requests and connections, and the number of them that failed.
    pub requests: u64,
    pub errors: u64,
    /// Requests and errors of the last five minutes.
    pub recent: (u64, u64),
    pub first_byte: Percentiles,
    pub last_error: Option<String>,
    /// Advice about the error of a failed tunnel.
    pub hint: Option<String>,
}

/// Guard of a tunnel in the list. Ends the tunnel when its task ends, also by a panic: nobody may wait for it then.
struct Listed {
    shared: Arc<Shared>,
    tunnel: Arc<Tunnel>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.tunnel.end();
        let Ok(mut tunnels) = self.shared.tunnels.lock() else { return };
        tunnels.past.add(&self.tunnel.usage);
        // A caller may have replaced the ended tunnel by a new one to the same target.
        if tunnels.by_target.get(&self.tunnel.target).is_some_and(|present| Arc::ptr_eq(present, &self.tunnel)) {
            tunnels.by_target.remove(&self.tunnel.target);
            tunnels.same.retain(|_, other| *other != self.tunnel.target);
        }
    }
}

impl Manager {
    /// `drain` tracks the tasks of the tunnels. Once it starts, `acquire` creates no tunnel and returns [`OpenError::Stopped`].
    pub fn new(backend: Arc<dyn Backend>, drain: Drain) -> Self {
        Self::with_journal(backend, drain, Arc::default())
    }

    /// Does the same with a journal that outlives the manager.
    pub fn with_journal(backend: Arc<dyn Backend>, drain: Drain, journal: Arc<Journal>) -> Self {
        let tunnels = Tunnels {
            by_target: HashMap::new(),
            same: HashMap::new(),
            past: Totals::default(),
            tokens: NEW_AT_ONCE,
            filled: Instant::now(),
        };
        let (tunnels, created_tx) = (Mutex::new(tunnels), watch::Sender::new(()));
        Self { shared: Arc::new(Shared { backend, drain, journal, tunnels, created_tx }) }
    }

    /// Returns the journal of this process. Every tunnel and frontend records its events there.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.shared.journal
    }

    /// Waits until the tunnel to `target` runs, and returns a lease on it. Waits at most 10 s, and longer if adit
    /// creates a pod for the target.
    ///
    /// `idle_timeout`: the tunnel closes after this long without use. Zero: never. If callers differ, the longest
    /// timeout counts.
    ///
    /// # Errors
    /// The tunnel does not open in time, or failed a moment ago; adit ends; or too many new targets were asked for.
    pub async fn acquire(&self, target: &Target, idle_timeout: Duration) -> Result<Lease, OpenError> {
        let budget = BUDGET + target.startup_time();
        let (mut deadline, mut waits_for_others) = (Instant::now() + budget, true);
        loop {
            let hold = self.hold(target, idle_timeout, waits_for_others)?;
            match lease::running(&hold.0, None, deadline).await {
                Ok(running) if hold.0.serves(target) => {
                    hold.0.extend_idle_timeout(idle_timeout);
                    self.give_token_back(&hold.0);
                    return Ok(Lease::new(hold, running.endpoint.clone()));
                }
                // The caller waited for another name of the Service, and that one is a different port or is ambiguous.
                // Open this target's own tunnel, with a time of its own if the other's start took all of it.
                Ok(_) | Err(NotRunning::Failed(_)) if hold.0.target != *target => {
                    if Instant::now() >= deadline {
                        if !waits_for_others {
                            return Err(OpenError::TimedOut { after: budget });
                        }
                        (deadline, waits_for_others) = (Instant::now() + budget, false);
                    }
                    tokio::task::yield_now().await;
                }
                Ok(_) => return Err(OpenError::TimedOut { after: BUDGET }),
                // The tunnel has just gone idle, or was stopped by hand: open another one, unless the drain has started.
                Err(NotRunning::Over) if Instant::now() < deadline => {
                    tokio::task::yield_now().await;
                }
                Err(not_running) => return Err(not_running.into()),
            }
        }
    }

    /// `waits_for_others`: whether a starting tunnel is taken that may turn out to serve the target.
    fn hold(&self, target: &Target, idle_timeout: Duration, waits_for_others: bool) -> Result<Hold, OpenError> {
        let mut tunnels = self.shared.tunnels.lock().expect("no panic while the lock is held");
        if let Some(tunnel) = tunnels.find(target).filter(|tunnel| waits_for_others || tunnel.serves(target))
            && let Some(hold) = Hold::new(tunnel)
        {
            return Ok(hold);
        }
        if self.shared.drain.is_draining() {
            return Err(OpenError::Stopped);
        }
        tunnels.take_token()?;
        let tunnel = Tunnel::new(
            tunnels.new_id(target),
            target.clone(),
            self.shared.backend.clone(),
            idle_timeout,
            self.shared.drain.clone(),
            self.shared.journal.clone(),
        );
        let tunnel = Arc::new(tunnel);
        let hold = Hold::new(tunnel.clone()).ok_or(OpenError::Stopped)?;
        tunnels.by_target.insert(target.clone(), tunnel.clone());
        self.shared.created_tx.send_replace(());
        let listed = Listed { shared: self.shared.clone(), tunnel };
        self.shared.drain.spawn(async move {
            let listed = listed;
            task::run(listed.tunnel.clone()).await;
        });
        Ok(hold)
    }

    /// Returns the token of a tunnel that runs: a name that resolves does not count against the limit.
    fn give_token_back(&self, tunnel: &Tunnel) {
        if tunnel.has_token.swap(false, Ordering::Relaxed) {
            let mut tunnels = self.shared.tunnels.lock().expect("no panic while the lock is held");
            tunnels.tokens = (tunnels.tokens + 1.0).min(NEW_AT_ONCE);
        }
    }

    /// Waits until a person should learn that a session to `target` waits for a sign-in: 1.5 s after the sign-in's start
    /// if it has printed something, else at the end of the caller's budget (10 s).
    pub async fn sign_in_due(&self, target: &Target) -> SignInReport {
        let came = Instant::now();
        let backend = &self.shared.backend;
        let Some(mut changes) = backend.sign_in_changes() else { return pending().await };
        loop {
            changes.mark_unchanged();
            let running = backend.sign_in(target).and_then(|report| Some((report.since?, report)));
            let due = match running {
                Some((since, report)) => {
                    let due = if report.said.is_empty() { came + BUDGET } else { since + SAID };
                    if due <= Instant::now() {
                        return report;
                    }
                    due
                }
                // The cluster is not loaded yet, or the sign-in has not started.
                None => came + FAR,
            };
            let _ = timeout_at(due, changes.changed()).await;
        }
    }

    /// Returns the running and the failed sign-ins, sorted by user.
    pub fn sign_ins(&self) -> Vec<SignInSnapshot> {
        self.shared.backend.sign_ins().into_iter().map(SignInSnapshot::of).collect()
    }

    /// Returns a snapshot of every tunnel, sorted by target.
    pub fn snapshot(&self) -> Vec<TunnelSnapshot> {
        let mut snapshots: Vec<_> = self.all().iter().map(|tunnel| snapshot(tunnel)).collect();
        snapshots.sort_by(|a, b| a.id.cmp(&b.id));
        snapshots
    }

    /// Returns the totals of all tunnels, ended ones included.
    pub fn totals(&self) -> Totals {
        let tunnels = self.shared.tunnels.lock().expect("no panic while the lock is held");
        let mut totals = tunnels.past;
        tunnels.by_target.values().for_each(|tunnel| totals.add(&tunnel.usage));
        totals
    }

    /// Stops the tunnel with this id and ends its open streams. Returns whether there is such a tunnel.
    pub fn stop(&self, id: &str) -> bool {
        self.called(id).inspect(|tunnel| tunnel.stop.cancel()).is_some()
    }

    /// Opens a new session for the tunnel with this id, even if the present one works. Open streams keep theirs.
    /// Returns whether there is such a tunnel.
    pub fn reconnect(&self, id: &str) -> bool {
        let Some(hold) = self.called(id).and_then(Hold::new) else { return false };
        let before = match &*hold.0.view.borrow() {
            View::Running(running) => Some(running.clone()),
            _ => None,
        };
        hold.0.reconnect.notify_waiters();
        let (deadline, drain) = (hold.0.stream_deadline(), self.shared.drain.clone());
        drain.spawn(async move {
            // A tunnel that starts without a lease would close. The history records the result.
            let _ = lease::running(&hold.0, before.as_ref(), deadline).await;
        });
        true
    }

    /// Returns a snapshot of the tunnel with this id.
    pub fn snapshot_of(&self, id: &str) -> Option<TunnelSnapshot> {
        self.called(id).map(|tunnel| snapshot(&tunnel))
    }

    fn called(&self, id: &str) -> Option<Arc<Tunnel>> {
        self.all().into_iter().find(|tunnel| &*tunnel.id == id)
    }

    /// Retires the tunnels whose target `keep` rejects: each closes when its last lease is dropped. The others get their new
    /// idle timeout, if `idle_timeout` returns one.
    pub fn retain(&self, keep: impl Fn(&Target) -> bool, idle_timeout: impl Fn(&Target) -> Option<Duration>) {
        for tunnel in self.all() {
            if !keep(&tunnel.target) {
                tunnel.retired.cancel();
            } else if let Some(timeout) = idle_timeout(&tunnel.target) {
                tunnel.set_idle_timeout(timeout);
            }
        }
    }

    /// Returns the tunnel that serves a target, or that its callers wait for.
    pub(super) fn tunnel(&self, target: &Target) -> Option<Arc<Tunnel>> {
        self.shared.tunnels.lock().expect("no panic while the lock is held").find(target)
    }

    /// Returns a receiver that changes with each new tunnel.
    pub(super) fn subscribe_created(&self) -> watch::Receiver<()> {
        self.shared.created_tx.subscribe()
    }

    fn all(&self) -> Vec<Arc<Tunnel>> {
        self.shared.tunnels.lock().expect("no panic while the lock is held").by_target.values().cloned().collect()
    }
}

impl Tunnels {
    /// Returns the tunnel to a target under any of its names: `web.shop`, `web.shop:80` and `web.shop:http` may share
    /// one. While the first of them starts, its port is unknown, and callers for the others wait for it.
    ///
    /// Prefers, in this order: a running tunnel, the tunnel of exactly this target, a starting tunnel that may turn out
    /// to be the same.
    fn find(&mut self, target: &Target) -> Option<Arc<Tunnel>> {
        let exact = self.by_target.get(target).filter(|tunnel| !matches!(*tunnel.view.borrow(), View::Over));
        let Some(pods) = target.pods() else { return exact.cloned() };
        if let Some(exact) = exact.filter(|tunnel| matches!(*tunnel.view.borrow(), View::Running(_))) {
            return Some(exact.clone());
        }
        let known = self.same.get(target).and_then(|other| self.by_target.get(other));
        if let Some(known) = known.filter(|tunnel| tunnel.leads_to(pods)) {
            return Some(known.clone());
        }
        if let Some(tunnel) = self.by_target.values().find(|tunnel| tunnel.leads_to(pods)) {
            self.same.insert(target.clone(), tunnel.target.clone());
            return Some(tunnel.clone());
        }
        self.same.remove(target);
        exact.or_else(|| self.by_target.values().find(|tunnel| tunnel.may_lead_to(pods))).cloned()
    }

    /// Returns an id that no other tunnel has. The texts of two targets may be the same: commands with other environments,
    /// contexts of other kubeconfigs, jumps from other containers.
    fn new_id(&self, target: &Target) -> Arc<str> {
        let text = target.to_string();
        let is_free = |id: &String| self.by_target.values().all(|other| other.target == *target || *other.id != **id);
        let numbered = (2..).map(|number: u64| format!("{text} ({number})"));
        std::iter::once(text.clone()).chain(numbered).find(is_free).unwrap_or(text).into()
    }

    fn take_token(&mut self) -> Result<(), OpenError> {
        let now = Instant::now();
        let since = now.duration_since(self.filled).as_secs_f64();
        (self.tokens, self.filled) = ((self.tokens + since * NEW_PER_SECOND).min(NEW_AT_ONCE), now);
        if self.tokens < 1.0 {
            return Err(OpenError::TooManyNew);
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

fn snapshot(tunnel: &Tunnel) -> TunnelSnapshot {
    let (state, running, hint) = match &*tunnel.view.borrow() {
        View::Starting(_) => ("starting", None, None),
        View::Running(running) => ("running", Some(running.clone()), None),
        View::Failed(error, _) => ("failed", None, error.hint()),
        View::Over => ("stopping", None, None),
    };
    let gauge = |read: fn(&crate::backend::SessionGauges) -> u64| {
        running.as_ref().map_or(0, |running| read(running.session.gauges()))
    };
    let (requests, errors) = tunnel.history.counts();
    let idle = (!tunnel.is_used()).then(|| tunnel.usage.last_use().elapsed());
    TunnelSnapshot {
        id: tunnel.id.clone(),
        target: Some(tunnel.target.clone()),
        ports: running.as_ref().map(|running| (running.endpoint.port.number, running.endpoint.container_port)),
        state,
        pods: running.as_ref().map(|running| running.session.pods()).unwrap_or_default(),
        transport: running.as_ref().map(|running| running.endpoint.protocol),
        connections: gauge(|gauges| gauges.connections.load(Ordering::Relaxed)),
        streams: gauge(|gauges| gauges.streams.load(Ordering::Relaxed)),
        streams_total: tunnel.usage.streams.load(Ordering::Relaxed),
        leases: tunnel.leases.count() as u64,
        bytes_up: tunnel.usage.up.load(Ordering::Relaxed),
        bytes_down: tunnel.usage.down.load(Ordering::Relaxed),
        idle,
        closes_in: tunnel.idle_at().filter(|_| idle.is_some()).map(|at| at.saturating_duration_since(Instant::now())),
        requests,
        errors,
        recent: tunnel.history.recent(),
        first_byte: tunnel.history.first_byte(),
        last_error: tunnel.last_error.lock().expect("no panic while the lock is held").clone(),
        hint,
    }
}
