//! The Unix socket of `adit status`, `adit stop` and other commands: HTTP, only for the user of the process.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    os::unix::net::UnixStream as StdUnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{UnixListener, UnixStream},
    time::{sleep, timeout},
};
use tracing::{debug, info};

use super::{
    api::source::Source,
    api::{
        ROOT,
        answers::{Failure, Overview, Problem, Status},
        feed::{Change, Snapshot},
        open::{CONNECTION_ID, OpenAnswer, OpenRequest, PROTOCOL},
    },
    endpoints::{self, Reach},
};
use crate::{
    drain::Drain,
    io::{BoxedIo, upgraded::connection_of},
};

/// Time limit of an answer. A list of Services waits for an API server.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Time limit of the status, which needs no cluster.
const STATUS_WITHIN: Duration = Duration::from_secs(3);

/// Interval between two attempts to bind the socket.
const RETRY: Duration = Duration::from_secs(2);

/// A listening admin socket. Dropping it deletes its files.
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // The files may be gone already.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(self.path.with_extension("token"));
    }
}

/// Returns the folders in which sockets may be, in order of preference: `$XDG_RUNTIME_DIR/adit`, then `$XDG_STATE_HOME/adit` or
/// `~/.local/state/adit`.
pub fn folders() -> Vec<PathBuf> {
    // Relative paths must be ignored (XDG base directory specification).
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || etcetera::home_dir().ok().map(|home| home.join(".local/state"));
    let state = variable("XDG_STATE_HOME").or_else(home);
    variable("XDG_RUNTIME_DIR").into_iter().chain(state).map(|base| base.join("adit")).collect()
}

impl AdminSocket {
    /// Binds the socket of the adit that listens on `port`. Replaces a socket that a dead process has left.
    ///
    /// # Errors
    /// No folder can be created, belongs to this user, and has a path short enough for a socket (about 100 bytes).
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

    /// Binds the same socket once it is free: after another adit with this port on another address has ended, or once a folder is
    /// writable.
    pub async fn bind_when_free(port: u16) -> Self {
        loop {
            sleep(RETRY).await;
            if let Ok(bound) = Self::bind(port) {
                info!(socket = %bound.path.display(), "'adit status' finds this adit from now on");
                return bound;
            }
        }
    }

    fn bind_in(folder: &Path, port: u16) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // An existing folder may be open to other users.
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

    /// Writes the dashboard's token beside the socket, for programs of the same user.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_token(&self, token: &str) -> io::Result<()> {
        let path = self.path.with_extension("token");
        // The file of a killed process may have another mode.
        let _ = fs::remove_file(&path);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        io::Write::write_all(&mut file, token.as_bytes())
    }

    /// Serves requests. The caller ends it by dropping the future.
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

/// Returns the sockets of all adits, including ones that have ended.
pub fn sockets() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = folders()
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
        .collect();
    found.sort();
    // Both variables may name the same folder.
    found.dedup();
    found
}

/// Returns the socket of the adit that listens on this port. `None`: there is no file of it. If no process listens, it is one
/// that a killed adit has left.
pub async fn of_port(port: u16) -> Option<PathBuf> {
    let mut left = None;
    for path in folders().into_iter().map(|folder| folder.join(format!("{port}.sock"))).filter(|path| path.exists()) {
        match UnixStream::connect(&path).await {
            // The queue of a process that is stopped may be full.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => left = left.or(Some(path)),
            _ => return Some(path),
        }
    }
    left
}

/// Error of a call to a running adit.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("the running adit does not answer")]
    Silent(#[source] io::Error),
    /// It refused, with a reason.
    #[error("{}", .0.message)]
    Refused(Problem),
    #[error("the running adit answered {0}: is it of another version?")]
    Other(StatusCode),
}

/// Gets an answer of a running adit's API. `path`: the part behind [`ROOT`].
///
/// # Errors
/// It does not answer, or the answer is not the expected one.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, CallError> {
    let (code, body) = call(socket, Method::GET, path).await.map_err(CallError::Silent)?;
    match code {
        StatusCode::OK => serde_json::from_slice(&body).map_err(|_| CallError::Other(code)),
        code => Err(refused(code, &body)),
    }
}

/// Gets the status of a running adit. A short time limit: a process that does not answer soon is stopped, or hangs.
///
/// # Errors
/// It does not answer, or the answer is not the expected one.
pub async fn status(socket: &Path) -> Result<Status, CallError> {
    let answer = timeout(STATUS_WITHIN, get(socket, "status")).await;
    answer.unwrap_or_else(|_| Err(CallError::Silent(io::ErrorKind::TimedOut.into())))
}

/// Returns the id of the process that listens on a socket. `None`: no process does, or the system does not report it.
pub async fn owner(socket: &Path) -> Option<i32> {
    UnixStream::connect(socket).await.ok()?.peer_cred().ok()?.pid()
}

/// Sends a POST without a body to a running adit.
///
/// # Errors
/// It does not answer, or refuses.
pub async fn post(socket: &Path, path: &str) -> Result<(), CallError> {
    let (code, body) = call(socket, Method::POST, path).await.map_err(CallError::Silent)?;
    if code.is_success() { Ok(()) } else { Err(refused(code, &body)) }
}

/// Sends a POST to a running adit, and returns its answer. `path`: the part behind [`ROOT`].
///
/// # Errors
/// It does not answer, or refuses.
pub async fn ask<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, CallError> {
    ask_with(socket, path, &serde_json::json!({})).await
}

/// Sends a POST with a JSON body, and returns the answer.
///
/// # Errors
/// It does not answer, or refuses.
pub async fn ask_with<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl serde::Serialize,
) -> Result<T, CallError> {
    let body = serde_json::to_vec(body).unwrap_or_default().into();
    let (code, body) = call_with(socket, Method::POST, path, body).await.map_err(CallError::Silent)?;
    match code {
        code if code.is_success() => serde_json::from_slice(&body).map_err(|_| CallError::Other(code)),
        code => Err(refused(code, &body)),
    }
}

/// Asks a running adit to open a target at a local port, or to check it.
///
/// # Errors
/// It does not answer, or refuses.
pub async fn open(socket: &Path, request: &OpenRequest) -> Result<OpenAnswer, CallError> {
    ask_with(socket, "open", request).await
}

/// A connection to a target through a running adit.
pub struct Stream {
    pub io: BoxedIo,
    /// Id of its entry in that adit's journal. `None`: that adit is of an older version.
    pub id: Option<u64>,
}

/// Asks a running adit for a connection to a target.
///
/// # Errors
/// It does not answer, or refuses.
pub async fn stream(socket: &Path, request: &OpenRequest) -> Result<Stream, CallError> {
    let silent = |error| CallError::Silent(io::Error::other(error));
    let io = UnixStream::connect(socket).await.map_err(CallError::Silent)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(silent)?;
    let mut connection = std::pin::pin!(connection.with_upgrades().fuse());
    let mut post = Request::new(Full::new(body_of(request)));
    *post.method_mut() = Method::POST;
    *post.uri_mut() = http::Uri::from_static("/api/v1/open");
    post.headers_mut().insert(header::HOST, HeaderValue::from_static("adit"));
    post.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    post.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    let mut exchange = std::pin::pin!(async {
        let response = sender.send_request(post).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let id = response.headers().get(CONNECTION_ID).and_then(|id| id.to_str().ok()?.parse().ok());
            return hyper::upgrade::on(response).await.map(|upgraded| Ok((upgraded, id)));
        }
        let code = response.status();
        Ok(Err((code, response.into_body().collect().await?.to_bytes())))
    });
    loop {
        tokio::select! {
            done = &mut exchange => return match done.map_err(silent)? {
                Ok((upgraded, id)) => Ok(Stream { io: connection_of::<UnixStream>(upgraded), id }),
                Err((code, body)) => Err(refused(code, &body)),
            },
            // The connection's future ends with the upgrade; the exchange has its result then.
            _ = &mut connection => {}
        }
    }
}

fn body_of(request: &OpenRequest) -> Bytes {
    // A struct of strings and numbers always serialises.
    serde_json::to_vec(request).unwrap_or_default().into()
}

/// Opens the event stream of a running adit.
///
/// # Errors
/// It does not answer, or refuses. `ResourceBusy`: it has as many readers as it serves.
pub async fn events(socket: &Path) -> io::Result<Events> {
    let opening = async {
        let mut io = UnixStream::connect(socket).await?;
        io.write_all(format!("GET {ROOT}events HTTP/1.1\r\nHost: adit\r\n\r\n").as_bytes()).await?;
        let mut lines = BufReader::new(io).lines();
        match lines.next_line().await?.ok_or(io::ErrorKind::UnexpectedEof)?.split(' ').nth(1) {
            Some("200") => Ok::<_, io::Error>(Events { lines, is_snapshot: false }),
            Some("503") => Err(io::ErrorKind::ResourceBusy.into()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    };
    timeout(STATUS_WITHIN, opening).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// An event of a running adit.
pub enum Update {
    Snapshot(Box<Snapshot>),
    Change(Box<Change>),
}

/// The event stream of a running adit.
pub struct Events {
    lines: Lines<BufReader<UnixStream>>,
    /// Whether the event that is being read is a snapshot.
    is_snapshot: bool,
}

impl Events {
    /// Returns the next event. `None`: the process has ended, or is of another version. A dropped call loses nothing.
    pub async fn next(&mut self) -> Option<Update> {
        loop {
            let line = self.lines.next_line().await.ok()??;
            if let Some(name) = line.strip_prefix("event: ") {
                self.is_snapshot = name == "snapshot";
            } else if let Some(data) = line.strip_prefix("data: ") {
                return match self.is_snapshot {
                    true => serde_json::from_str(data).ok().map(Update::Snapshot),
                    false => serde_json::from_str(data).ok().map(Update::Change),
                };
            }
        }
    }

    /// Returns the next overview: the first one, and one after each change. `None`: the process has ended.
    pub async fn next_status(&mut self) -> Option<Overview> {
        loop {
            match self.next().await? {
                Update::Snapshot(snapshot) => return Some(snapshot.status),
                Update::Change(change) => match change.status {
                    Some(status) => return Some(status),
                    None => continue,
                },
            }
        }
    }
}

/// Returns an id in percent-encoding, for a path.
pub fn escape(id: &str) -> impl std::fmt::Display {
    percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC)
}

fn refused(code: StatusCode, body: &[u8]) -> CallError {
    match serde_json::from_slice(body) {
        Ok(Failure { error, .. }) => CallError::Refused(error),
        Err(_) => CallError::Other(code),
    }
}

async fn call(socket: &Path, method: Method, path: &str) -> io::Result<(StatusCode, Bytes)> {
    call_with(socket, method, path, Bytes::new()).await
}

async fn call_with(socket: &Path, method: Method, path: &str, body: Bytes) -> io::Result<(StatusCode, Bytes)> {
    let calling = async {
        let stream = UnixStream::connect(socket).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let request = Request::builder()
            .method(method)
            .uri(format!("{ROOT}{path}"))
            .header("host", "adit")
            .body(Full::new(body))
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
