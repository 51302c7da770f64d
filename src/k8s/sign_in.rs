//! Sign-ins: one task per kubeconfig user, which all callers wait for.
//!
//! A person may have to open a browser or touch a security key. So a sign-in goes on after its caller has gone, only one
//! runs per user at a time, and its prompts go to the log, to `adit status` and to the waiting page. Only requests start
//! a sign-in. Watches wait for the next one.

mod state;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use http::HeaderValue;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::state::{Next, Phase, State};
use super::credential::Credential;
use crate::telemetry::PLUGIN;

/// Timeout of a sign-in; MFA may need a phone.
pub const LONGEST: Duration = Duration::from_secs(120);

/// Maximum number of output lines kept, and logged.
const MOST_KEPT: usize = 20;
const MOST_LOGGED: usize = 200;

/// How long an unused sign-in is kept. The usual reason is a rewritten kubeconfig.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// How often a caller after its deadline checks whether a sign-in still runs.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Callback for each line of an issuer's output.
pub type Say<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// Issuer of credentials: a plugin, or an OIDC provider.
pub trait Issuer: Send + Sync + 'static {
    /// Returns the name for messages, e.g. `'aws'`.
    fn name(&self) -> String;

    /// Requests a credential. Dropping the future kills the issuer with all its processes.
    fn issue<'a>(&'a self, say: Say<'a>) -> BoxFuture<'a, Result<Credential, Failure>>;
}

/// Reason why there is no credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    /// Hint. `None`: the hint is to try it with kubectl.
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(reason: String) -> Self {
        Self { reason, hint: None }
    }

    /// Returns the failure for a 401, or for TLS that the server ended because of the client certificate.
    pub fn refused() -> Self {
        Self::new("the API server does not accept the credentials (401)".to_owned())
    }
}

/// All sign-ins of a process. Dropping it ends them.
pub struct SignIns {
    made: Mutex<HashMap<String, Arc<SignIn>>>,
    changed: Arc<watch::Sender<()>>,
    stop: CancellationToken,
}

impl SignIns {
    pub fn new() -> Self {
        Self { made: Mutex::default(), changed: Arc::new(watch::Sender::new(())), stop: CancellationToken::new() }
    }

    /// Returns the sign-in for `key`; equal keys share one. `user`: its name for messages.
    pub fn get(&self, key: &str, user: &str, issuer: impl FnOnce() -> Box<dyn Issuer>) -> Arc<SignIn> {
        let mut made = self.made.lock().expect("no panic while the lock is held");
        if let Some(sign_in) = made.get(key) {
            return sign_in.clone();
        }
        made.retain(|_, sign_in| Arc::strong_count(sign_in) > 1 || sign_in.idle_for() < FORGOTTEN_AFTER);
        let sign_in = Arc::new(SignIn {
            user: user.to_owned(),
            issuer: issuer(),
            state: watch::Sender::new(State::default()),
            said: Mutex::default(),
            used: Mutex::new(Instant::now()),
            changed: self.changed.clone(),
            stop: self.stop.child_token(),
        });
        made.insert(key.to_owned(), sign_in.clone());
        sign_in
    }

    /// Offers a credential that somebody has put into the kubeconfig to the sign-in for `key`, if there is one.
    pub fn offer(&self, key: &str, header: &HeaderValue) {
        let sign_in = self.made.lock().expect("no panic while the lock is held").get(key).cloned();
        if let Some(sign_in) = sign_in {
            sign_in.change(|state| state.offered(header));
        }
    }

    /// Stops all sign-ins, now and later.
    pub fn stop(&self) {
        self.stop.cancel();
        for sign_in in self.all() {
            sign_in.change(State::stop);
        }
    }

    /// Returns the sign-ins for `adit status`: the running and the failed ones.
    pub fn reports(&self) -> Vec<Report> {
        let mut reports: Vec<_> = self.all().iter().map(|sign_in| sign_in.report()).collect();
        reports.retain(|report| report.since.is_some() || report.failure.is_some());
        reports.sort_by(|a, b| a.user.cmp(&b.user));
        reports
    }

    /// Notifies subscribers of [`changes`](Self::changes) of a prompt outside of these sign-ins, such as a command's.
    pub fn tell(&self) {
        self.changed.send_replace(());
    }

    /// Returns a channel that is notified when any sign-in has changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn all(&self) -> Vec<Arc<SignIn>> {
        self.made.lock().expect("no panic while the lock is held").values().cloned().collect()
    }
}

impl Default for SignIns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for SignIns {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// State of a sign-in, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// As `user "ana" of /home/ana/.kube/config`.
    pub user: String,
    /// As `'aws'`.
    pub issuer: String,
    /// Start of the running sign-in. `None`: none runs.
    pub since: Option<Instant>,
    /// End of the last one.
    pub ended: Option<Instant>,
    /// Failure of the last one, and when the next one may start.
    pub failure: Option<(String, Instant)>,
    /// Last lines of its output.
    pub said: Vec<String>,
}

impl Report {
    /// Returns the extended deadline of a caller whose `budget` has run out. `None`: it has waited long enough. The
    /// budget pauses during a sign-in, and starts again after it.
    pub fn put_off(&self, budget: Duration, now: Instant) -> Option<Instant> {
        match (self.since, self.ended) {
            (Some(_), _) => Some(now + LOOK_AGAIN),
            (None, Some(ended)) => Some(ended + budget).filter(|until| *until > now),
            (None, None) => None,
        }
    }
}

/// Sign-in of one user.
pub struct SignIn {
    user: String,
    issuer: Box<dyn Issuer>,
    state: watch::Sender<State>,
    said: Mutex<VecDeque<String>>,
    used: Mutex<Instant>,
    changed: Arc<watch::Sender<()>>,
    stop: CancellationToken,
}

impl SignIn {
    /// Returns the credential. If there is no fresh one, starts a sign-in and waits for it.
    ///
    /// # Errors
    /// Fails if the sign-in fails, or has failed and must not be retried yet.
    pub async fn credential(self: &Arc<Self>) -> Result<Arc<Credential>, Failure> {
        *self.used.lock().expect("no panic while the lock is held") = Instant::now();
        let mut changed = self.state.subscribe();
        loop {
            let mut next = Next::Wait;
            self.state.send_if_modified(|state| {
                next = state.needed(Instant::now());
                matches!(next, Next::Start)
            });
            match next {
                Next::Use(credential) => return Ok(credential),
                Next::Fail(failure) => return Err(failure),
                Next::Start => self.start(),
                Next::Wait => {}
            }
            // Never an error: `self` holds the sender.
            let _ = changed.wait_for(|state| !matches!(state.phase, Phase::Running { .. })).await;
        }
    }

    /// Returns the credential if there is a fresh one.
    pub fn present(&self) -> Option<Arc<Credential>> {
        fresh(&self.state.borrow())
    }

    /// Waits until there is a fresh credential.
    pub async fn signed_in(&self) {
        let _ = self.state.subscribe().wait_for(|state| fresh(state).is_some()).await;
    }

    /// Records that a server has accepted the credential.
    pub fn accepted(&self) {
        self.change(State::accepted);
    }

    /// Records that a server has refused a credential.
    pub fn refused(&self, credential: &Arc<Credential>) {
        self.change(|state| state.refused(credential, Instant::now()));
    }

    pub fn report(&self) -> Report {
        let state = self.state.borrow().clone();
        let (since, failure) = match state.phase {
            Phase::Running { since } => (Some(since), None),
            Phase::Failed { failure, retry_at } => (None, Some((failure.reason, retry_at))),
            Phase::Idle | Phase::Signed(_) | Phase::Stopped => (None, None),
        };
        let said = self.said.lock().expect("no panic while the lock is held").iter().cloned().collect();
        Report { user: self.user.clone(), issuer: self.issuer.name(), since, ended: state.ended, failure, said }
    }

    /// Returns the user for messages, e.g. `user "ana" of /home/ana/.kube/config`.
    pub fn user(&self) -> &str {
        &self.user
    }

    fn start(self: &Arc<Self>) {
        self.said.lock().expect("no panic while the lock is held").clear();
        let ending = Ending(self.clone());
        info!(user = self.user, with = self.issuer.name(), "signing in");
        self.changed.send_replace(());
        tokio::spawn(async move {
            let started = Instant::now();
            let sign_in = &ending.0;
            let lines = AtomicUsize::new(0);
            let say = |line: &str| sign_in.say(line, lines.fetch_add(1, Ordering::Relaxed) + 1);
            let issued = tokio::select! {
                issued = timeout(LONGEST, sign_in.issuer.issue(&say)) => issued,
                () = sign_in.stop.cancelled() => return,
            };
            let issued = issued.unwrap_or_else(|_| Err(sign_in.too_late()));
            match &issued {
                Ok(_) => info!(user = sign_in.user, took = format_args!("{:.1?}", started.elapsed()), "signed in"),
                Err(failure) => {
                    warn!(user = sign_in.user, reason = failure.reason, hint = failure.hint, "sign-in failed");
                }
            }
            sign_in.change(|state| state.ended(issued, Instant::now()));
        });
    }

    fn say(&self, line: &str, number: usize) {
        match number {
            ..=MOST_LOGGED => info!(target: PLUGIN, "{} says: {line}", self.issuer.name()),
            number if number == MOST_LOGGED + 1 => info!(target: PLUGIN, "{} says more", self.issuer.name()),
            _ => {}
        }
        let mut said = self.said.lock().expect("no panic while the lock is held");
        if said.len() == MOST_KEPT {
            said.pop_front();
        }
        said.push_back(line.to_owned());
        drop(said);
        self.changed.send_replace(());
    }

    fn too_late(&self) -> Failure {
        let said = self.said.lock().expect("no panic while the lock is held");
        let last = said.back().map(|line| format!(": {line}")).unwrap_or_default();
        Failure::new(format!(
            "{} has not ended within {} s, and was killed{last}",
            self.issuer.name(),
            LONGEST.as_secs()
        ))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
        self.changed.send_replace(());
    }

    fn idle_for(&self) -> Duration {
        self.used.lock().expect("no panic while the lock is held").elapsed()
    }
}

fn fresh(state: &State) -> Option<Arc<Credential>> {
    match &state.phase {
        Phase::Signed(credential) if credential.is_fresh() => Some(credential.clone()),
        _ => None,
    }
}

/// Ends the sign-in even if its task panics or is dropped, so that no caller waits forever.
struct Ending(Arc<SignIn>);

impl Drop for Ending {
    fn drop(&mut self) {
        if matches!(self.0.state.borrow().phase, Phase::Running { .. }) {
            let reason = "the sign-in was cut off".to_owned();
            self.0.change(|state| state.ended(Err(Failure::new(reason)), Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    /// An issuer that takes `time`, and then fails if `fails`.
    struct Scripted {
        time: Duration,
        fails: bool,
        runs: Arc<AtomicUsize>,
    }

    impl Issuer for Scripted {
        fn name(&self) -> String {
            "'scripted'".to_owned()
        }

        fn issue<'a>(&'a self, say: Say<'a>) -> BoxFuture<'a, Result<Credential, Failure>> {
            self.runs.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move {
                say("enter ABCD");
                sleep(self.time).await;
                if self.fails { Err(Failure::new("'scripted' failed".to_owned())) } else { Ok(Credential::default()) }
            })
        }
    }

    fn scripted(seconds: u64, fails: bool) -> (SignIns, Arc<SignIn>, Arc<AtomicUsize>) {
        let (sign_ins, runs) = (SignIns::new(), Arc::new(AtomicUsize::new(0)));
        let of_issuer = runs.clone();
        let sign_in = sign_ins.get("key", "user \"ana\"", || {
            Box::new(Scripted { time: Duration::from_secs(seconds), fails, runs: of_issuer })
        });
        (sign_ins, sign_in, runs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_sign_in_goes_on_when_its_caller_has_left_and_others_share_it() {
        let (sign_ins, sign_in, runs) = scripted(60, false);
        for _ in 0..3 {
            assert!(timeout(Duration::from_secs(10), sign_in.credential()).await.is_err());
        }
        let report = &sign_ins.reports()[0];
        assert_eq!((report.said.as_slice(), report.failure.as_ref()), (&["enter ABCD".to_owned()][..], None));
        let began = Instant::now();
        let (one, two) = tokio::join!(sign_in.credential(), sign_in.credential());
        assert!(Arc::ptr_eq(&one.unwrap(), &two.unwrap()));
        assert_eq!((began.elapsed().as_secs(), runs.load(Ordering::SeqCst)), (30, 1));
        assert!(sign_ins.reports().is_empty(), "what is well is not shown");
    }

    #[tokio::test(start_paused = true)]
    async fn pages_that_refresh_start_a_failing_plugin_less_and_less_often() {
        let (sign_ins, sign_in, runs) = scripted(0, true);
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(60) {
            assert_eq!(sign_in.credential().await.unwrap_err().reason, "'scripted' failed");
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(runs.load(Ordering::SeqCst), 5, "at 0, 2, 6, 14 and 30 s");
        assert!(sign_ins.reports()[0].failure.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_only_waits_starts_none() {
        let (_sign_ins, sign_in, runs) = scripted(5, false);
        assert!(timeout(Duration::from_secs(60), sign_in.signed_in()).await.is_err());
        assert!(sign_in.present().is_none() && runs.load(Ordering::SeqCst) == 0);
        let (credential, ()) = tokio::join!(sign_in.credential(), sign_in.signed_in());
        assert!(Arc::ptr_eq(&credential.unwrap(), &sign_in.present().unwrap()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sign_in_is_ended_after_two_minutes_and_with_adit() {
        let (_sign_ins, sign_in, _) = scripted(3600, false);
        let began = Instant::now();
        let failure = sign_in.credential().await.unwrap_err();
        assert_eq!(failure.reason, "'scripted' has not ended within 120 s, and was killed: enter ABCD");
        assert_eq!(began.elapsed(), LONGEST);

        let (sign_ins, sign_in, _) = scripted(60, false);
        let stopping = async {
            sleep(Duration::from_secs(1)).await;
            sign_ins.stop();
        };
        let began = Instant::now();
        let (refused, ()) = tokio::join!(sign_in.credential(), stopping);
        assert!(refused.is_err() && began.elapsed() == Duration::from_secs(1));
        assert!(sign_in.credential().await.is_err(), "nothing starts any more");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_a_caller_stands_still_while_a_sign_in_runs() {
        let (_sign_ins, sign_in, _) = scripted(15, false);
        let budget = Duration::from_secs(10);
        assert_eq!(sign_in.report().put_off(budget, Instant::now()), None);
        let waiting = tokio::spawn({
            let sign_in = sign_in.clone();
            async move { sign_in.credential().await.map(drop) }
        });
        sleep(budget).await;
        assert_eq!(sign_in.report().put_off(budget, Instant::now()), Some(Instant::now() + LOOK_AGAIN));
        waiting.await.unwrap().unwrap();
        sleep(Duration::from_secs(4)).await;
        assert_eq!(sign_in.report().put_off(budget, Instant::now()), Some(Instant::now() + Duration::from_secs(6)));
        sleep(Duration::from_secs(6)).await;
        assert_eq!(sign_in.report().put_off(budget, Instant::now()), None);
    }

    #[tokio::test]
    async fn users_with_the_same_plugin_share_a_sign_in() {
        let (sign_ins, sign_in, runs) = scripted(0, false);
        let again = |key: &str| {
            sign_ins.get(key, "b", || Box::new(Scripted { time: Duration::ZERO, fails: false, runs: runs.clone() }))
        };
        assert!(Arc::ptr_eq(&again("key"), &sign_in));
        assert!(!Arc::ptr_eq(&again("other"), &sign_in));
    }
}
