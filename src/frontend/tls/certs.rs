//! Certificates for error pages and plain backends, minted per name.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tracing::warn;

/// How long a certificate is valid, and how long before its end another one is minted.
const VALID: Duration = Duration::from_secs(24 * 60 * 60);
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 60);

/// Clocks of laptops and their browsers are not the same.
const BACKDATE: Duration = Duration::from_secs(60 * 60);

/// How many certificates are kept: names are the client's choice.
const MOST: usize = 1000;

/// The name for clients that give none.
const NAMELESS: &str = "adit.localhost";

/// The certificates of this process, and the authority that signs them.
#[derive(Default)]
pub struct Certs(Mutex<Minted>);

#[derive(Default)]
struct Minted {
    /// Made for the first certificate: who speaks no TLS pays nothing for it.
    authority: Option<Authority>,
    /// By name, with the time at which they were made.
    certificates: HashMap<String, (Instant, Arc<CertifiedKey>)>,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    /// One key serves all leaves: making one costs more than signing a certificate.
    key: KeyPair,
}

type MintError = Box<dyn std::error::Error>;

impl Certs {
    /// Returns the server's configuration for connections that we end. `protocols`: by ALPN, the one we like best first.
    pub fn server_config(self: Arc<Self>, protocols: &[&[u8]]) -> io::Result<Arc<ServerConfig>> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(Resolver(self)));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// Returns a certificate for a name, which was checked to be a DNS name.
    fn get(&self, name: &str) -> Result<Arc<CertifiedKey>, MintError> {
        let now = Instant::now();
        let Minted { authority, certificates } = &mut *self.0.lock().expect("no panic while the lock is held");
        if let Some((since, certificate)) = certificates.get(name)
            && now.duration_since(*since) < VALID - RENEW_BEFORE
        {
            return Ok(certificate.clone());
        }
        let authority = match authority {
            Some(authority) => authority,
            None => authority.insert(Authority::new()?),
        };
        let certificate = Arc::new(authority.mint(name)?);
        if certificates.len() >= MOST {
            certificates.retain(|_, (since, _)| now.duration_since(*since) < VALID / 2);
            if certificates.len() >= MOST {
                certificates.clear();
            }
        }
        certificates.insert(name.to_owned(), (now, certificate.clone()));
        Ok(certificate)
    }
}

impl Authority {
    fn new() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, "adit (this process)");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), certificate, key: KeyPair::generate()? })
    }

    fn mint(&self, name: &str) -> Result<CertifiedKey, MintError> {
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let now = SystemTime::now();
        (params.not_before, params.not_after) = ((now - BACKDATE).into(), (now + VALID).into());
        let leaf = params.signed_by(&self.key, &self.issuer)?.der().clone();
        let key = PrivateKeyDer::try_from(self.key.serialize_der())?;
        let key = ring::sign::any_supported_type(&key)?;
        Ok(CertifiedKey::new(vec![leaf, self.certificate.clone()], key))
    }
}

struct Resolver(Arc<Certs>);

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls hands on only valid DNS names.
        let name = hello.server_name().unwrap_or(NAMELESS).to_ascii_lowercase();
        self.0.get(&name).inspect_err(|error| warn!(name, %error, "no certificate could be made")).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_certificate_and_names_are_bounded() {
        let certs = Certs::default();
        let first = certs.get("a.localhost").unwrap();
        assert!(Arc::ptr_eq(&first, &certs.get("a.localhost").unwrap()));
        assert!(!Arc::ptr_eq(&first, &certs.get("b.localhost").unwrap()));
        for number in 0..MOST {
            certs.get(&format!("{number}.localhost")).unwrap();
        }
        assert!(certs.0.lock().unwrap().certificates.len() <= MOST);
    }
}
