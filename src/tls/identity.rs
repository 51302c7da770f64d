//! Identity of a TLS client or server: a certificate chain and a private key. The peer verifies it.

use std::sync::Arc;

use rustls::{
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer},
    sign::CertifiedKey,
};

use super::{certificate::Certificate, pem};

/// Why a client certificate or its key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("there is no certificate in PEM form in the client certificate")]
    NoCertificate,
    #[error("there is no private key in PEM form in the client key")]
    NoKey,
    #[error("the client key is encrypted: decrypt it, e.g. with 'openssl pkey -in KEY -out PLAIN'")]
    Encrypted,
    #[error(
        "the client key is none that adit can use: RSA from 1024 bits on, ECDSA with P-256, P-384 or P-521, Ed25519"
    )]
    UnsupportedKey,
    #[error("the client key does not belong to the client certificate")]
    Mismatch,
}

/// Reads a chain and its key, which may be in the same file. Accepts certificates of version 1.
///
/// # Errors
/// One of them is missing or cannot be used, or they do not belong together.
pub fn from_pem(chain: &[u8], key: &[u8], provider: &CryptoProvider) -> Result<CertifiedKey, IdentityError> {
    let blocks = pem::blocks(chain).into_iter().filter(|block| block.label == "CERTIFICATE");
    let chain: Vec<_> = blocks.map(|block| CertificateDer::from(block.content)).collect();
    let leaf = chain.first().and_then(|der| Certificate::parse(der)).ok_or(IdentityError::NoCertificate)?;
    let text = String::from_utf8_lossy(key);
    let is_encrypted = text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED");
    let none = if is_encrypted { IdentityError::Encrypted } else { IdentityError::NoKey };
    // As in Go (`tls.X509KeyPair`), the first key counts, and its label says nothing about its encoding.
    let is_key = |label: &str| label.ends_with("PRIVATE KEY") && label != "ENCRYPTED PRIVATE KEY";
    let key = pem::blocks(key).into_iter().find(|block| is_key(&block.label)).ok_or(none)?.content;
    let encodings: [PrivateKeyDer<'_>; 3] = [
        PrivatePkcs1KeyDer::from(&*key).into(),
        PrivatePkcs8KeyDer::from(&*key).into(),
        PrivateSec1KeyDer::from(&*key).into(),
    ];
    let load = |key: PrivateKeyDer<'_>| provider.key_provider.load_private_key(key.clone_key()).ok();
    let key = encodings.into_iter().find_map(load).ok_or(IdentityError::UnsupportedKey)?;
    // The SubjectPublicKeyInfo ends with the key's bits. There are two encodings of the part before.
    if key.public_key().is_some_and(|public| !public.as_ref().ends_with(leaf.key)) {
        return Err(IdentityError::Mismatch);
    }
    Ok(CertifiedKey::new(chain, key))
}

/// Returns the resolver that always presents this identity.
pub fn resolver(identity: CertifiedKey) -> Arc<rustls::sign::SingleCertAndKey> {
    Arc::new(identity.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl x509 -req` without extensions: version 1, until 2126.
    const VERSION_1: &str = include_str!("../../tests/it/keys/version-1.crt");

    /// `openssl ecparam -genkey`, with the parameters in front.
    const KEY: &str = include_str!("../../tests/it/keys/version-1.pem");

    fn read(chain: &str, key: &str) -> Result<CertifiedKey, IdentityError> {
        from_pem(chain.as_bytes(), key.as_bytes(), &crate::tls::provider())
    }

    #[test]
    fn a_certificate_of_version_1_is_presented() {
        assert_eq!(read(VERSION_1, KEY).unwrap().cert.len(), 1);
        let both = format!("{KEY}{VERSION_1}");
        assert_eq!(read(&both, &both).unwrap().cert.len(), 1);
    }

    #[test]
    fn each_form_of_a_key_is_read_and_a_foreign_one_is_not() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap().pem();
        assert!(read(&certificate, &key.serialize_pem()).is_ok());
        assert_eq!(read(&certificate, KEY).unwrap_err(), IdentityError::Mismatch);
    }

    #[test]
    fn a_label_says_nothing_about_the_encoding_of_a_key() {
        let pkcs8 = |own: &str, label: &str| own.replace("PRIVATE KEY", label);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap().pem();
        for label in ["RSA PRIVATE KEY", "EC PRIVATE KEY", "ED25519 PRIVATE KEY"] {
            assert!(read(&certificate, &pkcs8(&key.serialize_pem(), label)).is_ok(), "PKCS#8 as {label}");
        }
        for label in ["PRIVATE KEY", "RSA PRIVATE KEY"] {
            assert!(read(VERSION_1, &KEY.replace("EC PRIVATE KEY", label)).is_ok(), "SEC 1 as {label}");
        }
        // As in Go, the first key counts.
        let both = format!("{KEY}{}", key.serialize_pem());
        assert_eq!(read(&certificate, &both).unwrap_err(), IdentityError::Mismatch);
    }

    #[test]
    fn what_is_missing_or_of_no_use_is_said() {
        assert_eq!(read(KEY, KEY).unwrap_err(), IdentityError::NoCertificate);
        assert_eq!(read(VERSION_1, VERSION_1).unwrap_err(), IdentityError::NoKey);
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nQUJD\n-----END ENCRYPTED PRIVATE KEY-----\n";
        assert_eq!(read(VERSION_1, encrypted).unwrap_err(), IdentityError::Encrypted);
        let odd = "-----BEGIN PRIVATE KEY-----\nQUJD\n-----END PRIVATE KEY-----\n";
        assert_eq!(read(VERSION_1, odd).unwrap_err(), IdentityError::UnsupportedKey);
    }
}
