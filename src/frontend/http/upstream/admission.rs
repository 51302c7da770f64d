//! New connections to a backend of which it is not known whether it serves several at once.
//!
//! A server of one thread that keeps connections (Python's `http.server.HTTPServer` with HTTP/1.1) serves the one that it has until that
//! closes. The others wait in its backlog, five in Python's case. One that finds no room there is not connected at all, and what was sent
//! on it blocks the frames of others in the kubelet, the one that would have closed the connection in service among them. So a backend gets
//! few new connections until one is answered beside another that stays open, and all but the first ask it to close them; else each
//! would be waited for, for the second that a kubelet takes to pass on an end.

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

/// How many connections without an answer yet a backend has at first: what a browser opens, and what a backlog of five takes.
const MOST_UNANSWERED: usize = 6;

/// After this time without an answer, a request that waits counts as many more: a backend may be slow to answer each.
pub const MORE_EACH: Duration = Duration::from_secs(1);

/// A backend that answers a connection while it owes an answer to one that is older by this has several threads.
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
    /// Somebody who waits may find room, or a connection that is idle.
    changed: Arc<Notify>,
}

struct State {
    serves: Serves,
    /// Connections that were not answered on yet.
    unanswered: Vec<Unanswered>,
    /// Connections that were answered on and are kept, and the pod of each.
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

/// Held by a connection for as long as it is open.
pub struct Kept(Arc<Notify>);

impl Kept {
    /// The connection can take another request.
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
    /// Returns the right to a new connection. `since`: when the request began to wait for it. None: others are to be answered first.
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

    /// Returns what ends once there may be room, or an idle connection.
    pub fn changed(&self) -> OwnedNotified {
        self.changed.clone().notified_owned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }
}

/// How the answer on a new connection came about.
pub struct Answer {
    /// The connection takes more requests after this one.
    pub is_kept: bool,
    /// Idle connections were closed for its sake.
    pub is_after_close: bool,
    pub is_http2: bool,
}

/// The right to one new connection. Given back when it is dropped.
pub struct Admitted {
    backend: Arc<Backend>,
    /// None: the backend serves several connections.
    id: Option<u64>,
    /// The request is to say that the connection closes after it.
    pub asks_to_close: bool,
}

impl Admitted {
    /// The connection leads to this pod.
    pub fn at(&self, pod: &Arc<str>) {
        let mut state = self.backend.lock();
        if let Some(own) = state.unanswered.iter_mut().find(|own| Some(own.id) == self.id) {
            own.pod = Some(pod.clone());
        }
    }

    /// Takes note of the answer, and returns what the connection is to hold.
    pub fn answered(self, answer: &Answer) -> Option<Arc<Kept>> {
        let mut state = self.backend.lock();
        let at = state.unanswered.iter().position(|own| Some(own.id) == self.id)?;
        let own = state.unanswered.swap_remove(at);
        let pod = own.pod?;
        state.kept.retain(|(_, kept)| kept.strong_count() > 0);
        let is_older = |other: &Unanswered| other.pod.as_ref() == Some(&pod) && other.since + OLDER <= own.since;
        let is_beside = state.kept.iter().any(|(other, _)| *other == pod) || state.unanswered.iter().any(is_older);
        // No request waits for a backend that closes each connection itself.
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
