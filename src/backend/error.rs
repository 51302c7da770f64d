//! Errors of opening a session, and reasons for the end of a stream or a session.

use std::{io, slice, time::Duration};

use tokio::sync::watch;

use crate::{
    config::ContextName,
    error_code::ErrorCode,
    k8s::{ClusterError, ServicePort, client::Cluster},
};

/// Why a session could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// No session within the time that a caller waits.
    #[error("no connection within {}", limit(*after))]
    TimedOut { after: Duration },
    /// A caller waits no longer for the credential plugin, which goes on. `said`: its last lines.
    #[error("signing in with {issuer}{}{said}", if said.is_empty() { "" } else { ": " })]
    SigningIn { issuer: String, said: String },
    /// The command of the target does not work.
    #[error("{what}")]
    Command { what: String, cause: String, hint: Option<String> },
    /// More new names than one person plausibly uses.
    #[error("too many new names in a short time")]
    TooManyNew,
    /// The tunnel runs, but its session opens no stream.
    #[error(transparent)]
    Stream(#[from] StreamFault),
    /// No client of the relay offers the target's name (any more).
    #[error("no client serves {name:?} now")]
    NoClient { name: String },
    /// adit is shutting down, or the tunnel was stopped by hand or by a reload.
    #[error("the tunnel was stopped")]
    Stopped,
}

/// Returns a time limit for people: whole seconds, or milliseconds below one second.
fn limit(after: Duration) -> String {
    match after.as_millis() {
        millis @ 0..1000 => format!("{millis} ms"),
        _ => format!("{} s", after.as_secs_f32().round()),
    }
}

/// Party that caused an error; decides the HTTP status and the log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The request is wrong, or names something that does not exist: 404 or 400.
    Asked,
    /// The cluster or the pod: 502, 503, 504.
    Cluster,
}

/// Error of one stream, carried inside the [`io::Error`] of its reads and writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamFault {
    /// Nothing listens on the port in the pod. The pod has seen none of the stream's bytes.
    #[error("the pod refused the connection on port {port}")]
    Refused { port: u16 },
    /// The pod does not exist any more. It has seen none of the stream's bytes.
    #[error("the pod is gone: {detail}")]
    PodGone { detail: String },
    /// The pod reset the connection.
    #[error("the pod reset the connection")]
    Reset,
    /// The upgraded connection broke. It is unknown which bytes the pod has seen.
    #[error("lost the connection to the cluster: {detail}")]
    Lost { detail: String },
    /// The pod exists, but its node or container runtime restarts and cannot connect to it now. The pod has seen none
    /// of the stream's bytes.
    #[error("the pod's node cannot be reached now: {detail}")]
    /// `retry_after`: how long the cluster asks clients to wait. `None`: it does not say.
    Unavailable { detail: String, retry_after: Option<Duration> },
    /// The program in the jump pod could not connect to the jump's target.
    #[error("{target} cannot be reached from pod {pod}: {detail}")]
    Jump { target: String, pod: String, detail: String },
    /// The program was connected to the jump's target, and lost that connection or was stopped.
    #[error("lost the connection to {target} through pod {pod}: {detail}")]
    JumpBroke { target: String, pod: String, detail: String },
    /// The node, or the program in its place, reported another error.
    #[error("the tunnel failed: {detail}")]
    Other { detail: String },
}

impl StreamFault {
    /// Returns the fault inside an error of a stream, if it carries one.
    pub fn of(error: &io::Error) -> Option<&StreamFault> {
        error.get_ref()?.downcast_ref()
    }

    /// Returns what the user can do about it, if there is something specific.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { port } => {
                Some(format!("does the container listen on port {port}, on all of its addresses?"))
            }
            _ => None,
        }
    }

    /// Returns whether the pod has certainly seen no byte, so that all bytes may be replayed to another pod.
    pub fn never_reached_the_pod(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::PodGone { .. } | Self::Unavailable { .. })
    }
}

impl From<StreamFault> for io::Error {
    fn from(fault: StreamFault) -> Self {
        let kind = match fault {
            StreamFault::Refused { .. } => io::ErrorKind::ConnectionRefused,
            _ => io::ErrorKind::ConnectionReset,
        };
        Self::new(kind, fault)
    }
}

/// Why a session has opened no stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// This attempt failed, but the session takes others. The caller gets the error at once.
    #[error(transparent)]
    Retry(OpenError),
    /// The session takes no new streams: [`Session::closed`](super::Session::closed) has resolved. Another session may.
    #[error(transparent)]
    Over(CloseReason),
}

impl From<StreamFault> for ConnectError {
    fn from(fault: StreamFault) -> Self {
        Self::Retry(fault.into())
    }
}

/// Why a session takes no new streams.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    #[error("the pod is gone: {detail}")]
    PodGone { detail: String },
    #[error("lost the connection to the cluster: {detail}")]
    Lost { detail: String },
    /// The command does not work any more. A caller restarts it once.
    #[error("{detail}")]
    Command { detail: String },
    /// A Service that leads to the pods leads elsewhere now.
    #[error("service {service} has changed")]
    ServiceChanged { service: String },
    /// The client of the relay is gone.
    #[error("the client is gone")]
    ClientGone,
    /// The kubeconfig has changed.
    #[error("context {context} has another cluster or user now")]
    Replaced { context: ContextName },
}

impl CloseReason {
    /// Waits for the end of a session to a cluster: its own reason, or a kubeconfig with another cluster or user.
    pub(super) async fn of_session(mut closed: watch::Receiver<Option<Self>>, cluster: &Cluster) -> Self {
        let closed = cluster.replaced().run_until_cancelled(closed.wait_for(Option::is_some)).await;
        match closed.as_ref().map(Result::as_deref) {
            Some(Ok(Some(reason))) => reason.clone(),
            Some(_) => Self::Lost { detail: "the session ended".to_owned() },
            None => Self::replaced(cluster),
        }
    }

    pub(super) fn replaced(cluster: &Cluster) -> Self {
        Self::Replaced { context: cluster.context.clone() }
    }
}

impl From<StreamFault> for CloseReason {
    fn from(fault: StreamFault) -> Self {
        match fault {
            StreamFault::PodGone { detail } => Self::PodGone { detail },
            StreamFault::Lost { detail } => Self::Lost { detail },
            other => Self::Lost { detail: other.to_string() },
        }
    }
}

impl From<CloseReason> for StreamFault {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::PodGone { detail } => Self::PodGone { detail },
            CloseReason::Lost { detail } => Self::Lost { detail },
            CloseReason::Command { .. }
            | CloseReason::ServiceChanged { .. }
            | CloseReason::ClientGone
            | CloseReason::Replaced { .. } => Self::Other { detail: reason.to_string() },
        }
    }
}

impl OpenError {
    /// Returns the stable code: `not-ready`, `forbidden`, ...
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Cluster(error) => error.code(),
            Self::TimedOut { .. } => ErrorCode::TimedOut,
            Self::SigningIn { .. } => ErrorCode::SigningIn,
            Self::Command { .. } => ErrorCode::Command,
            Self::TooManyNew => ErrorCode::TooManyNames,
            Self::Stream(_) => ErrorCode::NoStream,
            Self::NoClient { .. } => ErrorCode::NoClient,
            Self::Stopped => ErrorCode::Stopped,
        }
    }

    /// Returns whether the requested name does not exist in the cluster, or the user has no permission to see it.
    pub fn is_of_no_service(&self) -> bool {
        self.blame() == Blame::Asked || self.code() == ErrorCode::Forbidden
    }

    pub fn blame(&self) -> Blame {
        match self {
            Self::Cluster(
                ClusterError::UnknownContext { .. }
                | ClusterError::NotFound { .. }
                | ClusterError::NoSuchPort { .. }
                | ClusterError::ChoosePort { .. }
                | ClusterError::PortAsPod { .. }
                | ClusterError::Unsupported { .. },
            ) => Blame::Asked,
            _ => Blame::Cluster,
        }
    }

    /// Returns the second line of the error message, such as `0 of 2 pods ready (...)`.
    pub fn cause(&self) -> Option<String> {
        match self {
            Self::Cluster(error) => error.cause(),
            Self::Command { cause, .. } => Some(cause.clone()),
            _ => None,
        }
    }

    /// Returns what the user can do about it, if there is something specific.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Cluster(error) => error.hint(),
            Self::Command { hint, .. } => hint.clone(),
            Self::TooManyNew => Some("try again in a second".to_owned()),
            Self::Stream(fault) => fault.hint(),
            _ => None,
        }
    }

    /// Returns the ports to choose from, if the target has several and the name has none or a wrong one, or has the
    /// port's name for a pod's. Else empty.
    pub fn ports(&self) -> &[ServicePort] {
        match self {
            Self::Cluster(ClusterError::ChoosePort { ports, .. } | ClusterError::NoSuchPort { ports, .. }) => ports,
            Self::Cluster(ClusterError::PortAsPod { port, .. }) => slice::from_ref(&**port),
            _ => &[],
        }
    }

    /// Returns how long the cluster asks clients to wait. `None`: it does not say.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Cluster(ClusterError::Unavailable { retry_after, .. })
            | Self::Stream(StreamFault::Unavailable { retry_after, .. }) => *retry_after,
            _ => None,
        }
    }

    /// Returns how long retries may help: a pod becomes ready, a connection comes back. Zero: they do not help.
    pub fn patience(&self) -> Duration {
        match self {
            Self::Cluster(ClusterError::NotReady { .. } | ClusterError::NoPod { .. }) => Duration::from_secs(10),
            // A kubelet or a container runtime takes some seconds to restart.
            Self::Cluster(ClusterError::Unavailable { .. }) => Duration::from_secs(8),
            // A restarting API server refuses for a second or two; one that is away stays away.
            Self::Cluster(ClusterError::Unreachable { .. }) => Duration::from_secs(2),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_limit_is_never_zero_seconds() {
        let told = |millis| OpenError::TimedOut { after: Duration::from_millis(millis) }.to_string();
        assert_eq!(told(300), "no connection within 300 ms");
        assert_eq!(told(10_004), "no connection within 10 s");
    }
}
