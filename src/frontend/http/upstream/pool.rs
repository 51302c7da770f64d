//! Pool of connections to pods, between two requests.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::client::conn::http1;
use tokio::time::{Instant, sleep, timeout};

use super::{admission::Kept, heard::Heard};
use crate::{
    config::{BackendTls, Scheme},
    drain::Drain,
    frontend::http::{
        body::{Body, Unsent},
        http2,
        trailers::Trailers,
    },
    routing::Target,
    tunnel::Placement,
};

/// How long an unused HTTP/1 connection is kept. Node.js closes after 5 s, the shortest time of the common servers, and a request
/// should not meet a connection that is being closed.
const IDLE: Duration = Duration::from_secs(4);

/// Maximum number of unused connections to one target: each is a connection into a pod.
const MOST_IDLE: usize = 512;

/// How long an unused HTTP/2 connection is kept: less than the servers' own timeout (nginx 75 s, Kestrel 130 s).
const IDLE_HTTP2: Duration = Duration::from_secs(60);

/// Maximum number of shared HTTP/2 connections in all; beyond it, the longest unused one is closed.
const MOST_SHARED: usize = 512;

/// Maximum number of shared HTTP/2 connections to one backend; beyond it, requests wait for a stream.
const MOST_SHARED_BY_ONE: usize = 32;

/// How long to wait for a connection whose answer was just read: hyper needs a moment until it takes the next request.
const BREATH: Duration = Duration::from_millis(2);

/// The same for a connection that a client has authenticated: no other connection can replace it.
const LONG_BREATH: Duration = Duration::from_secs(1);

/// Key of the pool: requests with equal keys share connections.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub target: Target,
    pub scheme: Scheme,
    /// For https: the server name, and the TLS settings.
    pub tls: Option<(String, BackendTls)>,
    /// For https: HTTP/1.1 alone.
    pub is_http1: bool,
    /// Number of the client's connection that has authenticated the connections. `None`: they are for all clients.
    pub client: Option<u64>,
}

/// The sending end of a connection.
pub enum Sender {
    H1(H1),
    H2(H2),
}

impl Sender {
    /// Returns the record of the backend's first bytes.
    pub fn heard(&self) -> &Heard {
        match self {
            Self::H1(h1) => &h1.heard,
            Self::H2(h2) => &h2.heard,
        }
    }
}

/// HTTP/1 connection: it serves one request at a time.
pub struct H1 {
    pub sender: http1::SendRequest<Body>,
    pub heard: Heard,
    pub trailers: Trailers,
    /// Guard for a backend that is not known to serve several connections.
    pub kept: Option<Arc<Kept>>,
    /// The backend authenticates the connection, not each request.
    pub is_authenticated: bool,
}

/// Stream of an HTTP/2 connection, which serves many requests at a time.
pub struct H2 {
    pub sender: http2::client::Sender,
    pub heard: Heard,
    stream: Stream,
}

impl H2 {
    /// Returns the first stream of a new connection.
    pub fn new(sender: http2::client::Sender, heard: Heard) -> Self {
        Self { sender, heard, stream: Stream::new(Arc::default()) }
    }
}

/// Counts as a stream of its connection until it is dropped.
pub struct Stream(Arc<Load>);

/// Number of streams of a connection, and when it was last used.
#[derive(Default)]
struct Load {
    streams: AtomicUsize,
    /// When a stream last ended.
    used: Mutex<Option<Instant>>,
}

impl Stream {
    fn new(load: Arc<Load>) -> Self {
        load.streams.fetch_add(1, Ordering::Relaxed);
        Self(load)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
        *self.0.used.lock().expect("no panic while the lock is held") = Some(Instant::now());
    }
}

impl Load {
    fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Returns how long the connection has had no stream. `None`: it has one.
    fn unused(&self) -> Option<Duration> {
        let used = self.used.lock().expect("no panic while the lock is held");
        used.filter(|_| self.streams() == 0).map(|used| used.elapsed())
    }
}

/// HTTP/2 connection that requests may share.
struct Shared {
    sender: http2::client::Sender,
    heard: Heard,
    load: Arc<Load>,
    placement: Placement,
}

impl Shared {
    fn is_alive(&mut self) -> bool {
        !self.sender.is_closed() && !self.placement.is_leaving()
    }

    /// Returns whether the backend allows another stream.
    fn has_room(&self) -> bool {
        self.load.streams() < self.sender.most_streams()
    }

    fn begin(&self) -> (Sender, Placement) {
        let stream = Stream::new(self.load.clone());
        let h2 = H2 { sender: self.sender.clone(), heard: self.heard.clone(), stream };
        (Sender::H2(h2), self.placement.clone())
    }
}

/// Connections that can take a request.
pub struct Pool {
    state: Mutex<State>,
    drain: Drain,
}

#[derive(Default)]
struct State {
    /// By age, the oldest first.
    idle: HashMap<Key, Vec<Idle>>,
    h2: HashMap<Key, Vec<Shared>>,
    /// Whether a task that closes unused connections is running.
    is_reaped: bool,
}

struct Idle {
    connection: H1,
    placement: Placement,
    since: Instant,
}

impl Pool {
    pub fn new(drain: Drain) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), drain })
    }

    /// Returns a stream of an HTTP/2 connection that has room, or of any one if the backend has the maximum of connections.
    pub fn take_shared(&self, key: &Key) -> Option<(Sender, Placement)> {
        let mut state = self.lock();
        let all = state.h2.get_mut(key)?;
        all.retain_mut(Shared::is_alive);
        let free = all.iter().find(|shared| shared.has_room());
        let busy = || all.iter().min_by_key(|shared| shared.load.streams()).filter(|_| all.len() >= MOST_SHARED_BY_ONE);
        free.or_else(busy).map(Shared::begin)
    }

    /// Returns an idle HTTP/1 connection.
    pub async fn take_idle(&self, key: &Key) -> Option<(Sender, Placement)> {
        loop {
            let mut idle = {
                let mut state = self.lock();
                let all = state.idle.get_mut(key)?;
                // The last one used is the most likely to be alive. If hyper is not ready on any yet, take the oldest, which has
                // had the most time to become ready.
                let ready = all.iter().rposition(|idle| idle.connection.sender.is_ready());
                let idle = all.remove(ready.unwrap_or(0));
                if all.is_empty() {
                    state.idle.remove(key);
                }
                idle
            };
            if idle.placement.is_leaving() || idle.connection.sender.is_closed() {
                continue;
            }
            let breath = if key.client.is_some() { LONG_BREATH } else { BREATH };
            match timeout(breath, idle.connection.sender.ready()).await {
                Ok(Ok(())) => return Some((Sender::H1(idle.connection), idle.placement)),
                Ok(Err(_)) => {}
                // The machine is busy: leave the connection to another request.
                Err(_) => {
                    self.lock().idle.entry(key.clone()).or_default().push(idle);
                    return None;
                }
            }
        }
    }

    /// Shares a new connection with other requests, unless one with room exists: simultaneous requests open many.
    pub fn share(self: &Arc<Self>, key: Key, h2: &H2, placement: Placement) {
        let (sender, heard, load) = (h2.sender.clone(), h2.heard.clone(), h2.stream.0.clone());
        let mut state = self.lock();
        if state.h2.values().map(Vec::len).sum::<usize>() >= MOST_SHARED {
            state.close_oldest();
        }
        let all = state.h2.entry(key).or_default();
        all.retain_mut(Shared::is_alive);
        if all.len() < MOST_SHARED_BY_ONE && !all.iter().any(Shared::has_room) {
            all.push(Shared { sender, heard, load, placement });
        }
        self.see_to_reaping(&mut state);
    }

    /// Returns a guard to drop at the end of the response: it returns the connection, or ends the stream.
    pub fn returning(self: &Arc<Self>, key: Key, sender: Sender, placement: Placement) -> Returning {
        match sender {
            Sender::H1(h1) => {
                let connection = ReturningConnection { pool: self.clone(), key, connection: Some(h1), placement };
                Returning { _connection: Some(connection), _stream: None, _unsent: None }
            }
            Sender::H2(h2) => Returning { _connection: None, _stream: Some(h2.stream), _unsent: None },
        }
    }

    /// Removes a key's connections from the pool; requests in progress go on.
    pub fn forget(&self, key: &Key) {
        let mut state = self.lock();
        state.idle.remove(key);
        state.h2.remove(key);
    }

    /// Closes the connections to a target that have been idle for at least `idle`. Returns whether there were any.
    pub fn close_idle(&self, target: &Target, idle: Duration) -> bool {
        let mut closed = false;
        self.lock().idle.retain(|key, all| {
            if key.target == *target && key.client.is_none() {
                let before = all.len();
                all.retain(|unused| unused.since.elapsed() < idle);
                closed |= all.len() < before;
            }
            !all.is_empty()
        });
        closed
    }

    /// Keeps a connection for the next request.
    fn keep(self: &Arc<Self>, key: Key, idle: Idle) {
        let mut state = self.lock();
        let all = state.idle.entry(key).or_default();
        if all.len() < MOST_IDLE {
            if let Some(kept) = &idle.connection.kept {
                kept.is_idle();
            }
            all.push(idle);
        }
        self.see_to_reaping(&mut state);
    }

    fn see_to_reaping(self: &Arc<Self>, state: &mut State) {
        if !std::mem::replace(&mut state.is_reaped, true) {
            let this = self.clone();
            self.drain.spawn(async move { this.reap().await });
        }
    }

    /// Closes connections that are unused for too long, until none is left.
    async fn reap(&self) {
        loop {
            tokio::select! {
                () = sleep(IDLE / 4) => {}
                () = self.drain.started() => {}
            }
            let is_draining = self.drain.is_draining();
            let mut state = self.lock();
            state.idle.retain(|_, all| {
                let is_kept = |idle: &Idle| idle.since.elapsed() < IDLE && !idle.placement.is_leaving();
                all.retain(|idle| is_kept(idle) && !idle.connection.sender.is_closed() && !is_draining);
                !all.is_empty()
            });
            state.h2.retain(|_, all| {
                all.retain_mut(|shared| {
                    let is_idle = shared.load.unused().is_some_and(|unused| unused >= IDLE_HTTP2);
                    shared.is_alive() && !is_idle && !is_draining
                });
                !all.is_empty()
            });
            if state.idle.is_empty() && state.h2.is_empty() {
                state.is_reaped = false;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }
}

impl State {
    /// Closes the HTTP/2 connection that is unused for longest. If all are in use, the oldest of a backend gets no new streams.
    fn close_oldest(&mut self) {
        let unused = |all: &Vec<Shared>| all.iter().filter_map(|shared| shared.load.unused()).max();
        let oldest = self.h2.iter().max_by_key(|(_, all)| unused(all)).map(|(key, all)| (key.clone(), unused(all)));
        let Some((key, unused)) = oldest else { return };
        if let Some(all) = self.h2.get_mut(&key) {
            let at = all.iter().position(|shared| unused.is_some() && shared.load.unused() >= unused).unwrap_or(0);
            all.remove(at);
            if all.is_empty() {
                self.h2.remove(&key);
            }
        }
    }
}

/// Guard that a response body holds until its end.
pub struct Returning {
    _connection: Option<ReturningConnection>,
    _stream: Option<Stream>,
    _unsent: Option<Unsent>,
}

impl Returning {
    /// Returns a guard that returns no connection: the request was not sent completely.
    pub fn unsent(unsent: Unsent) -> Self {
        Self { _connection: None, _stream: None, _unsent: Some(unsent) }
    }
}

/// Returns a connection to the pool on drop, at the end of the response's body.
pub struct ReturningConnection {
    pool: Arc<Pool>,
    key: Key,
    connection: Option<H1>,
    placement: Placement,
}

impl Drop for ReturningConnection {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && !connection.sender.is_closed()
            && !self.placement.is_leaving()
            && !self.pool.drain.is_draining()
        {
            let idle = Idle { connection, placement: self.placement.clone(), since: Instant::now() };
            self.pool.keep(self.key.clone(), idle);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper_util::rt::TokioIo;
    use tokio::{io::duplex, time::advance};

    use super::*;

    fn key(name: &str) -> Key {
        Key { target: Target::Named(name.into()), scheme: Scheme::Http, tls: None, is_http1: false, client: None }
    }

    /// Returns a connection to a backend that allows one stream.
    async fn h2() -> H2 {
        let (near, far) = duplex(1024);
        let (sender, connection) = http2::client::handshake(Box::new(near)).await.unwrap();
        tokio::spawn(connection);
        tokio::spawn(async move {
            let mut backend = h2::server::Builder::new();
            let mut backend = backend.max_concurrent_streams(1).handshake::<_, Bytes>(far).await.unwrap();
            while backend.accept().await.is_some() {}
        });
        while sender.most_streams() != 1 {
            tokio::task::yield_now().await;
        }
        H2::new(sender, Heard::default())
    }

    #[tokio::test]
    async fn a_target_has_a_bounded_number_of_unused_connections() {
        let (pool, mut ends) = (Pool::new(Drain::new()), Vec::new());
        for _ in 0..=MOST_IDLE {
            let (near, far) = duplex(64);
            let (sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
            tokio::spawn(connection);
            ends.push(far);
            let h1 = H1 {
                sender,
                heard: Heard::default(),
                trailers: Trailers::default(),
                kept: None,
                is_authenticated: false,
            };
            drop(pool.returning(key("web"), Sender::H1(h1), Placement::new("web-1")));
        }
        assert_eq!(pool.lock().idle[&key("web")].len(), MOST_IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_its_size_the_pool_closes_what_is_unused_for_longest() {
        let (pool, mut used) = (Pool::new(Drain::new()), Vec::new());
        for number in 0..=MOST_SHARED {
            let h2 = h2().await;
            pool.share(key(&number.to_string()), &h2, Placement::new("web-1"));
            // The first one stays in use.
            used.extend((number == 0).then_some(h2));
            advance(Duration::from_millis(1)).await;
        }
        let state = pool.lock();
        assert_eq!(state.h2.len(), MOST_SHARED);
        assert!(state.h2.contains_key(&key("0")) && !state.h2.contains_key(&key("1")));
    }

    #[tokio::test]
    async fn a_backend_gets_another_connection_only_while_all_are_full_and_not_too_many() {
        let (pool, mut used) = (Pool::new(Drain::new()), Vec::new());
        let count = || pool.lock().h2[&key("web")].len();
        for _ in 0..2 {
            pool.share(key("web"), &h2().await, Placement::new("web-1"));
            assert_eq!(count(), 1, "it has room");
        }
        used.push(pool.take_shared(&key("web")).unwrap().0);
        for number in 1..=MOST_SHARED_BY_ONE {
            let h2 = h2().await;
            pool.share(key("web"), &h2, Placement::new("web-1"));
            used.push(Sender::H2(h2));
            assert_eq!(count(), MOST_SHARED_BY_ONE.min(number + 1));
        }
        assert!(pool.take_shared(&key("web")).is_some(), "the request waits for a stream");
        // One that is unused makes room for another backend's.
        let load = pool.lock().h2[&key("web")][1].load.clone();
        drop(used.remove(1));
        pool.lock().close_oldest();
        assert!(pool.lock().h2[&key("web")].iter().all(|one| !Arc::ptr_eq(&one.load, &load)));
    }
}
