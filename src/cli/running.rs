//! The running adit, for commands that work with it and without it.

use std::{path::PathBuf, time::Duration};

use tokio::time::Instant;

use super::{Globals, report::CliError, run::progress::Progress};
use crate::{
    admin::{
        api::{
            answers::{Problem, Status},
            open::{OpenAnswer, OpenKind, OpenRequest},
        },
        socket::{self, CallError},
    },
    io::BoxedIo,
    routing::Router,
};

/// How long one question to it lasts; in between, the user sees what is waited for.
const STEP: Duration = Duration::from_secs(1);

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(250);

/// A running adit that gives names the same meaning as this command.
pub struct Running {
    pub socket: PathBuf,
    namespace: Option<String>,
}

impl Running {
    /// Returns the adit that listens where this one would, with the same file, kubeconfig and context.
    pub async fn find(globals: &Globals, router: &Router) -> Option<Self> {
        let config = &router.config;
        let socket = socket::of_port(config.http.listen.first()?.port())?;
        let status: Status = socket::get(&socket, "status").await.ok()?;
        let overview = &status.overview;
        let context = config.default_context.as_ref().or(router.http_contexts.current.as_ref());
        let is_same = overview.config == config.source
            && overview.kubeconfig == config.http.kubeconfig.0
            && overview.context == context.map(ToString::to_string);
        is_same.then_some(Self { socket, namespace: globals.namespace.clone() })
    }

    /// Opens a target at a local port, or checks it.
    ///
    /// # Errors
    /// It cannot be reached within `wait`.
    pub async fn open(
        &self,
        target: &str,
        kind: OpenKind,
        wait: Duration,
        progress: Progress,
    ) -> Result<OpenAnswer, CallError> {
        self.patiently(target, kind, wait, progress, async |request| socket::open(&self.socket, &request).await).await
    }

    /// Opens a connection to a target.
    ///
    /// # Errors
    /// It cannot be reached within `wait`.
    pub async fn stream(&self, target: &str, wait: Duration, progress: Progress) -> Result<BoxedIo, CallError> {
        let stream = async |request| socket::stream(&self.socket, &request).await;
        self.patiently(target, OpenKind::Stream, wait, progress, stream).await
    }

    async fn patiently<T>(
        &self,
        target: &str,
        kind: OpenKind,
        wait: Duration,
        progress: Progress,
        mut ask: impl AsyncFnMut(OpenRequest) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let until = Instant::now() + wait;
        let mut step = STEP.min(wait);
        loop {
            let wait_ms = u64::try_from(step.as_millis()).unwrap_or(u64::MAX).max(1);
            let namespace = self.namespace.clone();
            let request = OpenRequest { target: target.to_owned(), kind, namespace, wait_ms: Some(wait_ms) };
            match ask(request).await {
                Err(CallError::Refused(problem)) if problem.may_pass => {
                    tokio::time::sleep(PAUSE).await;
                    // The last step may be shorter than `STEP`: only the deadline limits it.
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

/// Returns the error for a target that cannot be reached.
pub fn unreachable(error: CallError) -> CliError {
    match error {
        CallError::Refused(Problem { message, cause, hint, .. }) => CliError::new(message).cause(cause).hint(hint),
        error => error.into(),
    }
}
