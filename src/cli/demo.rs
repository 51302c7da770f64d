//! `adit demo`.

use std::process::ExitCode;

use super::{Globals, report::CliError};

#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_: &Globals, _: Args) -> Result<ExitCode, CliError> {
    todo!()
}
