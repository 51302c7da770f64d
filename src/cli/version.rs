//! `adit version`: prints the version.

use super::report::{CliError, print};

#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_: Args) -> Result<(), CliError> {
    print(concat!("adit ", env!("CARGO_PKG_VERSION"), "\n"))
}
