//! The command of `adit run`, which adit controls through a [keeper](super::keeper).

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs::{self, DirBuilder, File},
    hash::{BuildHasher, RandomState},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::{Signal, getpid, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use super::signals::{KILLED, Signals};

/// Time limit until the keeper connects. It does so at once, but the machine may be busy.
const START_WITHIN: Duration = Duration::from_secs(10);

/// The running command.
pub struct Child {
    reports: Lines<BufReader<OwnedReadHalf>>,
    orders: OwnedWriteHalf,
}

impl Child {
    /// Starts the command with adit's environment plus `variables`, and with adit's standard streams.
    ///
    /// # Errors
    /// The system cannot start it, or adit cannot start the keeper.
    pub async fn start(
        words: &[OsString],
        variables: &BTreeMap<OsString, OsString>,
        removed: &[&str],
        open_files: Option<u64>,
    ) -> Result<Self, StartError> {
        let (folder, listener) = listen(&places()).map_err(StartError::NoSocket)?;
        let socket = folder.control();
        let mut keeper = Command::new(own_program()?);
        keeper.arg("supervise").arg("--control").arg(&socket);
        if let Some(limit) = open_files {
            keeper.arg("--open-files").arg(limit.to_string());
        }
        keeper.arg("--").args(words).envs(variables);
        for name in removed {
            keeper.env_remove(name);
        }
        // The keeper ends with the connection, so nobody waits for it.
        drop(keeper.spawn()?);
        let connecting = timeout(START_WITHIN, listener.accept()).await;
        let (stream, _): (UnixStream, _) = connecting.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let (reports, orders) = stream.into_split();
        let mut child = Self { reports: BufReader::new(reports).lines(), orders };
        let first = child.reports.next_line().await?.unwrap_or_default();
        match first.split_once(' ') {
            None if first == "running" => {}
            Some(("failed", code)) => {
                return Err(StartError::Command(io::Error::from_raw_os_error(code.parse().unwrap_or_default())));
            }
            _ => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
        // Close adit's copies of the standard streams: only the command may hold the ends of pipes.
        if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdin(&null);
            let _ = rustix::stdio::dup2_stdout(&null);
        }
        Ok(child)
    }

    /// Waits for its end, and returns its exit code. Meanwhile passes signals on; if the command is stopped, adit stops too.
    pub async fn wait(mut self, signals: &mut Signals) -> u8 {
        loop {
            tokio::select! {
                report = self.reports.next_line() => {
                    let report = report.ok().flatten().unwrap_or_default();
                    match report.split_once(' ').map(|(what, number)| (what, number.parse::<u8>())) {
                        Some(("exited", Ok(code))) => return code,
                        Some(("killed", Ok(signal))) => return KILLED.saturating_add(signal),
                        _ if report == "stopped" => {
                            // The shell sees adit stop, and later continues both.
                            let _ = kill_process(getpid(), Signal::STOP);
                        }
                        // The keeper was killed, and the command with it.
                        _ => return KILLED + Signal::KILL.as_raw() as u8,
                    }
                }
                number = signals.next() => {
                    // The keeper may have ended just now.
                    let _ = self.orders.write_all(format!("signal {number}\n").as_bytes()).await;
                }
            }
        }
    }
}

/// Returns the path of this program. If its file was replaced, returns /proc/self/exe, which is the running one.
///
/// # Errors
/// The system cannot tell.
pub fn own_program() -> io::Result<PathBuf> {
    match env::current_exe() {
        Ok(path) if path.exists() => Ok(path),
        other if Path::new("/proc/self/exe").exists() => {
            Ok(other.map_or("/proc/self/exe".into(), |_| "/proc/self/exe".into()))
        }
        other => other,
    }
}

/// Returns folders for the socket, in order of preference. TMPDIR may be missing, read-only, or too long for a socket's path
/// (about 100 bytes; Bazel's sandboxes).
fn places() -> Vec<PathBuf> {
    let of_session = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    [env::temp_dir()].into_iter().chain(of_session).chain(["/tmp", "/var/tmp", "/dev/shm"].map(PathBuf::from)).collect()
}

/// Binds a socket in the first folder that works. If none does, returns the error of the first.
fn listen(places: &[PathBuf]) -> io::Result<(Folder, UnixListener)> {
    let mut first = None;
    for place in places {
        let bound = Folder::new(place).and_then(|folder| {
            let listener = UnixListener::bind(folder.control())?;
            Ok((folder, listener))
        });
        match bound {
            Ok(bound) => return Ok(bound),
            Err(error) => _ = first.get_or_insert(error),
        }
    }
    Err(first.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// Error of a command that was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("there is no folder for the socket between adit and the command: set TMPDIR")]
    NoSocket(#[source] io::Error),
    #[error("the process between adit and the command does not start")]
    Keeper(#[from] io::Error),
    /// The system's error about the command itself.
    #[error("{0}")]
    Command(io::Error),
}

/// A folder with mode 0700, deleted on drop.
struct Folder(PathBuf);

impl Folder {
    fn new(place: &Path) -> io::Result<Self> {
        let number = RandomState::new().hash_one(std::process::id());
        let path = std::path::absolute(place)?.join(format!("adit-{number:016x}"));
        // `create` fails if the folder exists, so no other user can have prepared it.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn control(&self) -> PathBuf {
        self.0.join("control")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A cleaner of temporary folders may have deleted it already.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_where_there_is_room_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(120));
        fs::create_dir(&long).unwrap();
        let gone = folder.path().join("gone");
        let (found, _listener) = listen(&[gone.clone(), long.clone(), folder.path().to_owned()]).unwrap();
        assert_eq!(found.0.parent(), Some(folder.path()));
        assert_eq!(fs::read_dir(&long).unwrap().count(), 0, "nothing is left over");
        assert_eq!(listen(&[gone, long]).map(drop).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
