//! Pauses before the next request to an API server.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// The first pause, and the longest: pods that go meanwhile are found out by the wire.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);

/// A watch that has lasted for this long was a healthy one, however it ended.
const HEALTHY: Duration = Duration::from_secs(5);

/// Pauses that double from 200 ms to 10 s, each shortened by up to a half: those who have failed together do not come
/// back together.
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
        // Of a hash with keys of its own: random enough to spread.
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
