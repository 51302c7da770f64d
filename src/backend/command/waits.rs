//! Commands that wait for a person: a sign-in in a browser, a code, or the touch of a security key.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use tokio::time::Instant;

use crate::{backend::SignInReport, config::Command};

/// Number of last lines kept.
const MOST_LINES: usize = 8;

/// How long a prompt counts as open. A command does not report that the person has done what it asked for.
const LASTS: Duration = Duration::from_secs(5 * 60);

/// Words in the prompts of cloudflared, ssh, gcloud, aws, az and tsh.
const WORDS: [&str; 16] = [
    "waiting for",
    "browser",
    "log in",
    "login",
    "sign in",
    "sign-in",
    "device code",
    "enter the code",
    "verification code",
    "authenticate",
    "authorize",
    "touch your",
    "user presence",
    "passphrase",
    "password:",
    "one-time",
];

/// Returns whether a line asks a person for something, or contains a URL.
pub fn is_for_a_person(line: &str) -> bool {
    let line = line.to_lowercase();
    ["https://", "http://"].iter().chain(&WORDS).any(|word| line.contains(word))
}

/// Prompts of all running processes.
#[derive(Default)]
pub struct Waits(Mutex<Vec<Weak<Wait>>>);

/// Prompt of a command's process. It ends with the last process that holds it.
pub struct Wait {
    command: Arc<Command>,
    said: Mutex<Said>,
    changed: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Said {
    lines: VecDeque<String>,
    since: Option<Instant>,
    last: Option<Instant>,
}

impl Waits {
    /// Creates the record of a command's prompts. Calls `changed` for each new prompt.
    pub fn begin(&self, command: Arc<Command>, changed: Box<dyn Fn() + Send + Sync>) -> Arc<Wait> {
        let wait = Arc::new(Wait { command, said: Mutex::default(), changed });
        let mut all = self.lock();
        all.retain(|wait| wait.strong_count() > 0);
        all.push(Arc::downgrade(&wait));
        wait
    }

    pub fn of(&self, command: &Command) -> Option<SignInReport> {
        self.lock()
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|wait| *wait.command == *command)
            .find_map(|wait| wait.report())
    }

    pub fn all(&self) -> Vec<SignInReport> {
        self.lock().iter().filter_map(Weak::upgrade).filter_map(|wait| wait.report()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Wait>>> {
        self.0.lock().expect("no panic while the lock is held")
    }
}

impl Wait {
    /// Records a line that is for a person.
    pub fn say(&self, line: &str) {
        let now = Instant::now();
        let mut said = self.said.lock().expect("no panic while the lock is held");
        if said.last.is_none_or(|last| now.duration_since(last) >= LASTS) {
            *said = Said { since: Some(now), ..Said::default() };
        }
        said.last = Some(now);
        if said.lines.len() == MOST_LINES {
            said.lines.pop_front();
        }
        said.lines.push_back(line.to_owned());
        drop(said);
        (self.changed)();
    }

    fn report(&self) -> Option<SignInReport> {
        let said = self.said.lock().expect("no panic while the lock is held");
        let since = said.since.filter(|_| said.last.is_some_and(|last| last.elapsed() < LASTS))?;
        let name = &self.command.run[0];
        Some(SignInReport {
            user: format!("command {name}"),
            issuer: format!("'{name}'"),
            since: Some(since),
            ended: None,
            failure: None,
            said: said.lines.iter().cloned().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CommandMode;

    #[test]
    fn lines_for_a_person_are_told_from_the_others() {
        for line in [
            "A browser window should have opened at the following URL:",
            "https://example.cloudflareaccess.com/cdn-cgi/access/cli?edge_token=x",
            "To sign in, enter the code ABCD-EFGH at microsoft.com/devicelogin",
            "Confirm user presence for key ECDSA-SK",
            "Enter passphrase for key '/home/ana/.ssh/id_ed25519':",
            "Waiting for authentication...",
        ] {
            assert!(is_for_a_person(line), "{line}");
        }
        for line in ["INF Start Websocket listener host=127.0.0.1:20000", "listening on port 20000", "retrying in 3 s"]
        {
            assert!(!is_for_a_person(line), "{line}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_said_is_seen_for_a_while_and_goes_with_the_process() {
        let command = Arc::new(Command {
            run: vec!["cloudflared".into()],
            mode: CommandMode::Listen,
            env: Default::default(),
            env_from: Default::default(),
            startup_timeout: Default::default(),
            ports: "1-1".parse().unwrap(),
        });
        let waits = Waits::default();
        let wait = waits.begin(command.clone(), Box::new(|| {}));
        assert_eq!(waits.of(&command), None);
        for number in 0..20 {
            wait.say(&format!("open https://example.com/{number}"));
        }
        let said = waits.of(&command).expect("it waits").said;
        assert_eq!((said.len(), said[7].as_str()), (8, "open https://example.com/19"));
        tokio::time::advance(LASTS).await;
        assert_eq!(waits.of(&command), None);
        wait.say("open https://example.com/again");
        assert_eq!(waits.all()[0].said, ["open https://example.com/again"]);
        drop(wait);
        assert!(waits.all().is_empty());
    }
}
