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

/// Back-off that doubles from 200 ms to 10 s. Each pause is shortened by up to half, so that clients that failed together
/// do not return together.
#[derive(Default)]
pub struct Backoff {
    failures: u32,
    jitter: RandomState,
}

impl Backoff {
    /// Returns the pause after one more failure.
    pub fn next(&mut self) -> Duration {
        let longest = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        // A hash with random keys: random enough to spread the pauses.
        let share = self.jitter.hash_one(self.failures) as f64 / u64::MAX as f64;
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
    fn those_who_fail_together_wait_differently() {
        let pauses: std::collections::BTreeSet<_> = (0..20).map(|_| Backoff::default().next()).collect();
        assert!(pauses.len() > 10, "{pauses:?}");
    }
}
