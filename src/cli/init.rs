//! `adit init`: a commented configuration file.

use std::{fs, io::Write, path::PathBuf};

use super::{
    Globals,
    report::{CliError, print},
    schema,
};

/// The file that is written; every key is in it, most of them as comments.
pub const TEMPLATE: &str = include_str!("../../examples/template.yaml");

const SCHEMA: &str = "adit.schema.json";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Replace a file that exists
    #[arg(long)]
    force: bool,
}

pub fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let path = globals
        .config_path()
        .0
        .ok_or_else(|| CliError::usage("there is no home folder to write to").hint(Some("adit init --config FILE")))?;
    let folder = path.parent().map(PathBuf::from).unwrap_or_default();
    let failed = |error: std::io::Error| CliError::new(format!("cannot write {}: {error}", path.display()));
    fs::create_dir_all(&folder).map_err(failed)?;
    let mut options = fs::OpenOptions::new();
    options.write(true);
    if args.force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let mut file = match options.open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(
                CliError::new(format!("{} exists", path.display())).hint(Some("'adit init --force' replaces it"))
            );
        }
        Err(error) => return Err(failed(error)),
    };
    file.write_all(TEMPLATE.as_bytes()).map_err(failed)?;
    // Editors find the schema beside the file, without the network.
    fs::write(folder.join(SCHEMA), schema::text()).map_err(failed)?;
    print(&format!("wrote {}\n", path.display()))
}
