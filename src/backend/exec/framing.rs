//! Framing of an exec's streams.
//!
//! | | stdin, stdout, stderr, status | the end of stdin |
//! |---|---|---|
//! | `v5.channel.k8s.io`, `v4.channel.k8s.io` | WebSocket messages that begin with 0, 1, 2, 3 | v5: bytes 255 and 0; v4: none |
//! | SPDY/3.1 | a stream each, told apart by the header `streamtype` | FIN |

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};

use crate::{
    io::BoxedIo,
    k8s::{
        framed::{Codec, Framed, Incoming},
        upgrade::exec::ExecProtocol,
        websocket::channels::Channels,
    },
    wire::spdy::{
        frame::{self, Frame},
        headers::Encoder,
    },
};

/// Ids of our SPDY streams, in the order in which they are opened.
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
    /// Bytes of one channel.
    Data(Channel, Bytes),
    /// The program has ended, and all its output was read.
    Ended,
}

/// Connection of an exec, by transport.
pub enum Framing {
    Channels {
        framed: Framed<Channels>,
        closes_channels: bool,
        /// Nothing follows the status.
        status_came: bool,
    },
    Spdy(Framed<Spdy>),
}

impl Framing {
    pub fn new(io: BoxedIo, protocol: ExecProtocol) -> Self {
        match protocol {
            ExecProtocol::V5 | ExecProtocol::V4 => Self::Channels {
                framed: Framed::new(io, Channels::new()),
                closes_channels: protocol == ExecProtocol::V5,
                status_came: false,
            },
            ExecProtocol::Spdy => {
                let framed = Framed::new(io, Spdy::default());
                framed.put(Spdy::put_streams);
                Self::Spdy(framed)
            }
        }
    }

    /// Waits until the connection takes more bytes.
    ///
    /// # Errors
    /// The connection broke.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Channels { framed, .. } => framed.poll_ready(cx),
            Self::Spdy(framed) => framed.poll_ready(cx),
        }
    }

    /// Pings the server.
    pub fn ping(&self) {
        match self {
            Self::Channels { framed, .. } => framed.ping(),
            Self::Spdy(framed) => framed.ping(),
        }
    }

    /// Returns whether the server has sent anything after the upgrade.
    pub fn has_heard(&self) -> bool {
        match self {
            Self::Channels { framed, .. } => framed.has_heard(),
            Self::Spdy(framed) => framed.has_heard(),
        }
    }

    /// Buffers bytes for stdin, at most 64 KiB. The next [`poll_flush`](Self::poll_flush) sends them.
    pub fn put_stdin(&self, piece: &[u8]) {
        match self {
            Self::Channels { framed, .. } => {
                framed.put(|channels, out| channels.put(Channel::Stdin as u8, piece, out));
            }
            Self::Spdy(framed) => framed.put(|_, out| {
                frame::put_data_header(out, Spdy::STDIN, piece.len(), false);
                out.extend_from_slice(piece);
            }),
        }
    }

    /// Returns whether the transport can close stdin alone.
    pub fn ends_stdin(&self) -> bool {
        match self {
            Self::Channels { closes_channels, .. } => *closes_channels,
            Self::Spdy(_) => true,
        }
    }

    /// Buffers the end of stdin, if the transport has one.
    pub fn put_end_of_stdin(&self) {
        match self {
            Self::Channels { framed, closes_channels: true, .. } => {
                framed.put(|channels, out| channels.put_end(Channel::Stdin as u8, out));
            }
            Self::Channels { .. } => {}
            Self::Spdy(framed) => framed.put(|_, out| frame::put_data_header(out, Spdy::STDIN, 0, true)),
        }
    }

    /// Buffers the end of the connection.
    pub fn close(&self) {
        match self {
            Self::Channels { framed, .. } => framed.close(),
            Self::Spdy(framed) => framed.close(),
        }
    }

    /// Sends the buffered bytes.
    ///
    /// # Errors
    /// The connection broke.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Channels { framed, .. } => framed.poll_flush(cx),
            Self::Spdy(framed) => framed.poll_flush(cx),
        }
    }

    /// Returns the next event. `None`: the connection has ended cleanly.
    ///
    /// # Errors
    /// The connection broke, or does not speak the protocol.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Event>>> {
        match self {
            Self::Channels { status_came: true, .. } => Poll::Ready(Ok(Some(Event::Ended))),
            Self::Channels { framed, status_came, .. } => loop {
                let Some(piece) = ready!(framed.poll_next(cx))? else { return Poll::Ready(Ok(None)) };
                let channel = match piece.channel {
                    1 => Channel::Stdout,
                    2 => Channel::Stderr,
                    3 => Channel::Status,
                    _ => continue,
                };
                *status_came = channel == Channel::Status && piece.is_last;
                return Poll::Ready(Ok(Some(Event::Data(channel, piece.payload))));
            },
            Self::Spdy(framed) => framed.poll_next(cx),
        }
    }
}

/// Frames of an exec over SPDY.
#[derive(Default)]
pub struct Spdy {
    parser: frame::Parser,
    stdout_ended: bool,
    status_ended: bool,
}

impl Spdy {
    const STDIN: u32 = STREAMS[1].0;

    fn put_streams(&mut self, out: &mut BytesMut) {
        let mut encoder = Encoder::default();
        for (id, kind, _) in STREAMS {
            let mut headers = BytesMut::new();
            encoder.encode(&[("streamtype", kind)], &mut headers);
            frame::put_syn_stream(out, id, &headers);
        }
    }
}

impl Codec for Spdy {
    type Item = Event;

    fn next(&mut self, input: &mut BytesMut) -> io::Result<Option<Incoming<Event>>> {
        loop {
            if self.stdout_ended && self.status_ended {
                return Ok(Some(Incoming::Item(Event::Ended)));
            }
            let (id, payload, fin) = match self.parser.next(input).map_err(invalid)? {
                Some(Frame::Data { id, payload, fin }) => (id, payload, fin),
                Some(Frame::RstStream { id, .. }) => (id, Bytes::new(), true),
                Some(Frame::SynReply { id, fin, .. }) => (id, Bytes::new(), fin),
                // The server's PINGs have even ids, and need an answer.
                Some(Frame::Ping { id }) if id % 2 == 0 => {
                    return Ok(Some(Incoming::Ping(Bytes::copy_from_slice(&id.to_be_bytes()))));
                }
                Some(Frame::Ping { .. }) => return Ok(Some(Incoming::Pong)),
                Some(Frame::GoAway { .. } | Frame::SynStream { .. }) => continue,
                None => return Ok(None),
            };
            let Some((_, _, channel)) = STREAMS.iter().find(|(known, ..)| *known == id) else { continue };
            self.stdout_ended |= fin && *channel == Channel::Stdout;
            self.status_ended |= fin && *channel == Channel::Status;
            if !payload.is_empty() {
                return Ok(Some(Incoming::Item(Event::Data(*channel, payload))));
            }
        }
    }

    fn put_ping(&mut self, number: u32, out: &mut BytesMut) {
        // The ids of a client's PINGs are odd (SPDY draft 3.1, section 2.6.5).
        frame::put_ping(out, number.wrapping_mul(2).wrapping_sub(1));
    }

    fn put_pong(&mut self, payload: &[u8], out: &mut BytesMut) {
        if let Some(id) = payload.first_chunk() {
            frame::put_ping(out, u32::from_be_bytes(*id));
        }
    }

    fn put_close(&mut self, out: &mut BytesMut) {
        frame::put_goaway(out, 0);
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::wire::websocket::{self, Opcode, Role, put_frame};

    async fn all(framing: &mut Framing) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = poll_fn(|cx| framing.poll_next(cx)).await.unwrap() {
            let is_end = event == Event::Ended;
            events.push(event);
            if is_end {
                break;
            }
        }
        events
    }

    fn data(channel: Channel, text: &'static [u8]) -> Event {
        Event::Data(channel, Bytes::from_static(text))
    }

    #[tokio::test]
    async fn over_spdy_the_end_is_that_of_the_output_and_of_the_status() {
        for status_first in [true, false] {
            let (near, mut far) = duplex(1 << 16);
            let mut framing = Framing::new(Box::new(near), ExecProtocol::Spdy);
            let mut said = BytesMut::new();
            frame::put_syn_reply(&mut said, 1, b"");
            frame::put_ping(&mut said, 2);
            frame::put_data_header(&mut said, 5, 3, false);
            said.extend_from_slice(b"out");
            frame::put_data_header(&mut said, 7, 3, true);
            said.extend_from_slice(b"err");
            far.write_all(&said).await.unwrap();
            for wanted in [data(Channel::Stdout, b"out"), data(Channel::Stderr, b"err")] {
                assert_eq!(poll_fn(|cx| framing.poll_next(cx)).await.unwrap(), Some(wanted));
            }
            poll_fn(|cx| framing.poll_flush(cx)).await.unwrap();
            let (mut parser, mut input, mut opened, mut is_answered) =
                (frame::Parser::default(), BytesMut::new(), 0, false);
            while !is_answered {
                far.read_buf(&mut input).await.unwrap();
                while let Some(frame) = parser.next(&mut input).unwrap() {
                    opened += usize::from(matches!(frame, Frame::SynStream { .. }));
                    is_answered |= matches!(frame, Frame::Ping { id: 2 });
                }
            }
            assert_eq!(opened, 4, "four streams are opened");
            let mut ends = [(1, &b"{}"[..]), (5, &b""[..])];
            if !status_first {
                ends.reverse();
            }
            let mut said = BytesMut::new();
            for (id, payload) in ends {
                frame::put_data_header(&mut said, id, payload.len(), true);
                said.extend_from_slice(payload);
            }
            far.write_all(&said).await.unwrap();
            assert_eq!(all(&mut framing).await, [data(Channel::Status, b"{}"), Event::Ended]);
        }
    }

    #[tokio::test]
    async fn over_channels_the_status_is_the_end() {
        for (protocol, ends) in [(ExecProtocol::V5, true), (ExecProtocol::V4, false)] {
            let (near, mut far) = duplex(1 << 16);
            let mut framing = Framing::new(Box::new(near), protocol);
            assert_eq!(framing.ends_stdin(), ends);
            framing.put_stdin(b"in");
            framing.put_end_of_stdin();
            framing.close();
            poll_fn(|cx| framing.poll_flush(cx)).await.unwrap();
            let (mut parser, mut input, mut messages) =
                (websocket::Parser::new(Role::Server), BytesMut::new(), Vec::new());
            loop {
                match parser.next(&mut input).unwrap() {
                    Some(websocket::Event::Data { payload, .. }) => messages.push(payload),
                    Some(websocket::Event::Close(code)) => break assert_eq!(code, Some(1000)),
                    Some(other) => panic!("{other:?}"),
                    None => drop(far.read_buf(&mut input).await.unwrap()),
                }
            }
            let wanted = [&b"\0in"[..], b"\xff\0"];
            assert_eq!(messages, wanted[..if ends { 2 } else { 1 }]);
            let mut said = BytesMut::new();
            for message in [&b"\x01"[..], b"\x01out", b"\x02err", b"\x03{}", b"\x01never"] {
                put_frame(&mut said, Opcode::Binary, message, None);
            }
            far.write_all(&said).await.unwrap();
            let wanted = [
                data(Channel::Stdout, b""),
                data(Channel::Stdout, b"out"),
                data(Channel::Stderr, b"err"),
                data(Channel::Status, b"{}"),
                Event::Ended,
            ];
            assert_eq!(all(&mut framing).await, wanted);
        }
    }
}
