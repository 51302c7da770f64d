//! The TLS ClientHello: only the fields that are needed for routing (RFC 8446, section 4.1.2; RFC 6066, section 3).
//!
//! ```text
//! record:     type 22 | version 2 | length 2 | fragment      (a hello may be split over several)
//! handshake:  type 1  | length 3 | version 2 | random 32 | session id <1> | cipher suites <2> | compression <1> | extensions <2>
//! extension:  type 2  | length 2  | body       server_name: type 0;  ALPN: type 16
//! ```

use std::net::IpAddr;

/// Maximum length of a ClientHello, with the headers of its records. Browsers send under 2 KiB, including post-quantum
/// key shares and ECH; TLS itself allows 16 MiB.
pub const LONGEST: usize = 64 * 1024;

/// Fields of a ClientHello for routing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    pub server_name: ServerName,
    /// Protocols that the client offers, in its order. Empty: no ALPN.
    pub alpn: Vec<Vec<u8>>,
}

/// The server_name extension.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ServerName {
    /// No extension: the client dialled an address.
    #[default]
    Absent,
    /// A DNS name, lower case, without a trailing dot.
    Name(String),
    /// An IP literal, which RFC 6066 forbids but some clients send.
    Address(IpAddr),
}

/// Result of parsing the bytes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parse {
    Hello(ClientHello),
    NeedMore,
}

/// Why bytes are not a ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    #[error("not a TLS handshake")]
    NotTls,
    #[error("the first handshake message is not a ClientHello")]
    NotAHello,
    #[error("the ClientHello is longer than {LONGEST} bytes")]
    TooLong,
    #[error("the ClientHello is malformed: {0}")]
    Malformed(&'static str),
    #[error("the server name is not a DNS name")]
    BadName,
}

/// Parses the first bytes of a TLS connection, from the first record header on.
///
/// # Errors
/// As soon as no further bytes could make it a ClientHello.
pub fn parse(bytes: &[u8]) -> Result<Parse, HelloError> {
    let Some(message) = handshake_message(bytes)? else {
        return if bytes.len() > LONGEST { Err(HelloError::TooLong) } else { Ok(Parse::NeedMore) };
    };
    body(&message).map(Parse::Hello)
}

/// Returns the minimum number of bytes before the ClientHello can be complete, as far as its headers tell.
pub fn missing_to(bytes: &[u8]) -> usize {
    let (mut at, mut message, mut headers) = (0, 0, 0);
    while let Some([_, _, _, high, low]) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        headers += 5;
        // The length of the message is in its first four bytes. Only a hostile client splits these over two records.
        if at == 0
            && let Some([_, a, b, c]) = bytes.get(5..).and_then(|rest| rest.first_chunk())
            && length >= 4
        {
            message = 4 + (usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c));
        }
        if length == 0 || at + 5 + length > bytes.len() {
            return bytes.len().max((at + 5 + length).min(message + headers)).min(LONGEST);
        }
        at += 5 + length;
    }
    bytes.len() + 1
}

/// Returns the first handshake message without its header, joined from its records. `None`: it is incomplete.
fn handshake_message(bytes: &[u8]) -> Result<Option<Vec<u8>>, HelloError> {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        match rest {
            [] => return Ok(None),
            [0x16] | [0x16, 0x03] | [0x16, 0x03, _] | [0x16, 0x03, _, _] => return Ok(None),
            [0x16, 0x03, _, high, low, fragment @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                // An empty handshake fragment is forbidden, and a record holds at most 2^14 bytes (RFC 8446, section 5.1).
                if length == 0 || length > 1 << 14 {
                    return Err(HelloError::Malformed("record length"));
                }
                let here = fragment.len().min(length);
                message.extend_from_slice(&fragment[..here]);
                if let Some((&kind, after)) = message.split_first() {
                    if kind != 1 {
                        return Err(HelloError::NotAHello);
                    }
                    if let [a, b, c, body @ ..] = after {
                        let wanted = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
                        if wanted > LONGEST {
                            return Err(HelloError::TooLong);
                        }
                        if body.len() >= wanted {
                            return Ok(Some(body[..wanted].to_vec()));
                        }
                    }
                }
                if here < length {
                    return Ok(None);
                }
                rest = &fragment[length..];
            }
            _ => return Err(HelloError::NotTls),
        }
    }
}

fn body(message: &[u8]) -> Result<ClientHello, HelloError> {
    let mut reader = Reader(message);
    reader.take(2 + 32).ok_or(HelloError::Malformed("random"))?;
    reader.vector8().ok_or(HelloError::Malformed("session id"))?;
    reader.vector16().ok_or(HelloError::Malformed("cipher suites"))?;
    reader.vector8().ok_or(HelloError::Malformed("compression methods"))?;
    let mut hello = ClientHello::default();
    let mut seen = [false; 2];
    if reader.0.is_empty() {
        return Ok(hello); // TLS 1.2 without extensions.
    }
    let mut extensions = Reader(reader.vector16().ok_or(HelloError::Malformed("extensions"))?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16().ok_or(HelloError::Malformed("extension type"))?;
        let data = Reader(extensions.vector16().ok_or(HelloError::Malformed("extension length"))?);
        let seen = match kind {
            0 => &mut seen[0],
            16 => &mut seen[1],
            _ => continue,
        };
        // With two names, adit could route by one and the backend could serve the other (RFC 8446, section 4.2).
        if std::mem::replace(seen, true) {
            return Err(HelloError::Malformed("an extension comes twice"));
        }
        match kind {
            0 => hello.server_name = server_name(data)?,
            _ => hello.alpn = alpn(data).ok_or(HelloError::Malformed("ALPN"))?,
        }
    }
    Ok(hello)
}

fn server_name(mut data: Reader<'_>) -> Result<ServerName, HelloError> {
    let mut names = Reader(data.vector16().ok_or(HelloError::Malformed("server name"))?);
    while !names.0.is_empty() {
        let kind = names.take(1).ok_or(HelloError::Malformed("server name"))?[0];
        let name = names.vector16().ok_or(HelloError::Malformed("server name"))?;
        if kind == 0 {
            let name = std::str::from_utf8(name).map_err(|_| HelloError::BadName)?;
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            if let Ok(address) = name.trim_start_matches('[').trim_end_matches(']').parse() {
                return Ok(ServerName::Address(address));
            }
            let label_is_valid = |label: &str| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            };
            // 253 characters in text form are the 255 bytes of RFC 1035, section 2.3.4.
            return match name.len() <= 253 && name.split('.').all(label_is_valid) {
                true => Ok(ServerName::Name(name)),
                false => Err(HelloError::BadName),
            };
        }
    }
    Ok(ServerName::Absent)
}

fn alpn(mut data: Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = Reader(data.vector16()?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        protocols.push(list.vector8()?.to_vec());
    }
    Some(protocols)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a hello with the given extensions, in records of at most `record` bytes.
    fn hello(extensions: &[(u16, Vec<u8>)], record: usize) -> Vec<u8> {
        let mut list = Vec::new();
        for (kind, data) in extensions {
            list.extend(kind.to_be_bytes());
            list.extend((data.len() as u16).to_be_bytes());
            list.extend(data);
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend((list.len() as u16).to_be_bytes());
        body.extend(list);
        let mut message = vec![1, 0, (body.len() >> 8) as u8, body.len() as u8];
        message.extend(body);
        let mut bytes = Vec::new();
        for fragment in message.chunks(record) {
            bytes.extend([0x16, 3, 1]);
            bytes.extend((fragment.len() as u16).to_be_bytes());
            bytes.extend(fragment);
        }
        bytes
    }

    fn sni(name: &[u8]) -> (u16, Vec<u8>) {
        let mut data = ((name.len() + 3) as u16).to_be_bytes().to_vec();
        data.push(0);
        data.extend((name.len() as u16).to_be_bytes());
        data.extend(name);
        (0, data)
    }

    #[test]
    fn a_hello_is_found_at_its_last_byte_however_it_is_split() {
        let extensions =
            [(21, vec![0; 900]), sni(b"Web.Shop.localhost."), (16, b"\x00\x0c\x02h2\x08http/1.1".to_vec())];
        for record in [1, 2, 5, 100, 16384] {
            let bytes = hello(&extensions, record);
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), Ok(Parse::NeedMore), "record {record}, byte {end}");
            }
            let Ok(Parse::Hello(found)) = parse(&bytes) else { panic!("record {record}: not parsed") };
            assert_eq!(found.server_name, ServerName::Name("web.shop.localhost".into()));
            assert_eq!(found.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        }
    }

    #[test]
    fn what_is_missing_is_never_more_than_the_rest_of_the_hello() {
        let extensions = [(21, vec![0; 900]), sni(b"web.shop.localhost")];
        for (record, most_looks) in [(1, usize::MAX), (2, usize::MAX), (5, usize::MAX), (100, 100), (16384, 10)] {
            let bytes = hello(&extensions, record);
            let (mut looks, mut worth_a_look) = (0, 0);
            for end in 0..bytes.len() {
                let missing_to = missing_to(&bytes[..end]);
                assert!(missing_to <= bytes.len(), "record {record}, byte {end}: {missing_to} of {}", bytes.len());
                looks += usize::from(end >= worth_a_look);
                worth_a_look = worth_a_look.max(missing_to);
            }
            assert!(looks <= most_looks, "record {record}: parsed {looks} times");
        }
    }

    #[test]
    fn addresses_and_absence_are_told_apart() {
        let name = |bytes: Vec<u8>| match parse(&bytes) {
            Ok(Parse::Hello(hello)) => hello.server_name,
            other => panic!("{other:?}"),
        };
        assert_eq!(name(hello(&[], 16384)), ServerName::Absent);
        assert_eq!(name(hello(&[sni(b"10.0.0.1")], 16384)), ServerName::Address("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn what_cannot_become_a_hello_is_an_error_at_once() {
        assert_eq!(parse(b"GET / HTTP/1.1"), Err(HelloError::NotTls));
        assert_eq!(parse(b"\x80\x2e\x01\x03\x01"), Err(HelloError::NotTls));
        assert_eq!(parse(b"\x16\x03\x01\x00\x04\x02"), Err(HelloError::NotAHello));
        assert_eq!(parse(b"\x16\x03\x01\x00\x00"), Err(HelloError::Malformed("record length")));
        assert_eq!(parse(b"\x16\x03\x01\x00\x10\x01\xff\xff\xff"), Err(HelloError::TooLong));
        assert_eq!(parse(&hello(&[sni(b"a b")], 16384)), Err(HelloError::BadName));
        let twice = hello(&[sni(b"a.localhost"), sni(b"b.localhost")], 16384);
        assert_eq!(parse(&twice), Err(HelloError::Malformed("an extension comes twice")));
        assert_eq!(parse(&hello(&[sni(b"a..b")], 16384)), Err(HelloError::BadName));
    }

    #[test]
    fn the_hellos_of_real_clients_are_read() {
        let name = ServerName::Name("web.shop.localhost".into());
        let alpn = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        for (bytes, server_name, alpn) in [
            (&include_bytes!("../../tests/golden/client_hello/curl-7.88.1")[..], name.clone(), alpn.clone()),
            (include_bytes!("../../tests/golden/client_hello/openssl-3.0.19-tls1.2"), name, alpn),
            (include_bytes!("../../tests/golden/client_hello/openssl-3.0.19-nameless"), ServerName::Absent, Vec::new()),
        ] {
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), Ok(Parse::NeedMore), "byte {end}");
            }
            assert_eq!(parse(bytes), Ok(Parse::Hello(ClientHello { server_name, alpn })));
        }
    }
}
