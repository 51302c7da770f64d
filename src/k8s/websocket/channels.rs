//! `v4.channel.k8s.io` and `v5.channel.k8s.io`: messages that start with a channel number.

use std::io;

use bytes::{Bytes, BytesMut};

use super::Frames;
use crate::{
    k8s::framed::{Codec, Incoming},
    wire::websocket::Opcode,
};

/// Channel number that closes the channel in the payload (`v5.channel.k8s.io`).
const CLOSE: u8 = 255;

/// WebSocket frames with channels.
pub struct Channels {
    frames: Frames,
    /// Channel of the current message. `None`: its first byte has not arrived.
    channel: Option<u8>,
}

/// A piece of a message.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    pub channel: u8,
    pub payload: Bytes,
    /// Whether the message ends with this piece.
    pub is_last: bool,
}

impl Channels {
    #[expect(clippy::new_without_default, reason = "it takes random numbers")]
    pub fn new() -> Self {
        Self { frames: Frames::new(), channel: None }
    }

    /// Appends a message.
    pub fn put(&mut self, channel: u8, payload: &[u8], out: &mut BytesMut) {
        let mut message = BytesMut::with_capacity(1 + payload.len());
        message.extend_from_slice(&[channel]);
        message.extend_from_slice(payload);
        self.frames.put(Opcode::Binary, &message, out);
    }

    /// Appends the close of a channel (`v5.channel.k8s.io`).
    pub fn put_end(&mut self, channel: u8, out: &mut BytesMut) {
        self.put(CLOSE, &[channel], out);
    }
}

impl Codec for Channels {
    type Item = Piece;

    fn next(&mut self, input: &mut BytesMut) -> io::Result<Option<Incoming<Piece>>> {
        loop {
            let (mut payload, is_last) = match self.frames.next(input)? {
                Some(Incoming::Item(piece)) => piece,
                Some(Incoming::Ping(payload)) => return Ok(Some(Incoming::Ping(payload))),
                Some(Incoming::Pong) => return Ok(Some(Incoming::Pong)),
                Some(Incoming::Close(end)) => return Ok(Some(Incoming::Close(end))),
                None => return Ok(None),
            };
            let channel = match self.channel {
                Some(channel) => channel,
                None if payload.is_empty() => continue,
                None => payload.split_to(1)[0],
            };
            self.channel = (!is_last).then_some(channel);
            return Ok(Some(Incoming::Item(Piece { channel, payload, is_last })));
        }
    }

    fn put_ping(&mut self, number: u32, out: &mut BytesMut) {
        self.frames.put_ping(number, out);
    }

    fn put_pong(&mut self, payload: &[u8], out: &mut BytesMut) {
        self.frames.put(Opcode::Pong, payload, out);
    }

    fn put_close(&mut self, out: &mut BytesMut) {
        self.frames.put_close(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_told_apart_by_its_first_byte_however_it_is_cut() {
        // "\x01ab" in three fragments, one of them empty; an empty message; "\x02c".
        let bytes = b"\x02\x00\x00\x02\x01a\x80\x01b\x82\x00\x82\x02\x02c";
        for step in 1..=bytes.len() {
            let (mut channels, mut input, mut said) = (Channels::new(), BytesMut::new(), Vec::new());
            for piece in bytes.chunks(step) {
                input.extend_from_slice(piece);
                while let Some(incoming) = channels.next(&mut input).unwrap() {
                    let Incoming::Item(piece) = incoming else { panic!("{incoming:?}") };
                    said.extend(piece.payload.iter().map(|byte| (piece.channel, *byte)));
                }
            }
            assert_eq!(said, [(1, b'a'), (1, b'b'), (2, b'c')], "pieces of {step} bytes");
        }
    }
}
