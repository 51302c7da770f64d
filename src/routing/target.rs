//! Targets of tunnels.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use crate::config::{Command, ContextName, InvalidValue, Jump, KubeconfigPaths, Namespace, PortRef, Workload};

/// One cluster, seen as one user: a context of certain kubeconfig files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterId {
    pub kubeconfig: Arc<KubeconfigPaths>,
    pub context: ContextName,
}

impl Hash for ClusterId {
    /// Leaves out the paths: each request hashes its target, and clusters of one name in other files are rare.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.context.hash(state);
    }
}

/// Target of a tunnel, whatever name the client used: two names of one Service share a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    Pods(Arc<PodTarget>),
    /// A command of the configuration.
    Command(Arc<Command>),
    /// A name that only the backend in use knows: a relay has one for each tunnel.
    Named(Arc<str>),
}

impl Target {
    /// Returns the pods that it is. None: it is something else.
    pub fn pods(&self) -> Option<&PodTarget> {
        match self {
            Self::Pods(target) => Some(target),
            Self::Command(_) | Self::Named(_) => None,
        }
    }

    /// Returns how long it may take until it can be reached, beyond what every target may.
    pub fn startup_time(&self) -> Duration {
        match self {
            Self::Pods(target) => {
                let create = target.jump.as_ref().and_then(|jump| jump.create.as_ref());
                create.map_or(Duration::ZERO, |create| create.timeout)
            }
            Self::Command(command) => command.startup_timeout,
            Self::Named(_) => Duration::ZERO,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods(target) => target.fmt(f),
            Self::Command(command) => write!(f, "command {}", shown(&command.run)),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// Returns a command as it may be shown: without what its options call a secret.
fn shown(run: &[String]) -> String {
    let is_secret = |option: &str| {
        let option = option.to_ascii_lowercase();
        option.starts_with('-') && ["token", "secret", "password", "key="].iter().any(|word| option.contains(word))
    };
    let mut words = Vec::new();
    for (at, word) in run.iter().enumerate() {
        words.push(match word.split_once('=') {
            Some((option, _)) if is_secret(word) => format!("{option}=***"),
            None if at > 0 && is_secret(&run[at - 1]) && !run[at - 1].contains('=') => "***".to_owned(),
            _ => word.clone(),
        });
    }
    words.join(" ")
}

/// Pods of a cluster, and what lies behind them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodTarget {
    pub cluster: ClusterId,
    pub namespace: Namespace,
    pub workload: Workload,
    pub port: PortRef,
    /// Jump from the pod to a further host.
    pub jump: Option<Jump>,
}

/// `context/namespace/service:port`, with `->host:port` behind it for a jump; the id of the tunnel in logs, in `adit status` and for `adit stop`.
impl fmt::Display for PodTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/", self.cluster.context, self.namespace)?;
        match &self.workload {
            Workload::Service(service) => f.write_str(service)?,
            Workload::Pod(pod) => write!(f, "pod/{pod}")?,
            Workload::PodOfService { pod, service } => write!(f, "{service}/{pod}")?,
            Workload::Address(IpAddr::V4(address)) => write!(f, "{address}")?,
            Workload::Address(IpAddr::V6(address)) => write!(f, "[{address}]")?,
        }
        match &self.port {
            PortRef::Number(port) => write!(f, ":{port}")?,
            PortRef::Name(name) => write!(f, ":{name}")?,
            PortRef::Auto => {}
            // No port is called so.
            PortRef::Https => f.write_str("+https")?,
        }
        match &self.jump {
            Some(Jump { target, .. }) => write!(f, "->{target}"),
            None => Ok(()),
        }
    }
}

/// The contexts of the kubeconfig files at one moment: enough of them to complete a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contexts {
    pub kubeconfig: Arc<KubeconfigPaths>,
    /// `current-context`. None: the files name none.
    pub current: Option<ContextName>,
    /// The default namespace of each context. Err: the file has a text that is none, and names have to say the namespace.
    pub namespaces: BTreeMap<ContextName, Result<Namespace, InvalidValue>>,
    /// Why the kubeconfig could not be read, in words; the rest is empty then.
    pub problem: Option<String>,
}
