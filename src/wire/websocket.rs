//! WebSocket frames (RFC 6455) for both roles: the transport of SPDY, and of the exec channels.
//!
//! ```text
//! FIN | RSV (3) | opcode (4) | MASK | length (7, then 16 or 64 more) | masking key (32, from clients) | payload
//! ```

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Buf, Bytes, BytesMut};
use sha1::{Digest, Sha1};

/// Our end of the connection: clients mask their frames, servers do not (section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// Type of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// Event of the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A piece of a message, as it arrives; `last` is on the last piece. Text and binary are not distinguished.
    Data {
        payload: Bytes,
        last: bool,
    },
    Ping(Bytes),
    Pong,
    /// The status code, if there is one.
    Close(Option<u16>),
}

/// Why bytes are not valid WebSocket frames for adit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebSocketError {
    #[error("reserved bits or opcode in a frame header ({0:#04x})")]
    Reserved(u8),
    #[error("a frame is masked that must not be, or is not where it must")]
    Mask,
    #[error("a control frame is fragmented or longer than 125 bytes")]
    Control,
    #[error("a continuation without a message, or a message within another")]
    Fragmentation,
    #[error("a frame length of {0} bytes")]
    TooLong(u64),
}

/// Maximum frame length that the parser accepts. It only rejects nonsense: payloads are returned as they arrive, so it
/// limits no buffer.
const LONGEST: u64 = 1 << 32;

/// Returns the Sec-WebSocket-Accept for a Sec-WebSocket-Key (section 4.2.2).
pub fn accept_key(key: &str) -> String {
    let digest = Sha1::new().chain_update(key.trim()).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    STANDARD.encode(digest)
}

/// Appends a message of one frame. A client must pass an unpredictable masking key (section 5.3).
pub fn put_frame(out: &mut BytesMut, opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>) {
    out.extend_from_slice(&[0x80 | opcode.bits()]);
    let masked = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        length @ 0..=125 => out.extend_from_slice(&[masked | length as u8]),
        length @ 126..=0xffff => {
            out.extend_from_slice(&[masked | 126]);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.extend_from_slice(&[masked | 127]);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    let start = match mask {
        Some(key) => {
            out.extend_from_slice(&key);
            out.len()
        }
        None => out.len(),
    };
    out.extend_from_slice(payload);
    if let Some(key) = mask {
        apply_mask(&mut out[start..], key, 0);
    }
}

/// Masks or unmasks a piece of a payload. `offset`: position of its first byte in the payload.
pub fn apply_mask(payload: &mut [u8], key: [u8; 4], offset: usize) {
    let mut turned = key;
    turned.rotate_left(offset % 4);
    // Eight bytes at a time, which the compiler vectorises.
    let wide = u64::from_ne_bytes([turned, turned].concat().try_into().expect("two keys are eight bytes"));
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let word = u64::from_ne_bytes((&*chunk).try_into().expect("a chunk of eight bytes"));
        chunk.copy_from_slice(&(word ^ wide).to_ne_bytes());
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(turned.iter().cycle()) {
        *byte ^= key;
    }
}

impl Opcode {
    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    fn of(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }
}

/// Splits a byte stream into frames. Returns payloads in pieces, as they arrive.
#[derive(Debug)]
pub struct Parser {
    role: Role,
    in_message: bool,
    /// Data frame in progress.
    payload: Option<Payload>,
}

#[derive(Debug)]
struct Payload {
    left: usize,
    done: usize,
    key: Option<[u8; 4]>,
    fin: bool,
}

impl Parser {
    /// `role`: our role. A client expects unmasked frames.
    pub fn new(role: Role) -> Self {
        Self { role, in_message: false, payload: None }
    }

    /// Returns whether a message is incomplete.
    pub fn is_within_message(&self) -> bool {
        self.in_message || self.payload.is_some()
    }

    /// Takes the next event from `input`. `None`: it is incomplete.
    ///
    /// # Errors
    /// The rest of the connection cannot be parsed.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, WebSocketError> {
        if let Some(payload) = &mut self.payload {
            if input.is_empty() {
                return Ok(None);
            }
            let mut piece = input.split_to(payload.left.min(input.len()));
            if let Some(key) = payload.key {
                apply_mask(&mut piece, key, payload.done);
            }
            payload.left -= piece.len();
            payload.done += piece.len();
            let ended = payload.left == 0;
            let last = ended && payload.fin;
            if ended {
                self.payload = None;
            }
            return Ok(Some(Event::Data { payload: piece.freeze(), last }));
        }
        let Some((header, length)) = self.header(input)? else { return Ok(None) };
        // Control frames have the highest bit of the opcode set (section 5.5).
        if header.opcode.bits() & 8 != 0 {
            if input.len() < length + header.length {
                return Ok(None);
            }
            input.advance(length);
            let mut body = input.split_to(header.length);
            if let Some(key) = header.key {
                apply_mask(&mut body, key, 0);
            }
            return Ok(Some(match header.opcode {
                Opcode::Ping => Event::Ping(body.freeze()),
                Opcode::Pong => Event::Pong,
                _ => Event::Close(body.first_chunk().map(|code| u16::from_be_bytes(*code))),
            }));
        }
        input.advance(length);
        self.in_message = !header.fin;
        if header.length == 0 {
            return Ok(Some(Event::Data { payload: Bytes::new(), last: header.fin }));
        }
        self.payload = Some(Payload { left: header.length, done: 0, key: header.key, fin: header.fin });
        self.next(input)
    }

    /// Returns the header at the start of `input`, and its length. `None`: it is incomplete.
    fn header(&self, input: &[u8]) -> Result<Option<(Header, usize)>, WebSocketError> {
        let [first, second, rest @ ..] = input else { return Ok(None) };
        let opcode = Opcode::of(first & 0x0f).filter(|_| first & 0x70 == 0).ok_or(WebSocketError::Reserved(*first))?;
        let fin = first & 0x80 != 0;
        let masked = second & 0x80 != 0;
        if masked != (self.role == Role::Server) {
            return Err(WebSocketError::Mask);
        }
        let is_control = opcode.bits() & 8 != 0;
        if is_control && (!fin || second & 0x7f > 125) {
            return Err(WebSocketError::Control);
        }
        if !is_control && (opcode == Opcode::Continuation) != self.in_message {
            return Err(WebSocketError::Fragmentation);
        }
        let (length, rest) = match second & 0x7f {
            126 => match rest.split_first_chunk::<2>() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            length => (u64::from(length), rest),
        };
        let length =
            usize::try_from(length).ok().filter(|_| length <= LONGEST).ok_or(WebSocketError::TooLong(length))?;
        let (key, rest) = match (masked, rest.split_first_chunk::<4>()) {
            (false, _) => (None, rest),
            (true, Some((key, rest))) => (Some(*key), rest),
            (true, None) => return Ok(None),
        };
        Ok(Some((Header { opcode, fin, length, key }, input.len() - rest.len())))
    }
}

struct Header {
    opcode: Opcode,
    fin: bool,
    length: usize,
    key: Option<[u8; 4]>,
}

/// Finds frame boundaries in a byte stream, without changing it.
#[derive(Debug, Default)]
pub struct Boundary {
    /// Header of the frame in progress: at most 2 bytes, 8 bytes of length, 4 bytes of mask.
    header: [u8; 14],
    have: usize,
    payload_left: u64,
    close: Close,
    messages: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Close {
    #[default]
    None,
    /// The last frame was a Close frame.
    Last,
    /// Bytes came after a Close frame, which RFC 6455 does not allow.
    Ignored,
}

impl Boundary {
    /// Counts the next bytes of the stream.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.close == Close::Last {
                self.close = Close::Ignored;
            }
            if self.payload_left > 0 {
                let count = self.payload_left.min(bytes.len() as u64);
                self.payload_left -= count;
                bytes = &bytes[count as usize..];
                self.note_close();
                continue;
            }
            self.header[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            if self.have == self.header_length() {
                self.payload_left = match self.header[1] & 0x7f {
                    126 => u64::from(u16::from_be_bytes([self.header[2], self.header[3]])),
                    127 => u64::from_be_bytes(std::array::from_fn(|at| self.header[2 + at])),
                    short => u64::from(short),
                };
                self.have = 0;
                // Opcodes of data frames: continuation, text, binary (section 5.2). FIN marks the last frame of a message.
                self.messages += u64::from(self.header[0] & 0x80 != 0 && self.header[0] & 0x0f <= 2);
                self.note_close();
            }
        }
    }

    fn note_close(&mut self) {
        // The header stays until the next frame begins. A Close frame is unfragmented, and has no reserved bits.
        if self.payload_left == 0 && self.header[0] == 0x80 | Opcode::Close.bits() && self.close == Close::None {
            self.close = Close::Last;
        }
    }

    /// Returns the number of messages whose last frame has begun.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Returns whether a Close frame has passed, and no byte after it (RFC 6455, section 5.5.1).
    pub fn has_closed(&self) -> bool {
        self.close == Close::Last
    }

    fn header_length(&self) -> usize {
        if self.have < 2 {
            return 2;
        }
        let extended = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + extended + if self.header[1] & 0x80 != 0 { 4 } else { 0 }
    }

    /// Returns the number of bytes that certainly belong to the frame in progress. 0: between frames.
    pub fn left(&self) -> u64 {
        match (self.payload_left, self.have) {
            (0, 0) => 0,
            (0, have) => (self.header_length() - have) as u64,
            (left, _) => left,
        }
    }
}

#[cfg(test)]
mod tests;
