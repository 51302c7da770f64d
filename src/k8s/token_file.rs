//! The bearer token of a `tokenFile`: read again each minute, without the line end behind it.

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{HeaderValue, Request, header::AUTHORIZATION};
use tower::{Layer, Service};

/// A kubelet, and whoever else renews such files, does it long before the old token expires.
const PERIOD: Duration = Duration::from_secs(60);

/// Gives requests the token of a file; while that cannot be read, the last one that could.
#[derive(Clone)]
pub struct TokenFile {
    path: PathBuf,
    last: Arc<Mutex<Last>>,
}

struct Last {
    header: HeaderValue,
    read: Instant,
}

impl TokenFile {
    /// Reads the file. `otherwise`: the token of the kubeconfig, for as long as the file gives none.
    ///
    /// # Errors
    /// There is no token, or it has characters that HTTP does not allow.
    pub fn open(path: PathBuf, otherwise: Option<&str>) -> io::Result<Self> {
        let header = match (read(&path), otherwise) {
            (Ok(header), _) => header,
            (Err(_), Some(token)) => bearer(token)?,
            (Err(error), None) => return Err(error),
        };
        Ok(Self { path, last: Arc::new(Mutex::new(Last { header, read: Instant::now() })) })
    }

    fn header(&self) -> HeaderValue {
        let mut last = self.last.lock().expect("no panic while the lock is held");
        if last.read.elapsed() > PERIOD {
            if let Ok(header) = read(&self.path) {
                last.header = header;
            }
            last.read = Instant::now();
        }
        last.header.clone()
    }
}

fn read(path: &PathBuf) -> io::Result<HeaderValue> {
    match fs::read_to_string(path)?.trim() {
        "" => Err(io::Error::other("it is empty")),
        token => bearer(token),
    }
}

/// Returns the header of a token.
///
/// # Errors
/// The token has characters that HTTP does not allow. The text does not show them.
pub fn bearer(token: &str) -> io::Result<HeaderValue> {
    let mut header = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| io::Error::other("the token has a line end, or another character that HTTP does not allow"))?;
    header.set_sensitive(true);
    Ok(header)
}

impl<S> Layer<S> for TokenFile {
    type Service = WithToken<S>;

    fn layer(&self, inner: S) -> WithToken<S> {
        WithToken { file: self.clone(), inner }
    }
}

/// A service whose requests carry the token.
#[derive(Clone)]
pub struct WithToken<S> {
    file: TokenFile,
    inner: S,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for WithToken<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        request.headers_mut().insert(AUTHORIZATION, self.file.header());
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_trimmed_and_comes_before_that_of_the_kubeconfig() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let open = |otherwise| TokenFile::open(path.clone(), otherwise).map(|file| file.header());
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
        let file = TokenFile::open(path.clone(), None).unwrap();
        let make_old = || file.last.lock().unwrap().read -= PERIOD * 2;
        fs::write(&path, "second").unwrap();
        assert_eq!(file.header(), "Bearer first");
        make_old();
        assert_eq!(file.header(), "Bearer second");
        fs::remove_file(&path).unwrap();
        make_old();
        assert_eq!(file.header(), "Bearer second");
    }
}
