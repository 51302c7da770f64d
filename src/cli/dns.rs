//! `adit dns`: names below localhost for programs that do not resolve them by themselves.

use std::{path::Path, process::ExitCode};

use clap::Subcommand;

use super::report::{CliError, print};
use crate::dns::{State, System};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Browsers and curl need none of this: they resolve names below localhost by themselves.\n\nExamples:\n  adit dns status\n  sudo adit dns install"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Have the system resolve names below localhost (needs root)
    Install,
    /// Restore /etc/nsswitch.conf as it was (needs root)
    Uninstall,
    /// Show whether the system resolves names below localhost
    Status,
}

pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    if cfg!(not(target_os = "linux")) {
        let hint = "write the names that programs need into /etc/hosts: 127.0.0.1 web.shop.localhost";
        return Err(CliError::new("adit dns knows Linux alone").hint(Some(hint)));
    }
    let system = System::new(Path::new("/"));
    let file = system.file().display().to_string();
    let (state, is_wanted, again) = match args.command {
        Command::Install => (system.install(), true, "sudo adit dns install"),
        Command::Uninstall => (system.uninstall(), false, "sudo adit dns uninstall"),
        Command::Status => (system.look(), true, ""),
    };
    let is_status = matches!(args.command, Command::Status);
    match state {
        State::Asks(service) => {
            let by = format!("names below localhost are resolved by {service} ({file})\n");
            print(&if is_wanted { by } else { format!("not changed: {by}") })?;
            Ok(ExitCode::SUCCESS)
        }
        State::Lacks if is_status => {
            print(&format!("names below localhost are not resolved ({file}): sudo adit dns install\n"))?;
            Ok(ExitCode::FAILURE)
        }
        State::Lacks => {
            print(&format!("{file} is as it was\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        State::NeedsRoot => Err(CliError::new(format!("{file} cannot be changed without root")).hint(Some(again))),
        State::NeedsPackage(what) => Err(CliError::new(what)),
        State::Failed(why) => Err(CliError::new(why)),
    }
}
