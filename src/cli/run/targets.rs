//! Targets of a command: named, looked up, bound to local ports, and waited for.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use tokio::{net::TcpListener, time::Instant};

use super::{
    progress::Progress,
    variables::{Opened, OpenedService, is_name},
};
use crate::{
    app::forwards::Forwards,
    cli::report::CliError,
    config::{Namespace, PortRef, Scheme, Workload},
    frontend::http::error_page::Page,
    k8s::{ClusterError, ServicePort, client::Clusters, ports::is_web, resolve},
    routing::{Named, NamedError, Route, Router, Target},
    tunnel::{OpenError, Patience, reach::passes},
};

/// How long a pod may take to refuse a connection: as long as a request to the API server took, within these bounds.
const SETTLE: (Duration, Duration) = (Duration::from_millis(150), Duration::from_secs(2));

/// The same where no request was measured.
const SETTLE_UNMEASURED: Duration = Duration::from_millis(300);

/// Between two attempts of a look-up.
const PAUSE: Duration = Duration::from_millis(250);

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

/// What a look-up found.
struct Found {
    /// The port that is meant, where it is known.
    port: Option<ServicePort>,
    /// All ports of the Service, where it is one.
    all: Vec<ServicePort>,
    /// How long a request took.
    took: Option<Duration>,
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
    pub fn bind(self, forwards: &Forwards) -> Result<Bound, CliError> {
        let asked_by = match &self.name {
            Some(name) => format!("--to {name}"),
            None => format!("tcp.k8s.routes.{}", self.address().port()),
        };
        let (listener, address) = forwards.bind(self.address(), &asked_by).map_err(|error| {
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
    /// Looks the target up, serves it, and waits until it can be reached. `wait`: for how long; None: not at all.
    ///
    /// # Errors
    /// It cannot be had.
    pub async fn open(
        self,
        clusters: &Clusters,
        forwards: &Forwards,
        wait: Option<Duration>,
        progress: Progress,
    ) -> Result<Opened, CliError> {
        let Self { asked: Asked { name, named }, address, listener } = self;
        let target = named.route.target.clone();
        let cannot = |error: OpenError| unreachable(&error, &target);
        // A sign-in waits for a person, and not for the cluster: it has its own time.
        if let Some(pods) = target.pods() {
            clusters.get(&pods.cluster).await.map_err(|error| cannot(error.into()))?;
        }
        let until = Instant::now() + wait.unwrap_or_default();
        let told = |error: &OpenError| progress.waits(&named.text, error);
        let found = look_up(clusters, &target, until, told).await.map_err(|error| cannot(error.into()))?;
        let route = with_port(&named.route, found.port.as_ref());
        let others = found.all.iter().filter(|port| found.port.as_ref() != Some(port));
        let mut ports = Vec::new();
        for port in others {
            let (listener, local) = forwards.bind((Ipv4Addr::LOCALHOST, 0).into(), "--to").map_err(CliError::new)?;
            forwards.serve(listener, with_port(&named.route, Some(port)));
            ports.push((port.clone(), local));
        }
        forwards.serve(listener, route.clone());
        let mut port = found.port;
        if wait.is_some() {
            let settle = found.took.map_or(SETTLE_UNMEASURED, |took| took.clamp(SETTLE.0, SETTLE.1));
            let patience = Patience { until, settle, may_pass: passes };
            let reached = forwards.tunnels().reach(&route.target, route.idle_timeout, patience, told).await;
            port = port.or(Some(reached.map_err(cannot)?.port.clone()));
        }
        let service = service_of(&target).filter(|_| !found.all.is_empty()).map(|name| {
            let at = |port: &ServicePort| ports.iter().find(|(other, _)| other == port).map_or(address, |(_, at)| *at);
            let ports = found.all.iter().map(|port| (port.clone(), at(port))).collect();
            OpenedService { name: name.to_owned(), ports }
        });
        let told_scheme = port
            .as_ref()
            .filter(|port| is_web(port))
            .map(|port| port.hint().unwrap_or(if port.number == 8443 { Scheme::Https } else { Scheme::Http }));
        Ok(Opened { name, address, scheme: route.options.scheme.or(told_scheme), port, service })
    }
}

/// Opens all of them at the same time.
///
/// # Errors
/// Those of all that cannot be had.
pub async fn open_all(
    bound: Vec<Bound>,
    clusters: &Clusters,
    forwards: &Forwards,
    wait: Option<Duration>,
    progress: Progress,
) -> Result<Vec<Opened>, Vec<CliError>> {
    let opening = bound.into_iter().map(|bound| bound.open(clusters, forwards, wait, progress));
    let (mut opened, mut errors) = (Vec::new(), Vec::new());
    for one in join_all(opening).await {
        match one {
            Ok(one) => opened.push(one),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(opened) } else { Err(errors) }
}

/// Returns the error for a target that cannot be reached: the text of its page.
pub fn unreachable(error: &OpenError, target: &Target) -> CliError {
    let page = match error {
        OpenError::Stream(fault) => Page::of_stream(fault, &target.to_string()),
        error => Page::of_open(error, ""),
    };
    CliError::new(page.title).cause(page.cause).hint(page.hint)
}

fn service_of(target: &Target) -> Option<&str> {
    match target.pods().filter(|pods| pods.jump.is_none()).map(|pods| &pods.workload) {
        Some(Workload::Service(name)) => Some(name),
        _ => None,
    }
}

/// Looks up the ports of a Service, and again while that fails for a reason that passes.
async fn look_up(
    clusters: &Clusters,
    target: &Target,
    until: Instant,
    told: impl Fn(&OpenError),
) -> Result<Found, ClusterError> {
    let (Some(pods), Some(service)) = (target.pods(), service_of(target)) else {
        return Ok(Found { port: None, all: Vec::new(), took: None });
    };
    loop {
        let started = Instant::now();
        let looking = async {
            let cluster = clusters.get(&pods.cluster).await?;
            resolve::ports_of(&cluster, &pods.namespace, service, &pods.port).await
        };
        let error = match looking.await {
            Ok(ports) => return Ok(Found { port: ports.meant, all: ports.all, took: Some(started.elapsed()) }),
            Err(error) => error,
        };
        let shown = error.clone().into();
        if !passes(&shown) || Instant::now() + PAUSE >= until {
            return Err(error);
        }
        told(&shown);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Returns the route to this port of the same Service.
fn with_port(route: &Route, port: Option<&ServicePort>) -> Route {
    let target = match (&route.target, port) {
        (Target::Pods(pods), Some(port)) => {
            Target::Pods(Arc::new(crate::routing::PodTarget { port: PortRef::Number(port.number), ..(**pods).clone() }))
        }
        (target, _) => target.clone(),
    };
    Route { target, ..route.clone() }
}
