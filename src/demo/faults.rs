//! Faults that the demo injects on request, and counters of what it has received.

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

/// Protocols of port-forwards, by the version of the servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Era {
    /// Raw SPDY only.
    V1_30,
    /// Also SPDY in a WebSocket, which the API server unwraps.
    V1_31,
    /// Also a WebSocket up to the node; it needs the verb `create` too (since 1.35).
    #[default]
    V1_36,
}

/// Fault for a single request to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// Answers with this status, and does not perform the request.
    Answer(u16),
    /// Performs the request, and closes the connection without an answer.
    Lose,
    /// Neither performs nor answers the request.
    Hang,
    /// Performs the request after this time, even if its client has gone, and does not answer it.
    Late(Duration),
}

/// Chooses the fault of a request by its method and path.
type Judge = Box<dyn Fn(&Method, &str) -> Option<Mishap> + Send + Sync>;

/// Faults that the demo injects; each call takes effect at once.
///
/// Paths are matched by their end: `/pods/web-1/portforward`. `None` ends a fault.
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

/// The function that chooses faults for single requests.
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
    /// Verb and resource, such as `create` and `pods/portforward`.
    forbidden: HashSet<(String, String)>,
    era: Era,
    hangs_up: bool,
    only_channels: bool,
    no_websocket: bool,
    is_frozen: bool,
    cuts_watches: bool,
    wedges: bool,
    /// Seconds; negative: behind.
    clock_ahead: i64,
}

/// Maximum number of counted paths, because a demo may run for long. No test requests so many.
const MOST_PATHS: usize = 10_000;

impl Faults {
    /// Makes pods refuse connections to this port, or accept them again.
    pub fn refuse(&self, port: u16, on: bool) {
        self.rules.send_modify(|rules| set(&mut rules.refused, port, on));
    }

    /// Makes pods reset connections to this port: open ones now, and new ones as soon as they are made.
    pub fn reset(&self, port: u16, on: bool) {
        self.rules.send_modify(|rules| set(&mut rules.reset, port, on));
    }

    /// Makes pods accept new connections to this port without reading or writing.
    pub fn stall(&self, port: u16, on: bool) {
        self.rules.send_modify(|rules| set(&mut rules.stalled, port, on));
    }

    /// Answers requests to these paths with this status.
    pub fn answer(&self, path_end: &str, status: Option<u16>) {
        self.rules.send_modify(|rules| set_or_remove(&mut rules.statuses, path_end, status));
    }

    /// Answers the next request to these paths with this status.
    pub fn answer_once(&self, path_end: &str, status: u16) {
        self.rules.send_modify(|rules| set_or_remove(&mut rules.next_statuses, path_end, Some(status)));
    }

    /// Sets the API server's clock this many seconds ahead of the real time; negative: behind.
    pub fn clock(&self, ahead: i64) {
        self.rules.send_modify(|rules| rules.clock_ahead = ahead);
    }

    /// Makes the API server reject all tokens, or accept them again.
    pub fn refuse_tokens(&self, on: bool) {
        self.rules.send_modify(|rules| rules.refuses_tokens = on);
    }

    /// Adds a token of the demo user.
    pub fn accept_token(&self, token: &str) {
        self.rules.send_modify(|rules| {
            rules.more_tokens.insert(token.to_owned());
        });
    }

    /// Delays the answers to requests for these paths.
    pub fn delay(&self, path_end: &str, delay: Option<Duration>) {
        self.rules.send_modify(|rules| set_or_remove(&mut rules.delays, path_end, delay));
    }

    /// Calls `judge` for each request to the API server. `None`: no more faults.
    pub fn judge(&self, judge: Option<Judge>) {
        self.judge.lock().expect("no panic while the lock is held").0 = judge;
    }

    /// Denies all users the verb `verb` (`get`, `create`) on `resource` (`pods/portforward`), or allows it again.
    pub fn forbid(&self, verb: &str, resource: &str, on: bool) {
        self.rules.send_modify(|rules| set(&mut rules.forbidden, (verb.to_owned(), resource.to_owned()), on));
    }

    /// Makes the servers behave like this version.
    pub fn era(&self, era: Era) {
        self.rules.send_modify(|rules| rules.era = era);
    }

    /// Limits the servers to SPDY, as in Kubernetes 1.30, or resets them to the current version.
    pub fn spdy_only(&self, on: bool) {
        self.era(if on { Era::V1_30 } else { Era::default() });
    }

    /// Simulates a gateway that passes only upgrades to `v4.channel.k8s.io`, and answers others with 400.
    pub fn only_channels(&self, on: bool) {
        self.rules.send_modify(|rules| rules.only_channels = on);
    }

    /// Simulates a gateway that answers upgrades to WebSocket with 400.
    pub fn no_websocket(&self, on: bool) {
        self.rules.send_modify(|rules| rules.no_websocket = on);
    }

    /// Closes the connection of upgrade requests without an answer.
    pub fn hang_up_on_upgrades(&self, on: bool) {
        self.rules.send_modify(|rules| rules.hangs_up = on);
    }

    /// Simulates a node that hangs: upgraded connections stay open, but are neither read nor written.
    pub fn freeze(&self, on: bool) {
        self.rules.send_modify(|rules| rules.is_frozen = on);
    }

    /// Makes a frame for a stream whose other end is gone block its worker forever, as in containerd up to 1.6.21, 1.7.0 to 1.7.2
    /// and 2.0.
    pub fn wedge(&self, on: bool) {
        self.rules.send_modify(|rules| rules.wedges = on);
    }

    /// Ends every open upgraded connection, as a restart of the API server does.
    pub fn drop_upgraded_connections(&self) {
        self.drop_upgrades.notify_waiters();
    }

    /// Makes watches end as soon as they are open.
    pub fn cut_watches(&self, on: bool) {
        self.rules.send_modify(|rules| rules.cuts_watches = on);
    }

    /// Ends every open watch, as API servers do after some minutes.
    pub fn end_watches(&self) {
        self.end_watches.notify_waiters();
    }

    /// Returns the number of connections to the API server so far.
    pub fn connections_seen(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    /// Returns the number of open connections to the API server that are not upgraded.
    pub fn connections_open(&self) -> u64 {
        self.open_connections.load(Ordering::SeqCst)
    }

    /// Returns the number of upgrades so far.
    pub fn upgrades_seen(&self) -> u64 {
        self.upgrades.load(Ordering::SeqCst)
    }

    /// Returns the number of connections forwarded to pods so far.
    pub fn streams_seen(&self) -> u64 {
        self.streams.load(Ordering::SeqCst)
    }

    /// Returns the number of requests to these paths so far.
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

    /// Returns the date for the API server's responses. `None`: the real time.
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

    /// Waits until connections to this port must be reset.
    pub(super) async fn resets(&self, port: u16) {
        self.wait_for(|rules| rules.reset.contains(&port)).await;
    }

    /// Waits while the node is frozen.
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
        // `self` owns the sender, so it cannot be dropped during the wait.
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
