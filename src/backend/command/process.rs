//! One process of a command.

use std::{
    env,
    ffi::OsString,
    fmt, io,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::PathBuf,
    pin::Pin,
    process::{ExitStatus, Stdio},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    process::{Child, ChildStdin, ChildStdout, Command as Spawn},
    sync::watch,
    time::timeout,
};

use super::{Program, Wait, output::Output, supervisor::GRACE};
use crate::{
    backend::{OpenError, StreamFault},
    config::Command,
    io::Io,
    k8s::exec_path::ExecPath,
};

/// Environment variables that every program inherits in addition to PATH.
const KEPT: &[&str] = &[
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "TZ",
    "TMPDIR",
    "SSH_AUTH_SOCK",
    // A sign-in may open a browser, which needs these.
    "BROWSER",
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
];
const KEPT_PREFIXES: &[&str] = &["LC_", "XDG_"];

/// Returns the path of a program. A name with a slash is a path; any other is searched in the folders of `exec_path`.
pub fn find(program: &str, exec_path: &ExecPath) -> Option<PathBuf> {
    let is_program =
        |path: &PathBuf| path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    if program.contains('/') {
        return Some(crate::config::defaults::expand_home(program)).filter(is_program);
    }
    exec_path.find(program)
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessEnd {
    /// It exited with this code; 0: success.
    Exited(i32),
    /// This signal killed it.
    Signalled(i32),
    /// The system does not tell how; the reason for that, if there is one.
    Unknown(Option<String>),
}

impl From<io::Result<ExitStatus>> for ProcessEnd {
    fn from(status: io::Result<ExitStatus>) -> Self {
        match status.map(|status| (status.code(), status.signal())) {
            Ok((Some(code), _)) => Self::Exited(code),
            Ok((None, Some(signal))) => Self::Signalled(signal),
            Ok((None, None)) => Self::Unknown(None),
            Err(error) => Self::Unknown(Some(error.to_string())),
        }
    }
}

impl fmt::Display for ProcessEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "it ended with exit code {code}"),
            Self::Signalled(signal) => write!(f, "it was ended by signal {signal}"),
            Self::Unknown(None) => f.write_str("it ended"),
            Self::Unknown(Some(reason)) => write!(f, "it ended, and how is not known: {reason}"),
        }
    }
}

/// A running process. Dropping it stops the process.
pub struct Process {
    pid: Option<Pid>,
    shown: String,
    output: Output,
    end: watch::Receiver<Option<ProcessEnd>>,
}

impl Process {
    /// Starts the process with an empty standard input.
    ///
    /// # Errors
    /// The system cannot start it.
    pub fn start(command: &Command, program: &Program, wait: Arc<Wait>, port: Option<u16>) -> Result<Self, OpenError> {
        let mut spawn = prepared(command, program, port);
        let mut child =
            spawn.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|error| not_started(command, &error))?;
        let stdout = child.stdout.take();
        let process = Self::watch(command, child, wait);
        if let Some(stdout) = stdout {
            tokio::spawn(process.output.clone().follow(stdout));
        }
        Ok(process)
    }

    fn watch(command: &Command, mut child: Child, wait: Arc<Wait>) -> Self {
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let output = Output::new(&command.run[0], command, wait);
        let said = child.stderr.take().map(|stderr| tokio::spawn(output.clone().follow(stderr)));
        let (end_tx, end) = watch::channel(None);
        tokio::spawn(async move {
            let end = tokio::select! {
                status = child.wait() => ProcessEnd::from(status),
                // `Process` was dropped, which sent SIGTERM. The supervisor kills the command after its grace period;
                // wait a second longer.
                () = end_tx.closed() => {
                    if timeout(GRACE + Duration::from_secs(1), child.wait()).await.is_err() {
                        signal(pid, Signal::KILL);
                    }
                    return;
                }
            };
            // Read the last output before reporting the exit.
            if let Some(said) = said {
                let _ = timeout(Duration::from_millis(500), said).await;
            }
            // The receiver may be gone.
            let _ = end_tx.send(Some(end));
        });
        Self { pid, shown: command.run[0].clone(), output, end }
    }

    /// Returns how the process ended. `None`: it runs.
    pub fn end(&self) -> Option<ProcessEnd> {
        self.end.borrow().clone()
    }

    /// Waits until the process ends, and returns how, with its last output.
    pub async fn ended(&self) -> String {
        let mut end = self.end.clone();
        let ended = end.wait_for(Option::is_some).await;
        let how = ended.ok().and_then(|end| end.clone()).unwrap_or(ProcessEnd::Unknown(None));
        self.with_last_words(&how.to_string())
    }

    /// Returns `how` with the last output of the process.
    pub fn with_last_words(&self, how: &str) -> String {
        let said = self.output.last();
        if said.is_empty() { how.to_owned() } else { format!("{how}: {said}") }
    }

    /// Returns the error for a process that cannot be used.
    pub fn failed(&self, how: &str) -> OpenError {
        let said = self.output.last();
        let cause = if said.is_empty() { "it printed nothing".to_owned() } else { format!("it said: {said}") };
        OpenError::Command { what: format!("{}: {how}", self.shown), cause, hint: None }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.end.borrow().is_none() {
            signal(self.pid, Signal::TERM);
        }
    }
}

fn signal(pid: Option<Pid>, signal: Signal) {
    if let Some(pid) = pid {
        // The group may have ended just now.
        let _ = kill_process_group(pid, signal);
    }
}

fn prepared(command: &Command, program: &Program, port: Option<u16>) -> Spawn {
    let port = port.map(|port| port.to_string()).unwrap_or_default();
    let arguments = command.run[1..].iter().map(|word| OsString::from(word.replace("{port}", &port)));
    let mut spawn = match &program.supervisor {
        Some(supervisor) => {
            let mut spawn = Spawn::new(supervisor);
            spawn.args(["supervise", "--"]).arg(&program.file);
            spawn
        }
        None => Spawn::new(&program.file),
    };
    let is_kept = |name: &str| KEPT.contains(&name) || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    spawn.args(arguments).env_clear().env("PATH", &program.path);
    spawn.envs(env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_kept)));
    spawn.envs(command.env_from.iter().filter_map(|(name, ours)| Some((name, env::var_os(ours)?)))).envs(&command.env);
    // A process group of its own, so that Ctrl-C in adit's terminal does not reach it.
    spawn.process_group(0).stderr(Stdio::piped()).kill_on_drop(false);
    spawn
}

fn not_started(command: &Command, error: &io::Error) -> OpenError {
    OpenError::Command { what: format!("{} cannot be started", command.run[0]), cause: error.to_string(), hint: None }
}

/// Starts a process, and returns its standard input and output as a stream.
///
/// # Errors
/// The system cannot start it.
pub fn stream(command: &Command, program: &Program, wait: Arc<Wait>) -> Result<StdioStream, OpenError> {
    let mut spawn = prepared(command, program, None);
    let mut child =
        spawn.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|error| not_started(command, &error))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    Ok(StdioStream { stdin, stdout, process: Process::watch(command, child, wait), ended: None })
}

/// The standard input and output of a process.
pub struct StdioStream {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    process: Process,
    /// Result for the reader once the output has ended. `None` from the future: a clean end.
    ended: Option<BoxFuture<'static, Option<StreamFault>>>,
}

impl AsyncRead for StdioStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(stdout) = &mut this.stdout {
            let before = buf.filled().len();
            ready!(Pin::new(stdout).poll_read(cx, buf))?;
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            this.stdout = None;
        }
        // The output of a program that failed may be incomplete, so the reader gets an error.
        let (mut end, output) = (this.process.end.clone(), this.process.output.clone());
        let ended = this.ended.get_or_insert_with(|| {
            Box::pin(async move {
                // The program may have closed its output and run on.
                let end = timeout(GRACE, end.wait_for(Option::is_some)).await.ok()?.ok()?.clone()?;
                let detail = format!("{end}: {}", output.last());
                (end != ProcessEnd::Exited(0)).then_some(StreamFault::Other { detail })
            })
        });
        let end = ready!(ended.as_mut().poll(cx));
        this.ended = Some(Box::pin(std::future::ready(end.clone())));
        Poll::Ready(end.map_or(Ok(()), |fault| Err(fault.into())))
    }
}

impl AsyncWrite for StdioStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stdin {
            Some(stdin) => Pin::new(stdin).poll_write(cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stdin {
            Some(stdin) => Pin::new(stdin).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Closes the program's standard input.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        self.stdin = None;
        Poll::Ready(Ok(()))
    }
}

impl Io for StdioStream {}
