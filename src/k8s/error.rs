//! Errors of a cluster, one for each action that the user can take.

use std::time::Duration;

use crate::{
    config::{ContextName, Namespace},
    error_code::ErrorCode,
};

/// Port of a Service or a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Port that a client uses: the Service's, or without a Service the container's.
    pub number: u16,
    /// `None`: unnamed.
    pub name: Option<String>,
    /// `appProtocol`, e.g. `kubernetes.io/h2c`, `https`.
    pub app_protocol: Option<String>,
}

/// Namespace of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// All namespaces, or a resource without a namespace.
    All,
    One(Namespace),
}

impl From<&Namespace> for Namespaces {
    fn from(namespace: &Namespace) -> Self {
        Self::One(namespace.clone())
    }
}

/// `None`: all.
impl From<Option<&Namespace>> for Namespaces {
    fn from(namespace: Option<&Namespace>) -> Self {
        namespace.map_or(Self::All, Self::from)
    }
}

impl std::fmt::Display for Namespaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all namespaces"),
            Self::One(namespace) => write!(f, "namespace {namespace}"),
        }
    }
}

/// Reasons why a request to a cluster failed.
///
/// Display is the first line (what and where), [`cause`](Self::cause) the second, [`hint`](Self::hint) the third.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// `files`: the kubeconfig files, for messages.
    #[error("context {context} is not in {files}")]
    UnknownContext { context: ContextName, files: String, known: Vec<ContextName> },
    #[error("cannot read the kubeconfig: {reason}")]
    Kubeconfig { reason: String },
    /// The credential plugin is missing or failed, a certificate could not be read, or the server answered 401.
    #[error("cannot sign in to context {context}: {reason}")]
    Credentials { context: ContextName, reason: String, hint: Option<String> },
    #[error("user {user} may not {verb} {resource} in {namespaces} (context {context})")]
    Forbidden {
        // Boxes keep the type small: most functions return it.
        user: Box<str>,
        verb: Box<str>,
        resource: Box<str>,
        namespaces: Namespaces,
        context: ContextName,
        hint: Box<str>,
    },
    /// 403 for another reason than a missing permission: an admission webhook or a ValidatingAdmissionPolicy.
    #[error("a policy of the cluster of context {context} forbids it: {reason}")]
    Policy { context: ContextName, reason: String },
    /// DNS, TCP or TLS to the API server failed.
    #[error("cannot reach the API server of context {context} at {server}")]
    Unreachable { context: ContextName, server: String, reason: String, hint: String },
    #[error("the API server of context {context} did not answer within {} s ({doing})", after.as_secs())]
    TimedOut { context: ContextName, doing: String, after: Duration, hint: String },
    /// The API server, the node or its container runtime cannot answer now (5xx, 429), for example during a restart.
    #[error("the cluster of context {context} is not available now")]
    /// `retry_after`: pause that the server asks for.
    Unavailable { context: ContextName, reason: String, retry_after: Option<Duration>, hint: String },
    /// The pod's node does not support such requests: a virtual node. `act` is `port-forwards` or `exec`.
    #[error("the node of pod {pod} in context {context} does not support {act}")]
    NotServed { act: &'static str, pod: String, context: ContextName, reason: String },
    /// `what` is for example `service shop/web` or `pod shop/web-0`.
    #[error("no {what} in context {context}")]
    NotFound { what: String, context: ContextName, near: Vec<String>, hint: Option<String> },
    #[error("{what} in context {context} has no port {port}")]
    NoSuchPort { what: String, context: ContextName, port: String, ports: Vec<ServicePort> },
    /// No port was requested, and none of several is the obvious one; or the containers of a pod declare none.
    #[error("{what} in context {context} {}: which one?", if ports.is_empty() { "declares no ports" } else { "has several ports" })]
    ChoosePort { what: String, context: ContextName, ports: Vec<ServicePort> },
    /// A name has a port of `what`, a Service, where the name of a pod belongs: `amqp.queue.shop.localhost`.
    #[error("no pod {name} behind {what} in context {context}: {name} is one of its ports")]
    PortAsPod { what: String, context: ContextName, name: String, port: Box<ServicePort> },
    /// `cause` has the state of the pods: `0 of 2 pods ready (web-7c4: CrashLoopBackOff)`.
    #[error("no ready pod behind {what} in context {context}")]
    NotReady { what: String, context: ContextName, cause: String, hint: String },
    /// A StatefulSet replaces a pod by one with the same name, so a retry may help.
    #[error("{service} in context {context} has no {pod} now")]
    NoPod { pod: String, service: String, context: ContextName, hint: String },
    /// Cannot be forwarded: no selector and no endpoints, ExternalName, or UDP. `why` has the reason.
    #[error("{what} in context {context} cannot be reached through a pod: {why}")]
    Unsupported { what: String, context: ContextName, why: String, hint: Option<String> },
    /// The server's answer is invalid.
    #[error("the API server of context {context} answered unexpectedly: {reason}")]
    Protocol { context: ContextName, reason: String },
}

impl ClusterError {
    /// Returns the stable error code.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownContext { .. } => ErrorCode::UnknownContext,
            Self::Kubeconfig { .. } => ErrorCode::Kubeconfig,
            Self::Credentials { .. } => ErrorCode::Credentials,
            Self::Forbidden { .. } | Self::Policy { .. } => ErrorCode::Forbidden,
            Self::Unreachable { .. } => ErrorCode::Unreachable,
            Self::TimedOut { .. } => ErrorCode::TimedOut,
            Self::Unavailable { .. } => ErrorCode::Unavailable,
            Self::NotServed { .. } => ErrorCode::NotServed,
            Self::NotFound { .. } | Self::PortAsPod { .. } => ErrorCode::NotFound,
            Self::NoSuchPort { .. } => ErrorCode::NoSuchPort,
            Self::ChoosePort { .. } => ErrorCode::ChoosePort,
            Self::NotReady { .. } | Self::NoPod { .. } => ErrorCode::NotReady,
            Self::Unsupported { .. } => ErrorCode::Unsupported,
            Self::Protocol { .. } => ErrorCode::Protocol,
        }
    }

    /// Returns whether the API server, or a gateway in front of it, has refused only this request.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Forbidden { .. } | Self::Policy { .. } | Self::Unavailable { .. } | Self::Protocol { .. })
    }

    /// Returns whether a pod on another node may have better luck.
    pub fn is_of_node(&self) -> bool {
        match self {
            // An API server that asks for a pause is busy, whatever the pod.
            Self::Unavailable { retry_after, .. } => retry_after.is_none(),
            error => matches!(
                error,
                Self::TimedOut { .. } | Self::NotServed { .. } | Self::NotReady { .. } | Self::NoPod { .. }
            ),
        }
    }

    /// Returns the second line of the error, if there is one.
    pub fn cause(&self) -> Option<String> {
        match self {
            Self::NotReady { cause, .. } => Some(cause.clone()),
            Self::Unreachable { reason, .. } | Self::Unavailable { reason, .. } => Some(reason.clone()),
            Self::NotServed { reason, .. } => Some(format!("it answers {reason}, as virtual nodes do")),
            _ => None,
        }
    }

    /// Returns a hint, if there is a specific one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownContext { known, .. } if known.is_empty() => Some("it has no contexts".to_owned()),
            Self::UnknownContext { known, .. } => Some(format!("the contexts are {}", join(known))),
            Self::Credentials { hint, .. } | Self::Unsupported { hint, .. } => hint.clone(),
            Self::NotFound { near, hint, .. } => match near.as_slice() {
                [] => hint.clone(),
                near => Some(format!("did you mean {}?", near.join(" or "))),
            },
            Self::NoSuchPort { what, ports, .. } | Self::ChoosePort { what, ports, .. } if ports.is_empty() => {
                // A pod may listen on a port that it does not declare.
                let named = what.strip_prefix("pod ").and_then(|what| what.split_once('/'));
                named.map(|(namespace, pod)| {
                    format!("give the number of the port: pod/{pod}.{namespace}:8080, or port: 8080 in a route")
                })
            }
            Self::NoSuchPort { ports, .. } | Self::ChoosePort { ports, .. } => {
                Some(format!("the ports are {}", join(ports)))
            }
            Self::PortAsPod { name, port, .. } => Some(format!("write {} in place of {name}", port.number)),
            Self::Forbidden { hint, .. } => Some(hint.to_string()),
            Self::NotReady { hint, .. }
            | Self::NoPod { hint, .. }
            | Self::Unreachable { hint, .. }
            | Self::Unavailable { hint, .. }
            | Self::TimedOut { hint, .. } => Some(hint.clone()),
            Self::NotServed { .. } => {
                Some("go through a pod on another node: 'via' of a route, or tcp.k8s.jump".to_owned())
            }
            Self::Kubeconfig { .. } | Self::Protocol { .. } | Self::Policy { .. } => None,
        }
    }
}

impl std::fmt::Display for ServicePort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.number)?;
        match &self.name {
            Some(name) => write!(f, " ({name})"),
            None => Ok(()),
        }
    }
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
