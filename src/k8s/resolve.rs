//! From a Service or Pod and a port to a ready pod and its container port.

use kube::{
    Api, Resource,
    api::{ListParams, ObjectMeta},
    core::PartialObjectMeta,
};
use serde::de::DeserializeOwned;

use crate::{
    config::{Namespace, PortRef, Workload, near::near},
    k8s::{
        ClusterError, ServicePort,
        client::{AskError, Cluster},
        objects::{EndpointSlice, Namespace as NamespaceObject, Pod, Service, ServiceSpec},
        pods,
        ports::{choose_port, tcp_ports},
    },
};

/// The most names that a suggestion is looked for in.
const MOST_NEIGHBOURS: u32 = 500;

/// A pod that is ready to take a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadyPod {
    pub name: String,
    /// A pod of the same name with another UID is another pod.
    pub uid: String,
    pub container_port: u16,
}

/// What a target means at a moment.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// The port that was asked for, as the Service or Pod describes it.
    pub port: ServicePort,
    /// At least one, sorted by name.
    pub pods: Vec<ReadyPod>,
    /// What the pods were found in, for those who follow it.
    pub source: Source,
}

/// The objects that tell which pods are ready, and the version of what was read of them.
#[derive(Clone, Debug)]
pub enum Source {
    Service { name: String, pod: Option<String>, slices: Vec<EndpointSlice>, version: String },
    Pod { name: String, version: String },
}

/// Finds the ready pods and their container port, as things stand at this moment.
///
/// # Errors
/// Whatever keeps the target from being reached, in words for the user: see [`ClusterError`].
pub async fn resolve(
    cluster: &Cluster,
    namespace: &Namespace,
    workload: &Workload,
    port: &PortRef,
) -> Result<Resolution, ClusterError> {
    let lookup = Lookup { cluster, namespace };
    match workload {
        Workload::Service(service) => lookup.service(service, None, port).await,
        Workload::PodOfService { pod, service } => lookup.service(service, Some(pod), port).await,
        Workload::Pod(pod) => lookup.pod(pod, port).await,
    }
}

struct Lookup<'a> {
    cluster: &'a Cluster,
    namespace: &'a Namespace,
}

impl Lookup<'_> {
    async fn service(&self, name: &str, pod: Option<&str>, port: &PortRef) -> Result<Resolution, ClusterError> {
        let what = format!("service {}/{name}", self.namespace);
        let services: Api<Service> = self.api();
        let slices: Api<EndpointSlice> = self.api();
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
        let doing = format!("looking up {what}");
        // Together: one round trip on HTTP/2.
        let (service, slices) = tokio::join!(
            self.cluster.ask(&doing, self.namespace, services.get(name)),
            self.cluster.ask(&doing, self.namespace, slices.list(&of_service)),
        );
        let service = match service {
            Ok(service) => service,
            Err(AskError::Failed(error)) => return Err(error),
            Err(AskError::NotFound) => return Err(self.not_found::<Service>(what, "services", name).await),
        };
        let (slices, version) = match slices {
            Ok(slices) => (slices.items, slices.metadata.resource_version.unwrap_or_default()),
            Err(AskError::Failed(error)) => return Err(error),
            Err(AskError::NotFound) => (Vec::new(), String::new()),
        };
        let spec = service.spec.unwrap_or_default();
        self.refuse_what_has_no_pods(&what, &spec)?;
        let ports = tcp_ports(&spec);
        let chosen = self.choose(&what, &ports, port)?;
        let (pods, others) = ready_pods(&slices, chosen.name.as_deref(), pod);
        if !pods.is_empty() {
            let source = Source::Service { name: name.to_owned(), pod: pod.map(str::to_owned), slices, version };
            return Ok(Resolution { port: chosen.clone(), pods, source });
        }
        match others && pod.is_none() {
            true => Err(self.unsupported(&what, "its endpoints are addresses, not pods", None)),
            false => Err(self.nothing_ready(&what, &spec, pod).await),
        }
    }

    async fn pod(&self, name: &str, port: &PortRef) -> Result<Resolution, ClusterError> {
        let what = format!("pod {}/{name}", self.namespace);
        let pods: Api<Pod> = self.api();
        let pod = match self.cluster.ask(&format!("looking up {what}"), self.namespace, pods.get(name)).await {
            Ok(pod) => pod,
            Err(AskError::Failed(error)) => return Err(error),
            Err(AskError::NotFound) => return Err(self.not_found::<Pod>(what, "pods", name).await),
        };
        if !pods::is_ready(&pod) {
            return Err(ClusterError::NotReady {
                what,
                context: self.cluster.context.clone(),
                cause: format!("the pod is not ready ({})", pods::why_not_ready(&pod)),
                hint: format!("kubectl --context {} -n {} describe pod {name}", self.cluster.context, self.namespace),
            });
        }
        let ports = pods::ports(&pod);
        let port = match port {
            // A pod may listen on ports that it does not declare.
            PortRef::Number(number) => ports
                .iter()
                .find(|port| port.number == *number)
                .cloned()
                .unwrap_or(ServicePort { number: *number, name: None, app_protocol: None }),
            port => self.choose(&what, &ports, port)?.clone(),
        };
        let ready =
            ReadyPod { name: name.to_owned(), uid: pod.metadata.uid.unwrap_or_default(), container_port: port.number };
        let source = Source::Pod { name: name.to_owned(), version: pod.metadata.resource_version.unwrap_or_default() };
        Ok(Resolution { port, pods: vec![ready], source })
    }

    fn choose<'p>(
        &self,
        what: &str,
        ports: &'p [ServicePort],
        wanted: &PortRef,
    ) -> Result<&'p ServicePort, ClusterError> {
        choose_port(ports, wanted).ok_or_else(|| {
            let (what, context, ports) = (what.to_owned(), self.cluster.context.clone(), ports.to_vec());
            match wanted {
                PortRef::Auto => ClusterError::ChoosePort { what, context, ports },
                PortRef::Number(number) => ClusterError::NoSuchPort { what, context, port: number.to_string(), ports },
                PortRef::Name(name) => ClusterError::NoSuchPort { what, context, port: name.clone(), ports },
            }
        })
    }

    fn refuse_what_has_no_pods(&self, what: &str, spec: &ServiceSpec) -> Result<(), ClusterError> {
        if spec.type_.as_deref() == Some("ExternalName") {
            let name = spec.external_name.as_deref().unwrap_or("?");
            let why = format!("it is an ExternalName for {name}, outside of the cluster");
            return Err(self.unsupported(what, &why, Some(format!("use {name} directly"))));
        }
        if spec.selector.as_ref().is_none_or(|selector| selector.is_empty()) {
            let why = "it has no selector, so that no pods stand behind it";
            return Err(self.unsupported(what, why, Some("name a pod that can reach its endpoints".to_owned())));
        }
        if tcp_ports(spec).is_empty() {
            let has_ports = spec.ports.as_ref().is_some_and(|ports| !ports.is_empty());
            let why =
                if has_ports { "its ports are UDP or SCTP, and a port-forward carries TCP" } else { "it has no ports" };
            return Err(self.unsupported(what, why, None));
        }
        Ok(())
    }

    fn unsupported(&self, what: &str, why: &str, hint: Option<String>) -> ClusterError {
        ClusterError::Unsupported {
            what: what.to_owned(),
            context: self.cluster.context.clone(),
            why: why.to_owned(),
            hint,
        }
    }

    /// Tells why a Service has no ready pod, by looking at the pods that it selects.
    async fn nothing_ready(&self, what: &str, spec: &ServiceSpec, pod: Option<&str>) -> ClusterError {
        let selector: Vec<String> =
            spec.selector.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
        let selector = selector.join(",");
        let pods: Api<Pod> = self.api();
        let listed = self
            .cluster
            .ask(
                &format!("listing the pods of {what}"),
                self.namespace,
                pods.list(&ListParams::default().labels(&selector).limit(100)),
            )
            .await;
        let cause = match listed {
            Ok(list) if list.items.is_empty() => "no pods: the workload may be scaled to 0".to_owned(),
            Ok(list) => match pod {
                None => describe(&list.items),
                Some(pod) => match list.items.iter().find(|found| found.metadata.name.as_deref() == Some(pod)) {
                    Some(found) => format!("{pod} is not ready ({})", pods::why_not_ready(found)),
                    None => format!("{pod} is not one of its pods"),
                },
            },
            // The state of the pods is an extra; what counts was said by the EndpointSlices.
            Err(_) => "its EndpointSlices name no ready pod".to_owned(),
        };
        ClusterError::NotReady {
            what: what.to_owned(),
            context: self.cluster.context.clone(),
            cause,
            hint: format!("kubectl --context {} -n {} get pods -l {selector}", self.cluster.context, self.namespace),
        }
    }

    /// Tells that an object does not exist, with names that are like it.
    async fn not_found<K>(&self, what: String, plural: &str, name: &str) -> ClusterError
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let all: Api<K> = self.api();
        let listed = self
            .cluster
            .ask(
                &format!("listing {plural}"),
                self.namespace,
                all.list_metadata(&ListParams::default().limit(MOST_NEIGHBOURS)),
            )
            .await;
        let names: Vec<String> = listed
            .map(|list| list.items.into_iter().filter_map(|item: PartialObjectMeta<K>| item.metadata.name).collect())
            .unwrap_or_default();
        let near = near(name, names.iter().cloned(), |name| name);
        let context = self.cluster.context.clone();
        if names.is_empty() && self.namespace_is_missing().await {
            let hint =
                Some(format!("there is no namespace {}: kubectl --context {context} get namespaces", self.namespace));
            return ClusterError::NotFound { what, context, near: Vec::new(), hint };
        }
        let hint = format!("kubectl --context {context} -n {} get {plural}", self.namespace);
        ClusterError::NotFound { what, context, near, hint: Some(hint) }
    }

    async fn namespace_is_missing(&self) -> bool {
        let namespaces: Api<NamespaceObject> = Api::all(self.cluster.client.clone());
        let answer = namespaces.get_metadata(&self.namespace.0);
        matches!(self.cluster.ask("looking up the namespace", self.namespace, answer).await, Err(AskError::NotFound))
    }

    fn api<K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.cluster.client.clone(), &self.namespace.0)
    }
}

/// Returns the ready, not terminating pods of the slices that have the Service's port, all or only one, and whether
/// there are endpoints that are no pods. A slice names its ports as the Service does, resolved to the pods' numbers.
pub(super) fn ready_pods<'s>(
    slices: impl IntoIterator<Item = &'s EndpointSlice>,
    port_name: Option<&str>,
    only: Option<&str>,
) -> (Vec<ReadyPod>, bool) {
    let (mut found, mut others) = (Vec::new(), false);
    for slice in slices {
        let port =
            slice.ports.iter().flatten().find(|port| port.name.as_deref().unwrap_or("") == port_name.unwrap_or(""));
        let Some(container_port) = port.and_then(|port| u16::try_from(port.port?).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.as_ref();
            // An unknown readiness counts as ready (discovery/v1, EndpointConditions).
            let ready = conditions
                .is_none_or(|conditions| conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false));
            let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
            match target.and_then(|target| Some((target.name.clone()?, target.uid.clone().unwrap_or_default()))) {
                Some((name, uid)) if ready && only.is_none_or(|only| only == name) => {
                    found.push(ReadyPod { name, uid, container_port });
                }
                Some(_) => {}
                None => others = true,
            }
        }
    }
    // A dual-stack Service has each pod once per address family.
    found.sort();
    found.dedup();
    (found, others)
}

/// Returns `0 of 2 pods ready (web-7c4: CrashLoopBackOff, web-9f1: terminating)`, a few pods at most.
fn describe(all: &[Pod]) -> String {
    const MOST: usize = 3;
    let ready = all.iter().filter(|pod| pods::is_ready(pod)).count();
    let not_ready: Vec<&Pod> = all.iter().filter(|pod| !pods::is_ready(pod)).collect();
    let name = |meta: &ObjectMeta| meta.name.clone().unwrap_or_default();
    let mut reasons: Vec<String> = not_ready
        .iter()
        .take(MOST)
        .map(|pod| format!("{}: {}", name(&pod.metadata), pods::why_not_ready(pod)))
        .collect();
    if not_ready.len() > MOST {
        reasons.push(format!("and {} more", not_ready.len() - MOST));
    }
    format!("{ready} of {} pods ready ({})", all.len(), reasons.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(value: serde_json::Value) -> EndpointSlice {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn named_port_resolves_to_the_container_port_of_each_slice() {
        let endpoint = |pod: &str, conditions: serde_json::Value| json!({"addresses": ["10.0.0.1"], "conditions": conditions, "targetRef": {"kind": "Pod", "name": pod, "uid": "u"}});
        let slices = [
            slice(
                json!({"addressType": "IPv4", "ports": [{"name": "http", "port": 8080}, {"name": "metrics", "port": 9090}], "endpoints": [
                    endpoint("a", json!({"ready": true})),
                    endpoint("b", json!({"ready": false})),
                    endpoint("c", json!({"ready": false, "serving": true, "terminating": true})),
                ]}),
            ),
            slice(
                json!({"addressType": "IPv4", "ports": [{"name": "http", "port": 8081}], "endpoints": [endpoint("d", json!({}))]}),
            ),
        ];
        let (found, others) = ready_pods(&slices, Some("http"), None);
        let shown: Vec<_> = found.iter().map(|pod| (pod.name.as_str(), pod.container_port)).collect();
        assert_eq!(shown, [("a", 8080), ("d", 8081)]);
        assert_eq!(ready_pods(&slices, Some("http"), Some("d")).0, found[1..]);
        assert!(!others);
    }

    #[test]
    fn endpoints_that_are_no_pods_are_seen_and_families_counted_once() {
        let pod = json!({"addresses": ["::1"], "targetRef": {"kind": "Pod", "name": "a", "uid": "u"}});
        let slices = [
            slice(
                json!({"addressType": "IPv4", "ports": [{"name": "", "port": 80}], "endpoints": [pod, {"addresses": ["1.2.3.4"]}]}),
            ),
            slice(json!({"addressType": "IPv6", "ports": [{"port": 80}], "endpoints": [pod]})),
        ];
        let (found, others) = ready_pods(&slices, None, None);
        assert_eq!(found.len(), 1);
        assert!(others);
    }
}
