//! The first messages of PostgreSQL's protocol 3.0, as far as they come before TLS (its documentation, "Message Formats").
//!
//! ```text
//! length 4, itself included | code 4 | parameters:  name\0 value\0 ... \0
//! ```

/// The request for TLS: answered with `S` or `N`, alone.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// The request for encryption by GSSAPI: answered with `G` or `N`, alone.
pub const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

const CANCEL_REQUEST: [u8; 4] = [0x04, 0xd2, 0x16, 0x2e];

/// PostgreSQL itself takes no longer start-up message.
const LONGEST: usize = 10_000;

/// What a client says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    SslRequest,
    GssEncRequest,
    /// A cancel request without TLS: there is nothing in it that says for whom it is.
    Cancel,
    /// A start-up message without TLS.
    Startup,
    NeedMore,
    /// Something else than PostgreSQL.
    Other,
}

/// Tells what a client says first.
pub fn first(bytes: &[u8]) -> First {
    let Some(start) = bytes.first_chunk::<8>() else {
        let could_be = bytes.iter().zip([0, 0]).all(|(byte, wanted)| *byte == wanted);
        return if could_be { First::NeedMore } else { First::Other };
    };
    let length = u32::from_be_bytes([start[0], start[1], start[2], start[3]]) as usize;
    match &start[4..] {
        _ if *start == SSL_REQUEST => First::SslRequest,
        _ if *start == GSSENC_REQUEST => First::GssEncRequest,
        code if *code == CANCEL_REQUEST && (12..=272).contains(&length) => First::Cancel,
        // Version 3, and those that the protocol's negotiation reserves beside it.
        [0, 3, _, _] if (9..=LONGEST).contains(&length) => First::Startup,
        _ => First::Other,
    }
}

/// Returns an ErrorResponse of severity FATAL. `sqlstate`: five characters.
pub fn fatal(sqlstate: &str, message: &str, hint: &str) -> Vec<u8> {
    let mut fields = Vec::new();
    for (kind, text) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', sqlstate), (b'M', message), (b'H', hint)] {
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
        let startup = b"\0\0\0\x17\0\x03\0\0user\0demo\0\0";
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

    #[test]
    fn an_error_has_a_length_and_an_end() {
        let error = fatal("08004", "no\0 name", "use TLS");
        assert_eq!(error.len(), 1 + u32::from_be_bytes([error[1], error[2], error[3], error[4]]) as usize);
        assert!(error.ends_with(b"Mno name\0Huse TLS\0\0"));
    }
}
