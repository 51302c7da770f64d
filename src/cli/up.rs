//! `adit up`: serves until a signal.

use std::{
    fmt::Write as _,
    fs::File,
    future::{Future, pending},
    io::{self, IsTerminal},
    net::SocketAddr,
    num::NonZeroUsize,
    panic::resume_unwind,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::json;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tracing::{debug, info, warn};

use super::{
    Globals,
    report::{CliError, print},
    runtime,
};
use crate::{
    app::{App, Bound},
    config::{DASHBOARD_HOST, shell::kubectl},
    drain::Drain,
    io::accept::Limits,
    listener::inherited::Inherited,
    telemetry::{self, Format},
};

/// Exit code after SIGINT: 128 plus its number, as in shells.
pub const INTERRUPTED: u8 = 130;

#[derive(Debug, Default, clap::Args)]
#[command(
    after_help = "Examples:\n  adit up\n  adit up --context prod -v\n  adit up --config adit.yaml --listen 127.0.0.1:9999"
)]
pub struct Args {
    /// Folder with the dashboard's files, read again for each request
    #[arg(long, hide = true, value_name = "FOLDER")]
    ui_dir: Option<PathBuf>,
}

pub fn run(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    let config = globals.load()?;
    let verbosity = telemetry::init(globals.format(), config.verbose);
    raise_open_file_limit();
    let app = App {
        overrides: globals.overrides()?,
        file: globals.config_path().0,
        verbosity: Some(verbosity),
        supervisor: std::env::current_exe().ok(),
        admin: true,
        ui_dir: args.ui_dir,
        inherited: Arc::new(Inherited::take()),
    };
    let workers = globals.workers.or(config.workers).map_or_else(runtime::of_laptop, NonZeroUsize::get);
    runtime::serve(workers, async {
        // Register before binding: a program that sees a socket may send a signal.
        let mut signals = Signals::new()?;
        let (bound, text) = match read(bind(app, config)?, &mut signals).await {
            Some(read) => read,
            None => return Ok(ExitCode::from(INTERRUPTED)),
        };
        started(globals.format(), &text)?;
        serve(bound, async || signals.next().await).await
    })
}

/// Prints the lines about a start. If the log is JSON, they are one record with the keys of the log.
pub fn started(format: Format, text: &str) -> Result<(), CliError> {
    match format {
        Format::Text => print(text),
        Format::Json => {
            let (timestamp, message) = (Timestamp::now().to_string(), in_one_line(text));
            let record = json!({"timestamp": timestamp, "level": "INFO", "message": message, "target": "adit::start"});
            print(&format!("{record}\n"))
        }
    }
}

fn in_one_line(text: &str) -> String {
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// Runs a command until its end, on one thread.
pub fn run_to_end<T>(main: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    runtime::serve(1, main)
}

/// Does the same. `quiet`: an error only sets the exit code.
pub fn run_quietly(quiet: bool, main: impl Future<Output = Result<ExitCode, CliError>>) -> Result<ExitCode, CliError> {
    match run_to_end(main) {
        Err(error) if quiet => Ok(error.exit_code()),
        ended => ended,
    }
}

/// Raises the open-file limit to the hard limit. Each connection needs a file, and shells start programs with a limit of 256
/// (macOS) or 1,024 (Linux).
pub fn raise_open_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    // With an unlimited hard limit, macOS accepts no more than OPEN_MAX.
    let most_of_macos = Rlimit { current: Some(10_240), ..limit };
    if limit.current != limit.maximum
        && setrlimit(Resource::Nofile, raised).is_err()
        && let Err(error) = setrlimit(Resource::Nofile, most_of_macos)
    {
        debug!(%error, "could not raise the open-file limit");
    }
}

/// Binds every listener.
///
/// # Errors
/// A listener's address is in use, or the user may not listen there.
pub fn bind(app: App, config: crate::config::Config) -> Result<Bound, CliError> {
    app.bind(config).map_err(|error| {
        let hint = error.hint();
        CliError::new(error).hint(hint)
    })
}

/// Signals that end a process with a configuration: SIGINT, SIGTERM, and SIGHUP if the terminal was closed. Otherwise SIGHUP
/// makes adit read the configuration again.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    has_terminal: bool,
}

impl Signals {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            has_terminal: io::stderr().is_terminal(),
        })
    }

    /// Waits for the next signal that ends adit.
    pub async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                // After its terminal was closed, a process cannot open /dev/tty (ENXIO).
                _ = self.hang_up.recv() => if self.has_terminal && File::open("/dev/tty").is_err() {
                    return;
                },
            }
        }
    }
}

/// Minimum time for the last lines of the audit log, also if the grace is used up. The process then ends within 11 s of a signal.
const AUDIT_AT_LEAST: Duration = Duration::from_millis(250);

/// Serves until a signal, then lets requests finish within the grace. A second signal ends adit at once.
///
/// # Errors
/// A signal handler cannot be registered.
pub async fn serve(bound: Bound, mut signal: impl AsyncFnMut()) -> Result<ExitCode, CliError> {
    let (drain, journal) = (Drain::new(), bound.journal());
    tokio::select! {
        served = bound.run(drain.clone()) => served?,
        () = signal() => {}
    }
    let grace = Limits::default().grace;
    info!("stopping: requests in progress have {grace:?}");
    let until = Instant::now() + grace;
    let finish = async {
        let cut = drain.finish(grace).await;
        let limit = until.saturating_duration_since(Instant::now()).max(AUDIT_AT_LEAST);
        (cut, spawn_blocking(move || journal.finish_audit(limit)).await.unwrap_or_default())
    };
    tokio::select! {
        (cut, lines) = finish => {
            if cut > 0 {
                info!(cut, "stopped: what did not finish was cut");
            }
            if lines > 0 {
                warn!(lines, "stopped: the audit log did not take its last lines");
            }
            Ok(ExitCode::SUCCESS)
        }
        () = signal() => Ok(ExitCode::from(INTERRUPTED)),
    }
}

/// Reads the kubeconfig for the banner, and says so where that takes long: it may be a pipe, or on a file system that hangs. None:
/// a signal ended it.
async fn read(bound: Bound, signals: &mut Signals) -> Option<(Bound, String)> {
    let files = bound.config().http.kubeconfig.clone();
    let mut reading = spawn_blocking(move || {
        let text = banner(&bound);
        (bound, text)
    });
    let slow = async {
        sleep(Duration::from_secs(1)).await;
        warn!("still reading the kubeconfig {files}");
        pending().await
    };
    tokio::select! {
        read = &mut reading => Some(read.unwrap_or_else(|panicked| resume_unwind(panicked.into_panic()))),
        () = signals.next() => None,
        () = slow => None,
    }
}

/// Returns the text with the addresses, the routes, and how to reach a Service.
fn banner(bound: &Bound) -> String {
    let config = bound.config();
    let http = bound.http_addresses();
    let port = http.first().map_or(0, SocketAddr::port);
    let list = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    let router = bound.router();
    let mut text = format!("adit {} listens on {}\n", env!("CARGO_PKG_VERSION"), list(&http));
    let _ = match &config.source {
        Some(file) => writeln!(text, "config    {}", file.display()),
        None => writeln!(text, "config    none: 'adit init' writes one"),
    };
    let _ = match (router.default_context(), &router.http_contexts.problem) {
        (Some(context), Some(problem)) => writeln!(text, "context   {context}, but {problem}"),
        (Some(context), None) if router.http_contexts.lacks(context) => {
            let known = router.http_contexts.namespaces.keys().map(ToString::to_string).collect::<Vec<_>>();
            let known = if known.is_empty() { "no context".to_owned() } else { known.join(", ") };
            let files = &router.http_contexts.kubeconfig;
            writeln!(text, "context   {context}, which does not exist: {files} has {known}")
        }
        (Some(context), None) => {
            let others = router.http_contexts.namespaces.len().saturating_sub(1);
            writeln!(
                text,
                "context   {context}{}",
                if others > 0 { format!(" (and {others} more)") } else { String::new() }
            )
        }
        (None, Some(problem)) => writeln!(text, "context   none: {problem}"),
        (None, None) => {
            let kubectl = kubectl(&router.http_contexts.kubeconfig);
            writeln!(text, "context   none is current: {kubectl} config use-context NAME")
        }
    };
    for host in config.http.routes.keys() {
        let _ = writeln!(text, "route     http://{host}:{port}");
    }
    for address in config.tcp.routes.keys() {
        let target =
            router.tcp(*address).map_or_else(|error| format!("nothing yet: {error}"), |route| route.target.to_string());
        let _ = writeln!(text, "tcp       {address} -> {target}");
    }
    if config.dashboard {
        let _ = writeln!(text, "dashboard http://{DASHBOARD_HOST}:{port}, 'adit ui' opens it");
    }
    let _ = writeln!(text, "services  http://SERVICE.NAMESPACE.localhost:{port}, 'adit routes -A' lists them");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_start_are_one_record() {
        let text = "adit 1 listens on 127.0.0.1:1\nconfig    none\n\n  curl x\n";
        assert_eq!(in_one_line(text), "adit 1 listens on 127.0.0.1:1; config none; curl x");
    }
}
