//! `adit connect`: connects standard input and output to a target.

use std::{
    fs::File,
    io::{self, IsTerminal, Read, Write},
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream as StdUnixStream},
    process::ExitCode,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use tokio::{net::UnixStream, sync::oneshot};

use super::{
    Globals,
    progress::Progress,
    report::CliError,
    run::{
        FAILED, duration,
        signals::{ENDS, Signals, code_of},
    },
    running::{self, Running},
    up,
};
use crate::{
    app::reach::Reach,
    io::splice::{Side, splice},
    routing::Router,
    telemetry,
};

/// Capacity of a pipe on Linux, in bytes.
const BUFFER: usize = 64 * 1024;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        ssh -o ProxyCommand='adit connect %h:%p' git@gitea.tools\n  \
        rsync -a -e \"ssh -o ProxyCommand='adit connect %h:%p'\" ./site/ deploy@files.shop:site/\n  \
        printf 'PING\\r\\n' | adit connect redis.shop:6379\n\n\
        If an adit runs, its tunnels are used.\n\
        Exit codes: 0 both sides have ended; 1 the connection broke; 125 the target cannot be reached")]
pub struct Args {
    /// The target, as for 'adit run'
    target: String,
    /// Time limit for the target
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    wait: Duration,
    /// Print no messages, not even errors
    #[arg(long, short)]
    quiet: bool,
}

pub fn run(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    let quiet = args.quiet;
    up::run_quietly(quiet, start(globals, args))
}

async fn start(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    let config = globals.load()?;
    telemetry::init_command(globals.format(), config.verbose && !args.quiet);
    let (clusters, router) = super::router(config);
    let mut signals = Signals::new(ENDS)?;
    let reach = Reach::new(clusters);
    let joined = tokio::select! {
        joined = join(globals, &args, &router, &reach) => joined,
        // ssh ends its ProxyCommand by SIGHUP.
        number = signals.next() => Ok(ExitCode::from(code_of(number))),
    };
    reach.forwards.end().await;
    joined
}

/// Joins the standard streams with the target until both have ended.
async fn join(globals: &Globals, args: &Args, router: &Router, reach: &Reach) -> Result<ExitCode, CliError> {
    let progress = Progress::new(args.quiet);
    let mut by_running = None;
    let named = router
        .named(&args.target, globals.namespace.as_ref())
        .map_err(|error| CliError::from(error).failed_with(FAILED))?;
    let running = Running::find(globals, router).await;
    let (mut backend, _lease) = match running.filter(|running| running.for_target(&named).is_some()) {
        Some(running) => {
            let stream = running.stream(&args.target, args.wait, progress).await;
            let stream = stream
                .map_err(|error| running::unreachable(error).doctor(globals, &args.target).failed_with(FAILED))?;
            by_running = stream.id.map(|id| (running, id));
            (stream.io, None)
        }
        None => {
            let told = |error: &crate::tunnel::OpenError| progress.waits(&named.text, error);
            let opened = reach.stream_within(&named.route, args.wait, told).await;
            let (lease, stream) =
                opened.map_err(|error| CliError::from(error).doctor(globals, &args.target).failed_with(FAILED))?;
            (stream, Some(lease))
        }
    };
    let (mut client, streams) = standard_streams()?;
    let end = splice(&mut client, &mut backend).await;
    drop((client, backend));
    let written = streams.written.await.unwrap_or(Ok(()));
    if let Err(error) = written {
        return match error.kind() {
            // The reader has closed the pipe.
            io::ErrorKind::BrokenPipe => Ok(ExitCode::FAILURE),
            _ => Err(CliError::new("standard output cannot be written").cause(Some(error))),
        };
    }
    if let Some(error) = streams.unread.get() {
        return Err(CliError::new("standard input cannot be read").cause(Some(error)));
    }
    let broken = match (end.broken, by_running) {
        (Some((Side::Backend, error)), _) => Some(error.to_string()),
        (Some((Side::Client, _)), _) => return Ok(ExitCode::FAILURE),
        (None, Some((running, id))) => running.broken(id).await,
        (None, None) => None,
    };
    match broken {
        None => Ok(ExitCode::SUCCESS),
        Some(reason) => Err(CliError::new(format!("the connection to {} broke", args.target)).cause(Some(reason))),
    }
}

/// Copies until the end. `io::copy` uses splice(2), after which writers that wait with edge-triggered epoll, such as Node and
/// tokio, were not woken.
fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<(), CopyError> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count]).map_err(CopyError::Write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(CopyError::Read(error)),
        }
    }
}

/// Error of a copy, by side.
enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Results of standard input and output.
struct Streams {
    /// Resolves once everything is written, or writing has failed.
    written: oneshot::Receiver<io::Result<()>>,
    /// Error that interrupted the input, if one did.
    unread: Arc<OnceLock<io::Error>>,
}

/// Returns standard input and output as one stream. Two threads copy, because both files may block. Each direction ends by
/// itself.
fn standard_streams() -> io::Result<(UnixStream, Streams)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let (mut from_input, mut to_output) = (theirs.try_clone()?, theirs);
    // At a terminal, the input ends with the output: nobody would type Ctrl-D to end it.
    let ends_together = io::stdin().is_terminal();
    // `io::Stdout` would hold back an incomplete last line.
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let (written_tx, written) = oneshot::channel();
    let unread = Arc::new(OnceLock::new());
    let failed = unread.clone();
    thread::spawn(move || {
        if let Err(CopyError::Read(error)) = copy(&mut input, &mut from_input) {
            let _ = failed.set(error);
        }
        let _ = from_input.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let copied = copy(&mut to_output, &mut output);
        // Close stdout, so that its reader sees the end while the process still runs.
        drop(output);
        if let Ok(null) = File::options().write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(&null);
        }
        if copied.is_err() || ends_together {
            let _ = to_output.shutdown(Shutdown::Both);
        }
        let _ = written_tx.send(match copied {
            Err(CopyError::Write(error)) => Err(error),
            // The stream that could not be read is adit's own end, so this is not an error of stdout.
            Ok(()) | Err(CopyError::Read(_)) => Ok(()),
        });
    });
    Ok((UnixStream::from_std(ours)?, Streams { written, unread }))
}
