//! Verification of servers with a CA bundle. Accepts certificates that Go and OpenSSL accept but webpki rejects.

use std::{sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, KeyUsage};

use super::{certificate::Certificate, handshake, pem};

/// A CA bundle. In addition to webpki's rules, a server's certificate may itself be in the bundle, and may be a CA
/// certificate (`openssl req -x509` creates such ones) if it is in the bundle or signed by a certificate of the bundle.
/// Certificates may be for any purpose.
#[derive(Debug)]
pub struct Bundle {
    trusted: Vec<Trusted>,
    roots: Arc<RootCertStore>,
    /// `None`: webpki cannot use any certificate of the bundle.
    webpki: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
struct Trusted {
    der: CertificateDer<'static>,
    /// Whether it may be the issuer for some names only.
    is_constrained: bool,
}

/// Name of webpki's error for a server with a CA certificate. rustls exports no type for it.
const CA_USED_AS_END_ENTITY: &str = "CaUsedAsEndEntity";

impl Bundle {
    /// Reads PEM. Skips certificates that do not parse.
    ///
    /// # Errors
    /// No certificate parses.
    pub fn from_pem(text: &[u8], provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let trusted = certificates(text);
        match trusted.is_empty() {
            true => Err("there is no certificate in PEM form in it".to_owned()),
            false => Ok(Self::new(trusted, provider)),
        }
    }

    /// Trusts these certificates. Without any, trusts no server.
    pub fn new(trusted: Vec<CertificateDer<'static>>, provider: &Arc<CryptoProvider>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted.iter().cloned());
        let roots = Arc::new(roots);
        let webpki = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build().ok();
        let is_constrained = |der: &CertificateDer<'static>| {
            let mut one = RootCertStore::empty();
            // A certificate that webpki rejects may have constraints that webpki does not parse.
            one.add(der.clone()).is_err() || one.roots.iter().any(|root| root.name_constraints.is_some())
        };
        let trusted = trusted.into_iter().map(|der| Trusted { is_constrained: is_constrained(&der), der }).collect();
        Self { trusted, roots, webpki, algorithms: provider.signature_verification_algorithms }
    }

    fn contains(&self, certificate: &CertificateDer<'_>) -> bool {
        self.trusted.iter().any(|trusted| trusted.der.as_ref() == certificate.as_ref())
    }

    /// Returns whether a certificate of the bundle without name constraints has signed this one.
    fn vouches_for(&self, certificate: &Certificate<'_>, now: i64) -> bool {
        let issuers = self.trusted.iter().filter(|trusted| !trusted.is_constrained);
        issuers.filter_map(|trusted| Certificate::parse(&trusted.der)).any(|issuer| {
            issuer.subject == certificate.issuer
                && (issuer.not_before..=issuer.not_after).contains(&now)
                && self.has_signed(&issuer, certificate)
        })
    }

    fn has_signed(&self, issuer: &Certificate<'_>, certificate: &Certificate<'_>) -> bool {
        self.algorithms.all.iter().any(|algorithm| {
            algorithm.public_key_alg_id().as_ref() == issuer.key_algorithm
                && algorithm.signature_alg_id().as_ref() == certificate.signature_algorithm
                && algorithm.verify_signature(issuer.key, certificate.signed, certificate.signature).is_ok()
        })
    }

    /// Returns whether the bundle trusts a certificate if "any purpose" includes that of a server.
    fn vouches_for_any(&self, certificate: &CertificateDer<'_>, others: &[CertificateDer<'_>], now: UnixTime) -> bool {
        let Ok(end) = EndEntityCert::try_from(certificate) else { return false };
        end.verify_for_usage(self.algorithms.all, &self.roots.roots, others, now, ServerOrAny, None, None).is_ok()
    }

    /// Verifies the dates and the name of a certificate that the bundle trusts.
    fn verify_trusted(
        certificate: &CertificateDer<'_>,
        parsed: &Certificate<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let at = |seconds: i64| UnixTime::since_unix_epoch(Duration::from_secs(seconds.try_into().unwrap_or(0)));
        if seconds(now) > parsed.not_after {
            return Err(CertificateError::ExpiredContext { time: now, not_after: at(parsed.not_after) }.into());
        }
        if seconds(now) < parsed.not_before {
            return Err(CertificateError::NotValidYetContext { time: now, not_before: at(parsed.not_before) }.into());
        }
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }
}

/// Returns the certificates of PEM that parse.
pub fn certificates(text: &[u8]) -> Vec<CertificateDer<'static>> {
    // As in Go, a certificate with headers is none of a bundle.
    let is_certificate = |block: &pem::Block| block.label == "CERTIFICATE" && !block.has_headers;
    let blocks = pem::blocks(text).into_iter().filter(is_certificate);
    let all = blocks.map(|block| CertificateDer::from(block.content));
    all.filter(|der| Certificate::parse(der).is_some()).collect()
}

/// The purpose of a server, or any, as in Go: webpki takes the first alone (RFC 5280, section 4.2.1.12).
struct ServerOrAny;

impl ExtendedKeyUsageValidator for ServerOrAny {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        const SERVER: KeyPurposeId<'_> = KeyPurposeId::new(&[0x2b, 6, 1, 5, 5, 7, 3, 1]);
        const ANY: KeyPurposeId<'_> = KeyPurposeId::new(&[0x55, 0x1d, 0x25, 0]);
        let mut present = Vec::new();
        for purpose in purposes {
            let purpose = purpose?;
            if purpose == SERVER || purpose == ANY {
                return Ok(());
            }
            present.push(purpose.to_decoded_oid());
        }
        match present.is_empty() {
            true => Ok(()),
            false => {
                let required = KeyUsage::server_auth();
                let context = webpki::RequiredEkuNotFoundContext { required, present };
                Err(webpki::Error::RequiredEkuNotFoundContext(context))
            }
        }
    }
}

fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

fn is_authority(refusal: &CertificateError) -> bool {
    matches!(refusal, CertificateError::Other(reason) if reason.to_string() == CA_USED_AS_END_ENTITY)
}

impl ServerCertVerifier for Bundle {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = match &self.webpki {
            Some(webpki) => webpki.verify_server_cert(certificate, intermediates, name, ocsp, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        let Err(Error::InvalidCertificate(refusal)) = &verified else { return verified };
        let Some(parsed) = Certificate::parse(certificate) else { return verified };
        if matches!(refusal, CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. })
            && self.vouches_for_any(certificate, intermediates, now)
        {
            return Self::verify_trusted(certificate, &parsed, name, now);
        }
        let is_trusted = match refusal {
            CertificateError::UnknownIssuer => self.contains(certificate),
            refusal => is_authority(refusal) && (self.contains(certificate) || self.vouches_for(&parsed, seconds(now))),
        };
        if is_trusted { Self::verify_trusted(certificate, &parsed, name, now) } else { verified }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        handshake::verify_tls12(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        handshake::verify_tls13(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    fn params(name: &str, is_ca: bool) -> CertificateParams {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
        params
    }

    fn provider() -> Arc<CryptoProvider> {
        crate::tls::provider()
    }

    fn verify(bundle: &Bundle, certificate: &CertificateDer<'_>, name: &str) -> Result<(), Error> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        bundle.verify_server_cert(certificate, &[], &name, &[], UnixTime::now()).map(|_| ())
    }

    #[test]
    fn a_certificate_that_does_not_parse_is_passed_over() {
        let key = KeyPair::generate().unwrap();
        let authority = params("ca", true);
        let pem = authority.self_signed(&key).unwrap().pem();
        let broken = "-----BEGIN CERTIFICATE-----\nQUJDREVG\n-----END CERTIFICATE-----\n";
        let bundle = Bundle::from_pem(format!("{broken}{pem}{broken}").as_bytes(), &provider()).unwrap();
        let server_key = KeyPair::generate().unwrap();
        let server = params("a.test", false).signed_by(&server_key, &Issuer::new(authority, key)).unwrap();
        verify(&bundle, server.der(), "a.test").unwrap();
        assert!(verify(&bundle, server.der(), "b.test").is_err());
        assert!(Bundle::from_pem(broken.as_bytes(), &provider()).is_err());
    }

    #[test]
    fn the_servers_own_certificate_is_its_authority() {
        for is_ca in [false, true] {
            let certificate = params("a.test", is_ca).self_signed(&KeyPair::generate().unwrap()).unwrap();
            let bundle = Bundle::from_pem(certificate.pem().as_bytes(), &provider()).unwrap();
            verify(&bundle, certificate.der(), "a.test").unwrap();
            assert!(verify(&bundle, certificate.der(), "b.test").is_err(), "the name counts");
            let other = params("a.test", is_ca).self_signed(&KeyPair::generate().unwrap()).unwrap();
            assert!(verify(&bundle, other.der(), "a.test").is_err(), "another key of the same name");
            assert!(verify(&Bundle::new(Vec::new(), &provider()), certificate.der(), "a.test").is_err());
        }
        let mut expired = params("a.test", false);
        expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let expired = expired.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let bundle = Bundle::from_pem(expired.pem().as_bytes(), &provider()).unwrap();
        assert!(verify(&bundle, expired.der(), "a.test").is_err(), "the dates count");
    }

    #[test]
    fn a_server_may_have_the_certificate_of_an_authority() {
        let (key, server_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let authority = params("ca", true);
        let bundle = Bundle::from_pem(authority.self_signed(&key).unwrap().pem().as_bytes(), &provider()).unwrap();
        let issuer = Issuer::new(authority, key);
        let server = params("a.test", true).signed_by(&server_key, &issuer).unwrap();
        verify(&bundle, server.der(), "a.test").unwrap();
        assert!(verify(&bundle, server.der(), "b.test").is_err());
        // The same issuer name, but another key.
        let impostor = Issuer::new(params("ca", true), KeyPair::generate().unwrap());
        let forged = params("a.test", true).signed_by(&server_key, &impostor).unwrap();
        assert!(verify(&bundle, forged.der(), "a.test").is_err());
    }

    #[test]
    fn a_certificate_for_any_purpose_is_one_of_a_server() {
        use rcgen::ExtendedKeyUsagePurpose::{Any, ClientAuth, ServerAuth};
        let (key, middle_key, server_key) = (KeyPair::generate(), KeyPair::generate(), KeyPair::generate());
        let (key, middle_key, server_key) = (key.unwrap(), middle_key.unwrap(), server_key.unwrap());
        let authority = params("ca", true);
        let bundle = Bundle::from_pem(authority.self_signed(&key).unwrap().pem().as_bytes(), &provider()).unwrap();
        let issuer = Issuer::new(authority, key);
        for (purposes, is_taken) in [
            ([vec![], vec![Any]], true),
            ([vec![Any], vec![ServerAuth]], true),
            ([vec![Any, ClientAuth], vec![ClientAuth, Any]], true),
            ([vec![], vec![ClientAuth]], false),
            ([vec![ClientAuth], vec![Any]], false),
        ] {
            let [mut middle, mut server] = [params("middle", true), params("a.test", false)];
            [middle.extended_key_usages, server.extended_key_usages] = purposes.clone();
            let issued = middle.signed_by(&middle_key, &issuer).unwrap();
            let server = server.signed_by(&server_key, &Issuer::new(middle, &middle_key)).unwrap();
            let verify = |name: &str| {
                let name = ServerName::try_from(name.to_owned()).unwrap();
                let others = [issued.der().clone()];
                bundle.verify_server_cert(server.der(), &others, &name, &[], UnixTime::now())
            };
            assert_eq!(verify("a.test").is_ok(), is_taken, "{purposes:?}");
            assert!(verify("b.test").is_err(), "the name counts");
        }
    }

    #[test]
    fn an_authority_for_some_names_vouches_for_no_other_authority() {
        let (key, server_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut authority = params("ca", true);
        authority.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("only.test".to_owned())],
            excluded_subtrees: Vec::new(),
        });
        let bundle = Bundle::from_pem(authority.self_signed(&key).unwrap().pem().as_bytes(), &provider()).unwrap();
        let server = params("a.test", true).signed_by(&server_key, &Issuer::new(authority, key)).unwrap();
        assert!(verify(&bundle, server.der(), "a.test").is_err());
    }
}
