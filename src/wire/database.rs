//! Errors of database servers other than PostgreSQL, as they are sent before a session.

use crate::printable::line;

/// Database protocols, by the format of their error packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    Postgres,
    /// The server sends the first packet.
    MySql,
    /// RESP, without TLS.
    Redis,
}

impl Database {
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::MySql => "MySQL",
            Self::Redis => "Redis",
        }
    }
}

/// Returns whether these first bytes of a client are a RESP request: an array of bulk strings, or an inline command.
pub fn is_resp(bytes: &[u8]) -> bool {
    match bytes {
        [b'*', digit, ..] => digit.is_ascii_digit(),
        _ => ["PING\r\n", "QUIT\r\n", "AUTH ", "HELLO "]
            .iter()
            .any(|word| bytes.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))),
    }
}

/// Returns a RESP error.
pub fn redis_error(message: &str) -> Vec<u8> {
    format!("-ERR {}\r\n", line(message)).into_bytes()
}

/// Returns MySQL's ERR packet in place of the server's greeting. It has no SQL state, because the server knows nothing
/// of its client yet ("ERR_Packet" in the documentation).
pub fn mysql_error(message: &str) -> Vec<u8> {
    /// ER_HANDSHAKE_ERROR.
    const CODE: u16 = 1043;
    /// Maximum length of the message in bytes.
    const LONGEST: usize = 512;
    let mut end = message.len().min(LONGEST);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let payload = [&[0xff][..], &CODE.to_le_bytes(), &message.as_bytes()[..end]].concat();
    let length = (payload.len() as u32).to_le_bytes();
    [&length[..3], &[0], &payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_clients_are_known_by_their_first_bytes() {
        for bytes in [&b"*1\r\n$4\r\nPING\r\n"[..], b"*2\r\n", b"PING\r\n", b"auth secret\r\n"] {
            assert!(is_resp(bytes), "{bytes:?}");
        }
        for bytes in [&b""[..], b"*", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"P"] {
            assert!(!is_resp(bytes), "{bytes:?}");
        }
    }

    #[test]
    fn errors_are_one_message() {
        assert_eq!(redis_error("no pod\r\nis ready"), b"-ERR no pod  is ready\r\n");
        let error = mysql_error("no pod");
        assert_eq!(error, b"\x09\0\0\0\xff\x13\x04no pod");
        assert_eq!(mysql_error(&"\u{e9}".repeat(1_000)).len(), 4 + 3 + 512);
    }
}
