//! Decides whether an upgraded connection is alive, as a pure function of received and sent bytes and of open PINGs.
//!
//! Progress in either direction is life: bytes arrive, or a write that waited for the socket goes on. A write that the
//! socket takes at once proves nothing, because the socket's buffer takes bytes for a dead connection, too.
//!
//! | state | verdict |
//! |---|---|
//! | no bytes for 10 s, and no PING is out | [`Ping`](Verdict::Ping) |
//! | a lane is silent for 1 s, and another has answered the same PINGs | [`Retire`](Verdict::Retire): a worker hangs |
//! | a suspected connection has answered no PING for 5 s | [`Retire`](Verdict::Retire) |
//! | no progress for 15 s, and a PING is out for 5 s or a write waits | [`Dead`](Verdict::Dead) |
//!
//! On a slow link, an answer waits behind all bytes sent before its PING, in the buffers of this machine and of
//! proxies. So the last two rows allow the time that these bytes need at [`SLOWEST`].

use std::time::Duration;

use tokio::time::Instant;

/// Silence after which a connection gets a PING. Load balancers cut silent connections after 60 s to 4 min, and a
/// laptop that slept has lost its connections.
const QUIET: Duration = Duration::from_secs(10);

/// Time to answer a PING on an idle link. A round trip takes less than a second even by satellite.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Time for all lanes to answer a PING. Healthy nodes take a millisecond; a worker that hangs does not answer on its lane.
pub const PROBE: Duration = Duration::from_secs(1);

/// Bytes per second of the slowest link on which transfers make sense: 128 kbit/s.
const SLOWEST: u64 = 16 * 1024;

/// Longest time allowed for bytes in flight. The windows of all lanes (11 MB in frames of 64 KiB) need it at 1.5
/// Mbit/s, and the buffers of a slower link hold less.
const LONGEST_ALLOWANCE: Duration = Duration::from_secs(60);

/// The signs of life of a connection at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Signs {
    /// When bytes last arrived.
    pub inbound: Instant,
    /// When a write last began to wait for the socket, or went on after a wait.
    pub outbound: Option<Instant>,
    /// A write waits for the socket now.
    pub is_write_waiting: bool,
    /// Some lane owes an answer to a PING.
    pub is_pinged: bool,
    /// When the oldest round of PINGs without any answer was written.
    pub unanswered: Option<Instant>,
    /// Since when a lane is silent that another lane has overtaken.
    pub overtaken: Option<Instant>,
    /// Time that the last answered round of PINGs took.
    pub answer_time: Option<Duration>,
    /// Bytes that may not have arrived yet.
    pub on_their_way: u64,
    /// The connection is suspected to be broken.
    pub is_probing: bool,
    /// The connection takes no new streams any more.
    pub is_retired: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do before this time.
    Fine(Instant),
    Ping,
    /// The connection should take no new streams.
    Retire,
    Dead,
}

impl Signs {
    /// Returns what to do about the connection now.
    pub fn judge(&self, now: Instant) -> Verdict {
        let mut look_again = now + QUIET;
        let mut is_due = |at: Instant| {
            look_again = look_again.min(at);
            at <= now
        };
        let allowance = Duration::from_secs(self.on_their_way / SLOWEST).min(LONGEST_ALLOWANCE);
        let progress = self.outbound.map_or(self.inbound, |outbound| outbound.max(self.inbound));
        let probe = self.answer_time.map_or(PROBE, |time| PROBE.max(2 * time));
        if !self.is_retired {
            if self.overtaken.is_some_and(|since| is_due(since + probe)) {
                return Verdict::Retire;
            }
            let unanswered = self.unanswered.filter(|_| self.is_probing);
            if unanswered.is_some_and(|since| is_due(since.max(progress) + ANSWER_WITHIN + allowance)) {
                return Verdict::Retire;
            }
        }
        if self.unanswered.is_some() || self.is_write_waiting {
            let quiet = progress + QUIET;
            if is_due(self.unanswered.map_or(quiet, |since| since.max(quiet)) + ANSWER_WITHIN + allowance) {
                return Verdict::Dead;
            }
        } else if !self.is_pinged && is_due(self.inbound + QUIET) {
            return Verdict::Ping;
        }
        Verdict::Fine(look_again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    /// Times are in milliseconds from the start.
    struct Row {
        name: &'static str,
        now: u64,
        inbound: u64,
        outbound: Option<u64>,
        waiting: bool,
        pinged: bool,
        unanswered: Option<u64>,
        overtaken: Option<u64>,
        answer_time: Option<u64>,
        bytes: u64,
        probing: bool,
        retired: bool,
    }

    const SILENT: Row = Row {
        name: "",
        now: 0,
        inbound: 0,
        outbound: None,
        waiting: false,
        pinged: false,
        unanswered: None,
        overtaken: None,
        answer_time: None,
        bytes: 0,
        probing: false,
        retired: false,
    };

    const PINGED: Row = Row { pinged: true, unanswered: Some(10_000), ..SILENT };

    /// A verdict, with the time at which to look again.
    #[derive(Debug, PartialEq)]
    enum Wanted {
        Fine(u64),
        Ping,
        Retire,
        Dead,
    }
    use Wanted::{Dead, Fine, Ping, Retire};

    #[test]
    fn progress_of_either_direction_is_life() {
        let start = Instant::now() + Duration::from_secs(3600);
        let at = |time: u64| start + Duration::from_millis(time);
        for (row, wanted) in [
            (Row { name: "new", ..SILENT }, Fine(10_000)),
            (Row { name: "quiet", now: 9_999, ..SILENT }, Fine(10_000)),
            (Row { name: "quiet for long", now: 10_000, ..SILENT }, Ping),
            (Row { name: "a retired one is pinged too", now: 10_000, retired: true, ..SILENT }, Ping),
            (Row { name: "pinged", now: 10_000, ..PINGED }, Fine(15_000)),
            (Row { name: "no answer", now: 14_999, ..PINGED }, Fine(15_000)),
            (Row { name: "no answer for long", now: 15_000, ..PINGED }, Dead),
            (Row { name: "no answer for long, retired", now: 15_000, retired: true, ..PINGED }, Dead),
            (Row { name: "another byte came", now: 15_000, inbound: 12_000, ..PINGED }, Fine(25_000)),
            (Row { name: "the PING waits in the batch", now: 60_000, pinged: true, ..SILENT }, Fine(70_000)),
            (Row { name: "pinged before it was silent", now: 14_000, unanswered: Some(9_000), ..PINGED }, Fine(15_000)),
            (Row { name: "after a sleep", now: 61_000, unanswered: Some(60_000), ..PINGED }, Fine(65_000)),
            (Row { name: "dead after a sleep", now: 65_000, unanswered: Some(60_000), ..PINGED }, Dead),
            // Our direction.
            (Row { name: "an upload goes on", now: 40_000, outbound: Some(39_000), ..PINGED }, Fine(50_000)),
            (
                Row {
                    name: "an upload goes on, not pinged",
                    now: 40_000,
                    outbound: Some(39_000),
                    waiting: true,
                    ..SILENT
                },
                Fine(50_000),
            ),
            (Row { name: "an upload has stopped", now: 54_000, outbound: Some(39_000), waiting: true, ..SILENT }, Dead),
            (Row { name: "its tail drains", now: 60_000, outbound: Some(30_000), bytes: MB, ..PINGED }, Fine(70_000)),
            (
                Row { name: "for a minute more", now: 104_999, outbound: Some(30_000), bytes: MB, ..PINGED },
                Fine(105_000),
            ),
            (Row { name: "not for ever", now: 105_000, outbound: Some(30_000), bytes: MB, ..PINGED }, Dead),
            (
                Row { name: "whatever is on its way", now: 105_000, outbound: Some(30_000), bytes: 99 * MB, ..PINGED },
                Dead,
            ),
            (Row { name: "a little is no excuse", now: 15_000, bytes: 16_000, ..PINGED }, Dead),
            // Lanes.
            (
                Row {
                    name: "a lane is late",
                    now: 5_500,
                    inbound: 5_000,
                    pinged: true,
                    overtaken: Some(5_000),
                    ..SILENT
                },
                Fine(6_000),
            ),
            (
                Row {
                    name: "a lane hangs",
                    now: 6_000,
                    inbound: 5_990,
                    pinged: true,
                    overtaken: Some(5_000),
                    ..SILENT
                },
                Retire,
            ),
            (
                Row {
                    name: "a lane hangs, and that is known",
                    now: 6_000,
                    inbound: 5_990,
                    pinged: true,
                    overtaken: Some(5_000),
                    retired: true,
                    ..SILENT
                },
                Fine(16_000),
            ),
            (
                Row {
                    name: "a lane is late on a slow link",
                    now: 8_900,
                    inbound: 8_900,
                    pinged: true,
                    overtaken: Some(5_000),
                    answer_time: Some(2_000),
                    ..SILENT
                },
                Fine(9_000),
            ),
            (
                Row {
                    name: "a download is ahead of all answers",
                    now: 40_000,
                    inbound: 39_990,
                    pinged: true,
                    unanswered: Some(20_000),
                    ..SILENT
                },
                Fine(50_000),
            ),
            // Under suspicion.
            (Row { name: "probed", now: 12_000, probing: true, ..PINGED }, Fine(15_000)),
            (
                Row {
                    name: "probed in vain",
                    now: 13_000,
                    inbound: 7_000,
                    unanswered: Some(8_000),
                    probing: true,
                    ..PINGED
                },
                Retire,
            ),
            (
                Row {
                    name: "probed behind an upload",
                    now: 13_000,
                    inbound: 7_000,
                    unanswered: Some(8_000),
                    probing: true,
                    bytes: 64 * 1024,
                    ..PINGED
                },
                Fine(17_000),
            ),
        ] {
            let signs = Signs {
                inbound: at(row.inbound),
                outbound: row.outbound.map(at),
                is_write_waiting: row.waiting,
                is_pinged: row.pinged,
                unanswered: row.unanswered.map(at),
                overtaken: row.overtaken.map(at),
                answer_time: row.answer_time.map(Duration::from_millis),
                on_their_way: row.bytes,
                is_probing: row.probing,
                is_retired: row.retired,
            };
            let verdict = match signs.judge(at(row.now)) {
                Verdict::Fine(again) => Fine(u64::try_from((again - start).as_millis()).unwrap()),
                Verdict::Ping => Ping,
                Verdict::Retire => Retire,
                Verdict::Dead => Dead,
            };
            assert_eq!(verdict, wanted, "{}", row.name);
        }
    }
}
