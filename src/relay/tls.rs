//! TLS 1.3 between a relay and its clients.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, ServerConfig,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{
            cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256},
            kx_group::{SECP256R1, SECP384R1, X25519},
        },
    },
    pki_types::{CertificateDer, PrivateKeyDer},
    version::TLS13,
};

use crate::{
    tls::{self, Fingerprint, Pinned},
    wire::relay::Digest,
};

/// ALPN protocol.
const ALPN: &[u8] = b"adit-relay/2";

/// Label of the TLS exporter (RFC 5705).
const EXPORTER: &[u8] = b"EXPERIMENTAL-adit-relay-2";

/// Returns the cipher suites, fastest first, because each new connection costs a handshake. Current processors have
/// instructions for SHA-256 but not for SHA-384.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256],
        kx_groups: vec![SECP256R1, X25519, SECP384R1],
        ..(*tls::provider()).clone()
    })
}

/// Certificate and private key of a relay.
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Generates a self-signed certificate. Clients verify its fingerprint.
    ///
    /// # Errors
    /// Fails if the system returns no random numbers.
    pub fn generate() -> io::Result<Self> {
        let made = rcgen::generate_simple_self_signed(["adit-relay".to_owned()]).map_err(io::Error::other)?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(io::Error::other)?;
        Ok(Self { chain: vec![made.cert.der().clone()], key })
    }

    /// Reads PEM files.
    ///
    /// # Errors
    /// Fails if a file cannot be read or is invalid.
    pub fn read(chain: &Path, key: &Path) -> io::Result<Self> {
        Ok(Self { chain: tls::certificates(chain)?, key: tls::private_key(key)? })
    }

    /// Returns the fingerprint of the certificate: `sha256:` and 64 hexadecimal digits.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.chain[0])
    }

    /// Returns the configuration of a server. `protocols`: its ALPN protocols.
    ///
    /// # Errors
    /// Fails if the certificate and the key do not match.
    pub fn server_config(&self, protocols: &[&[u8]]) -> io::Result<Arc<ServerConfig>> {
        let builder = if protocols == [ALPN] {
            ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])
        } else {
            ServerConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions()
        };
        let builder = builder.map_err(io::Error::other)?.with_no_client_auth();
        let mut config =
            builder.with_single_cert(self.chain.clone(), self.key.clone_key()).map_err(io::Error::other)?;
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        // One ticket is enough: a client can use it many times.
        config.send_tls13_tickets = 1;
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(io::Error::other)?;
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

/// How a client verifies the relay, in addition to the shared secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// By the secret alone. The proofs are bound to the TLS connection, so a man in the middle fails.
    #[default]
    Secret,
    /// By the fingerprint of its certificate.
    Fingerprint(Fingerprint),
    /// By its name and a CA bundle, a PEM file.
    Authority(PathBuf),
}

impl Trust {
    /// Returns the trust that the options `fingerprint` and `ca` mean. A fingerprint wins.
    pub fn of(fingerprint: Option<Fingerprint>, ca: Option<&PathBuf>) -> Self {
        match (fingerprint, ca) {
            (Some(fingerprint), _) => Self::Fingerprint(fingerprint),
            (None, Some(ca)) => Self::Authority(ca.clone()),
            (None, None) => Self::Secret,
        }
    }
}

/// Returns the configuration of a client.
///
/// # Errors
/// Fails if the CA bundle cannot be read.
pub fn client_config(trust: &Trust) -> io::Result<Arc<ClientConfig>> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13]);
    let builder = builder.map_err(io::Error::other)?;
    let builder = match trust {
        Trust::Authority(path) => builder.with_root_certificates(tls::authorities(path)?),
        Trust::Secret => builder.dangerous().with_custom_certificate_verifier(Pinned::to_nothing(provider)),
        Trust::Fingerprint(wanted) => {
            builder.dangerous().with_custom_certificate_verifier(Pinned::to(*wanted, provider))
        }
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Returns keying material that only the two ends of the TLS connection have.
///
/// # Errors
/// Fails if the handshake is not complete.
pub fn exporter<Data>(connection: &rustls::ConnectionCommon<Data>) -> io::Result<Digest> {
    connection.export_keying_material([0; 32], EXPORTER, None).map_err(io::Error::other)
}
