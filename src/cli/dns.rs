//! `adit dns`: the names that adit serves, for programs that do not resolve them by themselves.

use std::{path::Path, process::ExitCode};

use clap::Subcommand;

use super::{
    Globals,
    doctor::report::quoted,
    report::{CliError, print},
    trust,
};
use crate::{
    config::Config,
    dns::{Act, Kind, Part, RESTART, State, System},
};

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Have the system resolve the names that adit serves: those below localhost, and those of routes. Browsers and curl resolve \
        names below localhost by themselves; other programs ask the system.\n\n\
        On Linux, 'myhostname' in /etc/nsswitch.conf answers for names below localhost where systemd-resolved does not, and a drop-in of \
        systemd-resolved leads other names to adit. On macOS, files in /etc/resolver do both.",
    after_help = "Examples:\n  adit dns status\n  sudo adit dns install\n  sudo adit --config ~/.config/adit/config.yaml dns install"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Have the system resolve the names (needs root)
    Install,
    /// Restore the system as it was (needs root)
    Uninstall,
    /// Show which names the system resolves
    Status,
}

/// Returns this system, with the names of a configuration.
pub fn system(config: &Config) -> System {
    let is_other = |name: &String| name != "localhost" && !name.ends_with(".localhost");
    let names = trust::configured(config).into_iter().filter(is_other).collect();
    let port = config.http.listen.first().map_or(0, std::net::SocketAddr::port);
    System::new(Path::new("/"), Kind::here(), port, names)
}

pub fn run(globals: &Globals, args: &Args) -> Result<ExitCode, CliError> {
    let config = globals.load()?;
    let (system, by_root) = (system(&config), by_root(globals, &config));
    let act = match args.command {
        Command::Install => Act::Install,
        Command::Uninstall => Act::Uninstall,
        Command::Status => Act::Look,
    };
    let before = system.does(Act::Look);
    let parts = if act == Act::Look { before.clone() } else { system.does(act) };
    let mut is_well = true;
    let mut needs_root = None;
    for part in &parts {
        is_well &= match &part.state {
            State::Asks(_) => act != Act::Uninstall || before.contains(part),
            State::Lacks => act == Act::Uninstall,
            _ => false,
        };
        if part.state == State::NeedsRoot {
            needs_root = Some(&part.file);
        }
        print(&line(part, act, &by_root))?;
    }
    if parts != before && parts.iter().chain(&before).any(|part| part.file.ends_with("resolved.conf.d/adit.conf")) {
        restart()?;
    }
    if let Some(file) = needs_root {
        let word = if act == Act::Install { "install" } else { "uninstall" };
        let error = CliError::new(format!("{} cannot be changed without root", file.display()));
        return Err(error.hint(Some(format!("{by_root} {word}"))));
    }
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the command with the options that root does not have by itself.
fn by_root(globals: &Globals, config: &Config) -> String {
    let mut words = vec!["sudo adit".to_owned()];
    if let Some(file) = &config.source {
        words.push(format!("--config {}", quoted(&file.display().to_string())));
    }
    words.extend(globals.listen.as_ref().map(|listen| format!("--listen {}", quoted(listen))));
    words.join(" ") + " dns"
}

fn line(part: &Part, act: Act, by_root: &str) -> String {
    let Part { name, state, file } = part;
    let names =
        if name == "localhost" { "names below localhost".to_owned() } else { format!("{name} and names below it") };
    let file = file.display();
    match state {
        State::Asks(by) => format!("{names}: resolved by {by} ({file})\n"),
        State::Lacks if act == Act::Uninstall => format!("{names}: {file} is as it was\n"),
        State::Lacks => format!("{names}: not resolved ({file}): {by_root} install\n"),
        State::NeedsRoot => format!("{names}: not changed\n"),
        State::NeedsPackage(what) | State::Failed(what) => format!("{names}: not resolved: {what}\n"),
    }
}

/// systemd-resolved reads its files at its start.
fn restart() -> Result<(), CliError> {
    let mut words = RESTART.split(' ');
    let status = std::process::Command::new(words.next().unwrap_or_default()).args(words).status();
    match status {
        Ok(status) if status.success() => print(&format!("ran {RESTART}\n")),
        _ => Err(CliError::new("systemd-resolved was not restarted").hint(Some(format!("sudo {RESTART}")))),
    }
}
