//! Errors for a Service or a pod that cannot be reached. Their look-ups happen only after a failure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{
    Api,
    api::{ListParams, ObjectMeta},
    core::PartialObjectMeta,
};

use super::{Lookup, NamespacedKind, Source, taken_over::takeover};
use crate::{
    config::{PortRef, Workload, near::near, shell::quoted},
    k8s::{
        ClusterError, ServicePort,
        client::AskError,
        endpoints::{self, InSlices, PodPort},
        objects::{Namespace as NamespaceObject, Pod, ServiceSpec},
        pods,
    },
};

/// Maximum number of names to search for a suggestion.
const MOST_NEIGHBOURS: u32 = 500;

/// Hint for targets that are not pods.
const THROUGH_A_POD: &str = "through a pod: via and target of a route in http.k8s.routes, or tcp.k8s.jump";

impl Lookup<'_> {
    pub(super) fn what(&self, workload: &Workload) -> String {
        match workload {
            Workload::Service(name) => format!("service {}/{name}", self.namespace),
            Workload::Pod(name) | Workload::PodOfService { pod: name, .. } => format!("pod {}/{name}", self.namespace),
            Workload::Address(address) => format!("address {address}"),
        }
    }

    pub(super) fn unsupported(&self, what: &str, why: &str, hint: Option<String>) -> ClusterError {
        ClusterError::Unsupported {
            what: what.to_owned(),
            context: self.cluster.context.clone(),
            why: why.to_owned(),
            hint,
        }
    }

    pub(super) fn external(&self, what: &str, name: &str) -> ClusterError {
        let why = format!("it is an ExternalName for {name}, outside of the cluster");
        self.unsupported(what, &why, Some(format!("use {name} directly, or {THROUGH_A_POD}")))
    }

    pub(super) fn no_port(&self, what: &str, ports: &[ServicePort], wanted: &PortRef) -> ClusterError {
        let (what, context, ports) = (what.to_owned(), self.cluster.context.clone(), ports.to_vec());
        match wanted {
            PortRef::Auto | PortRef::Https => ClusterError::ChoosePort { what, context, ports },
            PortRef::Number(number) => ClusterError::NoSuchPort { what, context, port: number.to_string(), ports },
            PortRef::Name(name) => ClusterError::NoSuchPort { what, context, port: name.to_string(), ports },
        }
    }

    pub(super) fn get_slices(&self, service: &str) -> String {
        format!(
            "{} -n {} get endpointslices -l kubernetes.io/service-name={service}",
            self.cluster.kubectl(),
            self.namespace
        )
    }

    pub(super) fn does_not_run(&self, what: String, pod: &Pod) -> ClusterError {
        let hint = format!("{} -n {} {}", self.cluster.kubectl(), self.namespace, pods::look_at(pod));
        let cause = format!("the pod does not run ({})", pods::why_not_ready(pod));
        ClusterError::NotReady { what, context: self.cluster.context.clone(), cause, hint }
    }

    pub(super) fn no_such_pod(&self, what: &str, of_service: &str, name: &str) -> ClusterError {
        ClusterError::NoPod {
            pod: what.to_owned(),
            service: of_service.to_owned(),
            context: self.cluster.context.clone(),
            hint: format!("{} -n {} get pod {name}", self.cluster.kubectl(), self.namespace),
        }
    }

    pub(super) fn not_of_service(
        &self,
        what: &str,
        of_service: &str,
        selector: &BTreeMap<String, String>,
    ) -> ClusterError {
        let selector: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let hint = (!selector.is_empty()).then(|| self.get_pods(&selector.join(",")));
        self.unsupported(what, &format!("it is not one of the pods of {of_service}"), hint)
    }

    fn get_pods(&self, selector: &str) -> String {
        format!("{} -n {} get pods -l {}", self.cluster.kubectl(), self.namespace, quoted(selector))
    }

    /// Returns the error for a Service without a reachable pod. `service`: its name, metadata and spec.
    pub(super) async fn nothing_ready(
        &self,
        what: &str,
        service: (&str, &ObjectMeta, &ServiceSpec),
        source: &Source,
    ) -> ClusterError {
        let (name, metadata, spec) = service;
        if let Source::Slices { slices, port, .. } | Source::Endpoints { slices, port, .. } = source {
            let outside = endpoints::in_slices(slices, port, &self.namespace).addresses;
            if !outside.is_empty() {
                return self.outside(what, outside.into_iter().collect());
            }
        }
        let not_ready = |cause: String, hint: String| {
            let (what, context) = (what.to_owned(), self.cluster.context.clone());
            ClusterError::NotReady { what, context, cause, hint }
        };
        let target = match source {
            Source::Slices { port: PodPort::OfService { target, .. }, .. }
            | Source::Selected { port: PodPort::OfService { target, .. }, .. } => Some(target),
            _ => None,
        };
        if let Some(takeover) = target.and_then(|target| takeover(metadata, target)) {
            let hint =
                format!("if its relay is gone: {} expose restore {name}.{}", self.cluster.adit(), self.namespace);
            return not_ready(format!("{takeover}, and adit finds no relay that serves it"), hint);
        }
        let selector: Vec<String> =
            spec.selector.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
        if selector.is_empty() {
            return not_ready("its endpoints name no ready pod".to_owned(), self.get_slices(name));
        }
        let selector = selector.join(",");
        let kubectl = |arguments: &str| format!("{} -n {} {arguments}", self.cluster.kubectl(), self.namespace);
        let pods = self.list_pods(ListParams::default().labels(&selector).limit(100)).await;
        // The pods' state is optional: the EndpointSlices are what counts.
        let pods = pods.as_ref().map(|list| list.items.as_slice());
        if let Some(IntOrString::String(target)) = target
            && is_undeclared(source, pods.unwrap_or_default())
        {
            return self.undeclared(what, name, target, pods.unwrap_or_default());
        }
        match pods {
            Ok([]) => not_ready(format!("no pod has the labels {selector}"), kubectl("get pods --show-labels")),
            Ok(pods) => {
                let first = pods.iter().find(|pod| !pods::is_ready(pod)).map(pods::look_at);
                not_ready(describe(pods), first.map_or_else(|| self.get_pods(&selector), |look| kubectl(&look)))
            }
            Err(_) => not_ready("its EndpointSlices name no ready pod".to_owned(), self.get_pods(&selector)),
        }
    }

    /// Returns the error for a `targetPort` that is the name of no port of the pods.
    fn undeclared(&self, what: &str, name: &str, target: &str, pods: &[Pod]) -> ClusterError {
        let declared: BTreeSet<String> = pods.iter().flat_map(pods::ports).map(|port| port.to_string()).collect();
        let declared = match declared.is_empty() {
            true => String::new(),
            false => format!("; they declare {}", declared.into_iter().collect::<Vec<_>>().join(", ")),
        };
        let why = format!("its targetPort {target:?} is the name of no port of its pods{declared}");
        let edit = format!("{} -n {} edit service {name}", self.cluster.kubectl(), self.namespace);
        self.unsupported(what, &why, Some(edit))
    }

    pub(super) fn outside(&self, what: &str, addresses: Vec<(IpAddr, u16)>) -> ClusterError {
        const MOST: usize = 3;
        let mut shown: Vec<String> = addresses.iter().take(MOST).map(|(address, _)| address.to_string()).collect();
        if addresses.len() > MOST {
            shown.push(format!("{} more", addresses.len() - MOST));
        }
        let why = format!(
            "its endpoints are addresses outside of the pods of namespace {} ({}), and these cannot be port-forwarded to",
            self.namespace,
            shown.join(", ")
        );
        self.unsupported(what, &why, Some(format!("go on to the address {THROUGH_A_POD}")))
    }

    /// Returns the error for a missing object, with similar names.
    pub(super) async fn not_found<K: NamespacedKind>(&self, what: String, plural: &str, name: &str) -> ClusterError {
        let listed = self
            .cluster
            .ask(
                &format!("listing {plural}"),
                &self.namespace,
                self.api::<K>().list_metadata(&ListParams::default().limit(MOST_NEIGHBOURS)),
            )
            .await;
        let names: Vec<String> = listed
            .map(|list| list.items.into_iter().filter_map(|item: PartialObjectMeta<K>| item.metadata.name).collect())
            .unwrap_or_default();
        let near = near(name, names.iter().cloned(), |name| name);
        let context = self.cluster.context.clone();
        if names.is_empty() && self.namespace_is_missing().await {
            let hint =
                Some(format!("there is no namespace {}: {} get namespaces", self.namespace, self.cluster.kubectl()));
            return ClusterError::NotFound { what, context, near: Vec::new(), hint };
        }
        let hint = format!("{} -n {} get {plural}", self.cluster.kubectl(), self.namespace);
        ClusterError::NotFound { what, context, near, hint: Some(hint) }
    }

    async fn namespace_is_missing(&self) -> bool {
        let namespaces: Api<NamespaceObject> = Api::all(self.cluster.client.clone());
        let answer = namespaces.get_metadata(&self.namespace);
        let answer = self.cluster.ask("looking up the namespace", &self.namespace, answer).await;
        matches!(answer, Err(AskError::NotFound))
    }
}

/// Returns whether pods are ready, but neither they nor those that start have a port of the name in `targetPort`. `pods`:
/// empty if they could not be listed.
fn is_undeclared(source: &Source, pods: &[Pod]) -> bool {
    let (Source::Slices { port, .. } | Source::Selected { port, .. }) = source else { return false };
    let is_ready = match source {
        Source::Slices { slices, .. } => {
            endpoints::in_slices(slices, &PodPort::Any, "") != InSlices::default()
                && !slices.iter().any(|slice| port.in_slice(slice).is_some())
        }
        _ => pods.iter().any(pods::is_ready),
    };
    is_ready && !pods.iter().any(|pod| port.in_pod(pod).is_some())
}

/// Returns `0 of 2 pods ready (web-7c4: CrashLoopBackOff, web-9f1: terminating)`, with a few pods at most.
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
    match reasons.is_empty() {
        true => format!("its EndpointSlices name none of its {ready} ready pods"),
        false => format!("{ready} of {} pods ready ({})", all.len(), reasons.join(", ")),
    }
}
