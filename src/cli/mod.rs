//! The command line. Only this module prints and sets the exit code.

pub mod browser;
pub mod check;
pub mod completion;
pub mod connect;
pub mod demo;
pub mod dns;
pub mod doctor;
pub mod env;
pub mod expose;
pub mod init;
pub mod jump;
mod listeners;
pub mod local;
mod mistyped;
mod named_service;
pub mod package;
mod place;
mod progress;
pub mod proxy;
pub mod report;
pub mod routes;
pub mod run;
mod running;
mod runtime;
pub mod schema;
mod scope;
pub mod server;
pub mod service;
pub mod status;
pub mod stop;
pub mod supervise;
mod top;
mod trust;
pub mod ui;
pub mod unlock;
pub mod up;
pub mod url;
pub mod version;
pub mod wait;

use std::{
    net::SocketAddr, num::NonZeroUsize, path::PathBuf, process::ExitCode, str::FromStr, sync::Arc, thread,
    time::Duration,
};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use tokio::{signal::unix::SignalKind, time::sleep};

use self::{
    report::CliError,
    run::signals::{ENDS, Signals, code_of},
};
use crate::{
    app::Overrides,
    config::{
        self, Config, ContextName, Namespace, defaults,
        shell::{self, quoted},
        validate,
    },
    k8s::ClusterError,
    telemetry::{self, Format},
};

/// Open every Service of a Kubernetes cluster by name, on demand
#[derive(Debug, Parser)]
#[command(
    name = "adit",
    version,
    subcommand_required = false,
    after_help = "Examples:\n  adit                       serve http://SERVICE.NAMESPACE.localhost:8989 in the current context\n  \
                  adit routes -A             list every Service and route, with its URL\n  \
                  adit init && adit check    write a configuration, and test it\n  \
                  adit demo                  try it without a cluster"
)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Option<Command>,
}

/// An option that counts as unset if its value is empty, as in kubectl: scripts pass variables that are not set.
type OrUnset<T> = Option<T>;

fn or_unset<T: FromStr>(text: &str) -> Result<OrUnset<T>, T::Err> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

/// Global options.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = scope::HEADING)]
pub struct Globals {
    /// Configuration file [default: $ADIT_CONFIG, then ~/.config/adit/config.yaml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Log each request and connection
    #[arg(long, short, global = true)]
    pub verbose: bool,
    /// Context, or alias, for names and routes that set none [default: default_context, else the current one]
    #[arg(long, global = true, value_name = "NAME", value_parser = or_unset::<ContextName>, default_value = "", hide_default_value = true)]
    pub context: OrUnset<ContextName>,
    /// Namespace for names and routes that set none [default: that of the context, then "default"]
    #[arg(long, short, global = true, value_name = "NAME", value_parser = or_unset::<Namespace>, default_value = "", hide_default_value = true)]
    pub namespace: OrUnset<Namespace>,
    /// Kubeconfig files, a list like $KUBECONFIG [default: $KUBECONFIG, then ~/.kube/config]
    #[arg(long, global = true, value_name = "FILES", value_parser = or_unset::<String>, default_value = "", hide_default_value = true)]
    pub kubeconfig: OrUnset<String>,
    /// Address to listen on: PORT, or HOST:PORT [default: http.listen, else 127.0.0.1:8989]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Threads that carry data, for 'up' and 'server' [default: one per core, on a laptop at most 4]
    #[arg(long, global = true, value_name = "COUNT", value_parser = workers)]
    pub workers: Option<NonZeroUsize>,
    /// Log format
    #[arg(long, global = true, value_enum, default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// How a command prints what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the Services of the cluster by name (the default)
    Up(up::Args),
    /// Start a small cluster in this process, and serve it
    Demo(demo::Args),
    /// Write a commented configuration file
    Init(init::Args),
    /// Validate the configuration file without starting
    Check(check::Args),
    /// Print the JSON schema of the configuration file
    Schema(schema::Args),
    /// Run a command with local ports to Services of the cluster
    Run(run::Args),
    /// Find out why a target cannot be reached, and print the command that repairs it
    Doctor(doctor::Args),
    /// Print the variables of 'adit run' for the running adit
    Env(env::Args),
    /// Wait until targets can be reached
    Wait(wait::Args),
    /// Connect standard input and output to a port of the cluster
    Connect(connect::Args),
    /// List the Services and routes, each with its URL
    Routes(routes::Args),
    /// Print the URL of a Service or pod
    Url(url::Args),
    /// Print the settings that let programs use the forward proxy
    Proxy(proxy::Args),
    /// Start a browser that resolves the names of the cluster
    Browser(browser::Args),
    /// Show the tunnels of the running adit
    Status(status::Args),
    /// Show the running adit in the terminal, live
    Top(top::Args),
    /// Open the dashboard of the running adit
    Ui(ui::Args),
    /// Allow every HTTP method in a read-only context for a while
    Unlock(unlock::Args),
    /// Stop a tunnel of the running adit
    Stop(stop::Args),
    /// List and delete the jump pods that adit created
    Jump(jump::Args),
    /// Expose local ports through a relay
    Local(local::Args),
    /// Route a Service of the cluster to a local port
    Expose(expose::Args),
    /// Run adit as a service that starts when you sign in
    Service(service::Args),
    /// Run a relay
    Server(Box<server::Args>),
    /// Trust adit's certificates in browsers and programs
    Trust(trust::Args),
    /// Let the system resolve the names that adit serves
    Dns(dns::Args),
    /// Print a completion script for a shell
    Completion(completion::Args),
    /// Write manual pages, completions and service files for a package
    #[command(hide = true)]
    Package(package::Args),
    /// Print the version
    Version(version::Args),
    /// Run a command until it or adit ends
    #[command(hide = true)]
    Supervise(supervise::Args),
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    // It fails only if a provider is installed already.
    let _ = (*crate::tls::provider()).clone().install_default();
    if completion::answer() {
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<_> = std::env::args_os().collect();
    let command = command(&arguments);
    let matches = command.clone().try_get_matches_from(&arguments);
    let cli = match matches.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, scope::check(&matches)))) {
        Ok((cli, Ok(()))) => cli,
        Ok((_, Err(unused))) => return unused.report(),
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            // Help and version are printed here too. A closed stdout is not a failure.
            let _ = mistyped::advise(error, &command, &arguments).print();
            return ExitCode::from(code);
        }
    };
    match run(&cli.globals, cli.command.unwrap_or(Command::Up(up::Args::default()))) {
        Ok(code) => code,
        Err(error) => error.report(),
    }
}

/// Returns the grammar of the command line. As `kubectl-adit`, adit is a plugin of kubectl.
fn command(arguments: &[std::ffi::OsString]) -> clap::Command {
    let name = arguments
        .first()
        .and_then(|path| PathBuf::from(path).file_stem().map(|name| name.to_string_lossy().into_owned()));
    let command = scope::apply(Cli::command());
    match name.as_deref() {
        Some("kubectl-adit") => command.bin_name("kubectl adit").display_name("kubectl adit"),
        _ => command,
    }
}

fn run(globals: &Globals, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Up(args) => return up::run(globals, args),
        Command::Run(args) => return run::run(globals, args),
        Command::Doctor(args) => return doctor::run(globals, args),
        Command::Env(args) => return env::run(globals, args),
        Command::Wait(args) => return wait::run(globals, args),
        Command::Connect(args) => return connect::run(globals, args),
        Command::Demo(args) => return demo::run(globals, args),
        Command::Local(args) => return local::run(globals, args),
        Command::Expose(args) => return expose::run(globals, args),
        Command::Server(args) => return server::run(globals, *args),
        Command::Service(args) => return service::run(globals, args),
        Command::Supervise(args) => return supervise::run(&args),
        Command::Trust(args) => return trust::run(globals, args),
        Command::Dns(args) => return dns::run(globals, &args),
        Command::Routes(args) => return block_on(routes::run(globals, args)),
        Command::Url(args) => return block_on(url::run(globals, args)),
        Command::Status(args) => return block_on(status::run(globals, args)),
        Command::Jump(args) => return block_on(jump::run(globals, args)),
        Command::Top(args) => return to_end(top::run(globals, args)),
        Command::Ui(args) => return block_on(ui::run(globals, args)),
        Command::Proxy(args) => return block_on(proxy::run(globals, args)),
        Command::Browser(args) => return block_on(browser::run(globals, args)),
        Command::Unlock(args) => return block_on(unlock::run(globals, args)),
        Command::Stop(args) => return block_on(stop::run(globals, args)),
        Command::Init(args) => init::run(globals, args),
        Command::Check(args) => check::run(globals, args),
        Command::Schema(args) => schema::run(args),
        Command::Completion(args) => completion::run(args),
        Command::Package(args) => package::run(args),
        Command::Version(args) => version::run(args),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// Runs a command until its end or a signal, and then ends credential plugins, which have process groups of their own.
fn block_on(command: impl Future<Output = Result<(), CliError>>) -> Result<ExitCode, CliError> {
    to_end(async { command.await.map(|()| ExitCode::SUCCESS) })
}

/// Does the same for a command with its own exit codes.
fn to_end(command: impl Future<Output = Result<ExitCode, CliError>>) -> Result<ExitCode, CliError> {
    telemetry::init_plugins();
    until_signal(command)
}

/// Does the same for a command with a log of its own.
fn until_signal(command: impl Future<Output = Result<ExitCode, CliError>>) -> Result<ExitCode, CliError> {
    up::run_to_end(async {
        let mut signals = Signals::new(ENDS)?;
        // A kubeconfig may be a pipe that nobody writes, or on a file system that hangs: then this thread notices no signal.
        thread::spawn(|| up::run_to_end(exit_at_signal()));
        tokio::select! {
            ended = command => ended,
            signal = signals.next() => Ok(ExitCode::from(ended_by(signal))),
        }
    })
}

/// Ends the process soon after a signal, if nothing else has done so.
async fn exit_at_signal() -> Result<(), CliError> {
    let signal = Signals::new(ENDS)?.next().await;
    sleep(Duration::from_secs(1)).await;
    std::process::exit(i32::from(ended_by(signal)))
}

/// Returns the exit code after a signal: 130 for those that people and supervisors send, else that of shells.
fn ended_by(signal: i32) -> u8 {
    match SignalKind::from_raw(signal) {
        kind if kind == SignalKind::interrupt() || kind == SignalKind::terminate() => up::INTERRUPTED,
        _ => code_of(signal),
    }
}

impl Globals {
    /// Returns the path of the configuration file, and whether the user has set it.
    pub fn config_path(&self) -> (Option<PathBuf>, bool) {
        let is_named = self.config.is_some() || std::env::var_os("ADIT_CONFIG").is_some_and(|value| !value.is_empty());
        (defaults::config_path(self.config.clone()), is_named)
    }

    /// Loads the configuration. Without a file, returns the defaults, unless the user has set its path.
    ///
    /// # Errors
    /// The file cannot be read, or has mistakes.
    pub fn load(&self) -> Result<Config, CliError> {
        let (path, is_named) = self.config_path();
        let mut config = match path {
            Some(path) if is_named || path.exists() => validate::load(&path)?,
            _ => defaults::config(),
        };
        self.overrides()?.apply(&mut config);
        Ok(config)
    }

    /// Returns the options that override the file.
    ///
    /// # Errors
    /// An option has an invalid value.
    pub fn overrides(&self) -> Result<Overrides, CliError> {
        let listen = self.listen.as_deref().map(listen).transpose()?;
        Ok(Overrides {
            context: self.context.clone(),
            namespace: self.namespace.clone(),
            kubeconfig: self.kubeconfig.as_deref().map(|list| defaults::kubeconfig_paths(Some(list))),
            listen,
            verbose: self.verbose,
        })
    }

    /// Returns a command of adit with the options that it needs to use the same configuration and cluster: those of this command
    /// line, and the files that variables of this shell name, because it may be pasted into another one.
    pub fn command(&self, name: &str) -> String {
        self.command_in(name, self.context.as_deref())
    }

    /// Does the same for a context.
    pub fn command_in(&self, name: &str, context: Option<&str>) -> String {
        let config = match self.config_path() {
            (Some(file), true) => std::path::absolute(file).ok().map(|file| file.display().to_string()),
            _ => None,
        };
        let options = [
            ("config", config),
            ("context", context.map(str::to_owned)),
            ("namespace", self.namespace.as_deref().map(str::to_owned)),
            ("kubeconfig", self.kubeconfig_to_name()),
            ("listen", self.listen.clone()),
        ];
        let given = options.into_iter().filter(|(option, _)| scope::uses(name, option));
        let words = given.filter_map(|(option, value)| Some(format!(" --{option} {}", quoted(&value?))));
        format!("adit{} {name}", words.collect::<String>())
    }

    /// Returns the kubeconfig files for a command, unless another shell finds them too.
    fn kubeconfig_to_name(&self) -> Option<String> {
        let files = defaults::kubeconfig_paths(self.kubeconfig.as_deref());
        let is_of_config = || self.load().is_ok_and(|config| config.http.kubeconfig != files);
        if self.kubeconfig.is_none() && is_of_config() { None } else { shell::named(&files) }
    }

    /// Checks that the context of the command line exists, for commands that ask no cluster. Returns it, and the current context of
    /// the kubeconfig. `None`: the command line has none.
    ///
    /// # Errors
    /// Fails if the kubeconfig was read, and has no such context.
    pub fn check_context(&self, config: &Config) -> Result<Option<(ContextName, Option<ContextName>)>, CliError> {
        let Some(context) = config.default_context.clone().filter(|_| self.context.is_some()) else { return Ok(None) };
        let (_, router) = router(config.clone());
        let contexts = &router.http_contexts;
        if !contexts.lacks(&context) {
            return Ok(Some((context, contexts.current.clone())));
        }
        let files = contexts.kubeconfig.to_string();
        let known = contexts.namespaces.keys().cloned().collect();
        Err(ClusterError::UnknownContext { context, files, known }.into())
    }

    pub fn format(&self) -> Format {
        match self.log_format {
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
        }
    }
}

fn workers(text: &str) -> Result<NonZeroUsize, String> {
    let count = text.parse().ok().filter(|count| *count <= validate::MOST_WORKERS).and_then(NonZeroUsize::new);
    count.ok_or_else(|| format!("write 1-{}", validate::MOST_WORKERS))
}

fn listen(text: &str) -> Result<Vec<SocketAddr>, CliError> {
    config::listen::parse(text).map_err(|wanted| {
        CliError::usage(format!("--listen: {text:?} is not {wanted}"))
            .hint(Some("write 127.0.0.1:8080, or just the port"))
    })
}

/// Returns clusters and router, for commands that do not serve.
fn router(config: Config) -> (Arc<crate::k8s::client::Clusters>, crate::routing::Router) {
    let clusters = crate::k8s::client::Clusters::new(&config.exec_path);
    let router = crate::app::route(&clusters, Arc::new(config));
    (clusters, router)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_argument_of_a_command_has_the_id_of_a_global_one() {
        fn check(command: &clap::Command, globals: &[clap::Id]) {
            for own in command.get_arguments().filter(|own| !own.is_global_set()) {
                assert!(!globals.contains(own.get_id()), "{}: {}", command.get_name(), own.get_id());
            }
            command.get_subcommands().for_each(|command| check(command, globals));
        }
        let all = Cli::command();
        let globals: Vec<_> =
            all.get_arguments().filter(|global| global.is_global_set()).map(|global| global.get_id().clone()).collect();
        assert!(globals.len() > 5);
        all.get_subcommands().for_each(|command| check(command, &globals));
    }

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_in_a_hint_means_the_same_cluster() {
        let of = |arguments: &[&str], name: &str| Cli::try_parse_from(arguments).unwrap().globals.command(name);
        assert_eq!(of(&["adit", "status"], "doctor"), "adit doctor");
        let given = ["adit", "--context", "my prod", "routes", "-n", "shop", "--config", "/a.yaml"];
        assert_eq!(of(&given, "doctor"), "adit --config /a.yaml --context 'my prod' --namespace shop doctor");
        assert_eq!(of(&given, "status"), "adit --config /a.yaml status");
        let relative = std::path::absolute("a").unwrap().display().to_string();
        let given = ["adit", "routes", "--kubeconfig", "a:/b"];
        assert_eq!(of(&given, "doctor"), format!("adit --kubeconfig {relative}:/b doctor"));
    }

    #[test]
    fn workers_are_a_number_of_threads() {
        assert_eq!(workers("4").unwrap().get(), 4);
        for wrong in ["0", "-1", "x", "1025"] {
            assert_eq!(workers(wrong).unwrap_err(), "write 1-1024");
        }
    }
}
