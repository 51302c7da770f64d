//! The audit log: a line of JSON for each request and connection that has ended.
//!
//! ```text
//! {"time":"2026-01-02T03:04:05.678Z","kind":"http","client":{"uid":1000,"pid":4711,"program":"/usr/bin/curl"},"connection":7,
//!  "method":"DELETE","host":"web.shop.localhost:8989","path":"/carts/1","status":403,"error":"read-only","target":"prod/shop/web",
//!  "pod":null,"took_ms":0.4,"bytes_up":0,"bytes_down":120,"replay_of":null}
//! ```

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Mutex,
};

use jiff::{Timestamp, Unit};
use serde_json::json;
use tracing::error;

use super::entry::Entry;

/// A file that is appended to.
pub struct Audit(Mutex<File>);

impl Audit {
    /// Opens the file; one that is new is its owner's alone.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(Mutex::new(OpenOptions::new().append(true).create(true).mode(0o600).open(path)?)))
    }

    /// Writes the line at once: one that waited could be lost with the process.
    pub(super) fn write(&self, entry: &Entry) {
        let line = format!("{}\n", line(entry));
        // One write for a line: other processes may append to the same file.
        let written = self.0.lock().expect("no panic while the lock is held").write_all(line.as_bytes());
        if let Err(reason) = written {
            error!(%reason, "the audit log cannot be written");
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

    #[test]
    fn a_line_stays_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let audit = Audit::open(&path).unwrap();
        audit.write(&Entry::new(Kind::Http).with_path("/a\nb\"").with_host("web"));
        audit.write(&Entry::new(Kind::Tcp));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), &lines[0]["path"], &lines[1]["kind"]), (2, &"/a\nb\"".into(), &"tcp".into()));
        assert!(Audit::open(folder.path()).is_err());
    }
}
