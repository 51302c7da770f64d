//! `adit wait`: waits until targets can be reached.

use std::{process::ExitCode, time::Duration};

use futures::future::join_all;

use super::{
    Globals,
    progress::Progress,
    report::CliError,
    run::{
        duration,
        signals::{ENDS, Signals, code_of},
    },
    running::{self, Running},
    up,
};
use crate::{app::reach::Reach, routing::Router, telemetry};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        adit wait postgres.shop && npm test\n  \
        adit wait --timeout 5m postgres.shop redis.shop:6379 web.shop\n  \
        kubectl rollout restart deploy/api -n shop && adit wait api.shop && bin/rails test:system\n\n\
        A target is reachable once a pod has accepted a connection. If an adit runs, its tunnels are used.\n\
        Exit codes: 0 all targets are reachable; 1 one is not; 2 a wrong command line or configuration")]
pub struct Args {
    /// Targets, as for 'adit run' [default: every TCP route]
    targets: Vec<String>,
    /// Time limit for all targets
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    timeout: Duration,
    /// Print no messages, not even errors
    #[arg(long, short)]
    quiet: bool,
}

pub fn run(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    let quiet = args.quiet;
    up::run_quietly(quiet, start(globals, args))
}

async fn start(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    let config = globals.load()?;
    telemetry::init_command(globals.format(), config.verbose && !args.quiet);
    // While a kubeconfig is read that is a pipe, a signal has its default effect.
    let (clusters, router) = super::router(config);
    let mut signals = Signals::new(ENDS)?;
    let targets = targets(&args, &router)?;
    let (progress, namespace) = (Progress::new(args.quiet), globals.namespace.clone());
    // Reject malformed targets before waiting for any.
    let named = targets.iter().map(|target| router.named(target, namespace.as_ref()));
    let named = named.collect::<Result<Vec<_>, _>>()?;
    let running = Running::find(globals, &router).await;
    let reach = Reach::new(clusters);
    let for_target = |named| running.as_ref().and_then(|running| running.for_target(named));
    let waiting = named.iter().map(async |named| match for_target(named) {
        Some(running) => {
            let checked = running.wait_for(&named.text, args.timeout, progress).await;
            checked.map_err(|error| running::unreachable(error).doctor(globals, &named.text))
        }
        None => {
            let told = |error: &crate::tunnel::OpenError| progress.waits(&named.text, error);
            reach
                .wait_for(named, args.timeout, told)
                .await
                .map(drop)
                .map_err(|error| CliError::from(error).doctor(globals, &named.text))
        }
    });
    let waited = tokio::select! {
        waited = join_all(waiting) => waited,
        number = signals.next() => {
            reach.forwards.end().await;
            return Ok(ExitCode::from(code_of(number)));
        }
    };
    let errors: Vec<CliError> = waited.into_iter().filter_map(Result::err).collect();
    reach.forwards.end().await;
    if !args.quiet {
        errors.iter().for_each(|error| _ = error.report());
    }
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn targets(args: &Args, router: &Router) -> Result<Vec<String>, CliError> {
    if !args.targets.is_empty() {
        return Ok(args.targets.clone());
    }
    let routes: Vec<String> = router.config.tcp.routes.keys().map(ToString::to_string).collect();
    match routes.is_empty() {
        true => Err(CliError::usage("there is nothing to wait for: the configuration has no TCP routes")
            .hint(Some("name a target: adit wait postgres.shop"))),
        false => Ok(routes),
    }
}
