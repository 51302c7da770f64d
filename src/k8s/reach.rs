//! Explains why an API server could not be reached. Pure: an error in, a text out.

use std::{error::Error, io, net::IpAddr};

use rustls::{AlertDescription, CertificateError};

use super::dial::ProxyError;
use crate::telemetry::reasons;

const NO_CIPHER: &str =
    "the server has no version or cipher of TLS that adit has: TLS 1.3, or TLS 1.2 with ECDHE and AES-GCM or ChaCha20";

/// Error text for plain HTTP to a TLS server.
pub const SPEAKS_TLS: &str = "the server speaks TLS: write https:// in front of its host in the kubeconfig";

/// Returns the reason. `server`: its URL. `proxy`: the proxy before it, without credentials.
pub fn reason(error: &(dyn Error + 'static), server: &http::Uri, proxy: Option<&str>) -> String {
    let chain = chain(error);
    let host = server.host().unwrap_or_default();
    if let (Some(proxy), Some(error)) = (proxy, chain.iter().find_map(|error| error.downcast_ref::<ProxyError>())) {
        return match error {
            ProxyError::Unreached(error) => format!("the proxy {proxy} {}", of_proxy(&**error)),
            error => format!("the proxy {proxy} {error}"),
        };
    }
    if let Some(error) = tls_error(error) {
        return of_tls(error, host);
    }
    if let Some(alert) = alert(&chain) {
        return of_alert(alert, host);
    }
    let texts: Vec<String> = chain.iter().map(|error| error.to_string()).collect();
    let says = |text: &str| texts.iter().any(|said| said.contains(text));
    let io = chain.iter().rev().find_map(|error| error.downcast_ref::<io::Error>());
    if says("dns error") {
        return format!("the name of {host} is not known: check DNS and the VPN");
    }
    if says("invalid HTTP version parsed") && server.scheme_str() == Some("http") {
        return SPEAKS_TLS.to_owned();
    }
    match io {
        Some(error) => of_io(error),
        None if says("connection closed before message completed") => "the server closed the connection".to_owned(),
        None => reasons(error),
    }
}

/// Returns the TLS error in the chain of an error.
pub fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    chain(error).into_iter().find_map(|error| error.downcast_ref())
}

/// Returns whether the server ended TLS because of the client certificate.
pub fn is_about_identity(error: &(dyn Error + 'static)) -> bool {
    alert(&chain(error)).is_some_and(is_about_certificate)
}

/// Returns the alert that ended TLS. HTTP/2 errors keep only its text.
fn alert(chain: &[&(dyn Error + 'static)]) -> Option<AlertDescription> {
    chain.iter().find_map(|error| match error.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
        Some(_) => None,
        None => {
            let text = error.to_string();
            let (_, name) = text.split_once("received fatal alert: ")?;
            let name = name.split(|char: char| !char.is_ascii_alphanumeric()).next()?;
            (0..=u8::MAX).map(AlertDescription::from).find(|alert| format!("{alert:?}") == name)
        }
    })
}

fn is_about_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::NoCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
    )
}

/// Returns the error and all its sources, including those inside an [`io::Error`].
fn chain<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a (dyn Error + 'static)> {
    let mut chain = vec![error];
    // Limited, because an error could be its own source.
    while chain.len() < 16 {
        let last = chain[chain.len() - 1];
        let wrapped = last.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let next = wrapped.map(|inner| inner as &'a (dyn Error + 'static)).or_else(|| last.source());
        match next {
            Some(next) => chain.push(next),
            None => break,
        }
    }
    chain
}

fn of_tls(error: &rustls::Error, host: &str) -> String {
    match error {
        rustls::Error::InvalidCertificate(problem) => of_certificate(problem, host),
        rustls::Error::AlertReceived(alert) => of_alert(*alert, host),
        rustls::Error::InvalidMessage(_) => {
            "the server does not speak TLS: write http:// in the kubeconfig, or check its port".to_owned()
        }
        rustls::Error::PeerIncompatible(_) => NO_CIPHER.to_owned(),
        other => format!("TLS failed: {other}"),
    }
}

fn of_alert(alert: AlertDescription, host: &str) -> String {
    match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "the server requires a client certificate, and the user has none".to_owned()
        }
        AlertDescription::CertificateExpired => "the server says that the client certificate has expired".to_owned(),
        alert if is_about_certificate(alert) => "the server does not accept the client certificate".to_owned(),
        AlertDescription::UnrecognisedName => {
            format!("the server knows no host {host}: set tls-server-name in the kubeconfig")
        }
        AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion => NO_CIPHER.to_owned(),
        alert => format!("the server ended TLS with the alert {alert:?}"),
    }
}

fn of_certificate(problem: &CertificateError, host: &str) -> String {
    match problem {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the server's certificate is not signed by the CA bundle of the kubeconfig, or of the system where it has \
             none: this is another cluster, or a TLS-intercepting proxy"
                .to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired, or the clock of this machine is wrong".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet, or the clock of this machine is wrong".to_owned()
        }
        CertificateError::NotValidForNameContext { presented, expected } => {
            let names: Vec<String> = presented.iter().map(|name| plain(name)).collect();
            let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
            let expected = expected.to_str();
            format!(
                "the server's certificate is for {names}, and not for {expected}: set tls-server-name in the kubeconfig"
            )
        }
        CertificateError::NotValidForName => {
            format!("the server's certificate is not for {host}: set tls-server-name in the kubeconfig")
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "the server's certificate has an unsupported type of key; adit supports RSA from 1024 bits, P-256, P-384, P-521 and Ed25519"
                .to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the server's certificate is not for servers: its extended key usage has no serverAuth".to_owned()
        }
        CertificateError::BadEncoding => "the server's certificate cannot be read".to_owned(),
        other => format!("the server's certificate is of no use: {other}"),
    }
}

/// Extracts the name from `DnsName("kubernetes")`, the format of webpki.
fn plain(name: &str) -> String {
    let inner = name.split_once('(').map_or(name, |(_, inner)| inner.trim_end_matches(')'));
    let inner = inner.trim_matches('"');
    // webpki formats the address `::1` as `0::1`.
    inner.parse::<IpAddr>().map_or_else(|_| inner.to_owned(), |address| address.to_string())
}

/// Returns why TCP or TLS to a proxy failed, as text that follows its name.
fn of_proxy(error: &(dyn Error + 'static)) -> String {
    let chain = chain(error);
    if let Some(error) = tls_error(error) {
        return match error {
            rustls::Error::InvalidMessage(_) => "does not speak TLS: write http:// in its URL".to_owned(),
            rustls::Error::InvalidCertificate(problem) => format!("has a certificate that is of no use: {problem}"),
            error => format!("ended TLS: {error}"),
        };
    }
    match chain.iter().rev().find_map(|error| error.downcast_ref::<io::Error>()) {
        _ if chain.iter().any(|error| error.to_string().contains("dns error")) => {
            "has a name that is not known: check DNS and the VPN".to_owned()
        }
        Some(error) => format!("cannot be reached: {}", of_io(error)),
        None => format!("cannot be reached: {}", reasons(error)),
    }
}

/// Returns why a connection broke, without texts of libraries.
pub fn of_io(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "the connection is refused: nothing listens there".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
            "the connection was reset".to_owned()
        }
        io::ErrorKind::UnexpectedEof => "the connection was closed in the middle".to_owned(),
        io::ErrorKind::TimedOut => "the connection timed out: check the VPN and the firewall".to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            "there is no route to the server: check the network and the VPN".to_owned()
        }
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or_default().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Outer {
        text: &'static str,
        #[source]
        inner: Option<io::Error>,
    }

    fn said(text: &'static str, inner: Option<io::Error>, server: &str, proxy: Option<&str>) -> String {
        reason(&Outer { text, inner }, &server.parse().unwrap(), proxy)
    }

    fn of(error: rustls::Error) -> String {
        said("client error (Connect)", Some(io::Error::new(io::ErrorKind::InvalidData, error)), "https://a.test", None)
    }

    #[test]
    fn a_certificate_that_is_refused_says_what_to_change() {
        let name = ServerName::try_from("other").unwrap().to_owned();
        let problem = CertificateError::NotValidForNameContext {
            expected: name,
            presented: vec!["DnsName(\"kubernetes\")".to_owned(), "IpAddress(0::1)".to_owned()],
        };
        assert_eq!(
            of(rustls::Error::InvalidCertificate(problem)),
            "the server's certificate is for kubernetes, ::1, and not for other: set tls-server-name in the kubeconfig"
        );
        let unknown = of(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
        assert!(unknown.contains("CA bundle of the kubeconfig"), "{unknown}");
        let alert = of(rustls::Error::AlertReceived(AlertDescription::CertificateRequired));
        assert_eq!(alert, "the server requires a client certificate, and the user has none");
    }

    #[test]
    fn a_proxy_is_named_with_its_own_failure() {
        let unreached = |inner: io::Error| ProxyError::Unreached(Box::new(Outer { text: "tcp", inner: Some(inner) }));
        let tls = |error: rustls::Error| unreached(io::Error::new(io::ErrorKind::InvalidData, error));
        let not_tls = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        for (error, wanted) in [
            (unreached(io::ErrorKind::ConnectionRefused.into()), "cannot be reached: the connection is refused"),
            (ProxyError::Unreached("dns error".into()), "has a name that is not known"),
            (tls(not_tls), "does not speak TLS: write http://"),
            (tls(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)), "has a certificate that"),
            (ProxyError::NotAccepted, "does not accept the user"),
        ] {
            let found = reason(&error, &"https://a.test".parse().unwrap(), Some("p:1"));
            assert!(found.starts_with(&format!("the proxy p:1 {wanted}")), "{found}");
        }
    }

    #[test]
    fn no_text_of_a_library_is_in_a_reason_that_is_known() {
        let refused = || Some(io::Error::from(io::ErrorKind::ConnectionRefused));
        let cases = [
            ("tcp connect error", refused(), "https://a.test", None, "the connection is refused"),
            ("dns error", Some(io::Error::other("x")), "https://a.test", None, "the name of a.test is not known"),
            ("invalid HTTP version parsed", None, "http://a.test", None, "the server speaks TLS: write https://"),
        ];
        for (text, inner, server, proxy, wanted) in cases {
            let found = said(text, inner, server, proxy);
            assert!(found.starts_with(wanted), "{text}: {found}");
        }
    }
}
