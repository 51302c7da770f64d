//! Connections to pods that wait for their next request.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use hyper::client::conn::http1;
use tokio::time::{Instant, sleep, timeout};

use super::heard::Heard;
use crate::{
    config::{BackendTls, Scheme},
    drain::Drain,
    frontend::http::{body::Body, http2},
    routing::Target,
    tunnel::Placement,
};

/// How long an unused connection is kept. Node.js closes after 5 s, the shortest of the common servers: a request
/// must not meet a connection that is just being closed.
const IDLE: Duration = Duration::from_secs(4);

/// How many unused connections to one target are kept: each is a connection into a pod.
const MOST_IDLE: usize = 512;

/// A connection whose answer has just been read needs a moment until it takes the next request.
const BREATH: Duration = Duration::from_millis(2);

/// What connections are shared by.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub target: Target,
    pub scheme: Scheme,
    /// For https: the name that is asked for, and how.
    pub tls: Option<(String, BackendTls)>,
}

/// The sending end of a connection.
pub enum Sender {
    H1(H1),
    H2(H2),
}

impl Sender {
    /// Returns what takes note of what the backend says.
    pub fn heard(&self) -> &Heard {
        match self {
            Self::H1(h1) => &h1.heard,
            Self::H2(h2) => &h2.heard,
        }
    }
}

/// A connection that serves one request at a time.
pub struct H1 {
    pub sender: http1::SendRequest<Body>,
    pub heard: Heard,
}

/// A connection that serves all requests; clones share it.
#[derive(Clone)]
pub struct H2 {
    pub sender: http2::client::Sender,
    pub heard: Heard,
}

/// The connections that can take a request.
pub struct Pool {
    state: Mutex<State>,
    drain: Drain,
}

#[derive(Default)]
struct State {
    /// By age, the oldest first.
    idle: HashMap<Key, Vec<Idle>>,
    /// One connection per backend serves all requests.
    h2: HashMap<Key, (H2, Placement)>,
    /// Whether a task closes what is unused for too long.
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

    /// Returns a connection that can take a request now.
    pub async fn take(&self, key: &Key) -> Option<(Sender, Placement)> {
        loop {
            let mut idle = {
                let mut state = self.lock();
                if let Some((h2, placement)) = state.h2.get_mut(key) {
                    if !h2.sender.is_closed() && !placement.is_leaving() {
                        return Some((Sender::H2(h2.clone()), placement.clone()));
                    }
                    state.h2.remove(key);
                }
                let all = state.idle.get_mut(key)?;
                // The last one used is the one most likely to be alive; one whose answer has been read to the end just now
                // needs a moment in another task, the one that has had the most of it the least.
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
            match timeout(BREATH, idle.connection.sender.ready()).await {
                Ok(Ok(())) => return Some((Sender::H1(idle.connection), idle.placement)),
                Ok(Err(_)) => {}
                // The machine is busy: it is for another request.
                Err(_) => {
                    self.lock().idle.entry(key.clone()).or_default().push(idle);
                    return None;
                }
            }
        }
    }

    /// Lets other requests share a connection.
    pub fn share(&self, key: Key, h2: H2, placement: Placement) {
        self.lock().h2.insert(key, (h2, placement));
    }

    /// Returns what gives a connection back that serves one request at a time.
    pub fn returning(self: &Arc<Self>, key: Key, sender: Sender, placement: Placement) -> Option<Returning> {
        match sender {
            Sender::H1(h1) => Some(Returning { pool: self.clone(), key, connection: Some(h1), placement }),
            Sender::H2(_) => None,
        }
    }

    /// Drops the unused connections.
    pub fn forget(&self, key: &Key) {
        let mut state = self.lock();
        state.idle.remove(key);
        state.h2.remove(key);
    }

    /// Closes the connections to a target that have been idle for at least `idle`.
    pub fn close_idle(&self, target: &Target, idle: Duration) {
        self.lock().idle.retain(|key, all| {
            if key.target == *target {
                all.retain(|unused| unused.since.elapsed() < idle);
            }
            !all.is_empty()
        });
    }

    /// Keeps a connection for the next request.
    fn keep(self: &Arc<Self>, key: Key, idle: Idle) {
        let mut state = self.lock();
        let all = state.idle.entry(key).or_default();
        if all.len() < MOST_IDLE {
            all.push(idle);
        }
        if !std::mem::replace(&mut state.is_reaped, true) {
            let this = self.clone();
            self.drain.spawn(async move { this.reap().await });
        }
    }

    /// Closes what is unused for too long, until there is nothing left.
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
            state.h2.retain(|_, (h2, placement)| !h2.sender.is_closed() && !placement.is_leaving() && !is_draining);
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

/// Gives a connection back when it is dropped: with the end of the response's body.
pub struct Returning {
    pool: Arc<Pool>,
    key: Key,
    connection: Option<H1>,
    placement: Placement,
}

impl Drop for Returning {
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
