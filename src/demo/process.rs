//! A container of the demo: a group of tasks, and their log.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;

use super::{sessions::Sessions, tasks::Tasks};

/// Maximum number of lines kept of a container's output.
const LONGEST_LOG: usize = 1000;

/// The identity of a pod for its node: a new pod with the same name is another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sandbox {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// A running container. Clones share it.
#[derive(Clone, Debug)]
pub struct Process {
    pub sandbox: Sandbox,
    /// Ports on which it listens.
    pub ports: Arc<[u16]>,
    pub tasks: Tasks,
    /// Sessions of its database.
    pub(super) sessions: Arc<Sessions>,
    log: Arc<Log>,
}

#[derive(Debug)]
struct Log {
    /// Kept lines, and the number of lines dropped before them.
    lines: Mutex<(VecDeque<String>, usize)>,
    written: watch::Sender<usize>,
}

impl Process {
    pub fn start(sandbox: Sandbox, ports: Vec<u16>, tasks: Tasks) -> Self {
        let log = Log { lines: Mutex::default(), written: watch::Sender::new(0) };
        let process = Self { sandbox, ports: ports.into(), tasks, sessions: Arc::default(), log: Arc::new(log) };
        for port in process.ports.iter() {
            process.say(&format!("listening on port {port}"));
        }
        process
    }

    /// Writes a line to the container's output.
    pub fn say(&self, line: &str) {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        let written = {
            let mut lines = self.log.lines.lock().expect("no panic while the lock is held");
            let (kept, gone) = &mut *lines;
            kept.push_back(format!("{now} {line}\n"));
            if kept.len() > LONGEST_LOG {
                kept.pop_front();
                *gone += 1;
            }
            *gone + kept.len()
        };
        self.log.written.send_replace(written);
    }

    /// Returns the lines from number `from` on, and the number of the next line.
    pub fn lines(&self, from: usize) -> (String, usize) {
        let lines = self.log.lines.lock().expect("no panic while the lock is held");
        let (kept, gone) = &*lines;
        let text = kept.iter().skip(from.saturating_sub(*gone)).map(String::as_str).collect();
        (text, gone + kept.len())
    }

    /// Waits for a line with number `from` or higher. False: the process has ended.
    pub async fn has_said_more(&self, from: usize) -> bool {
        let mut written = self.log.written.subscribe();
        tokio::select! {
            more = written.wait_for(|written| *written > from) => more.is_ok(),
            () = self.tasks.ended() => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn old_lines_go_and_numbers_stay() {
        let sandbox = Sandbox { namespace: "shop".into(), name: "web".into(), uid: "1".into() };
        let process = Process::start(sandbox, vec![80], Tasks::default());
        for number in 1..=LONGEST_LOG {
            process.say(&format!("line {number}"));
        }
        let (text, next) = process.lines(0);
        assert_eq!((text.lines().count(), next), (LONGEST_LOG, LONGEST_LOG + 1));
        assert!(text.lines().next().unwrap().ends_with(" line 1"));
        assert_eq!(process.lines(next - 1).0.lines().count(), 1);
        assert!(process.has_said_more(next - 1).await);
        process.tasks.end();
        assert!(!process.has_said_more(next).await);
    }
}
