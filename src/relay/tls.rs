//! TLS 1.3 between a relay and its clients.

use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    version::TLS13,
};
use sha2::{Digest as _, Sha256};

use crate::wire::relay::Digest;

/// The name of the protocol within TLS.
const ALPN: &[u8] = b"adit-relay/2";

/// The label of the exporter (RFC 5705), and its length.
const EXPORTER: &[u8] = b"EXPERIMENTAL-adit-relay-2";

/// A certificate that a relay shows, and its key.
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Makes one that is signed by itself: it is known by its fingerprint.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn generate() -> io::Result<Self> {
        let made = rcgen::generate_simple_self_signed(["adit-relay".to_owned()]).map_err(io::Error::other)?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(io::Error::other)?;
        Ok(Self { chain: vec![made.cert.der().clone()], key })
    }

    /// Reads PEM files.
    ///
    /// # Errors
    /// One cannot be read, or is not what it should be.
    pub fn read(chain: &Path, key: &Path) -> io::Result<Self> {
        let of = |path: &Path, error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
        let read = CertificateDer::pem_file_iter(chain).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let certificates = read.map_err(|error| of(chain, &error))?;
        if certificates.is_empty() {
            return Err(of(chain, &"there is no certificate in it"));
        }
        Ok(Self { chain: certificates, key: PrivateKeyDer::from_pem_file(key).map_err(|error| of(key, &error))? })
    }

    /// Returns what a client can know the certificate by: `sha256:` and 64 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.chain[0])
    }

    /// Returns the configuration of a server. `protocols`: by ALPN.
    ///
    /// # Errors
    /// Key and certificate do not belong together.
    pub fn server_config(&self, protocols: &[&[u8]]) -> io::Result<Arc<ServerConfig>> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = if protocols == [ALPN] {
            builder.with_protocol_versions(&[&TLS13])
        } else {
            builder.with_safe_default_protocol_versions()
        };
        let builder = builder.map_err(io::Error::other)?.with_no_client_auth();
        let mut config =
            builder.with_single_cert(self.chain.clone(), self.key.clone_key()).map_err(io::Error::other)?;
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        // One ticket is enough: a client comes back many times with it.
        config.send_tls13_tickets = 1;
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(io::Error::other)?;
        Ok(Arc::new(config))
    }

    /// Returns the configuration for control connections and streams.
    ///
    /// # Errors
    /// See [`server_config`](Self::server_config).
    pub fn relay_config(&self) -> io::Result<Arc<ServerConfig>> {
        self.server_config(&[ALPN])
    }
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate.as_ref()).iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// How a client knows the relay, beside the secret that both have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// By the secret alone: it is bound to the TLS connection, so that nobody can stand in the middle.
    #[default]
    Secret,
    /// By the fingerprint of its certificate.
    Fingerprint(String),
    /// By a certificate of these authorities, a PEM file, for its name.
    Authority(PathBuf),
}

/// Returns the configuration of a client.
///
/// # Errors
/// The file of authorities cannot be read.
pub fn client_config(trust: &Trust) -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13]);
    let builder = builder.map_err(io::Error::other)?;
    let builder = match trust {
        Trust::Authority(path) => {
            let mut roots = RootCertStore::empty();
            let of = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| of(&error))? {
                let certificate = certificate.map_err(|error| of(&error))?;
                roots.add(certificate).map_err(|error| of(&error))?;
            }
            builder.with_root_certificates(roots)
        }
        Trust::Secret => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { wanted: None, provider }))
        }
        Trust::Fingerprint(wanted) => {
            let wanted = Some(wanted.to_ascii_lowercase());
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { wanted, provider }))
        }
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Returns what is only known to the two ends of a TLS connection.
///
/// # Errors
/// The handshake is not complete.
pub fn exporter<Data>(connection: &rustls::ConnectionCommon<Data>) -> io::Result<Digest> {
    connection.export_keying_material([0; 32], EXPORTER, None).map_err(io::Error::other)
}

/// Takes a certificate by its fingerprint, or, where none is given, any.
#[derive(Debug)]
struct Pinned {
    wanted: Option<String>,
    provider: Arc<CryptoProvider>,
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
        match &self.wanted {
            Some(wanted) if *wanted != fingerprint(certificate) => Err(rustls::Error::General(format!(
                "the relay's certificate is {}, and not the one that is expected",
                fingerprint(certificate)
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
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
