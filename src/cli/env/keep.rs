//! `adit env --write FILE`: a background process updates the file, and ends with adit.

use std::{
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use data_encoding::HEXLOWER;
use rustix::{
    fs::{FlockOperation, fcntl_lock},
    process::{Flock, FlockType, Signal, fcntl_getlk, kill_process},
};
use sha2::{Digest, Sha256};

use super::{arguments, form::Form};
use crate::{
    admin::socket::{self, Events},
    atomic_file,
    cli::{
        Globals,
        report::CliError,
        run::{
            child::own_program,
            signals::{ENDS, Signals},
        },
        running::Running,
    },
};

/// Pause between two attempts to become the keeper of a file.
const RETRY: Duration = Duration::from_millis(20);

/// Maximum number of these attempts: 10 s. The keeper before ends at once, unless it is stopped.
const MOST_TRIES: usize = 500;

/// Pause between two attempts to read the events of an adit that has too many readers.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// First line of a file whose adit has ended.
const STALE: &str = "stale: the adit of these variables has ended; start it, and write them again";

/// Note in every file that `adit env` writes; adit recognises its own files by it.
const OURS: &str = "written by 'adit env', which replaces this file";

/// Replaces a file as a whole, with mode 0600. A symlink is kept, and its target is replaced. `force`: also replaces a file that
/// adit has not written.
///
/// # Errors
/// The file cannot be written, or another program has written it.
pub fn write(file: &Path, form: Form, text: &str, force: bool) -> Result<(), CliError> {
    let failed = |error| CliError::new(format!("{} cannot be written", file.display())).cause(Some(error));
    let target = target(file);
    match fs::metadata(&target) {
        Ok(found) if !found.is_file() => return Err(failed(io::Error::other("it is not a regular file"))),
        Ok(_) if !force && !is_ours(&fs::read(&target).map_err(failed)?) => {
            return Err(CliError::new(format!(
                "{} is there already, and 'adit env' has not written it",
                file.display()
            ))
            .hint(Some("choose another file, or replace it with --force")));
        }
        _ => {}
    }
    atomic_file::write(&target, marked(form, text).as_bytes(), 0o600).map_err(failed)
}

fn is_ours(content: &[u8]) -> bool {
    // In a stale file, the note about that comes first.
    let mut first = content.split(|byte| *byte == b'\n').take(3);
    content.trim_ascii().is_empty() || first.any(|line| String::from_utf8_lossy(line).contains(OURS))
}

fn marked(form: Form, text: &str) -> String {
    form.mark(text, "ADIT_ENV", OURS)
}

/// Returns the target of a symlink, even if the target does not exist.
fn target(file: &Path) -> PathBuf {
    let linked = || Some(file.parent()?.join(fs::read_link(file).ok()?));
    fs::canonicalize(file).ok().or_else(linked).unwrap_or_else(|| file.to_owned())
}

/// Starts the background process: this program with the same arguments and `--keep`, without a terminal.
///
/// # Errors
/// The process cannot be started.
pub fn start_keeper(file: &Path) -> Result<(), CliError> {
    let mut keeper = Command::new(own_program()?);
    keeper.args(arguments()).arg("--keep").process_group(0);
    keeper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match keeper.spawn() {
        Ok(_) => Ok(()),
        Err(error) => Err(CliError::new(format!("cannot keep {} up to date", file.display())).cause(Some(error))),
    }
}

/// Ends the previous keeper of a file, and returns the lock of its only one. The lock is beside the socket of the running adit.
///
/// direnv writes the file each time that a shell enters the folder, and each keeper uses one of adit's event streams.
///
/// # Errors
/// The lock cannot be created, or the previous keeper does not end.
async fn only_keeper(running: &Running, file: &Path) -> io::Result<File> {
    let digest = Sha256::digest(target(file).as_os_str().as_bytes());
    let id = HEXLOWER.encode(&digest[..8]);
    let path = running.socket.with_file_name(format!("env-{id}.lock"));
    let lock = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    for _ in 0..MOST_TRIES {
        match fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {}
            Err(error) => return Err(error.into()),
        }
        // The kernel knows the process that has the lock, so this is never another one with an old number.
        if let Some(pid) = fcntl_getlk(&lock, &Flock::from(FlockType::WriteLock))?.and_then(|held| held.pid) {
            let _ = kill_process(pid, Signal::TERM);
        }
        tokio::time::sleep(RETRY).await;
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Keeps the file until adit ends, another program changes the file, or another keeper or a signal ends this one.
///
/// # Errors
/// The file cannot be read or written.
pub async fn keep(
    globals: &Globals,
    running: &Running,
    file: &Path,
    form: Form,
    text: impl AsyncFnMut(&crate::routing::Router) -> Result<String, CliError>,
) -> Result<(), CliError> {
    let mut signals = Signals::new(ENDS)?;
    let _only = only_keeper(running, file).await?;
    tokio::select! {
        kept = update(globals, running, file, form, text) => kept,
        // Between two awaits, so the file is complete.
        _ = signals.next() => Ok(()),
    }
}

/// Updates the file after each change of adit's configuration, and marks it stale once adit has ended. Stops if another program
/// has changed the file.
async fn update(
    globals: &Globals,
    running: &Running,
    file: &Path,
    form: Form,
    mut text: impl AsyncFnMut(&crate::routing::Router) -> Result<String, CliError>,
) -> Result<(), CliError> {
    let mut written = fs::read_to_string(file)?;
    let mut events = opened(&running.socket).await;
    while let Some(status) = async { events.as_mut()?.next_status().await }.await {
        if fs::read_to_string(file).ok().as_deref() != Some(written.as_str()) {
            return Ok(());
        }
        // The running adit has this configuration only while both use the same file.
        let Some(config) = globals.load().ok().filter(|config| config.source == status.config) else { continue };
        let (_, router) = crate::cli::router(config);
        // A target that cannot be opened now may work later: keep the file.
        let Ok(text) = text(&router).await else { continue };
        let text = marked(form, &text);
        if text != written {
            atomic_file::write(&target(file), text.as_bytes(), 0o600)?;
            written = text;
        }
    }
    if fs::read_to_string(file).ok().as_deref() == Some(written.as_str()) {
        let stale = form.mark(&written, "ADIT_STALE", STALE);
        atomic_file::write(&target(file), stale.as_bytes(), 0o600)?;
    }
    Ok(())
}

/// Returns the events of the running adit. Waits while it has too many readers or hangs. `None`: it has ended.
async fn opened(socket: &Path) -> Option<Events> {
    loop {
        match socket::events(socket).await {
            Ok(events) => return Some(events),
            Err(error) if matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::TimedOut) => {
                tokio::time::sleep(BUSY_RETRY).await;
            }
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_a_file_of_our_own_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for form in [Form::Dotenv, Form::Json, Form::Github, Form::Fish] {
            let file = folder.path().join(format!("{form:?}"));
            let of = |value: &str| form.write(&[("A".to_owned(), value.to_owned())].into());
            write(&file, form, &of("1"), false).unwrap();
            write(&file, form, &of("2"), false).unwrap();
            let text = fs::read_to_string(&file).unwrap();
            fs::write(&file, form.mark(&text, "ADIT_STALE", STALE)).unwrap();
            write(&file, form, &of("3"), false).unwrap();
            assert!(fs::read_to_string(&file).unwrap().contains('3'));
            fs::write(&file, "PASSWORD=mine\n").unwrap();
            let error = write(&file, form, &of("4"), false).unwrap_err().to_string();
            assert!(error.contains("is there already"), "{error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), "PASSWORD=mine\n");
            write(&file, form, &of("5"), true).unwrap();
            assert!(fs::read_to_string(&file).unwrap().contains('5'));
        }
        assert!(write(folder.path(), Form::Dotenv, "", true).is_err());
        let error = write(&folder.path().join("no/such"), Form::Dotenv, "", false).unwrap_err().to_string();
        assert!(error.contains("no/such"), "{error}");
    }

    #[test]
    fn a_symlink_stays_one() {
        let folder = tempfile::tempdir().unwrap();
        let (link, file) = (folder.path().join("link"), folder.path().join("file"));
        symlink("file", &link).unwrap();
        for text in ["A=1\n", "A=2\n"] {
            write(&link, Form::Dotenv, text, false).unwrap();
            assert!(fs::read_to_string(&file).unwrap().ends_with(text) && link.is_symlink());
        }
    }
}
