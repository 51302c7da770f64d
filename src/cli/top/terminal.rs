//! The terminal while `adit top` uses it. It is restored in any case.

use std::{
    io::{self, Stdout, stdout},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::Show,
        execute,
        terminal::{Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};
use rustix::process::{Signal, getpid, kill_process};

/// The terminal in raw mode and on the alternate screen, until dropped.
pub struct Screen {
    pub terminal: Terminal<CrosstermBackend<Stdout>>,
    held: Arc<Held>,
}

/// Whether adit has changed the terminal. A panic in any thread restores it.
#[derive(Default)]
struct Held(AtomicBool);

impl Held {
    fn enter(&self) -> io::Result<()> {
        // Set the flag first: if the second step fails, the first one is undone.
        self.0.store(true, Ordering::SeqCst);
        enable_raw_mode()?;
        execute!(stdout(), EnterAlternateScreen)
    }

    /// Restores the terminal, once.
    fn leave(&self) {
        if self.0.swap(false, Ordering::SeqCst) {
            // An error means that the terminal is gone.
            let _ = disable_raw_mode();
            let _ = execute!(stdout(), LeaveAlternateScreen, Show);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Restores the modes of a terminal that accepts no more output.
pub fn leave_unread() {
    // The process ends, and cannot report an error any more.
    let _ = disable_raw_mode();
}

impl Screen {
    /// # Errors
    /// Standard output is not a terminal.
    pub fn open() -> io::Result<Self> {
        let held = Arc::new(Held::default());
        // Leave the alternate screen before the panic message, so that the message stays visible.
        let (before, of_panic) = (std::panic::take_hook(), Arc::downgrade(&held));
        std::panic::set_hook(Box::new(move |panic| {
            if let Some(held) = of_panic.upgrade() {
                held.leave();
            }
            before(panic);
        }));
        held.enter()?;
        Ok(Self { terminal: Terminal::new(CrosstermBackend::new(stdout()))?, held })
    }

    /// Returns whether the terminal is still in use. A panic of another thread restores it.
    pub fn is_held(&self) -> bool {
        self.held.0.load(Ordering::SeqCst)
    }

    /// Restores the terminal, stops this process as Ctrl-Z does, and takes the terminal again when continued.
    ///
    /// # Errors
    /// The terminal cannot be set up again.
    pub fn suspend(&mut self) -> io::Result<()> {
        self.held.leave();
        kill_process(getpid(), Signal::TSTP)?;
        self.held.enter()?;
        // `Terminal::clear` queries the cursor, but the key thread would read the answer. A new `Terminal` assumes an empty
        // screen, and the alternate screen is cleared here.
        execute!(stdout(), Clear(ClearType::All))?;
        self.terminal = Terminal::new(CrosstermBackend::new(stdout()))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::PathBuf,
        process::{Command, Output},
        thread::{sleep, spawn},
        time::{Duration, Instant},
    };

    use super::*;

    /// Run in a terminal by the test below.
    #[test]
    #[ignore = "needs a terminal: a_panic_of_any_thread_restores_the_terminal runs it"]
    fn panics_in_this_thread() {
        let screen = Screen::open().unwrap();
        assert!(!screen.is_held(), "why it panics");
    }

    /// Run in a terminal by the test below.
    #[test]
    #[ignore = "needs a terminal: a_panic_of_any_thread_restores_the_terminal runs it"]
    fn panics_in_another_thread() {
        let screen = Screen::open().unwrap();
        assert!(spawn(|| panic!("why it panics")).join().is_err());
        assert!(!screen.is_held());
        // Keep the screen open, as when its own thread waits for something.
        sleep(Duration::from_secs(3600));
    }

    /// A tmux server with a shell.
    struct Tmux(PathBuf);

    impl Tmux {
        fn run(&self, arguments: &[&str]) -> io::Result<Output> {
            Command::new("tmux").arg("-S").arg(&self.0).args(arguments).output()
        }

        fn said(&self, arguments: &[&str]) -> String {
            let output = self.run(arguments).unwrap();
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        }

        fn shows(&self, text: &str) {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !self.said(&["capture-pane", "-p"]).contains(text) {
                assert!(Instant::now() < deadline, "no {text}: {}", self.said(&["capture-pane", "-p"]));
                sleep(Duration::from_millis(50));
            }
        }

        fn settings(&self) -> String {
            let terminal = self.said(&["display-message", "-p", "#{pane_tty}"]);
            let settings = Command::new("stty").args(["-a", "-F", terminal.trim()]).output().unwrap();
            assert!(settings.status.success(), "{settings:?}");
            String::from_utf8_lossy(&settings.stdout).into_owned()
        }
    }

    impl Drop for Tmux {
        fn drop(&mut self) {
            // The server ends with its only session anyway.
            let _ = self.run(&["kill-server"]);
        }
    }

    #[test]
    fn a_panic_of_any_thread_restores_the_terminal() {
        let folder = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap().display().to_string();
        for test in ["panics_in_this_thread", "panics_in_another_thread"] {
            let tmux = Tmux(folder.path().join(test));
            let shell = ["-f", "/dev/null", "new-session", "-d", "-x", "200", "-y", "50", "env PS1='$ ' sh"];
            // Skip the test without tmux; CI installs it.
            let Ok(started) = tmux.run(&shell) else { return };
            assert!(started.status.success(), "{started:?}");
            tmux.shows("$");
            let before = tmux.settings();
            let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
            tmux.said(&[
                "send-keys",
                "-l",
                &format!("RUST_BACKTRACE=0 '{program}' --ignored --exact {name} --nocapture"),
            ]);
            tmux.said(&["send-keys", "Enter"]);
            tmux.shows("\nwhy it panics");
            let state = tmux.said(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]);
            assert_eq!((tmux.settings(), state.trim()), (before, "0 1"), "{test}");
        }
    }
}
