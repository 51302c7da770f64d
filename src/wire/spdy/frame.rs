//! SPDY/3.1 frames as Kubernetes speaks them.
//!
//! ```text
//! control:  1 | version 3 (15) | type (16) | flags (8) | length (24) | payload
//! data:     0 | stream id (31)             | flags (8) | length (24) | payload
//! ```
//!
//! Source: SPDY Protocol, draft 3.1, section 2.2. Only five control frames matter here. The parser skips SETTINGS and
//! WINDOW_UPDATE, as the servers do (there is no flow control), and all others.

use bytes::{Buf, Bytes, BytesMut};

/// Maximum length of a control frame. Those of Kubernetes are under 300 bytes.
pub const LONGEST_CONTROL: usize = 64 * 1024;

/// Maximum length of a DATA frame that adit sends. The length field allows 16 MiB, but other streams wait for a long frame.
pub const LONGEST_DATA: usize = 64 * 1024;

/// Length of the header before every payload.
pub const HEADER: usize = 8;

/// Status codes of RST_STREAM.
pub mod reset {
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const REFUSED_STREAM: u32 = 3;
    pub const CANCEL: u32 = 5;
}

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FLAG_FIN: u8 = 1;

/// A frame, or a piece of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// `headers`: the compressed block, see [`super::headers`].
    SynStream {
        id: u32,
        fin: bool,
        headers: Bytes,
    },
    SynReply {
        id: u32,
        fin: bool,
        headers: Bytes,
    },
    /// A piece of a DATA frame, as it arrives; `fin` is on the last piece. Empty only if the frame is.
    Data {
        id: u32,
        payload: Bytes,
        fin: bool,
    },
    RstStream {
        id: u32,
        status: u32,
    },
    Ping {
        id: u32,
    },
    GoAway {
        last: u32,
    },
}

/// Why bytes are not SPDY/3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a control frame of version {0}, not 3")]
    Version(u16),
    #[error("a control frame of {0} bytes")]
    TooLong(usize),
    #[error("a control frame of type {0} with {1} bytes")]
    Malformed(u16, usize),
}

/// Splits a byte stream into frames. Returns DATA in pieces, as it arrives.
#[derive(Debug, Default)]
pub struct Parser {
    /// DATA frame in progress: stream id, whether it ends the stream, bytes left.
    data: Option<(u32, bool, usize)>,
    /// Bytes left of a control frame that is skipped.
    skip: usize,
}

impl Parser {
    /// Returns whether a DATA frame is incomplete.
    pub fn is_within_data(&self) -> bool {
        self.data.is_some()
    }

    /// Takes the next frame from `input`. `None`: it is incomplete.
    ///
    /// # Errors
    /// The rest of the connection cannot be parsed.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some((id, fin, left)) = self.data {
                if input.is_empty() {
                    return Ok(None);
                }
                let payload = input.split_to(left.min(input.len())).freeze();
                let left = left - payload.len();
                self.data = (left > 0).then_some((id, fin, left));
                return Ok(Some(Frame::Data { id, payload, fin: fin && left == 0 }));
            }
            if self.skip > 0 {
                let passed = self.skip.min(input.len());
                input.advance(passed);
                self.skip -= passed;
                if self.skip > 0 {
                    return Ok(None);
                }
            }
            let Some(head) = input.first_chunk::<HEADER>() else { return Ok(None) };
            let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let fin = head[4] & FLAG_FIN != 0;
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
            if word >> 31 == 0 {
                input.advance(HEADER);
                if length == 0 {
                    return Ok(Some(Frame::Data { id: word, payload: Bytes::new(), fin }));
                }
                self.data = Some((word, fin, length));
                continue;
            }
            let (version, kind) = ((word >> 16) as u16 & 0x7fff, word as u16);
            if version != 3 {
                return Err(FrameError::Version(version));
            }
            if !matches!(kind, SYN_STREAM | SYN_REPLY | RST_STREAM | PING | GOAWAY) {
                input.advance(HEADER);
                self.skip = length;
                continue;
            }
            if length > LONGEST_CONTROL {
                return Err(FrameError::TooLong(length));
            }
            if input.len() < HEADER + length {
                return Ok(None);
            }
            input.advance(HEADER);
            let payload = input.split_to(length).freeze();
            return control(kind, fin, payload).map(Some).ok_or(FrameError::Malformed(kind, length));
        }
    }
}

fn control(kind: u16, fin: bool, mut payload: Bytes) -> Option<Frame> {
    let id = payload.try_get_u32().ok()?;
    Some(match kind {
        SYN_STREAM => {
            // Associated stream, priority and slot: always 0 here.
            payload.try_get_u32().ok()?;
            payload.try_get_u16().ok()?;
            Frame::SynStream { id: id & 0x7fff_ffff, fin, headers: payload }
        }
        SYN_REPLY => Frame::SynReply { id: id & 0x7fff_ffff, fin, headers: payload },
        RST_STREAM => Frame::RstStream { id: id & 0x7fff_ffff, status: payload.try_get_u32().ok()? },
        PING => Frame::Ping { id },
        _ => Frame::GoAway { last: id & 0x7fff_ffff },
    })
}

/// Appends the header of a DATA frame. The caller appends the `length` bytes of payload.
pub fn put_data_header(out: &mut BytesMut, id: u32, length: usize, fin: bool) {
    debug_assert!(length < 1 << 24, "the length field has 24 bits");
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&((length as u32) | u32::from(fin) << 24).to_be_bytes());
}

pub fn put_syn_stream(out: &mut BytesMut, id: u32, headers: &[u8]) {
    put_control(out, SYN_STREAM, 10 + headers.len());
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&[0; 6]);
    out.extend_from_slice(headers);
}

pub fn put_syn_reply(out: &mut BytesMut, id: u32, headers: &[u8]) {
    put_control(out, SYN_REPLY, 4 + headers.len());
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(headers);
}

pub fn put_rst_stream(out: &mut BytesMut, id: u32, status: u32) {
    put_control(out, RST_STREAM, 8);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&status.to_be_bytes());
}

pub fn put_ping(out: &mut BytesMut, id: u32) {
    put_control(out, PING, 4);
    out.extend_from_slice(&id.to_be_bytes());
}

pub fn put_goaway(out: &mut BytesMut, last: u32) {
    put_control(out, GOAWAY, 8);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
}

fn put_control(out: &mut BytesMut, kind: u16, length: usize) {
    out.extend_from_slice(&(0x8003_0000 | u32::from(kind)).to_be_bytes());
    out.extend_from_slice(&(length as u32).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(parser: &mut Parser, input: &mut BytesMut) -> Vec<Frame> {
        std::iter::from_fn(|| parser.next(input).unwrap()).collect()
    }

    /// Joins the pieces of DATA frames, so that different splits compare equal.
    fn joined(frames: Vec<Frame>) -> Vec<Frame> {
        let mut whole: Vec<Frame> = Vec::new();
        for frame in frames {
            match (whole.last_mut(), frame) {
                (Some(Frame::Data { id, payload, fin }), Frame::Data { id: next, payload: more, fin: end })
                    if *id == next && !*fin =>
                {
                    *payload = [&payload[..], &more[..]].concat().into();
                    *fin = end;
                }
                (_, frame) => whole.push(frame),
            }
        }
        whole
    }

    fn message() -> (BytesMut, Vec<Frame>) {
        let mut out = BytesMut::new();
        put_syn_stream(&mut out, 1, b"abc");
        put_data_header(&mut out, 1, 0, true);
        put_syn_reply(&mut out, 1, b"");
        put_data_header(&mut out, 11, 300, true);
        out.extend_from_slice(&[5; 300]);
        put_control(&mut out, 4, 12); // SETTINGS
        out.extend_from_slice(&[0; 12]);
        put_rst_stream(&mut out, 11, reset::CANCEL);
        put_ping(&mut out, 7);
        put_goaway(&mut out, 11);
        let frames = vec![
            Frame::SynStream { id: 1, fin: false, headers: Bytes::from_static(b"abc") },
            Frame::Data { id: 1, payload: Bytes::new(), fin: true },
            Frame::SynReply { id: 1, fin: false, headers: Bytes::new() },
            Frame::Data { id: 11, payload: vec![5; 300].into(), fin: true },
            Frame::RstStream { id: 11, status: 5 },
            Frame::Ping { id: 7 },
            Frame::GoAway { last: 11 },
        ];
        (out, frames)
    }

    #[test]
    fn frames_are_the_same_however_the_bytes_are_split() {
        let (bytes, frames) = message();
        assert_eq!(joined(all(&mut Parser::default(), &mut bytes.clone())), frames);
        for cut in 0..bytes.len() {
            let (mut parser, mut input) = (Parser::default(), BytesMut::from(&bytes[..cut]));
            let mut found = all(&mut parser, &mut input);
            input.extend_from_slice(&bytes[cut..]);
            found.extend(all(&mut parser, &mut input));
            assert_eq!(joined(found), frames, "cut at {cut}");
        }
        let (mut parser, mut input, mut found) = (Parser::default(), BytesMut::new(), Vec::new());
        for byte in bytes {
            input.extend_from_slice(&[byte]);
            found.extend(all(&mut parser, &mut input));
        }
        assert_eq!(joined(found), frames);
    }

    #[test]
    fn the_first_bytes_of_an_upgraded_connection_are_as_captured() {
        // SYN_STREAM of stream 1 as kubectl 1.32 sends it, up to the header block.
        let mut out = BytesMut::new();
        put_syn_stream(&mut out, 1, &[]);
        assert_eq!(&out[..], b"\x80\x03\x00\x01\x00\x00\x00\x0a\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00");
    }

    #[test]
    fn what_is_not_spdy_3_is_an_error() {
        let next = |bytes: &[u8]| Parser::default().next(&mut BytesMut::from(bytes));
        assert_eq!(next(b"\x80\x02\x00\x01\x00\x00\x00\x00"), Err(FrameError::Version(2)));
        assert_eq!(next(b"\x80\x03\x00\x01\x00\xff\xff\xff"), Err(FrameError::TooLong(0xff_ffff)));
        assert_eq!(next(b"\x80\x03\x00\x03\x00\x00\x00\x04\x00\x00\x00\x01"), Err(FrameError::Malformed(3, 4)));
    }
}
