//! Recognises protocols by their first bytes.

use super::{
    http1::{MOST_EMPTY_LINES, is_token},
    postgres, socks5,
};

/// Protocol of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tls,
    Http1,
    Http2,
    /// PostgreSQL before TLS.
    Postgres,
    Socks5,
}

/// Result of sniffing the first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniff {
    Is(Protocol),
    NeedMore,
    Unknown,
}

/// The client connection preface (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Maximum length of a method. No registered one is longer than 17 bytes (UPDATEREDIRECTREF); twice that leaves room
/// for private ones.
const LONGEST_METHOD: usize = 34;

/// Returns the protocol of a client, from its first bytes. Once the result is not [`Sniff::NeedMore`], more bytes do
/// not change it.
pub fn sniff(bytes: &[u8]) -> Sniff {
    // A TLS record that carries a handshake: type 22, legacy version 3.x (RFC 8446, section 5.1).
    match bytes {
        [] | [0x16] => return Sniff::NeedMore,
        [0x16, 0x03, ..] => return Sniff::Is(Protocol::Tls),
        [socks5::VERSION, ..] => return Sniff::Is(Protocol::Socks5),
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
    // A robust server ignores empty lines before a request line (RFC 9112, section 2.2).
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

/// Returns the protocol of a server, from the first bytes of its answer. Like [`sniff`], but for servers.
///
/// HTTP/2 begins with a SETTINGS frame (RFC 9113, section 3.4), or with the GOAWAY of a server that refuses. TLS begins
/// with a handshake record or an alert.
pub fn sniff_server(bytes: &[u8]) -> Sniff {
    const HTTP1: &[u8] = b"HTTP/1.";
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    /// Length, type, flags and stream id of a frame (RFC 9113, section 4.1).
    const FRAME_HEADER: usize = 9;
    match bytes {
        [] | [0x15 | 0x16] => return Sniff::NeedMore,
        [0x15 | 0x16, 0x03, ..] => return Sniff::Is(Protocol::Tls),
        _ => {}
    }
    let common = bytes.iter().zip(HTTP1).take_while(|(a, b)| a == b).count();
    if common == HTTP1.len() {
        return Sniff::Is(Protocol::Http1);
    }
    if common == bytes.len() {
        return Sniff::NeedMore;
    }
    // Neither frame is longer than 16 KiB, the default limit of every peer.
    let could_be = |at: usize, is: fn(u8) -> bool| bytes.get(at).is_none_or(|byte| is(*byte));
    let is_frame = could_be(0, |byte| byte == 0)
        && could_be(1, |byte| byte <= 0x40)
        && could_be(3, |byte| byte == SETTINGS || byte == GOAWAY)
        && could_be(5, |byte| byte & 0x7f == 0)
        && (6..FRAME_HEADER).all(|at| could_be(at, |byte| byte == 0));
    match is_frame {
        true if bytes.len() >= FRAME_HEADER => Sniff::Is(Protocol::Http2),
        true => Sniff::NeedMore,
        false => Sniff::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_told_apart_by_their_first_bytes() {
        for (message, answer) in [
            (&b"HTTP/1.0 400 Bad Request\r\n"[..], Sniff::Is(Protocol::Http1)),
            (b"\x15\x03\x01\x00\x02\x02\x46", Sniff::Is(Protocol::Tls)),
            (b"\x16\x03\x03\x00\x7a", Sniff::Is(Protocol::Tls)),
            (b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64", Sniff::Is(Protocol::Http2)),
            (b"\x00\x00\x08\x07\x00\x00\x00\x00\x00", Sniff::Is(Protocol::Http2)),
            (b"\x00\x00\x06\x04\x00\x00\x00\x00", Sniff::NeedMore),
            (b"\x00\x00\x06\x04\x00\x00\x00\x00\x01", Sniff::Unknown),
            (b"\x00\x00\x06\x00\x00\x00\x00\x00\x01", Sniff::Unknown),
            (b"HTTP", Sniff::NeedMore),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Sniff::Unknown),
            (b"-ERR unknown command\r\n", Sniff::Unknown),
            (b"<!DOCTYPE HTML>", Sniff::Unknown),
        ] {
            let mut found = Sniff::NeedMore;
            for end in 0..=message.len() {
                let now = sniff_server(&message[..end]);
                assert!(found == Sniff::NeedMore || found == now, "the answer changed at byte {end}");
                found = now;
            }
            assert_eq!(found, answer, "{message:?}");
        }
    }

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
    fn socks5_is_told_by_its_version() {
        assert_eq!(by_prefixes(b"\x05\x02\x00\x02"), Sniff::Is(Protocol::Socks5));
        assert_eq!(by_prefixes(b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00"), Sniff::Unknown);
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
