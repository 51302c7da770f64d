//! `adit schema`: prints the schema of the configuration file or of the API's answers.

use clap::ValueEnum;

use super::report::{CliError, print};
use crate::{
    admin::api,
    config::{reference, schema},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  adit schema > adit.schema.json\n  adit schema -o markdown\n  adit schema --api")]
pub struct Args {
    /// Print the schema of the API answers instead
    #[arg(long, conflicts_with = "output")]
    api: bool,
    /// Output format: JSON Schema, or a page with every key
    #[arg(short, long, value_enum, default_value = "json")]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Json,
    Markdown,
}

pub fn run(args: Args) -> Result<(), CliError> {
    if args.api {
        return print(&format!("{:#}\n", api::schema::schema()));
    }
    match args.output {
        Form::Json => print(&text()),
        Form::Markdown => print(&reference::markdown()),
    }
}

/// Returns the schema as text.
pub fn text() -> String {
    format!("{:#}\n", schema::schema())
}
