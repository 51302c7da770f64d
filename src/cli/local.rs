//! `adit local`: exposes local ports through a relay.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use super::{
    Globals, Output,
    report::{CliError, print, warning},
    run::signals::{ENDS, Signals},
    server, up,
};
use crate::{
    config::{RelayAddress, names::host_header, shell::quoted},
    drain::Drain,
    relay::{
        auth,
        client::{self, ClientState, Direct, Fatal, LocalEnd, Options, Refusals, Wanted},
        tls::Trust,
    },
    telemetry,
    tls::Fingerprint,
    wire::relay::Kind,
};

/// Time limit for goodbyes and open streams at the end.
const GRACE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  adit local 3000 --to relay.example.com\n  adit local 5432:20000 --to relay.example.com --secret-file secret\n  \
                        adit local 3000 --name web --host rewrite --to relay.example.com"
)]
pub struct Args {
    /// Local ports, each optionally with the public port to ask for: 3000, or 5432:20000
    #[arg(required = true, value_name = "PORT[:PUBLIC]")]
    ports: Vec<String>,
    /// Address of the relay [default port: 7835]
    #[arg(long, value_name = "HOST[:PORT]")]
    to: String,
    /// The host of the local service [default: 127.0.0.1 and [::1], whichever answers]
    #[arg(long, value_name = "HOST")]
    local_host: Option<String>,
    /// Public port of the first local port [default: any free port]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Name below the relay's domain that serves the first port by HTTP
    #[arg(long, value_name = "NAME", conflicts_with = "port")]
    name: Option<String>,
    /// The Host header that the local service gets [default: the public name]: "rewrite", which means localhost and its port, for dev
    /// servers that refuse public names (Vite, webpack, Rails), or a host
    #[arg(long, value_name = "HOST", requires = "name")]
    host: Option<String>,
    /// Read the secret, or the first of several keys, from this file [default: $ADIT_SECRET]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Only accept a relay whose certificate has this SHA-256 fingerprint: sha256:... [default: any; the secret proves the relay]
    #[arg(long, value_name = "FINGERPRINT")]
    fingerprint: Option<Fingerprint>,
    /// Verify the relay's certificate against this CA bundle (PEM) [default: none; the secret proves the relay]
    #[arg(long, value_name = "FILE", conflicts_with = "fingerprint")]
    ca: Option<PathBuf>,
    /// Output format [default: text]; json is a line each time that the tunnels open
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

pub fn run(globals: &Globals, args: Args) -> Result<ExitCode, CliError> {
    let options = options(&args)?;
    telemetry::init(globals.format(), globals.verbose);
    up::raise_open_file_limit();
    up::run_to_end(async {
        let mut signals = Signals::new(ENDS)?;
        let is_json = args.output == Some(Output::Json);
        let local_host = options.local_host.clone();
        let opened = move |open: &[client::Open]| {
            let text = match is_json {
                true => serde_json::to_string(open).map(|json| format!("{json}\n")).unwrap_or_default(),
                false => {
                    let local = |open: &client::Open| LocalEnd::new(local_host.as_deref(), open.local_port);
                    open.iter().map(|open| format!("{} -> {}\n", open.public, local(open))).collect()
                }
            };
            // If stdout is closed, the tunnels stay open.
            let _ = print(&text);
        };
        // A pipe can be read only once. `/dev/stdin` may be a file whose end was reached.
        let is_kept = |file: &&Path| file.is_file() && !file.starts_with("/dev");
        let secret_file = args.secret_file.as_deref().filter(is_kept);
        let again = || {
            // The secret may have changed on both ends, so read it for each attempt.
            let Some(file) = secret_file else { return Ok(options.clone()) };
            let keys = auth::load(Some(file)).map_err(|error| Fatal::Setup(error.to_string()))?;
            let key = keys.into_iter().next().ok_or_else(|| Fatal::Setup("there is no secret".to_owned()))?;
            Ok(Options { key: key.name, secret: key.secret, ..options.clone() })
        };
        let hint = Some("take another port or name, or leave the choice to the relay");
        let refused_host = |port| rewriting(&args, options.tunnels.iter().find(|wanted| wanted.local_port == port));
        serve(again, opened, hint, refused_host, &mut signals).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Runs a client until it gives up, or the user ends it. Then it says goodbye, so that its ports and names are free at once.
/// `refused`: hint for a tunnel that the relay does not open. `refused_host`: hint for a local port whose service refuses the
/// Host header of visitors.
///
/// # Errors
/// The relay refuses the client for good.
pub async fn serve(
    options: impl Fn() -> Result<Options, Fatal>,
    opened: impl Fn(&[client::Open]),
    refused: Option<&str>,
    refused_host: impl Fn(u16) -> String,
    signals: &mut Signals,
) -> Result<(), CliError> {
    let drain = Drain::new();
    // A client that reconnects reports a port again.
    let warned = RefCell::new(BTreeSet::new());
    let tell = |state: &ClientState| match state {
        ClientState::Open(open) => opened(open),
        ClientState::HostRefused { local_port } => {
            if warned.borrow_mut().insert(*local_port) {
                let message = format!("the service on local port {local_port} refuses the Host header of its visitors");
                warning(&message, &refused_host(*local_port));
            }
        }
        // The log reports it.
        ClientState::Waiting { .. } => {}
    };
    let mut running = std::pin::pin!(client::run(options, Refusals::End, drain.clone(), tell));
    tokio::select! {
        ended = &mut running => ended.map_err(|error| told(error, refused))?,
        _ = signals.next() => {
            drain.start();
            // Do not wait for a relay that does not answer the goodbye.
            let _ = tokio::time::timeout(GRACE, running).await;
        }
    }
    drain.finish(GRACE).await;
    Ok(())
}

/// Parses a local port and an optional second one, 0 if absent. `other`: name of the second port, and an example.
///
/// # Errors
/// A port is no number of 1 to 65535.
pub fn ports(text: &str, other: (&str, u16)) -> Result<(u16, u16), CliError> {
    let (local, public) = text.split_once(':').map_or((text, None), |(local, public)| (local, Some(public)));
    let parse = |port: &str| port.parse::<u16>().ok().filter(|port| *port > 0);
    let wrong = || {
        let (what, example) = other;
        CliError::usage(format!("invalid port {text:?}: neither PORT nor PORT:{what}, two numbers from 1 to 65535"))
            .hint(Some(format!("write 3000, or 3000:{example}")))
    };
    let port = public.map(|port| parse(port).ok_or_else(wrong)).transpose()?.unwrap_or(0);
    Ok((parse(local).ok_or_else(wrong)?, port))
}

/// Returns the error of a client that has given up.
fn told(error: Fatal, refused: Option<&str>) -> CliError {
    let hint = match &error {
        Fatal::Rejected { .. } | Fatal::Stranger { .. } => {
            Some("both ends need the same secret: --secret-file, or ADIT_SECRET".to_owned())
        }
        Fatal::Certificate { .. } => Some(
            "'adit server' prints the relay's fingerprint at its start; if it is another relay, do not trust it"
                .to_owned(),
        ),
        Fatal::NoRelay { .. } => Some("--to is the relay's control port, 7835 where none is given".to_owned()),
        Fatal::Refused { .. } => refused.map(str::to_owned),
        Fatal::Undone { .. } | Fatal::Setup(_) => None,
    };
    CliError::new(error).hint(hint)
}

/// Returns the hint for a tunnel whose service refuses the Host header of visitors: the command that rewrites it.
fn rewriting(args: &Args, wanted: Option<&Wanted>) -> String {
    let name = wanted.filter(|wanted| wanted.kind == Kind::Http).map(|wanted| wanted.name.as_str());
    let (name, host) = name.map_or(("NAME", None), |name| match name.split_once('=') {
        Some((name, host)) => (name, Some(host)),
        None => (name, None),
    });
    let allow = host.map(|host| format!("allow {host} in the service's own configuration"));
    if let (Some(allow), Some("rewrite")) = (&allow, args.host.as_deref()) {
        return allow.clone();
    }
    let file = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let given = [
        ("to", Some(args.to.clone())),
        ("local-host", args.local_host.clone()),
        ("secret-file", file(&args.secret_file)),
        ("fingerprint", args.fingerprint.as_ref().map(ToString::to_string)),
        ("ca", file(&args.ca)),
    ];
    let words = given.into_iter().filter_map(|(option, value)| Some(format!(" --{option} {}", quoted(&value?))));
    let port = wanted.map_or_else(|| "PORT".to_owned(), |wanted| wanted.local_port.to_string());
    let command = format!("adit local {port} --name {} --host rewrite{}", quoted(name), words.collect::<String>());
    allow.map_or_else(|| command.clone(), |allow| format!("{allow}, or: {command}"))
}

fn options(args: &Args) -> Result<Options, CliError> {
    let keys = server::keys(args.secret_file.as_ref())?;
    let key = keys.into_iter().next().ok_or_else(|| CliError::usage("there is no secret"))?;
    let mut tunnels = Vec::new();
    for text in &args.ports {
        let (local_port, port) = ports(text, ("PUBLIC", 20_000))?;
        tunnels.push(Wanted { local_port, kind: Kind::Tcp, port, name: String::new() });
    }
    if let Some(port) = args.port {
        tunnels[0].port = port;
    }
    if let Some(name) = &args.name {
        if tunnels[0].port != 0 {
            return Err(CliError::usage(format!("{}: --name serves it by HTTP, without a public port", args.ports[0]))
                .hint(Some(format!("write {} --name {name}", tunnels[0].local_port))));
        }
        (tunnels[0].kind, tunnels[0].name) = (Kind::Http, name.clone());
    }
    if let Some(host) = &args.host {
        let header = host_header(host, args.local_host.as_deref(), tunnels[0].local_port);
        let header = header.ok_or_else(|| {
            CliError::usage(format!("--host: {host:?} is not a host"))
                .hint(Some("write --host rewrite, or --host shop.test:3000"))
        })?;
        tunnels[0].name += &format!("={header}");
    }
    let relay: RelayAddress = args.to.parse().map_err(|_| {
        CliError::usage(format!("--to: {:?} is not a relay", args.to))
            .hint(Some("write relay.example.com, or relay.example.com:7835"))
    })?;
    let trust = Trust::of(args.fingerprint, args.ca.as_ref());
    let local_host = args.local_host.clone();
    let dial = Arc::new(Direct { host: relay.host().to_owned(), port: relay.port() });
    Ok(Options { dial, key: key.name, secret: key.secret, trust, local_host, tunnels })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_refused_host_has_the_command_that_rewrites_it() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("my secret");
        std::fs::write(&secret, "a-secret-of-the-tests").unwrap();
        let hint = |arguments: &str, port: u16| {
            let mut words: Vec<_> = ["adit"].into_iter().chain(arguments.split(' ')).map(str::to_owned).collect();
            words.extend(["--to", "relay.test", "--secret-file"].map(str::to_owned));
            let args = Cli::try_parse_from(words.into_iter().chain([secret.display().to_string()])).unwrap().args;
            let tunnels = options(&args).unwrap().tunnels;
            rewriting(&args, tunnels.iter().find(|wanted| wanted.local_port == port))
        };
        let rest = format!("--host rewrite --to relay.test --secret-file '{}'", secret.display());
        assert_eq!(hint("3000:20000", 3000), format!("adit local 3000 --name NAME {rest}"));
        assert_eq!(hint("3000 3001 --name web", 3000), format!("adit local 3000 --name web {rest}"));
        assert_eq!(hint("3000 3001 --name web", 3001), format!("adit local 3001 --name NAME {rest}"));
        let allow = |host: &str| format!("allow {host} in the service's own configuration");
        let other = hint("3000 --name web --host shop.test", 3000);
        assert_eq!(other, format!("{}, or: adit local 3000 --name web {rest}", allow("shop.test")));
        assert_eq!(hint("3000 --name web --host rewrite", 3000), allow("localhost:3000"));
    }

    #[test]
    fn a_port_that_nobody_would_listen_on_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "a-secret-of-the-tests").unwrap();
        let options = |arguments: &str| {
            let common = format!("adit {arguments} --to relay.test --secret-file {}", secret.display());
            options(&Cli::try_parse_from(common.split(' ')).unwrap().args)
        };
        let told = |arguments: &str| options(arguments).err().unwrap().to_string();
        let refused = told("3000:20000 --name web");
        assert!(refused.contains("3000:20000: --name serves it by HTTP, without a public port"), "{refused}");
        let tunnels = options("3000 3001:20001 --name web").unwrap().tunnels;
        assert_eq!((tunnels[0].kind, tunnels[1].port), (Kind::Http, 20_001));
        assert!(told("3000:http").contains("invalid port \"3000:http\": neither PORT nor PORT:PUBLIC"));
        let of_service = ports("3000:http", ("SERVICE-PORT", 80)).unwrap_err().to_string();
        assert!(of_service.contains("neither PORT nor PORT:SERVICE-PORT"), "{of_service}");
    }
}
