//! The Unix socket that `adit status` and `adit stop` talk to: HTTP, for the user of the process alone.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    os::unix::net::UnixStream as StdUnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tracing::debug;

use super::status::{Source, Status};
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

/// Returns the folder of the sockets: `$XDG_RUNTIME_DIR/adit`, else `$XDG_STATE_HOME/adit`, else `~/.local/state/adit`.
pub fn folder() -> io::Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || etcetera::home_dir().ok().map(|home| home.join(".local/state"));
    let base = variable("XDG_RUNTIME_DIR").or_else(|| variable("XDG_STATE_HOME")).or_else(home);
    base.map(|base| base.join("adit")).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no home folder"))
}

impl AdminSocket {
    /// Binds the socket of the adit that listens on `port`. One that a dead process has left is replaced.
    ///
    /// # Errors
    /// The folder cannot be made, or is another user's.
    pub fn bind(port: u16) -> io::Result<Self> {
        let folder = folder()?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let (mode, owner) = (fs::symlink_metadata(&folder)?, fs::metadata("/proc/self").map(|own| own.uid()).ok());
        if !mode.is_dir() || owner.is_some_and(|owner| owner != mode.uid()) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{} is not ours", folder.display())));
        }
        // Made by somebody else's hand, it may be open to others.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        let path = folder.join(format!("{port}.sock"));
        if path.exists() && StdUnixStream::connect(&path).is_err() {
            fs::remove_file(&path)?;
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
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
            let source = source.clone();
            drain.spawn(async move {
                let service = service_fn(move |request| {
                    let response = answer(&source, &request);
                    async move { Ok::<_, Infallible>(response) }
                });
                // What goes wrong on it is the caller's to tell.
                let _ = timeout(
                    ANSWER_WITHIN,
                    http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service),
                )
                .await;
            });
        }
    }
}

fn answer(source: &Source, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/status") => match serde_json::to_vec(&source.status()) {
            Ok(body) => (StatusCode::OK, body),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string().into_bytes()),
        },
        (&Method::POST, "/stop") => match source
            .stop(&percent_encoding::percent_decode_str(request.uri().query().unwrap_or("")).decode_utf8_lossy())
        {
            true => (StatusCode::NO_CONTENT, Vec::new()),
            false => (StatusCode::NOT_FOUND, Vec::new()),
        },
        _ => (StatusCode::NOT_FOUND, Vec::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

/// Returns the sockets of the adits that run, or ran.
pub fn sockets() -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder()?) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
        .collect();
    found.sort();
    Ok(found)
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
