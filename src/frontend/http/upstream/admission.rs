//! Limits new connections to a backend that may serve only one at a time.
//!
//! A single-threaded server with kept-alive connections (Python's `http.server.HTTPServer` with HTTP/1.1) serves one connection
//! until that closes. The others wait in its backlog, which has five places in Python. A connection beyond them is not accepted,
//! and its bytes block the frames of the other connections in the kubelet, even the one that would close the connection in
//! service. So a backend gets few new connections until it answers one beside another open one. All but the first request ask the
//! backend to close the connection: a close by adit takes the kubelet a second to pass on.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::Instant,
};

use crate::{routing::Target, tunnel::Endpoint};

/// Maximum number of new connections without an answer at first: a browser opens six, and a backlog of five takes them.
const MOST_UNANSWERED: usize = 6;

/// Each time that a request has waited this long, `MOST_UNANSWERED` more are admitted: the backend may only be slow.
pub const MORE_EACH: Duration = Duration::from_secs(1);

/// Age difference that proves several threads: the backend answers a connection while it owes an answer to one older by this.
const OLDER: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Serves {
    Unknown,
    OneAtATime,
    Several,
}

/// How each backend serves connections, until its tunnel gets another session.
#[derive(Default)]
pub struct Admissions(Mutex<HashMap<Target, Arc<Backend>>>);

impl Admissions {
    pub fn of(&self, target: &Target, session: &Arc<Endpoint>) -> Arc<Backend> {
        let mut all = self.0.lock().expect("no panic while the lock is held");
        let session = Arc::downgrade(session);
        if let Some(backend) = all.get(target).filter(|backend| backend.session.ptr_eq(&session)) {
            return backend.clone();
        }
        all.retain(|_, backend| backend.session.strong_count() > 0);
        let backend = Arc::new(Backend { session, state: Mutex::default(), changed: Arc::default() });
        all.insert(target.clone(), backend.clone());
        backend
    }
}

pub struct Backend {
    session: Weak<Endpoint>,
    state: Mutex<State>,
    /// Notified when there may be room for a connection, or an idle one.
    changed: Arc<Notify>,
}

struct State {
    serves: Serves,
    /// Connections without an answer yet.
    unanswered: Vec<Unanswered>,
    /// Kept-alive connections that have had an answer, with their pods.
    kept: Vec<(Arc<str>, Weak<Kept>)>,
    next_id: u64,
}

impl Default for State {
    fn default() -> Self {
        Self { serves: Serves::Unknown, unanswered: Vec::new(), kept: Vec::new(), next_id: 0 }
    }
}

struct Unanswered {
    id: u64,
    since: Instant,
    pod: Option<Arc<str>>,
}

/// Guard that a connection holds while it is open.
pub struct Kept(Arc<Notify>);

impl Kept {
    /// Reports that the connection can take another request.
    pub fn is_idle(&self) {
        self.0.notify_one();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Backend {
    /// Returns the permit for a new connection. `since`: start of the request's wait. `None`: others must be answered first.
    pub fn admit(self: &Arc<Self>, since: Instant) -> Option<Admitted> {
        let mut state = self.lock();
        if state.serves == Serves::Several {
            return Some(Admitted { backend: self.clone(), id: None, asks_to_close: false });
        }
        let rounds = 1 + since.elapsed().as_secs() / MORE_EACH.as_secs();
        if state.unanswered.len() as u64 >= rounds * MOST_UNANSWERED as u64 {
            return None;
        }
        state.kept.retain(|(_, kept)| kept.strong_count() > 0);
        let is_alone = state.kept.is_empty() && state.unanswered.is_empty();
        let asks_to_close = state.serves == Serves::OneAtATime || !is_alone;
        let id = state.next_id;
        state.next_id += 1;
        state.unanswered.push(Unanswered { id, since: Instant::now(), pod: None });
        Some(Admitted { backend: self.clone(), id: Some(id), asks_to_close })
    }

    /// Returns a future that resolves when there may be room, or an idle connection.
    pub fn changed(&self) -> OwnedNotified {
        self.changed.clone().notified_owned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }
}

/// Properties of the answer on a new connection.
pub struct Answer {
    /// The connection takes more requests after this one.
    pub is_kept: bool,
    /// Idle connections were closed to make room for it.
    pub is_after_close: bool,
    pub is_http2: bool,
}

/// Permit for one new connection; its drop gives it back.
pub struct Admitted {
    backend: Arc<Backend>,
    /// `None`: the backend serves several connections.
    id: Option<u64>,
    /// The request must ask the backend to close the connection after it.
    pub asks_to_close: bool,
}

impl Admitted {
    /// Records the connection's pod.
    pub fn at(&self, pod: &Arc<str>) {
        let mut state = self.backend.lock();
        if let Some(own) = state.unanswered.iter_mut().find(|own| Some(own.id) == self.id) {
            own.pod = Some(pod.clone());
        }
    }

    /// Records the answer, and returns the guard that the connection must hold.
    pub fn answered(self, answer: &Answer) -> Option<Arc<Kept>> {
        let mut state = self.backend.lock();
        let at = state.unanswered.iter().position(|own| Some(own.id) == self.id)?;
        let own = state.unanswered.swap_remove(at);
        let pod = own.pod?;
        state.kept.retain(|(_, kept)| kept.strong_count() > 0);
        let is_older = |other: &Unanswered| other.pod.as_ref() == Some(&pod) && other.since + OLDER <= own.since;
        let is_beside = state.kept.iter().any(|(other, _)| *other == pod) || state.unanswered.iter().any(is_older);
        // A backend that closes each connection by itself keeps no request waiting.
        let closes = !answer.is_kept && !self.asks_to_close;
        if is_beside || closes || answer.is_http2 {
            *state = State { serves: Serves::Several, ..State::default() };
            self.backend.changed.notify_waiters();
            return None;
        }
        if answer.is_after_close {
            state.serves = Serves::OneAtATime;
        }
        let kept = (answer.is_kept && !self.asks_to_close).then(|| Arc::new(Kept(self.backend.changed.clone())));
        state.kept.extend(kept.iter().map(|kept| (pod.clone(), Arc::downgrade(kept))));
        kept
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.backend.lock().unanswered.retain(|own| own.id != id);
            self.backend.changed.notify_one();
        }
    }
}
