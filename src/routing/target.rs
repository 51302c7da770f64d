//! What a tunnel leads to.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::config::{ContextName, Jump, KubeconfigPaths, Namespace, PortRef, Workload};

/// One cluster, seen as one user: a context of certain kubeconfig files.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId {
    pub kubeconfig: Arc<KubeconfigPaths>,
    pub context: ContextName,
}

/// What to reach, never how the client asked: two names of one Service are one target and share a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    pub cluster: ClusterId,
    pub namespace: Namespace,
    pub workload: Workload,
    pub port: PortRef,
    /// Where it goes on to from the pod.
    pub jump: Option<Jump>,
}

/// `context/namespace/service:port`, with `->host:port` behind it for a jump; the id of the tunnel in logs, in `adit status` and for `adit stop`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/", self.cluster.context, self.namespace)?;
        match &self.workload {
            Workload::Service(service) => f.write_str(service)?,
            Workload::Pod(pod) => write!(f, "pod/{pod}")?,
            Workload::PodOfService { pod, service } => write!(f, "{service}/{pod}")?,
        }
        match &self.port {
            PortRef::Number(port) => write!(f, ":{port}")?,
            PortRef::Name(name) => write!(f, ":{name}")?,
            PortRef::Auto => {}
        }
        match &self.jump {
            Some(Jump { host, port, .. }) if host.contains(':') => write!(f, "->[{host}]:{port}"),
            Some(Jump { host, port, .. }) => write!(f, "->{host}:{port}"),
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
    /// The default namespace of each context.
    pub namespaces: BTreeMap<ContextName, Namespace>,
    /// Why the kubeconfig could not be read, in words; the rest is empty then.
    pub problem: Option<String>,
}
