//! Counters for each of the last 300 seconds.

/// Number of seconds kept.
pub const SECONDS: u64 = 300;

/// Counters of one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Second {
    /// Seconds since the start of the process.
    pub second: u64,
    pub requests: u32,
    /// Requests that failed, and not by the client's fault.
    pub errors: u32,
    pub up: u64,
    pub down: u64,
    /// Maximum number of open client connections within the second.
    pub connections: u32,
}

/// A ring of seconds. An idle second costs nothing.
#[derive(Default)]
pub struct Rates {
    ring: Vec<Second>,
    /// Connections open now.
    connections: u32,
    /// The last second written to the ring.
    last: u64,
}

impl Rates {
    pub fn request(&mut self, second: u64, is_error: bool) {
        let slot = self.slot(second);
        slot.requests += 1;
        slot.errors += u32::from(is_error);
    }

    pub fn bytes(&mut self, second: u64, up: u64, down: u64) {
        let slot = self.slot(second);
        slot.up += up;
        slot.down += down;
    }

    pub fn connections(&mut self, second: u64, change: i32) {
        self.slot(second);
        self.connections = self.connections.saturating_add_signed(change);
        let now = self.connections;
        let slot = self.slot(second);
        slot.connections = slot.connections.max(now);
    }

    fn slot(&mut self, second: u64) -> &mut Second {
        if self.ring.is_empty() {
            self.ring = vec![Second { second: u64::MAX, ..Second::default() }; SECONDS as usize];
        }
        // Fill the seconds since the last call: nothing happened in them, and the connections stayed open.
        if second > self.last {
            let connections = self.connections;
            for passed in (self.last + 1).max(second.saturating_sub(SECONDS - 1))..=second {
                self.ring[(passed % SECONDS) as usize] = Second { second: passed, connections, ..Second::default() };
            }
            self.last = second;
        }
        let slot = &mut self.ring[(second % SECONDS) as usize];
        if slot.second != second {
            *slot = Second { second, connections: self.connections, ..Second::default() };
        }
        slot
    }

    /// Returns the counters of one second.
    pub fn at(&mut self, second: u64) -> Second {
        self.slot(self.last.max(second));
        let slot = self.ring[(second % SECONDS) as usize];
        if slot.second == second { slot } else { Second { second, ..Second::default() } }
    }

    /// Returns the last five minutes up to `now`, oldest first. A younger process returns fewer seconds.
    pub fn all(&mut self, now: u64) -> Vec<Second> {
        (now.saturating_sub(SECONDS - 1)..=now).map(|second| self.at(second)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_minutes_are_kept_and_silence_keeps_its_connections() {
        let mut rates = Rates::default();
        rates.connections(0, 2);
        rates.request(0, false);
        rates.request(3, true);
        rates.bytes(3, 5, 7);
        let all = rates.all(4);
        assert_eq!(all.iter().map(|second| second.requests).collect::<Vec<_>>(), [1, 0, 0, 1, 0]);
        assert_eq!(all.iter().map(|second| second.connections).collect::<Vec<_>>(), [2; 5]);
        assert_eq!((all[3].errors, all[3].up, all[3].down), (1, 5, 7));
        rates.connections(10_000, -1);
        let all = rates.all(10_001);
        assert_eq!(all.len(), SECONDS as usize);
        assert!(all.iter().all(|second| second.requests == 0), "what is older is forgotten");
        assert_eq!((all[297].connections, all[298].connections, all[299].connections), (2, 2, 1));
        assert_eq!((all[0].second, all[299].second), (9_702, 10_001));
    }
}
