//! Resolves a pod that the target names, of a Service or not.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Found, Lookup, Resolution, Source, no_port, service::is_headless, taken_over};
use crate::{
    config::PortRef,
    k8s::{
        ClusterError, ServicePort,
        client::AskError,
        endpoints::{self, PodPort},
        objects::{Pod, Service, ServiceSpec},
        pods,
        ports::{choose_port, target_port, tcp_ports},
    },
};

impl Lookup<'_> {
    /// Returns a named pod of a Service. It must run, may be reached on any port, and uses the Service's ports if they
    /// match.
    pub(super) async fn pod_of_service(
        &self,
        name: &str,
        service: &str,
        wanted: Option<&PortRef>,
    ) -> Result<Found, ClusterError> {
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

    pub(super) async fn pod(&self, name: &str, wanted: Option<&PortRef>) -> Result<Resolution, ClusterError> {
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
    pub(super) fn own_port(
        &self,
        what: &str,
        declared: &[ServicePort],
        wanted: &PortRef,
    ) -> Result<ServicePort, ClusterError> {
        match (choose_port(declared, wanted), wanted) {
            (Some(port), _) => Ok(port.clone()),
            (None, PortRef::Number(number)) => Ok(ServicePort { number: number.get(), ..no_port() }),
            (None, _) => Err(self.no_port(what, declared, wanted)),
        }
    }
}

/// Returns the port of a Service that has the name, or whose `targetPort` has it.
fn port_called(spec: &ServiceSpec, name: &str) -> Option<ServicePort> {
    let is_it = |port: &ServicePort| {
        port.name.as_deref() == Some(name) || target_port(spec, port) == IntOrString::String(name.to_owned())
    };
    tcp_ports(spec).into_iter().find(is_it)
}
