//! What the streams of an exec travel in.
//!
//! | | stdin, stdout, stderr, status | the end of stdin |
//! |---|---|---|
//! | `v5.channel.k8s.io`, `v4.channel.k8s.io` | WebSocket messages that begin with 0, 1, 2, 3 | v5: a message of 255 and 0; v4: none |
//! | SPDY/3.1 | a stream each, told apart by the header `streamtype` | FIN |

use std::io;

use bytes::{Bytes, BytesMut};

use crate::{
    k8s::upgrade::{exec::ExecProtocol, websocket::Masks},
    wire::{
        spdy::{
            frame::{self, Frame},
            headers::Encoder,
        },
        websocket::{self, Opcode, Role, put_frame},
    },
};

/// Closes the channel that follows it (`v5.channel.k8s.io`).
const CLOSE: u8 = 255;

/// The ids of our SPDY streams, in the order in which they are opened.
const STREAMS: [(u32, &str, Channel); 4] = [
    (1, "error", Channel::Status),
    (3, "stdin", Channel::Stdin),
    (5, "stdout", Channel::Stdout),
    (7, "stderr", Channel::Stderr),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Stdin,
    Stdout,
    Stderr,
    Status,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A piece of what a channel says.
    Data(Channel, Bytes),
    /// The program has ended, and all is told.
    Ended,
}

pub enum Framing {
    Channels(Channels),
    Spdy(Spdy),
}

impl Framing {
    /// Begins; what is sent first goes to `out`.
    pub fn new(protocol: ExecProtocol, out: &mut BytesMut) -> Self {
        match protocol {
            ExecProtocol::V5 | ExecProtocol::V4 => Self::Channels(Channels {
                closes_channels: protocol == ExecProtocol::V5,
                parser: websocket::Parser::new(Role::Client),
                channel: None,
                masks: Masks::new(),
                status_came: false,
            }),
            ExecProtocol::Spdy => {
                let mut encoder = Encoder::default();
                for (id, kind, _) in STREAMS {
                    let mut headers = BytesMut::new();
                    encoder.encode(&[("streamtype", kind)], &mut headers);
                    frame::put_syn_stream(out, id, &headers);
                }
                Self::Spdy(Spdy::default())
            }
        }
    }

    /// Appends a piece of stdin, at most 64 KiB.
    pub fn put_stdin(&mut self, piece: &[u8], out: &mut BytesMut) {
        match self {
            Self::Channels(channels) => {
                let mut message = BytesMut::with_capacity(1 + piece.len());
                message.extend_from_slice(&[Channel::Stdin as u8]);
                message.extend_from_slice(piece);
                channels.put(Opcode::Binary, &message, out);
            }
            Self::Spdy(_) => {
                frame::put_data_header(out, Spdy::STDIN, piece.len(), false);
                out.extend_from_slice(piece);
            }
        }
    }

    /// Returns whether stdin can be ended alone.
    pub fn ends_stdin(&self) -> bool {
        match self {
            Self::Channels(channels) => channels.closes_channels,
            Self::Spdy(_) => true,
        }
    }

    /// Appends the end of stdin where there is such a thing.
    pub fn put_end_of_stdin(&mut self, out: &mut BytesMut) {
        match self {
            Self::Channels(channels) if channels.closes_channels => {
                channels.put(Opcode::Binary, &[CLOSE, Channel::Stdin as u8], out);
            }
            Self::Channels(_) => {}
            Self::Spdy(_) => frame::put_data_header(out, Spdy::STDIN, 0, true),
        }
    }

    /// Appends the end of everything.
    pub fn put_close(&mut self, out: &mut BytesMut) {
        match self {
            Self::Channels(channels) => channels.put(Opcode::Close, &1000u16.to_be_bytes(), out),
            Self::Spdy(_) => frame::put_goaway(out, 0),
        }
    }

    /// Returns what has come; answers that the protocol demands go to `out`. None: more bytes are needed.
    ///
    /// # Errors
    /// It is not the protocol.
    pub fn next(&mut self, received: &mut BytesMut, out: &mut BytesMut) -> io::Result<Option<Event>> {
        match self {
            Self::Channels(channels) => channels.next(received, out),
            Self::Spdy(spdy) => spdy.next(received, out),
        }
    }
}

pub struct Channels {
    closes_channels: bool,
    parser: websocket::Parser,
    /// Of the message that is being read; None: its first byte has not come.
    channel: Option<u8>,
    masks: Masks,
    /// Behind it nothing comes.
    status_came: bool,
}

impl Channels {
    fn put(&mut self, opcode: Opcode, message: &[u8], out: &mut BytesMut) {
        put_frame(out, opcode, message, Some(self.masks.next()));
    }

    fn next(&mut self, received: &mut BytesMut, out: &mut BytesMut) -> io::Result<Option<Event>> {
        if self.status_came {
            return Ok(Some(Event::Ended));
        }
        loop {
            match self.parser.next(received).map_err(invalid)? {
                Some(websocket::Event::Data { mut payload, last }) => {
                    let channel = match self.channel {
                        Some(channel) => channel,
                        None if payload.is_empty() => continue,
                        None => payload.split_to(1)[0],
                    };
                    self.channel = (!last).then_some(channel);
                    let channel = match channel {
                        1 => Channel::Stdout,
                        2 => Channel::Stderr,
                        3 => Channel::Status,
                        _ => continue,
                    };
                    self.status_came = channel == Channel::Status && last;
                    return Ok(Some(Event::Data(channel, payload)));
                }
                Some(websocket::Event::Ping(payload)) => self.put(Opcode::Pong, &payload, out),
                Some(websocket::Event::Pong) => {}
                Some(websocket::Event::Close(_)) => return Ok(Some(Event::Ended)),
                None => return Ok(None),
            }
        }
    }
}

#[derive(Default)]
pub struct Spdy {
    parser: frame::Parser,
    stdout_ended: bool,
    status_ended: bool,
}

impl Spdy {
    const STDIN: u32 = STREAMS[1].0;

    fn next(&mut self, received: &mut BytesMut, out: &mut BytesMut) -> io::Result<Option<Event>> {
        loop {
            if self.stdout_ended && self.status_ended {
                return Ok(Some(Event::Ended));
            }
            let (id, payload, fin) = match self.parser.next(received).map_err(invalid)? {
                Some(Frame::Data { id, payload, fin }) => (id, payload, fin),
                Some(Frame::RstStream { id, .. }) => (id, Bytes::new(), true),
                Some(Frame::SynReply { id, fin, .. }) => (id, Bytes::new(), fin),
                Some(Frame::Ping { id }) => {
                    // Theirs are even, and wait for an answer.
                    if id % 2 == 0 {
                        frame::put_ping(out, id);
                    }
                    continue;
                }
                Some(Frame::GoAway { .. } | Frame::SynStream { .. }) => continue,
                None => return Ok(None),
            };
            let Some((_, _, channel)) = STREAMS.iter().find(|(known, ..)| *known == id) else { continue };
            self.stdout_ended |= fin && *channel == Channel::Stdout;
            self.status_ended |= fin && *channel == Channel::Status;
            if !payload.is_empty() {
                return Ok(Some(Event::Data(*channel, payload)));
            }
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(framing: &mut Framing, mut received: BytesMut) -> (Vec<Event>, BytesMut) {
        let (mut events, mut out) = (Vec::new(), BytesMut::new());
        while let Some(event) = framing.next(&mut received, &mut out).unwrap() {
            let is_end = event == Event::Ended;
            events.push(event);
            if is_end {
                break;
            }
        }
        (events, out)
    }

    #[test]
    fn over_spdy_the_end_is_that_of_the_output_and_of_the_status() {
        for status_first in [true, false] {
            let mut begun = BytesMut::new();
            let mut framing = Framing::new(ExecProtocol::Spdy, &mut begun);
            assert_eq!(begun.iter().filter(|byte| **byte == 0x80).count(), 4, "four streams are opened");
            let mut received = BytesMut::new();
            frame::put_syn_reply(&mut received, 1, b"");
            frame::put_ping(&mut received, 2);
            frame::put_data_header(&mut received, 5, 3, false);
            received.extend_from_slice(b"out");
            frame::put_data_header(&mut received, 7, 3, true);
            received.extend_from_slice(b"err");
            let mut ends = [(1, &b"{}"[..]), (5, &b""[..])];
            if !status_first {
                ends.reverse();
            }
            for (id, payload) in ends {
                frame::put_data_header(&mut received, id, payload.len(), true);
                received.extend_from_slice(payload);
            }
            let (events, out) = all(&mut framing, received);
            let mut pong = BytesMut::new();
            frame::put_ping(&mut pong, 2);
            assert_eq!(out, pong);
            let data = |channel, text: &'static [u8]| Event::Data(channel, Bytes::from_static(text));
            let expected = [
                data(Channel::Stdout, b"out"),
                data(Channel::Stderr, b"err"),
                data(Channel::Status, b"{}"),
                Event::Ended,
            ];
            assert_eq!(events, expected);
        }
    }

    #[test]
    fn over_channels_the_status_is_the_end() {
        for (protocol, ends) in [(ExecProtocol::V5, true), (ExecProtocol::V4, false)] {
            let mut out = BytesMut::new();
            let mut framing = Framing::new(protocol, &mut out);
            assert!(out.is_empty());
            assert_eq!(framing.ends_stdin(), ends);
            framing.put_end_of_stdin(&mut out);
            assert_eq!(!out.is_empty(), ends);
            let mut received = BytesMut::new();
            for message in [&b"\x01"[..], b"\x01out", b"\x02err", b"\x03{}", b"\x01never"] {
                put_frame(&mut received, Opcode::Binary, message, None);
            }
            let (events, _) = all(&mut framing, received);
            let data = |channel, text: &'static [u8]| Event::Data(channel, Bytes::from_static(text));
            let expected = [
                data(Channel::Stdout, b""),
                data(Channel::Stdout, b"out"),
                data(Channel::Stderr, b"err"),
                data(Channel::Status, b"{}"),
                Event::Ended,
            ];
            assert_eq!(events, expected);
        }
    }
}
