//! Bearer token of a `tokenFile`, read again each minute, without its trailing line end.

use std::{
    fs,
    hash::{Hash, Hasher},
    io,
    panic::resume_unwind,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use http::HeaderValue;
use rustls::sign::CertifiedKey;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    task::spawn_blocking,
    time::timeout,
};

use crate::k8s::credential::{Credential, bearer, chain};

/// Interval between reads. A kubelet renews such files long before the old token expires.
const PERIOD: Duration = Duration::from_secs(60);

/// How long a request waits for a read. A read from a stalled mount never returns, and the last token is probably still
/// valid.
const PATIENCE: Duration = Duration::from_secs(1);

/// Token of a file. If the file cannot be read, the last token stays.
#[derive(Clone)]
pub struct TokenFile {
    path: PathBuf,
    /// Token of the kubeconfig, used until the file has one.
    otherwise: Option<HeaderValue>,
    identity: Option<Arc<CertifiedKey>>,
    last: Arc<Mutex<Last>>,
    /// Locked during a read, so that a stalled mount costs one thread.
    reading: Arc<AsyncMutex<()>>,
}

struct Last {
    credential: Arc<Credential>,
    read: Instant,
}

impl Hash for TokenFile {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.path, &self.otherwise, chain(self.identity.as_ref())).hash(state);
    }
}

impl TokenFile {
    /// Reads the file. `otherwise`: the token of the kubeconfig. Blocks.
    ///
    /// # Errors
    /// Fails if there is no token, or if it has characters that HTTP does not allow.
    pub fn open(path: PathBuf, otherwise: Option<&str>, identity: Option<Arc<CertifiedKey>>) -> io::Result<Self> {
        let otherwise = otherwise.map(bearer).transpose()?;
        let header = read(&path).or_else(|error| otherwise.clone().ok_or(error))?;
        let credential = Arc::new(Credential::new(Some(header), identity.clone()));
        let last = Arc::new(Mutex::new(Last { credential, read: Instant::now() }));
        Ok(Self { path, otherwise, identity, last, reading: Arc::default() })
    }

    /// Returns the credential with the token. Reads the file again each minute.
    pub async fn credential(&self) -> Arc<Credential> {
        let is_old = self.last().read.elapsed() > PERIOD;
        if is_old && let Ok(reading) = self.reading.clone().try_lock_owned() {
            let _ = timeout(PATIENCE, self.read_again(reading)).await;
        }
        self.present()
    }

    /// Returns the credential with the token that was read last.
    pub fn present(&self) -> Arc<Credential> {
        self.last().credential.clone()
    }

    /// Reads the file again because a server refused a credential. Returns whether there is another one.
    pub async fn renew(&self, refused: &Arc<Credential>) -> bool {
        let is_other = || !Arc::ptr_eq(&self.last().credential, refused);
        let renewed = async {
            let reading = self.reading.clone().lock_owned().await;
            if !is_other() {
                self.read_again(reading).await;
            }
        };
        is_other() || timeout(PATIENCE, renewed).await.is_ok() && is_other()
    }

    /// Reads the file on another thread. The read goes on if the caller stops waiting.
    async fn read_again(&self, reading: OwnedMutexGuard<()>) {
        let file = self.clone();
        let read = spawn_blocking(move || {
            let read = read(&file.path);
            let mut last = file.last();
            if let Ok(header) = read
                && last.credential.header.as_ref() != Some(&header)
            {
                last.credential = Arc::new(Credential::new(Some(header), file.identity.clone()));
            }
            last.read = Instant::now();
            drop(reading);
        });
        if let Err(panicked) = read.await {
            resume_unwind(panicked.into_panic());
        }
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().expect("no panic while the lock is held")
    }
}

fn read(path: &PathBuf) -> io::Result<HeaderValue> {
    match fs::read_to_string(path)?.trim() {
        "" => Err(io::Error::other("it is empty")),
        token => bearer(token),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a file with the token `first`, in a folder of its own.
    fn first() -> (tempfile::TempDir, PathBuf, TokenFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "first").unwrap();
        let file = TokenFile::open(path.clone(), None, None).unwrap();
        (folder, path, file)
    }

    async fn header(file: &TokenFile) -> HeaderValue {
        file.credential().await.header.clone().unwrap()
    }

    #[test]
    fn a_token_is_trimmed_and_comes_before_that_of_the_kubeconfig() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let open = |otherwise| {
            TokenFile::open(path.clone(), otherwise, None).map(|file| file.present().header.clone().unwrap())
        };
        assert_eq!(open(None).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(open(Some("inline")).unwrap(), "Bearer inline");
        fs::write(&path, " \n").unwrap();
        assert_eq!(open(None).unwrap_err().to_string(), "it is empty");
        assert_eq!(open(Some("inline")).unwrap(), "Bearer inline");
        fs::write(&path, "  fresh\r\n\n").unwrap();
        assert_eq!(open(Some("inline")).unwrap(), "Bearer fresh");
        fs::write(&path, "two\nlines").unwrap();
        assert!(open(None).unwrap_err().to_string().contains("line end"));
    }

    #[test]
    fn another_token_of_the_kubeconfig_is_another_login() {
        let of = |token: &str| {
            let mut hasher = std::hash::DefaultHasher::new();
            TokenFile::open("/no/such".into(), Some(token), None).unwrap().hash(&mut hasher);
            hasher.finish()
        };
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
    }

    #[tokio::test]
    async fn the_last_token_is_kept_while_the_file_cannot_be_read() {
        let (_folder, path, file) = first();
        let make_old = || file.last.lock().unwrap().read -= PERIOD * 2;
        fs::write(&path, "second").unwrap();
        assert_eq!(header(&file).await, "Bearer first");
        make_old();
        assert_eq!(header(&file).await, "Bearer second");
        fs::remove_file(&path).unwrap();
        make_old();
        assert_eq!(header(&file).await, "Bearer second");
    }

    #[tokio::test]
    async fn a_token_that_is_refused_is_read_again_at_once() {
        let (_folder, path, file) = first();
        let first = file.credential().await;
        assert!(!file.renew(&first).await, "the file has the same");
        fs::write(&path, "second").unwrap();
        assert!(file.renew(&first).await);
        assert_eq!(header(&file).await, "Bearer second");
        assert!(file.renew(&first).await, "another request has renewed it");
    }

    /// Replaces the file with a pipe that nobody writes: a read does not return, as on a mount that hangs.
    fn hang(path: &std::path::Path) {
        fs::remove_file(path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    }

    #[tokio::test]
    async fn a_file_that_begins_to_hang_blocks_no_thread_and_its_last_token_stays() {
        let (_folder, path, file) = first();
        hang(&path);
        file.last().read -= PERIOD * 2;
        let first = file.credential().await;
        assert_eq!(first.header.as_ref().unwrap(), "Bearer first");
        assert!(file.reading.try_lock().is_err(), "one read for all");
        assert!(!file.renew(&first).await);
        // The mount answers again.
        fs::write(&path, "second").unwrap();
        drop(file.reading.lock().await);
        assert_eq!(header(&file).await, "Bearer second");
    }
}
