//! Verification of handshake signatures, also for certificates that webpki does not parse, such as those of version 1.

use rustls::{
    CertificateError, DigitallySignedStruct, Error,
    client::danger::HandshakeSignatureValid,
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::CertificateDer,
    server::ParsedCertificate,
};

use super::certificate::Certificate;

/// Verifies a TLS 1.2 signature.
///
/// # Errors
/// The signature was not made with the key of the certificate.
pub fn verify_tls12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    match ParsedCertificate::try_from(certificate) {
        Ok(_) => verify_tls12_signature(message, certificate, signed, algorithms),
        Err(_) => verify_with_key(message, certificate, signed, algorithms),
    }
}

/// Verifies a TLS 1.3 signature.
///
/// # Errors
/// See [`verify_tls12`].
pub fn verify_tls13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    match ParsedCertificate::try_from(certificate) {
        Ok(_) => verify_tls13_signature(message, certificate, signed, algorithms),
        Err(_) => verify_with_key(message, certificate, signed, algorithms),
    }
}

fn verify_with_key(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let certificate = Certificate::parse(certificate).ok_or(CertificateError::BadEncoding)?;
    let candidates = algorithms.mapping.iter().filter(|(scheme, _)| *scheme == signed.scheme);
    let is_valid = candidates.flat_map(|(_, algorithms)| algorithms.iter()).any(|algorithm| {
        algorithm.public_key_alg_id().as_ref() == certificate.key_algorithm
            && algorithm.verify_signature(certificate.key, message, signed.signature()).is_ok()
    });
    match is_valid {
        true => Ok(HandshakeSignatureValid::assertion()),
        false => Err(CertificateError::BadSignature.into()),
    }
}
