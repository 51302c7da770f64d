//! Copying a text: by the terminal itself (OSC 52), else by the program that the desktop has for it.

use std::{
    io::{self, Write, stdout},
    process::{Command, Stdio},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use tokio::task::spawn_blocking;

use crate::subprocess;

const PROGRAMS: [&[&str]; 3] = [&["wl-copy"], &["xclip", "-selection", "clipboard"], &["pbcopy"]];

/// How long a program may take: one that waits for a display that does not answer is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Copies a text. Not every terminal takes it, and none says so: the programs get it as well.
pub async fn copy(text: String) -> io::Result<()> {
    write!(stdout(), "\x1b]52;c;{}\x07", BASE64_STANDARD.encode(&text))?;
    stdout().flush()?;
    // They block a thread, and not the screen.
    let _ = spawn_blocking(move || PROGRAMS.iter().any(|program| gives(program, &text))).await;
    Ok(())
}

fn gives(program: &[&str], text: &str) -> bool {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    let is_written = child.stdin.take().is_some_and(|mut stdin| stdin.write_all(text.as_bytes()).is_ok());
    // xclip stays to serve what was copied: it puts itself into the background.
    let ended = subprocess::wait(&mut child, PATIENCE).ok().flatten();
    if ended.is_none() {
        // It may have ended by itself meanwhile.
        let _ = child.kill();
        let _ = child.wait();
    }
    is_written && ended.is_some_and(|status| status.success())
}
