//! `adit supervise`: stands between adit and a command that it has started; see [`crate::backend::command`].

use std::{ffi::OsString, process::ExitCode};

use super::report::CliError;
use crate::backend::command::supervisor;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(last = true, required = true)]
    words: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(supervisor::run(&args.words)).map_err(|error| {
        CliError::new(format!("{} cannot be started", args.words[0].to_string_lossy())).cause(Some(error))
    })?;
    Ok(ExitCode::from(code))
}
