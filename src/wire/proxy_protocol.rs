//! The PROXY protocol, versions 1 and 2: the address of a proxy's client. (HAProxy, "The PROXY protocol", 2020/03/05.)
//!
//! ```text
//! v1:  PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n         at most 107 bytes
//! v2:  signature 12 | version, command 1 | family, protocol 1 | length 2 | addresses, then TLVs: type 1, length 2, value
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Maximum length of a line of version 1, with its CRLF.
const LONGEST_LINE: usize = 107;

/// Version of the header to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    V1,
    V2,
}

/// Parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the header in bytes.
    pub length: usize,
    /// Address of the client, and the address that it dialled. `None`: the proxy speaks for itself (LOCAL), or does not
    /// know (UNKNOWN, UNSPEC).
    pub addresses: Option<(SocketAddr, SocketAddr)>,
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

/// Parses the header at the start of `bytes`. `None`: it is incomplete.
///
/// # Errors
/// As soon as the bytes cannot be a header.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let is_start_of = |whole: &[u8]| whole.starts_with(&bytes[..bytes.len().min(whole.len())]);
    match bytes {
        [b'P', ..] if is_start_of(b"PROXY ") => v1(bytes),
        [b'\r', ..] if is_start_of(SIGNATURE) => v2(bytes),
        [] => Ok(None),
        _ => Err(Malformed("no PROXY header")),
    }
}

fn v1(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some(end) = bytes.iter().take(LONGEST_LINE).position(|byte| *byte == b'\n') else {
        return if bytes.len() >= LONGEST_LINE { Err(Malformed("a line longer than 107 bytes")) } else { Ok(None) };
    };
    let line = bytes[..end].strip_suffix(b"\r").ok_or(Malformed("a line that does not end with CRLF"))?;
    let line = std::str::from_utf8(line).map_err(|_| Malformed("a line that is not ASCII"))?;
    let mut words = line.split(' ').skip(1);
    let length = end + 1;
    let is_v4 = match words.next() {
        Some("TCP4") => true,
        Some("TCP6") => false,
        Some("UNKNOWN") => return Ok(Some(Header { length, addresses: None })),
        _ => return Err(Malformed("a family other than TCP4, TCP6 and UNKNOWN")),
    };
    let mut address = || {
        let ip: IpAddr = words.next()?.parse().ok()?;
        (ip.is_ipv4() == is_v4).then_some(ip)
    };
    let (source, destination) = (address(), address());
    let mut port = || {
        let word = words.next()?;
        // No sign, and no leading zero.
        (word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'))).then_some(())?;
        word.parse::<u16>().ok()
    };
    let (from, to) = (port(), port());
    match (source, destination, from, to, words.next()) {
        (Some(source), Some(destination), Some(from), Some(to), None) => {
            let addresses = Some((SocketAddr::new(source, from), SocketAddr::new(destination, to)));
            Ok(Some(Header { length, addresses }))
        }
        _ => Err(Malformed("addresses or ports that are none")),
    }
}

fn v2(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some((start, rest)) = bytes.split_at_checked(16) else { return Ok(None) };
    // High nibble: version 2. Low nibble: 0 is LOCAL, 1 is PROXY.
    let is_local = match start[12] {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed("a version or command that is not known")),
    };
    let length = usize::from(u16::from_be_bytes([start[14], start[15]]));
    // High nibble: 0 is unspecified, 1 IPv4, 2 IPv6, 3 Unix sockets. Low nibble: 1 is TCP, 2 UDP (streams and datagrams).
    let addresses_length = match start[13] {
        // Specification: for LOCAL, the receiver ignores the family and the protocol.
        _ if is_local => 0,
        0x00 => 0,
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        _ => return Err(Malformed("an address family or a protocol that is not known")),
    };
    if length < addresses_length {
        return Err(Malformed("a header shorter than its addresses"));
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let length = 16 + length;
    if is_local {
        // Specification: for LOCAL, the receiver ignores the addresses.
        return Ok(Some(Header { length, addresses: None }));
    }
    check_tlvs(&body[addresses_length..])?;
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let addresses = match start[13] {
        0x11 => {
            let ip = |at: usize| Ipv4Addr::from([body[at], body[at + 1], body[at + 2], body[at + 3]]);
            Some((SocketAddr::new(ip(0).into(), port(8)), SocketAddr::new(ip(4).into(), port(10))))
        }
        0x21 => {
            let ip = |at: usize| Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|offset| body[at + offset]));
            Some((SocketAddr::new(ip(0).into(), port(32)), SocketAddr::new(ip(16).into(), port(34))))
        }
        // UDP and Unix sockets: there is no address of a TCP client.
        _ => None,
    };
    Ok(Some(Header { length, addresses }))
}

fn check_tlvs(mut rest: &[u8]) -> Result<(), Malformed> {
    while let [_, high, low, value @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        rest = value.get(length..).ok_or(Malformed("a TLV longer than the header"))?;
    }
    if rest.is_empty() { Ok(()) } else { Err(Malformed("a TLV that is cut off")) }
}

/// Returns the header for a client at `source` that dialled `destination`.
pub fn write(version: Version, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (source_ip, destination_ip) = same_family(source.ip(), destination.ip());
    match version {
        Version::V1 => {
            let family = if source_ip.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.port(), destination.port());
            format!("PROXY {family} {source_ip} {destination_ip} {from} {to}\r\n").into_bytes()
        }
        Version::V2 => {
            let mut bytes = SIGNATURE.to_vec();
            let mut put = |family: u8, ips: &[&[u8]]| {
                let length = ips.iter().map(|ip| ip.len()).sum::<usize>() as u16 + 4;
                bytes.extend([0x21, family]);
                bytes.extend(length.to_be_bytes());
                ips.iter().for_each(|ip| bytes.extend_from_slice(ip));
            };
            match (source_ip, destination_ip) {
                (IpAddr::V4(from), IpAddr::V4(to)) => put(0x11, &[&from.octets(), &to.octets()]),
                (IpAddr::V6(from), IpAddr::V6(to)) => put(0x21, &[&from.octets(), &to.octets()]),
                _ => {}
            }
            bytes.extend(source.port().to_be_bytes());
            bytes.extend(destination.port().to_be_bytes());
            bytes
        }
    }
}

/// If only one address is IPv6, maps the other one to IPv6.
fn same_family(a: IpAddr, b: IpAddr) -> (IpAddr, IpAddr) {
    let mapped = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => IpAddr::V6(ip.to_ipv6_mapped()),
        ip => ip,
    };
    match (a.to_canonical(), b.to_canonical()) {
        (a @ IpAddr::V4(_), b @ IpAddr::V4(_)) => (a, b),
        (a, b) => (mapped(a), mapped(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_prefixes(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
        for end in 0..bytes.len() {
            match parse(&bytes[..end]) {
                Ok(None) => {}
                other => return other,
            }
        }
        parse(bytes)
    }

    #[test]
    fn what_is_written_is_read() {
        for (source, destination) in
            [("192.0.2.1:56324", "192.0.2.2:443"), ("[2001:db8::1]:1", "[::1]:65535"), ("192.0.2.1:1", "[::1]:2")]
        {
            let (source, destination): (SocketAddr, SocketAddr) =
                (source.parse().unwrap(), destination.parse().unwrap());
            for version in [Version::V1, Version::V2] {
                let bytes = write(version, source, destination);
                let header = by_prefixes(&bytes).unwrap().unwrap();
                let (from, to) = header.addresses.unwrap();
                assert_eq!(header.length, bytes.len());
                assert_eq!((from.ip().to_canonical(), from.port()), (source.ip(), source.port()));
                assert_eq!((to.ip().to_canonical(), to.port()), (destination.ip(), destination.port()));
            }
        }
    }

    #[test]
    fn a_proxy_may_speak_for_itself() {
        let none = |bytes: &[u8]| {
            assert_eq!(by_prefixes(bytes).unwrap().unwrap(), Header { length: bytes.len(), addresses: None })
        };
        none(b"PROXY UNKNOWN\r\n");
        none(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n");
        none(b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0");
        none(b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0\x03abc");
        none(b"\r\n\r\n\0\r\nQUIT\n\x20\x42\0\x03abc");
        none(b"\r\n\r\n\0\r\nQUIT\n\x20\xff\0\0");
        none(b"\r\n\r\n\0\r\nQUIT\n\x21\x00\0\x04\x04\0\x01x");
        // The longest.
        none(&[b"\r\n\r\n\0\r\nQUIT\n\x20\x00\xff\xff", &[b'x'; 0xffff][..]].concat());
        none(&[b"\r\n\r\n\0\r\nQUIT\n\x21\x00\xff\xff\x04\xff\xfc", &[b'x'; 0xfffc][..]].concat());
    }

    #[test]
    fn what_is_no_header_is_an_error() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            b"PROXY TCP4 192.0.2.1  192.0.2.2 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            &[b"PROXY UNKNOWN ", &[b'x'; 100][..]].concat(),
            b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x44\0\x0c",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0b___________",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f____________\x04\0\x05",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0e____________\x04\0",
        ] {
            assert!(by_prefixes(bytes).is_err(), "{:?}", bytes.escape_ascii().to_string());
        }
    }
}
