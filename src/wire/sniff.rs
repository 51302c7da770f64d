//! Tells protocols apart by their first bytes.

use super::{
    http1::{MOST_EMPTY_LINES, is_token},
    postgres,
};

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tls,
    Http1,
    Http2,
    /// PostgreSQL before its TLS.
    Postgres,
}

/// What the first bytes of a connection tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniff {
    Is(Protocol),
    NeedMore,
    Unknown,
}

/// The client connection preface (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// No registered method is longer than 17 bytes (UPDATEREDIRECTREF); twice that is room for private ones.
const LONGEST_METHOD: usize = 34;

/// Returns what a connection speaks, from its first bytes: never a different answer for a longer prefix,
/// once it is not [`Sniff::NeedMore`].
pub fn sniff(bytes: &[u8]) -> Sniff {
    // A TLS record that carries a handshake: type 22, legacy version 3.x (RFC 8446, section 5.1).
    match bytes {
        [] | [0x16] => return Sniff::NeedMore,
        [0x16, 0x03, ..] => return Sniff::Is(Protocol::Tls),
        _ => {}
    }
    match postgres::first(bytes) {
        postgres::First::NeedMore => return Sniff::NeedMore,
        postgres::First::Other => {}
        _ => return Sniff::Is(Protocol::Postgres),
    }
    let common = bytes.iter().zip(HTTP2_PREFACE).take_while(|(a, b)| a == b).count();
    if common == HTTP2_PREFACE.len() {
        return Sniff::Is(Protocol::Http2);
    }
    if common == bytes.len() {
        return Sniff::NeedMore;
    }
    // Empty lines before a request line are to be ignored by a robust server (RFC 9112, section 2.2).
    let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if blank > 2 * MOST_EMPTY_LINES {
        return Sniff::Unknown;
    }
    let line = &bytes[blank..];
    match line.iter().position(|byte| !is_token(*byte)) {
        Some(0) => Sniff::Unknown,
        Some(end) if line[end] == b' ' && end <= LONGEST_METHOD => Sniff::Is(Protocol::Http1),
        None if line.len() <= LONGEST_METHOD => Sniff::NeedMore,
        _ => Sniff::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_prefixes(message: &[u8]) -> Sniff {
        let mut answer = Sniff::NeedMore;
        for end in 0..=message.len() {
            let now = sniff(&message[..end]);
            assert!(answer == Sniff::NeedMore || answer == now, "the answer changed at byte {end}");
            answer = now;
        }
        answer
    }

    #[test]
    fn tls_is_told_by_its_record() {
        assert_eq!(by_prefixes(b"\x16\x03\x01\x02\x00\x01"), Sniff::Is(Protocol::Tls));
    }

    #[test]
    fn http1_is_told_by_its_method() {
        assert_eq!(by_prefixes(b"GET / HTTP/1.1\r\n\r\n"), Sniff::Is(Protocol::Http1));
        assert_eq!(by_prefixes(b"\r\nVERSION-CONTROL /x HTTP/1.1\r\n"), Sniff::Is(Protocol::Http1));
        assert_eq!(by_prefixes(b"PROPFIND /x HTTP/1.1\r\n"), Sniff::Is(Protocol::Http1));
    }

    #[test]
    fn http2_is_told_by_its_whole_preface() {
        assert_eq!(by_prefixes(HTTP2_PREFACE), Sniff::Is(Protocol::Http2));
        assert_eq!(by_prefixes(b"PRI * HTTP/1.1\r\n"), Sniff::Is(Protocol::Http1));
    }

    #[test]
    fn postgres_is_told_by_its_first_message() {
        assert_eq!(by_prefixes(&postgres::SSL_REQUEST), Sniff::Is(Protocol::Postgres));
        assert_eq!(by_prefixes(&postgres::GSSENC_REQUEST), Sniff::Is(Protocol::Postgres));
    }

    #[test]
    fn the_rest_is_unknown() {
        for message in [
            &b"\x00\x00\x00\x08\x00\x00\x00\x00"[..],
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"\x80\x2e\x01\x03\x01",
            b" GET /",
            &[b'A'; 35],
        ] {
            assert_eq!(by_prefixes(message), Sniff::Unknown, "{message:?}");
        }
    }
}
