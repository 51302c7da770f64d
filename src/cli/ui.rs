//! `adit ui`: opens the dashboard of the running adit in a browser, signed in.

use std::{
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    Globals,
    report::{CliError, print},
    status,
};
use crate::{
    admin::{api::ui::UiAnswer, socket},
    subprocess,
};

/// Programs that open a URL, on macOS, WSL, and Linux desktops.
const OPENERS: [&str; 3] = ["open", "wslview", "xdg-open"];

/// Time in which a program may report a failure. Without a desktop, xdg-open becomes the browser and keeps running.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  adit ui\n  adit ui --print\n\nThe link signs a browser in once, within a minute. 'dashboard: off' in the configuration removes the dashboard."
)]
pub struct Args {
    /// Print the link instead of opening it
    #[arg(long)]
    print: bool,
}

pub async fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let (path, _) = status::find_one(globals).await?;
    let UiAnswer { url, .. } = socket::ask(&path, "ui").await?;
    if args.print {
        return print(&format!("{url}\n"));
    }
    if open(&url) {
        return print("opened the dashboard in your browser; 'adit ui --print' prints a link\n");
    }
    print(&format!("no program opens a browser here; open this within a minute:\n{url}\n"))
}

/// Opens a URL in the user's browser. Returns whether a program accepted it.
pub fn open(url: &str) -> bool {
    OPENERS.iter().any(|program| opens(program, url))
}

fn opens(program: &str, url: &str) -> bool {
    // On Linux, `open` is another program.
    if program == "open" && !cfg!(target_os = "macos") {
        return false;
    }
    let mut command = Command::new(program);
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // A process group of its own: the program may be the browser, and Ctrl-C is for adit only.
    let Ok(mut child) = command.process_group(0).spawn() else { return false };
    match subprocess::wait(&mut child, PATIENCE) {
        Ok(Some(status)) => status.success(),
        Ok(None) => true,
        Err(_) => false,
    }
}
