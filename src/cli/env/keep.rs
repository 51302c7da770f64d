//! `adit env --write FILE`: a process in the background keeps the file in step, and ends with adit.

use std::{
    fs, io,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
};

use super::{arguments, form::Form};
use crate::{
    cli::{report::CliError, run::child::own_program, running::Running},
    config::validate,
};

/// First line of a file whose adit has ended.
const STALE: &str = "stale: the adit of these variables has ended; start it, and write them again";

/// Writes a file that only its user reads, whole or not at all.
pub fn write(file: &Path, text: &str) -> io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let beside = file.with_file_name(name);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&beside).and_then(|mut open| io::Write::write_all(&mut open, text.as_bytes()));
    written.and_then(|()| fs::rename(&beside, file)).inspect_err(|_| _ = fs::remove_file(&beside))
}

/// Starts the process that keeps the file: this one again, with `--keep`, without a terminal.
pub fn start_keeper(file: &Path) -> Result<(), CliError> {
    let mut keeper = Command::new(own_program()?);
    keeper.args(arguments()).arg("--keep").process_group(0);
    keeper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match keeper.spawn() {
        Ok(_) => Ok(()),
        Err(error) => Err(CliError::new(format!("{} is not kept in step", file.display())).cause(Some(error))),
    }
}

/// Writes the file again when adit has another configuration, and marks it stale when adit has ended. Somebody else's file
/// is left alone.
pub async fn keep(
    running: &Running,
    file: &Path,
    form: Form,
    mut text: impl AsyncFnMut(&crate::routing::Router) -> Result<String, CliError>,
) -> Result<(), CliError> {
    let mut written = fs::read_to_string(file)?;
    let mut events = crate::admin::socket::events(&running.socket).await?;
    while let Some(status) = events.next_status().await {
        if fs::read_to_string(file).ok().as_deref() != Some(written.as_str()) {
            return Ok(());
        }
        let Some(config) = status.config.as_deref().and_then(|config| validate::load(config).ok()) else { continue };
        let (_, router) = crate::cli::router(config);
        // A target that cannot be had now may be there later: the file stays as it was.
        let Ok(text) = text(&router).await else { continue };
        if text != written {
            write(file, &text)?;
            written = text;
        }
    }
    if fs::read_to_string(file).ok().as_deref() == Some(written.as_str()) {
        write(file, &form.mark(&written, STALE))?;
    }
    Ok(())
}
