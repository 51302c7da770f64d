//! `adit completion`: completion scripts for shells.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{
    Cli,
    report::{CliError, print},
    scope,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  source <(adit completion bash)")]
pub struct Args {
    /// Shell to print the script for
    shell: Shell,
}

pub fn run(args: Args) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut scope::apply(Cli::command()), "adit", &mut script);
    print(&String::from_utf8_lossy(&script))
}
