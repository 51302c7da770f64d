//! Resolves the targets that a command needs, binds them to local ports, and waits until they can be reached.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    BindError,
    forwards::Forwards,
    opened::{Opened, OpenedService},
};
use crate::{
    backend::Backends,
    config::{PortRef, Scheme},
    drain::Drain,
    frontend::http::error_page::Page,
    io::BoxedIo,
    k8s::{ServicePort, client::Clusters, ports::is_web, resolve},
    routing::{Named, NamedError, PodTarget, Route, Target},
    tunnel::{
        Lease, OpenError, Patience,
        reach::{passes, passes_or_appears},
    },
};

/// Minimum and maximum time in which a pod may refuse a connection. In between, it is the measured time of a request to the API
/// server.
const SETTLE: (Duration, Duration) = (Duration::from_millis(150), Duration::from_secs(2));

/// The same time if no request was measured.
const SETTLE_UNMEASURED: Duration = Duration::from_millis(300);

/// Time for the list of a Service's ports, for callers that do not wait for the target.
pub(super) const LOOK_UP: Duration = Duration::from_secs(5);

/// Interval between two attempts.
const PAUSE: Duration = Duration::from_millis(250);

/// Error of a target that cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    #[error(transparent)]
    Named(#[from] NamedError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("{target}: {error}")]
    Open { target: Target, error: OpenError },
}

/// An error for people: what failed, the cause, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub message: String,
    pub cause: Option<String>,
    pub hint: Option<String>,
}

impl ReachError {
    /// Returns the error in the words of its error page.
    pub fn told(&self) -> Told {
        match self {
            Self::Named(error) => Told { message: error.to_string(), cause: None, hint: error.hint() },
            Self::Bind(error) => Told { message: error.to_string(), cause: None, hint: error.hint() },
            Self::Open { target, error } => {
                let page = match error {
                    OpenError::Stream(fault) => Page::of_stream(fault, &target.to_string()),
                    OpenError::TimedOut { .. } => {
                        return Told { message: format!("{target}: {error}"), cause: None, hint: None };
                    }
                    OpenError::SigningIn { .. } => {
                        let message = format!("{target}: the time limit passed before adit was signed in");
                        return Told { message, cause: Some(error.to_string()), hint: None };
                    }
                    error => Page::of_open(error, ""),
                };
                Told { message: page.title, cause: page.cause, hint: page.hint }
            }
        }
    }
}

/// Reaches targets through the tunnels of one process.
#[derive(Clone)]
pub struct Reach {
    pub clusters: Arc<Clusters>,
    pub forwards: Forwards,
}

/// Ports of a target.
struct Found {
    /// The requested port, if known.
    port: Option<ServicePort>,
    /// All ports of the Service, if the target is one.
    all: Vec<ServicePort>,
    /// Time that the request to the API server took. `None`: there was none.
    took: Option<Duration>,
}

impl Found {
    const NONE: Self = Self { port: None, all: Vec::new(), took: None };
}

impl Reach {
    /// Returns an instance with tunnels of its own, for a command.
    pub fn new(clusters: Arc<Clusters>) -> Self {
        let drain = Drain::new();
        let backends = Backends::new(clusters.clone(), std::env::current_exe().ok(), drain.clone());
        Self { clusters, forwards: Forwards::new(Arc::new(backends), drain) }
    }

    /// Opens a connection to a target within `wait`. Calls `told` with each new reason to wait.
    ///
    /// # Errors
    /// The target cannot be reached.
    pub async fn stream_within(
        &self,
        route: &Route,
        wait: Duration,
        told: impl Fn(&OpenError),
    ) -> Result<(Lease, BoxedIo), ReachError> {
        let until = Instant::now() + wait;
        let mut last = None;
        loop {
            let mut opening = std::pin::pin!(self.stream(route, until));
            let failed = loop {
                tokio::select! {
                    opened = &mut opening => match opened {
                        Ok(opened) => return Ok(opened),
                        Err(ReachError::Open { error, .. }) if passes(&error) && Instant::now() + PAUSE < until => break error,
                        // An earlier attempt may have found the reason; it says more than the timeout.
                        Err(ReachError::Open { target, error: late @ OpenError::TimedOut { .. } }) => {
                            return Err(ReachError::Open { target, error: last.unwrap_or(late) });
                        }
                        Err(error) => return Err(error),
                    },
                    trouble = self.forwards.tunnels().next_trouble(&route.target, last.as_ref()) => {
                        told(&trouble);
                        last = Some(trouble);
                    }
                }
            };
            if last.as_ref() != Some(&failed) {
                told(&failed);
            }
            last = Some(failed);
            sleep(PAUSE).await;
        }
    }

    /// Resolves a target, and waits up to `wait` until it can be reached. `None`: does not try to reach it. Calls `told` with
    /// each new reason to wait.
    ///
    /// # Errors
    /// The target cannot be reached, or does not exist.
    pub async fn check(
        &self,
        named: &Named,
        wait: Option<Duration>,
        told: impl Fn(&OpenError),
    ) -> Result<Checked, ReachError> {
        self.check_while(passes, named, wait, told).await
    }

    /// Does the same, but also waits for a Service, a pod or a namespace that does not exist yet.
    ///
    /// # Errors
    /// The target cannot be reached within `wait`.
    pub async fn wait_for(
        &self,
        named: &Named,
        wait: Duration,
        told: impl Fn(&OpenError),
    ) -> Result<Checked, ReachError> {
        self.check_while(passes_or_appears, named, Some(wait), told).await
    }

    async fn check_while(
        &self,
        may_pass: fn(&OpenError) -> bool,
        named: &Named,
        wait: Option<Duration>,
        told: impl Fn(&OpenError),
    ) -> Result<Checked, ReachError> {
        let target = named.route.target.clone();
        let cannot = |error: OpenError| ReachError::Open { target: target.clone(), error };
        if let Some(pods) = target.pods() {
            self.clusters.get(&pods.cluster).await.map_err(|error| cannot(error.into()))?;
        }
        let until = Instant::now() + wait.unwrap_or(LOOK_UP);
        let found = match look_up(&self.clusters, &target, until, may_pass, &told).await {
            Ok(found) => found,
            // The target's own port serves without the list of the others.
            Err(OpenError::TimedOut { .. } | OpenError::SigningIn { .. }) if wait.is_none() => Found::NONE,
            Err(error) => return Err(cannot(error)),
        };
        let route = with_port(&named.route, found.port.as_ref());
        // That of a jump is known without a look-up.
        let of_jump = named.route.target.pods().and_then(|pods| pods.jump.as_ref());
        let of_jump =
            of_jump.map(|jump| ServicePort { number: jump.target.port.get(), name: None, app_protocol: None });
        let mut port = found.port.clone().or(of_jump);
        if wait.is_some() {
            let settle = found.took.map_or(SETTLE_UNMEASURED, |took| took.clamp(SETTLE.0, SETTLE.1));
            let patience = Patience { until, settle, may_pass };
            let reached = self.forwards.tunnels().reach(&route.target, route.idle_timeout, patience, &told).await;
            let reached = reached.map_err(|error| cannot(late(&self.clusters, &target, error)))?;
            port = port.or(Some(reached.port.clone()));
        }
        Ok(Checked { route, port, meant: found.port, all: found.all })
    }

    /// Serves a target at local ports after a [`Self::check`]: the requested port at `bound`, and the other ports of its Service
    /// at free ones.
    ///
    /// # Errors
    /// The target cannot be reached, or no port is free.
    pub async fn open(
        &self,
        name: Option<String>,
        named: &Named,
        bound: At,
        wait: Option<Duration>,
        told: impl Fn(&OpenError),
    ) -> Result<Opened, ReachError> {
        let Checked { route, port, meant, all } = self.check(named, wait, told).await?;
        let address = bound.address();
        let mut others = Vec::new();
        for port in all.iter().filter(|port| meant.as_ref() != Some(port)) {
            let (listener, local) = self.forwards.bind((Ipv4Addr::LOCALHOST, 0).into(), "--to")?;
            self.forwards.serve(listener, with_port(&named.route, Some(port)));
            others.push((port.clone(), local));
        }
        if let At::Bound(listener, _) = bound {
            self.forwards.serve(listener, route.clone());
        }
        let service = named.route.target.service().filter(|_| !all.is_empty()).map(|name| {
            let at = |port: &ServicePort| others.iter().find(|(other, _)| other == port).map_or(address, |(_, at)| *at);
            let ports = all.iter().map(|port| (port.clone(), at(port))).collect();
            OpenedService { name: name.to_owned(), place: place_of(&named.route.target), ports }
        });
        let told_scheme = port
            .as_ref()
            .filter(|port| is_web(port))
            .map(|port| port.hint().unwrap_or(if port.number == 8443 { Scheme::Https } else { Scheme::Http }));
        Ok(Opened { name, address, scheme: route.options.scheme.or(told_scheme), port, service })
    }

    /// Opens a connection, and waits until the pod has accepted it, as far as adit can know. So the caller gets a refusal as an
    /// error, not as an empty stream.
    ///
    /// # Errors
    /// The target cannot be reached by `until`.
    pub async fn stream(&self, route: &Route, until: Instant) -> Result<(Lease, BoxedIo), ReachError> {
        let (started, tunnels) = (Instant::now(), self.forwards.tunnels());
        let cannot = |error| ReachError::Open { target: route.target.clone(), error };
        let late = || {
            let error = tunnels.trouble(&route.target).unwrap_or(OpenError::TimedOut { after: started.elapsed() });
            late(&self.clusters, &route.target, error)
        };
        let acquired = timeout_at(until, tunnels.acquire(&route.target, route.idle_timeout)).await;
        let lease = acquired.unwrap_or_else(|_| Err(late())).map_err(cannot)?;
        match timeout_at(until, lease.connect_taken()).await {
            Ok(taken) => taken.map(|(stream, _)| (lease, stream)).map_err(cannot),
            // adit retries a refused stream for longer than callers wait. One more attempt gets the reason.
            Err(_) => match timeout(SETTLE.1, lease.probe(SETTLE_UNMEASURED)).await {
                Ok(Err(error)) => Err(cannot(error)),
                _ => Err(cannot(late())),
            },
        }
    }
}

/// Returns the namespace and the context of a target in pods.
pub fn place_of(target: &Target) -> String {
    target.pods().map(|pods| format!("{}.{}", pods.namespace, pods.cluster.context)).unwrap_or_default()
}

/// Local address of a target.
pub enum At {
    /// A bound port that is not served yet.
    Bound(TcpListener, SocketAddr),
    /// A route's listener, which already serves the target.
    Served(SocketAddr),
}

impl At {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Bound(_, address) | Self::Served(address) => *address,
        }
    }
}

/// A target that was resolved, and reached if the check waited for it.
pub struct Checked {
    /// Route to the requested port.
    pub route: Route,
    /// The requested port, if known.
    pub port: Option<ServicePort>,
    /// The requested port in the Service. `None`: only the pods know it.
    meant: Option<ServicePort>,
    all: Vec<ServicePort>,
}

/// Returns the ports of a Service. Tries again after temporary errors, until `until`.
async fn look_up(
    clusters: &Clusters,
    target: &Target,
    until: Instant,
    may_pass: fn(&OpenError) -> bool,
    told: impl Fn(&OpenError),
) -> Result<Found, OpenError> {
    let (Some(pods), Some(service)) = (target.pods(), target.service()) else { return Ok(Found::NONE) };
    let began = Instant::now();
    let mut last = None;
    loop {
        let started = Instant::now();
        let looking = async {
            let cluster = clusters.get(&pods.cluster).await?;
            resolve::ports_of(&cluster, &pods.namespace, service, &pods.port).await
        };
        // A request waits for as long as a sign-in runs, which goes on without the request.
        let error: OpenError = match timeout_at(until, looking).await {
            Ok(Ok(ports)) => return Ok(Found { port: ports.meant, all: ports.all, took: Some(started.elapsed()) }),
            Ok(Err(error)) => error.into(),
            // The error of an earlier attempt says more than the timeout.
            Err(_) => {
                let timed_out = || late(clusters, target, OpenError::TimedOut { after: began.elapsed() });
                return Err(last.unwrap_or_else(timed_out));
            }
        };
        if !may_pass(&error) || Instant::now() + PAUSE >= until {
            return Err(error);
        }
        if last.as_ref() != Some(&error) {
            told(&error);
        }
        last = Some(error);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Returns the sign-in that an attempt without more time has waited for, else its own error.
fn late(clusters: &Clusters, target: &Target, error: OpenError) -> OpenError {
    let sign_in = || clusters.sign_in(&target.pods()?.cluster).filter(|report| report.since.is_some());
    match (&error, sign_in()) {
        (OpenError::TimedOut { .. }, Some(report)) => {
            OpenError::SigningIn { issuer: report.issuer, said: report.said.join("; ") }
        }
        _ => error,
    }
}

/// Returns the route to another port of the same target.
fn with_port(route: &Route, port: Option<&ServicePort>) -> Route {
    let target = match (&route.target, port) {
        (Target::Pods(pods), Some(port)) => Target::Pods(Arc::new(PodTarget {
            port: PortRef::number(port.number).unwrap_or(PortRef::Auto),
            ..(**pods).clone()
        })),
        (target, _) => target.clone(),
    };
    Route { target, ..route.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_limit_names_the_target_and_the_sign_in() {
        let told = |error| ReachError::Open { target: Target::Named("kube/shop/web".into()), error }.told();
        let late = told(OpenError::TimedOut { after: Duration::from_millis(20) });
        assert_eq!(late.message, "kube/shop/web: no connection within 20 ms");
        let late = told(OpenError::SigningIn { issuer: "aws".to_owned(), said: "enter ABCD".to_owned() });
        assert_eq!(late.message, "kube/shop/web: the time limit passed before adit was signed in");
        assert_eq!(late.cause.as_deref(), Some("signing in with aws: enter ABCD"));
    }
}
