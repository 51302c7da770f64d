//! Bearer token of a `tokenFile`, read again each minute, without its trailing line end.

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::HeaderValue;
use rustls::sign::CertifiedKey;

use super::{Credential, bearer};

/// Interval between reads. A kubelet renews such files long before the old token expires.
const PERIOD: Duration = Duration::from_secs(60);

/// Token of a file. If the file cannot be read, the last token stays.
#[derive(Clone)]
pub struct TokenFile {
    path: PathBuf,
    identity: Option<Arc<CertifiedKey>>,
    last: Arc<Mutex<Last>>,
}

struct Last {
    credential: Arc<Credential>,
    read: Instant,
}

impl TokenFile {
    /// Reads the file. `otherwise`: the token of the kubeconfig, used until the file has one.
    ///
    /// # Errors
    /// Fails if there is no token, or if it has characters that HTTP does not allow.
    pub fn open(path: PathBuf, otherwise: Option<&str>, identity: Option<Arc<CertifiedKey>>) -> io::Result<Self> {
        let header = match (read(&path), otherwise) {
            (Ok(header), _) => header,
            (Err(_), Some(token)) => bearer(token)?,
            (Err(error), None) => return Err(error),
        };
        let credential = Arc::new(Credential::new(Some(header), identity.clone()));
        Ok(Self { path, identity, last: Arc::new(Mutex::new(Last { credential, read: Instant::now() })) })
    }

    /// Returns the credential with the token. Reads the file again each minute.
    pub fn credential(&self) -> Arc<Credential> {
        let mut last = self.last.lock().expect("no panic while the lock is held");
        if last.read.elapsed() > PERIOD {
            self.read_again(&mut last);
        }
        last.credential.clone()
    }

    /// Reads the file again because a server refused a credential. Returns whether there is another one.
    pub fn renew(&self, refused: &Arc<Credential>) -> bool {
        let mut last = self.last.lock().expect("no panic while the lock is held");
        if Arc::ptr_eq(&last.credential, refused) {
            self.read_again(&mut last);
        }
        !Arc::ptr_eq(&last.credential, refused)
    }

    fn read_again(&self, last: &mut Last) {
        if let Ok(header) = read(&self.path)
            && last.credential.header.as_ref() != Some(&header)
        {
            last.credential = Arc::new(Credential::new(Some(header), self.identity.clone()));
        }
        last.read = Instant::now();
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

    fn header(file: &TokenFile) -> HeaderValue {
        file.credential().header.clone().unwrap()
    }

    #[test]
    fn a_token_is_trimmed_and_comes_before_that_of_the_kubeconfig() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let open = |otherwise| TokenFile::open(path.clone(), otherwise, None).map(|file| header(&file));
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
    fn the_last_token_is_kept_while_the_file_cannot_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "first").unwrap();
        let file = TokenFile::open(path.clone(), None, None).unwrap();
        let make_old = || file.last.lock().unwrap().read -= PERIOD * 2;
        fs::write(&path, "second").unwrap();
        assert_eq!(header(&file), "Bearer first");
        make_old();
        assert_eq!(header(&file), "Bearer second");
        fs::remove_file(&path).unwrap();
        make_old();
        assert_eq!(header(&file), "Bearer second");
    }

    #[test]
    fn a_token_that_is_refused_is_read_again_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "first").unwrap();
        let file = TokenFile::open(path.clone(), None, None).unwrap();
        let first = file.credential();
        assert!(!file.renew(&first), "the file has the same");
        fs::write(&path, "second").unwrap();
        assert!(file.renew(&first));
        assert_eq!(header(&file), "Bearer second");
        assert!(file.renew(&first), "another request has renewed it");
    }
}
