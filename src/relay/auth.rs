//! Authentication of clients with shared keys, and the proofs that a client or relay has a key.

use std::{fmt, fs, io, ops::RangeInclusive, path::Path};

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use super::pattern::is_pattern;
use crate::{
    random,
    wire::relay::{Digest, Token},
};

/// Environment variable with the secret, for a relay without a key file.
pub const SECRET: &str = "ADIT_SECRET";

/// Minimum length of a secret in bytes. `adit server genkey` makes 43.
pub const SHORTEST_SECRET: usize = 16;

/// Name of a key without a name.
pub const DEFAULT_NAME: &str = "default";

/// A secret and its permissions.
#[derive(Clone)]
pub struct Key {
    pub name: String,
    pub secret: String,
    /// Public ports that clients may request. Empty: all ports of the server.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Names that clients may request; `web*` matches every name that starts with web. Empty: all.
    pub names: Vec<String>,
    /// Services that clients may take over: `shop/web`, `shop/*`. Empty: all that need no explicit entry, or none if the
    /// key limits ports or names; see [`Rules`](super::expose::authorize::Rules).
    pub services: Vec<String>,
}

/// Leaves the secret out.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Key");
        shown.field("name", &self.name).field("ports", &self.ports).field("names", &self.names);
        shown.field("services", &self.services).finish()
    }
}

impl Key {
    pub fn allows_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|range| range.contains(&port))
    }

    pub fn allows_name(&self, name: &str) -> bool {
        let is = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        };
        self.names.is_empty() || self.names.iter().any(is)
    }
}

/// Reasons why a text contains no valid keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    #[error("there is no secret in it: 'adit server genkey' makes one")]
    None,
    #[error("line {line}: {problem}")]
    Line { line: usize, problem: KeyProblem },
}

/// Reasons why a line is not a valid key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    #[error("a secret of less than {SHORTEST_SECRET} characters: 'adit server genkey' makes one")]
    ShortSecret,
    #[error("ports={0:?}: expected PORT or FIRST-LAST")]
    Ports(String),
    #[error("names={0:?}: expected NAME, or the start of names and a *, e.g. web or web-*")]
    Name(String),
    #[error("{0:?} is not NAMESPACE/NAME, e.g. shop/web or shop/*")]
    Service(String),
    #[error("{0:?} is not ports=..., names=... or services=...")]
    Word(String),
    #[error("there is a key {0} already")]
    Twice(String),
}

/// Reads a key file: one secret alone, or one key per line.
///
/// ```text
/// # name  secret                                       what it allows
/// ana     3Qd0zv0...                                   ports=20000-20010,8080 names=ana,ana-* services=shop/web,ana/*
/// ```
///
/// # Errors
/// Fails if the file cannot be read or a line is invalid. The message has the line number.
pub fn read_keys(path: &Path) -> io::Result<Vec<Key>> {
    parse_keys(&fs::read_to_string(path)?).map_err(|problem| io::Error::new(io::ErrorKind::InvalidData, problem))
}

/// Parses the content of a key file, like [`read_keys`].
///
/// # Errors
/// A line is no key, or two keys have one name.
pub fn parse_keys(text: &str) -> Result<Vec<Key>, KeysError> {
    // Editors on Windows start a file with a byte order mark. It is not part of the secret, and the other end does not
    // have it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let mut keys: Vec<Key> = Vec::new();
    for (at, line) in lines {
        let mut words = line.split_ascii_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next());
        let (name, secret) = second.map_or((DEFAULT_NAME, first), |secret| (first, secret));
        let wrong = |problem: KeyProblem| KeysError::Line { line: at + 1, problem };
        if secret.len() < SHORTEST_SECRET {
            return Err(wrong(KeyProblem::ShortSecret));
        }
        let mut key = Key {
            name: name.to_owned(),
            secret: secret.to_owned(),
            ports: Vec::new(),
            names: Vec::new(),
            services: Vec::new(),
        };
        for word in words {
            match word.split_once('=') {
                Some(("ports", list)) => {
                    for range in list.split(',') {
                        let ports = parse_ports(range).ok_or_else(|| KeyProblem::Ports(range.to_owned()));
                        key.ports.push(ports.map_err(wrong)?);
                    }
                }
                Some(("names", list)) => {
                    for pattern in list.split(',') {
                        // Names are compared in lower case.
                        let pattern = pattern.to_ascii_lowercase();
                        let start = pattern.strip_suffix('*').unwrap_or(&pattern);
                        let is_of_label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
                        if pattern.is_empty() || !start.bytes().all(is_of_label) {
                            return Err(wrong(KeyProblem::Name(pattern)));
                        }
                        key.names.push(pattern);
                    }
                }
                Some(("services", list)) => {
                    for pattern in list.split(',') {
                        if !is_pattern(pattern) {
                            return Err(wrong(KeyProblem::Service(pattern.to_owned())));
                        }
                        key.services.push(pattern.to_owned());
                    }
                }
                _ => return Err(wrong(KeyProblem::Word(word.to_owned()))),
            }
        }
        if keys.iter().any(|other| other.name == key.name) {
            return Err(wrong(KeyProblem::Twice(key.name)));
        }
        keys.push(key);
    }
    match keys.is_empty() {
        true => Err(KeysError::None),
        false => Ok(keys),
    }
}

/// Returns the keys of the file, or without a file the one in [`SECRET`]. There is at least one.
///
/// # Errors
/// Fails if there are no keys or they are invalid. The message names the file or variable.
pub fn load(file: Option<&Path>) -> io::Result<Vec<Key>> {
    let Some(file) = file else {
        let secret = std::env::var(SECRET)
            .map_err(|_| io::Error::new(io::ErrorKind::NotFound, format!("{SECRET} is not set")))?;
        return parse_keys(&secret).map_err(|problem| io::Error::other(format!("{SECRET}: {problem}")));
    };
    read_keys(file).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
}

/// Parses a range of ports: `8080`, or `10000-60000`.
pub fn parse_ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?);
    (first > 0 && first <= last).then_some(first..=last)
}

/// Returns a new secret: 256 random bits in URL-safe Base64.
///
/// # Errors
/// Fails if the system returns no random numbers.
pub fn new_secret() -> io::Result<String> {
    Ok(BASE64_URL_SAFE_NO_PAD.encode(random::bytes::<32>()?))
}

/// End that proves the secret. The proof of one end is not valid for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Server,
    Client,
}

/// Values from the handshake that both ends of a control connection have seen.
#[derive(Clone, Debug)]
pub struct Transcript {
    pub key: String,
    /// First port that the client requests.
    pub port: u16,
    pub client: Digest,
    pub server: Digest,
    /// Exporter of this TLS connection (RFC 5705). A man in the middle has a different one with each end.
    pub exporter: Digest,
}

impl Transcript {
    fn message(&self, role: Role) -> Vec<u8> {
        let label: &[u8] = match role {
            Role::Server => b"adit relay 2 server",
            Role::Client => b"adit relay 2 client",
        };
        let key = self.key.as_bytes();
        let port = self.port.to_be_bytes();
        [label, &[0], &self.client, &self.server, &self.exporter, &port, key].concat()
    }

    /// Returns the proof that `role` has the secret.
    pub fn proof(&self, secret: &str, role: Role) -> Digest {
        sign(secret, &self.message(role))
    }

    /// Checks a proof in constant time.
    pub fn is_proven(&self, secret: &str, role: Role, proof: &Digest) -> bool {
        verify(secret, &self.message(role), proof)
    }
}

/// Returns the proof that a connection belongs to a stream of a session.
pub fn claim(secret: &str, session: &Token, stream: &Token, exporter: &Digest) -> Digest {
    sign(secret, &claim_message(session, stream, exporter))
}

/// Checks the proof of [`claim`] in constant time.
pub fn is_claimed(secret: &str, session: &Token, stream: &Token, exporter: &Digest, proof: &Digest) -> bool {
    verify(secret, &claim_message(session, stream, exporter), proof)
}

fn claim_message(session: &Token, stream: &Token, exporter: &Digest) -> Vec<u8> {
    [&b"adit relay 2 stream\0"[..], session, stream, exporter].concat()
}

fn sign(secret: &str, message: &[u8]) -> Digest {
    let tag = hmac::sign(&hmac::Key::new(HMAC_SHA256, secret.as_bytes()), message);
    let mut digest = [0; 32];
    digest.copy_from_slice(tag.as_ref());
    digest
}

fn verify(secret: &str, message: &[u8], proof: &Digest) -> bool {
    hmac::verify(&hmac::Key::new(HMAC_SHA256, secret.as_bytes()), message, proof).is_ok()
}

/// Compares two secrets in constant time.
pub fn is_same(a: &[u8], b: &[u8]) -> bool {
    // With a random key, equal tags mean equal messages.
    let Ok(key) = random::bytes::<32>() else { return false };
    let key = hmac::Key::new(HMAC_SHA256, &key);
    hmac::verify(&key, b, hmac::sign(&key, a).as_ref()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_with_what_they_allow() {
        let keys =
            parse_keys("# keys\nana 0123456789abcdef ports=20000-20010,8080 names=ana,ana-*\nbo fedcba9876543210\n")
                .unwrap();
        assert!(keys[0].allows_port(8080) && keys[0].allows_port(20_005) && !keys[0].allows_port(8081));
        assert!(keys[0].allows_name("ana-web") && !keys[0].allows_name("anax") && keys[1].allows_name("anything"));
        assert_eq!(parse_keys("0123456789abcdef\n").unwrap()[0].name, DEFAULT_NAME);
        assert_eq!(parse_keys("\u{feff}0123456789abcdef\r\n").unwrap()[0].secret, "0123456789abcdef", "of Windows");
        assert!(parse_keys("bo 0123456789abcdef names=Bo*").unwrap()[0].allows_name("bob"));
        for (text, problem) in [
            ("", "no secret"),
            ("short", "less than 16"),
            ("a 0123456789abcdef ports=0", "line 1: ports=\"0\": expected PORT or FIRST-LAST"),
            ("a 0123456789abcdef names=", "line 1: names=\"\": expected NAME"),
            ("a 0123456789abcdef names=web,a.b", "line 1: names=\"a.b\": expected NAME"),
            ("a 0123456789abcdef x=1", "is not ports=..."),
            ("a 0123456789abcdef services=shop", "line 1: \"shop\" is not NAMESPACE/NAME"),
            ("a 0123456789abcdef\na 0123456789abcdef", "line 2: there is a key a already"),
        ] {
            assert!(parse_keys(text).unwrap_err().to_string().contains(problem), "{text}");
        }
        assert!(!format!("{:?}", keys[0]).contains("0123456789abcdef"));
    }

    #[test]
    fn a_proof_holds_for_its_own_conversation_alone() {
        let transcript = Transcript { key: "a".into(), port: 1, client: [1; 32], server: [2; 32], exporter: [3; 32] };
        let proof = transcript.proof("secret", Role::Client);
        assert!(transcript.is_proven("secret", Role::Client, &proof));
        assert!(!transcript.is_proven("other", Role::Client, &proof));
        assert!(!transcript.is_proven("secret", Role::Server, &proof), "reflected");
        for other in [
            Transcript { key: "b".into(), ..transcript.clone() },
            Transcript { port: 2, ..transcript.clone() },
            Transcript { client: [9; 32], ..transcript.clone() },
            Transcript { server: [9; 32], ..transcript.clone() },
            Transcript { exporter: [9; 32], ..transcript.clone() },
        ] {
            assert!(!other.is_proven("secret", Role::Client, &proof), "replayed: {other:?}");
        }
        let claimed = claim("secret", &[1; 16], &[2; 16], &[3; 32]);
        assert!(is_claimed("secret", &[1; 16], &[2; 16], &[3; 32], &claimed));
        assert!(!is_claimed("secret", &[1; 16], &[2; 16], &[4; 32], &claimed));
        assert!(is_same(b"x", b"x") && !is_same(b"x", b"xy"));
        assert!(new_secret().unwrap().len() >= SHORTEST_SECRET && new_secret().unwrap() != new_secret().unwrap());
    }
}
