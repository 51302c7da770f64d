//! Runs a credential plugin (`exec` of a kubeconfig's user) with kubectl's protocol. The process ends with adit.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use futures::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    time::timeout,
};

use super::exec_credential::{self, Version};
use crate::{
    k8s::{
        credential::{Credential, bearer},
        sign_in::{Failure, Issuer, Say},
    },
    secrets::{in_arguments, is_secret_name},
    telemetry::said::{Secrets, clean},
    tls::{certificate::Certificate, identity, reason},
};

/// Maximum length of the output, in bytes. kubectl has no limit, and this one only bounds the memory.
const LONGEST_ANSWER: usize = 64 << 20;

/// Time after which an unfinished line is shown: it may be a question that waits for an answer.
const UNFINISHED: Duration = Duration::from_millis(300);

/// Time for the rest of the output after the plugin has ended: a child process may keep its stdout open.
const REST: Duration = Duration::from_secs(1);

/// Maximum length of a line, in bytes. A longer line is split.
const LONGEST_LINE: usize = 16 * 1024;

/// Maximum number of output lines in an error.
const LAST_LINES: usize = 3;

/// A plugin of the kubeconfig, found on this machine.
#[derive(Clone)]
pub struct Plugin {
    /// Name of the program for messages.
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// Environment variables in addition to adit's own.
    pub variables: Vec<(String, String)>,
    pub version: Version,
    /// `spec.cluster`, if the user has `provideClusterInfo`.
    pub cluster: Option<Value>,
}

impl Plugin {
    /// Returns a key that identifies the plugin. As in client-go, two users with the same key share a sign-in.
    pub fn identity(&self) -> String {
        let Self { name: _, program, arguments, variables, version, cluster } = self;
        json!([program.to_string_lossy(), arguments, variables, version.name(), cluster]).to_string()
    }

    fn secrets(&self) -> Secrets {
        let mut secrets = Secrets::default();
        let variables = self.variables.iter().filter(|(name, _)| is_secret_name(name));
        variables.for_each(|(_, value)| secrets.add(value));
        let arguments = self.arguments.iter().zip(in_arguments(self.arguments.iter().map(String::as_str)));
        arguments.for_each(|(argument, secret)| secret.into_iter().for_each(|secret| secrets.add(&argument[secret])));
        secrets
    }

    async fn run(&self, say: Say<'_>) -> Result<Credential, Failure> {
        let failed = |reason: String| Failure::new(format!("'{}' {reason}", self.name));
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.env(exec_credential::VARIABLE, exec_credential::info(self.version, self.cluster.as_ref()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A separate process group: Ctrl-C in adit's terminal must not reach the plugin, and its children must end with
        // it.
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| failed(format!("cannot be started: {}", words(&error))))?;
        let mut group = Group::of(&child);
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(failed("has no stdout".to_owned()));
        };
        let (answer, last) = (Mutex::new(Vec::new()), Mutex::new(Vec::<String>::new()));
        let secrets = self.secrets();
        let show = |line: &[u8]| {
            let mut secrets = secrets.clone();
            let printed =
                String::from_utf8_lossy(&answer.lock().expect("no panic while the lock is held")).into_owned();
            secrets_of_answer(&printed).for_each(|secret| secrets.add(secret));
            if let Some(line) = clean(line, &secrets) {
                say(&line);
                let mut last = last.lock().expect("no panic while the lock is held");
                last.push(line);
                let old = last.len().saturating_sub(LAST_LINES);
                last.drain(..old);
            }
        };
        let reading = async { tokio::join!(collect(stdout, &answer), lines(stderr, show)).0 };
        tokio::pin!(reading);
        let mut is_read = None;
        let status = tokio::select! {
            status = child.wait() => status,
            read = &mut reading => {
                is_read = Some(read);
                child.wait().await
            }
        };
        // The plugin has ended by itself. Its children, such as a browser, keep running.
        group.take();
        let read = match is_read {
            Some(read) => read,
            None => timeout(REST, &mut reading).await.unwrap_or(Ok(())),
        };
        let status = status.map_err(|error| failed(format!("was lost: {}", words(&error))))?;
        // A plugin whose output was cut off fails at its next write, and its exit code is then meaningless.
        read.map_err(|_| failed(format!("printed more than {} MiB to stdout", LONGEST_ANSWER >> 20)))?;
        if !status.success() {
            return Err(failed(with_lines(&how(status), &last)));
        }
        let printed = answer.lock().expect("no panic while the lock is held").clone();
        let issued =
            exec_credential::read(&printed, self.version).map_err(|reason| failed(with_lines(&reason, &last)))?;
        let header = issued.token.as_deref().map(bearer).transpose();
        let header = header.map_err(|error| failed(format!("printed a token that cannot be sent: {error}")))?;
        let Some((chain, key)) = issued.certificate else {
            return Ok(Credential::issued(header, None, issued.expires));
        };
        let read = identity::from_pem(chain.as_bytes(), key.as_bytes(), &crate::tls::provider());
        let identity = read.map_err(|error| failed(format!("printed a certificate that cannot be used: {error}")))?;
        let ends = identity.cert.first().and_then(|leaf| Certificate::parse(leaf)).map(|leaf| leaf.not_after);
        let ends =
            ends.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
        let expires = [issued.expires, ends].into_iter().flatten().min();
        Ok(Credential::issued(header, Some(Arc::new(identity)), expires))
    }
}

impl Issuer for Plugin {
    fn name(&self) -> String {
        format!("'{}'", self.name)
    }

    fn issue<'a>(&'a self, say: Say<'a>) -> BoxFuture<'a, Result<Credential, Failure>> {
        Box::pin(self.run(say))
    }
}

/// Process group that is killed on drop.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)))
    }

    fn take(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // An error means that all its processes have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Reads all of stdout.
///
/// # Errors
/// Fails if the output is longer than [`LONGEST_ANSWER`].
async fn collect(mut stdout: impl AsyncRead + Unpin, answer: &Mutex<Vec<u8>>) -> io::Result<()> {
    let mut chunk = [0; 4096];
    loop {
        let count = stdout.read(&mut chunk).await.unwrap_or(0);
        let mut answer = answer.lock().expect("no panic while the lock is held");
        if count == 0 {
            return Ok(());
        }
        if answer.len() + count > LONGEST_ANSWER {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        answer.extend_from_slice(&chunk[..count]);
    }
}

/// Calls `show` for each line. A carriage return also ends a line, because progress bars use it.
async fn lines(mut stderr: impl AsyncRead + Unpin, show: impl Fn(&[u8])) {
    let (mut line, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let read = match line.is_empty() {
            true => stderr.read(&mut chunk).await,
            false => match timeout(UNFINISHED, stderr.read(&mut chunk)).await {
                Ok(read) => read,
                Err(_) => {
                    show(&std::mem::take(&mut line));
                    continue;
                }
            },
        };
        let count = read.unwrap_or(0);
        for byte in &chunk[..count] {
            match byte {
                b'\n' | b'\r' => show(&std::mem::take(&mut line)),
                byte => line.push(*byte),
            }
        }
        if count == 0 || line.len() > LONGEST_LINE {
            show(&std::mem::take(&mut line));
        }
        if count == 0 {
            return;
        }
    }
}

/// Returns the secrets in the output so far, even if they are incomplete.
fn secrets_of_answer(printed: &str) -> impl Iterator<Item = &str> {
    ["token", "clientKeyData"].into_iter().filter_map(|name| {
        let (_, behind) = printed.split_once(&format!("{name}\""))?;
        let value = behind.trim_start_matches([' ', ':', '"']);
        value.split('"').next()
    })
}

/// Returns how a process ended, as text that follows its name.
fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended without an exit code".to_owned(),
    }
}

fn with_lines(reason: &str, last: &Mutex<Vec<String>>) -> String {
    let last = last.lock().expect("no panic while the lock is held").join(" / ");
    if last.is_empty() { reason.to_owned() } else { format!("{reason}: {last}") }
}

/// Returns the error of a program that could not be started, without the OS error number.
fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "it is not executable".to_owned(),
        io::ErrorKind::NotFound => "it, or the interpreter in its first line, does not exist".to_owned(),
        _ => reason(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Instant};

    use super::*;

    fn shell(script: &str) -> Plugin {
        Plugin {
            name: "sh".into(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            variables: vec![("CLIENT_SECRET".into(), "hush-hush".into())],
            version: Version::V1,
            cluster: None,
        }
    }

    fn answer(status: &str) -> String {
        format!(
            "echo '{{\"kind\": \"ExecCredential\", \"apiVersion\": \"client.authentication.k8s.io/v1\", \"status\": {status}}}'"
        )
    }

    async fn run(script: &str) -> (Result<Credential, Failure>, Vec<String>) {
        let said = Mutex::new(Vec::new());
        let say = |line: &str| said.lock().unwrap().push(line.to_owned());
        let issued = shell(script).run(&say).await;
        (issued, said.into_inner().unwrap())
    }

    async fn failure(script: &str) -> String {
        run(script).await.0.expect_err(script).reason
    }

    #[tokio::test]
    async fn a_token_is_issued_and_what_is_said_comes_without_secrets() {
        let script = format!(
            "printf '\\033[1mgo to https://a.test\\033[0m\\r\\nsecret is hush-hush\\n' >&2; {}; sleep 0.2; echo 'got abcdef-1' >&2",
            answer("{\"token\": \"abcdef-1\"}")
        );
        let (issued, said) = run(&script).await;
        assert_eq!(issued.unwrap().header.unwrap(), "Bearer abcdef-1");
        assert_eq!(said, ["go to https://a.test", "secret is ***", "got ***"]);
    }

    #[tokio::test]
    async fn a_question_without_a_line_end_is_shown_while_the_plugin_waits() {
        let (said_tx, mut said) = tokio::sync::mpsc::unbounded_channel();
        let say = move |line: &str| said_tx.send(line.to_owned()).unwrap();
        let running =
            tokio::spawn(async move { shell("printf 'enter ABCD: ' >&2; sleep 20").run(&say).await.map(drop) });
        assert_eq!(said.recv().await.unwrap(), "enter ABCD:");
        running.abort();
    }

    #[tokio::test]
    async fn a_failure_has_the_name_the_exit_code_and_the_last_lines() {
        let script = "for line in one two three four; do echo $line >&2; done; exit 7";
        assert_eq!(failure(script).await, "'sh' ended with exit code 7: two / three / four");
        assert_eq!(failure("kill -9 $$").await, "'sh' was ended by signal 9");
        assert_eq!(failure("echo hm >&2; echo no").await, "'sh' printed no ExecCredential to stdout: hm");
        assert_eq!(failure("head -c 70000000 /dev/zero").await, "'sh' printed more than 64 MiB to stdout");
        let token = failure(&answer("{\"token\": \"a\\nb\"}").replace("echo", "printf '%s\\n'")).await;
        assert!(token.starts_with("'sh' printed a token that cannot be sent: the token has a line end"), "{token}");
        let certificate = failure(&answer("{\"clientCertificateData\": \"x\", \"clientKeyData\": \"y\"}")).await;
        assert!(
            certificate.starts_with("'sh' printed a certificate that cannot be used: there is no"),
            "{certificate}"
        );
        let missing = Plugin { program: "/no/such".into(), ..shell("") }.run(&|_| {}).await.err().unwrap();
        assert!(missing.reason.starts_with("'sh' cannot be started: it, or the interpreter"), "{}", missing.reason);
    }

    #[tokio::test]
    async fn a_plugin_that_is_not_waited_for_is_killed_with_what_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pids");
        let script = format!("trap '' TERM INT; sleep 60 & echo $$ $! > {0}.new; mv {0}.new {0}; wait", file.display());
        let running = tokio::spawn(async move { shell(&script).run(&|_| {}).await.map(drop) });
        let began = Instant::now();
        while !file.exists() {
            assert!(began.elapsed() < Duration::from_secs(40));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        running.abort();
        for pid in fs::read_to_string(&file).unwrap().split_whitespace() {
            let is_alive = || {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                !status.is_empty() && !status.contains("State:\tZ")
            };
            while is_alive() {
                assert!(began.elapsed() < Duration::from_secs(40), "{pid} lives");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    #[tokio::test]
    async fn what_a_plugin_leaves_running_neither_holds_it_up_nor_ends() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("done");
        let began = Instant::now();
        let script = format!("(sleep 8; touch {}) & {}", file.display(), answer("{\"token\": \"abcdef\"}"));
        assert!(run(&script).await.0.is_ok());
        assert!(began.elapsed() < Duration::from_millis(7_900), "{:?}", began.elapsed());
        while !file.exists() {
            assert!(began.elapsed() < Duration::from_secs(40));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
