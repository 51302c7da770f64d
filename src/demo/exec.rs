//! What `kubectl exec` can run in the demo's pods: a few words, so that it can be tried.

/// What a command did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

/// Returns whether a command waits for its standard input.
pub fn reads_stdin(command: &[String]) -> bool {
    words(command).first().is_some_and(|word| word == "cat")
}

/// Runs a command.
pub fn run(command: &[String], stdin: &[u8], pod: &str) -> Outcome {
    let words = words(command);
    let arguments = words.get(1..).unwrap_or_default().join(" ");
    let ok = |stdout: String| Outcome { stdout, ..Outcome::default() };
    match words.first().map(String::as_str) {
        Some("echo") => ok(format!("{arguments}\n")),
        Some("hostname") => ok(format!("{pod}\n")),
        Some("env") => ok(format!("HOSTNAME={pod}\nPATH=/bin\n")),
        Some("cat") => ok(String::from_utf8_lossy(stdin).into_owned()),
        Some("true") => ok(String::new()),
        Some("exit") | Some("false") => Outcome { code: arguments.parse().unwrap_or(1), ..Outcome::default() },
        other => {
            let stderr = format!(
                "{}: not found; the demo knows echo, hostname, env, cat, true, false, exit\n",
                other.unwrap_or("sh")
            );
            Outcome { stderr, code: 127, ..Outcome::default() }
        }
    }
}

/// Returns the words of a command, those of `sh -c` taken apart.
fn words(command: &[String]) -> Vec<String> {
    match command {
        [shell, flag, script] if matches!(shell.as_str(), "sh" | "/bin/sh" | "bash") && flag == "-c" => {
            script.split_whitespace().map(str::to_owned).collect()
        }
        words => words.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_words(words: &[&str]) -> Outcome {
        run(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>(), b"input", "web-0")
    }

    #[test]
    fn words_do_what_they_say() {
        assert_eq!(run_words(&["echo", "a", "b"]).stdout, "a b\n");
        assert_eq!(run_words(&["sh", "-c", "exit 3"]).code, 3);
        assert_eq!(run_words(&["cat"]).stdout, "input");
        assert_eq!(run_words(&["rm", "-rf", "/"]).code, 127);
    }
}
