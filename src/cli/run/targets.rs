//! The targets of a command: parsed, bound to local ports, and opened.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use futures::future::join_all;
use tokio::net::TcpListener;

use crate::{
    app::{
        opened::{self, Opened, is_name},
        reach::{At, Reach, place_of},
    },
    cli::{
        Globals,
        progress::Progress,
        report::CliError,
        running::{self, Running},
    },
    config::Namespace,
    routing::{Named, NamedError, Router},
    tunnel::OpenError,
};

/// A requested target.
pub struct Asked {
    /// `None`: a route of the configuration.
    pub name: Option<String>,
    pub named: Named,
}

/// A target with its local port, which already accepts connections.
pub struct Bound {
    asked: Asked,
    at: Place,
}

enum Place {
    Own(TcpListener, SocketAddr),
    /// The running adit's port of a route.
    OfRunning(SocketAddr),
}

impl From<NamedError> for CliError {
    fn from(error: NamedError) -> Self {
        let hint = error.hint();
        match error {
            NamedError::Malformed { .. } | NamedError::Namespace(_) => Self::usage(&error).hint(hint),
            NamedError::Route(_) => Self::new(&error).hint(hint),
        }
    }
}

/// Splits each `NAME=TARGET` of a command line.
///
/// # Errors
/// A name is missing, not valid for a variable, or that of another target.
pub fn split_all(texts: &[String]) -> Result<Vec<(&str, &str)>, CliError> {
    let mut names = HashSet::new();
    let mut all = Vec::new();
    for text in texts {
        let (name, target) = split(text)?;
        if !names.insert(opened::upper(name)) {
            return Err(CliError::usage(format!("--to: two targets have the name {name:?}"))
                .hint(Some("their variables would have one name: give each its own")));
        }
        all.push((name, target));
    }
    Ok(all)
}

fn split(text: &str) -> Result<(&str, &str), CliError> {
    let (name, target) = text.split_once('=').unwrap_or_default();
    let message = match name {
        "" => format!("--to: {text:?} is not NAME=TARGET"),
        name if !is_name(name) => {
            let rule = "a letter first, then letters, digits, hyphens and underscores";
            format!("--to: {name:?} is not a variable name: {rule}")
        }
        name => return Ok((name, target)),
    };
    Err(CliError::usage(message).hint(Some("write db=postgres.shop: the name makes DB_HOST and DB_PORT")))
}

impl Asked {
    /// Parses each `NAME=TARGET` of a command line.
    ///
    /// # Errors
    /// A name or a target is not valid, or two have one name.
    pub fn parse_all(texts: &[String], router: &Router, namespace: Option<&Namespace>) -> Result<Vec<Self>, CliError> {
        let parse = |(name, target): (&str, &str)| {
            Ok(Self { name: Some(name.to_owned()), named: router.named(target, namespace)? })
        };
        split_all(texts)?.into_iter().map(parse).collect()
    }

    /// Returns every TCP route of the configuration.
    ///
    /// # Errors
    /// A route has no context.
    pub fn routes(router: &Router) -> Result<Vec<Self>, CliError> {
        let name = |address: &SocketAddr| Ok(Self { name: None, named: router.named(&address.to_string(), None)? });
        router.config.tcp.routes.keys().map(name).collect()
    }

    /// Returns the address to listen on; port 0: any.
    fn address(&self) -> SocketAddr {
        match (&self.name, self.named.listener) {
            (None, Some(listener)) => listener,
            _ => SocketAddr::from((Ipv4Addr::LOCALHOST, self.named.local_port.unwrap_or(0))),
        }
    }

    /// Binds its local port, unless the running adit already serves this route.
    ///
    /// # Errors
    /// Another program uses the port.
    pub fn bind(self, reach: &Reach, running: Option<&Running>) -> Result<Bound, CliError> {
        let address = self.address();
        if let Some(running) = running.filter(|running| self.name.is_none() && running.serves(address)) {
            running.only_for(&self.named)?;
            return Ok(Bound { asked: self, at: Place::OfRunning(address) });
        }
        let asked_by = match &self.name {
            Some(name) => format!("--to {name}"),
            None => format!("tcp.k8s.routes.{}", address.port()),
        };
        let (listener, address) = reach.forwards.bind(address, &asked_by).map_err(|error| {
            let hint = match (error.source.kind(), &self.name) {
                (std::io::ErrorKind::AddrInUse | std::io::ErrorKind::PermissionDenied, Some(name)) => {
                    format!("leave out @{} to get a free port: --to {name}={}", error.address.port(), self.named)
                }
                (std::io::ErrorKind::AddrInUse, None) => {
                    "it is the port of a route of tcp.k8s; name targets with --to NAME=TARGET to get free ports"
                        .to_owned()
                }
                _ => error.hint().unwrap_or_default(),
            };
            CliError::new(&error).hint(Some(hint).filter(|hint| !hint.is_empty()))
        })?;
        Ok(Bound { asked: self, at: Place::Own(listener, address) })
    }
}

impl Bound {
    async fn open(
        self,
        globals: &Globals,
        reach: &Reach,
        running: Option<&Running>,
        wait: Option<Duration>,
        progress: Progress,
    ) -> Result<Opened, CliError> {
        let Self { asked: Asked { name, named }, at } = self;
        let opened = match (at, running) {
            (Place::Own(listener, address), _) => {
                let told = |error: &OpenError| progress.waits(&named.text, error);
                reach.open(name, &named, At::Bound(listener, address), wait, told).await.map_err(CliError::from)
            }
            (Place::OfRunning(address), Some(running)) => {
                let at_port =
                    running.port(name, &address.to_string(), place_of(&named.route.target), wait, progress).await;
                at_port.map_err(running::unreachable).and_then(|opened| {
                    opened.ok_or_else(|| CliError::new(format!("the running adit has no port for {address}")))
                })
            }
            (Place::OfRunning(address), None) => Err(CliError::new(format!("no adit runs that serves {address}"))),
        };
        opened.map_err(|error| error.doctor(globals, &named.text))
    }
}

/// Opens all targets concurrently.
///
/// # Errors
/// An error for each target that cannot be reached.
pub async fn open_all(
    globals: &Globals,
    bound: Vec<Bound>,
    reach: &Reach,
    running: Option<&Running>,
    wait: Option<Duration>,
    progress: Progress,
) -> Result<Vec<Opened>, Vec<CliError>> {
    let opening = bound.into_iter().map(|bound| bound.open(globals, reach, running, wait, progress));
    let (mut opened, mut errors) = (Vec::new(), Vec::new());
    for one in join_all(opening).await {
        match one {
            Ok(one) => opened.push(one),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(opened) } else { Err(errors) }
}
