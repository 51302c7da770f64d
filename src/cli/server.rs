//! `adit server`: the relay of reverse tunnels.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use clap::Subcommand;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info};

mod limits;

use self::limits::LimitArgs;
use super::{
    Globals,
    report::{CliError, print},
    up::{self, Signals},
};
use crate::{
    config::{HostHeader, HttpOptions, defaults},
    drain::Drain,
    frontend::{
        Connection,
        http::{HttpFrontend, HttpVersion},
    },
    io::{
        BoxedIo,
        accept::{self, Admission, Place},
        prefixed::Prefixed,
        read_ahead::ReadAhead,
    },
    listener::mux::{first_bytes, refuse_http},
    metrics::Metrics,
    relay::{
        self,
        auth::{self, Key},
        backend::Relayed,
        expose::{Exposer, Relay},
        server::{Limits, Options, Server, tunnels::HttpName},
        tls::Identity,
    },
    routing::{Contexts, Route, Router, SharedRouter, Target},
    telemetry,
    tunnel::Manager,
    wire::sniff::Protocol,
};

/// How many open files are kept for visitors of names that are refused when there are no others.
const SPARE_FILES: usize = 8;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a new secret
    Genkey,
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Read the keys from this file: one secret, or lines of NAME SECRET [ports=...] [names=...] [default: $ADIT_SECRET]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Lend these public ports
    #[arg(long, value_name = "FIRST-LAST", default_value = "10000-60000", value_parser = ports)]
    ports: std::ops::RangeInclusive<u16>,
    /// Listen for visitors on this address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    bind: IpAddr,
    /// Serve names by HTTP here
    #[arg(long, value_name = "ADDRESS", requires = "domain")]
    http_listen: Option<SocketAddr>,
    /// The names of tunnels are below this domain
    #[arg(long, value_name = "DOMAIN", requires = "http_listen")]
    domain: Option<String>,
    /// PEM files of the certificate for the domain: visitors come by https
    #[arg(long, value_name = "FILE", requires_all = ["http_tls_key", "http_listen"])]
    http_tls_cert: Option<PathBuf>,
    /// Private key for --http-tls-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "http_tls_cert")]
    http_tls_key: Option<PathBuf>,
    /// PEM files of the certificate that clients see [default: one made at each start, known by its fingerprint]
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key for --tls-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Serve /healthz, /readyz, /metrics and a page of the tunnels here, on loopback
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,
    /// Serve version 1 too: the secret and every byte cross the network in the clear
    #[arg(long)]
    allow_v1: bool,
    /// Let clients make Services of the cluster that this runs in, or of one namespace of it (POD_NAME, POD_NAMESPACE, POD_UID
    /// and POD_IP say where that is)
    #[arg(long, value_name = "NAMESPACE", num_args = 0..=1, require_equals = true)]
    register: Option<Option<String>>,
    #[command(flatten)]
    limits: LimitArgs,
}

fn ports(text: &str) -> Result<std::ops::RangeInclusive<u16>, String> {
    auth::parse_ports(text).ok_or_else(|| "write two ports, e.g. 10000-60000".to_owned())
}

pub fn run(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    if let Some(Command::Genkey) = args.command {
        return print(&format!("{}\n", auth::new_secret()?)).map(|()| ExitCode::SUCCESS);
    }
    telemetry::init(globals.format(), globals.verbose);
    up::raise_open_file_limit();
    let control = match globals.listen.as_deref() {
        None => SocketAddr::from((Ipv4Addr::UNSPECIFIED, defaults::RELAY_PORT)),
        Some(address) => address.parse().map_err(|_| {
            CliError::usage(format!("--listen: {address:?} is not an address with a port"))
                .hint(Some("write 0.0.0.0:7835"))
        })?,
    };
    up::run_to_end(serve(control, args.serve))
}

/// Returns a client that uses the service account of this pod.
fn in_cluster() -> Result<kube::Client, String> {
    let mut config = kube::Config::incluster().map_err(|_| "there is no service account in this pod".to_owned())?;
    // Calls are repeated by those who know what came of them.
    config.default_retry = false;
    kube::Client::try_from(config).map_err(|_| "the service account of this pod cannot be used".to_owned())
}

/// Returns the keys of a file, else those of the environment.
pub fn keys(file: Option<&PathBuf>) -> Result<Vec<Key>, CliError> {
    auth::load(file.map(PathBuf::as_path)).map_err(|error| {
        CliError::usage("there is no secret")
            .cause(Some(error))
            .hint(Some("'adit server genkey > FILE' makes one; name it with --secret-file, or set ADIT_SECRET"))
    })
}

fn listen(address: SocketAddr) -> Result<TcpListener, CliError> {
    accept::listen(address).map_err(|error| CliError::new(format!("cannot listen on {address}")).cause(Some(error)))
}

async fn serve(control: SocketAddr, args: Serve) -> Result<ExitCode, CliError> {
    let mut signals = Signals::new()?;
    let keys = keys(args.secret_file.as_ref())?;
    if args.admin_listen.is_some_and(|address| !address.ip().is_loopback()) {
        return Err(CliError::usage("--admin-listen: it tells what clients do, and is for this machine alone")
            .hint(Some("write 127.0.0.1:PORT")));
    }
    let identity = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Identity::read(cert, key)?,
        _ => Identity::generate()?,
    };
    let (control, http) = (listen(control)?, args.http_listen.map(listen).transpose()?);
    let admin = args.admin_listen.map(listen).transpose()?;
    let https = match (&args.http_tls_cert, &args.http_tls_key) {
        (Some(cert), Some(key)) => Some(Identity::read(cert, key)?.server_config(&[b"h2", b"http/1.1"])?),
        _ => None,
    };
    let http_port = http.as_ref().and_then(|http| http.local_addr().ok()).map(|address| address.port());
    let (scheme, usual) = if https.is_some() { ("https", 443) } else { ("http", 80) };
    let limits = Limits::from(&args.limits);
    let mut options = Options {
        keys,
        ports: args.ports.clone(),
        bind: args.bind,
        domain: args.domain.map(|domain| domain.trim_matches('.').to_ascii_lowercase()),
        http_public: (scheme, http_port.filter(|port| *port != usual)),
        allow_v1: args.allow_v1,
        limits,
        exposer: None,
    };
    let drain = Drain::new();
    if let Some(only) = args.register {
        let failed = |problem: String| {
            CliError::new("--register: cannot take over Services").cause(Some(problem)).hint(Some(
                "run it in a pod with a service account: helm install relay charts/adit --set expose.enabled=true",
            ))
        };
        let relay = Relay::of_this_pod(args.bind).map_err(failed)?;
        let client = in_cluster().map_err(failed)?;
        options.exposer = Some(Exposer::start(client, relay, only, drain.clone()));
    }
    let (router, domain) = (relayed_router(), options.domain.clone().unwrap_or_default());
    let told = router.clone();
    let names_changed = move |names: Vec<HttpName>| told.store(Arc::new(with_names(&told.load(), names, &domain)));
    let server = Server::new(options, identity.relay_config()?, drain.clone(), names_changed);

    let mut text = format!("adit relay {} takes clients on {}\n", env!("CARGO_PKG_VERSION"), control.local_addr()?);
    text += &format!("identity  {}\n", identity.fingerprint());
    text += &format!("public    {} ports {}-{}\n", args.bind, args.ports.start(), args.ports.end());
    if let Some(http) = &http {
        text += &format!("names     {scheme} on {}\n", http.local_addr()?);
    }
    if args.allow_v1 {
        text += "version 1 is served: its secret and its bytes cross the network in the clear\n";
    }
    print(&text)?;

    drain.spawn(server.clone().serve(control));
    // It answers to the end, and so is none of the tasks that the drain waits for.
    let mut answering = std::pin::pin!(async {
        match admin {
            Some(listener) => relay::admin::serve(listener, server.clone(), drain.clone()).await,
            None => std::future::pending().await,
        }
    });
    if let Some(listener) = http {
        let metrics = Arc::new(Metrics::default());
        let tunnels = Manager::new(Arc::new(Relayed(server.clone())), drain.clone());
        let front = HttpFrontend::new(router, tunnels, metrics, drain.clone());
        drain.spawn(serve_http(listener, server.visitors().clone(), front, https, drain.clone()));
    }
    tokio::select! {
        () = signals.next() => {}
        never = answering.as_mut() => match never {},
    }
    let grace = limits.accepted.grace;
    info!("stopping: streams in progress have {grace:?}");
    tokio::select! {
        _ = drain.finish(grace) => Ok(ExitCode::SUCCESS),
        () = signals.next() => Ok(ExitCode::from(up::INTERRUPTED)),
        never = answering.as_mut() => match never {},
    }
}

/// Returns the router of a relay, where no name leads anywhere yet.
fn relayed_router() -> SharedRouter {
    let contexts = Arc::new(Contexts::default());
    let relayed = Some(Arc::new(BTreeMap::new()));
    let config = Arc::new(defaults::config());
    Arc::new(ArcSwap::from_pointee(Router { config, http_contexts: contexts.clone(), tcp_contexts: contexts, relayed }))
}

fn with_names(router: &Router, names: Vec<HttpName>, domain: &str) -> Router {
    let routes = names.into_iter().map(|HttpName { name, host }| {
        let (rewrite_location, header) =
            (host.is_some().then_some(true), host.map_or_else(HostHeader::default, HostHeader::Fixed));
        // Who may see a page of the public is for the service behind it to say.
        let allow_origins = vec!["*".to_owned()];
        let options = Arc::new(HttpOptions { allow_origins, host: header, rewrite_location, ..HttpOptions::default() });
        let host = format!("{name}.{domain}");
        let target = Target::Relayed(name.into());
        let idle_timeout = Duration::from_secs(60);
        (host.clone(), Route { name: host.into(), target, idle_timeout, options })
    });
    Router { relayed: Some(Arc::new(routes.collect())), ..router.clone() }
}

/// Takes visitors of names.
async fn serve_http(
    listener: TcpListener,
    admission: Arc<Admission>,
    front: Arc<HttpFrontend>,
    https: Option<Arc<rustls::ServerConfig>>,
    drain: Drain,
) {
    let mut id = 0;
    let is_plain = https.is_none();
    let serve = |stream: TcpStream, peer: SocketAddr, place: Place| {
        id += 1;
        let local = stream.local_addr().unwrap_or(peer);
        let connection = Arc::new(Connection { id, peer, local, ends: None, place: place.clone() });
        let (front, https, of_connection) = (front.clone(), https.clone(), drain.clone());
        let visiting = place.run(visit(stream, connection, front, https, of_connection));
        drain.spawn(async move {
            if visiting.await.is_none() {
                debug!(%peer, "connection of a visitor ended: it was silent, and others came");
            }
        });
    };
    let refuse = |stream, full| async move {
        if is_plain {
            refuse_http(stream, full).await;
        }
    };
    tokio::select! {
        never = accept::accept(&listener, &admission, SPARE_FILES, serve, refuse) => match never {},
        () = drain.started() => {}
    }
}

async fn visit(
    mut stream: TcpStream,
    connection: Arc<Connection>,
    front: Arc<HttpFrontend>,
    https: Option<Arc<rustls::ServerConfig>>,
    drain: Drain,
) {
    let limit = connection.place.limits().first_byte;
    // A visitor that has sent no request has nothing in progress.
    let is_over = drain.clone();
    if let Some(https) = https {
        let accepting = timeout(limit, TlsAcceptor::from(https).accept(ReadAhead::new(stream)));
        let accepted = tokio::select! {
            accepted = accepting => accepted,
            () = is_over.started() => return,
        };
        if let Ok(Ok(tls)) = accepted {
            let is_h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
            let version = if is_h2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
            front.serve(Box::new(tls), version, connection, true, drain).await;
        }
        return;
    }
    let first = tokio::select! {
        first = timeout(limit, first_bytes(&mut stream, BytesMut::new())) => first,
        () = is_over.started() => return,
    };
    let Ok(Ok((received, protocol))) = first else { return };
    let version = match protocol {
        Some(Protocol::Http1) => HttpVersion::Http1,
        Some(Protocol::Http2) => HttpVersion::Http2,
        _ => return,
    };
    let stream: BoxedIo = Box::new(Prefixed::new(received.freeze(), stream));
    front.serve(stream, version, connection, false, drain).await;
}
