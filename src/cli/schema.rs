//! `adit schema`: what the configuration file may have, for editors and for people.

use clap::ValueEnum;

use super::report::{CliError, print};
use crate::config::{reference, schema};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// In this form
    #[arg(short, long, value_enum, default_value = "json")]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// JSON Schema
    Json,
    /// A page with every key
    Markdown,
}

pub fn run(args: Args) -> Result<(), CliError> {
    match args.output {
        Form::Json => print(&text()),
        Form::Markdown => print(&reference::markdown()),
    }
}

/// Returns the schema as it is printed.
pub fn text() -> String {
    format!("{:#}\n", schema::schema())
}
