//! Programs that `exec` can run in the demo's pods.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{Node, network::DialError, process::Sandbox};

/// Standard streams of a program. The end of a channel is the end of the stream.
pub struct Stdio {
    pub stdin: mpsc::Receiver<Bytes>,
    pub stdout: mpsc::Sender<Bytes>,
    pub stderr: mpsc::Sender<Bytes>,
}

/// Programs that `which` finds.
const PROGRAMS: [&str; 9] = ["cat", "echo", "env", "false", "hostname", "nc", "sleep", "socat", "true"];

/// Runs a command in a pod, and returns its exit code.
pub async fn run(node: &Node, sandbox: &Sandbox, command: &[String], mut stdio: Stdio) -> u8 {
    let words = words(command);
    let arguments: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
    match words.first().map_or("sh", String::as_str) {
        "echo" => say(&stdio.stdout, format!("{}\n", arguments.join(" "))).await,
        "hostname" => say(&stdio.stdout, format!("{}\n", sandbox.name)).await,
        "env" => say(&stdio.stdout, format!("HOSTNAME={}\nPATH=/bin\n", sandbox.name)).await,
        "cat" => {
            while let Some(bytes) = stdio.stdin.recv().await {
                if stdio.stdout.send(bytes).await.is_err() {
                    return 1;
                }
            }
            0
        }
        "true" => 0,
        "false" => 1,
        "exit" => arguments.first().and_then(|code| code.parse().ok()).unwrap_or(0),
        "sleep" => {
            let seconds = arguments.first().and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0_f64);
            sleep(Duration::from_secs_f64(seconds.clamp(0.0, 3600.0))).await;
            0
        }
        "which" => match arguments.first().filter(|name| PROGRAMS.contains(name)) {
            Some(name) => say(&stdio.stdout, format!("/bin/{name}\n")).await,
            None => 1,
        },
        "nc" => match arguments.iter().filter(|word| !word.starts_with('-')).collect::<Vec<_>>()[..] {
            [host, port] => connect(node, sandbox, (host, port), stdio, Ends::AtOnce).await,
            _ => fail(&stdio.stderr, "usage: nc HOST PORT\n".to_owned(), 1).await,
        },
        "socat" => match arguments.last().and_then(|address| socat_address(address)) {
            Some(target) => connect(node, sandbox, target, stdio, Ends::of_socat(&arguments)).await,
            None => fail(&stdio.stderr, "usage: socat - TCP:HOST:PORT\n".to_owned(), 1).await,
        },
        other => {
            let known = PROGRAMS.join(", ");
            fail(&stdio.stderr, format!("{other}: not found; the demo knows {known}, which and exit\n"), 127).await
        }
    }
}

async fn say(to: &mpsc::Sender<Bytes>, text: String) -> u8 {
    // An error means that the reader has gone.
    let _ = to.send(text.into()).await;
    0
}

async fn fail(to: &mpsc::Sender<Bytes>, text: String, code: u8) -> u8 {
    say(to, text).await;
    code
}

/// Parses `TCP:host:port`, `TCP4:...` and `TCP6:[::1]:80`.
fn socat_address(address: &str) -> Option<(&str, &str)> {
    let address = address.split(',').next()?;
    let (kind, rest) = address.split_once(':')?;
    let (host, port) = rest.rsplit_once(':')?;
    matches!(kind.to_ascii_lowercase().as_str(), "tcp" | "tcp4" | "tcp6" | "tcp-connect")
        .then_some((host.trim_matches(['[', ']']), port))
}

/// When a program ends after the end of its connection.
#[derive(Clone, Copy)]
enum Ends {
    /// nc: at once.
    AtOnce,
    /// socat: at the end of its input, or this long after the end of either direction.
    After {
        wait: Duration,
        /// `-d -d`: it reports which direction has ended.
        reports: bool,
    },
}

impl Ends {
    fn of_socat(arguments: &[&str]) -> Self {
        let seconds = arguments.iter().skip_while(|word| **word != "-t").nth(1).and_then(|word| word.parse().ok());
        let wait = Duration::from_secs_f64(seconds.unwrap_or(0.5_f64).clamp(0.0, 86_400.0));
        Self::After { wait, reports: arguments.iter().filter(|word| **word == "-d").count() >= 2 }
    }
}

async fn connect(node: &Node, from: &Sandbox, (host, port): (&str, &str), stdio: Stdio, ends: Ends) -> u8 {
    let program = if matches!(ends, Ends::AtOnce) { "nc" } else { "socat" };
    let dialled = port.parse().map_err(|_| DialError::Refused).and_then(|port| node.dial_host(from, host, port));
    match dialled {
        Ok(stream) => {
            pipe(stream, stdio, ends).await;
            0
        }
        Err(DialError::UnknownHost) => {
            fail(&stdio.stderr, format!("{program}: {host}: Name or service not known\n"), 1).await
        }
        Err(DialError::Refused | DialError::Gone) => {
            fail(&stdio.stderr, format!("{program}: connect to {host} port {port}: Connection refused\n"), 1).await
        }
    }
}

/// Copies between a connection and the standard streams until the program ends.
async fn pipe(stream: DuplexStream, mut stdio: Stdio, ends: Ends) {
    let (mut from, mut to) = tokio::io::split(stream);
    let up = async {
        while let Some(bytes) = stdio.stdin.recv().await {
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The other direction may still carry data.
        let _ = to.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count) = from.read(&mut buffer).await {
            if count == 0 || stdio.stdout.send(Bytes::copy_from_slice(&buffer[..count])).await.is_err() {
                return;
            }
        }
    };
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    let is_up_over = tokio::select! {
        () = &mut up => true,
        () = &mut down => false,
    };
    match ends {
        Ends::AtOnce if is_up_over => down.await,
        Ends::AtOnce => {}
        Ends::After { wait, .. } if is_up_over => {
            report(&stdio.stderr, ends, "socket 1 (fd 0) is at EOF").await;
            if timeout(wait, down).await.is_ok() {
                report(&stdio.stderr, ends, "socket 2 (fd 5) is at EOF").await;
            }
        }
        Ends::After { wait, .. } => {
            report(&stdio.stderr, ends, "socket 2 (fd 5) is at EOF").await;
            // socat notices only the end of its input, not that the connection accepts no more bytes.
            let _ = timeout(wait, up).await;
        }
    }
}

/// Says what socat says with `-d -d`.
async fn report(to: &mpsc::Sender<Bytes>, ends: Ends, notice: &str) {
    if matches!(ends, Ends::After { reports: true, .. }) {
        say(to, format!("2024/01/01 00:00:00 socat[7] N {notice}\n")).await;
    }
}

/// Returns the words of a command; for `sh -c`, those of the script.
fn words(command: &[String]) -> Vec<String> {
    match command {
        [shell, flag, script] if matches!(shell.as_str(), "sh" | "/bin/sh" | "bash") && flag == "-c" => {
            let words = script.split_whitespace().map(|word| word.trim_matches(['\'', '"']).to_owned());
            words.skip_while(|word| word == "exec").collect()
        }
        words => words.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a command, and returns exit code, standard output and standard error.
    async fn run_words(words: &[&str], input: &'static str) -> (u8, String, String) {
        let node = Node::for_tests();
        let sandbox = node.sandbox("shop", "tools-0").unwrap();
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let (stdin_tx, stdin) = mpsc::channel(1);
        let (stdout, mut stdout_rx) = mpsc::channel(16);
        let (stderr, mut stderr_rx) = mpsc::channel(16);
        stdin_tx.send(input.into()).await.unwrap();
        drop(stdin_tx);
        let code = run(&node, &sandbox, &words, Stdio { stdin, stdout, stderr }).await;
        let mut texts = [String::new(), String::new()];
        for (text, from) in texts.iter_mut().zip([&mut stdout_rx, &mut stderr_rx]) {
            while let Some(bytes) = from.recv().await {
                text.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        let [stdout, stderr] = texts;
        (code, stdout, stderr)
    }

    #[tokio::test]
    async fn words_do_what_they_say() {
        assert_eq!(run_words(&["echo", "a", "b"], "").await.1, "a b\n");
        assert_eq!(run_words(&["sh", "-c", "exit 3"], "").await.0, 3);
        assert_eq!(run_words(&["cat"], "input").await.1, "input");
        assert_eq!(run_words(&["sh", "-c", "exec cat"], "input").await.1, "input");
        assert_eq!(run_words(&["rm", "-rf", "/"], "").await.0, 127);
        assert_eq!(run_words(&["which", "socat"], "").await.1, "/bin/socat\n");
    }

    #[tokio::test]
    async fn nc_and_socat_connect_as_a_program_in_a_pod_does() {
        for command in [&["nc", "localhost", "7000"][..], &["socat", "-", "TCP:tools.shop:7000"]] {
            assert_eq!(run_words(command, "input").await, (0, "input".to_owned(), String::new()), "{command:?}");
        }
        let (code, _, error) = run_words(&["socat", "-", "TCP:nowhere:1"], "").await;
        assert!(code == 1 && error.contains("nowhere: Name or service not known"), "{error}");
        let (code, _, error) = run_words(&["nc", "localhost", "1"], "").await;
        assert!(code == 1 && error.contains("Connection refused"), "{error}");
    }
}
