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

/// Variables that every program inherits beside PATH.
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

/// Returns the path of a program: as it is where it has a slash, else the first in the folders of `exec_path`.
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
    /// By itself, with this exit code; 0: it did what it was to do.
    Exited(i32),
    /// A signal with this number ended it.
    Signalled(i32),
    /// The system does not say how, and why not where it says that.
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

/// A process that runs, and is stopped when this is dropped.
pub struct Process {
    pid: Option<Pid>,
    shown: String,
    output: Output,
    end: watch::Receiver<Option<ProcessEnd>>,
}

impl Process {
    /// Starts it, with nothing to read.
    ///
    /// # Errors
    /// The system does not start it.
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
                // It has been told to end; its supervisor gives it its time.
                () = end_tx.closed() => {
                    if timeout(GRACE + Duration::from_secs(1), child.wait()).await.is_err() {
                        signal(pid, Signal::KILL);
                    }
                    return;
                }
            };
            // Reads the last output before it reports the exit.
            if let Some(said) = said {
                let _ = timeout(Duration::from_millis(500), said).await;
            }
            // Nobody may want to know any more.
            let _ = end_tx.send(Some(end));
        });
        Self { pid, shown: command.run[0].clone(), output, end }
    }

    /// Returns how it ended. None: it runs.
    pub fn end(&self) -> Option<ProcessEnd> {
        self.end.borrow().clone()
    }

    /// Resolves with how it ended.
    pub async fn ended(&self) -> String {
        let mut end = self.end.clone();
        let ended = end.wait_for(Option::is_some).await;
        let how = ended.ok().and_then(|end| end.clone()).unwrap_or(ProcessEnd::Unknown(None));
        self.with_last_words(&how.to_string())
    }

    /// Returns `how` with what the process said last.
    pub fn with_last_words(&self, how: &str) -> String {
        let said = self.output.last();
        if said.is_empty() { how.to_owned() } else { format!("{how}: {said}") }
    }

    /// Returns the error for a process that is of no use.
    pub fn failed(&self, how: &str) -> OpenError {
        let said = self.output.last();
        let cause = if said.is_empty() { "it said nothing".to_owned() } else { format!("it said: {said}") };
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
        // It may have ended just now.
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
    // Ctrl-C in our terminal is ours alone.
    spawn.process_group(0).stderr(Stdio::piped()).kill_on_drop(false);
    spawn
}

fn not_started(command: &Command, error: &io::Error) -> OpenError {
    OpenError::Command { what: format!("{} cannot be started", command.run[0]), cause: error.to_string(), hint: None }
}

/// Starts a process whose standard streams are the stream.
///
/// # Errors
/// The system does not start it.
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
    /// Meaning of its end for a reader, once its output has ended. None: a clean end of the stream.
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
        // A program that failed has not said all there was to say.
        let (mut end, output) = (this.process.end.clone(), this.process.output.clone());
        let ended = this.ended.get_or_insert_with(|| {
            Box::pin(async move {
                // It may have closed its output and go on.
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

    /// The end of its input.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        self.stdin = None;
        Poll::Ready(Ok(()))
    }
}

impl Io for StdioStream {}
