//! Resolves a Service: its slices decide, or else its Endpoints object or its selector.

use std::time::Duration;

use kube::api::{ObjectList, ObjectMeta};

use super::{
    Found, KnownService, Lookup, Resolution, Source,
    alias::{self, InCluster},
    no_port,
    taken_over::Takeover,
};
use crate::{
    config::{Namespace, PortRef},
    k8s::{
        ClusterError, ServicePort,
        client::{AskError, Cluster},
        endpoints::{self, PodPort, Reachable},
        objects::{EndpointSlice, Endpoints, Pod, Service, ServiceSpec},
        pods,
        ports::{choose_port, other_protocol, target_port, tcp_ports},
    },
};

/// Default time that a client stays with a pod, in seconds (core/v1, ClientIPConfig).
const AFFINITY_SECONDS: i32 = 10_800;

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

/// Objects that list a Service's pods.
enum Told {
    Slices(ObjectList<EndpointSlice>),
    Endpoints { slices: Vec<EndpointSlice>, version: String },
    Selected(String),
}

impl Lookup<'_> {
    pub(super) async fn service(&self, name: &str, wanted: Option<&PortRef>) -> Result<Found, ClusterError> {
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
    pub(super) fn alias(
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
                let port = wanted.map(|port| alias::port_behind(spec, port));
                let chosen = wanted.and_then(|port| alias::chosen_port(spec, port));
                Ok(Some(Found::Alias { by, to, port, chosen }))
            }
            None => Err(self.external(what, name)),
        }
    }

    fn known(&self, metadata: &ObjectMeta, spec: ServiceSpec) -> KnownService {
        let ObjectMeta { name, resource_version: version, .. } = metadata.clone();
        let (name, version) = (name.unwrap_or_default(), version.unwrap_or_default());
        KnownService { namespace: self.namespace.clone(), name, version, spec }
    }
}

/// Returns whether the Service is headless: it has no ClusterIP.
pub(super) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

/// Returns the requested port of a headless Service that is none of its own. Its name resolves to the addresses of the pods,
/// which accept connections to any port.
fn port_of_pods(spec: &ServiceSpec, wanted: &PortRef) -> Option<u16> {
    let PortRef::Number(number) = wanted else { return None };
    let is_own = choose_port(&tcp_ports(spec), wanted).is_some() || other_protocol(spec, wanted).is_some();
    (is_headless(spec) && !is_own).then_some(number.get())
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
