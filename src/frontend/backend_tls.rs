//! TLS connections to https backends.

use std::{
    collections::HashMap,
    fs, io,
    path::Path,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use rustls::{ClientConfig, RootCertStore};

use crate::{
    config::{BackendTls, KeyPairFiles},
    tls::{self, Pinned},
};

/// TLS client configurations, shared by requests to backends so that TLS sessions resume.
#[derive(Default)]
pub struct ClientConfigs {
    /// By the route's TLS settings, and whether only HTTP/1.1 is offered.
    made: Mutex<HashMap<(BackendTls, bool), Made>>,
}

struct Made {
    /// Modification times of the PEM files at that time.
    files: Vec<Option<SystemTime>>,
    config: Arc<ClientConfig>,
}

impl ClientConfigs {
    /// Returns the configuration for a route's settings; reads the PEM files again if they have changed.
    ///
    /// `http1`: do not offer HTTP/2, because an upgrade needs HTTP/1.1.
    ///
    /// # Errors
    /// A file cannot be read or is invalid, or the system has no readable root certificates.
    pub fn config(&self, tls: &BackendTls, http1: bool) -> io::Result<Arc<ClientConfig>> {
        let client = tls.client_cert.iter().flat_map(|files| [&files.cert, &files.key]);
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

fn make(options: &BackendTls, http1: bool) -> io::Result<ClientConfig> {
    let provider = crate::tls::provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = if options.verify {
        let roots = match &options.ca {
            Some(path) => tls::authorities(path)?,
            None => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                roots
            }
        };
        if roots.is_empty() {
            return Err(io::Error::other("there are no root certificates to verify the backend with"));
        }
        builder.with_root_certificates(roots)
    } else {
        // The API server authenticates the connection to the pod. Certificates of pods rarely contain a name that a laptop uses.
        builder.dangerous().with_custom_certificate_verifier(Pinned::to_nothing(provider))
    };
    let mut config = match &options.client_cert {
        Some(KeyPairFiles { cert, key: key_file }) => {
            let (chain, key) = (tls::certificates(cert)?, tls::private_key(key_file)?);
            builder.with_client_auth_cert(chain, key).map_err(|error| tls::of_file(key_file, error))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = if http1 { vec![b"http/1.1".to_vec()] } else { vec![b"h2".to_vec(), b"http/1.1".to_vec()] };
    Ok(config)
}
