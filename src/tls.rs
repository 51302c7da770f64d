//! TLS for clients and servers: certificates from PEM files, and verification by fingerprint.

pub mod bundle;
pub mod certificate;
pub mod handshake;
pub mod identity;
pub mod pem;
mod provider;
pub mod system;

use std::{fmt, io, path::Path, str::FromStr, sync::Arc};

use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use sha2::{Digest as _, Sha256};

pub use self::provider::provider;

/// Reads the certificates of a PEM file. There is at least one.
///
/// # Errors
/// The file cannot be read, or has no certificate.
pub fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let certificates = certificates.map_err(|error| of_file(path, error))?;
    match certificates.is_empty() {
        true => Err(of_file(path, "it has no certificate in PEM form")),
        false => Ok(certificates),
    }
}

/// Connects to a server by TLS. Returns its certificate, and the protocol that it chose by ALPN. Verifies neither.
///
/// # Errors
/// The server does not speak TLS, or closes the connection.
pub async fn shown_certificate<I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    stream: I,
    name: ServerName<'static>,
    protocols: &[&[u8]],
) -> io::Result<(CertificateDer<'static>, Option<Vec<u8>>)> {
    let provider = provider();
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Pinned::to_nothing(provider))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let (_, session) = tls.get_ref();
    let shown = session.peer_certificates().and_then(|shown| shown.first()).ok_or(io::ErrorKind::InvalidData)?;
    Ok((shown.clone().into_owned(), session.alpn_protocol().map(<[u8]>::to_vec)))
}

/// Reads the private key of a PEM file.
///
/// # Errors
/// The file cannot be read, or has no private key.
pub fn private_key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => of_file(path, "it has no private key in PEM form"),
        error => of_file(path, error),
    })
}

/// Reads a file.
///
/// # Errors
/// The message has this form: `cannot read "/ca.pem": no such file or directory`.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot read {:?}: {}", path.display(), reason(&error))))
}

/// Returns the message of a system error, in lower case and without its number.
pub fn reason(error: &io::Error) -> String {
    error.to_string().split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// Reads the CA bundle in a PEM file.
///
/// # Errors
/// See [`certificates`].
pub fn authorities(path: &Path) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| of_file(path, error))?;
    }
    Ok(roots)
}

/// Returns an error with the name of the file.
pub fn of_file(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("cannot use {:?}: {error}", path.display()))
}

/// SHA-256 of a certificate. As text: `sha256:` and 64 hexadecimal digits, written in lower case, parsed in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

/// The text is not a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write sha256: and 64 hexadecimal digits, as 'adit server' prints it")]
pub struct InvalidFingerprint;

impl Fingerprint {
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate.as_ref()).into())
    }
}

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        let text = text.to_ascii_lowercase();
        let digits = text.strip_prefix("sha256:").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let digits = digits.filter(|digits| digits.len() == 64).ok_or(InvalidFingerprint)?;
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map_err(|_| InvalidFingerprint)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Verifier that accepts a certificate by its fingerprint, or any certificate if there is none. Ignores its name and issuer.
#[derive(Debug)]
pub struct Pinned {
    fingerprint: Option<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    pub fn to(fingerprint: Fingerprint, provider: Arc<CryptoProvider>) -> Arc<Self> {
        Arc::new(Self { fingerprint: Some(fingerprint), provider })
    }

    /// Accepts any certificate, for servers that are authenticated in another way.
    pub fn to_nothing(provider: Arc<CryptoProvider>) -> Arc<Self> {
        Arc::new(Self { fingerprint: None, provider })
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = Fingerprint::of(certificate);
        match self.fingerprint {
            Some(wanted) if wanted != shown => Err(rustls::Error::General(format!(
                "the server's certificate is {shown}, and not the one that is expected"
            ))),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        handshake::verify_tls12(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        handshake::verify_tls13(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
