//! Resolves a Service or Pod and a port to pods and their container port.
//!
//! The slices of a Service decide, as in the cluster; its selector is used only if slices cannot be read.

mod address;
mod alias;
mod failure;
mod taken_over;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{
    Api,
    api::{ListParams, ObjectList, ObjectMeta},
};
use serde::de::DeserializeOwned;
use tracing::warn;

use self::alias::InCluster;
pub use self::taken_over::Takeover;
use super::{
    ClusterError, ServicePort,
    client::{AskError, Cluster},
    endpoints::{self, InSlices, PodPort, Reachable, ReadyPod},
    objects::{EndpointSlice, Endpoints, Pod, Service, ServiceSpec},
    pods,
    ports::{choose_port, other_protocol, target_port, tcp_ports},
};
use crate::config::{Namespace, PortRef, Workload};

/// Maximum length of a chain of ExternalNames.
const MOST_ALIASES: usize = 8;

/// Maximum number of pods per answer of the API server, and of answers to search for an address.
const PAGE: u32 = 500;
const MOST_PAGES: usize = 20;

/// Default time that a client stays with a pod, in seconds (core/v1, ClientIPConfig).
const AFFINITY_SECONDS: i32 = 10_800;

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
pub async fn resolve_pods(
    cluster: &Cluster,
    namespace: &Namespace,
    workload: &Workload,
) -> Result<Resolution, ClusterError> {
    follow_aliases(cluster, namespace, workload, None).await
}

/// Ports of a Service, which may have no pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// TCP ports in the Service's order. Empty: only its pods know the requested port (it is headless), or it is an ExternalName.
    pub all: Vec<ServicePort>,
    /// The requested port. `None`: only the pods know it.
    pub meant: Option<ServicePort>,
}

/// Returns the ports of a Service, and which of them is `wanted`.
///
/// # Errors
/// Fails if the Service or the port does not exist, or if none of several ports is the obvious one.
pub async fn ports_of(
    cluster: &Cluster,
    namespace: &Namespace,
    service: &str,
    wanted: &PortRef,
) -> Result<Ports, ClusterError> {
    let lookup = Lookup { cluster, client: &cluster.client, namespace: namespace.clone() };
    let what = format!("service {namespace}/{service}");
    let spec = match lookup.get::<Service>(&what, service).await {
        Ok(service) => service.spec.unwrap_or_default(),
        Err(AskError::Failed(error)) => return Err(error),
        Err(AskError::NotFound) => return Err(lookup.not_found::<Service>(what, "services", service).await),
    };
    let all = tcp_ports(&spec);
    if all.is_empty() || spec.type_.as_deref() == Some("ExternalName") || port_of_pods(&spec, wanted).is_some() {
        return Ok(Ports { all: Vec::new(), meant: None });
    }
    let meant = choose_port(&all, wanted).ok_or_else(|| lookup.no_port(&what, &all, wanted))?.clone();
    Ok(Ports { all, meant: Some(meant) })
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
    let mut aliases = Vec::new();
    for _ in 0..=MOST_ALIASES {
        let found = match &workload {
            Workload::Service(service) => lookup.service(service, port.as_ref()).await?,
            Workload::PodOfService { pod, service } => lookup.pod_of_service(pod, service, port.as_ref()).await?,
            Workload::Pod(pod) => Found::Pods(Box::new(lookup.pod(pod, port.as_ref()).await?)),
            Workload::Address(address) => {
                (lookup.namespace, workload) = lookup.owner_of(*address).await?;
                continue;
            }
        };
        match found {
            Found::Pods(resolution) if aliases.is_empty() => return Ok(*resolution),
            Found::Pods(mut resolution) => {
                resolution.services.append(&mut aliases);
                return Ok(Resolution { ports: Vec::new(), ..*resolution });
            }
            Found::Alias { by, to, port: through } => {
                aliases.push(*by);
                port = through;
                (lookup.namespace, workload) = to.workload(workload);
            }
        }
    }
    let why = format!("its ExternalName is a loop, or leads through more than {MOST_ALIASES} others");
    Err(lookup.unsupported(&lookup.what(&workload), &why, None))
}

/// Returns the port of a Service that has the name, or whose `targetPort` has it.
fn port_called(spec: &ServiceSpec, name: &str) -> Option<ServicePort> {
    let is_it = |port: &ServicePort| {
        port.name.as_deref() == Some(name) || target_port(spec, port) == IntOrString::String(name.to_owned())
    };
    tcp_ports(spec).into_iter().find(is_it)
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
    },
}

/// Objects that list a Service's pods.
enum Told {
    Slices(ObjectList<EndpointSlice>),
    Endpoints { slices: Vec<EndpointSlice>, version: String },
    Selected(String),
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

    async fn service(&self, name: &str, wanted: Option<&PortRef>) -> Result<Found, ClusterError> {
        let what = format!("service {}/{name}", self.namespace);
        // In parallel: one round trip on HTTP/2.
        let (service, slices) = tokio::join!(self.get::<Service>(&what, name), self.slices(&what, name));
        let (metadata, spec) = match service {
            Ok(service) => (service.metadata, service.spec.unwrap_or_default()),
            Err(AskError::Failed(error)) => return Err(error),
            Err(AskError::NotFound) => return Err(self.not_found::<Service>(what, "services", name).await),
        };
        if let Some(alias) = self.alias(&what, &metadata, &spec, wanted)? {
            return Ok(alias);
        }
        let takeover =
            wanted.and_then(|wanted| Takeover::of(&metadata, choose_port(&tcp_ports(&spec), wanted)?.number));
        // Its slices still name the pod of a relay that is gone.
        if let Some(takeover) = &takeover
            && let Some(error) = self.relay_is_gone(&what, name, takeover).await
        {
            return Err(error);
        }
        let told = self.told(&what, name, &spec, slices).await?;
        let (port, pod_port) = match wanted {
            None => (no_port(), PodPort::Any),
            Some(wanted) => self.port_of_service(&what, &spec, &told, wanted).await?,
        };
        let (reachable, source) = self.read(name, &spec, told, pod_port).await?;
        if reachable.pods.is_empty() {
            return Err(self.nothing_ready(&what, (name, &metadata, &spec), &source).await);
        }
        let namespace = match &source {
            Source::Relay { relay: (namespace, _), .. } => namespace.clone(),
            _ => self.namespace.clone(),
        };
        let (affinity, ports) = (affinity(&spec), tcp_ports(&spec));
        let services = match &source {
            Source::Selected { .. } => vec![self.known(&metadata, spec)],
            _ => Vec::new(),
        };
        let found = Resolution { namespace, port, ports, reachable, affinity, source, services, takeover };
        Ok(Found::Pods(Box::new(found)))
    }

    /// Returns a named pod of a Service. It must run, may be reached on any port, and uses the Service's ports if they
    /// match.
    async fn pod_of_service(&self, name: &str, service: &str, wanted: Option<&PortRef>) -> Result<Found, ClusterError> {
        let (what, of_service) =
            (format!("pod {}/{name}", self.namespace), format!("service {}/{service}", self.namespace));
        let (pod, found) = tokio::join!(self.get::<Pod>(&what, name), self.get::<Service>(&of_service, service));
        let (metadata, spec) = match found {
            Ok(service) => (service.metadata.clone(), taken_over::before(service)),
            // With the permission for pods but not for Services, the user gets the pod with its own ports.
            Err(AskError::Failed(error @ ClusterError::Forbidden { .. })) => {
                self.tell_once(&error);
                let pod = match pod {
                    Ok(pod) => pod,
                    Err(AskError::Failed(error)) => return Err(error),
                    Err(AskError::NotFound) => return Err(self.no_such_pod(&what, &of_service, name)),
                };
                return self.own(what, &pod, wanted).map(|resolution| Found::Pods(Box::new(resolution)));
            }
            Err(AskError::Failed(error)) => return Err(error),
            Err(AskError::NotFound) => return Err(self.not_found::<Service>(of_service, "services", service).await),
        };
        if let Some(alias) = self.alias(&of_service, &metadata, &spec, wanted)? {
            return Ok(alias);
        }
        let pod = match pod {
            Ok(pod) => pod,
            Err(AskError::Failed(error)) => return Err(error),
            Err(AskError::NotFound) => {
                return Err(match port_called(&spec, name) {
                    Some(port) => {
                        let (context, name) = (self.cluster.context.clone(), name.to_owned());
                        ClusterError::PortAsPod { what: of_service, context, name, port: Box::new(port) }
                    }
                    // A retry may help, so this is not a NotFound: a StatefulSet replaces a pod by one with the same name.
                    None => self.no_such_pod(&what, &of_service, name),
                });
            }
        };
        let selector = spec.selector.clone().unwrap_or_default();
        let is_selected = endpoints::selects(&selector, &pod);
        let slices = match is_selected {
            true => Vec::new(),
            false => match self.slices(&of_service, service).await {
                Ok(slices) => slices.items,
                Err(AskError::NotFound) => Vec::new(),
                Err(AskError::Failed(error)) if error.is_refusal() => {
                    self.tell_once(&error);
                    Vec::new()
                }
                Err(AskError::Failed(error)) => return Err(error),
            },
        };
        let cannot_be_told = selector.is_empty() && slices.is_empty();
        if !is_selected && !cannot_be_told && !slices.iter().any(|slice| endpoints::has_pod(slice, &pod)) {
            return Err(self.not_of_service(&what, &of_service, &selector));
        }
        let of_its_service = |wanted: &PortRef| {
            let port = choose_port(&tcp_ports(&spec), wanted)?.clone();
            let pod_port = PodPort::OfService { name: port.name.clone(), target: target_port(&spec, &port) };
            let number = endpoints::port_in_slices(&slices, &pod_port, &pod).or_else(|| pod_port.in_pod(&pod))?;
            Some((port, number))
        };
        let resolution = match (wanted.and_then(of_its_service), wanted) {
            (Some((port, container_port)), _) => self.named(what, &pod, port, container_port)?,
            // For a Service with a ClusterIP, a port that neither the Service nor the pod declares is probably a typo.
            (None, Some(wanted @ PortRef::Number(_)))
                if !is_headless(&spec) && choose_port(&pods::ports(&pod), wanted).is_none() =>
            {
                let mut known = tcp_ports(&spec);
                known.extend(pods::ports(&pod));
                return Err(self.no_port(&what, &known, wanted));
            }
            (None, _) => self.own(what, &pod, wanted)?,
        };
        Ok(Found::Pods(Box::new(resolution)))
    }

    async fn pod(&self, name: &str, wanted: Option<&PortRef>) -> Result<Resolution, ClusterError> {
        let what = format!("pod {}/{name}", self.namespace);
        let pod = match self.get::<Pod>(&what, name).await {
            Ok(pod) => pod,
            Err(AskError::Failed(error)) => return Err(error),
            Err(AskError::NotFound) => return Err(self.not_found::<Pod>(what, "pods", name).await),
        };
        self.own(what, &pod, wanted)
    }

    /// Returns a named pod with its own port.
    fn own(&self, what: String, pod: &Pod, wanted: Option<&PortRef>) -> Result<Resolution, ClusterError> {
        let port = match wanted {
            None => no_port(),
            Some(wanted) => self.own_port(&what, &pods::ports(pod), wanted)?,
        };
        let container_port = port.number;
        self.named(what, pod, port, container_port)
    }

    fn named(
        &self,
        what: String,
        pod: &Pod,
        port: ServicePort,
        container_port: u16,
    ) -> Result<Resolution, ClusterError> {
        let (reachable, name) = (endpoints::named(pod, container_port), pod.metadata.name.clone().unwrap_or_default());
        if reachable.pods.is_empty() {
            return Err(self.does_not_run(what, pod));
        }
        let version = pod.metadata.resource_version.clone().unwrap_or_default();
        let source = Source::Pod { name, version, container_port };
        Ok(Resolution {
            namespace: self.namespace.clone(),
            port,
            ports: Vec::new(),
            reachable,
            affinity: None,
            source,
            services: Vec::new(),
            takeover: None,
        })
    }

    /// Returns a port of a pod, which may listen on undeclared ports.
    fn own_port(&self, what: &str, declared: &[ServicePort], wanted: &PortRef) -> Result<ServicePort, ClusterError> {
        match (choose_port(declared, wanted), wanted) {
            (Some(port), _) => Ok(port.clone()),
            (None, PortRef::Number(number)) => Ok(ServicePort { number: number.get(), ..no_port() }),
            (None, _) => Err(self.no_port(what, declared, wanted)),
        }
    }

    async fn port_of_service(
        &self,
        what: &str,
        spec: &ServiceSpec,
        told: &Told,
        wanted: &PortRef,
    ) -> Result<(ServicePort, PodPort), ClusterError> {
        let ports = tcp_ports(spec);
        if let Some(number) = port_of_pods(spec, wanted) {
            return Ok((ServicePort { number, ..no_port() }, PodPort::Number(number)));
        }
        if !ports.is_empty() {
            let port = choose_port(&ports, wanted).ok_or_else(|| match other_protocol(spec, wanted) {
                Some((number, protocol)) => {
                    let why = format!("its port {number} is {protocol}, and a port-forward carries TCP");
                    self.unsupported(what, &why, None)
                }
                None => self.no_port(what, &ports, wanted),
            })?;
            let target = target_port(spec, port);
            return Ok((port.clone(), PodPort::OfService { name: port.name.clone(), target }));
        }
        if spec.ports.as_ref().is_some_and(|ports| !ports.is_empty()) {
            let why = "its ports are UDP or SCTP, and a port-forward carries TCP";
            return Err(self.unsupported(what, why, None));
        }
        if !is_headless(spec) {
            return Err(self.unsupported(what, "it has no ports", None));
        }
        // A headless Service stands for its pods, with their own ports.
        let declared = self.any_pod(told).await?.map(|pod| pods::ports(&pod)).unwrap_or_default();
        let port = self.own_port(what, &declared, wanted)?;
        let pod_port = PodPort::Number(port.number);
        Ok((port, pod_port))
    }

    /// Returns any ready pod of a Service.
    async fn any_pod(&self, told: &Told) -> Result<Option<Pod>, ClusterError> {
        let reachable = match told {
            Told::Slices(slices) => self.of_slices(&slices.items, &PodPort::Any).await?,
            Told::Endpoints { slices, .. } => self.of_slices(slices, &PodPort::Any).await?,
            Told::Selected(selector) => {
                let all = self.pods_of(selector).await?;
                return Ok(all.items.into_iter().find(pods::is_ready));
            }
        };
        let Some(pod) = reachable.pods.first() else { return Ok(None) };
        match self.get::<Pod>(&format!("pod {}/{}", self.namespace, pod.name), &pod.name).await {
            Ok(pod) => Ok(Some(pod)),
            Err(AskError::NotFound) => Ok(None),
            Err(AskError::Failed(error)) => Err(error),
        }
    }

    /// Returns the objects that list the Service's pods: its slices, or the fallback if they cannot be read.
    async fn told(
        &self,
        what: &str,
        name: &str,
        spec: &ServiceSpec,
        slices: Result<ObjectList<EndpointSlice>, AskError>,
    ) -> Result<Told, ClusterError> {
        let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty());
        let unread = match slices {
            // A Service with a selector has slices from a controller, which always runs, so an empty list is the answer.
            Ok(slices) if !slices.items.is_empty() || selector.is_some() => return Ok(Told::Slices(slices)),
            Ok(_) | Err(AskError::NotFound) => None,
            // A gateway may refuse requests that it does not know.
            Err(AskError::Failed(error)) if error.is_refusal() => Some(error),
            Err(AskError::Failed(error)) => return Err(error),
        };
        if let Some(selector) = selector {
            if let Some(error) = &unread {
                self.tell_once(error);
            }
            let terms: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
            return Ok(Told::Selected(terms.join(",")));
        }
        match (self.get::<Endpoints>(&format!("endpoints {}/{name}", self.namespace), name).await, unread) {
            (Ok(endpoints), _) => {
                let version = endpoints.metadata.resource_version.clone().unwrap_or_default();
                Ok(Told::Endpoints { slices: endpoints::as_slices(endpoints), version })
            }
            (Err(_), Some(unread)) => Err(unread),
            (Err(AskError::Failed(error)), None)
                if !error.is_refusal() || matches!(error, ClusterError::Unavailable { .. }) =>
            {
                Err(error)
            }
            (Err(_), None) => {
                let why = "it has no selector and no EndpointSlices, so it has no pods";
                Err(self.unsupported(what, why, Some(self.get_slices(name))))
            }
        }
    }

    async fn read(
        &self,
        name: &str,
        spec: &ServiceSpec,
        told: Told,
        port: PodPort,
    ) -> Result<(Reachable, Source), ClusterError> {
        let service = name.to_owned();
        Ok(match told {
            Told::Slices(list) => {
                let (slices, version) = (list.items, list.metadata.resource_version.unwrap_or_default());
                if let Some(relay) = self.relay(&slices, &port).await? {
                    let (of, reachable) = (self.namespace.clone(), Reachable::ready(vec![relay.1.clone()]));
                    return Ok((reachable, Source::Relay { of, service, slices, version, port, relay }));
                }
                let reachable = self.of_slices(&slices, &port).await?;
                (reachable, Source::Slices { service, slices, version, port })
            }
            Told::Endpoints { slices, version } => {
                let reachable = self.of_slices(&slices, &port).await?;
                (reachable, Source::Endpoints { service, slices, version, port })
            }
            Told::Selected(selector) => {
                let publishes_not_ready = spec.publish_not_ready_addresses == Some(true);
                let list = self.pods_of(&selector).await?;
                let (pods, version) = (list.items, list.metadata.resource_version.unwrap_or_default());
                let ready = Reachable::ready(endpoints::selected(&pods, &port, publishes_not_ready));
                (ready, Source::Selected { selector, pods, publishes_not_ready, version, port })
            }
        })
    }

    /// Returns the target of an ExternalName in this cluster. `None`: the Service is not an ExternalName.
    fn alias(
        &self,
        what: &str,
        metadata: &ObjectMeta,
        spec: &ServiceSpec,
        wanted: Option<&PortRef>,
    ) -> Result<Option<Found>, ClusterError> {
        if spec.type_.as_deref() != Some("ExternalName") {
            return Ok(None);
        }
        let name = spec.external_name.as_deref().unwrap_or_default();
        match InCluster::parse(name) {
            Some(to) => {
                let by = Box::new(self.known(metadata, spec.clone()));
                Ok(Some(Found::Alias { by, to, port: wanted.map(|port| alias::port_behind(spec, port)) }))
            }
            None => Err(self.external(what, name)),
        }
    }

    fn known(&self, metadata: &ObjectMeta, spec: ServiceSpec) -> KnownService {
        let ObjectMeta { name, resource_version: version, .. } = metadata.clone();
        let (name, version) = (name.unwrap_or_default(), version.unwrap_or_default());
        KnownService { namespace: self.namespace.clone(), name, version, spec }
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

/// Returns whether the Service is headless: it has no ClusterIP.
fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

/// Returns the requested port of a headless Service that is none of its own. Its name resolves to the addresses of the pods,
/// which accept connections to any port.
fn port_of_pods(spec: &ServiceSpec, wanted: &PortRef) -> Option<u16> {
    let PortRef::Number(number) = wanted else { return None };
    let is_own = choose_port(&tcp_ports(spec), wanted).is_some() || other_protocol(spec, wanted).is_some();
    (is_headless(spec) && !is_own).then_some(number.get())
}

/// Returns the port for callers that requested none.
fn no_port() -> ServicePort {
    ServicePort { number: 0, name: None, app_protocol: None }
}

/// Returns how long a Service keeps a client with a pod.
fn affinity(spec: &ServiceSpec) -> Option<Duration> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}
