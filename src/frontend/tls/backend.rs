//! TLS towards https backends.

use std::{
    collections::HashMap,
    fs, io,
    path::Path,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use crate::config::BackendTls;

/// The client configurations that requests to backends share, so that sessions are resumed.
#[derive(Default)]
pub struct ClientConfigs {
    /// By what was asked for, and whether only HTTP/1.1 is offered.
    made: Mutex<HashMap<(BackendTls, bool), Made>>,
}

struct Made {
    /// When the files that it was made of were changed last.
    files: Vec<Option<SystemTime>>,
    config: Arc<ClientConfig>,
}

impl ClientConfigs {
    /// `http1`: HTTP/2 is not offered, as an upgrade needs HTTP/1.1. Files are read again when they have changed.
    ///
    /// # Errors
    /// A file cannot be read or is not what it should be, or the system has no roots that could be read.
    pub fn config(&self, tls: &BackendTls, http1: bool) -> io::Result<Arc<ClientConfig>> {
        let client = tls.client_cert.iter().flat_map(|(cert, key)| [cert, key]);
        let files: Vec<_> = tls.ca.iter().chain(client).map(|path| modified(path)).collect();
        let key = (BackendTls { server_name: None, ..tls.clone() }, http1);
        let mut made = self.made.lock().expect("no panic while the lock is held");
        if let Some(made) = made.get(&key)
            && made.files == files
        {
            return Ok(made.config.clone());
        }
        let config = Arc::new(make(tls, http1)?);
        made.insert(key, Made { files, config: config.clone() });
        Ok(config)
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn make(tls: &BackendTls, http1: bool) -> io::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = if tls.verify {
        let mut roots = RootCertStore::empty();
        match &tls.ca {
            Some(path) => {
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| of_file(path, error))?;
                }
            }
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        if roots.is_empty() {
            return Err(io::Error::other("there are no root certificates to verify the backend with"));
        }
        builder.with_root_certificates(roots)
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    };
    let mut config = match &tls.client_cert {
        Some((chain, key_file)) => {
            let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| of_file(key_file, error))?;
            let chain = certificates(chain)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| of_file(key_file, error))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = if http1 { vec![b"http/1.1".to_vec()] } else { vec![b"h2".to_vec(), b"http/1.1".to_vec()] };
    Ok(config)
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| of_file(path, error))?;
    match certificates.is_empty() {
        true => Err(of_file(path, "there is no certificate in it")),
        false => Ok(certificates),
    }
}

fn of_file(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

/// Takes any certificate. The way to the pod is authenticated by the API server; what pods present is rarely made out to
/// a name that a laptop knows.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
