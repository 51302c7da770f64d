//! Targets of tunnels.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use crate::{
    config::{Command, ContextName, InvalidValue, Jump, KubeconfigPaths, Namespace, PortRef, Workload},
    secrets::in_arguments,
};

/// A cluster as one user sees it: a context of certain kubeconfig files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterId {
    pub kubeconfig: Arc<KubeconfigPaths>,
    pub context: ContextName,
}

impl Hash for ClusterId {
    /// Hashes the context only: every request hashes its target, and contexts of the same name in other files are rare.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.context.hash(state);
    }
}

/// Target of a tunnel, independent of the name that the client used: two names of one Service share a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    Pods(Arc<PodTarget>),
    /// A command of the configuration.
    Command(Arc<Command>),
    /// A name that only the backend in use knows. A relay has one for each of its tunnels.
    Named(Arc<str>),
}

impl Target {
    /// Returns the pods of the target. `None`: it is a command or a named target.
    pub fn pods(&self) -> Option<&PodTarget> {
        match self {
            Self::Pods(target) => Some(target),
            Self::Command(_) | Self::Named(_) => None,
        }
    }

    /// Returns the name of the Service. `None`: it is something else, or is reached through one.
    pub fn service(&self) -> Option<&str> {
        match self.pods().filter(|pods| pods.jump.is_none()).map(|pods| &pods.workload) {
            Some(Workload::Service(name)) => Some(name),
            _ => None,
        }
    }

    /// Returns the time for its start, in addition to the time that every target gets.
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

/// Returns a command for logs and status, without its secrets.
fn shown(run: &[String]) -> String {
    let words = run.iter().zip(in_arguments(run.iter().map(String::as_str))).map(|(word, secret)| match secret {
        Some(secret) => Cow::from(format!("{}***{}", &word[..secret.start], &word[secret.end..])),
        None => Cow::from(word),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Pods of a cluster, and optionally a host to reach through them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodTarget {
    pub cluster: ClusterId,
    pub namespace: Namespace,
    pub workload: Workload,
    pub port: PortRef,
    /// Jump from the pod to another host.
    pub jump: Option<Jump>,
}

impl PodTarget {
    /// Returns whether the targets are the same but for the port.
    pub fn is_beside(&self, other: &Self) -> bool {
        self.workload == other.workload
            && self.namespace == other.namespace
            && self.cluster == other.cluster
            && self.jump == other.jump
    }
}

/// `context/namespace/service:port`, plus `->host:port` for a jump. This names the tunnel in logs, in `adit status`
/// and for `adit stop`. A number follows if another tunnel has the same text.
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
            // Cannot be confused with the name of a port.
            PortRef::Https => f.write_str("+https")?,
        }
        match &self.jump {
            Some(Jump { target, .. }) => write!(f, "->{target}"),
            None => Ok(()),
        }
    }
}

/// Contexts of the kubeconfig files at one moment, with the fields needed to complete a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contexts {
    pub kubeconfig: Arc<KubeconfigPaths>,
    /// `current-context`. `None`: the files have none.
    pub current: Option<ContextName>,
    /// Default namespace of each context. `Err`: the file's value is invalid, and names need their own namespace.
    pub namespaces: BTreeMap<ContextName, Result<Namespace, InvalidValue>>,
    /// Why the kubeconfig could not be read. The other fields are empty then.
    pub problem: Option<String>,
}

impl Contexts {
    /// Returns whether the files were read, and have no such context.
    pub fn lacks(&self, context: &ContextName) -> bool {
        self.problem.is_none() && !self.kubeconfig.0.is_empty() && !self.namespaces.contains_key(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_without_its_secrets() {
        let run = |words: &[&str]| shown(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(run(&["env", "PGPASSWORD=hunter2", "x", "{port}"]), "env PGPASSWORD=*** x {port}");
        assert_eq!(
            run(&["tool", "--token", "abc", "http://me:pw@proxy:3128"]),
            "tool --token *** http://me:***@proxy:3128"
        );
    }
}
