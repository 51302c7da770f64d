//! `adit top` in a real terminal: tmux. Skipped without tmux.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use crate::{process::Process, support::eventually};

/// A tmux server with a shell.
struct Tmux {
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Tmux {
    /// `None`: tmux is not installed, so the test is skipped.
    fn start(width: u16, height: u16) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let tmux = Self { socket: folder.path().join("tmux"), _folder: folder };
        let (width, height) = (width.to_string(), height.to_string());
        let started =
            tmux.try_run(&["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height, "env PS1='$ ' sh"]);
        match started {
            Ok(output) => {
                assert!(output.status.success(), "{output:?}");
                Some(tmux)
            }
            // CI installs tmux.
            Err(_) => None,
        }
    }

    fn try_run(&self, arguments: &[&str]) -> std::io::Result<Output> {
        Command::new("tmux").arg("-S").arg(&self.socket).args(arguments).output()
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.try_run(arguments).unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn keys(&self, keys: &[&str]) {
        self.run(&[&["send-keys"], keys].concat());
    }

    fn line(&self, line: &str) {
        self.keys(&["-l", line]);
        self.keys(&["Enter"]);
    }

    fn screen(&self) -> String {
        self.run(&["capture-pane", "-p"])
    }

    async fn shows(&self, text: &str) {
        eventually(text, || async { self.screen().contains(text) }).await;
    }

    /// Returns the output of `stty -a` in the shell.
    async fn settings(&self, mark: &str) -> String {
        self.line(&format!("clear; stty -a; echo {mark}-"));
        self.shows(&format!("\n{mark}-")).await;
        self.screen().lines().filter(|line| line.contains(';') || line.starts_with(['-', 'i', 'o', 'p'])).collect()
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        // The server ends with its only session.
        let _ = self.try_run(&["kill-server"]);
    }
}

#[tokio::test]
async fn the_terminal_shows_what_runs_and_is_left_as_it_was() {
    let Some(tmux) = Tmux::start(80, 24) else { return };
    let process = Process::start("", &[]).await;
    assert!(process.serves("web.shop.localhost").await && !process.serves("nothing.shop.localhost").await);
    let before = tmux.settings("first").await;
    let folder = process.socket().parent().unwrap().parent().unwrap().display().to_string();
    let program = env!("CARGO_BIN_EXE_adit");
    let start = format!("clear; XDG_RUNTIME_DIR={folder} HOME={folder} LC_ALL=C NO_COLOR=1 {program} top");
    tmux.line(&start);
    tmux.shows("demo/shop/web").await;
    let screen = tmux.screen();
    let lines: Vec<&str> = screen.lines().collect();
    assert!(lines[0].starts_with("adit ") && lines[0].contains("demo"), "{screen}");
    assert!(lines[2].contains("demo/shop/nothing cannot be reached"), "{screen}");
    assert!(lines[4].starts_with("TUNNEL") && lines[4].contains("REQS"), "{screen}");

    tmux.keys(&["Tab"]);
    tmux.shows("/whoami").await;
    tmux.keys(&["-l", "/nothing"]);
    eventually("it is filtered", || async { !tmux.screen().contains("web.shop") }).await;
    tmux.keys(&["Escape"]);
    tmux.shows("web.shop").await;
    tmux.keys(&["G"]);
    tmux.keys(&["Enter"]);
    tmux.shows("curl http://").await;
    tmux.keys(&["Escape"]);
    tmux.shows("METHOD").await;
    tmux.keys(&["c"]);
    tmux.shows("copied the URL: http://web.shop.localhost/whoami").await;

    // More requests at once than events have.
    process.burst(900, "/burst").await;
    tmux.keys(&["-l", "//burst0"]);
    eventually("the oldest is there", || async {
        tmux.screen().lines().any(|line| line.contains("GET") && line.contains("/burst0"))
    })
    .await;
    tmux.keys(&["Escape"]);

    // Resize while the content changes.
    tmux.run(&["resize-window", "-x", "200", "-y", "50"]);
    assert!(process.serves("web.shop.localhost").await);
    tmux.shows("NOTE").await;
    tmux.run(&["resize-window", "-x", "40", "-y", "12"]);
    eventually("it is narrow", || async { !tmux.screen().contains("NOTE") }).await;
    tmux.run(&["resize-window", "-x", "80", "-y", "24"]);

    // Ctrl-Z, then `fg`.
    tmux.keys(&["C-z"]);
    eventually("it is stopped", || async { tmux.screen().to_lowercase().contains("stopped") }).await;
    tmux.line("fg");
    tmux.shows("METHOD").await;
    // An unanswered cursor query would end it after 2 s.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(tops(&folder).len() == 1 && tmux.screen().contains("METHOD"), "{}", tmux.screen());

    tmux.keys(&["q"]);
    eventually("it has quit", || async { !tmux.screen().contains("METHOD") }).await;
    assert_eq!(tmux.settings("second").await, before);

    for (round, signal) in ["TERM", "INT", "HUP", "QUIT"].into_iter().enumerate() {
        tmux.line(&start);
        tmux.shows("demo/shop/web").await;
        let ids = tops(&folder);
        assert_eq!(ids.len(), 1);
        signals(&ids[0], signal);
        eventually("it has ended", || async { !tmux.screen().contains("TUNNEL") }).await;
        tmux.line("echo code-$?-");
        let code = if signal == "HUP" {
            129
        } else if signal == "QUIT" {
            131
        } else {
            130
        };
        tmux.shows(&format!("code-{code}-")).await;
        assert_eq!(tmux.settings(&format!("round{round}")).await, before, "{signal}");
    }

    // An adit that hangs delays no key and no signal.
    for last in ["q", "TERM"] {
        tmux.line(&start);
        tmux.shows("demo/shop/web").await;
        process.signal("STOP").await;
        tmux.shows("NOT CONNECTED").await;
        tmux.keys(&["Enter"]);
        tmux.keys(&["?"]);
        tmux.shows("q, Ctrl-C").await;
        // Escape together with the next key would be read as Alt and that key.
        tmux.keys(&["Escape"]);
        eventually("the help is closed", || async { !tmux.screen().contains("q, Ctrl-C") }).await;
        match last {
            "q" => tmux.keys(&["q"]),
            signal => signals(&tops(&folder)[0], signal),
        }
        eventually("it has ended", || async { !tmux.screen().contains("TUNNEL") && tops(&folder).is_empty() }).await;
        process.signal("CONT").await;
        assert_eq!(tmux.settings(last).await, before, "{last}");
    }

    // The terminal closes.
    tmux.line(&start);
    tmux.shows("demo/shop/web").await;
    tmux.run(&["kill-session"]);
    eventually("none is left", || async { tops(&folder).is_empty() }).await;
}

/// Returns the ids of `adit top` processes with this home folder.
fn tops(folder: &str) -> Vec<String> {
    let program = env!("CARGO_BIN_EXE_adit");
    let found = Command::new("pgrep").args(["-f", &format!("^{program} top$")]).output().unwrap();
    let is_ours = |id: &&str| {
        std::fs::read_to_string(format!("/proc/{id}/environ")).is_ok_and(|environment| environment.contains(folder))
    };
    String::from_utf8_lossy(&found.stdout).lines().filter(is_ours).map(str::to_owned).collect()
}

fn signals(id: &str, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), id]).status().unwrap().success());
}

#[tokio::test]
async fn without_a_terminal_it_prints_the_status() {
    let process = Process::start("", &[]).await;
    assert!(process.serves("web.shop.localhost").await);
    let (is_ok, said, error) = process.command(&["top"]).await;
    assert!(is_ok && said.contains("demo/shop/web"), "{said}{error}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_terminal_that_nobody_reads_does_not_hold_up_a_signal() {
    use std::{fs::File, io::Write, os::fd::OwnedFd, process::Stdio};

    use rustix::{
        pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
        termios::{Winsize, tcsetwinsize},
    };

    let process = Process::start("", &[]).await;
    assert!(process.serves("web.shop.localhost").await);
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let path = ptsname(&controller, Vec::new()).unwrap().into_string().unwrap();
    let terminal = || Stdio::from(OwnedFd::from(File::options().read(true).write(true).open(&path).unwrap()));
    let size = Winsize { ws_row: 200, ws_col: 500, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&controller, size).unwrap();
    let mut top = Command::new(env!("CARGO_BIN_EXE_adit"));
    top.env("HOME", process.home()).env("XDG_RUNTIME_DIR", process.home()).env("TERM", "xterm").arg("top");
    let top = top.stdin(terminal()).stdout(terminal()).stderr(Stdio::null()).spawn().unwrap();
    let keys = File::from(controller);
    let waits = format!("/proc/{}/wchan", top.id());
    let presses = std::cell::Cell::new(0);
    eventually("it is blocked", || async {
        // The help comes and goes, until the terminal has no room.
        presses.set(presses.get() + 1);
        (&keys).write_all(if presses.get() % 2 == 0 { b"\x1b" } else { b"?" }).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        std::fs::read_to_string(&waits).is_ok_and(|wait| wait.contains("woken") || wait.contains("tty"))
    })
    .await;
    signals(&top.id().to_string(), "TERM");
    let has_ended = std::cell::RefCell::new(top);
    eventually("it has ended", || async { has_ended.borrow_mut().try_wait().unwrap().is_some() }).await;
}
