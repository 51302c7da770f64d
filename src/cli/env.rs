//! `adit env`: the variables of `adit run`, for a shell or a file.

mod form;
mod keep;

use std::{collections::BTreeMap, env, path::PathBuf, process::ExitCode};

use self::form::Form;
use super::{
    Globals,
    progress::Progress,
    report::{CliError, print},
    run::{fill, pairs, targets},
    running::{self, Running},
    up,
};
use crate::{
    app::{opened, reach::place_of},
    routing::Router,
    telemetry,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        eval \"$(adit env)\"                                     in .envrc of direnv, or in a shell\n  \
        adit env --to db=postgres.shop --to api=api.shop --write .env\n  \
        adit env -o github --to db=postgres.shop >> \"$GITHUB_ENV\"  for later steps\n\n\
        The variables are those of the TCP routes, and of the targets of --to, as for 'adit run'. The\n\
        running adit serves these at local ports until it exits.")]
pub struct Args {
    /// Open this target under this name, e.g. db=postgres.shop:5432
    #[arg(long, value_name = "NAME=TARGET")]
    to: Vec<String>,
    /// Set a variable; {db}, {db.host}, {db.port} and {web.url} in it stand for addresses, {{ for a brace
    #[arg(long, value_name = "NAME=TEMPLATE")]
    env: Vec<String>,
    /// Output format [default: shell; dotenv with --write]
    #[arg(short, long, value_enum, value_name = "FORM")]
    output: Option<Form>,
    /// Write this file, update it while adit runs, and mark it stale when adit exits
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Replace a file that 'adit env' has not written
    #[arg(long, requires = "write")]
    force: bool,
    /// Keep the file that another process has written
    #[arg(long, hide = true, requires = "write")]
    keep: bool,
}

pub fn run(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    up::run_to_end(start(globals, args))
}

async fn start(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    let config = globals.load()?;
    telemetry::init_command(globals.format(), config.verbose);
    let (_, router) = super::router(config);
    let running = Running::look(globals, &router).await?;
    match (&running, &args.write) {
        (Some(running), Some(file)) => {
            let file = std::path::absolute(file)?;
            let form = args.output.unwrap_or(Form::Dotenv);
            if args.keep {
                let text = async |router: &_| text(running, router, &args, form).await;
                keep::keep(globals, running, &file, form, text).await?;
                return Ok(ExitCode::SUCCESS);
            }
            let text = text(running, &router, &args, form).await?;
            keep::write(&file, form, &text, args.force)?;
            keep::start_keeper(&file)?;
        }
        (Some(running), None) => {
            print(&text(running, &router, &args, args.output.unwrap_or(Form::Shell)).await?)?;
        }
        (None, _) => return Err(running::none(&router).await),
    }
    Ok(ExitCode::SUCCESS)
}

async fn text(running: &Running, router: &Router, args: &Args, form: Form) -> Result<String, CliError> {
    let variables = variables(running, router, args).await?;
    Ok(form.write(&variables))
}

async fn variables(running: &Running, router: &Router, args: &Args) -> Result<BTreeMap<String, String>, CliError> {
    // The ports exist even if no pod answers; `adit wait` waits for the pods.
    let progress = Progress::new(true);
    let mut opened = Vec::new();
    let named =
        targets::split_all(&args.to)?.into_iter().map(|(name, target)| (Some(name.to_owned()), target.to_owned()));
    let routes = router.config.tcp.routes.keys().map(|address| (None, address.to_string()));
    for (name, target) in named.chain(routes) {
        let named = router.named(&target, running.namespace.as_ref())?;
        running.only_for(&named)?;
        let at_port = running.port(name, &target, place_of(&named.route.target), None, progress).await;
        opened.extend(at_port.map_err(running::unreachable)?);
    }
    let mut variables = opened::variables(&opened);
    fill(&pairs("--env", &args.env)?, &opened, &mut variables)?;
    Ok(variables)
}

/// Returns the arguments of this process, for a copy that continues in the background.
fn arguments() -> impl Iterator<Item = std::ffi::OsString> {
    env::args_os().skip(1)
}
