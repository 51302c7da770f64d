//! The cryptography of every TLS connection: AWS-LC, plus RSA keys of 1024 to 2047 bits, which OpenSSL and Go accept.
//!
//! Old appliances and old clusters have such keys, and kubectl accepts them.

use std::sync::{Arc, LazyLock};

use rsa::{
    PrivateKey, PublicKey, pkcs1::DecodeRsaPrivateKey, pkcs1::DecodeRsaPublicKey, pkcs1::EncodeRsaPublicKey,
    pkcs8::DecodePrivateKey, traits::PublicKeyParts,
};
use rustls::{
    Error, SignatureAlgorithm, SignatureScheme,
    crypto::{
        CryptoProvider, KeyProvider, WebPkiSupportedAlgorithms,
        aws_lc_rs::{
            self,
            kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768},
        },
    },
    pki_types::{
        AlgorithmIdentifier, InvalidSignature, PrivateKeyDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer,
        alg_id,
    },
    sign::{Signer, SigningKey, public_key_to_spki},
};
use sha2::{Sha256, Sha384, Sha512};

/// Key sizes that AWS-LC does not accept, in bits. Go accepts no smaller ones either.
const SMALL: std::ops::Range<u32> = 1024..2048;

/// RSA signature schemes, best first.
const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

/// Returns the cryptography of every TLS connection.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let provider = aws_lc_rs::default_provider();
        Arc::new(CryptoProvider {
            signature_verification_algorithms: with_small_keys(&provider.signature_verification_algorithms),
            key_provider: &Keys,
            // The hello has key shares of the first group and of its part X25519. Servers built with Go 1.24 and later
            // answer a hello that offers X25519MLKEM768 without a share with HelloRetryRequest: one more round trip.
            kx_groups: vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1],
            ..provider
        })
    });
    PROVIDER.clone()
}

/// Replaces the RSA algorithms with ours, which live as long as the process.
fn with_small_keys(given: &WebPkiSupportedAlgorithms) -> WebPkiSupportedAlgorithms {
    let ours = |algorithm: &'static dyn SignatureVerificationAlgorithm| match scheme_of(algorithm) {
        Some(scheme) => Box::leak(Box::new(AnySize { algorithm, scheme })) as &dyn SignatureVerificationAlgorithm,
        None => algorithm,
    };
    let all: Vec<_> = given.all.iter().map(|algorithm| ours(*algorithm)).collect();
    let mapping: Vec<_> = given
        .mapping
        .iter()
        .map(|(scheme, algorithms)| {
            let algorithms: Vec<_> = algorithms.iter().map(|algorithm| ours(*algorithm)).collect();
            (*scheme, &*algorithms.leak())
        })
        .collect();
    WebPkiSupportedAlgorithms { all: all.leak(), mapping: mapping.leak() }
}

/// Returns the scheme of an algorithm. `None`: it is not RSA.
fn scheme_of(algorithm: &dyn SignatureVerificationAlgorithm) -> Option<SignatureScheme> {
    let schemes = [
        (alg_id::RSA_PSS_SHA256, SignatureScheme::RSA_PSS_SHA256),
        (alg_id::RSA_PSS_SHA384, SignatureScheme::RSA_PSS_SHA384),
        (alg_id::RSA_PSS_SHA512, SignatureScheme::RSA_PSS_SHA512),
        (alg_id::RSA_PKCS1_SHA256, SignatureScheme::RSA_PKCS1_SHA256),
        (alg_id::RSA_PKCS1_SHA384, SignatureScheme::RSA_PKCS1_SHA384),
        (alg_id::RSA_PKCS1_SHA512, SignatureScheme::RSA_PKCS1_SHA512),
    ];
    let id = algorithm.signature_alg_id();
    schemes.into_iter().find(|(known, _)| *known == id).map(|(_, scheme)| scheme)
}

/// An RSA algorithm for keys of 1024 bits or more.
#[derive(Debug)]
struct AnySize {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    scheme: SignatureScheme,
}

impl SignatureVerificationAlgorithm for AnySize {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        // A key of 2048 bits alone takes 257 bytes.
        let small = Some(key).filter(|key| key.len() <= 256 + 16).and_then(|key| PublicKey::from_pkcs1_der(key).ok());
        let Some(key) = small.filter(|key| SMALL.contains(&key.n().bit_width())) else {
            return self.algorithm.verify_signature(key, message, signature);
        };
        let verified = match self.scheme {
            SignatureScheme::RSA_PSS_SHA256 => key.pss_verify::<Sha256>(message, signature),
            SignatureScheme::RSA_PSS_SHA384 => key.pss_verify::<Sha384>(message, signature),
            SignatureScheme::RSA_PSS_SHA512 => key.pss_verify::<Sha512>(message, signature),
            SignatureScheme::RSA_PKCS1_SHA256 => key.pkcs1v15_verify::<Sha256>(message, signature),
            SignatureScheme::RSA_PKCS1_SHA384 => key.pkcs1v15_verify::<Sha384>(message, signature),
            _ => key.pkcs1v15_verify::<Sha512>(message, signature),
        };
        verified.map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }
}

/// Loads private keys.
#[derive(Debug)]
struct Keys;

impl KeyProvider for Keys {
    fn load_private_key(&self, der: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        let small = match &der {
            PrivateKeyDer::Pkcs1(der) => PrivateKey::from_pkcs1_der(der.secret_pkcs1_der()).ok(),
            PrivateKeyDer::Pkcs8(der) => PrivateKey::from_pkcs8_der(der.secret_pkcs8_der()).ok(),
            _ => None,
        };
        match small.filter(|key| SMALL.contains(&key.n().bit_width())) {
            Some(key) => Ok(Arc::new(SmallKey(Arc::new(key)))),
            None => aws_lc_rs::default_provider().key_provider.load_private_key(der),
        }
    }
}

/// An RSA private key with fewer than 2048 bits.
#[derive(Debug)]
struct SmallKey(Arc<PrivateKey>);

impl SigningKey for SmallKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        // A key of 1024 bits has no room for SHA-512 in PSS (RFC 8017, section 9.1.1: two hashes and two bytes).
        let fits =
            |scheme: &SignatureScheme| *scheme != SignatureScheme::RSA_PSS_SHA512 || self.0.n().bit_width() > 1040;
        let scheme = SCHEMES.into_iter().filter(fits).find(|scheme| offered.contains(scheme))?;
        Some(Box::new(SmallSigner { key: self.0.clone(), scheme }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        let key = self.0.to_public_key().to_pkcs1_der().ok()?;
        Some(public_key_to_spki(&alg_id::RSA_ENCRYPTION, key.as_bytes()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::RSA
    }
}

#[derive(Debug)]
struct SmallSigner {
    key: Arc<PrivateKey>,
    scheme: SignatureScheme,
}

impl Signer for SmallSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signed = match self.scheme {
            SignatureScheme::RSA_PSS_SHA256 => self.key.pss_sign::<Sha256>(message),
            SignatureScheme::RSA_PSS_SHA384 => self.key.pss_sign::<Sha384>(message),
            SignatureScheme::RSA_PSS_SHA512 => self.key.pss_sign::<Sha512>(message),
            SignatureScheme::RSA_PKCS1_SHA256 => self.key.pkcs1v15_sign::<Sha256>(message),
            SignatureScheme::RSA_PKCS1_SHA384 => self.key.pkcs1v15_sign::<Sha384>(message),
            _ => self.key.pkcs1v15_sign::<Sha512>(message),
        };
        signed.map_err(|error| Error::General(format!("the client key cannot sign: {error}")))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

#[cfg(test)]
mod tests {
    use rustls::{
        ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection, crypto::SupportedKxGroup,
        pki_types::CertificateDer,
    };

    use super::*;
    use crate::tls::Pinned;

    /// Says how a handshake went with a server that has one key exchange group.
    fn handshake_with(group: &'static dyn SupportedKxGroup) -> HandshakeKind {
        let made = rcgen::generate_simple_self_signed(["server".to_owned()]).expect("certificate");
        let chain = vec![CertificateDer::from(made.cert.der().to_vec())];
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("key");
        let server = CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() };
        let server = ServerConfig::builder_with_provider(server.into())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("server");
        let client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(Pinned::to_nothing(provider()))
            .with_no_client_auth();
        let mut server = ServerConnection::new(Arc::new(server)).expect("server");
        let mut client = ClientConnection::new(Arc::new(client), "server".try_into().expect("name")).expect("client");
        let mut bytes = Vec::new();
        while client.is_handshaking() {
            bytes.clear();
            client.write_tls(&mut bytes).expect("in memory");
            server.read_tls(&mut bytes.as_slice()).expect("in memory");
            server.process_new_packets().expect("the server accepts");
            bytes.clear();
            server.write_tls(&mut bytes).expect("in memory");
            client.read_tls(&mut bytes.as_slice()).expect("in memory");
            client.process_new_packets().expect("the client accepts");
        }
        client.handshake_kind().expect("shaken hands")
    }

    #[test]
    fn servers_with_and_without_post_quantum_groups_answer_the_first_hello() {
        assert_eq!(handshake_with(X25519MLKEM768), HandshakeKind::Full);
        assert_eq!(handshake_with(X25519), HandshakeKind::Full);
    }
}
