//! Client state of one SPDY/3.1 connection to a node, without I/O: stream ids, header compression, and the number of
//! frames that the node has not taken yet.
//!
//! A forwarded connection is a pair of streams, one for errors and one for data. The node serves the streams of a
//! connection with five workers, each with a queue of 50 frames. The stream id mod 5 selects the worker (its *lane*). A
//! worker that waits for a slow pod blocks its whole lane, and a full queue blocks the whole connection.
//!
//! There is no flow control on the wire. But the k-th PING of a connection passes through lane k mod 5, after the
//! frames queued there, so its answer acknowledges these frames. Therefore both streams of a pair use the same lane,
//! adit sends five PINGs every few frames, and a lane is never more than [`WINDOW`] frames ahead of its
//! acknowledgements. Its queue never fills, and a pod that does not read blocks no other lane.

use std::collections::VecDeque;

use bytes::BytesMut;

use super::{frame, headers::Encoder};

/// Number of workers that a node has for one connection.
pub const LANES: usize = 5;

/// Distance between the ids of a pair's error and data stream: the data stream has the next odd id on the same lane.
const PAIR_GAP: u32 = 2 * LANES as u32;

/// Last id at which a pair may be opened. Ids have 31 bits; the rest is a margin for the ids of that pair.
const LAST_ID: u32 = 0x7fff_0000;

/// Maximum number of unacknowledged data frames on a lane. The rest of the node's queue of 50 is for PINGs and for the
/// frames that open and end streams.
pub const WINDOW: u32 = 36;

/// Number of frames that open a pair.
const OPENING: u32 = 3;

/// After this many frames on one lane, every lane gets a PING.
const ASK_AFTER: u32 = 18;

/// Maximum number of PINGs in a lane's queue. A lane with so many is blocked, and more would fill it.
const MOST_QUESTIONS: u32 = 6;

/// Stream ids of a forwarded connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    pub error: u32,
    pub data: u32,
}

impl Pair {
    /// Returns the pair with this data stream.
    pub fn of_data(id: u32) -> Self {
        Self { error: id.saturating_sub(PAIR_GAP), data: id }
    }

    /// Returns the pair with this error stream.
    pub fn of_error(id: u32) -> Self {
        Self { error: id, data: id.saturating_add(PAIR_GAP) }
    }

    pub fn lane(self) -> usize {
        lane_of(self.data)
    }
}

/// Returns the number of the worker that serves a stream.
pub fn lane_of(id: u32) -> usize {
    id as usize % LANES
}

/// Client's view of one worker of the node.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    sent: u32,
    acknowledged: u32,
    /// Frames sent at the time of the last PING.
    asked: u32,
    questions: u32,
}

/// A PING without an answer.
#[derive(Clone, Copy, Debug)]
struct Question {
    id: u32,
    lane: usize,
    /// Frames sent on the lane before it.
    sent: u32,
}

/// Client state of one connection.
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
    /// Appends the frames that open a forwarded connection to `port` of the pod on a lane: SYN_STREAM of the error
    /// stream, its FIN (adit never writes to it), SYN_STREAM of the data stream. Data may follow at once.
    ///
    /// Returns `None` if the connection has no ids left.
    pub fn open(&mut self, port: u16, lane: usize, out: &mut BytesMut) -> Option<Pair> {
        if self.is_exhausted() {
            return None;
        }
        // Ids are odd and increase, with gaps allowed: one of the next five odd ids is on the lane.
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

    /// Returns whether no more pair can be opened.
    pub fn is_exhausted(&self) -> bool {
        self.next_id > LAST_ID
    }

    /// Returns whether a frame of this stream may be sent now.
    ///
    /// A blocked worker limits the number of open PINGs. Then a lane that has answered all its PINGs goes on without
    /// more of them.
    pub fn has_room(&self, id: u32) -> bool {
        let lane = &self.lanes[lane_of(id)];
        lane.unacknowledged() < WINDOW || (lane.questions == 0 && !self.can_ask())
    }

    /// Returns whether the frames that open a stream, and a data frame after them, may be sent on a lane now.
    pub fn has_room_to_open(&self, lane: usize) -> bool {
        let lane = &self.lanes[lane];
        lane.unacknowledged() + OPENING <= WINDOW || (lane.questions == 0 && !self.can_ask())
    }

    /// Counts a data frame of a stream.
    pub fn sent(&mut self, id: u32) {
        let lane = &mut self.lanes[lane_of(id)];
        lane.sent = lane.sent.wrapping_add(1);
    }

    /// Returns whether the lane of a stream has taken a whole window of frames since the connection began.
    pub fn has_taken_a_window(&self, id: u32) -> bool {
        self.lanes[lane_of(id)].acknowledged >= WINDOW
    }

    /// Returns the number of frames on a lane that the node may not have taken.
    pub fn unacknowledged(&self, lane: usize) -> u32 {
        self.lanes[lane].unacknowledged()
    }

    /// Returns whether enough frames were sent for a new round of PINGs.
    pub fn wants_to_ask(&self) -> bool {
        self.can_ask() && self.lanes.iter().any(|lane| lane.sent.wrapping_sub(lane.asked) >= ASK_AFTER)
    }

    /// Returns whether every lane has room for another PING.
    pub fn can_ask(&self) -> bool {
        self.lanes.iter().all(|lane| lane.questions < MOST_QUESTIONS)
    }

    /// Appends one PING for each lane. The node assigns PINGs to lanes by counting, so adit must send no other frame
    /// that it counts.
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

    /// Returns the number of complete rounds of PINGs so far.
    pub fn asks(&self) -> u32 {
        self.pings_sent / LANES as u32
    }

    /// Handles a PING from the server. Appends the answer to the server's own PING. If it answers one of ours, returns
    /// its lane and the number of its round, as [`asks`](Self::asks) counts.
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

    /// Returns the number of unanswered PINGs on a lane.
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

    /// Returns the ids of the PINGs in `out`.
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
