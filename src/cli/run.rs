//! `adit run`: runs a command with targets at local ports, and their addresses in its environment.

pub mod child;
pub mod keeper;
pub mod program;
pub mod signals;
pub mod targets;
mod template;
mod tool;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStringExt,
    process::ExitCode,
    time::Duration,
};

use futures::future::try_join_all;
use rustix::process::{Resource, getrlimit};

use self::{
    child::{Child, StartError},
    program::NOT_FOUND,
    signals::{PASSED_ON, Signals, code_of},
    targets::Asked,
    tool::{PREFERRED_TO_PGHOST, Tool},
};
use super::{
    Globals,
    place::Place,
    progress::Progress,
    report::{CliError, print, warning},
    running::Running,
    up,
};
use crate::{
    app::{
        opened::{self, Opened, is_variable},
        private_proxy::PrivateProxy,
        reach::Reach,
    },
    config::{Namespace, Subdomain, names::parse_duration},
    frontend::door::CURRENT,
    k8s::secret,
    telemetry,
};

/// Exit code if adit fails before it starts the command.
pub const FAILED: u8 = 125;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        adit run --to db=postgres.shop -- psql -U app -c 'select 1'\n  \
        adit run --to db=postgres.shop --secret PGPASSWORD=shop/postgres:password -- psql -U app\n  \
        adit run --to db=postgres.shop --env 'DATABASE_URL=postgres://app@{db}/shop' -- bin/rails server\n  \
        adit run --to api=api.shop --to cache=redis.shop:6379 -- npm test\n  \
        adit run --to 'sql=via api.shop sql.internal:1433@1433' -- dotnet test\n  \
        adit run --proxy -- curl http://web.shop.svc.cluster.local/\n\n\
        A TARGET is SERVICE[.NAMESPACE][.CONTEXT.cx][:PORT], pod/POD[.NAMESPACE][:PORT],\n\
        'via SERVICE.NAMESPACE HOST:PORT' for a host that only a pod can reach, or the name of a route.\n\
        @PORT at its end asks for that local port [default: a free one of 127.0.0.1].\n\
        Without --to, every TCP route of the configuration is open on its own port.\n\n\
        --to db=postgres.shop sets DB_HOST, DB_PORT, DB_ADDR, and DB_URL for HTTP, and as in a pod\n\
        POSTGRES_SERVICE_HOST and POSTGRES_SERVICE_PORT. The command starts once each pod has accepted\n\
        a connection. The ports close when it ends.\n\n\
        Exit codes: the command's own; 128 and the number of the signal that ended it; 125 a target is unreachable, and the \
        command was not started; 126 not executable; 127 not found; 2 a wrong command line or configuration")]
pub struct Args {
    /// Open this target under this name, e.g. db=postgres.shop:5432
    #[arg(long, value_name = "NAME=TARGET")]
    to: Vec<String>,
    /// Set a variable; {db}, {db.host}, {db.port} and {web.url} in it stand for addresses, {{ for a brace
    #[arg(long, value_name = "NAME=TEMPLATE")]
    env: Vec<String>,
    /// Set the variables that this client reads; =NAME chooses the target [default: set automatically for psql, pgbench and mysql]
    #[arg(long = "for", value_name = "psql|mysql|redis|mongo[=NAME]", value_parser = tool)]
    tool: Vec<(Tool, Option<String>)>,
    /// Set a variable to one key of a Secret, read with your permissions and never printed
    #[arg(long, value_name = "NAME=[NAMESPACE/]SECRET:KEY")]
    secret: Vec<String>,
    /// Set HTTP_PROXY, ALL_PROXY and related variables to a forward proxy for this command, with a password. It resolves the names of
    /// the cluster, and connects directly to hosts of the internet
    #[arg(long)]
    proxy: bool,
    /// Keep variables that are already set
    #[arg(long)]
    keep_env: bool,
    /// Time limit for each target
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration, conflicts_with = "no_wait")]
    wait: Duration,
    /// Start the command at once; tunnels open when they are used
    #[arg(long)]
    no_wait: bool,
    /// Print the variables, and start nothing
    #[arg(long)]
    dry_run: bool,
    /// Print no messages, not even errors
    #[arg(long, short)]
    quiet: bool,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, required_unless_present = "dry_run", value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Parses a duration of the command line.
///
/// # Errors
/// The text is no duration.
pub fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write 500ms, 30s or 2m".to_owned())
}

fn tool(text: &str) -> Result<(Tool, Option<String>), String> {
    let (tool, name) = text.split_once('=').map_or((text, None), |(tool, name)| (tool, Some(name.to_owned())));
    <Tool as clap::ValueEnum>::from_str(tool, false)
        .map(|tool| (tool, name))
        .map_err(|_| "it is one of psql, mysql, redis and mongo".to_owned())
}

pub fn run(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    let quiet = args.quiet;
    up::run_quietly(quiet, start(globals, args))
}

async fn start(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    let config = globals.load()?;
    let log = telemetry::init_command(globals.format(), config.verbose && !args.quiet);
    // While a kubeconfig is read that is a pipe, a signal has its default effect.
    let (clusters, router) = super::router(config);
    let mut signals = Signals::new(PASSED_ON).map_err(own)?;
    let open_files = getrlimit(Resource::Nofile).current;
    up::raise_open_file_limit();
    let namespace = globals.namespace.clone();
    let asked = asked(&args, &router, namespace.as_ref())?;
    let (templates, secrets) = (pairs("--env", &args.env)?, secrets(&args.secret)?);
    if !args.dry_run {
        let path = templates.iter().find(|(name, _)| name == "PATH").map(|(_, path)| OsString::from(path));
        program::find(&args.command[0], path.or_else(|| env::var_os("PATH")).as_deref())
            .map_err(|error| CliError::new(&error).hint(error.hint()).code(error.code()))?;
    }

    let reach = Reach::new(clusters);
    // Only TCP routes have fixed ports, which a running adit may already serve.
    let looked = if args.to.is_empty() { Running::look(globals, &router).await } else { Ok(None) };
    let (running, silent) = looked.map_or_else(|silent| (None, Some(silent)), |running| (running, None));
    let bound = asked.into_iter().map(|asked| asked.bind(&reach, running.as_ref()));
    // A running adit that hangs still holds the ports, so its error explains more.
    let bound = bound.collect::<Result<Vec<_>, _>>().map_err(|error| fail(silent.unwrap_or(error)))?;
    let progress = Progress::new(args.quiet);
    let wait = (!args.no_wait && !args.dry_run).then_some(args.wait);
    let opening = targets::open_all(globals, bound, &reach, running.as_ref(), wait, progress);
    let reading = async {
        // A dry run does not need the values.
        if secrets.is_empty() || args.dry_run {
            return Ok(Vec::new());
        }
        let place = Place::at(reach.clusters.clone(), router.clone(), globals)?;
        try_join_all(secrets.iter().map(|secret| secret.read(&place))).await
    };
    let (opened, values) = tokio::select! {
        found = async { tokio::join!(opening, reading) } => found,
        number = signals.next_end() => {
            reach.forwards.end().await;
            return Ok(ExitCode::from(code_of(number)));
        }
    };
    let opened = opened.map_err(|errors| report_all(errors, args.quiet))?;
    let values = values.map_err(fail)?;

    let of_proxy = if args.proxy { proxied(&reach, &router, args.dry_run)? } else { Vec::new() };
    let of_trust = super::trust::of_programs().into_iter().map(|(name, value)| (name.to_owned(), value));
    let mut variables: BTreeMap<_, _> =
        of_trust.chain(of_proxy).chain(variables(&args, &templates, &opened)?).collect();
    let listed = secrets.iter().map(|secret| (secret.variable.clone(), secret.shown()));
    if args.dry_run {
        variables.extend(listed);
        keep(&args, &mut variables);
        let lines = variables.iter().map(|(name, value)| format!("{name}={value}\n"));
        return print(&lines.collect::<String>()).map(|()| ExitCode::SUCCESS);
    }
    let mut given: BTreeMap<OsString, OsString> = BTreeMap::new();
    keep(&args, &mut variables);
    let removed: Vec<&str> = if args.keep_env { Vec::new() } else { preferred(&variables) };
    given.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
    let values = secrets.iter().map(|secret| OsString::from(&secret.variable)).zip(values);
    let is_kept = |name: &OsStr| args.keep_env && env::var_os(name).is_some();
    given.extend(values.filter(|(name, _)| !is_kept(name)));

    let child = Child::start(&args.command, &given, &removed, open_files).await.map_err(|error| {
        let code = match &error {
            StartError::Command(error) if error.kind() == std::io::ErrorKind::NotFound => NOT_FOUND,
            _ => FAILED,
        };
        let program = args.command[0].to_string_lossy();
        let cause = telemetry::reasons(&error);
        CliError::new(format!("{program:?} cannot be started")).cause(Some(cause)).code(code)
    })?;
    if !args.quiet {
        log.warnings();
    }
    let code = child.wait(&mut signals).await;
    reach.forwards.end().await;
    Ok(ExitCode::from(code))
}

/// Returns the requested targets: those of --to, else every TCP route.
fn asked(args: &Args, router: &crate::routing::Router, namespace: Option<&Namespace>) -> Result<Vec<Asked>, CliError> {
    if args.to.is_empty() {
        return Asked::routes(router).map_err(fail);
    }
    Asked::parse_all(&args.to, router, namespace).map_err(fail)
}

/// Returns the variables of a forward proxy for the command. `is_dry`: without a password, because it will not be used.
fn proxied(reach: &Reach, router: &crate::routing::Router, is_dry: bool) -> Result<Vec<(String, String)>, CliError> {
    if is_dry {
        let url = |scheme: &str| format!("{scheme}://{CURRENT}:(a password)@127.0.0.1:(a free port)");
        return Ok(super::proxy::variables(&url("socks5h"), &url("http")));
    }
    let proxy = PrivateProxy::serve(&reach.forwards, router).map_err(|error| fail(CliError::new(&error)))?;
    Ok(super::proxy::variables(&proxy.url("socks5h"), &proxy.url("http")))
}

/// Parses `NAME=VALUE` pairs with names of variables.
///
/// # Errors
/// A text is not such a pair.
pub fn pairs(option: &str, texts: &[String]) -> Result<Vec<(String, String)>, CliError> {
    let parse = |text: &String| match text.split_once('=') {
        Some((name, value)) if is_variable(name) && !value.contains('\0') => Ok((name.to_owned(), value.to_owned())),
        _ => Err(CliError::usage(format!("{option}: {text:?} is not NAME=VALUE"))
            .hint(Some("a name has letters, digits and '_'"))),
    };
    texts.iter().map(parse).collect()
}

/// Returns the variables of the targets and of the detected client; those of --for and --env override them.
fn variables(
    args: &Args,
    templates: &[(String, String)],
    opened: &[Opened],
) -> Result<BTreeMap<String, String>, CliError> {
    let mut variables = opened::variables(opened);
    let all: Vec<&Opened> = opened.iter().collect();
    let called: BTreeSet<&str> = opened.iter().filter_map(Opened::called).collect();
    let names = called.iter().copied().collect::<Vec<_>>().join(", ");
    if let Some(tool) = args.command.first().map(std::path::Path::new).and_then(Tool::of_program) {
        match tool.choose(&all) {
            Some(target) => variables.extend(own_variables(tool, target)),
            // The program connects to what its own defaults name, unless the user has named a host.
            None if all.len() > 1 && args.tool.is_empty() && !args.quiet && !is_host_set(tool, templates) => {
                let tool = format!("{tool:?}").to_lowercase();
                warning(
                    &format!("{:?} gets no target: it is not clear which one is meant", args.command[0]),
                    &format!("write --for {tool}=NAME; the names are {names}"),
                );
            }
            None => {}
        }
    }
    for (tool, name) in &args.tool {
        let target = match name {
            Some(name) => {
                let of_name: Vec<&Opened> =
                    all.iter().copied().filter(|target| target.called() == Some(name)).collect();
                tool.choose(&of_name)
            }
            None => tool.choose(&all),
        };
        let option = format!("{tool:?}").to_lowercase();
        let target = target.ok_or_else(|| {
            let message = match name {
                Some(name) if called.contains(name.as_str()) => {
                    format!("--for {option}={name}: several targets are called {name:?}")
                }
                Some(name) => format!("--for {option}={name}: there is no target {name:?}"),
                None => format!("--for {option}: it is not clear which target is meant"),
            };
            let hint = match names.as_str() {
                "" => format!("name it with --to: --to {option}=SERVICE.NAMESPACE"),
                names => format!("write --for {option}=NAME; the names are {names}"),
            };
            CliError::usage(message).hint(Some(hint))
        })?;
        variables.extend(own_variables(*tool, target));
    }
    fill(templates, opened, &mut variables)?;
    Ok(variables)
}

fn own_variables(tool: Tool, target: &Opened) -> impl Iterator<Item = (String, String)> + use<> {
    tool.variables(target).into_iter().map(|(name, value)| (name.to_owned(), value))
}

/// Returns whether the user has set the host that a tool connects to, in the shell or with --env.
fn is_host_set(tool: Tool, templates: &[(String, String)]) -> bool {
    let is_set = |host: &str| env::var_os(host).is_some() || templates.iter().any(|(name, _)| name == host);
    tool.host_variables().iter().any(|host| is_set(host))
}

/// Returns the variables of the shell that libpq would prefer to the PGHOST that adit sets.
fn preferred(variables: &BTreeMap<String, String>) -> Vec<&'static str> {
    match variables.contains_key("PGHOST") {
        true => PREFERRED_TO_PGHOST.into_iter().filter(|name| !variables.contains_key(*name)).collect(),
        false => Vec::new(),
    }
}

/// Adds the variables of --env.
///
/// # Errors
/// A template names a target that is not there.
pub fn fill(
    templates: &[(String, String)],
    opened: &[Opened],
    variables: &mut BTreeMap<String, String>,
) -> Result<(), CliError> {
    for (name, value) in templates {
        let value = template::fill(value, opened).map_err(|error| {
            let known = template::placeholders(opened);
            let hint = match known.as_slice() {
                [] => "name a target with --to NAME=TARGET".to_owned(),
                known => format!("the names are {}; write {{{{ for a brace", known.join(", ")),
            };
            CliError::usage(format!("--env {name}: {error}")).hint(Some(hint))
        })?;
        variables.insert(name.clone(), value);
    }
    Ok(())
}

/// With --keep-env, removes the variables that are already set.
fn keep(args: &Args, variables: &mut BTreeMap<String, String>) {
    if args.keep_env {
        variables.retain(|name, _| env::var_os(name).is_none());
    }
}

/// A variable with a value from a Secret.
struct FromSecret {
    variable: String,
    namespace: Option<Namespace>,
    name: Subdomain,
    key: String,
}

fn secrets(texts: &[String]) -> Result<Vec<FromSecret>, CliError> {
    let parse = |text: &String| {
        let (variable, from) = text.split_once('=')?;
        let (secret, key) = from.rsplit_once(':')?;
        let (namespace, name) = secret.split_once('/').map_or((None, secret), |(of, name)| (Some(of), name));
        let is_right = is_variable(variable)
            && !key.is_empty()
            && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        let (namespace, name) = (namespace.map(str::parse).transpose().ok()?, name.parse().ok()?);
        let (variable, key) = (variable.to_owned(), key.to_owned());
        is_right.then_some(FromSecret { variable, namespace, name, key })
    };
    let parse = |text| {
        parse(text).ok_or_else(|| {
            CliError::usage(format!("--secret: {text:?} is not NAME=[NAMESPACE/]SECRET:KEY"))
                .hint(Some("write PGPASSWORD=shop/postgres:password"))
        })
    };
    texts.iter().map(parse).collect()
}

impl FromSecret {
    /// Returns the source of the value, not the value itself.
    fn shown(&self) -> String {
        let namespace = self.namespace.as_ref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
        format!("(key {} of Secret {namespace}{})", self.key, self.name)
    }

    async fn read(&self, place: &Place) -> Result<OsString, CliError> {
        let namespace = self.namespace.as_ref().unwrap_or(&place.namespace);
        let value = secret::value(&*place.cluster().await?, namespace, &self.name, &self.key).await?;
        if value.contains(&0) {
            return Err(CliError::new(format!("--secret {}: the value has a zero byte", self.variable))
                .hint(Some("a variable cannot hold it")));
        }
        Ok(OsString::from_vec(value))
    }
}

/// Returns the error with the exit code for "the command was not started".
fn fail(error: CliError) -> CliError {
    error.failed_with(FAILED)
}

fn own(error: std::io::Error) -> CliError {
    fail(error.into())
}

/// Reports all errors but the last, and returns that one.
fn report_all(mut errors: Vec<CliError>, quiet: bool) -> CliError {
    let last = errors.pop().unwrap_or_else(|| CliError::new("a target cannot be reached"));
    if !quiet {
        errors.iter().for_each(|error| _ = error.report());
    }
    fail(last)
}
