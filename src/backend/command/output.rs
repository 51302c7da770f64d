//! Copies the output of a command to the log, line by line, without secrets or escape sequences.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::Instant,
};
use tracing::{info, warn};

use super::waits::{Wait, is_for_a_person};
use crate::config::Command;

/// Maximum length of a line in bytes; the rest is left out.
const LONGEST_LINE: usize = 2048;

/// Maximum number of lines logged within [`SPAN`]; the others are counted.
const MOST_LOGGED: u32 = 200;
const SPAN: Duration = Duration::from_secs(10);

/// Number of last lines kept for the error message.
const MOST_LINES: usize = 8;

/// Number of lines since `since`.
#[derive(Default)]
struct Logged {
    since: Option<Instant>,
    count: u32,
    left_out: u64,
}

impl Logged {
    /// Counts a line. Returns whether to log it, and the number of unreported lines that were left out before it.
    fn count(&mut self) -> (bool, u64) {
        let now = Instant::now();
        let mut left_out = 0;
        if self.since.is_none_or(|since| now.duration_since(since) >= SPAN) {
            left_out = std::mem::take(self).left_out;
            self.since = Some(now);
        }
        self.count = self.count.saturating_add(1);
        let is_logged = self.count <= MOST_LOGGED;
        self.left_out += u64::from(!is_logged);
        (is_logged, left_out)
    }
}

/// The last lines of a process's output, and the secrets to mask in them.
#[derive(Clone)]
pub struct Output {
    name: Arc<str>,
    secrets: Arc<[String]>,
    last: Arc<Mutex<VecDeque<String>>>,
    logged: Arc<Mutex<Logged>>,
    wait: Arc<Wait>,
}

impl Output {
    /// `name`: name of the command in the log. `wait`: records prompts for a person.
    pub fn new(name: &str, command: &Command, wait: Arc<Wait>) -> Self {
        let from = command.env_from.values().filter_map(|ours| std::env::var(ours).ok());
        let is_secret = |name: &str| {
            ["TOKEN", "SECRET", "PASSWORD", "KEY"].iter().any(|word| name.to_ascii_uppercase().contains(word))
        };
        let set = command.env.iter().filter(|(name, _)| is_secret(name)).map(|(_, value)| value.clone());
        // Masking a short value would hide parts of every line.
        let secrets = from.chain(set).filter(|secret| secret.len() >= 4).collect();
        Self { name: name.into(), secrets, last: Arc::default(), logged: Arc::default(), wait }
    }

    /// Returns the last lines, joined with ` | `.
    pub fn last(&self) -> String {
        let last = self.last.lock().expect("no panic while the lock is held");
        last.iter().map(String::as_str).collect::<Vec<_>>().join(" | ")
    }

    /// Reads the output to its end.
    pub async fn follow(self, mut from: impl AsyncRead + Unpin) {
        let mut buffer = BytesMut::new();
        loop {
            let read = from.read_buf(&mut buffer).await;
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                self.line(&buffer.split_to(end + 1));
            }
            if buffer.len() > LONGEST_LINE || !matches!(read, Ok(count) if count > 0) {
                self.line(&buffer.split());
            }
            if !matches!(read, Ok(count) if count > 0) {
                let left_out =
                    std::mem::take(&mut self.logged.lock().expect("no panic while the lock is held").left_out);
                return self.tell_left_out(left_out);
            }
        }
    }

    fn tell_left_out(&self, lines: u64) {
        if lines > 0 {
            warn!(target: "adit::command", command = &*self.name, lines, "lines were left out: it says too much");
        }
    }

    fn line(&self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST_LINE)]);
        let mut line = plain(&text);
        for secret in self.secrets.iter() {
            line = line.replace(secret.as_str(), "***");
        }
        if line.is_empty() {
            return;
        }
        let (is_logged, left_out) = self.logged.lock().expect("no panic while the lock is held").count();
        self.tell_left_out(left_out);
        let is_for_a_person = is_for_a_person(&line);
        if is_for_a_person {
            self.wait.say(&line);
        }
        match is_for_a_person {
            _ if !is_logged => {}
            true => warn!(target: "adit::command", command = &*self.name, "{line}"),
            false => info!(target: "adit::command", command = &*self.name, "{line}"),
        }
        let mut last = self.last.lock().expect("no panic while the lock is held");
        if last.len() == MOST_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
}

/// Returns text without escape sequences (ECMA-48) and other control characters.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\x1b' => match characters.next() {
                // CSI: skip to its final byte.
                Some('[') => drop(characters.find(|character| ('@'..='~').contains(character))),
                // OSC: skip to BEL or ST.
                Some(']') => {
                    while let Some(character) = characters.next() {
                        if character == '\x07' || (character == '\x1b' && characters.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                }
                _ => {}
            },
            '\t' => plain.push(' '),
            character if character.is_control() => {}
            character => plain.push(character),
        }
    }
    plain.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::{super::waits::Waits, *};

    #[test]
    fn escapes_do_not_reach_the_terminal() {
        assert_eq!(plain("\x1b[1;31mred\x1b[0m\tand \x1b]0;title\x07plain\r\n"), "red and plain");
        assert_eq!(plain("\x1b[2J\x1b(B\x08ok\x1b["), "Bok");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_lines_is_bounded_and_counted() {
        let mut logged = Logged::default();
        let of_flood = (0..1_000).filter(|_| logged.count() == (true, 0)).count();
        assert_eq!(of_flood, MOST_LOGGED as usize);
        tokio::time::advance(SPAN).await;
        assert_eq!(logged.count(), (true, 1_000 - u64::from(MOST_LOGGED)));
        assert_eq!(logged.count(), (true, 0));
    }

    #[tokio::test]
    async fn secrets_are_masked_and_the_last_lines_kept() {
        let command = Command {
            run: vec!["x".into()],
            mode: crate::config::CommandMode::Stdio,
            env: [("API_TOKEN".to_owned(), "hunter22".to_owned())].into(),
            env_from: Default::default(),
            startup_timeout: Default::default(),
            ports: "1-1".parse().unwrap(),
        };
        let wait = Arc::<Waits>::default().begin(Arc::new(command.clone()), Box::new(|| {}));
        let output = Output::new("x", &command, wait);
        let said: String = (0..20).map(|at| format!("line {at} hunter22\n")).collect();
        output.clone().follow(said.as_bytes()).await;
        assert!(output.last().starts_with("line 12 *** | line 13") && output.last().ends_with("line 19 ***"));
    }
}
