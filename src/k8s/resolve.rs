//! Resolves a Service or Pod and a port to pods and their container port.
//!
//! The slices of a Service decide, as in the cluster; its selector is used only if slices cannot be read.

mod address;
mod alias;
mod failure;
mod named;
mod service;
mod taken_over;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use kube::{
    Api,
    api::{ListParams, ObjectList},
};
use serde::de::DeserializeOwned;
use tracing::warn;

use self::alias::InCluster;
pub use self::{
    service::{Ports, ports_of},
    taken_over::Takeover,
};
use super::{
    ClusterError, ServicePort,
    client::{AskError, Cluster},
    endpoints::{self, InSlices, PodPort, Reachable, ReadyPod},
    objects::{EndpointSlice, Pod, ServiceSpec},
};
use crate::config::{Namespace, PortRef, Workload};

/// Maximum length of a chain of ExternalNames.
const MOST_ALIASES: usize = 8;

/// Maximum number of pods per answer of the API server, and of answers to search for an address.
const PAGE: u32 = 500;
const MOST_PAGES: usize = 20;

/// Pods and port of a target at one moment.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// Namespace of the pods. It differs from the requested one if an ExternalName points there, or a relay of that
    /// namespace has taken the Service over.
    pub namespace: Namespace,
    /// The requested port, as in the Service or Pod.
    pub port: ServicePort,
    /// TCP ports of the requested Service. Empty: it has none, it is an ExternalName, or the target is a pod.
    pub ports: Vec<ServicePort>,
    /// At least one pod.
    pub reachable: Reachable,
    /// How long a client stays with a pod (`sessionAffinity: ClientIP`). `None`: each connection may go to another pod.
    pub affinity: Option<Duration>,
    /// Objects that list the pods, for the watch.
    pub source: Source,
    /// Services on the way whose changes the source does not show: ExternalNames, and a Service whose slices cannot be read.
    pub services: Vec<KnownService>,
    /// Takeover of the port by a laptop.
    pub takeover: Option<Takeover>,
}

/// A Service as it was read.
#[derive(Clone, Debug)]
pub struct KnownService {
    pub namespace: Namespace,
    pub name: String,
    /// Resource version of the read.
    pub version: String,
    pub spec: ServiceSpec,
}

/// Objects that list the reachable pods, with the resource version of the read.
#[derive(Clone, Debug)]
pub enum Source {
    /// EndpointSlices of a Service.
    Slices { service: String, slices: Vec<EndpointSlice>, version: String, port: PodPort },
    /// EndpointSlices of a Service that a relay in another namespace has taken over. `of`: the Service's namespace.
    Relay {
        of: Namespace,
        service: String,
        slices: Vec<EndpointSlice>,
        version: String,
        port: PodPort,
        relay: (Namespace, ReadyPod),
    },
    /// Endpoints object of a Service without slices.
    Endpoints { service: String, slices: Vec<EndpointSlice>, version: String, port: PodPort },
    /// Pods of a Service's selector, if its slices cannot be read.
    Selected { selector: String, pods: Vec<Pod>, publishes_not_ready: bool, version: String, port: PodPort },
    /// A named pod.
    Pod { name: String, version: String, container_port: u16 },
}

/// Returns the current pods and their container port.
///
/// # Errors
/// Fails if the target cannot be reached, with the reason: see [`ClusterError`].
pub async fn resolve(
    cluster: &Cluster,
    namespace: &Namespace,
    workload: &Workload,
    port: &PortRef,
) -> Result<Resolution, ClusterError> {
    follow_aliases(cluster, namespace, workload, Some(port)).await
}

/// Returns the current pods without a port: [`ReadyPod::container_port`] is 0.
///
/// # Errors
/// As [`resolve`].
pub async fn resolve_pods(
    cluster: &Cluster,
    namespace: &Namespace,
    workload: &Workload,
) -> Result<Resolution, ClusterError> {
    follow_aliases(cluster, namespace, workload, None).await
}

async fn follow_aliases(
    cluster: &Cluster,
    namespace: &Namespace,
    workload: &Workload,
    port: Option<&PortRef>,
) -> Result<Resolution, ClusterError> {
    let (mut lookup, mut workload) =
        (Lookup { cluster, client: &cluster.client, namespace: namespace.clone() }, workload.clone());
    let mut port = port.cloned();
    let (mut aliases, mut chosen_by_alias) = (Vec::new(), None);
    for _ in 0..=MOST_ALIASES {
        let found = match &workload {
            Workload::Service(service) => lookup.service(service, port.as_ref()).await,
            Workload::PodOfService { pod, service } => lookup.pod_of_service(pod, service, port.as_ref()).await,
            Workload::Pod(pod) => lookup.pod(pod, port.as_ref()).await.map(|pod| Found::Pods(Box::new(pod))),
            Workload::Address(address) => {
                (lookup.namespace, workload) = lookup.owner_of(*address).await?;
                continue;
            }
        };
        if let Err(ClusterError::ChoosePort { .. }) = &found
            && let Some(chosen) = chosen_by_alias.take()
        {
            port = Some(chosen);
            continue;
        }
        match found? {
            Found::Pods(resolution) if aliases.is_empty() => return Ok(*resolution),
            Found::Pods(mut resolution) => {
                resolution.services.append(&mut aliases);
                return Ok(Resolution { ports: Vec::new(), ..*resolution });
            }
            Found::Alias { by, to, port: through, chosen } => {
                aliases.push(*by);
                port = through;
                chosen_by_alias = chosen_by_alias.or(chosen);
                (lookup.namespace, workload) = to.workload(workload);
            }
        }
    }
    let why = format!("its ExternalName is a loop, or leads through more than {MOST_ALIASES} others");
    Err(lookup.unsupported(&lookup.what(&workload), &why, None))
}

/// Returns the pods in slices, and the pods behind addresses for which slices name no pod. Returns none if a relay in another
/// namespace has taken the port over. For watches: starts no sign-in.
pub(super) async fn of_slices(
    cluster: &Cluster,
    namespace: &Namespace,
    slices: impl IntoIterator<Item = &EndpointSlice, IntoIter: Clone>,
    port: &PodPort,
) -> Result<Reachable, ClusterError> {
    let lookup = Lookup { cluster, client: &cluster.watches, namespace: namespace.clone() };
    let slices = slices.into_iter();
    match lookup.relay(slices.clone(), port).await {
        Ok(None) => lookup.of_slices(slices, port).await,
        Ok(Some(_)) | Err(ClusterError::Forbidden { .. }) => Ok(Reachable::default()),
        Err(error) => Err(error),
    }
}

enum Found {
    Pods(Box<Resolution>),
    /// The Service is an ExternalName for a Service of this cluster.
    Alias {
        by: Box<KnownService>,
        to: InCluster,
        port: Option<PortRef>,
        /// Its own port, for a Service of which none is the obvious one.
        chosen: Option<PortRef>,
    },
}

struct Lookup<'a> {
    cluster: &'a Cluster,
    client: &'a kube::Client,
    namespace: Namespace,
}

impl Lookup<'_> {
    async fn of_slices(
        &self,
        slices: impl IntoIterator<Item = &EndpointSlice, IntoIter: Clone>,
        port: &PodPort,
    ) -> Result<Reachable, ClusterError> {
        let InSlices { mut pods, addresses } = endpoints::in_slices(slices, port, &self.namespace);
        if !addresses.is_empty() {
            match self.pods_at(&addresses).await {
                Ok(found) => pods.extend(found),
                // Without the permission to list pods, the user still gets the pods that the slices name.
                Err(error @ ClusterError::Forbidden { .. }) if !pods.is_empty() => self.tell_once(&error),
                Err(error) => return Err(error),
            }
        }
        Ok(Reachable::ready(pods))
    }

    async fn get<K: NamespacedKind>(&self, what: &str, name: &str) -> Result<K, AskError> {
        self.cluster.ask(&format!("looking up {what}"), &self.namespace, self.api::<K>().get(name)).await
    }

    async fn slices(&self, what: &str, service: &str) -> Result<ObjectList<EndpointSlice>, AskError> {
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        let api = self.api::<EndpointSlice>();
        self.cluster.ask(&format!("looking up {what}"), &self.namespace, api.list(&of_service)).await
    }

    async fn pods_of(&self, selector: &str) -> Result<ObjectList<Pod>, ClusterError> {
        self.list_pods(ListParams::default().labels(selector)).await
    }

    async fn list_pods(&self, params: ListParams) -> Result<ObjectList<Pod>, ClusterError> {
        let doing = format!("listing the pods of namespace {}", self.namespace);
        match self.cluster.ask(&doing, &self.namespace, self.api::<Pod>().list(&params)).await {
            Ok(list) => Ok(list),
            Err(AskError::Failed(error)) => Err(error),
            Err(AskError::NotFound) => {
                let context = self.cluster.context.clone();
                Err(ClusterError::Protocol { context, reason: format!("404 ({doing})") })
            }
        }
    }

    /// Returns the running pods of the namespace at these addresses.
    async fn pods_at(&self, addresses: &BTreeSet<(IpAddr, u16)>) -> Result<Vec<ReadyPod>, ClusterError> {
        let mut params = ListParams::default().limit(PAGE);
        let mut candidates = Vec::new();
        for _ in 0..MOST_PAGES {
            let page = self.list_pods(params.clone()).await?;
            candidates.extend(page.items.into_iter().filter(|pod| endpoints::is_at_any(addresses, pod)));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) if !endpoints::are_certain(addresses, &candidates) => {
                    params = params.continue_token(&token);
                }
                _ => break,
            }
        }
        Ok(endpoints::at_addresses(addresses, &candidates))
    }

    /// Logs once that adit works around a missing permission or answer.
    fn tell_once(&self, missing: &ClusterError) {
        if self.cluster.is_first(&missing.to_string()) {
            warn!(%missing, hint = missing.hint(), "adit goes on without this look-up");
        }
    }

    fn api<K: NamespacedKind>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

/// Namespaced kind of object.
trait NamespacedKind:
    kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
    + Clone
    + DeserializeOwned
    + std::fmt::Debug
{
}

impl<K> NamespacedKind for K where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
{
}

/// Returns the port for callers that requested none.
fn no_port() -> ServicePort {
    ServicePort { number: 0, name: None, app_protocol: None }
}
