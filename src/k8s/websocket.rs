//! Client end of a WebSocket to an API server.

pub mod byte_stream;
pub mod channels;
mod masks;

use std::io;

use bytes::{Bytes, BytesMut};

use self::masks::Masks;
pub(super) use self::masks::random_bytes;
use super::framed::Incoming;
use crate::wire::websocket::{Event, Opcode, Parser, Role, put_frame};

/// The only close code of a complete conversation (RFC 6455, section 7.4.1).
const NORMAL_CLOSURE: u16 = 1000;

/// WebSocket frames with uninterpreted payload.
struct Frames {
    parser: Parser,
    masks: Masks,
}

impl Frames {
    fn new() -> Self {
        Self { parser: Parser::new(Role::Client), masks: Masks::new() }
    }

    /// Returns the next frame. An item is a piece of a message, and whether it is the last piece.
    fn next(&mut self, input: &mut BytesMut) -> io::Result<Option<Incoming<(Bytes, bool)>>> {
        let is_within = self.parser.is_within_message();
        let event = self.parser.next(input).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(event.map(|event| match event {
            Event::Data { payload, last } => Incoming::Item((payload, last)),
            Event::Ping(payload) => Incoming::Ping(payload),
            Event::Pong => Incoming::Pong,
            Event::Close(Some(NORMAL_CLOSURE)) if !is_within => Incoming::Close(Ok(())),
            Event::Close(Some(NORMAL_CLOSURE)) => {
                Incoming::Close(Err("the WebSocket was closed within a message".to_owned()))
            }
            Event::Close(Some(code)) => Incoming::Close(Err(format!("the WebSocket was closed with code {code}"))),
            Event::Close(None) => Incoming::Close(Err("the WebSocket was closed without a code".to_owned())),
        }))
    }

    fn put(&mut self, opcode: Opcode, payload: &[u8], out: &mut BytesMut) {
        put_frame(out, opcode, payload, Some(self.masks.next_key()));
    }

    fn put_ping(&mut self, number: u32, out: &mut BytesMut) {
        self.put(Opcode::Ping, &number.to_be_bytes(), out);
    }

    fn put_close(&mut self, out: &mut BytesMut) {
        self.put(Opcode::Close, &NORMAL_CLOSURE.to_be_bytes(), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_end_is_code_1000_between_messages() {
        let begun = b"\x02\x03abc";
        for (before, close, is_clean) in [
            (&b""[..], &b"\x88\x02\x03\xe8"[..], true),
            (b"\x82\x01x", b"\x88\x02\x03\xe8", true),
            (b"", b"\x88\x05\x03\xe8bye", true),
            (begun, b"\x88\x02\x03\xe8", false),
            (b"", b"\x88\x00", false),
            (b"", b"\x88\x02\x03\xe9", false),
            (b"", b"\x88\x02\x03\xf3", false),
        ] {
            let mut frames = Frames::new();
            let mut input = BytesMut::from(&[before, close].concat()[..]);
            let end = loop {
                match frames.next(&mut input).unwrap().unwrap() {
                    Incoming::Item(_) => {}
                    Incoming::Close(end) => break end,
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!(end.is_ok(), is_clean, "{before:?} {close:?}: {end:?}");
        }
    }
}
