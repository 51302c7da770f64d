//! How reaching a target fails, and how a stream or a session ends.

use std::{io, time::Duration};

use crate::{
    error_code::ErrorCode,
    k8s::{ClusterError, ServicePort},
};

/// Why a session could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Nothing could be opened within the time that a caller waits.
    #[error("no connection within {} s", after.as_secs_f32().round())]
    TimedOut { after: Duration },
    /// A command that leads to the backend is of no use.
    #[error("{what}")]
    Command { what: String, cause: String, hint: Option<String> },
    /// More names that were never used before than is plausible for one person.
    #[error("too many new names in a short time")]
    TooManyNew,
    /// The tunnel runs, and gives no stream.
    #[error(transparent)]
    Stream(#[from] StreamFault),
    /// No client of the relay offers what the target names: it has just gone.
    #[error("no client offers {name:?} at the moment")]
    NoClient { name: String },
    /// adit is shutting down, or the tunnel was stopped by hand or by a reload.
    #[error("the tunnel was stopped")]
    Stopped,
}

/// Party that caused an error; decides the HTTP status and the log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The request is wrong or names nothing that exists: 404 or 400.
    Asked,
    /// The cluster or the pod: 502, 503, 504.
    Cluster,
}

/// How one stream failed, carried inside the [`io::Error`] of its reads and writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamFault {
    /// Nothing listens on the port in the pod. The pod saw none of our bytes.
    #[error("the pod refused the connection on port {port}")]
    Refused { port: u16 },
    /// The pod does not exist any more. It saw none of our bytes.
    #[error("the pod is gone: {detail}")]
    PodGone { detail: String },
    /// The pod reset the connection.
    #[error("the pod reset the connection")]
    Reset,
    /// The upgraded connection broke; what the pod saw of our bytes is unknown.
    #[error("lost the connection to the cluster: {detail}")]
    Lost { detail: String },
    /// The pod is there, and its node or container runtime cannot lead to it now: one of them restarts. It saw none of
    /// our bytes.
    #[error("the pod's node cannot be reached at the moment: {detail}")]
    /// `retry_after`: how long the cluster asks to be left alone, where it says so.
    Unavailable { detail: String, retry_after: Option<Duration> },
    /// The program in the pod could not connect to where the jump goes on to, or its connection broke.
    #[error("{target} cannot be reached from pod {pod}: {detail}")]
    Jump { target: String, pod: String, detail: String },
    /// The node, or what stands in its place, reported something else.
    #[error("the tunnel failed: {detail}")]
    Other { detail: String },
}

impl StreamFault {
    /// Returns the fault inside an error of a stream, if it carries one.
    pub fn of(error: &io::Error) -> Option<&StreamFault> {
        error.get_ref()?.downcast_ref()
    }

    /// Returns whether the pod certainly saw no byte, so that all of them may be sent again elsewhere.
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

/// Why a session gave no stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// This attempt failed, and the session takes others. Its caller gets the error at once.
    #[error(transparent)]
    Retry(#[from] StreamFault),
    /// The session takes no new streams: [`Session::closed`](super::Session::closed) has resolved. Another session may.
    #[error(transparent)]
    Over(CloseReason),
}

/// Why a session takes no new streams.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    #[error("the pod is gone: {detail}")]
    PodGone { detail: String },
    #[error("lost the connection to the cluster: {detail}")]
    Lost { detail: String },
    /// The command that leads to the backend is of no use any more. It is started again once for a caller.
    #[error("{detail}")]
    Command { detail: String },
    /// The client of the relay is gone.
    #[error("the client is gone")]
    ClientGone,
}

impl From<CloseReason> for StreamFault {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::PodGone { detail } => Self::PodGone { detail },
            CloseReason::Lost { detail } => Self::Lost { detail },
            CloseReason::Command { .. } | CloseReason::ClientGone => Self::Other { detail: reason.to_string() },
        }
    }
}

impl OpenError {
    /// Returns the stable code: `not-ready`, `forbidden`, ...
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Cluster(error) => error.code(),
            Self::TimedOut { .. } => ErrorCode::TimedOut,
            Self::Command { .. } => ErrorCode::Command,
            Self::TooManyNew => ErrorCode::TooManyNames,
            Self::Stream(_) => ErrorCode::NoStream,
            Self::NoClient { .. } => ErrorCode::NoClient,
            Self::Stopped => ErrorCode::Stopped,
        }
    }

    /// Returns whether the cluster has nothing of the name that was asked for, or nothing that the user may know of.
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
                | ClusterError::Unsupported { .. },
            ) => Blame::Asked,
            _ => Blame::Cluster,
        }
    }

    /// Returns the second line for people, `0 of 2 pods ready (...)`, where there is one.
    pub fn cause(&self) -> Option<String> {
        match self {
            Self::Cluster(error) => error.cause(),
            Self::Command { cause, .. } => Some(cause.clone()),
            _ => None,
        }
    }

    /// Returns what to do about it, where there is something specific to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Cluster(error) => error.hint(),
            Self::Command { hint, .. } => hint.clone(),
            Self::TooManyNew => Some("try again in a second".to_owned()),
            _ => None,
        }
    }

    /// Returns the ports to choose from, where the target has several and none was named, or a wrong one.
    pub fn ports(&self) -> &[ServicePort] {
        match self {
            Self::Cluster(ClusterError::ChoosePort { ports, .. } | ClusterError::NoSuchPort { ports, .. }) => ports,
            _ => &[],
        }
    }

    /// Returns how long the cluster asks to be left alone. None: it does not say.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Cluster(ClusterError::Unavailable { retry_after, .. })
            | Self::Stream(StreamFault::Unavailable { retry_after, .. }) => *retry_after,
            _ => None,
        }
    }

    /// Returns for how long waiting may help: a pod becomes ready, a connection comes back. Zero: not at all.
    pub fn patience(&self) -> Duration {
        match self {
            Self::Cluster(ClusterError::NotReady { .. }) => Duration::from_secs(10),
            // A kubelet or a container runtime takes some seconds to restart.
            Self::Cluster(ClusterError::Unavailable { .. }) => Duration::from_secs(8),
            // A restarting API server refuses for a second or two; one that is away stays away.
            Self::Cluster(ClusterError::Unreachable { .. }) => Duration::from_secs(2),
            _ => Duration::ZERO,
        }
    }
}
