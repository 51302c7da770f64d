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

/// How long a certificate is valid, and how long before its end another one is minted.
const VALID: Duration = Duration::from_secs(24 * 60 * 60);
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 60);

/// Clocks of laptops and their browsers are not the same.
const BACKDATE: Duration = Duration::from_secs(60 * 60);

/// How many certificates are kept: names are the client's choice.
const MOST: usize = 1000;

/// The name for clients that give none.
const NAMELESS: &str = "adit.localhost";

/// A certificate authority of this process, with the certificates that it has made.
pub struct Certs {
    issuer: Issuer<'static, KeyPair>,
    authority: CertificateDer<'static>,
    /// One key serves all leaves: making one costs more than signing a certificate.
    key: KeyPair,
    made: Mutex<HashMap<String, (Instant, Arc<CertifiedKey>)>>,
}

impl Certs {
    /// # Errors
    /// The system gives no random numbers for the keys.
    pub fn new() -> io::Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new()).map_err(io::Error::other)?;
        params.distinguished_name.push(DnType::CommonName, "adit (this process)");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let authority = params.self_signed(&key).map_err(io::Error::other)?.der().clone();
        Ok(Self {
            issuer: Issuer::new(params, key),
            authority,
            key: KeyPair::generate().map_err(io::Error::other)?,
            made: Mutex::default(),
        })
    }

    /// Returns the server's configuration for connections that we end. `protocols`: by ALPN, the one we like best first.
    pub fn server_config(self: Arc<Self>, protocols: &[&[u8]]) -> io::Result<Arc<ServerConfig>> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(Resolver(self)));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// Returns a certificate for a name, which was checked to be a DNS name.
    fn get(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let now = Instant::now();
        let mut made = self.made.lock().expect("no panic while the lock is held");
        if let Some((since, certificate)) = made.get(name)
            && now.duration_since(*since) < VALID - RENEW_BEFORE
        {
            return Some(certificate.clone());
        }
        let certificate = Arc::new(self.mint(name).ok()?);
        if made.len() >= MOST {
            made.retain(|_, (since, _)| now.duration_since(*since) < VALID / 2);
            if made.len() >= MOST {
                made.clear();
            }
        }
        made.insert(name.to_owned(), (now, certificate.clone()));
        Some(certificate)
    }

    fn mint(&self, name: &str) -> Result<CertifiedKey, Box<dyn std::error::Error>> {
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
        Ok(CertifiedKey::new(vec![leaf, self.authority.clone()], key))
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
        self.0.get(&hello.server_name().unwrap_or(NAMELESS).to_ascii_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_certificate_and_names_are_bounded() {
        let certs = Certs::new().unwrap();
        let first = certs.get("a.localhost").unwrap();
        assert!(Arc::ptr_eq(&first, &certs.get("a.localhost").unwrap()));
        assert!(!Arc::ptr_eq(&first, &certs.get("b.localhost").unwrap()));
        for number in 0..MOST {
            certs.get(&format!("{number}.localhost")).unwrap();
        }
        assert!(certs.made.lock().unwrap().len() <= MOST);
    }
}
