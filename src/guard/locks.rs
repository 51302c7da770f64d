//! Contexts whose rules the user has lifted for a while.

use std::{
    collections::HashMap,
    pin::pin,
    sync::Mutex,
    time::{Duration, Instant, SystemTime},
};

use tokio::{sync::Notify, time::timeout};

/// Longest time for which a context may be unlocked: a working day, not forever.
pub const LONGEST: Duration = Duration::from_secs(8 * 60 * 60);

/// Interval at which a connection looks at the wall clock: timers stand still while a laptop sleeps.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Unlocked contexts, by name. They are locked again when the time is over, and when the process ends.
#[derive(Debug, Default)]
pub struct Locks {
    unlocked: Mutex<HashMap<String, Term>>,
    changed: Notify,
}

/// Time for which a context is unlocked. It ends by the clock that comes first: the monotonic one stands still while a laptop
/// sleeps, and the wall clock may be set back.
#[derive(Clone, Copy, Debug)]
struct Term {
    until: Instant,
    from: SystemTime,
    time: Duration,
}

impl Term {
    /// Returns how much of it is left. `None`: it is over, or the wall clock was set back behind its start.
    fn left(&self, now: Instant, wall: SystemTime) -> Option<Duration> {
        let by_wall = self.time.saturating_sub(wall.duration_since(self.from).ok()?);
        let left = by_wall.min(self.until.saturating_duration_since(now));
        (!left.is_zero()).then_some(left)
    }
}

impl Locks {
    /// Lifts the rules of a context for this time, at most [`LONGEST`]. Zero: locks it again.
    pub fn unlock(&self, context: &str, time: Duration) {
        let mut unlocked = self.unlocked.lock().expect("no panic while the lock is held");
        let (now, from, time) = (Instant::now(), SystemTime::now(), time.min(LONGEST));
        unlocked.retain(|_, term| term.left(now, from).is_some());
        match time.is_zero() {
            true => drop(unlocked.remove(context)),
            false => drop(unlocked.insert(context.to_owned(), Term { until: now + time, from, time })),
        }
        drop(unlocked);
        self.changed.notify_waiters();
    }

    /// Returns how much longer the rules of a context are lifted. `None`: they apply.
    pub fn time_left(&self, context: &str) -> Option<Duration> {
        let unlocked = self.unlocked.lock().expect("no panic while the lock is held");
        unlocked.get(context)?.left(Instant::now(), SystemTime::now())
    }

    /// Waits until the rules of a context apply.
    pub async fn locked(&self, context: &str) {
        loop {
            let mut changed = pin!(self.changed.notified());
            // Before the look, so that no change is missed.
            changed.as_mut().enable();
            let Some(left) = self.time_left(context) else { return };
            let _ = timeout(left.min(LOOK_EVERY), changed).await;
        }
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

    #[test]
    fn sleep_counts_and_a_clock_that_was_set_back_locks() {
        let (now, from, time) = (Instant::now(), SystemTime::now(), Duration::from_secs(900));
        let term = Term { until: now + time, from, time };
        let second = Duration::from_secs(1);
        assert_eq!(term.left(now, from), Some(time));
        // Suspended: only the wall clock goes on.
        assert_eq!(term.left(now, from + time - second), Some(second));
        assert_eq!(term.left(now, from + time), None);
        // The wall clock was set back during the time, and behind its start.
        assert_eq!(term.left(now + time, from + second), None);
        assert_eq!(term.left(now, from - second), None);
    }

    #[tokio::test]
    async fn the_end_of_the_time_and_a_lock_by_hand_wake_those_that_wait() {
        let locks = Locks::default();
        let soon = Duration::from_secs(5);
        timeout(soon, locks.locked("prod")).await.expect("it was never unlocked");
        locks.unlock("prod", Duration::from_millis(50));
        timeout(soon, locks.locked("prod")).await.expect("its time is over");
        locks.unlock("prod", Duration::from_secs(900));
        let lock = async { locks.unlock("prod", Duration::ZERO) };
        timeout(soon, async { tokio::join!(locks.locked("prod"), lock) }).await.expect("it is locked by hand");
    }
}
