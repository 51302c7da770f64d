//! `adit expose`: routes a Service of the cluster to a local port, through a relay in the cluster.

mod create;
pub mod find;
mod taken;

use std::{path::PathBuf, process::ExitCode, sync::Arc, sync::Mutex, time::Duration};

use clap::Subcommand;

use self::find::{InCluster, find, no_relay, secret, vouch};
use super::{
    Globals, Output, local,
    named_service::NamedService,
    place::{Place, serving},
    report::{CliError, print},
    run::signals::{ENDS, Signals},
    server, up,
};
use crate::{
    admin::api::services::named_context,
    backend::Backends,
    config::{ContextName, Namespace, PortRef, Workload},
    drain::Drain,
    relay::{
        Kind,
        client::{self, LocalEnd, Options, Wanted},
        expose::{
            ExposeRequest, ServiceName,
            condition::{Condition, ConditionError},
        },
        tls::Trust,
    },
    routing::hostname::DynamicName,
    telemetry,
    tunnel::Manager,
};

#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  adit expose 3000:80 --as web.shop            # http://web.shop in the cluster is port 3000 here\n  \
                  adit expose 3000:80 --as web.shop --replace  # take over port 80 of a Service that exists\n  \
                  adit expose 3000:80 --as web.shop --personal x-user=anna  # only requests with this header\n  \
                  adit expose ls -A                            # the Services that are taken over\n  \
                  adit expose restore web.shop                 # restore one, even if its relay is gone"
)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    take: Option<Take>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the Services that are taken over
    Ls {
        /// List Services of all namespaces
        #[arg(short = 'A', long)]
        all_namespaces: bool,
        /// Output format [default: text]
        #[arg(short, long, value_enum)]
        output: Option<Output>,
    },
    /// Restore a Service, or all Services whose relay is gone
    Restore {
        /// The Service, whether its relay runs or not [default: all whose relay is gone]
        #[arg(value_name = "SERVICE[.NAMESPACE]")]
        service: Option<NamedService>,
        /// Restore the Services of all namespaces
        #[arg(short = 'A', long, conflicts_with = "service")]
        all_namespaces: bool,
        /// Restore the Services of this relay, even if it runs. Can be repeated
        #[arg(long = "relay", value_name = "NAMESPACE/POD", conflicts_with = "service")]
        relays: Vec<String>,
    },
    /// Delete the relay of --create in this namespace, with its objects
    Clean,
}

#[derive(Debug, clap::Args)]
struct Take {
    /// Port of this machine, and the Service's port [default: the same]
    #[arg(value_name = "PORT[:PORT]")]
    port: String,
    /// The Service
    #[arg(long = "as", value_name = "SERVICE[.NAMESPACE]")]
    service: NamedService,
    /// Take over the port of a Service that exists, and restore it at the end
    #[arg(long)]
    replace: bool,
    /// Take over only requests with this header and exactly this value; all others go to the pods. Can be repeated: a request has to
    /// meet all conditions
    #[arg(long, value_name = "HEADER=VALUE", conflicts_with = "replace")]
    personal: Vec<String>,
    /// Take over only requests for this host
    #[arg(long, value_name = "HOST", conflicts_with = "replace")]
    personal_host: Option<String>,
    /// Take over only requests with this path, or a path below it
    #[arg(long, value_name = "/PATH", conflicts_with = "replace")]
    personal_path: Option<String>,
    /// Namespace to look for the relay in [default: all]. If a relay there asks for your API token, it gets it
    #[arg(long, value_name = "NAME")]
    relay_namespace: Option<Namespace>,
    /// Create a relay in the Service's namespace if there is none; it ends after a day, 'adit expose clean' deletes it
    #[arg(long, requires = "image")]
    create: bool,
    /// Image of adit for the relay; required with --create
    #[arg(long, value_name = "IMAGE", requires = "create")]
    image: Option<String>,
    /// Read the secret, or the first of several keys, from this file [default: the Secret that the relay names]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Host of the local service [default: 127.0.0.1 and [::1], whichever answers]
    #[arg(long, value_name = "HOST")]
    local_host: Option<String>,
}

pub fn run(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    telemetry::init(globals.format(), globals.verbose);
    up::raise_open_file_limit();
    up::run_to_end(async {
        // While a kubeconfig is read that is a pipe, a signal has its default effect.
        let place = Place::of(globals);
        let mut signals = Signals::new(ENDS)?;
        let Some(take) = args.take else {
            let running = by_hand(place?, args.command);
            return tokio::select! {
                done = running => done.map(|()| ExitCode::SUCCESS),
                _ = signals.next() => Ok(ExitCode::from(up::INTERRUPTED)),
            };
        };
        // Signals are handled from here on, so that the user can interrupt a cluster that does not answer.
        let setup = tokio::select! {
            setup = set_up(globals, place, take) => setup?,
            _ = signals.next() => return Ok(ExitCode::from(up::INTERRUPTED)),
        };
        let shown = setup.shown;
        let opened = move |_: &[client::Open]| {
            // If stdout is closed, the takeover continues.
            let _ = print(&shown);
        };
        // No hint: the relay's reason says what to do.
        local::serve(|| Ok(setup.options.clone()), opened, None, |_| allowing(&setup.service), &mut signals).await?;
        setup.drain.finish(Duration::from_secs(1)).await;
        Ok(ExitCode::SUCCESS)
    })
}

async fn by_hand(place: Place, command: Option<Command>) -> Result<(), CliError> {
    match command {
        Some(Command::Ls { all_namespaces, output }) => taken::list(&place, all_namespaces, output).await,
        Some(Command::Restore { service, all_namespaces, relays }) => {
            taken::restore(&place, service, all_namespaces, &relays).await
        }
        Some(Command::Clean) => create::clean(&*place.cluster().await?, &place.namespace).await,
        None => Err(CliError::usage("no port is given").hint(Some("adit expose --help"))),
    }
}

/// A takeover that is ready to start.
struct Setup {
    options: Options,
    service: ServiceName,
    /// Lines to print once it is open.
    shown: String,
    /// Drain of the port-forwards to the relay.
    drain: Drain,
}

/// Returns the lines to print once it is open. `url`: that of the Service on this machine, if there can be one.
fn shown(request: &ExposeRequest, context: &ContextName, local: &LocalEnd, url: Option<&str>) -> String {
    let ServiceName { namespace, name } = &request.service;
    let which = match &request.condition {
        Some(condition) => format!(", requests with {condition}"),
        None => String::new(),
    };
    let here = url.map(|url| format!("  through the cluster, if it speaks HTTP: {url}\n")).unwrap_or_default();
    format!("{name}.{namespace}:{} in {context}{which} -> {local}\n{here}", request.port)
}

/// Returns the hint for a local service that refuses the Host header of requests to the Service.
fn allowing(ServiceName { namespace, name }: &ServiceName) -> String {
    format!(
        "allow {name}, {name}.{namespace} and {name}.{namespace}.svc.cluster.local in its configuration: server.allowedHosts of \
         Vite, allowedHosts of webpack, config.hosts of Rails, ALLOWED_HOSTS of Django"
    )
}

/// Returns the condition of a personal takeover. `None`: all requests.
fn condition(args: &Take) -> Result<Option<Condition>, CliError> {
    if args.personal.is_empty() && args.personal_host.is_none() && args.personal_path.is_none() {
        return Ok(None);
    }
    let mut headers = Vec::new();
    for text in &args.personal {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            CliError::usage(format!("--personal: {text:?} is not HEADER=VALUE"))
                .hint(Some("write --personal x-user=anna"))
        })?;
        headers.push((name.to_owned(), value.to_owned()));
    }
    let condition = Condition::new(headers, args.personal_host.clone(), args.personal_path.clone());
    condition.map(Some).map_err(|error| {
        let (option, hint) = match &error {
            ConditionError::Host(_) => ("--personal-host", None),
            ConditionError::Path(_) => ("--personal-path", None),
            ConditionError::EveryPath => ("--personal-path", Some("--replace takes over the whole port")),
            ConditionError::HostHeader => ("--personal", Some("--personal-host HOST")),
            _ => ("--personal", None),
        };
        CliError::usage(format!("{option}: {error}")).hint(hint)
    })
}

/// `place`: its error is less important than one of the command line.
async fn set_up(globals: &Globals, place: Result<Place, CliError>, args: Take) -> Result<Setup, CliError> {
    let condition = condition(&args)?;
    let place = place?;
    let cluster = place.cluster().await?;
    let listener = place.listener();
    let Place { clusters, id, namespace, router } = place;
    let context = id.context.clone();
    let (local_port, port) = local::ports(&args.port, ("SERVICE-PORT", 80))?;
    let NamedService { name: of_service, namespace: for_namespace } = args.service;
    let for_namespace = for_namespace.unwrap_or(namespace);
    let service = ServiceName { namespace: for_namespace.to_string(), name: of_service.to_string() };
    let replaces = args.replace || condition.is_some();
    let port = if port == 0 { local_port } else { port };
    let request = ExposeRequest { service: service.clone(), port, condition, replaces, owner: String::new() };
    let (running, of_names) = serving(globals, &clusters, router).await?;
    let listener = running.map_or(listener, |running| running.port);
    let name = named_context(&of_names, &context).ok().filter(|_| listener > 0).map(|context| DynamicName {
        context,
        namespace: for_namespace.clone(),
        workload: Workload::Service(of_service),
        port: PortRef::number(port).unwrap_or(PortRef::Auto),
    });
    let url = name.map(|name| format!("http://{name}:{listener}/"));
    let drain = Drain::new();
    let manager = Manager::new(Arc::new(Backends::new(clusters, None, drain.clone())), drain.clone());
    let relay_namespace = args.relay_namespace;
    let found = find(&cluster, relay_namespace.as_ref(), &service, None).await?;
    let relay = match (found, &args.image) {
        (None, Some(image)) => {
            create::ensure(&cluster, &for_namespace, image).await?;
            find(&cluster, Some(&for_namespace), &service, None).await?
        }
        (Some(relay), Some(image)) if create::is_created(&relay, &for_namespace) => {
            create::renew(&cluster, &for_namespace, image, relay.image.as_deref()).await?;
            find(&cluster, Some(&for_namespace), &service, None).await?
        }
        (found, _) => found,
    };
    let Some(relay) = relay else { return Err(no_relay(&cluster, relay_namespace.as_ref(), &service).await) };
    let is_chosen = relay_namespace.is_some() || args.secret_file.is_some();
    if !is_chosen {
        vouch(&cluster, &relay).await?;
    }
    let key = match &args.secret_file {
        Some(file) => server::keys(Some(file))?.remove(0),
        None => secret(&cluster, &relay).await?,
    };
    let kind = if replaces { Kind::ReplacedService } else { Kind::Service };
    let (namespace, reviews) = (relay.target.0.clone(), relay.reviews.into());
    let dial =
        InCluster { id, cluster, manager, namespace, is_chosen, service, pod: Mutex::new(relay.target), reviews };
    let options = Options {
        dial: Arc::new(dial),
        key: key.name,
        secret: key.secret,
        trust: Trust::Secret,
        local_host: args.local_host.clone(),
        tunnels: vec![Wanted { local_port, kind, port: 0, name: request.name() }],
    };
    let local = LocalEnd::new(args.local_host.as_deref(), local_port);
    Ok(Setup { options, shown: shown(&request, &context, &local, url.as_deref()), service: request.service, drain })
}
