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
use crate::{
    config::Command,
    secrets::{in_arguments, is_secret_name},
    telemetry::said::{Secrets, without_escapes},
};

/// Maximum length of a line in bytes. A longer one counts as several.
const LONGEST_LINE: usize = 2048;

/// Minimum length of a secret: masking a shorter value would hide parts of every line.
const SHORTEST_SECRET: usize = 4;

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
    secrets: Arc<Secrets>,
    last: Arc<Mutex<VecDeque<String>>>,
    logged: Arc<Mutex<Logged>>,
    wait: Arc<Wait>,
}

impl Output {
    /// `name`: name of the command in the log. `wait`: records prompts for a person.
    pub fn new(name: &str, command: &Command, wait: Arc<Wait>) -> Self {
        let from = command.env_from.values().filter_map(|ours| std::env::var(ours).ok());
        // Too much may be hidden here, but not too little.
        let is_secret = |name: &str| is_secret_name(name) || name.to_ascii_uppercase().contains("KEY");
        let set = command.env.iter().filter(|(name, _)| is_secret(name)).map(|(_, value)| value.clone());
        let mut secrets = Secrets::default();
        let arguments = command.run.iter().zip(in_arguments(command.run.iter().map(String::as_str)));
        let parts = arguments.filter_map(|(argument, secret)| Some(&argument[secret?])).flat_map(|secret| {
            // Programs repeat `abc` of `Bearer abc`, and of `abc;Encrypt=yes`.
            let [token, first] = [secret.rsplit(' ').next(), secret.split([' ', ';', '&']).next()];
            let first =
                first.filter(|first| !first.eq_ignore_ascii_case("bearer") && !first.eq_ignore_ascii_case("basic"));
            [Some(secret), token, first].into_iter().flatten().map(str::to_owned)
        });
        from.chain(set).chain(parts).for_each(|secret| secrets.add_longer(&secret, SHORTEST_SECRET));
        Self { name: name.into(), secrets: Arc::new(secrets), last: Arc::default(), logged: Arc::default(), wait }
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
            let has_ended = !matches!(read, Ok(count) if count > 0);
            while let Some(end) = self.end_of_line(&buffer, has_ended) {
                self.line(&buffer.split_to(end));
            }
            if has_ended {
                let left_out =
                    std::mem::take(&mut self.logged.lock().expect("no panic while the lock is held").left_out);
                return self.tell_left_out(left_out);
            }
        }
    }

    /// Returns the end of the first line, or of the first piece of a long line. `None`: more has to be read.
    fn end_of_line(&self, said: &[u8], has_ended: bool) -> Option<usize> {
        let end = said.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let end = end.or_else(|| (has_ended && !said.is_empty()).then_some(said.len()));
        match end {
            Some(end) if end <= LONGEST_LINE => Some(end),
            // A secret may go on behind the bytes that are there.
            None if said.len() < LONGEST_LINE + self.secrets.longest() => None,
            _ => Some(self.secrets.cut(said, LONGEST_LINE)),
        }
    }

    fn tell_left_out(&self, lines: u64) {
        if lines > 0 {
            warn!(target: "adit::command", command = &*self.name, lines, "dropped log lines: the command writes too many");
        }
    }

    fn line(&self, bytes: &[u8]) {
        let line = self.secrets.hide(without_escapes(&String::from_utf8_lossy(bytes)).trim());
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

#[cfg(test)]
mod tests {
    use super::{super::waits::Waits, *};

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
            run: ["x", "-H", "Authorization: Bearer t0k3n"].map(str::to_owned).into(),
            mode: crate::config::CommandMode::Stdio,
            env: [("API_TOKEN", "hunter22"), ("KEY", "-----\nMIIEvQ12\nMIIEvQ34\n")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            env_from: Default::default(),
            startup_timeout: Default::default(),
            ports: "1-1".parse().unwrap(),
        };
        let wait = Arc::<Waits>::default().begin(Arc::new(command.clone()), Box::new(|| {}));
        let output = Output::new("x", &command, wait);
        let said: String = (0..20).map(|at| format!("line {at} {}\n", ["hunter22", "t0k3n"][at % 2])).collect();
        output.clone().follow(said.as_bytes()).await;
        assert!(output.last().starts_with("line 12 *** | line 13") && output.last().ends_with("line 19 ***"));
        for fill in 2030..2060 {
            let said = format!("{} hunter22 {}\nMIIEvQ12\n", "x".repeat(fill), "y".repeat(3000));
            output.clone().follow(said.as_bytes()).await;
            let last = output.last();
            assert!(!last.contains("hunt") && !last.contains("er22") && last.contains("***"), "{fill}: {last}");
            assert!(!last.contains("MIIE"), "{last}");
        }
    }
}
