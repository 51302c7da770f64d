//! A histogram of times, and its percentiles.

use std::time::Duration;

/// Each bound is 1.25 times the previous one, so a percentile is at most 25 % too high. 72 buckets reach from 50 microseconds to
/// 6 minutes.
const BUCKETS: usize = 72;
const FIRST: f64 = 50e-6;
const STEP: f64 = 1.25;

/// Number of measured times in each bucket.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: [u32; BUCKETS],
}

/// Percentiles in milliseconds. `None`: nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Percentiles {
    pub count: u64,
    pub p50: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS] }
    }
}

impl Histogram {
    pub fn add(&mut self, took: Duration) {
        let steps = (took.as_secs_f64() / FIRST).ln() / STEP.ln();
        // The logarithm of zero is negative infinity, which the cast turns into the first bucket.
        let bucket = (steps.ceil() as usize).min(BUCKETS - 1);
        self.counts[bucket] = self.counts[bucket].saturating_add(1);
    }

    /// Returns the percentiles; each is the upper bound of its bucket.
    pub fn percentiles(&self) -> Percentiles {
        let count = self.counts.iter().map(|count| u64::from(*count)).sum();
        let at = |share: f64| {
            let wanted = (count as f64 * share).ceil() as u64;
            let mut seen = 0;
            let reached = |of_bucket: &u32| {
                seen += u64::from(*of_bucket);
                seen >= wanted
            };
            self.counts.iter().position(reached).filter(|_| count > 0).map(bound)
        };
        Percentiles { count, p50: at(0.5), p95: at(0.95), p99: at(0.99) }
    }

    /// Returns the upper bounds, in milliseconds, of the buckets that are not empty, with their counts.
    pub fn counts(&self) -> Vec<(f64, u64)> {
        let counted = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        counted.map(|(bucket, count)| (bound(bucket), u64::from(*count))).collect()
    }
}

/// Returns the upper bound of a bucket in milliseconds, rounded to three digits.
fn bound(bucket: usize) -> f64 {
    let millis = FIRST * STEP.powi(i32::try_from(bucket).unwrap_or(i32::MAX)) * 1e3;
    let digits = 10f64.powf(2.0 - millis.log10().floor());
    (millis * digits).round() / digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_near_the_truth() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentiles(), Percentiles::default());
        (1..=1000).for_each(|millis| histogram.add(Duration::from_millis(millis)));
        let Percentiles { count, p50, p95, p99 } = histogram.percentiles();
        assert_eq!(count, 1000);
        for (found, truth) in [(p50, 500.0), (p95, 950.0), (p99, 990.0)] {
            let found = found.unwrap();
            assert!((truth..truth * 1.26).contains(&found), "{found} for {truth}");
        }
    }

    #[test]
    fn no_time_is_too_short_or_too_long() {
        let mut histogram = Histogram::default();
        for took in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(1 << 40)] {
            histogram.add(took);
        }
        assert_eq!(histogram.percentiles().p50, Some(0.05));
        assert_eq!(histogram.counts().len(), 2);
    }
}
