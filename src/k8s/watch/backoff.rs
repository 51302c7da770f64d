//! Pauses before the next request to an API server.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// First and longest pause. Failed connections show meanwhile which pods are gone.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);

/// A watch that lasted this long was healthy, even if it ended with an error.
const HEALTHY: Duration = Duration::from_secs(5);

/// First and longest pause without the permission to watch. Somebody may grant it, or a proxy has sent the 403.
const FIRST_DENIED: Duration = Duration::from_secs(30);
const LONGEST_DENIED: Duration = Duration::from_secs(300);

/// Back-off that doubles from 200 ms to 10 s. Each pause is shortened by up to half, so that clients that failed together
/// do not return together.
#[derive(Default)]
pub struct Backoff {
    failures: u32,
    /// Number of 403s in a row.
    denials: u32,
    jitter: RandomState,
}

impl Backoff {
    /// Returns the pause after one more failure.
    pub fn next(&mut self) -> Duration {
        let longest = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        (self.failures, self.denials) = (self.failures.saturating_add(1), 0);
        self.shorten(longest, self.failures)
    }

    /// Returns the pause after one more 403.
    pub fn denied(&mut self) -> Duration {
        let longest = FIRST_DENIED.saturating_mul(1 << self.denials.min(8)).min(LONGEST_DENIED);
        self.denials = self.denials.saturating_add(1);
        self.shorten(longest, self.denials)
    }

    fn shorten(&self, longest: Duration, step: u32) -> Duration {
        // A hash with random keys: random enough to spread the pauses.
        let share = self.jitter.hash_one(step) as f64 / u64::MAX as f64;
        longest.mul_f64(1.0 - share / 2.0)
    }

    /// Returns the pause after a watch that lasted for `lasted`.
    pub fn after(&mut self, lasted: Duration) -> Duration {
        if lasted >= HEALTHY {
            self.failures = 0;
        }
        self.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_ten_seconds_and_start_anew_after_a_healthy_watch() {
        let mut backoff = Backoff::default();
        for step in 0..100u32 {
            let longest = Duration::from_millis(200 << step.min(6)).min(LONGEST);
            let pause = backoff.after(Duration::from_millis(10));
            assert!(pause <= longest && pause >= longest / 2, "{step}: {pause:?}");
        }
        assert!(backoff.after(Duration::from_secs(60)) <= FIRST, "cut after a minute, by a gateway");
        assert!(backoff.after(Duration::ZERO) >= FIRST, "and then at once");
    }

    #[test]
    fn without_permission_pauses_grow_to_five_minutes() {
        let mut backoff = Backoff::default();
        for step in 0..50u32 {
            let longest = Duration::from_secs(30 << step.min(4)).min(LONGEST_DENIED);
            let pause = backoff.denied();
            assert!(pause <= longest && pause >= longest / 2, "{step}: {pause:?}");
        }
        assert!(backoff.after(Duration::from_secs(60)) <= FIRST, "a watch that was allowed");
        assert!(backoff.denied() <= FIRST_DENIED, "and then not any more");
    }

    #[test]
    fn those_who_fail_together_wait_differently() {
        let pauses: std::collections::BTreeSet<_> = (0..20).map(|_| Backoff::default().next()).collect();
        assert!(pauses.len() > 10, "{pauses:?}");
    }
}
