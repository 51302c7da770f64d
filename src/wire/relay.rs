//! The frames between a relay and its clients, versions 1 and 2. `docs/relay-protocol.md` has their byte layout.
//!
//! ```text
//! type 1 | length 4, big-endian, of the payload | payload
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Maximum length of a payload in bytes.
pub const LONGEST: usize = 64 * 1024;

/// Length of the type and the length field.
const HEADER: usize = 5;

/// Random ID of a stream, a session or a reserved port or name (`resume`).
pub type Token = [u8; 16];

/// A nonce, or an HMAC-SHA256.
pub type Digest = [u8; 32];

/// The text form of a UUID (RFC 9562, section 4).
pub type Uuid = [u8; 36];

/// Protocol of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A port of the relay.
    Tcp,
    /// A name under the relay's domain.
    Http,
    /// A Service of the relay's cluster; the name is `service.namespace:port`.
    Service,
    /// A takeover of an existing Service.
    ReplacedService,
}

/// A message. The first seven are version 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens a control connection of version 1.
    Handshake {
        version: u8,
        secret: Bytes,
    },
    /// The tunnel is open on this port. `host`: the relay's name for itself.
    Accept {
        port: u16,
        host: String,
    },
    Reject {
        reason: String,
    },
    /// A visitor has connected to the public port.
    Connect {
        stream: Uuid,
    },
    /// Opens the connection for a stream of version 1.
    StreamHandshake {
        stream: Uuid,
    },
    StreamAccept,
    StreamReject {
        reason: String,
    },
    /// Opens a control connection of version 2, within TLS. `port`: the wanted port of the first tunnel. 0: any.
    Hello {
        version: u8,
        nonce: Digest,
        port: u16,
        key: String,
    },
    Challenge {
        nonce: Digest,
    },
    Proof {
        proof: Digest,
    },
    /// `heartbeat`: seconds between two pings. `proof`: the relay's own proof.
    Welcome {
        session: Token,
        heartbeat: u16,
        proof: Digest,
    },
    /// `port` and `name`: the wanted ones. 0 and empty: any. `resume`: the token of an earlier tunnel. Zeros: none.
    Open {
        tunnel: u32,
        kind: Kind,
        port: u16,
        resume: Token,
        name: String,
    },
    /// `address`: the public address, as far as the relay knows.
    Opened {
        tunnel: u32,
        port: u16,
        resume: Token,
        address: String,
    },
    Refused {
        tunnel: u32,
        reason: String,
    },
    /// The client closes the tunnel, and its port becomes free.
    Close {
        tunnel: u32,
    },
    /// A visitor has connected. `peer`: its address.
    Incoming {
        tunnel: u32,
        stream: Token,
        peer: String,
    },
    /// The client cannot serve the stream.
    Decline {
        stream: Token,
        reason: String,
    },
    /// Opens the connection for a stream of version 2, within TLS.
    Claim {
        session: Token,
        stream: Token,
        proof: Digest,
    },
    /// A visitor has connected: it gets this idle stream connection.
    Start {
        tunnel: u32,
        peer: String,
    },
    /// The client's token for the API server of the relay's cluster, if the relay reviews tokens.
    Identity {
        token: String,
    },
    /// A stream connection for a future visitor: the client claims it, and waits on it for Start.
    Prepare {
        stream: Token,
    },
    Ping {
        cookie: u64,
    },
    Pong {
        cookie: u64,
    },
    /// The sender is about to end the connection.
    Goodbye {
        reason: String,
    },
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    #[error("a frame of type {0:#04x}, which is not known")]
    Type(u8),
    #[error("a frame of {0} bytes")]
    TooLong(u32),
    #[error("a frame of type {0:#04x} whose payload is malformed")]
    Payload(u8),
}

impl Frame {
    /// Takes the first frame from `input`. `None`: it is incomplete.
    ///
    /// # Errors
    /// The frame is unknown, too long or malformed. The bytes after it cannot be parsed either.
    pub fn take(input: &mut BytesMut) -> Result<Option<Self>, RelayError> {
        let length = Self::length(input)?;
        if input.len() < length {
            return Ok(None);
        }
        let mut frame = input.split_to(length).freeze();
        let kind = frame[0];
        frame.advance(HEADER);
        let mut payload = Payload(frame);
        let frame = payload.read(kind).filter(|_| payload.0.is_empty());
        frame.map(Some).ok_or(RelayError::Payload(kind))
    }

    /// Returns the length of the first frame in `input`, as far as it is known: at least that of its header.
    ///
    /// # Errors
    /// See [`take`](Self::take).
    pub fn length(input: &[u8]) -> Result<usize, RelayError> {
        let Some(header) = input.first_chunk::<HEADER>() else { return Ok(HEADER) };
        let (kind, length) = (header[0], u32::from_be_bytes([header[1], header[2], header[3], header[4]]));
        if !matches!(kind, 0x01..=0x07 | 0x10..=0x20) {
            return Err(RelayError::Type(kind));
        }
        match usize::try_from(length) {
            Ok(length) if length <= LONGEST => Ok(HEADER + length),
            _ => Err(RelayError::TooLong(length)),
        }
    }

    /// Appends the frame to `out`. Truncates texts that are too long.
    pub fn put(&self, out: &mut BytesMut) {
        let mut payload = BytesMut::new();
        let kind = self.write(&mut payload);
        payload.truncate(LONGEST);
        out.put_u8(kind);
        out.put_u32(payload.len() as u32);
        out.extend_from_slice(&payload);
    }

    fn write(&self, to: &mut BytesMut) -> u8 {
        match self {
            Self::Handshake { version, secret } => {
                to.put_u8(*version);
                to.extend_from_slice(secret);
                0x01
            }
            Self::Accept { port, host } => {
                to.put_u16(*port);
                to.extend_from_slice(host.as_bytes());
                0x02
            }
            Self::Reject { reason } => text(to, reason, 0x03),
            Self::Connect { stream } => token(to, stream, 0x04),
            Self::StreamHandshake { stream } => token(to, stream, 0x05),
            Self::StreamAccept => 0x06,
            Self::StreamReject { reason } => text(to, reason, 0x07),
            Self::Hello { version, nonce, port, key } => {
                to.put_u8(*version);
                to.extend_from_slice(nonce);
                to.put_u16(*port);
                text(to, key, 0x10)
            }
            Self::Challenge { nonce } => token(to, nonce, 0x11),
            Self::Proof { proof } => token(to, proof, 0x12),
            Self::Welcome { session, heartbeat, proof } => {
                to.extend_from_slice(session);
                to.put_u16(*heartbeat);
                token(to, proof, 0x13)
            }
            Self::Open { tunnel, kind, port, resume, name } => {
                to.put_u32(*tunnel);
                to.put_u8(match kind {
                    Kind::Tcp => 0,
                    Kind::Http => 1,
                    Kind::Service => 2,
                    Kind::ReplacedService => 3,
                });
                to.put_u16(*port);
                to.extend_from_slice(resume);
                text(to, name, 0x14)
            }
            Self::Opened { tunnel, port, resume, address } => {
                to.put_u32(*tunnel);
                to.put_u16(*port);
                to.extend_from_slice(resume);
                text(to, address, 0x15)
            }
            Self::Refused { tunnel, reason } => {
                to.put_u32(*tunnel);
                text(to, reason, 0x16)
            }
            Self::Close { tunnel } => {
                to.put_u32(*tunnel);
                0x17
            }
            Self::Incoming { tunnel, stream, peer } => {
                to.put_u32(*tunnel);
                to.extend_from_slice(stream);
                text(to, peer, 0x18)
            }
            Self::Claim { session, stream, proof } => {
                to.extend_from_slice(session);
                to.extend_from_slice(stream);
                token(to, proof, 0x19)
            }
            Self::Ping { cookie } => {
                to.put_u64(*cookie);
                0x1a
            }
            Self::Pong { cookie } => {
                to.put_u64(*cookie);
                0x1b
            }
            Self::Goodbye { reason } => text(to, reason, 0x1c),
            Self::Decline { stream, reason } => {
                to.extend_from_slice(stream);
                text(to, reason, 0x1d)
            }
            Self::Start { tunnel, peer } => {
                to.put_u32(*tunnel);
                text(to, peer, 0x1e)
            }
            Self::Identity { token } => text(to, token, 0x1f),
            Self::Prepare { stream } => token(to, stream, 0x20),
        }
    }
}

fn text(to: &mut BytesMut, text: &str, kind: u8) -> u8 {
    to.extend_from_slice(text.as_bytes());
    kind
}

fn token(to: &mut BytesMut, token: &[u8], kind: u8) -> u8 {
    to.extend_from_slice(token);
    kind
}

struct Payload(Bytes);

impl Payload {
    fn read(&mut self, kind: u8) -> Option<Frame> {
        Some(match kind {
            0x01 => Frame::Handshake { version: self.u8()?, secret: std::mem::take(&mut self.0) },
            0x02 => Frame::Accept { port: self.u16()?, host: self.text()? },
            0x03 => Frame::Reject { reason: self.text()? },
            0x04 => Frame::Connect { stream: self.uuid()? },
            0x05 => Frame::StreamHandshake { stream: self.uuid()? },
            0x06 => Frame::StreamAccept,
            0x07 => Frame::StreamReject { reason: self.text()? },
            0x10 => Frame::Hello { version: self.u8()?, nonce: self.array()?, port: self.u16()?, key: self.text()? },
            0x11 => Frame::Challenge { nonce: self.array()? },
            0x12 => Frame::Proof { proof: self.array()? },
            0x13 => Frame::Welcome { session: self.array()?, heartbeat: self.u16()?, proof: self.array()? },
            0x14 => Frame::Open {
                tunnel: self.u32()?,
                kind: match self.u8()? {
                    0 => Kind::Tcp,
                    1 => Kind::Http,
                    2 => Kind::Service,
                    3 => Kind::ReplacedService,
                    _ => return None,
                },
                port: self.u16()?,
                resume: self.array()?,
                name: self.text()?,
            },
            0x15 => {
                Frame::Opened { tunnel: self.u32()?, port: self.u16()?, resume: self.array()?, address: self.text()? }
            }
            0x16 => Frame::Refused { tunnel: self.u32()?, reason: self.text()? },
            0x17 => Frame::Close { tunnel: self.u32()? },
            0x18 => Frame::Incoming { tunnel: self.u32()?, stream: self.array()?, peer: self.text()? },
            0x19 => Frame::Claim { session: self.array()?, stream: self.array()?, proof: self.array()? },
            0x1a => Frame::Ping { cookie: u64::from_be_bytes(self.array()?) },
            0x1b => Frame::Pong { cookie: u64::from_be_bytes(self.array()?) },
            0x1c => Frame::Goodbye { reason: self.text()? },
            0x1d => Frame::Decline { stream: self.array()?, reason: self.text()? },
            0x1e => Frame::Start { tunnel: self.u32()?, peer: self.text()? },
            0x1f => Frame::Identity { token: self.text()? },
            0x20 => Frame::Prepare { stream: self.array()? },
            _ => return None,
        })
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let array = *self.0.first_chunk::<N>()?;
        self.0.advance(N);
        Some(array)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let text = String::from_utf8(self.0.to_vec()).ok()?;
        self.0.clear();
        Some(text)
    }

    fn uuid(&mut self) -> Option<Uuid> {
        let uuid: Uuid = self.array()?;
        let is_uuid = |(at, byte): (usize, &u8)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        };
        uuid.iter().enumerate().all(is_uuid).then_some(uuid)
    }
}

#[cfg(test)]
mod tests;
