//! State that the tasks and streams of an upgraded connection share: the queues of both directions, and the answers of
//! the node's workers.

use std::{
    collections::{HashMap, VecDeque},
    task::Waker,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::{
    ends::{Local, Remote},
    liveness::Signs,
    phase::Phase,
    pings::Pings,
    report::classify,
};
use crate::{
    backend::StreamFault,
    wire::spdy::{
        frame,
        session::{LANES, Pair, Session},
    },
};

/// Bytes that a stream may have in its outbox before its writer waits.
pub const OUTBOX: usize = 256 * 1024;

/// Maximum bytes of one write to the socket: large enough to be cheap, small enough that a new request waits little.
const BATCH: usize = 128 * 1024;

/// A stream that has moved this many bytes is a transfer: other streams would wait for it.
const TRANSFER: u64 = 1024 * 1024;

/// Maximum bytes kept of an error text. Those of nodes are under 300 bytes.
pub const LONGEST_REPORT: usize = 4 * 1024;

/// Maximum data in one frame. A node's queue is limited in frames, not in bytes, so a path with a long round trip (5 ms
/// or more) needs long frames. On a slow link (answers take 500 ms or more), other streams would wait behind long
/// frames.
const FRAME: usize = frame::LONGEST_DATA;
const FRAME_ON_LONG_WAY: usize = OUTBOX;
const LONG_WAY: Duration = Duration::from_millis(5);
const SLOW_LINK: Duration = Duration::from_millis(500);

/// Frame length per millisecond of round trip. Half of a window (18 frames) is always in flight; with this length it
/// carries 125 kB in each millisecond: 1 Gbit/s.
const FRAME_PER_MILLISECOND: usize = 7 * 1024;

/// A window of 36 such frames is 36 MiB, which the node may have to buffer for a pod that stops reading.
const LONGEST_FRAME: usize = 1024 * 1024;

/// A lane that has not answered for this long gets no new streams if another lane has room.
const SLOW_LANE: Duration = Duration::from_millis(100);

/// After a sleep longer than this, a laptop may have lost its connections.
const SLEPT: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct State {
    pub session: Session,
    /// Control frames to send before any data.
    pub control: BytesMut,
    /// Streams by our own number. A stream gets its SPDY ids when it is announced to the node.
    pub streams: HashMap<u64, Stream>,
    last_stream: u64,
    /// Stream number by the id of its data stream.
    by_id: HashMap<u32, u64>,
    /// Streams that are not announced to the node yet, in turn.
    unopened: VecDeque<u64>,
    /// Number of streams on each lane.
    on_lane: [usize; LANES],
    /// Streams with bytes or a FIN to send, in turn.
    pub ready: VecDeque<u64>,
    /// Number of streams that are transfers.
    pub transfers: usize,
    pub queued: usize,
    pub phase: Phase,
    /// A task is about to wake the writer.
    pub is_soon_woken: bool,
    /// When a stream was last opened or dropped.
    pub last_open: Option<Instant>,
    pub pings: Pings,
    /// When a write last began to wait for the socket, or went on after a wait; and whether one waits now.
    pub outbound: Option<Instant>,
    pub is_write_waiting: bool,
    /// When bytes last arrived, by both clocks: the timers' clock stands still while a laptop sleeps.
    pub heard: Option<(Instant, SystemTime)>,
}

/// One forwarded connection.
#[derive(Default)]
pub struct Stream {
    /// `None`: the stream is not announced to the node yet.
    pub pair: Option<Pair>,
    pub inbox: VecDeque<Bytes>,
    pub inbox_bytes: usize,
    pub reader: Option<Waker>,
    pub remote: Remote,
    pub report: Vec<u8>,
    pub outbox: BytesMut,
    pub writer: Option<Waker>,
    pub local: Local,
    pub is_ready: bool,
    /// Its handle is gone: received bytes are discarded.
    pub dropped: bool,
    /// Bytes were sent, and none came back since: the pod may not have read them.
    pub unanswered: bool,
    /// Bytes put into frames.
    sent: u64,
    pub last_received: Option<Instant>,
    /// When its reader last took bytes.
    pub last_taken: Option<Instant>,
    transferred: u64,
}

/// Returns the maximum length of a frame. `shortest`, `latest`: times to the answers of PINGs. `is_proven`: the lane
/// has taken a whole window of frames, so its pod reads.
fn longest_frame(shortest: Option<Duration>, latest: Option<Duration>, is_proven: bool) -> usize {
    let (Some(shortest), Some(latest)) = (shortest, latest) else { return FRAME };
    if shortest < LONG_WAY || latest >= SLOW_LINK {
        return FRAME;
    }
    // If an answer takes much longer than the shortest one, bytes queue in front of the link: it is full.
    let is_full = latest > shortest + shortest / 4;
    if is_full || !is_proven {
        return FRAME_ON_LONG_WAY;
    }
    (FRAME_PER_MILLISECOND * shortest.as_millis() as usize).clamp(FRAME_ON_LONG_WAY, LONGEST_FRAME)
}

impl State {
    pub fn fault(&self) -> Option<&StreamFault> {
        self.phase.fault()
    }

    /// Adds a stream. The next [`fill`](Self::fill) that finds a lane with room announces it to the node.
    pub fn add_stream(&mut self) -> u64 {
        self.last_stream += 1;
        self.streams.insert(self.last_stream, Stream::default());
        self.unopened.push_back(self.last_stream);
        self.last_open = Some(Instant::now());
        self.last_stream
    }

    pub fn remove_stream(&mut self, number: u64) {
        let Some(stream) = self.streams.remove(&number) else { return };
        self.transfers -= usize::from(stream.is_transfer());
        if let Some(pair) = stream.pair {
            self.by_id.remove(&pair.data);
            self.on_lane[pair.lane()] -= 1;
        }
    }

    /// Holds back the FIN of a stream. Returns the reader that has to set its timer.
    pub fn hold(&mut self, number: u64) -> Option<Waker> {
        let stream = self.streams.get_mut(&number)?;
        stream.local.hold();
        stream.reader.take()
    }

    /// Lets the FIN of a stream go to the node.
    pub fn release(&mut self, number: u64) {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.local.release();
        }
    }

    /// Returns the number of the stream that an id belongs to, and whether the id is that of its data stream.
    pub fn stream_of(&self, id: u32) -> Option<(u64, bool)> {
        let of_data = self.by_id.get(&id).map(|number| (*number, true));
        of_data.or_else(|| self.by_id.get(&Pair::of_error(id).data).map(|number| (*number, false)))
    }

    /// Returns whether [`fill`](Self::fill) has work to do.
    pub fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.unopened.is_empty()
    }

    /// Appends the next bytes to send: control frames, frames that open streams, then one frame of each ready stream in
    /// turn, as far as their lanes have room.
    pub fn fill(&mut self, batch: &mut BytesMut, port: u16) {
        let before = batch.len();
        batch.unsplit(self.control.split());
        self.open_streams(batch, port);
        self.send_data(batch);
        self.pings.put(batch.len() - before);
    }

    fn send_data(&mut self, batch: &mut BytesMut) {
        let mut held_up = 0;
        while batch.len() < BATCH && held_up < self.ready.len() {
            let Some(number) = self.ready.pop_front() else { break };
            let Some(stream) = self.streams.get_mut(&number) else { continue };
            let Some(pair) = stream.pair else { continue };
            if !self.session.has_room(pair.data) {
                self.ready.push_back(number);
                held_up += 1;
                continue;
            }
            held_up = 0;
            let is_proven = self.session.has_taken_a_window(pair.data);
            let longest = longest_frame(self.pings.shortest(), self.pings.latest(), is_proven);
            stream.is_ready = false;
            let length = stream.outbox.len().min(longest);
            let is_last = length == stream.outbox.len() && stream.local == Local::Queued;
            if length > 0 || is_last {
                frame::put_data_header(batch, pair.data, length, is_last);
                batch.extend_from_slice(&stream.outbox.split_to(length));
                self.session.sent(pair.data);
            }
            stream.count(length, &mut self.transfers);
            stream.sent += length as u64;
            if is_last {
                stream.local = Local::Sent;
            }
            if !stream.outbox.is_empty() {
                stream.is_ready = true;
                self.ready.push_back(number);
            } else {
                // Free the buffer: with thousands of connections, most of the memory is that of idle ones.
                stream.outbox = BytesMut::new();
            }
            if let Some(waker) = stream.writer.take() {
                waker.wake();
            }
            self.ask_where_due(batch);
        }
    }

    /// Announces waiting streams to the node, each on the best lane, while a lane has room.
    fn open_streams(&mut self, batch: &mut BytesMut, port: u16) {
        while let Some(number) = self.unopened.front().copied() {
            let Some(lane) = self.best_lane(Instant::now()) else { return };
            self.unopened.pop_front();
            // It may be dropped already.
            let Some(stream) = self.streams.get_mut(&number) else { continue };
            let Some(pair) = self.session.open(port, lane, batch) else {
                self.phase.retire();
                stream.remote.reset();
                stream.wake();
                continue;
            };
            stream.pair = Some(pair);
            self.by_id.insert(pair.data, number);
            self.on_lane[lane] += 1;
            if !stream.outbox.is_empty() || stream.local == Local::Queued {
                stream.is_ready = true;
                self.ready.push_back(number);
            }
            self.ask_where_due(batch);
        }
    }

    fn ask_where_due(&mut self, batch: &mut BytesMut) {
        if self.session.wants_to_ask() {
            self.ping(batch.len());
            batch.unsplit(self.control.split());
        }
    }

    /// Returns whether an upload may still be in the queue of its lane, although its pod has answered. If a body fits
    /// into one frame, a pod that answers has read it.
    pub fn is_on_its_way(&self, number: u64) -> bool {
        let upload = self.streams.get(&number).filter(|stream| stream.sent > FRAME as u64);
        let pair = upload.and_then(|stream| stream.pair);
        pair.is_some_and(|pair| self.session.unacknowledged(pair.lane()) > 0)
    }

    /// Returns whether bytes of a stream may not have reached its pod yet.
    pub fn has_more_to_send(&self, number: u64) -> bool {
        self.streams.get(&number).is_some_and(|stream| !stream.outbox.is_empty()) || self.is_on_its_way(number)
    }

    /// Pings all workers of the node. Until all have answered, the connection should take no new stream: bytes for a
    /// pair whose handler has gone block a worker of some nodes for good (containerd up to 1.6.21).
    pub fn doubt_lanes(&mut self) {
        if !self.phase.takes_streams() {
            return;
        }
        // PINGs in flight may be older than the bytes in doubt, so ask again, unless every lane already owes the answer
        // to a probe.
        let all_owe = (0..LANES).all(|lane| self.pings.silent_since(lane).is_some());
        if self.session.can_ask() && !(self.phase.is_probing() && all_owe) {
            self.ping(0);
        }
        self.phase.suspect();
    }

    pub fn has_only_slow_lanes(&self) -> bool {
        let now = Instant::now();
        (0..LANES).all(|lane| self.is_slow(lane, now))
    }

    /// Returns the lane with the fewest streams, of those with room, preferring lanes that answer.
    fn best_lane(&self, now: Instant) -> Option<usize> {
        (0..LANES)
            .filter(|lane| self.session.has_room_to_open(*lane))
            .min_by_key(|lane| (self.is_slow(*lane, now), self.on_lane[*lane], self.session.unacknowledged(*lane)))
    }

    fn is_slow(&self, lane: usize, now: Instant) -> bool {
        self.pings.silent_since(lane).is_some_and(|since| now.duration_since(since) >= SLOW_LANE)
    }

    /// Returns how many bytes a stream may have in its outbox before its writer waits: enough for a frame.
    pub fn outbox(&self, number: u64) -> usize {
        let pair = self.streams.get(&number).and_then(|stream| stream.pair);
        let is_proven = pair.is_some_and(|pair| self.session.has_taken_a_window(pair.data));
        longest_frame(self.pings.shortest(), self.pings.latest(), is_proven).max(OUTBOX)
    }

    /// Queues a PING for each lane. `ahead`: bytes of the present batch that leave before it.
    pub fn ping(&mut self, ahead: usize) {
        self.pings.queued(self.session.asks(), ahead + self.control.len(), Instant::now());
        self.session.ping_every_lane(&mut self.control);
    }

    /// Returns the signs of life of the connection. `inbound`: when bytes last arrived.
    pub fn signs(&self, inbound: Instant) -> Signs {
        Signs {
            inbound,
            outbound: self.outbound,
            is_write_waiting: self.is_write_waiting,
            is_pinged: self.pings.are_out(),
            unanswered: self.pings.unanswered(),
            overtaken: self.pings.overtaken(),
            answer_time: self.pings.latest(),
            on_their_way: self.pings.on_their_way(),
            is_probing: self.phase.is_probing(),
            is_retired: !self.phase.takes_streams(),
        }
    }

    /// Records that a write begins to wait for the socket, or goes on after a wait.
    pub fn write_waits(&mut self, waits: bool) {
        self.is_write_waiting = waits;
        self.outbound = Some(Instant::now());
    }

    /// Returns whether the laptop has slept since bytes last arrived: more time has passed than the timers know of.
    pub fn has_slept(&self) -> bool {
        self.heard.is_some_and(|(at, wall)| {
            wall.elapsed().is_ok_and(|by_wall| by_wall > at.elapsed() + SLEPT) && self.fault().is_none()
        })
    }

    /// Handles a PING. Returns whether a lane can go on.
    pub fn on_ping(&mut self, id: u32, now: Instant) -> bool {
        let Some((lane, ask)) = self.session.on_ping(id, &mut self.control) else { return false };
        self.pings.answered(lane, ask, now);
        if !self.pings.are_out() {
            self.phase.clear();
        }
        self.has_work()
    }
}

impl Stream {
    /// Returns whether the stream has moved so much data that other streams would wait for it.
    pub fn is_transfer(&self) -> bool {
        self.transferred >= TRANSFER
    }

    /// Returns whether the stream has received much data.
    pub fn is_download(&self) -> bool {
        self.transferred - self.sent >= TRANSFER
    }

    /// Counts moved bytes. `transfers`: the number of streams that are transfers.
    pub fn count(&mut self, bytes: usize, transfers: &mut usize) {
        let was_transfer = self.is_transfer();
        self.transferred += bytes as u64;
        *transfers += usize::from(self.is_transfer() && !was_transfer);
    }

    pub fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    /// Returns whether the pod has sent bytes since our last byte.
    pub fn is_answered(&self) -> bool {
        self.last_received.is_some() && !self.unanswered
    }

    /// Returns whether a client may wait for the pod's bytes.
    pub fn has_client(&self) -> bool {
        !self.dropped && (self.local != Local::Held || self.unanswered || self.inbox_bytes > 0)
    }

    /// Returns whether no more bytes can arrive: the error stream ends after the data stream.
    pub fn is_over(&self) -> bool {
        self.remote.is_over()
    }

    /// Returns how the stream has ended, once its inbox is empty. `None`: it has not.
    pub fn end(&self, port: u16) -> Option<Result<(), StreamFault>> {
        if !self.is_over() {
            return None;
        }
        Some(match (self.report.is_empty(), self.remote == Remote::Reset) {
            (false, _) => Err(classify(&String::from_utf8_lossy(&self.report), port)),
            (true, true) => Err(StreamFault::Reset),
            (true, false) => Ok(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_as_long_as_the_path_needs() {
        let longest = |shortest: u64, latest: u64, is_proven: bool| {
            let millis = |time| Some(Duration::from_millis(time));
            longest_frame(millis(shortest), millis(latest), is_proven) / 1024
        };
        assert_eq!(longest_frame(None, None, true), FRAME, "nothing is known");
        assert_eq!(longest(1, 1, true), 64, "a cluster on this machine");
        assert_eq!(longest(20, 20, true), 256);
        assert_eq!(longest(50, 55, true), 350);
        assert_eq!(longest(100, 100, true), 700);
        assert_eq!(longest(200, 200, true), 1024);
        assert_eq!(longest(400, 450, true), 1024, "what a node holds is bounded");
        assert_eq!(longest(200, 200, false), 256, "whether the pod reads is not known");
        assert_eq!(longest(100, 150, true), 256, "the link is full");
        assert_eq!(longest(100, 600, true), 64, "others would wait behind long frames");
    }

    #[test]
    fn a_window_carries_a_gigabit_up_to_150_ms() {
        for round_trip in [20, 50, 100, 150] {
            let time = Some(Duration::from_millis(round_trip));
            // Half of a window is acknowledged while the other half is in flight.
            let in_flight = longest_frame(time, time, true) * 18;
            assert!(in_flight as u64 >= 125_000 * round_trip.min(150), "{round_trip} ms: {in_flight}");
        }
    }
}
