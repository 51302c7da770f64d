//! The first messages of PostgreSQL's protocol 3.0, before TLS (see its documentation, "Message Formats").
//!
//! ```text
//! length 4, itself included | code 4 | parameters:  name\0 value\0 ... \0
//! ```

/// Request for TLS. The answer is a single byte, `S` or `N`.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Request for GSSAPI encryption. The answer is a single byte, `G` or `N`.
pub const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

const CANCEL_REQUEST: [u8; 4] = [0x04, 0xd2, 0x16, 0x2e];

/// Maximum length of a start-up message, as in PostgreSQL itself.
const LONGEST: usize = 10_000;

/// Lengths of a cancel request: code, process id, and a key of 4 bytes (up to 256 from protocol 3.2 on).
const CANCEL_LENGTHS: std::ops::RangeInclusive<usize> = 16..=268;

/// First message of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    SslRequest,
    GssEncRequest,
    /// A cancel request: it has the key of a session, but no name.
    Cancel,
    /// A start-up message.
    Startup,
    NeedMore,
    /// Not PostgreSQL.
    Other,
}

/// Returns the kind of a client's first message.
pub fn first(bytes: &[u8]) -> First {
    let Some(start) = bytes.first_chunk::<8>() else {
        let could_be = bytes.iter().zip([0, 0]).all(|(byte, wanted)| *byte == wanted);
        return if could_be { First::NeedMore } else { First::Other };
    };
    let length = u32::from_be_bytes([start[0], start[1], start[2], start[3]]) as usize;
    match &start[4..] {
        _ if *start == SSL_REQUEST => First::SslRequest,
        _ if *start == GSSENC_REQUEST => First::GssEncRequest,
        code if *code == CANCEL_REQUEST && CANCEL_LENGTHS.contains(&length) => First::Cancel,
        // Version 3, and the minor versions that protocol negotiation reserves.
        [0, 3, _, _] if (9..=LONGEST).contains(&length) => First::Startup,
        _ => First::Other,
    }
}

/// Returns the complete first message. `None`: it is incomplete, or neither [`First::Cancel`] nor [`First::Startup`].
pub fn whole(bytes: &[u8]) -> Option<&[u8]> {
    if !matches!(first(bytes), First::Cancel | First::Startup) {
        return None;
    }
    let length = u32::from_be_bytes(*bytes.first_chunk::<4>()?) as usize;
    bytes.get(..length)
}

/// Returns the process id and the key of a complete cancel request, in the format of [`Key::Found`].
pub fn key_of_cancel(message: &[u8]) -> &[u8] {
    message.get(8..).unwrap_or_default()
}

/// Finds the key of a session in the server's first messages.
///
/// ```text
/// N for each request for encryption | type 1, length 4, payload: R (authentication), S, N, ..., K (the key), ..., Z
/// ```
#[derive(Debug, Default)]
pub struct KeyWatch {
    found: Key,
    /// Start of a message: its type and length, and for the key message its payload.
    start: Vec<u8>,
    /// Bytes of the payload yet to come.
    left: usize,
    /// A message has begun, so the next byte cannot be the answer to an encryption request.
    has_begun: bool,
}

/// State of a [`KeyWatch`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Key {
    #[default]
    NotYet,
    /// Process id and key of BackendKeyData.
    Found(Vec<u8>),
    /// The session is encrypted.
    Hidden,
    /// The server sends none, or speaks another protocol.
    None,
}

impl KeyWatch {
    /// Length of a message's type and length.
    const HEADER: usize = 5;

    /// Adds the next bytes. Any result other than [`Key::NotYet`] is final.
    pub fn take(&mut self, mut bytes: &[u8]) -> &Key {
        while let Some(byte) = bytes.first().copied().filter(|_| self.found == Key::NotYet) {
            if self.left > 0 {
                let count = self.left.min(bytes.len());
                if self.start[0] == b'K' {
                    self.start.extend_from_slice(&bytes[..count]);
                }
                self.left -= count;
                bytes = &bytes[count..];
                self.end_message();
                continue;
            }
            bytes = &bytes[1..];
            match byte {
                // No first message has one of these types.
                b'N' if !self.has_begun => continue,
                b'S' | b'G' if !self.has_begun => {
                    self.found = Key::Hidden;
                    continue;
                }
                _ => self.start.push(byte),
            }
            self.has_begun = true;
            if self.start.len() == Self::HEADER {
                let length = u32::from_be_bytes([self.start[1], self.start[2], self.start[3], self.start[4]]) as usize;
                let longest = if self.start[0] == b'K' { *CANCEL_LENGTHS.end() } else { LONGEST };
                match length {
                    length if (4..=longest).contains(&length) && self.start[0].is_ascii_alphabetic() => {
                        self.left = length - 4;
                        self.end_message();
                    }
                    _ => self.found = Key::None,
                }
            }
        }
        &self.found
    }

    /// Handles a message if it is complete.
    fn end_message(&mut self) {
        if self.left > 0 {
            return;
        }
        match self.start[0] {
            b'K' => self.found = Key::Found(self.start[Self::HEADER..].to_vec()),
            // ReadyForQuery, or an error: the key would have come before.
            b'Z' | b'E' => self.found = Key::None,
            _ => self.start.clear(),
        }
    }
}

/// Returns an ErrorResponse of severity FATAL. `sqlstate`: five characters. `hint`: empty for none.
pub fn fatal(sqlstate: &str, message: &str, hint: &str) -> Vec<u8> {
    let mut fields = Vec::new();
    let hint = (!hint.is_empty()).then_some((b'H', hint));
    let all = [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', sqlstate), (b'M', message)];
    for (kind, text) in all.into_iter().chain(hint) {
        fields.push(kind);
        fields.extend(text.bytes().filter(|byte| *byte != 0));
        fields.push(0);
    }
    fields.push(0);
    let mut response = vec![b'E'];
    response.extend((fields.len() as u32 + 4).to_be_bytes());
    response.extend(fields);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_message_is_known_by_its_eighth_byte() {
        let startup = b"\0\0\0\x13\0\x03\0\0user\0demo\0\0";
        for (bytes, wanted) in [
            (&SSL_REQUEST[..], First::SslRequest),
            (&GSSENC_REQUEST, First::GssEncRequest),
            (b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01\0\0\0\x02", First::Cancel),
            (startup, First::Startup),
        ] {
            for end in 0..8 {
                assert_eq!(first(&bytes[..end]), First::NeedMore);
            }
            assert_eq!(first(bytes), wanted);
        }
        for bytes in [&b"GET / HT"[..], b"\x16\x03\x01", b"\0\0\0\x08\0\0\0\0", b"\xff", b"\0\0\xff\xff\0\x03\0\0"] {
            assert_eq!(first(bytes), First::Other, "{bytes:?}");
        }
    }

    fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[kind][..], &(payload.len() as u32 + 4).to_be_bytes(), payload].concat()
    }

    #[test]
    fn the_key_of_a_session_is_found_in_what_its_server_says() {
        let (short, long) = (b"\0\0\0\x07\x01\x02\x03\x04".to_vec(), [vec![0, 0, 0, 9], vec![7; 256]].concat());
        let start = [message(b'R', &[0; 4]), message(b'S', b"a\0b\0"), message(b'N', b"x\0\0")].concat();
        let ready = message(b'Z', b"I");
        for (said, key) in [
            ([&b"NN"[..], &start, &message(b'K', &short), &ready].concat(), Key::Found(short.clone())),
            ([&start[..], &message(b'K', &long)].concat(), Key::Found(long)),
            (b"S\x16\x03\x03".to_vec(), Key::Hidden),
            (b"NG".to_vec(), Key::Hidden),
            ([&start[..], &ready, &message(b'K', &short)].concat(), Key::None),
            ([&b"N"[..], &message(b'E', b"SFATAL\0\0")].concat(), Key::None),
            (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), Key::None),
            (b"K\xff\xff\xff\xff".to_vec(), Key::None),
            (start, Key::NotYet),
        ] {
            for size in [1, 3, said.len()] {
                let mut watch = KeyWatch::default();
                for piece in said.chunks(size) {
                    watch.take(piece);
                }
                assert_eq!(*watch.take(b""), key, "in pieces of {size}: {said:?}");
            }
        }
        let cancel = [&b"\0\0\0\x10\x04\xd2\x16\x2e"[..], &short].concat();
        assert_eq!(whole(&[&cancel[..], b"more"].concat()), Some(&cancel[..]));
        assert_eq!(whole(&cancel[..15]), None);
        assert_eq!(key_of_cancel(&cancel), short);
    }

    #[test]
    fn an_error_has_a_length_and_an_end() {
        let error = fatal("08004", "no\0 name", "use TLS");
        assert_eq!(error.len(), 1 + u32::from_be_bytes([error[1], error[2], error[3], error[4]]) as usize);
        assert!(error.ends_with(b"Mno name\0Huse TLS\0\0"));
    }
}
