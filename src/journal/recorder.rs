//! The routes whose bodies are recorded, and the memory limit for bodies.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

/// Maximum bytes kept of a body.
pub const LONGEST_BODY: usize = 256 * 1024;

/// Maximum bytes of all recorded bodies.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// Maximum number of routes that are recorded at a time.
const MOST_ROUTES: usize = 64;

/// Recorder of bodies, for routes that a person has chosen.
#[derive(Default)]
pub struct Recorder {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    until: HashMap<Arc<str>, Instant>,
    /// Recorded bodies, oldest first. Bodies without bytes may be behind newer ones.
    kept: VecDeque<Weak<KeptBody>>,
    bytes: usize,
}

impl Recorder {
    /// Records the bodies of a route for this long from now. Zero: stops.
    pub fn record(&self, route: &str, time: Duration) {
        let mut state = self.state.lock().expect("no panic while the lock is held");
        let now = Instant::now();
        state.until.retain(|_, until| *until > now);
        match time.is_zero() {
            true => drop(state.until.remove(route)),
            false if state.until.len() < MOST_ROUTES => drop(state.until.insert(route.into(), now + time)),
            false => {}
        }
    }

    /// Returns the remaining time of a route's recording. `None`: it is not recorded.
    pub fn time_left(&self, route: &str) -> Option<Duration> {
        let state = self.state.lock().expect("no panic while the lock is held");
        let left = state.until.get(route)?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Returns a new buffer for a body of a route. `None`: the route is not recorded.
    pub fn body(self: &Arc<Self>, route: &str) -> Option<Arc<KeptBody>> {
        self.time_left(route)?;
        let body = Arc::new(KeptBody::new(Arc::downgrade(self)));
        let mut state = self.state.lock().expect("no panic while the lock is held");
        state.kept.retain(|kept| kept.strong_count() > 0);
        state.kept.push_back(Arc::downgrade(&body));
        Some(body)
    }

    pub(super) fn grown(&self, by: usize) {
        let mut state = self.state.lock().expect("no panic while the lock is held");
        state.bytes += by;
        let mut freed = Vec::new();
        for _ in 0..state.kept.len() {
            if state.bytes <= MOST_BYTES {
                break;
            }
            let Some(oldest) = state.kept.pop_front().and_then(|oldest| oldest.upgrade()) else { continue };
            match oldest.forget() {
                // Its bytes are still to come, and must make room then.
                0 => state.kept.push_back(Arc::downgrade(&oldest)),
                bytes => state.bytes = state.bytes.saturating_sub(bytes),
            }
            freed.push(oldest);
        }
        drop(state);
        // Dropping the last reference takes the lock (`shrunk`), so drop it only after the guard.
        drop(freed);
    }

    pub(super) fn shrunk(&self, by: usize) {
        let mut state = self.state.lock().expect("no panic while the lock is held");
        state.bytes = state.bytes.saturating_sub(by);
    }
}

/// The kept part of a body.
pub struct KeptBody {
    recorder: Weak<Recorder>,
    state: Mutex<BodyState>,
}

#[derive(Default)]
struct BodyState {
    bytes: Vec<u8>,
    total: u64,
    is_cut: bool,
    has_ended: bool,
}

impl KeptBody {
    fn new(recorder: Weak<Recorder>) -> Self {
        Self { recorder, state: Mutex::default() }
    }

    /// Adds the next bytes. Beyond the limit, only counts them.
    pub fn add(&self, bytes: &[u8]) {
        let mut state = self.state.lock().expect("no panic while the lock is held");
        state.total += bytes.len() as u64;
        let room = if state.is_cut { 0 } else { LONGEST_BODY.saturating_sub(state.bytes.len()).min(bytes.len()) };
        state.is_cut |= room < bytes.len();
        state.bytes.extend_from_slice(&bytes[..room]);
        drop(state);
        if let Some(recorder) = self.recorder.upgrade().filter(|_| room > 0) {
            recorder.grown(room);
        }
    }

    /// Records the end of the body. A body that breaks off has none.
    pub fn end(&self) {
        self.state.lock().expect("no panic while the lock is held").has_ended = true;
    }

    /// Drops the bytes, and returns their number: newer bodies need the memory.
    fn forget(&self) -> usize {
        let mut state = self.state.lock().expect("no panic while the lock is held");
        state.is_cut |= !state.bytes.is_empty();
        std::mem::take(&mut state.bytes).len()
    }

    /// Returns the kept bytes, the length of the body so far, and whether the body is complete and kept as a whole.
    pub fn kept(&self) -> (Vec<u8>, u64, bool) {
        let state = self.state.lock().expect("no panic while the lock is held");
        (state.bytes.clone(), state.total, state.has_ended && !state.is_cut)
    }
}

impl Drop for KeptBody {
    fn drop(&mut self) {
        let freed = self.forget();
        if let Some(recorder) = self.recorder.upgrade() {
            recorder.shrunk(freed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_kept_while_they_are_asked_for_and_bounded() {
        let recorder = Arc::new(Recorder::default());
        assert!(recorder.body("web").is_none());
        recorder.record("web", Duration::from_secs(60));
        assert!(recorder.body("other").is_none() && recorder.time_left("web").unwrap() > Duration::from_secs(50));
        let body = recorder.body("web").unwrap();
        body.add(b"abc");
        assert_eq!(body.kept(), (b"abc".to_vec(), 3, false), "it goes on");
        body.end();
        assert_eq!(body.kept(), (b"abc".to_vec(), 3, true));
        body.add(&vec![b'x'; LONGEST_BODY]);
        let (bytes, total, is_whole) = body.kept();
        assert_eq!((bytes.len(), total, is_whole), (LONGEST_BODY, 3 + LONGEST_BODY as u64, false));

        let many: Vec<_> = (0..100).map(|_| recorder.body("web").unwrap()).collect();
        many.iter().for_each(|body| body.add(&vec![b'x'; LONGEST_BODY]));
        let kept: usize = many.iter().chain([&body]).map(|body| body.kept().0.len()).sum();
        assert!(kept <= MOST_BYTES && kept > MOST_BYTES - 2 * LONGEST_BODY, "{kept}");
        assert!(body.kept().0.is_empty(), "the oldest makes room");
        drop((many, body));
        assert_eq!(recorder.state.lock().unwrap().bytes, 0);
        // Bodies that are empty while others fill the memory, and grow later.
        let late: Vec<_> = (0..100).map(|_| recorder.body("web").unwrap()).collect();
        let many: Vec<_> = (0..100).map(|_| recorder.body("web").unwrap()).collect();
        many.iter().chain(&late).for_each(|body| body.add(&vec![b'x'; LONGEST_BODY]));
        let kept: usize = many.iter().chain(&late).map(|body| body.kept().0.len()).sum();
        assert!(kept <= MOST_BYTES && kept > MOST_BYTES - 2 * LONGEST_BODY, "{kept}");
        drop((many, late));
        assert_eq!(recorder.state.lock().unwrap().bytes, 0);
        recorder.record("web", Duration::ZERO);
        assert!(recorder.body("web").is_none());
    }
}
