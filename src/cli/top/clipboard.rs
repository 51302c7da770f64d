//! Copies text: with the terminal's own sequence (OSC 52), and with a program of the desktop.

use std::{
    io::{self, Write, stdout},
    process::{Command, Stdio},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use tokio::task::spawn_blocking;

use crate::subprocess;

const PROGRAMS: [&[&str]; 3] = [&["wl-copy"], &["xclip", "-selection", "clipboard"], &["pbcopy"]];

/// Time limit of a program; one that waits for a dead display is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Copies a text. Some terminals ignore the sequence without an error, so a program gets the text too.
///
/// # Errors
/// The terminal cannot be written.
pub async fn copy(text: String) -> io::Result<()> {
    write!(stdout(), "\x1b]52;c;{}\x07", BASE64_STANDARD.encode(&text))?;
    stdout().flush()?;
    // Programs block, so they run in another thread than the screen.
    let _ = spawn_blocking(move || PROGRAMS.iter().any(|program| gives(program, &text))).await;
    Ok(())
}

fn gives(program: &[&str], text: &str) -> bool {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    let is_written = child.stdin.take().is_some_and(|mut stdin| stdin.write_all(text.as_bytes()).is_ok());
    // xclip stays in the background to serve the text, but its first process ends.
    let ended = subprocess::wait(&mut child, PATIENCE).ok().flatten();
    if ended.is_none() {
        // It may have ended just now.
        let _ = child.kill();
        let _ = child.wait();
    }
    is_written && ended.is_some_and(|status| status.success())
}
