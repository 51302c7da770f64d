//! How many connections of a client are to be ready before visitors come. Pure: what happened and when in, a number out.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Visitors of longer ago say nothing of those that come next.
const MEMORY: Duration = Duration::from_secs(60);

const SECOND: Duration = Duration::from_secs(1);

/// Assumed time to open a connection until one was measured: a far client, with a handshake.
const FIRST_GUESS: Duration = Duration::from_millis(300);

/// The visitors of one client, and how long its connections take to be made.
#[derive(Debug)]
pub struct Demand {
    /// How many visitors came in a second, oldest first.
    seconds: VecDeque<(Instant, u32)>,
    takes: Duration,
}

impl Default for Demand {
    fn default() -> Self {
        Self { seconds: VecDeque::new(), takes: FIRST_GUESS }
    }
}

impl Demand {
    /// Takes note of a visitor.
    pub fn came(&mut self, now: Instant) {
        match self.seconds.back_mut().filter(|(begun, _)| now.duration_since(*begun) < SECOND) {
            Some((_, count)) => *count += 1,
            None => self.seconds.push_back((now, 1)),
        }
        self.forget(now);
    }

    /// Takes note of how long a connection took from when it was asked for.
    pub fn made(&mut self, took: Duration) {
        self.takes = took;
    }

    /// Returns how many are to be ready: as many visitors as came in the busiest second of the last minute come while one is made. At
    /// least one where there was a visitor.
    pub fn wanted(&mut self, now: Instant) -> usize {
        self.forget(now);
        let busiest = self.seconds.iter().map(|(_, count)| *count).max().unwrap_or(0);
        (f64::from(busiest) * self.takes.as_secs_f64().min(1.0)).ceil() as usize
    }

    fn forget(&mut self, now: Instant) {
        while self.seconds.front().is_some_and(|(begun, _)| now.duration_since(*begun) >= MEMORY) {
            self.seconds.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_wanted_as_come_while_one_is_made() {
        let (mut demand, start) = (Demand::default(), Instant::now());
        assert_eq!(demand.wanted(start), 0, "nobody has come");
        demand.came(start);
        assert_eq!(demand.wanted(start), 1);
        (0..99).for_each(|_| demand.came(start + Duration::from_millis(500)));
        assert_eq!(demand.wanted(start + SECOND), 30, "a hundred in a second, and 300 ms for each");
        demand.made(Duration::from_millis(20));
        assert_eq!(demand.wanted(start + SECOND), 2);
        demand.made(Duration::from_secs(10));
        assert_eq!(demand.wanted(start + SECOND), 100);
        demand.came(start + Duration::from_secs(59));
        assert_eq!(demand.wanted(start + MEMORY), 1, "the busy second is forgotten");
        assert_eq!(demand.wanted(start + MEMORY * 2), 0);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut demand, start) = (Demand::default(), Instant::now());
        (0..100_000).for_each(|number| demand.came(start + Duration::from_millis(7 * number)));
        assert!(demand.seconds.len() <= 61, "{}", demand.seconds.len());
    }
}
