//! `adit supervise --control SOCKET`: the keeper, a process between `adit run` and its command.
//!
//! When adit ends, even by `kill -9`, the keeper ends the command and all processes that the command has started in its session.
//! Until then it reports the command's state, and passes on signals that only adit has received. adit, keeper and command are in
//! one process group, so the command receives the terminal's signals directly.
//!
//! ```text
//! keeper -> adit    running | stopped | exited CODE | killed SIGNAL | failed ERRNO
//! adit -> keeper    signal NUMBER
//! ```
//!
//! The end of the connection means that adit has ended.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::File,
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, getrlimit, kill_process, setrlimit, wait};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};

use super::signals::{PASSED_ON, Signals};
use crate::backend::command::supervisor::GRACE;

/// If keeper and adit receive the same signal within this time of each other, the whole group has received it, so the command has
/// it already.
const SAME_SIGNAL: Duration = Duration::from_millis(200);

/// If the command stays stopped for this long, it was not stopped and continued together with adit.
const STOPPED_FOR: Duration = Duration::from_millis(100);

/// Interval between two searches for processes that have yet to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Cause of the command's end.
enum Ended {
    Itself,
    /// adit has ended.
    Orphaned,
}

/// Runs the command until its end.
///
/// # Errors
/// adit has ended before the command could start.
pub async fn run(control: &Path, open_files: Option<u64>, words: &[OsString]) -> io::Result<ExitCode> {
    let (mut signals, mut children) = (Signals::new(PASSED_ON)?, signal(SignalKind::child())?);
    let (from_adit, mut to_adit) = UnixStream::connect(control).await?.into_split();
    let mut from_adit = BufReader::new(from_adit).lines();
    become_subreaper();
    let child = match spawn(open_files, words) {
        Ok(child) => child,
        Err(error) => {
            let code = error.raw_os_error().unwrap_or_default();
            to_adit.write_all(format!("failed {code}\n").as_bytes()).await?;
            return Ok(ExitCode::FAILURE);
        }
    };
    // Close the keeper's copies of the standard streams: only the command may hold the ends of pipes.
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
    }
    let mut is_told = to_adit.write_all(b"running\n").await.is_ok();
    let mut own: HashMap<i32, Instant> = HashMap::new();
    let mut pending: Vec<(Instant, i32)> = Vec::new();
    let mut stopped_since: Option<Instant> = None;
    let ended = loop {
        let next_pending = pending.iter().map(|(at, _)| *at).min();
        let stop_told = stopped_since.map(|at| at + STOPPED_FOR);
        let is_due = tokio::select! {
            line = from_adit.next_line(), if is_told => match line {
                Ok(Some(line)) => {
                    if let Some(number) = line.strip_prefix("signal ").and_then(|n| n.parse().ok()) {
                        pending.push((Instant::now() + SAME_SIGNAL, number));
                    }
                    false
                }
                Ok(None) | Err(_) => break Ended::Orphaned,
            },
            number = signals.next() => {
                own.insert(number, Instant::now());
                false
            }
            _ = children.recv() => false,
            () = at(next_pending) => {
                let now = Instant::now();
                pending.retain(|(at, number)| {
                    let is_due = *at <= now;
                    if is_due && own.get(number).is_none_or(|own| *at > *own + 2 * SAME_SIGNAL) {
                        pass_on(child, *number);
                    }
                    !is_due
                });
                false
            }
            () = at(stop_told) => true,
        };
        match reap(child) {
            Some(State::Ended(report)) => {
                is_told = to_adit.write_all(report.as_bytes()).await.is_ok();
                break Ended::Itself;
            }
            Some(State::Stopped) => {
                stopped_since.get_or_insert_with(Instant::now);
            }
            // The keeper may have been stopped too, and the time was over when both went on.
            Some(State::Continued) => stopped_since = None,
            None => {}
        }
        if is_due && stopped_since.take().is_some() {
            is_told = to_adit.write_all(b"stopped\n").await.is_ok();
        }
    };
    match ended {
        // adit reads the report, then closes the connection.
        Ended::Itself if is_told => while let Ok(Some(_)) = from_adit.next_line().await {},
        Ended::Itself => {}
        Ended::Orphaned => end_all(child).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Makes orphaned descendants children of the keeper, so that it can find all of them.
fn become_subreaper() {
    #[cfg(target_os = "linux")]
    // It fails only on kernels before 3.4.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

/// Starts the command with the open-file limit that adit had at its start.
fn spawn(open_files: Option<u64>, words: &[OsString]) -> io::Result<Pid> {
    if let Some(soft) = open_files {
        let limit = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(soft), ..limit });
    }
    let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = if cfg!(target_os = "linux") {
        let mut command = Command::new(super::child::own_program()?);
        command.arg("supervise").arg("--parent").arg(std::process::id().to_string()).arg("--").arg(program);
        command
    } else {
        Command::new(program)
    };
    let child = command.args(arguments).spawn()?;
    Pid::from_raw(i32::try_from(child.id()).unwrap_or_default()).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// `adit supervise --parent PID`: becomes the command. The kernel kills it if the keeper is killed too.
///
/// # Errors
/// Returns only on failure: the system cannot start the command, or the keeper has ended.
pub fn become_command(parent: i32, words: &[OsString]) -> io::Error {
    let Some((program, arguments)) = words.split_first() else { return io::ErrorKind::InvalidInput.into() };
    #[cfg(target_os = "linux")]
    {
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    }
    // The keeper may have ended before the call above.
    if rustix::process::getppid().is_none_or(|pid| pid.as_raw_nonzero().get() != parent) {
        return io::ErrorKind::NotConnected.into();
    }
    Command::new(program).args(arguments).exec()
}

fn pass_on(child: Pid, number: i32) {
    if let Some(signal) = Signal::from_named_raw(number) {
        // The command may have ended just now.
        let _ = kill_process(child, signal);
    }
}

/// State of the command.
enum State {
    Stopped,
    Continued,
    /// The report of its end, for adit.
    Ended(String),
}

/// Reaps all children that have changed state, including adopted ones, and returns the command's last change. `None`: it has not
/// changed.
fn reap(child: Pid) -> Option<State> {
    let mut state = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG | WaitOptions::UNTRACED | WaitOptions::CONTINUED) {
        if pid != child {
            continue;
        }
        state = Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => return Some(State::Ended(format!("exited {code}\n"))),
            (_, Some(signal)) => return Some(State::Ended(format!("killed {signal}\n"))),
            _ if status.continued() => State::Continued,
            _ => State::Stopped,
        });
    }
    state
}

/// Ends the command and its descendants: by SIGTERM, and after the grace by SIGKILL.
async fn end_all(child: Pid) {
    let killed_at = Instant::now() + GRACE;
    let mut told = Vec::new();
    let mut is_over = false;
    while !is_over {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        let left = descendants(child);
        is_over = left.is_empty();
        let is_late = Instant::now() >= killed_at;
        for pid in left {
            if is_late {
                let _ = kill_process(pid, Signal::KILL);
            } else if !told.contains(&pid) {
                told.push(pid);
                let _ = kill_process(pid, Signal::TERM);
                // A stopped process handles SIGTERM only after SIGCONT.
                let _ = kill_process(pid, Signal::CONT);
            }
        }
        if !is_over {
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Returns the keeper's descendants in its session. Processes that have left the session have detached on purpose.
#[cfg(target_os = "linux")]
fn descendants(_: Pid) -> Vec<Pid> {
    let own = std::process::id().cast_signed();
    let mut all: Vec<(i32, i32, i32)> = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // The process may end meanwhile.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        all.extend(parse_stat(&stat).map(|(parent, session)| (pid, parent, session)));
    }
    let session = all.iter().find(|(pid, ..)| *pid == own).map(|(.., session)| *session);
    let mut below = vec![own];
    let mut at = 0;
    while at < below.len() {
        let parent = below[at];
        below.extend(all.iter().filter(|(_, of, _)| *of == parent).map(|(pid, ..)| *pid));
        at += 1;
    }
    let is_in_session = |pid: &i32| all.iter().any(|(other, _, of)| other == pid && Some(*of) == session);
    below[1..].iter().filter(|pid| is_in_session(pid)).filter_map(|pid| Pid::from_raw(*pid)).collect()
}

/// Returns the command itself; on other systems adit cannot find its descendants.
#[cfg(not(target_os = "linux"))]
fn descendants(child: Pid) -> Vec<Pid> {
    rustix::process::test_kill_process(child).map(|()| child).into_iter().collect()
}

/// Returns parent and session of a process that has not ended (proc(5), /proc/PID/stat). The name before them may contain any
/// character, so parsing starts behind the last parenthesis.
#[cfg(target_os = "linux")]
fn parse_stat(stat: &str) -> Option<(i32, i32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let _group = fields.next()?;
    let session = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some((parent, session))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_anything_in_it_does_not_hide_the_parent() {
        assert_eq!(parse_stat("12 (a) b (c) S 7 9 5 0 -1 4194304"), Some((7, 5)));
        assert_eq!(parse_stat("12 (a) Z 7 9 5 0"), None);
        assert_eq!(parse_stat("12 (a"), None);
        assert_eq!(parse_stat(""), None);
    }
}
