//! `adit supervise --control SOCKET`: the process between `adit run` and its command.
//!
//! It ends the command, and everything that the command has started in its session, when adit is no more: a `kill -9`
//! included. Until then it reports how the command fares, and passes on signals that reached adit alone. All three are one
//! process group, so that the terminal's signals reach the command without anybody's help.
//!
//! ```text
//! keeper -> adit    running | stopped | exited CODE | killed SIGNAL | failed ERRNO
//! adit -> keeper    signal NUMBER
//! ```
//!
//! The end of the connection says that adit is gone.

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

/// A signal that reaches the keeper within this time of adit, before or after, was sent to all of the group, the command
/// among them.
const SAME_SIGNAL: Duration = Duration::from_millis(200);

/// A command that is stopped for this long was not stopped and continued together with adit.
const STOPPED_FOR: Duration = Duration::from_millis(100);

/// Between two looks at processes that are to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Cause of the command's end.
enum Ended {
    Itself,
    /// adit is gone.
    Orphaned,
}

/// Runs the command to its end.
///
/// # Errors
/// adit is gone before the command could start.
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
    // Nobody else is to hold the ends of pipes that are the command's.
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
        tokio::select! {
            line = from_adit.next_line(), if is_told => match line {
                Ok(Some(line)) => if let Some(number) = line.strip_prefix("signal ").and_then(|n| n.parse().ok()) {
                    pending.push((Instant::now() + SAME_SIGNAL, number));
                },
                Ok(None) | Err(_) => break Ended::Orphaned,
            },
            number = signals.next() => { own.insert(number, Instant::now()); }
            _ = children.recv() => match reap(child) {
                Some(State::Ended(report)) => {
                    is_told = to_adit.write_all(report.as_bytes()).await.is_ok();
                    break Ended::Itself;
                }
                Some(State::Stopped) => { stopped_since.get_or_insert_with(Instant::now); }
                Some(State::Continued) => stopped_since = None,
                None => {}
            },
            () = at(next_pending) => {
                let now = Instant::now();
                pending.retain(|(at, number)| {
                    let is_due = *at <= now;
                    if is_due && own.get(number).is_none_or(|own| *at > *own + 2 * SAME_SIGNAL) {
                        pass_on(child, *number);
                    }
                    !is_due
                });
            }
            () = at(stop_told) => {
                stopped_since = None;
                is_told = to_adit.write_all(b"stopped\n").await.is_ok();
            }
        }
    };
    match ended {
        // adit reads the report, and ends the connection.
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

/// Processes that lose their parent become children of the keeper, so that it finds them all.
fn become_subreaper() {
    #[cfg(target_os = "linux")]
    // It fails on kernels before 3.4 only.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

/// Starts the command with the limit of open files that adit was started with.
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

/// `adit supervise --parent PID`: becomes the command, which the kernel ends with the keeper, should that be killed too.
///
/// # Errors
/// The system does not start it; it returns for no other reason.
pub fn become_command(parent: i32, words: &[OsString]) -> io::Error {
    let Some((program, arguments)) = words.split_first() else { return io::ErrorKind::InvalidInput.into() };
    #[cfg(target_os = "linux")]
    {
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    }
    // It may have died before that.
    if rustix::process::getppid().is_none_or(|pid| pid.as_raw_nonzero().get() != parent) {
        return io::ErrorKind::NotConnected.into();
    }
    Command::new(program).args(arguments).exec()
}

fn pass_on(child: Pid, number: i32) {
    if let Some(signal) = Signal::from_named_raw(number) {
        // It may have ended just now.
        let _ = kill_process(child, signal);
    }
}

/// State of the command.
enum State {
    Stopped,
    Continued,
    /// The report of its end.
    Ended(String),
}

/// Takes note of every child that has changed, those that it has inherited among them, and returns what the command's last
/// change was.
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

/// Ends the command and what it has started: first by SIGTERM, after the grace by SIGKILL.
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
                // One that is stopped does not take the other.
                let _ = kill_process(pid, Signal::CONT);
            }
        }
        if !is_over {
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Returns the processes below the keeper that are in its session. Those that have left it have been detached for good.
#[cfg(target_os = "linux")]
fn descendants(_: Pid) -> Vec<Pid> {
    let own = std::process::id().cast_signed();
    let mut all: Vec<(i32, i32, i32)> = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // It may end meanwhile.
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

/// Elsewhere only the command itself is known.
#[cfg(not(target_os = "linux"))]
fn descendants(child: Pid) -> Vec<Pid> {
    rustix::process::test_kill_process(child).map(|()| child).into_iter().collect()
}

/// Returns the parent and the session of a process that has not ended (proc(5), /proc/PID/stat). The name before them may
/// have anything in it.
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
