//! `--bundle FILE`: an archive with everything that a bug report needs.

use std::{fs::File, io, os::unix::fs::OpenOptionsExt, path::Path};

use flate2::{Compression, write::GzEncoder};
use serde_json::Value;

use super::{report::Report, scope::Scope};
use crate::{
    admin::socket,
    cli::{
        report::{CliError, print},
        running::Running,
    },
};

/// Writes the archive, and prints a list of its content. `quiet`: stdout is for JSON.
///
/// # Errors
/// The archive cannot be written.
pub async fn write(file: &Path, scope: &Scope, report: &Report, quiet: bool) -> Result<(), CliError> {
    let json = |value: &Value| format!("{value:#}\n").into_bytes();
    let mut parts: Vec<(&str, &str, Vec<u8>)> = vec![
        ("report.txt", "what adit doctor has found", report.text(false, true).into_bytes()),
        ("report.json", "the same for programs", serde_json::to_vec_pretty(report).map_err(io::Error::other)?),
        ("configuration.json", "the configuration, with secrets hidden", json(&scope.router.config.shown)),
        ("versions.txt", "versions of adit and of the system", versions().into_bytes()),
    ];
    if let Some(running) = Running::find(&scope.globals, &scope.router).await {
        for (name, what, path) in [
            ("status.json", "tunnels and listeners of the running adit", "status"),
            ("log.json", "the last 1,000 lines of its log", "log"),
        ] {
            if let Ok(answer) = socket::get::<Value>(&running.socket, path).await {
                parts.push((name, what, json(&answer)));
            }
        }
    }
    let mut list = format!("{} contains:\n", file.display());
    parts.iter().for_each(|(name, what, bytes)| list += &format!("  {name:<20} {what} ({} bytes)\n", bytes.len()));
    let failed = |error: io::Error| CliError::new(format!("{} cannot be written", file.display())).cause(Some(error));
    let mut options = File::options();
    let open = options.write(true).create(true).truncate(true).mode(0o600).open(file).map_err(failed)?;
    archive(open, &parts).map_err(failed)?;
    if quiet {
        eprint_list(&list);
        return Ok(());
    }
    print(&list)
}

fn eprint_list(list: &str) {
    // An error means that nobody reads stderr.
    let _ = io::Write::write_all(&mut io::stderr(), list.as_bytes());
}

fn archive(file: File, parts: &[(&str, &str, Vec<u8>)]) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for (name, _, bytes) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, format!("adit-doctor/{name}"), bytes.as_slice())?;
    }
    archive.into_inner()?.finish()?.sync_all()
}

fn versions() -> String {
    let system = rustix::system::uname();
    format!(
        "adit {}\n{} {} {}\n",
        env!("CARGO_PKG_VERSION"),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        system.machine().to_string_lossy()
    )
}
