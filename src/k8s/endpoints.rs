//! Chooses the pods and ports of a Service. Pure: a function of slices and pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{
    objects::{
        Endpoint, EndpointAddress, EndpointConditions, EndpointSlice, EndpointSubset, Endpoints, Pod, TargetRef,
    },
    pods,
};
use crate::config::{Namespace, Subdomain};

/// A pod that accepts connections: a ready pod of a Service, or a named pod that runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadyPod {
    pub name: Subdomain,
    /// A pod with the same name but another UID is another pod.
    pub uid: String,
    /// 0: no port was requested.
    pub container_port: u16,
}

impl ReadyPod {
    fn of(pod: &Pod, container_port: u16) -> Option<Self> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        Some(Self { name: pod.metadata.name.as_ref()?.parse().ok()?, uid, container_port })
    }
}

/// The pods that accept connections at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reachable {
    /// Sorted by name.
    pub pods: Vec<ReadyPod>,
    /// Why a named pod is not ready; it is reached anyway.
    pub not_ready: Option<String>,
}

impl Reachable {
    pub fn ready(mut pods: Vec<ReadyPod>) -> Self {
        // A dual-stack Service lists each pod once per address family.
        pods.sort();
        pods.dedup();
        Self { pods, not_ready: None }
    }
}

/// Port of the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodPort {
    /// Port of a Service: slices have it by its name, and `targetPort` is its port in a pod.
    OfService { name: Option<String>, target: IntOrString },
    /// Port of the pods themselves.
    Number(u16),
    /// No port was requested: an exec needs none.
    Any,
}

impl PodPort {
    /// Returns the port's number in a slice. Slices use the port names of the Service.
    pub fn in_slice(&self, slice: &EndpointSlice) -> Option<u16> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Any => Some(0),
            Self::OfService { name, .. } => {
                let wanted = name.as_deref().unwrap_or("");
                let port = slice.ports.iter().flatten().find(|port| port.name.as_deref().unwrap_or("") == wanted)?;
                u16::try_from(port.port?).ok()
            }
        }
    }

    /// Returns the port's number in a pod. `None`: the pod declares no port of that name.
    pub fn in_pod(&self, pod: &Pod) -> Option<u16> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Any => Some(0),
            Self::OfService { target: IntOrString::Int(number), .. } => u16::try_from(*number).ok(),
            Self::OfService { target: IntOrString::String(name), .. } => {
                let ports = pods::ports(pod);
                let named = ports.iter().find(|port| port.name.as_deref() == Some(name));
                // The name may be a number as a string.
                named.map(|port| port.number).or_else(|| name.parse().ok())
            }
        }
    }
}

/// Pods and addresses in slices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InSlices {
    /// Pods that the slices name.
    pub pods: Vec<ReadyPod>,
    /// Addresses without a pod's name, each with the port.
    pub addresses: BTreeSet<(IpAddr, u16)>,
}

/// Returns the ready endpoints that have the port and are not terminating. If there are none, returns those that still
/// serve while they terminate, as kube-proxy does (KEP-1669).
pub fn in_slices<'s>(
    slices: impl IntoIterator<Item = &'s EndpointSlice, IntoIter: Clone>,
    port: &PodPort,
    namespace: &str,
) -> InSlices {
    let slices = slices.into_iter();
    let ready = that_are(is_ready, slices.clone(), port, namespace);
    if ready != InSlices::default() {
        return ready;
    }
    that_are(serves_to_the_end, slices, port, namespace)
}

fn that_are<'s>(
    wanted: fn(&Endpoint) -> bool,
    slices: impl Iterator<Item = &'s EndpointSlice>,
    port: &PodPort,
    namespace: &str,
) -> InSlices {
    let mut found = InSlices::default();
    for slice in slices {
        let Some(container_port) = port.in_slice(slice) else { continue };
        for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| wanted(endpoint)) {
            match named_pod(endpoint.target_ref.as_ref(), namespace) {
                Some((name, uid)) => found.pods.push(ReadyPod { name, uid, container_port }),
                None => found.addresses.extend(
                    endpoint.addresses.iter().filter_map(|address| Some((address.parse().ok()?, container_port))),
                ),
            }
        }
    }
    found
}

/// Returns the pod of a relay that has taken the port over, and its namespace. `None`: none has, or it is in `own`, as other
/// pods are.
pub fn of_relay<'s>(
    slices: impl IntoIterator<Item = &'s EndpointSlice>,
    port: &PodPort,
    own: &Namespace,
) -> Option<(Namespace, ReadyPod)> {
    // Without a port, the pods themselves are meant.
    let PodPort::OfService { .. } = port else { return None };
    slices.into_iter().filter(|slice| is_of_relay(slice)).find_map(|slice| {
        let container_port = port.in_slice(slice)?;
        let target = slice.endpoints.iter().flatten().find(|endpoint| is_ready(endpoint))?.target_ref.as_ref()?;
        let namespace: Namespace = target.namespace.as_ref()?.parse().ok().filter(|namespace| namespace != own)?;
        let (name, uid) = named_pod(Some(target), &namespace)?;
        Some((namespace, ReadyPod { name, uid, container_port }))
    })
}

fn is_of_relay(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get("endpointslice.kubernetes.io/managed-by")).is_some_and(|by| by == "adit")
}

/// Returns the port of a pod in slices, ready or not. `None`: the pod is in none of them, or has no such port.
pub fn port_in_slices<'s>(
    slices: impl IntoIterator<Item = &'s EndpointSlice>,
    port: &PodPort,
    pod: &Pod,
) -> Option<u16> {
    slices.into_iter().filter(|slice| has_pod(slice, pod)).find_map(|slice| port.in_slice(slice))
}

/// Returns whether a slice contains a pod, ready or not.
pub fn has_pod(slice: &EndpointSlice, pod: &Pod) -> bool {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    slice.endpoints.iter().flatten().any(|endpoint| match named_pod(endpoint.target_ref.as_ref(), namespace) {
        Some((name, _)) => pod.metadata.name.as_deref() == Some(&*name),
        None => endpoint.addresses.iter().filter_map(|address| address.parse().ok()).any(|ip| has_address(pod, ip)),
    })
}

/// Returns whether an endpoint is ready. Unknown counts as ready (discovery/v1, EndpointConditions).
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .is_none_or(|conditions| conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false))
}

/// Returns whether an endpoint terminates and still passes its readiness probe.
fn serves_to_the_end(endpoint: &Endpoint) -> bool {
    let is_set = |condition: fn(&EndpointConditions) -> Option<bool>| {
        endpoint.conditions.as_ref().and_then(condition).unwrap_or(false)
    };
    is_set(|conditions| conditions.serving) && is_set(|conditions| conditions.terminating)
}

/// Returns the name and UID of a target pod. A slice may contain anything, so an invalid pod name counts as none.
fn named_pod(target: Option<&TargetRef>, namespace: &str) -> Option<(Subdomain, String)> {
    let target = target.filter(|target| {
        target.kind.as_deref() == Some("Pod")
            && target.namespace.as_deref().is_none_or(|other| other.is_empty() || other == namespace)
    })?;
    Some((target.name.as_ref()?.parse().ok()?, target.uid.clone().unwrap_or_default()))
}

/// Returns the running pods with one of the addresses. Pods on the host network share the node's address: a pod that
/// declares the port is preferred.
pub fn at_addresses(addresses: &BTreeSet<(IpAddr, u16)>, all: &[Pod]) -> Vec<ReadyPod> {
    let at = |(address, port): &(IpAddr, u16)| {
        let there = all.iter().filter(|pod| pods::runs(pod) && has_address(pod, *address));
        there
            .min_by_key(|pod| (!declares(pod, *port), pod.metadata.name.clone()))
            .and_then(|pod| ReadyPod::of(pod, *port))
    };
    addresses.iter().filter_map(at).collect()
}

fn declares(pod: &Pod, port: u16) -> bool {
    pods::ports(pod).iter().any(|declared| declared.number == port)
}

/// Returns whether the pod runs and has one of the addresses.
pub fn is_at_any(addresses: &BTreeSet<(IpAddr, u16)>, pod: &Pod) -> bool {
    pods::runs(pod) && addresses.iter().any(|(address, _)| has_address(pod, *address))
}

/// Returns whether no further pod can change the result of [`at_addresses`]: each address has a pod of its own, or one that
/// declares the port.
pub fn are_certain(addresses: &BTreeSet<(IpAddr, u16)>, candidates: &[Pod]) -> bool {
    let is_alone = |pod: &Pod| pod.spec.as_ref().is_none_or(|spec| spec.host_network != Some(true));
    addresses.iter().all(|(address, port)| {
        candidates.iter().any(|pod| has_address(pod, *address) && (is_alone(pod) || declares(pod, *port)))
    })
}

/// Returns whether a pod has the address, in any address family.
pub fn has_address(pod: &Pod, address: IpAddr) -> bool {
    let Some(status) = &pod.status else { return false };
    let of_families = status.pod_ips.iter().flatten().map(|pod_ip| pod_ip.ip.as_str());
    of_families.chain(status.pod_ip.as_deref()).any(|text| text.parse() == Ok(address))
}

/// Returns the pods of a selector that count as ready, for Services whose slices cannot be read.
pub fn selected<'p>(
    all: impl IntoIterator<Item = &'p Pod>,
    port: &PodPort,
    publishes_not_ready: bool,
) -> Vec<ReadyPod> {
    let takes = |pod: &&Pod| pods::is_ready(pod) || (publishes_not_ready && pods::runs(pod));
    all.into_iter().filter(takes).filter_map(|pod| ReadyPod::of(pod, port.in_pod(pod)?)).collect()
}

/// Returns whether a Service's selector matches a pod. An empty selector matches none.
pub fn selects(selector: &BTreeMap<String, String>, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// Returns a named pod if it runs. It need not be ready.
pub fn named(pod: &Pod, container_port: u16) -> Reachable {
    if !pods::runs(pod) {
        return Reachable::default();
    }
    let not_ready = (!pods::is_ready(pod)).then(|| pods::why_not_ready(pod));
    Reachable { pods: ReadyPod::of(pod, container_port).into_iter().collect(), not_ready }
}

/// Returns the slices that are equivalent to an Endpoints object.
pub fn as_slices(endpoints: Endpoints) -> Vec<EndpointSlice> {
    let of = |addresses: Option<Vec<EndpointAddress>>, ready: bool| {
        addresses.into_iter().flatten().map(move |address| Endpoint {
            addresses: vec![address.ip],
            conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
            target_ref: address.target_ref,
        })
    };
    let slice = |EndpointSubset { addresses, not_ready_addresses, ports }| EndpointSlice {
        endpoints: Some(of(addresses, true).chain(of(not_ready_addresses, false)).collect()),
        ports,
        ..EndpointSlice::default()
    };
    endpoints.subsets.into_iter().flatten().map(slice).collect()
}

#[cfg(test)]
mod tests;
