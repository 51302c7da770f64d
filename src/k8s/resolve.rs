//! From a Service or Pod and a port to a ready pod and its container port.

use crate::{
    config::{Namespace, PortRef, Workload},
    k8s::{ClusterError, ServicePort, client::Cluster},
};

/// A pod that is ready to take a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub pod: String,
    /// The pod's UID: a pod of the same name with another UID is another pod.
    pub uid: String,
    pub container_port: u16,
    pub port: ServicePort,
}

/// Finds a ready pod and its container port, as things stand at this moment.
///
/// Pods are chosen in turn by `spread`, a number that the caller counts up.
pub async fn resolve(
    _cluster: &Cluster,
    _namespace: &Namespace,
    _workload: &Workload,
    _port: &PortRef,
    _spread: usize,
) -> Result<Resolved, ClusterError> {
    todo!()
}
