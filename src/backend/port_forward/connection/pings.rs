//! The PINGs of an upgraded connection, and what their answers tell: which lanes answer, how fast, and how many bytes
//! may still be in flight.
//!
//! PINGs leave in rounds, one PING for each lane. The connection keeps its order, so the first answer to a round
//! acknowledges every byte sent before that round. The answer of a lane acknowledges the frames that the lane's worker
//! has taken.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::wire::spdy::session::LANES;

/// The PINGs of one connection.
#[derive(Debug, Default)]
pub struct Pings {
    /// Rounds that at least one lane has not answered, oldest first.
    rounds: VecDeque<Round>,
    lanes: [Lane; LANES],
    /// Bytes put into batches, and how many of them have certainly arrived.
    put: u64,
    arrived: u64,
    shortest: Option<Duration>,
    latest: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    number: u32,
    /// Bytes of the connection before it.
    behind: u64,
    queued: Instant,
    written: Option<Instant>,
    /// When the first lane answered.
    answered: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    /// Number of the oldest round that the lane has not answered.
    owes: u32,
    last_answer: Option<Instant>,
}

impl Pings {
    /// Records a round that will be sent after `ahead` bytes that are not [`put`](Self::put) yet.
    pub fn queued(&mut self, number: u32, ahead: usize, now: Instant) {
        let behind = self.put + ahead as u64;
        self.rounds.push_back(Round { number, behind, queued: now, written: None, answered: None });
    }

    /// Records a batch of this length.
    pub fn put(&mut self, bytes: usize) {
        self.put += bytes as u64;
    }

    /// Records that the socket has taken all bytes that were put. Returns whether they contained a PING.
    pub fn written(&mut self, now: Instant) -> bool {
        let put = self.put;
        let mut has_pings = false;
        for round in self.rounds.iter_mut().filter(|round| round.written.is_none() && round.behind < put) {
            round.written = Some(now);
            has_pings = true;
        }
        has_pings
    }

    /// Records the answer of a lane.
    pub fn answered(&mut self, lane: usize, number: u32, now: Instant) {
        let known = &mut self.lanes[lane % LANES];
        known.owes = number.wrapping_add(1);
        known.last_answer = Some(now);
        if let Some(round) = self.rounds.iter_mut().find(|round| round.number == number)
            && round.answered.is_none()
        {
            round.answered = Some(now);
            // The answer may arrive before the write returns, and a broken node may answer a PING that was never sent:
            // both count as 0.
            let took = now.duration_since(round.written.unwrap_or(now));
            self.latest = Some(took);
            self.shortest = Some(self.shortest.map_or(took, |shortest| shortest.min(took)));
            self.arrived = self.arrived.max(round.behind);
        }
        while let Some(round) = self.rounds.front()
            && self.lanes.iter().all(|lane| lane.owes > round.number)
        {
            self.rounds.pop_front();
        }
    }

    /// Returns since when a lane is silent: it was pinged, and has answered nothing since. `None`: it owes no answer.
    pub fn silent_since(&self, lane: usize) -> Option<Instant> {
        let round = self.owed(lane)?;
        Some(self.lanes[lane % LANES].last_answer.map_or(round.queued, |answer| answer.max(round.queued)))
    }

    /// Returns since when a lane is silent although another lane has answered the same round.
    pub fn overtaken(&self) -> Option<Instant> {
        let overtaken = |lane: usize| Some(self.owed(lane)?.answered?.max(self.silent_since(lane)?));
        (0..LANES).filter_map(overtaken).min()
    }

    fn owed(&self, lane: usize) -> Option<&Round> {
        let owes = self.lanes[lane % LANES].owes;
        self.rounds.iter().find(|round| round.number >= owes)
    }

    /// Returns when the oldest round without any answer was written.
    pub fn unanswered(&self) -> Option<Instant> {
        self.rounds.iter().find(|round| round.answered.is_none()).and_then(|round| round.written)
    }

    /// Returns whether some lane owes an answer.
    pub fn are_out(&self) -> bool {
        !self.rounds.is_empty()
    }

    /// Returns the number of bytes that may not have arrived yet.
    pub fn on_their_way(&self) -> u64 {
        self.put - self.arrived
    }

    /// Returns the shortest time to an answer so far.
    pub fn shortest(&self) -> Option<Duration> {
        self.shortest
    }

    /// Returns the time to the answer of the last answered round.
    pub fn latest(&self) -> Option<Duration> {
        self.latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_a_ping_starts_when_it_is_written() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut pings = Pings::default();
        pings.queued(0, 100, at(0));
        assert_eq!((pings.unanswered(), pings.are_out()), (None, true));
        pings.put(220);
        // A second round is queued while the batch is written.
        pings.queued(1, 0, at(5));
        assert!(pings.written(at(8)));
        assert!(!pings.written(at(9)), "the second one is not in a batch yet");
        assert_eq!((pings.unanswered(), pings.on_their_way()), (Some(at(8)), 220));
        pings.answered(3, 0, at(9));
        assert_eq!((pings.unanswered(), pings.on_their_way()), (None, 120));
        assert_eq!((pings.latest(), pings.shortest()), (Some(at(1) - start), Some(at(1) - start)));
        pings.put(120);
        pings.written(at(10));
        assert_eq!(pings.unanswered(), Some(at(10)));
        pings.answered(3, 1, at(14));
        assert_eq!((pings.latest(), pings.shortest()), (Some(at(4) - start), Some(at(1) - start)));
        assert_eq!((pings.unanswered(), pings.on_their_way()), (None, 120));
    }

    #[test]
    fn a_lane_is_overtaken_when_another_one_has_answered_the_same_round() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut pings = Pings::default();
        for number in 0..2 {
            pings.queued(number, 0, at(0));
            pings.put(60);
            pings.written(at(0));
        }
        assert_eq!((pings.overtaken(), pings.silent_since(2)), (None, Some(at(0))), "all are late");
        pings.answered(1, 0, at(3));
        assert_eq!(pings.overtaken(), Some(at(3)));
        assert_eq!(pings.silent_since(1), Some(at(3)), "it owes the second one");
        for lane in [0, 2, 3, 4] {
            pings.answered(lane, 0, at(4));
        }
        assert_eq!((pings.overtaken(), pings.unanswered()), (None, Some(at(0))));
        for lane in 0..4 {
            pings.answered(lane, 1, at(5));
        }
        assert_eq!((pings.overtaken(), pings.silent_since(4)), (Some(at(5)), Some(at(4))));
        pings.answered(4, 1, at(6));
        assert_eq!((pings.overtaken(), pings.are_out()), (None, false));
        assert!((0..LANES).all(|lane| pings.silent_since(lane).is_none()));
    }
}
