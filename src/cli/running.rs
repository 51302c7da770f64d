//! The running adit, as used by commands that also work without it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use tokio::time::Instant;

use super::{Globals, progress::Progress, report::CliError, service};
use crate::{
    admin::{
        api::{
            answers::{Overview, Problem, RequestAnswer},
            open::{OpenAnswer, OpenKind, OpenRequest, PortRow},
        },
        socket::{self, CallError, Stream},
    },
    app::opened::{Opened, OpenedService},
    config::{
        Namespace, Scheme,
        shell::{self, quoted},
    },
    error_code::ErrorCode,
    k8s::ServicePort,
    routing::{Named, Router},
};

/// Maximum time of one request, so that the user sees the current reason to wait in between.
const STEP: Duration = Duration::from_secs(1);

/// Pause between two requests.
const PAUSE: Duration = Duration::from_millis(250);

/// A running adit with the file, kubeconfig and context of this command.
pub struct Running {
    pub socket: PathBuf,
    /// Namespace of this command line.
    pub namespace: Option<Namespace>,
    /// Port of its HTTP listener.
    pub port: u16,
    /// Addresses of its TCP routes.
    tcp: Vec<SocketAddr>,
    /// What names mean in it, if this command line has another `--namespace`: then a route that sets none leads elsewhere.
    differs: Option<Box<Router>>,
}

impl Running {
    /// Returns the adit that listens on this configuration's port, with the same file, kubeconfig and context. Without `--listen`,
    /// also the only one on another port.
    pub async fn find(globals: &Globals, router: &Router) -> Option<Self> {
        Self::look(globals, router).await.ok()?
    }

    /// Does the same, but reports an adit that hangs as an error.
    ///
    /// # Errors
    /// The adit that listens there does not answer.
    pub async fn look(globals: &Globals, router: &Router) -> Result<Option<Self>, CliError> {
        let Some(address) = router.config.http.listen.first() else { return Ok(None) };
        let mut found = None;
        if let Some(socket) = socket::of_port(address.port()).await {
            match socket::status(&socket).await {
                Ok(status) => {
                    found = (difference(&status.overview, router).is_none()).then_some((socket, status.overview))
                }
                Err(error) => silent(&socket, error).await.map_or(Ok(()), Err)?,
            }
        }
        if found.is_none() && globals.listen.is_none() {
            let mut same = answering().await;
            same.retain(|(_, overview)| difference(overview, router).is_none());
            found = same.pop().filter(|_| same.is_empty());
        }
        let Some((socket, overview)) = found else { return Ok(None) };
        let namespace = overview.namespace.and_then(|name| name.parse().ok());
        let differs = match globals.namespace.is_some() && globals.namespace != namespace {
            true => {
                let config = Arc::new(Globals { namespace, ..globals.clone() }.load()?);
                Some(Box::new(Router { config, ..router.clone() }))
            }
            false => None,
        };
        let port = overview.http.first().map_or(address.port(), SocketAddr::port);
        Ok(Some(Self { socket, namespace: globals.namespace.clone(), port, tcp: overview.tcp, differs }))
    }

    /// Returns whether it serves the TCP route with this address.
    pub fn serves(&self, address: SocketAddr) -> bool {
        self.tcp.contains(&address)
    }

    /// Returns it, unless the target means something else in it.
    pub fn for_target(&self, named: &Named) -> Option<&Self> {
        let means = |router: &Router| router.named(&named.text, self.namespace.as_ref());
        let is_same = self
            .differs
            .as_deref()
            .is_none_or(|router| means(router).is_ok_and(|theirs| theirs.route.target == named.route.target));
        is_same.then_some(self)
    }

    /// Does the same, for a target that only the running adit can serve.
    ///
    /// # Errors
    /// The target means something else in it.
    pub fn only_for(&self, named: &Named) -> Result<&Self, CliError> {
        self.for_target(named).ok_or_else(|| {
            let target = &named.route.target;
            CliError::new(format!("the running adit serves {named} for another namespace than {target}")).hint(Some(
                "start it with this --namespace, set the namespace of the route, or name the Service: --to NAME=TARGET",
            ))
        })
    }

    /// Waits until a target exists and can be reached.
    ///
    /// # Errors
    /// The target cannot be reached within `wait`.
    pub async fn wait_for(&self, target: &str, wait: Duration, progress: Progress) -> Result<(), CallError> {
        self.open(target, OpenKind::Check, Some(wait), progress).await.map(drop)
    }

    /// Opens a target at a local port until that adit ends. `name`: the user's name for it. `place`: that of
    /// [`OpenedService::place`]. `wait`: `None` returns the port even if the target cannot be reached yet.
    ///
    /// # Errors
    /// The target cannot be reached within `wait`.
    pub async fn port(
        &self,
        name: Option<String>,
        target: &str,
        place: String,
        wait: Option<Duration>,
        progress: Progress,
    ) -> Result<Option<Opened>, CallError> {
        Ok(opened(name, place, self.open(target, OpenKind::Port, wait, progress).await?))
    }

    async fn open(
        &self,
        target: &str,
        kind: OpenKind,
        wait: Option<Duration>,
        progress: Progress,
    ) -> Result<OpenAnswer, CallError> {
        self.patiently(target, kind, wait, progress, async |request| socket::open(&self.socket, &request).await).await
    }

    /// Opens a connection to a target.
    ///
    /// # Errors
    /// The target cannot be reached within `wait`.
    pub async fn stream(&self, target: &str, wait: Duration, progress: Progress) -> Result<Stream, CallError> {
        let stream = async |request| socket::stream(&self.socket, &request).await;
        self.patiently(target, OpenKind::Stream, Some(wait), progress, stream).await
    }

    /// Returns the error of a connection that has ended. `None`: it has no error, or the entry was evicted.
    pub async fn broken(&self, id: u64) -> Option<String> {
        let answer: RequestAnswer = socket::get(&self.socket, &format!("requests/{id}")).await.ok()?;
        answer.request.error
    }

    async fn patiently<T>(
        &self,
        target: &str,
        kind: OpenKind,
        wait: Option<Duration>,
        progress: Progress,
        mut ask: impl AsyncFnMut(OpenRequest) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let until = Instant::now() + wait.unwrap_or_default();
        let mut step = STEP.min(wait.unwrap_or_default());
        loop {
            // 0 would mean no wait at all, so a wait is at least 1 ms.
            let wait_ms = wait.map_or(0, |_| u64::try_from(step.as_millis()).unwrap_or(u64::MAX).max(1));
            let namespace = self.namespace.as_ref().map(ToString::to_string);
            let request = OpenRequest { target: target.to_owned(), kind, namespace, wait_ms: Some(wait_ms) };
            match ask(request).await {
                Err(CallError::Refused(problem)) if problem.may_pass || may_appear(kind, &problem) => {
                    tokio::time::sleep(PAUSE).await;
                    // The last step may be shorter than `STEP`, to end at the deadline.
                    step = until.saturating_duration_since(Instant::now()).min(STEP);
                    if step < PAUSE {
                        return Err(CallError::Refused(problem));
                    }
                    progress.says(target, problem.cause.as_deref().unwrap_or(&problem.message));
                }
                done => return done,
            }
        }
    }
}

/// Returns the adits that answer, each with its socket.
async fn answering() -> Vec<(PathBuf, Overview)> {
    let asking =
        socket::sockets().into_iter().map(async |path| Some((socket::status(&path).await.ok()?.overview, path)));
    join_all(asking).await.into_iter().flatten().map(|(overview, path)| (path, overview)).collect()
}

/// Returns how the configuration, kubeconfig or context of an adit differs from that of this command, with the option that selects it.
/// `None`: they are the same.
fn difference(overview: &Overview, router: &Router) -> Option<String> {
    let config = &router.config;
    if overview.config != config.source {
        return Some(match &overview.config {
            Some(file) if !file.exists() => {
                format!(
                    "has the configuration {}, which does not exist any more: restore it, or start that adit again",
                    file.display()
                )
            }
            Some(file) => format!("has another configuration: --config {}", quoted(&file.display().to_string())),
            None => "has no configuration file".to_owned(),
        });
    }
    if overview.kubeconfig != config.http.kubeconfig.0 {
        return Some(format!("has another kubeconfig: --kubeconfig {}", quoted(&shell::joined(&overview.kubeconfig))));
    }
    let context = router.default_context();
    (overview.context != context.map(ToString::to_string)).then(|| match &overview.context {
        Some(context) => format!("has another context: --context {}", quoted(context)),
        None => "has no context".to_owned(),
    })
}

/// Returns the error of a command that needs a running adit, and found none. Names those that run.
pub async fn none(router: &Router) -> CliError {
    let others = answering().await;
    let other = |(_, overview): &(PathBuf, Overview)| {
        let address = overview.http.first().map_or_else(|| format!("pid {}", overview.pid), ToString::to_string);
        match difference(overview, router) {
            Some(way) => format!("the one on {address} {way}"),
            None => format!("name the one on {address}: --listen {address}"),
        }
    };
    let hint = match others.is_empty() {
        true => "start it with 'adit'; 'adit run' needs no running adit".to_owned(),
        false => others.iter().map(other).collect::<Vec<_>>().join("; "),
    };
    CliError::new("no adit is running with this configuration").hint(Some(hint))
}

/// Returns whether the target may be created later, for a caller that waits for that.
fn may_appear(kind: OpenKind, problem: &Problem) -> bool {
    kind == OpenKind::Check && problem.code.as_deref() == Some(ErrorCode::NotFound.as_str())
}

/// Returns a target from the API's answer. `None`: the answer has no local address.
fn opened(name: Option<String>, place: String, answer: OpenAnswer) -> Option<Opened> {
    let scheme = answer.url.as_deref().map(|url| if url.starts_with("https:") { Scheme::Https } else { Scheme::Http });
    let port = |port: PortRow| ServicePort { number: port.number, name: port.name, app_protocol: None };
    let service = answer.service.map(|service| OpenedService {
        name: service.name,
        place,
        ports: service.ports.into_iter().map(|local| (port(local.port), local.address)).collect(),
    });
    Some(Opened { name, address: answer.address?, scheme, port: answer.port.map(port), service })
}

/// Returns the error for an adit that does not answer. `None`: no process listens; a killed one has left the socket.
pub async fn silent(socket: &Path, error: CallError) -> Option<CliError> {
    let pid = socket::owner(socket).await?;
    let end = match service::restart(pid.cast_unsigned()) {
        Some(restart) => format!("start it again with '{restart}'"),
        None => format!("end it with 'kill -9 {pid}', and start it again"),
    };
    Some(CliError::new(format!("{error} (pid {pid})")).hint(Some(format!("it is stopped, or hangs: {end}"))))
}

/// Returns the error for a target that cannot be reached.
pub fn unreachable(error: CallError) -> CliError {
    match error {
        CallError::Refused(Problem { message, cause, hint, .. }) => CliError::new(message).cause(cause).hint(hint),
        error => error.into(),
    }
}
