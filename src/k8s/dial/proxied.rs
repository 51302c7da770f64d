//! Connections through a proxy: CONNECT (RFC 9110, section 9.3.6) and SOCKS5 (RFC 1928, RFC 1929), as Go's clients use
//! them.

use std::{io, net::IpAddr};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::BoxError;

use crate::{
    io::{BoxedIo, prefixed::Prefixed},
    wire::socks5::{NO_AUTH, NO_METHOD, USER_PASSWORD, VERSION},
};

/// Maximum length of an answer to CONNECT. Corporate proxies send some KiB of cookies and policies.
const LONGEST_HEAD: usize = 256 * 1024;

/// Reasons why a proxy gives no connection. Display follows the proxy's name: `the proxy proxy.example.com:3128 ...`.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// TCP or TLS to the proxy failed.
    #[error("cannot be reached")]
    Unreached(#[source] BoxError),
    /// `scheme`: the scheme of the proxy's URL.
    #[error("requires a user and a password: write them into its URL, {scheme}://USER:PASSWORD@HOST:PORT")]
    WantsUser { scheme: &'static str },
    #[error("does not accept the user and the password of its URL")]
    NotAccepted,
    /// An answer to CONNECT other than 200.
    #[error("answers {status:?} to CONNECT {to}")]
    Refused { status: String, to: String },
    /// An error reply of a SOCKS5 proxy.
    #[error("cannot connect to {to}: {why}")]
    Failed { to: String, why: &'static str },
    #[error("closed the connection without an answer: check its scheme and port")]
    Closed,
    #[error("accepts the connection and does not answer: check its scheme and port")]
    Silent,
    #[error("does not answer as {what} does: check its scheme and port")]
    Odd { what: &'static str },
    #[error("broke the connection off")]
    Broken(#[source] io::Error),
}

impl From<io::Error> for ProxyError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Broken(error),
        }
    }
}

/// Destination of a connection through a proxy. `host`: without brackets.
pub struct Destination<'a> {
    pub host: &'a str,
    pub port: u16,
}

impl std::fmt::Display for Destination<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Sends CONNECT to an HTTP proxy. `authorization`: the value of Proxy-Authorization.
///
/// # Errors
/// Fails if the status is not 200, as in Go, or if there is no answer.
pub async fn connect(mut io: BoxedIo, to: Destination<'_>, authorization: Option<&str>) -> Result<BoxedIo, ProxyError> {
    let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: adit\r\n");
    if let Some(value) = authorization {
        request.push_str(&format!("Proxy-Authorization: {value}\r\n"));
    }
    io.write_all(format!("{request}\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    let end = loop {
        // As in Go, a line may end without CR.
        let lines = head.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
        let empty = |at: usize| [&b"\n"[..], b"\r\n"].into_iter().find(|end| head[at..].starts_with(end));
        if let Some(end) = lines.into_iter().find_map(|at| Some(at + empty(at)?.len())) {
            break end;
        }
        if head.len() > LONGEST_HEAD || !b"HTTP/1.".starts_with(&head[..head.len().min(7)]) {
            return Err(ProxyError::Odd { what: "an HTTP proxy" });
        }
        if io.read_buf(&mut head).await? == 0 {
            return Err(ProxyError::Closed);
        }
    };
    let line = head.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let (_, status) = line.split_once(' ').ok_or(ProxyError::Odd { what: "an HTTP proxy" })?;
    match (status.split(' ').next().unwrap_or_default(), authorization) {
        ("200", _) => Ok(Box::new(Prefixed::new(Bytes::from(head.split_off(end)), io))),
        ("407", None) => Err(ProxyError::WantsUser { scheme: "http" }),
        ("407", Some(_)) => Err(ProxyError::NotAccepted),
        _ => Err(ProxyError::Refused { status: status.trim().chars().take(100).collect(), to: to.to_string() }),
    }
}

/// Sends a SOCKS5 request to a proxy. If there is a user, the proxy chooses whether to authenticate it.
///
/// # Errors
/// Fails if the proxy refuses or does not answer.
pub async fn socks5(
    mut io: BoxedIo,
    to: Destination<'_>,
    user: Option<&(String, String)>,
) -> Result<BoxedIo, ProxyError> {
    const ODD: ProxyError = ProxyError::Odd { what: "a SOCKS5 proxy" };
    let offered: &[u8] = if user.is_some() { &[VERSION, 2, NO_AUTH, USER_PASSWORD] } else { &[VERSION, 1, NO_AUTH] };
    io.write_all(offered).await?;
    let mut chosen = [0; 2];
    io.read_exact(&mut chosen).await?;
    match (chosen, user) {
        ([VERSION, NO_AUTH], _) => {}
        ([VERSION, USER_PASSWORD], Some((name, password))) => {
            // The protocol allows at most 255 bytes.
            let text = |text: &str| [&[u8::try_from(text.len()).unwrap_or(0)], text.as_bytes()].concat();
            if name.is_empty() || name.len() > 255 || password.len() > 255 {
                return Err(ProxyError::NotAccepted);
            }
            io.write_all(&[&[1][..], &text(name), &text(password)].concat()).await?;
            let mut answer = [0; 2];
            io.read_exact(&mut answer).await?;
            if answer[1] != 0 {
                return Err(ProxyError::NotAccepted);
            }
        }
        ([VERSION, NO_METHOD], Some(_)) => return Err(ProxyError::NotAccepted),
        ([VERSION, NO_METHOD | USER_PASSWORD], None) => return Err(ProxyError::WantsUser { scheme: "socks5" }),
        _ => return Err(ODD),
    }
    let address = match to.host.parse() {
        Ok(IpAddr::V4(address)) => [&[1], &address.octets()[..]].concat(),
        Ok(IpAddr::V6(address)) => [&[4], &address.octets()[..]].concat(),
        Err(_) => {
            let why = "its name is too long for SOCKS5";
            let length = u8::try_from(to.host.len());
            let length = length.map_err(|_| ProxyError::Failed { to: to.to_string(), why })?;
            [&[3, length], to.host.as_bytes()].concat()
        }
    };
    io.write_all(&[&[VERSION, 1, 0][..], &address, &to.port.to_be_bytes()].concat()).await?;
    let mut reply = [0; 4];
    io.read_exact(&mut reply).await?;
    if reply[0] != VERSION {
        return Err(ODD);
    }
    if reply[1] != 0 {
        return Err(ProxyError::Failed { to: to.to_string(), why: why(reply[1]) });
    }
    // The proxy's own address and port.
    let length = match reply[3] {
        1 => 4,
        4 => 16,
        3 => usize::from(io.read_u8().await?),
        _ => return Err(ODD),
    };
    io.read_exact(&mut vec![0; length + 2]).await?;
    Ok(io)
}

/// Returns the meaning of a SOCKS5 reply (RFC 1928, section 6).
fn why(code: u8) -> &'static str {
    match code {
        2 => "its rules do not allow it",
        3 => "it cannot reach the network",
        4 => "it cannot reach the host, or does not know its name",
        5 => "the connection is refused",
        6 => "nothing answers",
        7 => "it does not support CONNECT",
        8 => "it does not know this kind of address",
        _ => "it has failed",
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    /// Simulates a proxy: reads the expected bytes, and answers. Returns the client's result.
    async fn asked<T: Future<Output = Result<BoxedIo, ProxyError>>>(
        script: &[(&[u8], &[u8])],
        client: impl FnOnce(BoxedIo) -> T,
    ) -> Result<String, String> {
        let (near, mut far) = duplex(4096);
        let playing = async {
            for (wanted, answer) in script {
                let mut read = vec![0; wanted.len()];
                far.read_exact(&mut read).await.unwrap();
                assert_eq!(String::from_utf8_lossy(&read), String::from_utf8_lossy(wanted));
                // Byte by byte: the client must wait for the whole answer.
                for byte in *answer {
                    far.write_all(&[*byte]).await.unwrap();
                }
            }
            drop(far);
        };
        let (ended, ()) = tokio::join!(client(Box::new(near)), playing);
        let mut rest = String::new();
        ended.map_err(|error| error.to_string())?.read_to_string(&mut rest).await.unwrap();
        Ok(rest)
    }

    #[tokio::test]
    async fn a_connection_is_asked_for_and_each_refusal_is_told() {
        let asks = b"CONNECT [fd00::1]:6443 HTTP/1.1\r\nHost: [fd00::1]:6443\r\nUser-Agent: adit\r\n\r\n";
        let long = format!("HTTP/1.1 200 OK\r\n{}\r\nhello", "X-Policy: 0123456789abcdef\r\n".repeat(1000));
        for (answer, wanted) in [
            ("HTTP/1.1 200 Connection established\r\n\r\nhello", Ok("hello")),
            ("HTTP/1.0 200\r\n\r\n", Ok("")),
            ("HTTP/1.1 200 OK\nX: y\n\n\nhello", Ok("\nhello")),
            (&long, Ok("hello")),
            (
                "HTTP/1.1 403 Forbidden by policy\r\n\r\nno",
                Err("answers \"403 Forbidden by policy\" to CONNECT [fd00::1]:6443"),
            ),
            ("HTTP/1.1 201 Created\r\n\r\n", Err("answers \"201 Created\" to")),
            ("HTTP/1.1 407 No\r\n\r\n", Err("requires a user and a password: write them into its URL, http://USER")),
            ("HTTP/1.1 200 OK\r\n", Err("closed the connection without an answer")),
            ("", Err("closed the connection without an answer")),
            ("\x15\x03\x01\x00\x02\x02\x50", Err("does not answer as an HTTP proxy does")),
        ] {
            let to = Destination { host: "fd00::1", port: 6443 };
            let found = asked(&[(asks, answer.as_bytes())], |io| connect(io, to, None)).await;
            match (&found, wanted) {
                (Ok(rest), Ok(wanted)) => assert_eq!(rest, wanted),
                (Err(error), Err(wanted)) => assert!(error.starts_with(wanted), "{error}"),
                _ => panic!("{answer}: {found:?}"),
            }
        }
        let asks = b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nUser-Agent: adit\r\nProxy-Authorization: Basic x\r\n\r\n";
        let to = Destination { host: "a", port: 1 };
        let refused = asked(&[(asks, b"HTTP/1.1 407 No\r\n\r\n")], |io| connect(io, to, Some("Basic x"))).await;
        assert_eq!(refused.unwrap_err(), "does not accept the user and the password of its URL");
    }

    #[tokio::test]
    async fn a_socks_proxy_chooses_whether_it_wants_a_user_and_says_why_it_refuses() {
        let user = ("ana".to_owned(), "b".to_owned());
        let (offer, plain): (&[u8], &[u8]) = (b"\x05\x02\x00\x02", b"\x05\x01\x00");
        let request: &[u8] = b"\x05\x01\x00\x03\x01a\x00\x50";
        let name: &[u8] = b"\x01\x03ana\x01b";
        let reply: &[u8] = b"\x05\x00\x00\x03\x02xy\x00\x01hello";
        type Script<'a> = &'a [(&'a [u8], &'a [u8])];
        let cases: [(bool, Script<'_>, Result<&str, &str>); 10] = [
            (false, &[(plain, b"\x05\x00"), (request, reply)], Ok("hello")),
            (true, &[(offer, b"\x05\x00"), (request, b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")], Ok("")),
            (true, &[(offer, b"\x05\x02"), (name, b"\x01\x00"), (request, reply)], Ok("hello")),
            (true, &[(offer, b"\x05\x02"), (name, b"\x01\x01")], Err("does not accept the user")),
            (true, &[(offer, b"\x05\xff")], Err("does not accept the user")),
            (false, &[(plain, b"\x05\xff")], Err("requires a user and a password: write them into its URL, socks5://")),
            (false, &[(plain, b"HTTP/1.1 400")], Err("does not answer as a SOCKS5 proxy")),
            (false, &[(plain, b"")], Err("closed the connection without an answer")),
            (
                false,
                &[(plain, b"\x05\x00"), (request, b"\x05\x02\x00\x01")],
                Err("cannot connect to a:80: its rules do not"),
            ),
            (
                false,
                &[(plain, b"\x05\x00"), (request, b"\x05\x05\x00\x01")],
                Err("cannot connect to a:80: the connection is"),
            ),
        ];
        for (has_user, script, wanted) in cases {
            let to = Destination { host: "a", port: 80 };
            let found = asked(script, |io| socks5(io, to, has_user.then_some(&user))).await;
            match (&found, wanted) {
                (Ok(rest), Ok(wanted)) => assert_eq!(rest, wanted),
                (Err(error), Err(wanted)) => assert!(error.starts_with(wanted), "{error}"),
                _ => panic!("{script:?}: {found:?}"),
            }
        }
    }
}
