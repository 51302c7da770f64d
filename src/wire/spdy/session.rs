//! Client state of one SPDY/3.1 connection to a node, without I/O: stream ids, header compression, and bytes that the
//! node has not taken yet.
//!
//! A forwarded connection is a pair of streams, one for errors and one for data. The node serves its streams with
//! five workers, chosen by stream id mod 5 (a *lane*), each with a queue of 50 frames; a worker that waits for a slow
//! pod holds up its whole lane, and a full queue the whole connection. There is no flow control on the wire. But the
//! k-th PING of a connection goes through lane k mod 5, behind what is queued there, so that its answer acknowledges
//! the frames before it. So a pair sits on one lane, five PINGs are sent for every few frames, and a lane gets no more
//! than [`WINDOW`] frames ahead of its acknowledgements: its queue never fills, and one pod that does not read stops
//! nobody on the other lanes.

use std::collections::VecDeque;

use bytes::BytesMut;

use super::{frame, headers::Encoder};

/// How many workers a node has for the frames of one connection.
pub const LANES: usize = 5;

/// Between the error and the data stream of a pair: the next odd id on the same lane.
const PAIR_GAP: u32 = 2 * LANES as u32;

/// Ids have 31 bits. The rest above is for pairs that are about to be opened.
const LAST_ID: u32 = 0x7fff_0000;

/// How many frames of data a lane may be ahead of what was acknowledged. The rest of the node's queue of 50 is for the
/// frames that open and end streams, and for PINGs.
pub const WINDOW: u32 = 36;

/// How many frames open a pair.
const OPENING: u32 = 3;

/// After this many frames on one lane, every lane gets a ping.
const ASK_AFTER: u32 = 18;

/// A lane with this many PINGs in its queue is held up. More of them would fill it.
const MOST_QUESTIONS: u32 = 6;

/// The ids of a forwarded connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    pub error: u32,
    pub data: u32,
}

impl Pair {
    /// Returns the pair whose data stream this is.
    pub fn of_data(id: u32) -> Self {
        Self { error: id.saturating_sub(PAIR_GAP), data: id }
    }

    /// Returns the pair whose error stream this is.
    pub fn of_error(id: u32) -> Self {
        Self { error: id, data: id.saturating_add(PAIR_GAP) }
    }

    pub fn lane(self) -> usize {
        lane_of(self.data)
    }
}

/// Returns the worker that a node has for a stream.
pub fn lane_of(id: u32) -> usize {
    id as usize % LANES
}

/// One of the node's workers, as far as a client can know.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    sent: u32,
    acknowledged: u32,
    /// Sent bytes at the time of the last ping.
    asked: u32,
    questions: u32,
}

/// A PING that has not come back.
#[derive(Clone, Copy, Debug)]
struct Question {
    id: u32,
    lane: usize,
    /// Bytes sent on the lane before it.
    sent: u32,
}

/// The client's state of one connection.
#[derive(Debug)]
pub struct Session {
    next_id: u32,
    headers: Encoder,
    lanes: [Lane; LANES],
    questions: VecDeque<Question>,
    pings_sent: u32,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            next_id: 1,
            headers: Encoder::default(),
            lanes: [Lane::default(); LANES],
            questions: VecDeque::new(),
            pings_sent: 0,
        }
    }
}

impl Session {
    /// Appends what opens a forwarded connection to `port` of the pod on a lane: SYN_STREAM of the error stream, its
    /// end (we never write to it), SYN_STREAM of the data stream. The first data may follow at once.
    ///
    /// Returns None when the connection has no ids left.
    pub fn open(&mut self, port: u16, lane: usize, out: &mut BytesMut) -> Option<Pair> {
        if self.is_exhausted() {
            return None;
        }
        // Ids are odd and increase, and may skip: one of the next five odd ones is on the lane.
        let error = (0..LANES as u32).map(|skip| self.next_id + 2 * skip).find(|id| lane_of(*id) == lane % LANES)?;
        let pair = Pair::of_error(error);
        self.next_id = pair.data + 2;
        let (port, request) = (port.to_string(), pair.error.to_string());
        self.syn(pair.error, "error", &port, &request, out);
        frame::put_data_header(out, pair.error, 0, true);
        self.syn(pair.data, "data", &port, &request, out);
        let lane = &mut self.lanes[pair.lane()];
        lane.sent = lane.sent.wrapping_add(OPENING);
        Some(pair)
    }

    fn syn(&mut self, id: u32, kind: &str, port: &str, request: &str, out: &mut BytesMut) {
        let mut block = BytesMut::new();
        self.headers.encode(&[("streamtype", kind), ("port", port), ("requestid", request)], &mut block);
        frame::put_syn_stream(out, id, &block);
    }

    /// Returns whether no pair can be opened any more.
    pub fn is_exhausted(&self) -> bool {
        self.next_id > LAST_ID
    }

    /// Returns whether a frame of this stream may be sent now.
    ///
    /// A stalled worker limits the number of open pings. Then lanes that have
    /// answered everything go on without being asked.
    pub fn has_room(&self, id: u32) -> bool {
        let lane = &self.lanes[lane_of(id)];
        lane.unacknowledged() < WINDOW || (lane.questions == 0 && !self.can_ask())
    }

    /// Returns whether what opens a stream may be sent on a lane now, and a frame of data with it.
    pub fn has_room_to_open(&self, lane: usize) -> bool {
        let lane = &self.lanes[lane];
        lane.unacknowledged() + OPENING <= WINDOW || (lane.questions == 0 && !self.can_ask())
    }

    /// Takes note of a frame of a stream that is sent.
    pub fn sent(&mut self, id: u32) {
        let lane = &mut self.lanes[lane_of(id)];
        lane.sent = lane.sent.wrapping_add(1);
    }

    /// Returns whether the lane of a stream has taken a whole window of frames since the connection began.
    pub fn has_taken_a_window(&self, id: u32) -> bool {
        self.lanes[lane_of(id)].acknowledged >= WINDOW
    }

    /// Returns how many frames on a lane the node may not have taken.
    pub fn unacknowledged(&self, lane: usize) -> u32 {
        self.lanes[lane].unacknowledged()
    }

    /// Returns whether so much was sent that the lanes should be asked.
    pub fn wants_to_ask(&self) -> bool {
        self.can_ask() && self.lanes.iter().any(|lane| lane.sent.wrapping_sub(lane.asked) >= ASK_AFTER)
    }

    /// Returns whether there is room for more PINGs in the queue of every lane.
    pub fn can_ask(&self) -> bool {
        self.lanes.iter().all(|lane| lane.questions < MOST_QUESTIONS)
    }

    /// Appends one PING for each lane. The node counts them: nothing else may be sent that it gives to lanes in turn.
    pub fn ping_every_lane(&mut self, out: &mut BytesMut) {
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            self.pings_sent = self.pings_sent.wrapping_add(1);
            // The ids of a client's PINGs are odd (SPDY draft 3.1, section 2.6.5).
            let id = self.pings_sent.wrapping_mul(2).wrapping_sub(1);
            frame::put_ping(out, id);
            self.questions.push_back(Question { id, lane: number, sent: lane.sent });
            lane.asked = lane.sent;
            lane.questions += 1;
        }
    }

    /// Returns how often all lanes have been asked.
    pub fn asks(&self) -> u32 {
        self.pings_sent / LANES as u32
    }

    /// Takes a PING of the server's: a question to be answered, or the answer to one of ours: then its lane is returned, and
    /// what [`asks`](Self::asks) was before it was asked.
    pub fn on_ping(&mut self, id: u32, out: &mut BytesMut) -> Option<(usize, u32)> {
        if id.is_multiple_of(2) {
            frame::put_ping(out, id);
            return None;
        }
        let at = self.questions.iter().position(|question| question.id == id)?;
        let question = self.questions.remove(at)?;
        let lane = &mut self.lanes[question.lane];
        lane.acknowledged = question.sent;
        lane.questions = lane.questions.saturating_sub(1);
        Some((question.lane, id / 2 / LANES as u32))
    }

    /// Returns how many PINGs are on their way through a lane.
    pub fn questions(&self, lane: usize) -> u32 {
        self.lanes[lane].questions
    }
}

impl Lane {
    fn unacknowledged(&self) -> u32 {
        self.sent.wrapping_sub(self.acknowledged)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::wire::spdy::{
        frame::{Frame, Parser},
        headers::Decoder,
    };

    #[test]
    fn a_pair_shares_the_lane_that_was_asked_for_and_ids_increase() {
        let (mut session, mut out) = (Session::default(), BytesMut::new());
        let mut last = 0;
        for number in 0..200 {
            let lane = number * 7 % LANES;
            let pair = session.open(80, lane, &mut out).unwrap();
            assert_eq!((lane_of(pair.error), lane_of(pair.data)), (lane, lane));
            assert!(pair.error % 2 == 1 && pair.error > last && pair.data > pair.error);
            assert_eq!((Pair::of_error(pair.error), Pair::of_data(pair.data)), (pair, pair));
            last = pair.data;
        }
    }

    #[test]
    fn a_pair_opens_with_what_a_node_expects() {
        let (mut session, mut out) = (Session::default(), BytesMut::new());
        let pair = session.open(5432, 1, &mut out).unwrap();
        let (mut parser, mut headers) = (Parser::default(), Decoder::default());
        let mut frames = Vec::new();
        while let Some(frame) = parser.next(&mut out).unwrap() {
            frames.push(match frame {
                Frame::SynStream { id, headers: block, .. } => (id, headers.decode(&block).unwrap()),
                Frame::Data { id, payload, fin: true } if payload == Bytes::new() => (id, vec![]),
                other => panic!("{other:?}"),
            });
        }
        let pairs = |kind: &str| {
            [("streamtype", kind), ("port", "5432"), ("requestid", "1")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec()
        };
        assert_eq!(frames, [(pair.error, pairs("error")), (pair.error, vec![]), (pair.data, pairs("data"))]);
    }

    #[test]
    fn ids_end_before_they_overflow() {
        let mut session = Session { next_id: LAST_ID - 5, ..Session::default() };
        assert!(session.open(80, 0, &mut BytesMut::new()).is_some());
        assert_eq!(session.open(80, 0, &mut BytesMut::new()), None);
    }

    /// The ids of the PINGs in some bytes.
    fn pings(out: &mut BytesMut) -> Vec<u32> {
        let (mut parser, mut ids) = (Parser::default(), Vec::new());
        while let Some(frame) = parser.next(out).unwrap() {
            if let Frame::Ping { id } = frame {
                ids.push(id);
            }
        }
        ids
    }

    #[test]
    fn an_answer_acknowledges_what_its_lane_was_sent_before_it() {
        let (mut session, mut out) = (Session::default(), BytesMut::new());
        let pair = session.open(80, 2, &mut out).unwrap();
        (0..10).for_each(|_| session.sent(pair.data));
        out.clear();
        session.ping_every_lane(&mut out);
        session.sent(pair.data);
        let ids = pings(&mut out);
        assert_eq!((ids.len(), session.unacknowledged(2)), (LANES, 14));
        assert_eq!(session.on_ping(ids[0], &mut out), Some((0, 0)));
        assert_eq!(session.unacknowledged(2), 14, "another lane's answer says nothing of this one");
        assert_eq!(session.on_ping(ids[2], &mut out), Some((2, 0)));
        assert_eq!((session.unacknowledged(2), session.questions(2)), (1, 0));
        assert_eq!(session.on_ping(ids[2], &mut out), None, "once");
        assert!(!session.has_taken_a_window(pair.data));
        (0..WINDOW).for_each(|_| session.sent(pair.data));
        out.clear();
        session.ping_every_lane(&mut out);
        let later = pings(&mut out);
        session.on_ping(later[2], &mut BytesMut::new());
        assert!(session.has_taken_a_window(pair.data) && !session.has_taken_a_window(pair.data + 2));
        session.on_ping(2, &mut out);
        assert_eq!(pings(&mut out), [2], "a question of the server's is answered");
    }

    #[test]
    fn a_lane_that_does_not_answer_gets_no_more_than_its_queue_holds() {
        let (mut session, mut out) = (Session::default(), BytesMut::new());
        let (stuck, fine) = (session.open(80, 0, &mut out).unwrap(), session.open(80, 1, &mut out).unwrap());
        let (mut in_queue, mut through) = (3, 0);
        for _ in 0..100_000 {
            for pair in [stuck, fine] {
                if session.has_room(pair.data) {
                    session.sent(pair.data);
                    if pair == stuck { in_queue += 1 } else { through += 1 }
                }
            }
            if session.wants_to_ask() {
                out.clear();
                session.ping_every_lane(&mut out);
                in_queue += 1;
                for (lane, id) in pings(&mut out).into_iter().enumerate().filter(|(lane, _)| *lane != 0) {
                    assert_eq!(session.on_ping(id, &mut BytesMut::new()).map(|(lane, _)| lane), Some(lane));
                }
            }
        }
        assert!((WINDOW..50).contains(&in_queue), "{in_queue}");
        assert!(through > 99_000, "the other lane goes on: {through}");
    }
}
