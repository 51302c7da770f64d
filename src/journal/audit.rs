//! The audit log: a line of JSON for each request and connection that has ended.
//!
//! ```text
//! {"time":"2026-01-02T03:04:05.678Z","kind":"http","client":{"uid":1000,"pid":4711,"program":"/usr/bin/curl"},"connection":7,
//!  "method":"DELETE","host":"web.shop.localhost:8989","path":"/carts/1","status":403,"error":"read-only","target":"prod/shop/web",
//!  "pod":null,"took_ms":0.4,"bytes_up":0,"bytes_down":120,"replay_of":null}
//! ```

use std::{
    collections::VecDeque,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use jiff::{Timestamp, Unit};
use serde_json::json;
use tracing::{error, warn};

use super::entry::Entry;

/// Maximum number of lines that wait for the file, at most about 15 MB. A file system that hangs must not fill the memory.
const MOST_WAITING: usize = 10_000;

/// An audit log's file, to which adit appends.
///
/// A thread of its own writes the lines, because a pipe or a network file system may block the writer for hours.
pub struct Audit(Arc<Queue>);

/// Lines on their way to the file.
#[derive(Default)]
struct Queue {
    state: Mutex<Waiting>,
    /// Notified after each change of the state.
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// Lines to write. The first one stays here while the thread writes it.
    lines: VecDeque<String>,
    /// Lines that found no place.
    lost: u64,
    /// There will be no more lines.
    has_ended: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().expect("no panic while the lock is held")
    }

    /// Returns the next line once there is one, and the number of lines lost meanwhile. `None`: there will be none.
    fn next(&self) -> Option<(String, u64)> {
        let is_idle = |state: &mut Waiting| state.lines.is_empty() && !state.has_ended;
        let mut state = self.changed.wait_while(self.lock(), is_idle).expect("no panic while the lock is held");
        let line = state.lines.front()?.clone();
        // Report them once the queue has room again. Otherwise each line of a slow file would be a report.
        let lost = if state.lines.len() <= MOST_WAITING / 2 { std::mem::take(&mut state.lost) } else { 0 };
        Some((line, lost))
    }
}

struct Log {
    path: PathBuf,
    file: File,
    /// Lines lost since the last successful write.
    lost: u64,
    /// Whether the file ends with part of a line that could not be cut off.
    is_torn: bool,
}

impl Audit {
    /// Opens the file, or creates it with mode 0600.
    ///
    /// # Errors
    /// The file cannot be opened for writing.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut log = Log { path: path.to_owned(), file: open(path)?, lost: 0, is_torn: false };
        let queue = Arc::<Queue>::default();
        let lines = queue.clone();
        thread::Builder::new().name("audit".to_owned()).spawn(move || {
            while let Some((line, lost)) = lines.next() {
                log.lost += lost;
                log.line(&line);
                lines.lock().lines.pop_front();
                lines.changed.notify_all();
            }
        })?;
        Ok(Self(queue))
    }

    /// Passes the line to the thread, which writes it at once: a buffered line would be lost if the process dies.
    pub(super) fn write(&self, entry: &Entry) {
        let line = format!("{}\n", line(entry));
        let mut state = self.0.lock();
        if state.lines.len() < MOST_WAITING {
            state.lines.push_back(line);
            self.0.changed.notify_all();
            return;
        }
        if state.lost == 0 {
            error!("the audit log takes no more lines: its pipe is full, or its file system does not answer");
        }
        state.lost += 1;
    }

    /// Returns a function that waits until all lines are written, at most this long. It returns the number of lines that are
    /// not.
    pub(super) fn written(&self) -> impl FnOnce(Duration) -> usize + Send + use<> {
        let queue = self.0.clone();
        move |limit| {
            let waiting = queue.changed.wait_timeout_while(queue.lock(), limit, |state| !state.lines.is_empty());
            waiting.expect("no panic while the lock is held").0.lines.len()
        }
    }
}

impl Drop for Audit {
    /// Ends the thread after the last line.
    fn drop(&mut self) {
        self.0.lock().has_ended = true;
        self.0.changed.notify_all();
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

impl Log {
    /// Writes a line. Logs only the first failure, and the first success after it: an error per request would push everything
    /// else out of the log.
    fn line(&mut self, line: &str) {
        self.follow();
        match self.append(line) {
            Ok(()) if self.lost > 0 => {
                warn!(file = %self.path.display(), lost = self.lost, "the audit log is written again");
                self.lost = 0;
            }
            Ok(()) => {}
            Err(reason) => {
                if self.lost == 0 {
                    error!(file = %self.path.display(), %reason, "the audit log cannot be written");
                }
                self.lost += 1;
            }
        }
    }

    /// Opens the file again if its path leads to another file, or to none: logrotate renames it.
    fn follow(&mut self) {
        let id = |file: &Metadata| (file.dev(), file.ino());
        let (there, ours) = (fs::metadata(&self.path), self.file.metadata());
        if !matches!((there, ours), (Ok(there), Ok(ours)) if id(&there) == id(&ours))
            && let Ok(file) = open(&self.path)
        {
            (self.file, self.is_torn) = (file, false);
        }
    }

    /// Appends a whole line, or nothing.
    fn append(&mut self, line: &str) -> io::Result<()> {
        let text = if self.is_torn { format!("\n{line}") } else { line.to_owned() };
        // Usually a single write, because other processes may append to the same file.
        let mut left = text.as_bytes();
        while !left.is_empty() {
            match self.file.write(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let written = (text.len() - left.len()) as u64;
                    if written > 0 {
                        self.is_torn = self.take_back(written).is_err();
                    }
                    return Err(error);
                }
            }
        }
        self.is_torn = false;
        Ok(())
    }

    /// Cuts off the last bytes, unless another process has appended after them.
    fn take_back(&mut self, written: u64) -> io::Result<()> {
        let end = self.file.stream_position()?;
        match self.file.metadata()?.len() == end {
            true => self.file.set_len(end - written),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn line(entry: &Entry) -> serde_json::Value {
    let at = Timestamp::try_from(entry.at).unwrap_or_default();
    let client = entry.client.as_ref().and_then(|client| client.0.get());
    let took = entry.elapsed();
    json!({
        "time": at.round(Unit::Millisecond).unwrap_or(at).to_string(),
        "kind": entry.kind.as_str(),
        "client": client.map(|client| json!({
            "uid": client.uid,
            "pid": client.pid,
            "program": client.path.as_ref().map(|path| path.display().to_string()),
        })),
        "connection": entry.connection,
        "method": entry.method.as_ref().map(|method| method.as_str()),
        "host": entry.host,
        "path": entry.path,
        "status": entry.status,
        "error": entry.error,
        "target": entry.tunnel.as_deref(),
        "pod": entry.pod.as_deref(),
        "took_ms": (took.as_secs_f64() * 1e6).round() / 1e3,
        "bytes_up": entry.bytes_up,
        "bytes_down": entry.bytes_down,
        "replay_of": entry.replay_of,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Kind;

    const SOON: Duration = Duration::from_secs(30);

    #[test]
    fn a_pipe_that_nobody_reads_blocks_only_its_thread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let audit = Audit::open(&path).unwrap();
        let write = |at: usize| audit.write(&Entry::new(Kind::Http).with_path(&at.to_string()));
        (0..2 * MOST_WAITING).for_each(write);
        assert!(audit.written()(Duration::ZERO) > MOST_WAITING / 2);
        let lost = audit.0.lock().lost;
        assert!(lost > MOST_WAITING as u64 / 2, "{lost}");
        let written = audit.written();
        let waiting = thread::spawn(move || written(SOON));
        let mut lines = 0;
        while lines + (lost as usize) < 2 * MOST_WAITING {
            let mut read = [0; 65_536];
            let count = io::Read::read(&mut reader, &mut read).unwrap();
            lines += read[..count].iter().filter(|byte| **byte == b'\n').count();
        }
        assert_eq!(waiting.join().unwrap(), 0);
        assert_eq!(audit.0.lock().lost, 0, "they are reported");
    }

    #[test]
    fn a_line_stays_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let audit = Audit::open(&path).unwrap();
        audit.write(&Entry::new(Kind::Http).with_path("/a\nb\"").with_host("web"));
        audit.write(&Entry::new(Kind::Tcp));
        assert_eq!(audit.written()(SOON), 0);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), &lines[0]["path"], &lines[1]["kind"]), (2, &"/a\nb\"".into(), &"tcp".into()));
        assert!(Audit::open(folder.path()).is_err());
    }

    #[test]
    fn a_file_that_was_rotated_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, rotated) = (folder.path().join("audit.log"), folder.path().join("audit.1"));
        let audit = Audit::open(&path).unwrap();
        let lines = |path: &Path| fs::read_to_string(path).unwrap().lines().count();
        let write = || {
            audit.write(&Entry::new(Kind::Http));
            assert_eq!(audit.written()(SOON), 0);
        };
        write();
        fs::rename(&path, &rotated).unwrap();
        write();
        assert_eq!((lines(&rotated), lines(&path)), (1, 1));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        // If its folder is gone, adit continues with the old file.
        fs::rename(folder.path(), folder.path().with_extension("gone")).unwrap();
        write();
        fs::rename(folder.path().with_extension("gone"), folder.path()).unwrap();
        assert_eq!(lines(&path), 2);
    }

    /// A file-size limit acts like a full disk: one write is partial, and the next one fails.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_leaves_whole_lines() {
        const NAME: &str = "journal::audit::tests::fills_its_disk";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let script = "ulimit -f 4; trap '' XFSZ; exec \"$0\" --ignored --exact \"$1\"";
        let filling = std::process::Command::new("bash")
            .args(["-c", script])
            .arg(std::env::current_exe().unwrap())
            .arg(NAME)
            .env("ADIT_TEST_AUDIT", &path)
            .output()
            .unwrap();
        assert!(filling.status.success(), "{filling:?}");
        let text = fs::read_to_string(&path).unwrap();
        assert!((3001..=4096).contains(&text.len()) && text.ends_with('\n'), "{} bytes: {text}", text.len());
        text.lines().for_each(|line| drop(serde_json::from_str::<serde_json::Value>(line).unwrap()));
    }

    #[test]
    #[ignore = "needs a limit of its own: a_full_disk_leaves_whole_lines runs it"]
    fn fills_its_disk() {
        let audit = Audit::open(Path::new(&std::env::var_os("ADIT_TEST_AUDIT").unwrap())).unwrap();
        (0..100).for_each(|_| audit.write(&Entry::new(Kind::Http).with_host("web.shop.localhost")));
        assert_eq!(audit.written()(SOON), 0);
    }
}
