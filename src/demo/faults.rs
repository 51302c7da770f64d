//! How the demo can be told to misbehave, and what it has seen.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use http::Method;
use tokio::sync::{Notify, watch};

/// How port-forwards are upgraded, by the version of the servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Era {
    /// Raw SPDY only.
    V1_30,
    /// Also in a WebSocket, which the API server unwraps.
    V1_31,
    /// In a WebSocket up to the node, which needs the verb `create` too (from 1.35 on).
    #[default]
    V1_36,
}

/// Fault for one request to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// It is answered with this status, and not done.
    Answer(u16),
    /// It is done, and the connection closed without an answer.
    Lose,
    /// It is neither done nor answered.
    Hang,
    /// It is done this much later, whether its client waits or not, and not answered.
    Late(Duration),
}

/// Decides what becomes of a request, by its method and path.
type Judge = Box<dyn Fn(&Method, &str) -> Option<Mishap> + Send + Sync>;

/// Faults that the demo injects; each call takes effect at once.
///
/// Paths are given by their end: `/pods/web-1/portforward`. None takes an order back.
#[derive(Debug, Default)]
pub struct Faults {
    rules: watch::Sender<Rules>,
    drop_upgrades: Notify,
    end_watches: Notify,
    connections: AtomicU64,
    open_connections: AtomicU64,
    upgrades: AtomicU64,
    streams: AtomicU64,
    requests: Mutex<HashMap<String, u64>>,
    judge: Mutex<Unlucky>,
}

/// Whom misfortune strikes.
#[derive(Default)]
struct Unlucky(Option<Judge>);

impl std::fmt::Debug for Unlucky {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Unlucky").field(&self.0.is_some()).finish()
    }
}

#[derive(Debug, Default)]
struct Rules {
    refused: HashSet<u16>,
    reset: HashSet<u16>,
    stalled: HashSet<u16>,
    statuses: HashMap<String, u16>,
    next_statuses: HashMap<String, u16>,
    refuses_tokens: bool,
    more_tokens: HashSet<String>,
    delays: HashMap<String, Duration>,
    /// Verb and resource, `create` and `pods/portforward`.
    forbidden: HashSet<(String, String)>,
    era: Era,
    hangs_up: bool,
    only_channels: bool,
    no_websocket: bool,
    is_frozen: bool,
    cuts_watches: bool,
    wedges: bool,
    /// In seconds.
    clock_ahead: i64,
}

/// More paths than any test asks for: the demo of a person may run for long.
const MOST_PATHS: usize = 10_000;

impl Faults {
    /// Pods refuse connections to this port, or take them again.
    pub fn refuse(&self, port: u16, on: bool) {
        self.rules.send_modify(|rules| set(&mut rules.refused, port, on));
    }

    /// Pods reset connections to this port: those that are open, and new ones as soon as they are made.
    pub fn reset(&self, port: u16, on: bool) {
        self.rules.send_modify(|rules| set(&mut rules.reset, port, on));
    }

    /// Pods accept new connections to this port, and neither read nor write.
    pub fn stall(&self, port: u16, on: bool) {
        self.rules.send_modify(|rules| set(&mut rules.stalled, port, on));
    }

    /// Requests to these paths are answered with this status.
    pub fn answer(&self, path_end: &str, status: Option<u16>) {
        self.rules.send_modify(|rules| set_or_remove(&mut rules.statuses, path_end, status));
    }

    /// The next request to these paths is answered with this status.
    pub fn answer_once(&self, path_end: &str, status: u16) {
        self.rules.send_modify(|rules| set_or_remove(&mut rules.next_statuses, path_end, Some(status)));
    }

    /// The clock of the API server is this many seconds ahead of ours; below 0: behind.
    pub fn clock(&self, ahead: i64) {
        self.rules.send_modify(|rules| rules.clock_ahead = ahead);
    }

    /// No token is accepted, or they are again.
    pub fn refuse_tokens(&self, on: bool) {
        self.rules.send_modify(|rules| rules.refuses_tokens = on);
    }

    /// This token is one of the demo user as well.
    pub fn accept_token(&self, token: &str) {
        self.rules.send_modify(|rules| {
            rules.more_tokens.insert(token.to_owned());
        });
    }

    /// Requests to these paths are answered this much later.
    pub fn delay(&self, path_end: &str, delay: Option<Duration>) {
        self.rules.send_modify(|rules| set_or_remove(&mut rules.delays, path_end, delay));
    }

    /// Each request to the API server is put to `judge`; None: all of them go well again.
    pub fn judge(&self, judge: Option<Judge>) {
        self.judge.lock().expect("no panic while the lock is held").0 = judge;
    }

    /// Nobody has the right to `verb` (`get`, `create`) on `resource` (`pods/portforward`), or has it again.
    pub fn forbid(&self, verb: &str, resource: &str, on: bool) {
        self.rules.send_modify(|rules| set(&mut rules.forbidden, (verb.to_owned(), resource.to_owned()), on));
    }

    /// The servers are of this version.
    pub fn era(&self, era: Era) {
        self.rules.send_modify(|rules| rules.era = era);
    }

    /// The servers know SPDY only, as those of Kubernetes 1.30; or are of today again.
    pub fn spdy_only(&self, on: bool) {
        self.era(if on { Era::V1_30 } else { Era::default() });
    }

    /// A gateway in front takes no other upgrade than to `v4.channel.k8s.io`, and answers others with 400.
    pub fn only_channels(&self, on: bool) {
        self.rules.send_modify(|rules| rules.only_channels = on);
    }

    /// A gateway in front takes no upgrade to WebSocket, and answers them with 400.
    pub fn no_websocket(&self, on: bool) {
        self.rules.send_modify(|rules| rules.no_websocket = on);
    }

    /// Requests for an upgrade get no answer: the connection is closed.
    pub fn hang_up_on_upgrades(&self, on: bool) {
        self.rules.send_modify(|rules| rules.hangs_up = on);
    }

    /// Upgraded connections stay open, and nothing is read or written on them: a node that hangs.
    pub fn freeze(&self, on: bool) {
        self.rules.send_modify(|rules| rules.is_frozen = on);
    }

    /// A frame for a stream whose other end is gone blocks its worker for good, as in containerd up to 1.6.21,
    /// 1.7.0 to 1.7.2 and 2.0.
    pub fn wedge(&self, on: bool) {
        self.rules.send_modify(|rules| rules.wedges = on);
    }

    /// Ends every upgraded connection that is open now, as a restart of the API server does.
    pub fn drop_upgraded_connections(&self) {
        self.drop_upgrades.notify_waiters();
    }

    /// Watches end as soon as they are open.
    pub fn cut_watches(&self, on: bool) {
        self.rules.send_modify(|rules| rules.cuts_watches = on);
    }

    /// Ends every watch that is open now, as API servers do after some minutes.
    pub fn end_watches(&self) {
        self.end_watches.notify_waiters();
    }

    /// Returns how many connections there have been to the API server.
    pub fn connections_seen(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    /// Returns how many connections to the API server are open and not upgraded.
    pub fn connections_open(&self) -> u64 {
        self.open_connections.load(Ordering::SeqCst)
    }

    /// Returns how many connections have been upgraded.
    pub fn upgrades_seen(&self) -> u64 {
        self.upgrades.load(Ordering::SeqCst)
    }

    /// Returns how many connections have been forwarded to pods.
    pub fn streams_seen(&self) -> u64 {
        self.streams.load(Ordering::SeqCst)
    }

    /// Returns how many requests there have been to these paths.
    pub fn requests_seen(&self, path_end: &str) -> u64 {
        let requests = self.requests.lock().expect("no panic while the lock is held");
        requests.iter().filter(|(path, _)| path.ends_with(path_end)).map(|(_, count)| count).sum()
    }

    pub(super) fn count_request(&self, path: &str) {
        let mut requests = self.requests.lock().expect("no panic while the lock is held");
        if requests.len() < MOST_PATHS || requests.contains_key(path) {
            *requests.entry(path.to_owned()).or_default() += 1;
        }
    }

    pub(super) fn count_connection(&self) {
        self.connections.fetch_add(1, Ordering::SeqCst);
        self.open_connections.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn connection_ended(&self) {
        self.open_connections.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn count_upgrade(&self) {
        self.upgrades.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn count_stream(&self) {
        self.streams.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn current_era(&self) -> Era {
        self.rules.borrow().era
    }

    pub(super) fn takes_no_websocket(&self) -> bool {
        self.rules.borrow().no_websocket
    }

    pub(super) fn takes_only_channels(&self) -> bool {
        self.rules.borrow().only_channels
    }

    pub(super) fn hangs_up(&self) -> bool {
        self.rules.borrow().hangs_up
    }

    pub(super) fn wedges(&self) -> bool {
        self.rules.borrow().wedges
    }

    /// Returns what the API server's clock says. None: it is right.
    pub(super) fn date(&self) -> Option<String> {
        let ahead = self.rules.borrow().clock_ahead;
        let (now, by) = (SystemTime::now(), Duration::from_secs(ahead.unsigned_abs()));
        match ahead {
            0 => None,
            1.. => now.checked_add(by),
            _ => now.checked_sub(by),
        }
        .map(httpdate::fmt_http_date)
    }

    pub(super) fn refuses(&self, port: u16) -> bool {
        self.rules.borrow().refused.contains(&port)
    }

    pub(super) fn stalls(&self, port: u16) -> bool {
        self.rules.borrow().stalled.contains(&port)
    }

    pub(super) fn forbids(&self, verb: &str, resource: &str) -> bool {
        self.rules.borrow().forbidden.contains(&(verb.to_owned(), resource.to_owned()))
    }

    pub(super) fn status_for(&self, path: &str) -> Option<u16> {
        let mut next = None;
        self.rules.send_if_modified(|rules| {
            let end = rules.next_statuses.keys().find(|end| path.ends_with(end.as_str())).cloned();
            next = end.and_then(|end| rules.next_statuses.remove(&end));
            next.is_some()
        });
        next.or_else(|| for_path(&self.rules.borrow().statuses, path))
    }

    pub(super) fn accepts(&self, authorization: &str) -> bool {
        let token = authorization.strip_prefix("Bearer ").unwrap_or_default();
        self.rules.borrow().more_tokens.contains(token)
    }

    pub(super) fn refuses_tokens(&self) -> bool {
        self.rules.borrow().refuses_tokens
    }

    pub(super) fn delay_for(&self, path: &str) -> Option<Duration> {
        for_path(&self.rules.borrow().delays, path)
    }

    pub(super) fn mishap(&self, method: &Method, path: &str) -> Option<Mishap> {
        let judge = self.judge.lock().expect("no panic while the lock is held");
        judge.0.as_ref().and_then(|judge| judge(method, path))
    }

    pub(super) fn is_reset(&self, port: u16) -> bool {
        self.rules.borrow().reset.contains(&port)
    }

    /// Waits until connections to this port are to be reset.
    pub(super) async fn resets(&self, port: u16) {
        self.wait_for(|rules| rules.reset.contains(&port)).await;
    }

    /// Waits while the node hangs.
    pub(super) async fn thaws(&self) {
        self.wait_for(|rules| !rules.is_frozen).await;
    }

    pub(super) async fn upgrades_are_dropped(&self) {
        self.drop_upgrades.notified().await;
    }

    pub(super) async fn watches_are_ended(&self) {
        tokio::select! {
            () = self.end_watches.notified() => {}
            () = self.wait_for(|rules| rules.cuts_watches) => {}
        }
    }

    async fn wait_for(&self, condition: impl FnMut(&Rules) -> bool) {
        // The sender is our own: it cannot be dropped while we wait.
        let _ = self.rules.subscribe().wait_for(condition).await;
    }
}

fn set<T: Eq + std::hash::Hash>(all: &mut HashSet<T>, one: T, on: bool) {
    if on {
        all.insert(one)
    } else {
        all.remove(&one)
    };
}

fn set_or_remove<T>(all: &mut HashMap<String, T>, path_end: &str, value: Option<T>) {
    match value {
        Some(value) => all.insert(path_end.to_owned(), value),
        None => all.remove(path_end),
    };
}

fn for_path<T: Copy>(all: &HashMap<String, T>, path: &str) -> Option<T> {
    all.iter().find(|(end, _)| path.ends_with(end.as_str())).map(|(_, value)| *value)
}
