//! `adit run` on a terminal: Ctrl-C, Ctrl-Z, and messages while it waits.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::{Home, Said, send};
use crate::support::PATIENCE;

/// An interactive shell on its own terminal.
struct Terminal {
    keys: File,
    screen: Arc<Mutex<String>>,
    shell: Child,
}

impl Terminal {
    async fn start(home: &Home) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let path = ptsname(&controller, Vec::new()).unwrap().into_string().unwrap();
        let terminal = || Stdio::from(OwnedFd::from(File::options().read(true).write(true).open(&path).unwrap()));
        let mut shell = Command::new("setsid");
        shell.args(["--ctty", "--wait", "bash", "--norc", "--noprofile", "--noediting", "-i"]);
        shell.env("HOME", home.folder.path()).env("XDG_RUNTIME_DIR", home.folder.path()).env("TERM", "dumb");
        shell.env("KUBECONFIG", home.demo.kubeconfig()).env("ADIT", env!("CARGO_BIN_EXE_adit")).env("PS1", "$ ");
        for variable in ["ADIT_CONFIG", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "RUST_LOG", "KUBERNETES_SERVICE_HOST"] {
            shell.env_remove(variable);
        }
        let shell = shell.stdin(terminal()).stdout(terminal()).stderr(terminal()).spawn().unwrap();
        let (keys, screen) = (File::from(controller), Arc::new(Mutex::new(String::new())));
        let (mut reading, shown) = (keys.try_clone().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = reading.read(&mut buffer) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        let mut terminal = Self { keys, screen, shell };
        // Without echo, so that input is not mistaken for output.
        terminal.types("stty -echo; echo rea''dy\n");
        terminal.shows("ready").await;
        terminal
    }

    fn types(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the screen shows a text, and removes everything up to it.
    async fn shows(&self, text: &str) {
        let found = || async {
            let mut screen = self.screen.lock().unwrap();
            let end = screen.find(text).map(|at| at + text.len());
            end.map(|end| drop(screen.drain(..end))).is_some()
        };
        let all = self.screen.clone();
        let in_time = tokio::time::timeout(PATIENCE, async {
            while !found().await {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        assert!(in_time.await.is_ok(), "no {text:?} on the terminal: {:?}", all.lock().unwrap());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// A command that prints each signal.
const SCRIPT: &str = "n=0; trap 'n=$((n+1)); echo int$n' INT; trap 'echo cont' CONT; echo start; \
    for i in $(seq 200); do sleep 0.05; [ $n = 2 ] && break; done; sleep 0.3; echo \"end $n\"; exit 9";

#[tokio::test]
async fn ctrl_c_is_the_commands_and_reaches_it_once() {
    let home = Home::new().await;
    let mut terminal = Terminal::start(&home).await;
    terminal.types(&format!("$ADIT run -- bash -c '{}'\n", SCRIPT.replace('\'', "'\\''")));
    terminal.shows("start").await;
    terminal.types("\x03");
    terminal.shows("int1").await;
    terminal.types("\x03");
    terminal.shows("int2").await;
    terminal.shows("end 2").await;
    terminal.types("echo code $?\n");
    terminal.shows("code 9").await;
}

#[tokio::test]
async fn ctrl_z_stops_both_and_fg_continues_both() {
    let home = Home::new().await;
    let mut terminal = Terminal::start(&home).await;
    for _ in 0..3 {
        terminal.types("$ADIT run --to web=web.shop -- bash -c 'echo up; read x; curl -s $WEB_URL/whoami; exit 7'\n");
        terminal.shows("up").await;
        terminal.types("\x1a");
        terminal.shows("Stopped").await;
        terminal.types("fg; echo code $?\n");
        terminal.shows("run").await;
        terminal.types("\n");
        terminal.shows("web-6d5f-").await;
        terminal.shows("code 7").await;
    }
}

#[tokio::test]
async fn a_command_that_stops_itself_stops_adit_with_it() {
    let home = Home::new().await;
    let mut terminal = Terminal::start(&home).await;
    terminal.types("$ADIT run -- bash -c 'kill -STOP $$; echo went on; exit 5'\n");
    terminal.shows("Stopped").await;
    terminal.types("fg\n");
    terminal.shows("went on").await;
    terminal.types("echo code $?\n");
    terminal.shows("code 5").await;
}

#[tokio::test]
async fn a_long_wait_says_for_what() {
    let home = Home::new().await;
    let mut terminal = Terminal::start(&home).await;
    terminal.types("$ADIT run --to db=broken.shop --wait 3s -- true\n");
    terminal.shows("waiting for broken.shop: 0 of 1 pods ready (broken-7c4: CrashLoopBackOff)").await;
    terminal.shows("no ready pod behind service shop/broken").await;
    terminal.types("$ADIT run -q --to db=broken.shop --wait 1s -- true; echo code $?\n");
    terminal.shows("code 125").await;
}

#[tokio::test]
async fn a_resized_terminal_does_not_end_the_wait() {
    let home = Home::new().await;
    let adit = home.adit(&["run", "--to", "db=broken.shop", "--wait", "3s", "--", "true"]).spawn().unwrap();
    let pid = adit.id().unwrap();
    // The signals come while it waits for its target.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for signal in ["WINCH", "CONT", "WINCH"] {
        send(signal, pid).await;
    }
    let said = Said::of(tokio::time::timeout(PATIENCE, adit.wait_with_output()).await.expect("it ends").unwrap());
    assert!(said.code == Some(125) && said.err.contains("no ready pod"), "{said:?}");
}
