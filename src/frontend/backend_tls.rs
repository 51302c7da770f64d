//! TLS connections to https backends.

use std::{
    collections::HashMap,
    fs, io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use rustls::{ClientConfig, RootCertStore};
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    task::spawn_blocking,
    time::timeout,
};

use crate::{
    config::{BackendTls, KeyPairFiles},
    tls::{self, Pinned},
};

/// Timeout for a look at PEM files that have been read before. They may be on a network mount that hangs.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// Timeout for the first time: without the files, there is nothing to connect with.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// TLS client configurations, shared by requests to backends so that TLS sessions resume.
#[derive(Default)]
pub struct ClientConfigs {
    /// By the route's TLS settings, and whether only HTTP/1.1 is offered.
    slots: Mutex<HashMap<(BackendTls, bool), Arc<Slot>>>,
}

/// Configuration for one route's settings.
#[derive(Default)]
struct Slot {
    made: Mutex<Option<Made>>,
    /// Held by the thread that reads the files: a mount that hangs blocks one thread, and not one for each connection.
    reading: Arc<AsyncMutex<()>>,
}

struct Made {
    /// Modification times of the PEM files at that time.
    files: Vec<Option<SystemTime>>,
    config: Arc<ClientConfig>,
}

impl ClientConfigs {
    /// Returns the configuration for a route's settings; reads the PEM files again if they have changed. While their file system
    /// does not answer, returns the last one.
    ///
    /// `http1`: do not offer HTTP/2, because an upgrade needs HTTP/1.1.
    ///
    /// # Errors
    /// A file cannot be read or is invalid, or the system has no readable root certificates.
    pub async fn config(&self, tls: &BackendTls, http1: bool) -> io::Result<Arc<ClientConfig>> {
        let key = (BackendTls { server_name: None, ..tls.clone() }, http1);
        let slot = self.slots.lock().expect("no panic while the lock is held").entry(key).or_default().clone();
        let last = slot.made().as_ref().map(|made| made.config.clone());
        if let Some(last) = last.clone()
            && files(tls).next().is_none()
        {
            return Ok(last);
        }
        let reading = async {
            let guard = slot.reading.clone().lock_owned().await;
            let (slot, tls) = (slot.clone(), tls.clone());
            spawn_blocking(move || slot.read(&tls, http1, guard)).await.map_err(io::Error::other)?
        };
        let limit = if last.is_some() { LOOK_TIMEOUT } else { READ_TIMEOUT };
        timeout(limit, reading).await.unwrap_or_else(|_| {
            let files: Vec<String> = files(tls).map(|path| path.display().to_string()).collect();
            last.ok_or_else(|| {
                let text = format!("not read within {limit:?}: {}; does their file system answer?", files.join(", "));
                io::Error::new(io::ErrorKind::TimedOut, text)
            })
        })
    }
}

impl Slot {
    /// Returns the configuration, after a look at its files. Blocks.
    fn read(&self, tls: &BackendTls, http1: bool, _reading: OwnedMutexGuard<()>) -> io::Result<Arc<ClientConfig>> {
        let files: Vec<_> = files(tls).map(modified).collect();
        if let Some(made) = &*self.made()
            && made.files == files
        {
            return Ok(made.config.clone());
        }
        let config = Arc::new(make(tls, http1)?);
        *self.made() = Some(Made { files, config: config.clone() });
        Ok(config)
    }

    fn made(&self) -> MutexGuard<'_, Option<Made>> {
        self.made.lock().expect("no panic while the lock is held")
    }
}

fn files(tls: &BackendTls) -> impl Iterator<Item = &Path> {
    let client = tls.client_cert.iter().flat_map(|files| [&files.cert, &files.key]);
    tls.ca.iter().chain(client).map(|path| path.as_path())
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_that_hang_keep_the_last_configuration_and_stop_no_others() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        let certificate = rcgen::generate_simple_self_signed(["web".to_owned()]).unwrap().cert;
        fs::write(&ca, certificate.pem()).unwrap();
        let tls = BackendTls { verify: true, ca: Some(ca.clone()), ..BackendTls::default() };
        let configs = ClientConfigs::default();
        let first = configs.config(&tls, false).await.unwrap();
        assert!(Arc::ptr_eq(&first, &configs.config(&tls, false).await.unwrap()));
        // Nobody writes to the pipe: to open it for reading blocks.
        fs::remove_file(&ca).unwrap();
        mknodat(CWD, &ca, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let others = BackendTls::default();
        let (of_pipe, of_others, without) =
            tokio::join!(configs.config(&tls, false), configs.config(&others, false), configs.config(&tls, true));
        let without = without.unwrap_err();
        assert!(Arc::ptr_eq(&first, &of_pipe.unwrap()) && of_others.is_ok());
        assert!(without.to_string().contains("ca.pem") && without.to_string().contains("within 5s"), "{without}");
        // Let the threads go on, so that the runtime ends. To open a pipe for both never blocks.
        fs::OpenOptions::new().read(true).write(true).open(&ca).unwrap();
    }
}
