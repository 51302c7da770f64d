//! The Unix socket that `adit status` and `adit stop` talk to: HTTP, for the user of the process alone.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    os::unix::net::UnixStream as StdUnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tracing::debug;

use super::{
    endpoints::{self, Reach},
    status::{Source, Status},
};
use crate::drain::Drain;

const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A listening admin socket; its file is removed on drop.
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Returns the folders that the sockets may be in, the first that can be used first: `$XDG_RUNTIME_DIR/adit`,
/// `$XDG_STATE_HOME/adit`, `~/.local/state/adit`.
pub fn folders() -> Vec<PathBuf> {
    // A relative path is to be ignored (XDG base directory specification).
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || etcetera::home_dir().ok().map(|home| home.join(".local/state"));
    let state = variable("XDG_STATE_HOME").or_else(home);
    variable("XDG_RUNTIME_DIR").into_iter().chain(state).map(|base| base.join("adit")).collect()
}

impl AdminSocket {
    /// Binds the socket of the adit that listens on `port`. One that a dead process has left is replaced.
    ///
    /// # Errors
    /// No folder can be made, is ours, and has a path short enough for a socket (about 100 bytes).
    pub fn bind(port: u16) -> io::Result<Self> {
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "there is no home folder");
        for folder in folders() {
            match Self::bind_in(&folder, port) {
                Ok(bound) => return Ok(bound),
                Err(error) => {
                    debug!(folder = %folder.display(), %error, "no admin socket there");
                    failed = error;
                }
            }
        }
        Err(failed)
    }

    fn bind_in(folder: &Path, port: u16) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // Made by somebody else's hand, it may be open to others.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        let path = folder.join(format!("{port}.sock"));
        if path.exists() {
            match StdUnixStream::connect(&path) {
                Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another adit answers on its socket")),
                Err(_) => fs::remove_file(&path)?,
            }
        }
        let bound = Self { listener: UnixListener::bind(&path)?, path };
        fs::set_permissions(&bound.path, fs::Permissions::from_mode(0o600))?;
        let is_ours = fs::symlink_metadata(folder)?.uid() == fs::symlink_metadata(&bound.path)?.uid();
        if !is_ours {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{} is not ours", folder.display())));
        }
        Ok(bound)
    }

    /// Answers until the drain cuts.
    pub async fn serve(self, source: Source, drain: Drain) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    debug!(%error, "admin socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            drain.spawn(endpoints::serve(stream, source.clone(), Reach::Owner));
        }
    }
}

/// Returns the sockets of the adits that run, or ran.
pub fn sockets() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = folders()
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
        .collect();
    found.sort();
    // Both variables may name one folder.
    found.dedup();
    found
}

/// Asks a running adit for its status.
pub async fn status(socket: &Path) -> io::Result<Status> {
    let (code, body) = call(socket, Method::GET, "/status").await?;
    if code != StatusCode::OK {
        return Err(io::Error::other(format!("the running adit answered {code}")));
    }
    serde_json::from_slice(&body).map_err(io::Error::other)
}

/// Stops a tunnel of a running adit; returns whether it had one of that name.
pub async fn stop(socket: &Path, tunnel: &str) -> io::Result<bool> {
    let query = percent_encoding::utf8_percent_encode(tunnel, percent_encoding::NON_ALPHANUMERIC);
    let (code, _) = call(socket, Method::POST, &format!("/stop?{query}")).await?;
    Ok(code == StatusCode::NO_CONTENT)
}

async fn call(socket: &Path, method: Method, path: &str) -> io::Result<(StatusCode, Bytes)> {
    let calling = async {
        let stream = UnixStream::connect(socket).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "adit")
            .body(Full::<Bytes>::default())
            .map_err(io::Error::other)?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let code = response.status();
            Ok::<_, hyper::Error>((code, response.into_body().collect().await?.to_bytes()))
        };
        tokio::pin!(exchange, connection);
        tokio::select! {
            answer = &mut exchange => answer.map_err(io::Error::other),
            ended = &mut connection => match ended {
                Ok(()) => exchange.await.map_err(io::Error::other),
                Err(error) => Err(io::Error::other(error)),
            },
        }
    };
    timeout(ANSWER_WITHIN, calling).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
