//! The targets of a command: parsed, bound to local ports, and opened.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use futures::future::join_all;
use tokio::net::TcpListener;

use super::progress::Progress;
use crate::{
    app::{
        opened::{Opened, is_name},
        reach::{At, Reach},
    },
    cli::report::CliError,
    config::Namespace,
    routing::{Named, NamedError, Router},
    tunnel::OpenError,
};

/// A target that was asked for.
pub struct Asked {
    /// None: a route of the configuration, which has no name of its own.
    pub name: Option<String>,
    pub named: Named,
}

/// A target with its local ports, which take connections already.
pub struct Bound {
    asked: Asked,
    address: SocketAddr,
    listener: TcpListener,
}

impl From<NamedError> for CliError {
    fn from(error: NamedError) -> Self {
        let hint = error.hint();
        match error {
            NamedError::Malformed { .. } => Self::usage(&error).hint(hint),
            NamedError::Route(_) => Self::new(&error).hint(hint),
        }
    }
}

impl Asked {
    /// Parses `NAME=TARGET`.
    ///
    /// # Errors
    /// The name is none, or the text names no target.
    pub fn parse(text: &str, router: &Router, namespace: Option<&Namespace>) -> Result<Self, CliError> {
        let (name, target) = text.split_once('=').unwrap_or_default();
        if !is_name(name) {
            return Err(CliError::usage(format!("--to: {text:?} is not NAME=TARGET"))
                .hint(Some("write db=postgres.shop: the name makes DB_HOST and DB_PORT")));
        }
        let named = router.named(target, namespace)?;
        Ok(Self { name: Some(name.to_owned()), named })
    }

    /// Returns every TCP route of the configuration.
    ///
    /// # Errors
    /// There is no context for one.
    pub fn routes(router: &Router) -> Result<Vec<Self>, CliError> {
        let name = |address: &SocketAddr| Ok(Self { name: None, named: router.named(&address.to_string(), None)? });
        router.config.tcp.routes.keys().map(name).collect()
    }

    /// Returns where it is to listen: port 0 where any will do.
    fn address(&self) -> SocketAddr {
        match (&self.name, self.named.listener) {
            (None, Some(listener)) => listener,
            _ => SocketAddr::from((Ipv4Addr::LOCALHOST, self.named.local_port.unwrap_or(0))),
        }
    }

    /// Binds its local port.
    ///
    /// # Errors
    /// Another program has it.
    pub fn bind(self, reach: &Reach) -> Result<Bound, CliError> {
        let asked_by = match &self.name {
            Some(name) => format!("--to {name}"),
            None => format!("tcp.k8s.routes.{}", self.address().port()),
        };
        let (listener, address) = reach.forwards.bind(self.address(), &asked_by).map_err(|error| {
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
        Ok(Bound { asked: self, address, listener })
    }
}

impl Bound {
    async fn open(self, reach: &Reach, wait: Option<Duration>, progress: Progress) -> Result<Opened, CliError> {
        let Self { asked: Asked { name, named }, address, listener } = self;
        let told = |error: &OpenError| progress.waits(&named.text, error);
        let opened = reach.open(name, &named, At::Bound(listener, address), wait, told).await;
        opened.map_err(|error| CliError::from(error).doctor(&named.text))
    }
}

/// Opens all of them at the same time.
///
/// # Errors
/// Those of all that cannot be had.
pub async fn open_all(
    bound: Vec<Bound>,
    reach: &Reach,
    wait: Option<Duration>,
    progress: Progress,
) -> Result<Vec<Opened>, Vec<CliError>> {
    let opening = bound.into_iter().map(|bound| bound.open(reach, wait, progress));
    let (mut opened, mut errors) = (Vec::new(), Vec::new());
    for one in join_all(opening).await {
        match one {
            Ok(one) => opened.push(one),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(opened) } else { Err(errors) }
}
