//! The command of `adit run`, as adit sees it through its [keeper](super::keeper).

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

use super::signals::Signals;

/// A keeper connects at once; a machine may be busy.
const START_WITHIN: Duration = Duration::from_secs(10);

/// A shell's exit code for a killed command is this plus the signal's number.
pub const KILLED: u8 = 128;

/// The command, as it runs.
pub struct Child {
    reports: Lines<BufReader<OwnedReadHalf>>,
    orders: OwnedWriteHalf,
}

impl Child {
    /// Starts it with the variables beside our own, and with our standard streams.
    ///
    /// # Errors
    /// The system does not start it.
    pub async fn start(
        words: &[OsString],
        variables: &BTreeMap<OsString, OsString>,
        open_files: Option<u64>,
    ) -> io::Result<Self> {
        let folder = Folder::new()?;
        let socket = folder.0.join("control");
        let listener = UnixListener::bind(&socket)?;
        let mut keeper = Command::new(own_program()?);
        keeper.arg("supervise").arg("--control").arg(&socket);
        if let Some(limit) = open_files {
            keeper.arg("--open-files").arg(limit.to_string());
        }
        keeper.arg("--").args(words).envs(variables);
        // It ends with the connection: nobody waits for it.
        drop(keeper.spawn()?);
        let connecting = timeout(START_WITHIN, listener.accept()).await;
        let (stream, _): (UnixStream, _) = connecting.map_err(|_| io::ErrorKind::TimedOut)??;
        let (reports, orders) = stream.into_split();
        let mut child = Self { reports: BufReader::new(reports).lines(), orders };
        let first = child.reports.next_line().await?.unwrap_or_default();
        match first.split_once(' ') {
            None if first == "running" => {}
            Some(("failed", code)) => return Err(io::Error::from_raw_os_error(code.parse().unwrap_or_default())),
            _ => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        // The ends of pipes are the command's alone.
        if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdin(&null);
            let _ = rustix::stdio::dup2_stdout(&null);
        }
        Ok(child)
    }

    /// Waits for its end and returns its exit code; meanwhile signals go to it, and a stop of it stops adit too.
    pub async fn wait(mut self, signals: &mut Signals) -> u8 {
        loop {
            tokio::select! {
                report = self.reports.next_line() => {
                    let report = report.ok().flatten().unwrap_or_default();
                    match report.split_once(' ').map(|(what, number)| (what, number.parse::<u8>())) {
                        Some(("exited", Ok(code))) => return code,
                        Some(("killed", Ok(signal))) => return KILLED.saturating_add(signal),
                        _ if report == "stopped" => {
                            // The shell learns of it, and continues both.
                            let _ = kill_process(getpid(), Signal::STOP);
                        }
                        // The keeper was killed, and the command with it.
                        _ => return KILLED + Signal::KILL.as_raw() as u8,
                    }
                }
                number = signals.next() => {
                    // It may have ended just now.
                    let _ = self.orders.write_all(format!("signal {number}\n").as_bytes()).await;
                }
            }
        }
    }
}

/// Returns the path of this program; where its file was replaced, that of the running one.
pub fn own_program() -> io::Result<PathBuf> {
    match env::current_exe() {
        Ok(path) if path.exists() => Ok(path),
        other if Path::new("/proc/self/exe").exists() => {
            Ok(other.map_or("/proc/self/exe".into(), |_| "/proc/self/exe".into()))
        }
        other => other,
    }
}

/// A folder that is this user's alone, removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        let number = RandomState::new().hash_one(std::process::id());
        let path = env::temp_dir().join(format!("adit-{number:016x}"));
        // It fails where somebody else was first.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A cleaner of temporary folders may have been faster.
        let _ = fs::remove_dir_all(&self.0);
    }
}
