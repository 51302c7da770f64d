//! How many connections of a client to keep ready ahead of visitors. Pure: events with their times in, a number out.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Visitors older than this do not count.
const MEMORY: Duration = Duration::from_secs(60);

const SECOND: Duration = Duration::from_secs(1);

/// Assumed time to open a connection, until one is measured: a far client, with a handshake.
const FIRST_GUESS: Duration = Duration::from_millis(300);

/// Rate of visitors of one client, and the time to open a connection.
#[derive(Debug)]
pub struct Demand {
    /// Visitors per second, oldest second first.
    seconds: VecDeque<(Instant, u32)>,
    takes: Duration,
}

impl Default for Demand {
    fn default() -> Self {
        Self { seconds: VecDeque::new(), takes: FIRST_GUESS }
    }
}

impl Demand {
    /// Records a visitor.
    pub fn came(&mut self, now: Instant) {
        match self.seconds.back_mut().filter(|(begun, _)| now.duration_since(*begun) < SECOND) {
            Some((_, count)) => *count += 1,
            None => self.seconds.push_back((now, 1)),
        }
        self.forget(now);
    }

    /// Records the time from the request for a connection until it was ready.
    pub fn made(&mut self, took: Duration) {
        self.takes = took;
    }

    /// Returns how many connections to keep ready: the visitors that come while one is opened, at the rate of the busiest
    /// second of the last minute. At least one if there was a visitor.
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
