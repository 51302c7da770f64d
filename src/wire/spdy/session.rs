//! What a client keeps of one SPDY/3.1 connection to a node, without I/O: stream ids, header compression, PINGs.
//!
//! A forwarded connection is a pair of streams, one for errors and one for data. The node serves its streams with
//! five workers, chosen by stream id mod 5 (a *lane*); a worker that waits for a slow pod holds up its whole lane. So
//! the pair sits on one lane, and pairs follow each other over the lanes. The k-th PING of a connection goes to lane
//! k mod 5, behind what is queued there: five PINGs ask all five workers.

use bytes::BytesMut;

use super::{frame, headers::Encoder};

/// How many workers a node has for the frames of one connection.
pub const LANES: u32 = 5;

/// Between the error and the data stream of a pair: the next odd id on the same lane.
const PAIR_GAP: u32 = 2 * LANES;

/// Between pairs: odd ids stay odd and increasing, and the next pair is on another lane.
const NEXT_PAIR: u32 = PAIR_GAP + 2;

/// Ids have 31 bits. What is left above is for the pairs that are being opened.
const LAST_ID: u32 = 0x7fff_ff00;

/// The ids of a forwarded connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    pub error: u32,
    pub data: u32,
}

impl Pair {
    /// Returns the pair that a stream id belongs to, whichever of the two it is.
    pub fn of(id: u32) -> Option<Self> {
        // The error ids are 1, 13, 25, ..., the data ids 11, 23, 35, ...
        match id % NEXT_PAIR {
            1 => Some(Self { error: id, data: id + PAIR_GAP }),
            11 => Some(Self { error: id - PAIR_GAP, data: id }),
            _ => None,
        }
    }
}

/// The client's state of one connection.
#[derive(Debug)]
pub struct Session {
    next_error_id: u32,
    headers: Encoder,
    pings_sent: u32,
    pings_answered: u32,
}

impl Default for Session {
    fn default() -> Self {
        Self { next_error_id: 1, headers: Encoder::default(), pings_sent: 0, pings_answered: 0 }
    }
}

impl Session {
    /// Appends what opens a forwarded connection to `port` of the pod: SYN_STREAM of the error stream, its end (we
    /// never write to it), SYN_STREAM of the data stream. The first data may follow at once.
    ///
    /// Returns None when the connection has no ids left.
    pub fn open(&mut self, port: u16, out: &mut BytesMut) -> Option<Pair> {
        if self.is_exhausted() {
            return None;
        }
        let pair = Pair { error: self.next_error_id, data: self.next_error_id + PAIR_GAP };
        self.next_error_id += NEXT_PAIR;
        let (port, request) = (port.to_string(), pair.error.to_string());
        self.syn(pair.error, "error", &port, &request, out);
        frame::put_data_header(out, pair.error, 0, true);
        self.syn(pair.data, "data", &port, &request, out);
        Some(pair)
    }

    fn syn(&mut self, id: u32, kind: &str, port: &str, request: &str, out: &mut BytesMut) {
        let mut block = BytesMut::new();
        self.headers.encode(&[("streamtype", kind), ("port", port), ("requestid", request)], &mut block);
        frame::put_syn_stream(out, id, &block);
    }

    /// Returns whether no pair can be opened any more.
    pub fn is_exhausted(&self) -> bool {
        self.next_error_id > LAST_ID
    }

    /// Appends one PING for each lane.
    pub fn ping_every_lane(&mut self, out: &mut BytesMut) {
        for _ in 0..LANES {
            self.pings_sent += 1;
            // The ids of a client's PINGs are odd (SPDY draft 3.1, section 2.6.5).
            frame::put_ping(out, self.pings_sent.wrapping_mul(2).wrapping_sub(1));
        }
    }

    /// Takes a PING of the server's: the answer to one of ours, or a question to be answered.
    pub fn on_ping(&mut self, id: u32, out: &mut BytesMut) {
        match id % 2 {
            1 => self.pings_answered = self.pings_answered.saturating_add(1).min(self.pings_sent),
            _ => frame::put_ping(out, id),
        }
    }

    /// Returns how many PINGs are on their way.
    pub fn pings_unanswered(&self) -> u32 {
        self.pings_sent - self.pings_answered
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use bytes::Bytes;

    use super::*;
    use crate::wire::spdy::{
        frame::{Frame, Parser},
        headers::Decoder,
    };

    #[test]
    fn a_pair_shares_a_lane_and_pairs_take_turns_over_the_lanes() {
        let (mut session, mut out) = (Session::default(), BytesMut::new());
        let pairs: Vec<Pair> = (0..50).map(|_| session.open(80, &mut out).unwrap()).collect();
        for five in pairs.chunks(5) {
            let lanes: HashSet<u32> = five.iter().map(|pair| pair.data % LANES).collect();
            assert_eq!(lanes.len(), 5);
        }
        let mut last = 0;
        for pair in pairs {
            assert_eq!(pair.error % LANES, pair.data % LANES);
            assert!(pair.error % 2 == 1 && pair.error > last && pair.data > pair.error);
            assert_eq!(
                (Pair::of(pair.error), Pair::of(pair.data), Pair::of(pair.data + 1)),
                (Some(pair), Some(pair), None)
            );
            last = pair.data;
        }
    }

    #[test]
    fn a_pair_opens_with_what_a_node_expects() {
        let (mut session, mut out) = (Session::default(), BytesMut::new());
        let pair = session.open(5432, &mut out).unwrap();
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
        let mut session = Session { next_error_id: LAST_ID - 5, ..Session::default() };
        assert!(session.open(80, &mut BytesMut::new()).is_some());
        assert_eq!(session.open(80, &mut BytesMut::new()), None);
    }

    #[test]
    fn answers_are_counted_and_questions_answered() {
        let (mut session, mut out) = (Session::default(), BytesMut::new());
        session.ping_every_lane(&mut out);
        assert_eq!(session.pings_unanswered(), 5);
        out.clear();
        session.on_ping(1, &mut out);
        assert!(out.is_empty());
        assert_eq!(session.pings_unanswered(), 4);
        session.on_ping(2, &mut out);
        assert_eq!(Parser::default().next(&mut out).unwrap(), Some(Frame::Ping { id: 2 }));
    }
}
