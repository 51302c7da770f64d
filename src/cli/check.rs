//! `adit check`: is the configuration file right?

use super::{
    Globals,
    report::{CliError, print},
};
use crate::config::validate;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file [default: the one that 'adit' would read]
    file: Option<std::path::PathBuf>,
}

pub fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let path = args.file.or(globals.config_path().0);
    let path = path.ok_or_else(|| {
        CliError::usage("there is no home folder to look for a configuration in").hint(Some("adit check FILE"))
    })?;
    let config = validate::load(&path)?;
    let text = format!(
        "{} is valid: {} HTTP routes, {} TCP routes\n",
        path.display(),
        config.http.routes.len(),
        config.tcp.routes.len()
    );
    print(&text)
}
