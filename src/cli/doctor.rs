//! `adit doctor`: checks everything that adit needs, and prints how to repair it.
//!
//! A check is a function that uses the serving code; there is a file for each group. Checks change nothing, and groups are
//! checked concurrently.

mod bundle;
mod cluster;
pub mod kubeconfig;
mod machine;
mod protocol;
mod rbac;
mod relays;
pub mod report;
mod rights;
mod running;
mod scope;
mod service;
mod target;
mod trust;
mod way;

use std::{
    io::{self, IsTerminal, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use futures::future::join_all;
use tokio::time::timeout;

use self::{
    report::{Check, Group, Report, Status},
    scope::{Of, Scope},
};
use super::{
    Globals,
    report::{CliError, colours, has_unicode, print},
    until_signal,
};
use crate::{
    config::{Config, validate},
    telemetry,
};

/// Time limit of all checks of a group together.
const PATIENCE: Duration = Duration::from_millis(9_500);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        adit doctor\n  \
        adit doctor postgres.shop\n  \
        adit doctor --rbac -n shop | kubectl apply -f -\n  \
        adit doctor --bundle report.tar.gz                       for a bug report; secrets are hidden\n\n\
        It changes nothing. With a target, it also checks each step of the connection to it.\n\
        docs/troubleshooting.md has a heading for the id of each check.\n\
        Exit codes: 0 no check has failed; 1 a check has failed; 2 a wrong command line")]
pub struct Args {
    /// The target to check, as for 'adit run': web.shop, or a route's name or port
    target: Option<String>,
    /// Output format; schema: the JSON schema of json [default: text]
    #[arg(short, long, value_enum)]
    output: Option<Form>,
    /// Treat warnings as failures
    #[arg(long)]
    strict: bool,
    /// Print the smallest Role and RoleBinding for the configuration, and check nothing
    #[arg(long, conflicts_with_all = ["target", "bundle", "output", "strict"])]
    rbac: bool,
    /// Write report, configuration, log and status to this file, secrets hidden
    #[arg(long, value_name = "FILE.tar.gz")]
    bundle: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Json,
    Schema,
}

pub fn run(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    if args.output == Some(Form::Schema) {
        return print(&format!("{:#}\n", schemars::schema_for!(Report).to_value())).map(|()| ExitCode::SUCCESS);
    }
    until_signal(start(globals, args))
}

async fn start(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    telemetry::init_command(globals.format(), globals.verbose);
    let overrides = globals.overrides()?;
    // An invalid file is a finding; everything else is checked with the defaults.
    let (path, is_named) = globals.config_path();
    let loaded = match &path {
        Some(path) if is_named || path.exists() => Some(validate::load(path)),
        _ => None,
    };
    let (mut config, problem) = match loaded {
        Some(Ok(config)) => (config, None),
        // A running adit may still use an earlier, valid content of the file, so keep the path.
        Some(Err(problem)) => {
            let defaults = crate::config::defaults::config();
            (Config { source: path.clone(), ..defaults }, Some(problem))
        }
        None => (crate::config::defaults::config(), None),
    };
    overrides.apply(&mut config);
    let (clusters, router) = super::router(config);
    let scope = Arc::new(Scope::new(clusters, router, globals, args.target.as_deref()));
    if args.rbac {
        let (roles, note) = rbac::roles(&scope).await?;
        // If stderr is closed, nobody can be told.
        let _ = io::stderr().write_all(note.unwrap_or_default().as_bytes());
        return print(&roles).map(|()| ExitCode::SUCCESS);
    }
    if let Some(target) = &args.target
        && let Err(error) = scope.named(target)
        && matches!(error, crate::routing::NamedError::Malformed { .. })
    {
        return Err(error.into());
    }
    let checks = checks(&scope, problem.as_ref(), args.target.as_deref()).await;
    let report = Report::new(checks.into_iter().map(|check| check.for_shell(globals)).collect(), args.strict);
    match (args.output, &args.bundle) {
        (Some(_), _) => print(&format!("{}\n", serde_json::to_string_pretty(&report).map_err(io::Error::other)?))?,
        (None, _) => {
            // A file keeps the Unicode characters that this terminal may not show.
            let unicode = !io::stdout().is_terminal() || has_unicode(|name| std::env::var(name).ok());
            print(&report.text(colours(&io::stdout()), unicode))?;
        }
    }
    if let Some(file) = &args.bundle {
        bundle::write(file, &scope, &report, args.output.is_some()).await?;
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn checks(
    scope: &Arc<Scope>,
    problem: Option<&crate::config::problem::LoadError>,
    target: Option<&str>,
) -> Vec<Check> {
    // certutil may be slow, so it must not block the other checks.
    let config = scope.router.config.clone();
    let of_stores = tokio::task::spawn_blocking(move || trust::checks(&config));
    let of_contexts = async {
        let checks = scope.contexts.iter().map(|of| of_context(scope, of));
        join_all(checks).await.into_iter().flatten().collect::<Vec<_>>()
    };
    let of_target = async {
        match target {
            Some(target) => of_target(scope, target).await,
            None => Vec::new(),
        }
    };
    let (machine, of_contexts, of_target, running) = tokio::join!(
        within(Group::Machine, "configuration", machine::checks(scope, problem)),
        of_contexts,
        of_target,
        within(Group::Running, "running-adit", running::checks(scope)),
    );
    let mut all = machine;
    all.extend(of_stores.await.unwrap_or_default());
    all.extend(kubeconfig::files(scope));
    all.extend(of_contexts);
    all.extend(of_target);
    all.extend(running);
    all
}

/// Returns all checks of one context.
async fn of_context(scope: &Scope, of: &Of) -> Vec<Check> {
    let mut all = Vec::new();
    if timeout(PATIENCE, fill(scope, of, &mut all)).await.is_err() {
        // The check that did not end is the one after the last result.
        let (group, id) = match all.last().map(|check| (check.group, check.id)) {
            None => (Group::Kubeconfig, "credentials"),
            Some((Group::Machine, _) | (_, "api-server")) => (Group::Cluster, "authentication"),
            Some((Group::Cluster, "authentication")) => (Group::Rights, "permissions"),
            Some((Group::Kubeconfig | Group::Cluster, _)) => (Group::Cluster, "api-server"),
            Some(_) => (Group::Way, "pod-stream"),
        };
        all.push(late(group, id).of_context(of.context()));
    }
    all
}

/// Adds the checks of a context. After a failure, the checks that need it are skipped, with the reason.
async fn fill(scope: &Scope, of: &Of, all: &mut Vec<Check>) {
    let (checks, cluster) = kubeconfig::context(scope, of).await;
    all.extend(checks);
    let Some(cluster) = cluster else { return };
    let skip = |id, group, what: &str| Check::new(id, group, Status::Skip, what).of_context(of.context());
    let Some(minor) = cluster::checks(scope, &cluster, all).await else {
        all.push(skip("permissions", Group::Rights, "permissions (needs the API server)"));
        all.push(skip("pod-stream", Group::Way, "a stream to a pod (needs the API server)"));
        return;
    };
    let (rights, relays) = tokio::join!(rights::checks(of, &cluster, minor), relays::checks(of, &cluster));
    let may_forward = !rights.iter().any(|check| check.id == "permission-portforward" && check.status == Status::Fail);
    all.extend(rights);
    all.extend(relays.into_iter().map(|check| check.of_context(of.context())));
    match may_forward {
        true => all.extend(way::checks(scope, of, &cluster).await),
        false => all.push(skip("pod-stream", Group::Way, "a stream to a pod (needs the permission above)")),
    }
}

/// Returns the checks of a target, as far as they end in time.
async fn of_target(scope: &Scope, target: &str) -> Vec<Check> {
    let mut all = Vec::new();
    if timeout(PATIENCE, target::checks(scope, target, &mut all)).await.is_err() {
        let id = match all.last().map(|check| check.id) {
            None => "route",
            Some("route") => "service",
            Some("pod-port") => "protocol",
            Some(_) => "pod-port",
        };
        all.push(late(Group::Target, id));
    }
    all
}

async fn within(group: Group, id: &'static str, checks: impl Future<Output = Vec<Check>>) -> Vec<Check> {
    timeout(PATIENCE, checks).await.unwrap_or_else(|_| vec![late(group, id)])
}

fn late(group: Group, id: &'static str) -> Check {
    Check::new(id, group, Status::Fail, format!("no answer within {} s", PATIENCE.as_secs()))
        .fix("is a VPN or a proxy in the way?", None)
}

/// Runs a check, and records its duration.
async fn measured(check: impl Future<Output = Check>) -> Check {
    let started = Instant::now();
    check.await.took(started.elapsed())
}
