//! SOCKS5 (RFC 1928), with user name and password (RFC 1929): the messages of a client, and the answers of a server.
//!
//! | | bytes |
//! |---|---|
//! | greeting | `05`, count, that many methods |
//! | answer to the greeting | `05`, method |
//! | user name | `01`, length, name, length, password |
//! | answer to the user name | `01`, `00` if it is accepted |
//! | request | `05`, command, `00`, address type, address, port (2 bytes) |
//! | reply | `05`, code, `00`, `01`, 4 bytes of an address, 2 bytes of a port |
//!
//! An address is `01` and 4 bytes, `03`, a length and a name, or `04` and 16 bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::connect::Credentials;

pub const VERSION: u8 = 5;

/// Version of the user name and password message.
const AUTH_VERSION: u8 = 1;

/// Method: no authentication.
pub const NO_AUTH: u8 = 0;
/// Method: user name and password.
pub const USER_PASSWORD: u8 = 2;
/// None of the offered methods is acceptable.
pub const NO_METHOD: u8 = 0xff;

/// Maximum length of a client's message: a user name and a password of 255 bytes each.
pub const LONGEST: usize = 1 + 2 * 256;

/// Why bytes are not a SOCKS5 message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the version is not 5")]
    Version,
    #[error("no method of authentication is offered")]
    NoMethod,
    #[error("the version of the user name is not 1")]
    AuthVersion,
    #[error("the user name is not UTF-8")]
    User,
    #[error("the reserved byte is not 0")]
    Reserved,
    #[error("the address has a type that does not exist")]
    AddressType,
    #[error("the name of the destination is empty or no text")]
    Name,
    #[error("the port is 0")]
    Port,
}

/// Command of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Connect,
    /// BIND, UDP ASSOCIATE, or an unknown command.
    Other(u8),
}

/// Destination of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub command: Command,
    /// A name, or an address as text.
    pub host: String,
    pub port: u16,
}

/// Result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Succeeded = 0,
    Failure = 1,
    NotAllowed = 2,
    NetworkUnreachable = 3,
    HostUnreachable = 4,
    Refused = 5,
    /// "TTL expired" in RFC 1928.
    TimedOut = 6,
    CommandNotSupported = 7,
    AddressNotSupported = 8,
}

impl Reply {
    /// Returns the message. Its address is always 0.0.0.0:0.
    pub fn bytes(self) -> [u8; 10] {
        [VERSION, self as u8, 0, 1, 0, 0, 0, 0, 0, 0]
    }
}

/// Parses a greeting: returns the offered methods, and the length of the message. `None`: it is incomplete.
///
/// # Errors
/// It is not a SOCKS5 greeting.
pub fn greeting(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, Malformed> {
    match bytes {
        [] | [VERSION] => Ok(None),
        [VERSION, 0, ..] => Err(Malformed::NoMethod),
        [VERSION, count, rest @ ..] => {
            let methods = rest.get(..usize::from(*count));
            Ok(methods.map(|methods| (methods, 2 + methods.len())))
        }
        _ => Err(Malformed::Version),
    }
}

/// Parses a user name and password: returns them, and the length of the message. `None`: it is incomplete.
///
/// # Errors
/// It is not such a message.
pub fn user(bytes: &[u8]) -> Result<Option<(Credentials, usize)>, Malformed> {
    let (version, rest) = match bytes {
        [] => return Ok(None),
        [version, rest @ ..] => (*version, rest),
    };
    if version != AUTH_VERSION {
        return Err(Malformed::AuthVersion);
    }
    let Some((name, rest)) = counted(rest) else { return Ok(None) };
    let Some((password, _)) = counted(rest) else { return Ok(None) };
    let length = 3 + name.len() + password.len();
    let user = std::str::from_utf8(name).map_err(|_| Malformed::User)?.to_owned();
    Ok(Some((Credentials { user, password: password.to_vec() }, length)))
}

/// Parses a request: returns it, and its length. `None`: it is incomplete.
///
/// # Errors
/// It is not a request. [`Malformed::AddressType`] has its own reply.
pub fn request(bytes: &[u8]) -> Result<Option<(Request, usize)>, Malformed> {
    // Check each byte as soon as it is there.
    if bytes.first().is_some_and(|version| *version != VERSION) {
        return Err(Malformed::Version);
    }
    if bytes.get(2).is_some_and(|reserved| *reserved != 0) {
        return Err(Malformed::Reserved);
    }
    let [_, command, _, kind, rest @ ..] = bytes else { return Ok(None) };
    let (host, rest) = match kind {
        1 => match rest.split_first_chunk::<4>() {
            Some((address, rest)) => (IpAddr::from(Ipv4Addr::from(*address)).to_string(), rest),
            None => return Ok(None),
        },
        3 => match counted(rest) {
            Some((name, rest)) => match std::str::from_utf8(name) {
                Ok(name) if is_name(name) => (name.to_owned(), rest),
                _ => return Err(Malformed::Name),
            },
            None => return Ok(None),
        },
        4 => match rest.split_first_chunk::<16>() {
            Some((address, rest)) => (IpAddr::from(Ipv6Addr::from(*address)).to_string(), rest),
            None => return Ok(None),
        },
        _ => return Err(Malformed::AddressType),
    };
    let Some((port, behind)) = rest.split_first_chunk::<2>() else { return Ok(None) };
    let port = u16::from_be_bytes(*port);
    if port == 0 {
        return Err(Malformed::Port);
    }
    let command = if *command == 1 { Command::Connect } else { Command::Other(*command) };
    Ok(Some((Request { command, host, port }, bytes.len() - behind.len())))
}

/// Returns the answer to a user name and password.
pub fn user_answer(is_accepted: bool) -> [u8; 2] {
    [AUTH_VERSION, u8::from(!is_accepted)]
}

/// Splits off a field that begins with its length.
fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

/// Names appear in logs, so they must not have spaces or control characters.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|char| !char.is_control() && !char.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the result for the complete message. Checks that each prefix gives `None` or the same error.
    fn by_prefixes<T: PartialEq + std::fmt::Debug>(
        message: &[u8],
        parse: impl Fn(&[u8]) -> Result<Option<T>, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        let mut known: Result<Option<T>, Malformed> = Ok(None);
        for end in 0..=message.len() {
            let now = parse(&message[..end]);
            assert!(known == Ok(None) || known == now, "the answer changed at byte {end}: {now:?}");
            known = now;
        }
        known
    }

    fn asked(message: &[u8]) -> Result<Option<(Request, usize)>, Malformed> {
        by_prefixes(message, request)
    }

    fn connect(host: &str, port: u16, length: usize) -> Result<Option<(Request, usize)>, Malformed> {
        Ok(Some((Request { command: Command::Connect, host: host.to_owned(), port }, length)))
    }

    #[test]
    fn greetings_offer_methods() {
        let of = |message: &[u8]| {
            by_prefixes(message, |bytes| Ok(greeting(bytes)?.map(|(methods, n)| (methods.to_vec(), n))))
        };
        // As curl 7.88 sends it, with and without a user.
        assert_eq!(of(b"\x05\x02\x00\x02"), Ok(Some((vec![0, 2], 4))));
        assert_eq!(of(b"\x05\x01\x00\x05\x01"), Ok(Some((vec![0], 3))), "what follows is the next message");
        assert_eq!(of(b"\x05\x03\x00"), Ok(None));
        assert_eq!(of(b"\x05\x00"), Err(Malformed::NoMethod));
        assert_eq!(of(b"\x04\x01\x00\x50"), Err(Malformed::Version));
    }

    #[test]
    fn user_names_are_read_with_their_passwords() {
        let of = |message: &[u8]| {
            by_prefixes(message, |bytes| {
                Ok(user(bytes)?.map(|(Credentials { user, password }, length)| (user, password, length)))
            })
        };
        assert_eq!(of(b"\x01\x04prod\x00"), Ok(Some(("prod".into(), vec![], 7))));
        assert_eq!(of(b"\x01\x00\x01x\x05"), Ok(Some(("".into(), vec![b'x'], 4))));
        assert_eq!(of(b"\x01\x04prod\x02a"), Ok(None));
        assert_eq!(of(b"\x05\x04prod\x00"), Err(Malformed::AuthVersion));
        assert_eq!(of(b"\x01\x01\xff\x00"), Err(Malformed::User));
    }

    #[test]
    fn requests_name_a_host_in_three_forms() {
        assert_eq!(asked(b"\x05\x01\x00\x03\x08web.shop\x00\x50"), connect("web.shop", 80, 15));
        assert_eq!(asked(b"\x05\x01\x00\x01\x0a\x00\x00\x05\x01\xbb"), connect("10.0.0.5", 443, 10));
        let six = [&b"\x05\x01\x00\x04"[..], &[0xfd; 1], &[0; 14], &[1, 0x1f, 0x90]].concat();
        assert_eq!(asked(&six), connect("fd00::1", 8080, 22));
        let bind = asked(b"\x05\x02\x00\x01\x0a\x00\x00\x05\x01\xbb").unwrap().unwrap().0;
        assert_eq!(bind.command, Command::Other(2));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for (message, wanted) in [
            (&b"\x04\x01"[..], Malformed::Version),
            (b"\x05\x01\x01", Malformed::Reserved),
            (b"\x05\x01\x00\x02", Malformed::AddressType),
            (b"\x05\x01\x00\x03\x00", Malformed::Name),
            (b"\x05\x01\x00\x03\x02\xff\xff", Malformed::Name),
            (b"\x05\x01\x00\x03\x03a b", Malformed::Name),
            (b"\x05\x01\x00\x03\x02a\n", Malformed::Name),
            (b"\x05\x01\x00\x03\x01a\x00\x00", Malformed::Port),
        ] {
            assert_eq!(asked(message), Err(wanted), "{message:?}");
        }
    }

    #[test]
    fn replies_have_ten_bytes() {
        assert_eq!(Reply::Refused.bytes(), [5, 5, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!((user_answer(true), user_answer(false)), ([1, 0], [1, 1]));
    }
}
