//! Copying a text: by the terminal itself (OSC 52), else by the program that the desktop has for it.

use std::{
    io::{self, Write, stdout},
    process::{Command, Stdio},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use tokio::task::spawn_blocking;

const PROGRAMS: [&[&str]; 3] = [&["wl-copy"], &["xclip", "-selection", "clipboard"], &["pbcopy"]];

/// Copies a text. Not every terminal takes it, and none says so: the programs get it as well.
pub async fn copy(text: String) -> io::Result<()> {
    write!(stdout(), "\x1b]52;c;{}\x07", BASE64_STANDARD.encode(&text))?;
    stdout().flush()?;
    // One that waits for a display that does not answer blocks a thread, and not the screen.
    let _ = spawn_blocking(move || PROGRAMS.iter().any(|program| gives(program, &text))).await;
    Ok(())
}

fn gives(program: &[&str], text: &str) -> bool {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    let is_written = child.stdin.take().is_some_and(|mut stdin| stdin.write_all(text.as_bytes()).is_ok());
    // xclip stays to serve what was copied: it puts itself into the background.
    is_written && child.wait().is_ok_and(|status| status.success())
}
