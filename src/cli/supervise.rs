//! `adit supervise`: a process between adit and a command that adit has started; see [`crate::backend::command`] and
//! [`super::run::keeper`].

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use super::{report::CliError, run::keeper, run::program::NOT_EXECUTABLE};
use crate::backend::command::supervisor;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep the command of 'adit run', which listens here
    #[arg(long, value_name = "SOCKET", conflicts_with = "parent")]
    control: Option<PathBuf>,
    /// The limit of open files that the command gets
    #[arg(long, value_name = "COUNT", requires = "control")]
    open_files: Option<u64>,
    /// Become the command, which ends with this process
    #[arg(long, value_name = "PID")]
    parent: Option<i32>,
    #[arg(last = true, required = true)]
    words: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let failed =
        |error| CliError::new(format!("{:?} cannot be started", args.words[0].to_string_lossy())).cause(Some(error));
    if let Some(parent) = args.parent {
        return Err(failed(keeper::become_command(parent, &args.words)).code(NOT_EXECUTABLE));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Some(control) = &args.control {
        return runtime.block_on(keeper::run(control, args.open_files, &args.words)).map_err(failed);
    }
    runtime.block_on(supervisor::run(&args.words)).map(ExitCode::from).map_err(failed)
}
