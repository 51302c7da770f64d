//! State that the tasks and streams of an upgraded connection share: queues in both directions,
//! and which of the node's workers answer.

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

/// How much a stream may have on its way out before its writer waits.
pub const OUTBOX: usize = 256 * 1024;

/// Most bytes of one write to the socket: large enough to be cheap, small enough that a new request waits little.
const BATCH: usize = 128 * 1024;

/// A stream that has moved this much is a transfer, beside which others would wait.
const TRANSFER: u64 = 1024 * 1024;

/// Error texts of nodes are under 300 bytes.
pub const LONGEST_REPORT: usize = 4 * 1024;

/// The most data in one frame. A node's queue is limited by frames and not by bytes. So a long path needs long frames to be
/// filled. On a slow link, where PINGs wait behind data, others would wait behind long frames.
const FRAME: usize = frame::LONGEST_DATA;
const FRAME_ON_LONG_WAY: usize = OUTBOX;
const LONG_WAY: Duration = Duration::from_millis(5);
const SLOW_LINK: Duration = Duration::from_millis(500);

/// With frames of this length for each millisecond of round trip, the half of a window that is always in flight
/// (18 frames) carries 125 kB in each millisecond: 1 Gbit/s.
const FRAME_PER_MILLISECOND: usize = 7 * 1024;

/// 36 of these are 36 MiB, which the node of a pod that stops reading may have to hold.
const LONGEST_FRAME: usize = 1024 * 1024;

/// New streams are kept off a lane that has not answered for this long.
const SLOW_LANE: Duration = Duration::from_millis(100);

/// A laptop that slept for longer than this may have lost its connections.
const SLEPT: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct State {
    pub session: Session,
    /// Control frames to send, before any data.
    pub control: BytesMut,
    /// By our own number: a stream gets its ids when the node learns of it.
    pub streams: HashMap<u64, Stream>,
    last_stream: u64,
    /// The stream that the id of a data stream stands for.
    by_id: HashMap<u32, u64>,
    /// Streams that the node is not told of yet, in turn.
    unopened: VecDeque<u64>,
    /// How many streams each lane has.
    on_lane: [usize; LANES],
    /// Streams with something to send, in turn.
    pub ready: VecDeque<u64>,
    /// How many streams are transfers.
    pub transfers: usize,
    pub queued: usize,
    pub phase: Phase,
    /// The writer is woken in a moment, by a task of its own.
    pub is_soon_woken: bool,
    /// When a stream was last opened or ended.
    pub last_open: Option<Instant>,
    pub pings: Pings,
    /// When a write last began to wait for the socket, or went on after it had waited; and whether one waits now.
    pub outbound: Option<Instant>,
    pub is_write_waiting: bool,
    /// When something last came, by both clocks: the one that timers use stands still while a laptop sleeps.
    pub heard: Option<(Instant, SystemTime)>,
}

/// One forwarded connection.
#[derive(Default)]
pub struct Stream {
    /// None: the node is not told of it yet.
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
    /// Nobody reads any more: what comes is discarded.
    pub dropped: bool,
    /// Bytes were sent and none came back since: the pod may not have read them.
    pub unanswered: bool,
    /// How many bytes were put into frames.
    sent: u64,
    pub last_received: Option<Instant>,
    /// When its reader last took something.
    pub last_taken: Option<Instant>,
    transferred: u64,
}

/// Returns how long a frame may be. `shortest`, `latest`: the times in which PINGs were answered. `is_proven`: the lane has
/// taken a window of frames, so that its pod reads.
fn longest_frame(shortest: Option<Duration>, latest: Option<Duration>, is_proven: bool) -> usize {
    let (Some(shortest), Some(latest)) = (shortest, latest) else { return FRAME };
    if shortest < LONG_WAY || latest >= SLOW_LINK {
        return FRAME;
    }
    // If pings take much longer than the shortest one, bytes queue in front of the link: it is full.
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

    /// Takes a new stream; the next [`fill`](Self::fill) that finds a lane with room announces it to the node.
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

    /// Holds the end of our direction of a stream back; returns the reader that has to see to it.
    pub fn hold(&mut self, number: u64) -> Option<Waker> {
        let stream = self.streams.get_mut(&number)?;
        stream.local.hold();
        stream.reader.take()
    }

    /// Lets the end of our direction go to the node.
    pub fn release(&mut self, number: u64) {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.local.release();
        }
    }

    /// Returns the stream that an id stands for, and whether it is the id of its data.
    pub fn stream_of(&self, id: u32) -> Option<(u64, bool)> {
        let of_data = self.by_id.get(&id).map(|number| (*number, true));
        of_data.or_else(|| self.by_id.get(&Pair::of_error(id).data).map(|number| (*number, false)))
    }

    /// Returns whether there is something for [`fill`](Self::fill) to do.
    pub fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.unopened.is_empty()
    }

    /// Appends what is to be sent next: control frames, what opens streams, then one frame of each ready stream in turn,
    /// as far as their lanes have room.
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
                // With thousands of connections, the memory of the idle ones decides.
                stream.outbox = BytesMut::new();
            }
            if let Some(waker) = stream.writer.take() {
                waker.wake();
            }
            self.ask_where_due(batch);
        }
    }

    /// Tells the node of streams that wait for it, each on the best lane, while there is one with room.
    fn open_streams(&mut self, batch: &mut BytesMut, port: u16) {
        while let Some(number) = self.unopened.front().copied() {
            let Some(lane) = self.best_lane(Instant::now()) else { return };
            self.unopened.pop_front();
            // It may have left already.
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

    /// Returns whether an upload may be in the queue of its lane, though its pod has answered. A body within one frame has
    /// been read by a pod that answers.
    pub fn is_on_its_way(&self, number: u64) -> bool {
        let upload = self.streams.get(&number).filter(|stream| stream.sent > FRAME as u64);
        let pair = upload.and_then(|stream| stream.pair);
        pair.is_some_and(|pair| self.session.unacknowledged(pair.lane()) > 0)
    }

    /// Returns whether bytes of a stream have not reached its pod yet.
    pub fn has_more_to_send(&self, number: u64) -> bool {
        self.streams.get(&number).is_some_and(|stream| !stream.outbox.is_empty()) || self.is_on_its_way(number)
    }

    /// Asks every worker of the node for an answer. Until all have come the connection should take no new stream: bytes for
    /// a pair whose handler has gone hold up a worker of some nodes for good (containerd up to 1.6.21).
    pub fn doubt_lanes(&mut self) {
        if !self.phase.takes_streams() {
            return;
        }
        // Bytes in flight may be older than the cause.
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

    /// Returns the lane with the fewest streams, of those with room, and if possible of those that answer.
    fn best_lane(&self, now: Instant) -> Option<usize> {
        (0..LANES)
            .filter(|lane| self.session.has_room_to_open(*lane))
            .min_by_key(|lane| (self.is_slow(*lane, now), self.on_lane[*lane], self.session.unacknowledged(*lane)))
    }

    fn is_slow(&self, lane: usize, now: Instant) -> bool {
        self.pings.silent_since(lane).is_some_and(|since| now.duration_since(since) >= SLOW_LANE)
    }

    /// Returns how much a stream may have on its way out before its writer waits: enough for a frame.
    pub fn outbox(&self, number: u64) -> usize {
        let pair = self.streams.get(&number).and_then(|stream| stream.pair);
        let is_proven = pair.is_some_and(|pair| self.session.has_taken_a_window(pair.data));
        longest_frame(self.pings.shortest(), self.pings.latest(), is_proven).max(OUTBOX)
    }

    /// Queues a PING for each lane. `ahead`: how many bytes of the batch that is being filled leave before it.
    pub fn ping(&mut self, ahead: usize) {
        self.pings.queued(self.session.asks(), ahead + self.control.len(), Instant::now());
        self.session.ping_every_lane(&mut self.control);
    }

    /// Returns what is known of the connection's life. `inbound`: when bytes last came.
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

    /// Takes note that a write begins to wait for the socket, or goes on after it has waited.
    pub fn write_waits(&mut self, waits: bool) {
        self.is_write_waiting = waits;
        self.outbound = Some(Instant::now());
    }

    /// Returns whether more time has passed since something came than the timers know of.
    pub fn has_slept(&self) -> bool {
        self.heard.is_some_and(|(at, wall)| {
            wall.elapsed().is_ok_and(|by_wall| by_wall > at.elapsed() + SLEPT) && self.fault().is_none()
        })
    }

    /// Takes a PING; returns whether it lets a lane go on.
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
    /// Returns whether others would wait beside it: it has moved much data.
    pub fn is_transfer(&self) -> bool {
        self.transferred >= TRANSFER
    }

    /// Returns whether much data has come on it.
    pub fn is_download(&self) -> bool {
        self.transferred - self.sent >= TRANSFER
    }

    /// Takes note that bytes have gone or come; `transfers`: how many of the streams are.
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

    /// Returns whether the pod has sent something since our last byte.
    pub fn is_answered(&self) -> bool {
        self.last_received.is_some() && !self.unanswered
    }

    /// Returns whether somebody may wait for what comes.
    pub fn has_client(&self) -> bool {
        !self.dropped && (self.local != Local::Held || self.unanswered || self.inbox_bytes > 0)
    }

    /// Returns whether nothing more can come: the error stream ends after the data stream.
    pub fn is_over(&self) -> bool {
        self.remote.is_over()
    }

    /// Returns how the stream has ended, once its inbox is empty. None: it has not.
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
