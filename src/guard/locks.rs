//! Contexts whose rules the user has lifted for a while.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

/// Longest time for which a context may be unlocked: a working day, not forever.
pub const LONGEST: Duration = Duration::from_secs(8 * 60 * 60);

/// Unlocked contexts, by name. They are locked again when the time is over, and when the process ends.
#[derive(Debug, Default)]
pub struct Locks(Mutex<HashMap<String, Instant>>);

impl Locks {
    /// Lifts the rules of a context for this time, at most [`LONGEST`]. Zero: locks it again.
    pub fn unlock(&self, context: &str, time: Duration) {
        let mut unlocked = self.0.lock().expect("no panic while the lock is held");
        let now = Instant::now();
        unlocked.retain(|_, until| *until > now);
        match time.is_zero() {
            true => drop(unlocked.remove(context)),
            false => drop(unlocked.insert(context.to_owned(), now + time.min(LONGEST))),
        }
    }

    /// Returns how much longer the rules of a context are lifted. `None`: they apply.
    pub fn time_left(&self, context: &str) -> Option<Duration> {
        let unlocked = self.0.lock().expect("no panic while the lock is held");
        let left = unlocked.get(context)?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_unlocked_for_a_time() {
        let locks = Locks::default();
        assert_eq!(locks.time_left("prod"), None);
        locks.unlock("prod", Duration::from_secs(900));
        assert!(locks.time_left("prod").unwrap() > Duration::from_secs(800) && locks.time_left("other").is_none());
        locks.unlock("prod", Duration::from_secs(1_000_000));
        assert!(locks.time_left("prod").unwrap() <= LONGEST);
        locks.unlock("prod", Duration::ZERO);
        assert_eq!(locks.time_left("prod"), None);
    }
}
