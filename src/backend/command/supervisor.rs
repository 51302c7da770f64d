//! The supervisor process between adit and a command. It ends the command and its children on a signal, and when adit
//! is gone, even after a crash.

use std::{ffi::OsString, fs::File, io, os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

use rustix::{
    process::{Pid, Signal, getppid, kill_process_group},
    stdio::{dup2_stdin, dup2_stdout},
};
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};

/// How long a command may take to exit after SIGTERM, before SIGKILL.
pub const GRACE: Duration = Duration::from_secs(5);

/// Interval of the checks whether adit still runs. No signal for a parent's exit exists on every system.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Runs a command to its end, and returns its exit code. If a signal killed it: 128 plus the signal's number, as in shells.
///
/// # Errors
/// The system cannot start it.
pub async fn run(words: &[OsString]) -> io::Result<u8> {
    let Some((program, arguments)) = words.split_first() else { return Err(io::ErrorKind::InvalidInput.into()) };
    let parent = getppid();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // A process group of its own, so that the children of the command can be ended with it.
    let mut child = Command::new(program).args(arguments).process_group(0).spawn()?;
    // Close the supervisor's copies of the command's standard streams, so that the other end sees when the command closes one.
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    let group = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let end_group = |signal| {
        if let Some(group) = group {
            // The whole group may have ended.
            let _ = kill_process_group(group, signal);
        }
    };
    loop {
        tokio::select! {
            status = child.wait() => {
                end_group(Signal::TERM);
                return Ok(code(status?));
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = sleep(LOOK_EVERY) => if getppid() != parent {
                break;
            },
        }
    }
    end_group(Signal::TERM);
    let ended = timeout(GRACE, child.wait()).await;
    end_group(Signal::KILL);
    match ended {
        Ok(status) => Ok(code(status?)),
        Err(_) => Ok(code(child.wait().await?)),
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
