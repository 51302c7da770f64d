//! Identifies the protocol of a server by its answer to a first message.

use std::time::Duration;

use jiff::Timestamp;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::{
    config::Scheme,
    io::BoxedIo,
    k8s::ServicePort,
    routing::PortProtocol,
    tls::{certificate::Certificate, shown_certificate},
    wire::postgres::SSL_REQUEST,
};

/// Time limit of the server's answer.
const WITHIN: Duration = Duration::from_secs(3);

const TLS: &str = "TLS";

/// https and its alternative ports, and LDAP, IMAP and MQTT over TLS.
const TLS_PORTS: [u16; 7] = [443, 8443, 6443, 636, 993, 9443, 8883];

/// Expected protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    Http,
    Tls,
    Postgres,
    Redis,
    MySql,
    /// A protocol in which the server speaks first, or an unknown one.
    Other,
}

impl Speaks {
    /// Returns the likely protocol of a port, by its name and number.
    pub fn of(port: &ServicePort) -> Self {
        let name = port.name.as_deref().unwrap_or_default();
        match PortProtocol::of_name(name).or_else(|| PortProtocol::of_number(port.number)) {
            Some(PortProtocol::Postgres) => Self::Postgres,
            Some(PortProtocol::Redis) => Self::Redis,
            Some(PortProtocol::MySql) => Self::MySql,
            _ if TLS_PORTS.contains(&port.number) || name == "tls" || name.starts_with("tls-") => Self::Tls,
            _ if port.hint() == Some(Scheme::Https) => Self::Tls,
            _ if crate::k8s::ports::is_web(port) => Self::Http,
            _ => Self::Other,
        }
    }

    /// Returns the name of the protocol for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Tls => "TLS",
            Self::Postgres => "PostgreSQL",
            Self::Redis => "Redis",
            Self::MySql => "MySQL",
            Self::Other => "a server that greets",
        }
    }

    /// Returns the scheme of a server whose answer is described by `says`. `None`: the expected one, or neither http nor https.
    pub fn other_than(self, says: &str) -> Option<Scheme> {
        match self {
            Self::Tls if says.starts_with(Self::Http.name()) => Some(Scheme::Http),
            Self::Http if says.starts_with(TLS) => Some(Scheme::Https),
            _ => None,
        }
    }

    /// Sends a first message, and returns a description of the answer. `open`: opens a new connection. `host`: the server's name
    /// for HTTP and TLS. `None`: no answer, or an unknown one.
    pub async fn ask(self, open: impl AsyncFn() -> Option<BoxedIo>, host: &str) -> Option<String> {
        if self == Self::Tls {
            return tls(open().await?, host).await;
        }
        let mut stream = open().await?;
        let request = match self {
            Self::Http => {
                format!("HEAD / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: adit-doctor\r\nConnection: close\r\n\r\n")
                    .into_bytes()
            }
            Self::Postgres => SSL_REQUEST.to_vec(),
            Self::Redis => b"PING\r\n".to_vec(),
            // The server speaks first.
            Self::MySql | Self::Tls | Self::Other => Vec::new(),
        };
        stream.write_all(&request).await.ok()?;
        stream.flush().await.ok()?;
        let mut answer = vec![0; 1024];
        let count = timeout(WITHIN, stream.read(&mut answer)).await.ok()?.ok()?;
        let says = self.understand(&answer[..count]);
        // A TLS server has closed this connection after the plain message, so try TLS on a new one.
        match says {
            Some(says) if says == TLS => Some(tls(open().await?, host).await.unwrap_or(says)),
            says => says,
        }
    }

    fn understand(self, answer: &[u8]) -> Option<String> {
        let text = String::from_utf8_lossy(answer);
        let first = text.lines().next().unwrap_or_default();
        match self {
            Self::Http if first.starts_with("HTTP/1.") => {
                Some(format!("HTTP, which answers {}", first.get(9..).unwrap_or_default().trim()))
            }
            // A TLS alert or handshake record; below, an HTTP/2 SETTINGS frame.
            Self::Http if matches!(answer, [0x15 | 0x16, 3, ..]) => Some(TLS.to_owned()),
            Self::Http if answer.get(3) == Some(&4) => Some("HTTP/2".to_owned()),
            Self::Postgres => match answer {
                b"S" => Some("PostgreSQL, with TLS".to_owned()),
                b"N" => Some("PostgreSQL, without TLS".to_owned()),
                [b'E', ..] => Some("PostgreSQL, which refuses connections".to_owned()),
                _ => None,
            },
            Self::Redis if first == "+PONG" => Some("Redis".to_owned()),
            Self::Redis if first.starts_with("-NOAUTH") => Some("Redis, which requires a password".to_owned()),
            Self::Redis if first.starts_with('-') => Some(format!("Redis, which answers {first}")),
            Self::MySql | Self::Other if mysql(answer).is_some() => mysql(answer),
            Self::Other if !answer.is_empty() => {
                Some(format!("a server that greets with {:?}", first.chars().take(40).collect::<String>()))
            }
            _ => None,
        }
    }
}

/// Returns a description of a MySQL or MariaDB server's first packet: three bytes of length, a sequence number, then 10 and the
/// version up to a zero byte, or 255 and an error (Protocol::HandshakeV10, ERR_Packet).
fn mysql(answer: &[u8]) -> Option<String> {
    let [low, high, 0, 0, kind, ..] = answer else { return None };
    let body = answer.get(5..4 + usize::from(*low) + 256 * usize::from(*high))?;
    match kind {
        10 => {
            let version = String::from_utf8_lossy(body.split(|byte| *byte == 0).next()?).into_owned();
            let name = if version.contains("MariaDB") { "MariaDB" } else { "MySQL" };
            Some(format!("{name} {}", version.trim_start_matches("5.5.5-")))
        }
        255 => Some("MySQL, which refuses connections".to_owned()),
        _ => None,
    }
}

/// Makes a TLS handshake, and returns a description of the server's certificate.
async fn tls(stream: BoxedIo, host: &str) -> Option<String> {
    let name = ServerName::try_from(host.to_owned()).ok()?;
    let shaking = shown_certificate(stream, name, &[b"h2", b"http/1.1"]);
    let (shown, protocol) = timeout(WITHIN, shaking).await.ok()?.ok()?;
    let by = protocol.map(|protocol| format!(" with {}", String::from_utf8_lossy(&protocol))).unwrap_or_default();
    Some(match Certificate::parse(&shown) {
        Some(certificate) => format!("{TLS}{by}, {}", certificate_in_words(&certificate, Timestamp::now().as_second())),
        None => format!("{TLS}{by}"),
    })
}

/// Returns a description of a certificate. `now`: seconds since 1970.
fn certificate_in_words(certificate: &Certificate<'_>, now: i64) -> String {
    let days = (certificate.not_after - now).div_euclid(24 * 60 * 60);
    let validity = match days {
        ..0 => format!("which expired {} days ago", -days),
        days => format!("valid for {days} days"),
    };
    let of = certificate.subject_name().map(|name| format!(" of {name}")).unwrap_or_default();
    let by = match certificate.issuer_name() {
        _ if certificate.issuer == certificate.subject => " by itself".to_owned(),
        name => name.map(|name| format!(" by {name}")).unwrap_or_default(),
    };
    format!("with a certificate{of}, issued{by}, {validity}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let says = |speaks: Speaks, answer: &[u8]| speaks.understand(answer);
        assert_eq!(says(Speaks::Http, b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap(), "HTTP, which answers 404 Not Found");
        assert_eq!(says(Speaks::Http, b"\x15\x03\x01\x00\x02").unwrap(), "TLS");
        assert_eq!(says(Speaks::Postgres, b"N").unwrap(), "PostgreSQL, without TLS");
        assert_eq!(says(Speaks::Redis, b"+PONG\r\n").unwrap(), "Redis");
        let greeting = b"\x18\0\0\0\x0a5.5.5-11.4.2-MariaDB\0..";
        assert_eq!(says(Speaks::MySql, &greeting[..20]), None, "it is longer than what came");
        for speaks in [Speaks::MySql, Speaks::Other] {
            assert_eq!(says(speaks, greeting).unwrap(), "MariaDB 11.4.2-MariaDB");
        }
        assert_eq!(says(Speaks::MySql, b"\x08\0\0\0\x0a8.4.0\0\x01").unwrap(), "MySQL 8.4.0");
        assert_eq!(
            says(Speaks::Redis, b"-NOAUTH Authentication required.\r\n").unwrap(),
            "Redis, which requires a password"
        );
        for (speaks, answer) in
            [(Speaks::Http, &b"SSH-2.0"[..]), (Speaks::Postgres, b"HTTP"), (Speaks::Redis, b""), (Speaks::Other, b"")]
        {
            assert_eq!(says(speaks, answer), None, "{speaks:?}");
        }
        for (speaks, says, other) in [
            (Speaks::Tls, "HTTP, which answers 200 OK", Some(Scheme::Http)),
            (Speaks::Http, "TLS with h2", Some(Scheme::Https)),
            (Speaks::Http, "HTTP, which answers 200 OK", None),
            (Speaks::Tls, "TLS", None),
            (Speaks::Redis, "HTTP", None),
        ] {
            assert_eq!(speaks.other_than(says), other, "{speaks:?} {says}");
        }
    }
}
