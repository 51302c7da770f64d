//! `adit schema`: the JSON schema of the configuration file.

use super::report::{CliError, print};
use crate::config::schema;

#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_: Args) -> Result<(), CliError> {
    print(&text())
}

/// Returns the schema as it is printed.
pub fn text() -> String {
    format!("{:#}\n", schema::schema())
}
