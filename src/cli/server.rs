//! `adit server`: runs a relay for reverse tunnels.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    process::ExitCode,
};

use clap::Subcommand;

mod limits;

use self::limits::LimitArgs;
use super::{
    Globals,
    report::{CliError, print},
    runtime,
    up::{self, Signals},
};
use crate::{
    config::{RELAY_PORT, names::is_host},
    drain::Drain,
    relay::{
        app::{Bound, HttpSettings, PemFiles, Settings, StartError},
        auth::{self, Key},
        expose::Authority,
        server::{Limits, PublicOrigin},
    },
    telemetry::{self, Format},
};

#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  adit server genkey > secret\n  adit server --secret-file secret --bind 0.0.0.0\n  \
                  adit server --secret-file secret --http-listen 0.0.0.0:80 --domain example.com"
)]
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

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum AuthorizeBy {
    Keys,
    Kubernetes,
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Read the keys from this file, again when it changes: one secret, or lines of NAME SECRET [ports=...] [names=...]
    /// [services=...] [default: $ADIT_SECRET]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Public port range for tunnels
    #[arg(long, value_name = "FIRST-LAST", default_value = "10000-60000", value_parser = ports)]
    ports: std::ops::RangeInclusive<u16>,
    /// Address of the public ports
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    bind: IpAddr,
    /// Address to serve names on by HTTP
    #[arg(long, value_name = "ADDRESS", requires = "domain")]
    http_listen: Option<SocketAddr>,
    /// Domain of the names of tunnels
    #[arg(long, value_name = "DOMAIN", requires = "http_listen", value_parser = domain)]
    domain: Option<String>,
    /// Scheme and port of names in public addresses, behind a load balancer or an Ingress. If that terminates TLS, its X-Forwarded-For is kept [default: those of --http-listen]
    #[arg(long, value_name = "SCHEME[:PORT]", requires = "http_listen")]
    http_public: Option<PublicOrigin>,
    /// Certificate chain for the domain (PEM): names are served by https
    #[arg(long, value_name = "FILE", requires_all = ["http_tls_key", "http_listen"])]
    http_tls_cert: Option<PathBuf>,
    /// Private key for --http-tls-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "http_tls_cert")]
    http_tls_key: Option<PathBuf>,
    /// Certificate chain that clients see (PEM) [default: one created at each start, known by its fingerprint]
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key for --tls-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Serve /healthz, /readyz, /metrics and a page of the tunnels here, on loopback
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,
    /// Serve /healthz, /readyz and /metrics here, for Prometheus and the kubelet, without client names or addresses
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
    /// Serve version 1 too, which sends the secret and all data unencrypted
    #[arg(long)]
    allow_v1: bool,
    /// Let clients take over Services of the cluster of this pod, or of one namespace only (needs POD_NAME, POD_NAMESPACE, POD_UID
    /// and POD_IPS in the environment)
    #[arg(long, value_name = "NAMESPACE", num_args = 0..=1, require_equals = true)]
    register: Option<Option<String>>,
    /// Condition for a takeover: the client's key alone, or also the RBAC permissions of its user in the cluster
    #[arg(long, value_enum, default_value = "keys", requires = "register", value_name = "BY")]
    authorize: AuthorizeBy,
    #[command(flatten)]
    limits: LimitArgs,
}

fn domain(text: &str) -> Result<String, String> {
    let domain = text.trim_matches('.').to_ascii_lowercase();
    let is_domain = is_host(&domain) && domain.parse::<IpAddr>().is_err();
    is_domain
        .then_some(domain)
        .ok_or_else(|| "write a domain without scheme, port and *: tunnels.example.com".to_owned())
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
        None => SocketAddr::from((Ipv4Addr::UNSPECIFIED, RELAY_PORT)),
        Some(address) => address.parse().map_err(|_| {
            CliError::usage(format!("--listen: {address:?} is not an address with a port"))
                .hint(Some("write 0.0.0.0:7835"))
        })?,
    };
    let workers = globals.workers.map_or_else(runtime::of_relay, NonZeroUsize::get);
    runtime::serve(workers, serve(globals.format(), control, args.serve))
}

/// Returns the keys of a client: those of a file, else of the environment.
///
/// # Errors
/// There is no key, or the file cannot be read.
pub fn keys(file: Option<&PathBuf>) -> Result<Vec<Key>, CliError> {
    auth::load(file.map(PathBuf::as_path)).map_err(|error| {
        let hint = (error.kind() == io::ErrorKind::NotFound)
            .then_some("copy the secret file of the relay to this machine and name it with --secret-file, or set ADIT_SECRET to its content");
        CliError::from(StartError::Keys(error)).hint(hint)
    })
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> Self {
        let told = if matches!(error, StartError::Keys(_)) { Self::usage(&error) } else { Self::new(&error) };
        told.cause(Some(error.cause())).hint(error.hint())
    }
}

fn settings(control: SocketAddr, args: Serve) -> Result<Settings, CliError> {
    if args.admin_listen.is_some_and(|address| !address.ip().is_loopback()) {
        return Err(CliError::usage(
            "--admin-listen: its page lists clients without a password, so it has to be on loopback",
        )
        .hint(Some("write 127.0.0.1:9090; --metrics-listen serves metrics on other addresses")));
    }
    let pem = |chain: Option<PathBuf>, key: Option<PathBuf>| Some(PemFiles { chain: chain?, key: key? });
    let of_names = pem(args.http_tls_cert, args.http_tls_key);
    let http = args.http_listen.zip(args.domain);
    Ok(Settings {
        control,
        keys: args.secret_file,
        tls: pem(args.tls_cert, args.tls_key),
        http: http.map(|(listen, domain)| HttpSettings { listen, domain, tls: of_names, public: args.http_public }),
        admin: args.admin_listen,
        metrics: args.metrics_listen,
        ports: args.ports,
        bind: args.bind,
        allow_v1: args.allow_v1,
        register: args.register,
        authority: match args.authorize {
            AuthorizeBy::Keys => Authority::Keys,
            AuthorizeBy::Kubernetes => Authority::Kubernetes,
        },
        limits: Limits::from(&args.limits),
    })
}

async fn serve(format: Format, control: SocketAddr, args: Serve) -> Result<ExitCode, CliError> {
    let mut signals = Signals::new()?;
    let settings = settings(control, args)?;
    let (bind, ports, allow_v1) = (settings.bind, settings.ports.clone(), settings.allow_v1);
    let relay = Bound::bind(settings)?;

    let mut text = format!("adit relay {} listens for clients on {}\n", env!("CARGO_PKG_VERSION"), relay.control()?);
    text += &format!("identity  {}\n", relay.fingerprint());
    text += &format!("public    {bind} ports {}-{}\n", ports.start(), ports.end());
    if let Some((scheme, address)) = relay.http() {
        text += &format!("names     {scheme} on {address}\n");
    }
    if let Some(address) = relay.admin() {
        text += &format!("admin     http://{address}\n");
    }
    if let Some(address) = relay.metrics() {
        text += &format!("metrics   http://{address}/metrics\n");
    }
    if allow_v1 {
        text += "version 1 is served: its secret and its bytes cross the network in the clear\n";
    }
    up::started(format, &text)?;

    let drain = Drain::new();
    let mut running = std::pin::pin!(relay.run(drain.clone()));
    tokio::select! {
        ended = running.as_mut() => return ended.map(|()| ExitCode::SUCCESS).map_err(CliError::from),
        () = signals.next() => drain.start(),
    }
    tokio::select! {
        ended = running => ended.map(|()| ExitCode::SUCCESS).map_err(CliError::from),
        () = signals.next() => Ok(ExitCode::from(up::INTERRUPTED)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_a_hostname_without_scheme_port_or_wildcard() {
        for (text, wanted) in
            [("example.com", "example.com"), (".Example.com.", "example.com"), ("localhost", "localhost")]
        {
            assert_eq!(domain(text).as_deref(), Ok(wanted), "{text}");
        }
        for wrong in ["http://example.com", "*.example.com", "x y", "example.com:80", "", "10.0.0.1"] {
            assert!(domain(wrong).is_err(), "{wrong}");
        }
    }
}
