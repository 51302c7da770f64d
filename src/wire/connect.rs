//! The CONNECT request of HTTP/1 (RFC 9110, section 9.3.6): the destination that a client of a proxy asks for.

use std::net::Ipv6Addr;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::http1::is_token;

/// Destination of a CONNECT request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// A name, or an address without brackets.
    pub host: String,
    pub port: u16,
    /// Credentials of the Proxy-Authorization header (RFC 7617). `None`: no such header, or not a basic one.
    pub credentials: Option<Credentials>,
}

/// User name and password that a client of a proxy sends.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: Vec<u8>,
}

/// Omits the password.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Why headers are not a CONNECT request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the request line is not CONNECT <host>:<port> HTTP/1.1")]
    RequestLine,
    #[error("a header is not <name>: <value>, or has control characters")]
    Header,
    #[error("a CONNECT request has no body")]
    Body,
}

/// Returns whether bytes begin like a CONNECT request.
pub fn is_connect(bytes: &[u8]) -> bool {
    bytes.starts_with(b"CONNECT ")
}

/// Parses a complete request, from its request line to its empty line.
///
/// # Errors
/// It is not a CONNECT request, or there is more than one way to read it.
pub fn parse(head: &[u8]) -> Result<Connect, Malformed> {
    let head = head.strip_suffix(b"\r\n\r\n").ok_or(Malformed::Header)?;
    let head = std::str::from_utf8(head).map_err(|_| Malformed::Header)?;
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default();
    let (host, port) = request_line(line).ok_or(Malformed::RequestLine)?;
    let mut credentials = None;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(Malformed::Header)?;
        let value = value.trim_matches([' ', '\t']);
        let is_name = !name.is_empty() && name.bytes().all(is_token);
        if !is_name || value.bytes().any(|byte| (byte < b' ' && byte != b'\t') || byte == 0x7f) {
            return Err(Malformed::Header);
        }
        match name.to_ascii_lowercase().as_str() {
            "transfer-encoding" => return Err(Malformed::Body),
            "content-length" if value != "0" => return Err(Malformed::Body),
            "proxy-authorization" => credentials = basic(value),
            _ => {}
        }
    }
    Ok(Connect { host, port, credentials })
}

/// Returns the credentials of an Authorization or Proxy-Authorization header. `None`: it does not use the basic scheme.
///
/// The user name ends at the last colon, unlike in RFC 7617: names of contexts have colons (`arn:aws:eks:...`), passwords of adit
/// have none.
pub fn basic(value: &str) -> Option<Credentials> {
    let (scheme, encoded) = value.split_once(' ')?;
    let decoded = STANDARD.decode(encoded.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let colon = decoded.iter().rposition(|byte| *byte == b':')?;
    let user = std::str::from_utf8(&decoded[..colon]).ok()?.to_owned();
    Some(Credentials { user, password: decoded[colon + 1..].to_vec() })
}

fn request_line(line: &str) -> Option<(String, u16)> {
    let mut parts = line.split(' ');
    let (method, authority, version) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || method != "CONNECT" || !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return None;
    }
    let (host, port) = authority.rsplit_once(':')?;
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port: u16 = port.parse().ok().filter(|port| is_number && *port > 0)?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.to_string(),
        None => host.to_owned(),
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    let is_name = !host.is_empty() && host.bytes().all(is_host) && (authority.starts_with('[') || !host.contains(':'));
    is_name.then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(head: &str) -> Result<Connect, Malformed> {
        // Incomplete requests are errors.
        for end in 0..head.len() {
            assert!(parse(&head.as_bytes()[..end]).is_err(), "{:?}", &head[..end]);
        }
        parse(head.as_bytes())
    }

    #[test]
    fn a_host_a_port_and_credentials_are_read() {
        let prod = |password: &[u8]| Some(Credentials { user: "prod".to_owned(), password: password.to_vec() });
        let of = |host: &str, port, credentials| Ok(Connect { host: host.to_owned(), port, credentials });
        // As curl 7.88 sends it.
        let curl = "CONNECT web.shop:443 HTTP/1.1\r\nHost: web.shop:443\r\nProxy-Authorization: Basic cHJvZDo=\r\n\
                    User-Agent: curl/7.88.1\r\nProxy-Connection: Keep-Alive\r\n\r\n";
        assert_eq!(parsed(curl), of("web.shop", 443, prod(b"")));
        assert_eq!(parsed("CONNECT [fd00::1]:80 HTTP/1.1\r\n\r\n"), of("fd00::1", 80, None));
        assert_eq!(parsed("CONNECT 10.0.0.5:80 HTTP/1.0\r\nContent-Length: 0\r\n\r\n"), of("10.0.0.5", 80, None));
        assert_eq!(basic("basic cHJvZDpzZWNyZXQ="), prod(b"secret"));
        let of_eks = basic(&format!("Basic {}", STANDARD.encode("arn:aws:eks:eu:1:cluster/a:"))).unwrap();
        assert_eq!((of_eks.user.as_str(), &of_eks.password[..]), ("arn:aws:eks:eu:1:cluster/a", &b""[..]));
        assert_eq!(basic("Basic OnA=").map(|found| (found.user, found.password)), Some((String::new(), b"p".to_vec())));
        for other in ["Bearer cHJvZDo=", "Basic", "Basic %", "Basic cHJvZA==", "Basic /zo=", ""] {
            assert_eq!(basic(other), None, "{other}");
        }
        let shown = format!("{:?}", basic("basic cHJvZDpzZWNyZXQ="));
        assert!(shown.contains("prod") && !shown.contains("115"), "no password is shown: {shown}");
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for (head, wanted) in [
            ("CONNECT web HTTP/1.1\r\n\r\n", Malformed::RequestLine),
            ("CONNECT web: HTTP/1.1\r\n\r\n", Malformed::RequestLine),
            ("CONNECT web:0 HTTP/1.1\r\n\r\n", Malformed::RequestLine),
            ("CONNECT web:+80 HTTP/1.1\r\n\r\n", Malformed::RequestLine),
            ("CONNECT web:99999 HTTP/1.1\r\n\r\n", Malformed::RequestLine),
            ("CONNECT :80 HTTP/1.1\r\n\r\n", Malformed::RequestLine),
            ("CONNECT fd00::1:80 HTTP/1.1\r\n\r\n", Malformed::RequestLine),
            ("CONNECT http://web:80 HTTP/1.1\r\n\r\n", Malformed::RequestLine),
            ("CONNECT web:80/ HTTP/1.1\r\n\r\n", Malformed::RequestLine),
            ("CONNECT a@web:80 HTTP/1.1\r\n\r\n", Malformed::RequestLine),
            ("CONNECT  web:80 HTTP/1.1\r\n\r\n", Malformed::RequestLine),
            ("CONNECT web:80 HTTP/2\r\n\r\n", Malformed::RequestLine),
            ("connect web:80 HTTP/1.1\r\n\r\n", Malformed::RequestLine),
            ("CONNECT web:80 HTTP/1.1\r\nHost\r\n\r\n", Malformed::Header),
            ("CONNECT web:80 HTTP/1.1\r\n folded: a\r\n\r\n", Malformed::Header),
            ("CONNECT web:80 HTTP/1.1\r\nA : b\r\n\r\n", Malformed::Header),
            ("CONNECT web:80 HTTP/1.1\r\nA: b\nC: d\r\n\r\n", Malformed::Header),
            ("CONNECT web:80 HTTP/1.1\r\nContent-Length: 5\r\n\r\n", Malformed::Body),
            ("CONNECT web:80 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", Malformed::Body),
        ] {
            assert_eq!(parsed(head), Err(wanted), "{head}");
        }
    }
}
