//! Lists the reachable Services for `adit routes`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Resource, api::ListParams};
use serde::de::DeserializeOwned;

use crate::{
    config::{Label, Namespace},
    k8s::{
        ClusterError, ServicePort,
        client::{AskError, Cluster},
        objects::{Endpoint, EndpointSlice, Service, ServiceSpec},
        ports,
    },
};

/// Maximum number of Services per answer of the API server.
const PAGE: u32 = 500;

/// Timeout of a list. A person waits for it, but a gateway may be slow. kubectl has no timeout.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// A Service with pods behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub namespace: Namespace,
    pub name: Label,
    /// TCP ports, at least one.
    pub ports: Vec<ServicePort>,
}

/// Lists the Services in one namespace or in all that a tunnel can reach: they have a TCP port, and a selector or slices
/// with pods.
///
/// # Errors
/// The Services cannot be listed.
pub async fn services(cluster: &Cluster, namespace: Option<&Namespace>) -> Result<Vec<Listed>, ClusterError> {
    let all: Vec<Service> = objects(cluster, namespace, "services").await?;
    let is_by_hand = |service: &Service| {
        let spec = service.spec.as_ref();
        spec.is_some_and(|spec| spec.type_.as_deref() != Some("ExternalName") && !has_selector(spec))
    };
    let by_hand: BTreeSet<(String, String)> = match all.iter().any(is_by_hand) {
        // Without the permission to list slices, the user still gets Services with a selector.
        true => {
            objects(cluster, namespace, "endpointslices").await.unwrap_or_default().iter().filter_map(pods_of).collect()
        }
        false => BTreeSet::new(),
    };
    let mut found: Vec<Listed> = all.into_iter().filter_map(|service| listed(service, &by_hand)).collect();
    found.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Ok(found)
}

/// Returns whether a namespace exists.
///
/// # Errors
/// Fails if the user may not read it, or if the API server does not answer.
pub async fn has_namespace(cluster: &Cluster, namespace: &Namespace) -> Result<bool, ClusterError> {
    let api: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(cluster.client.clone());
    match cluster.ask("looking up the namespace", namespace, api.get_metadata(namespace)).await {
        Ok(_) => Ok(true),
        Err(AskError::NotFound) => Ok(false),
        Err(AskError::Failed(error)) => Err(error),
    }
}

/// Returns the number of ready pods and of all pods for each Service, by namespace and name.
///
/// # Errors
/// The EndpointSlices cannot be listed.
pub async fn readiness(
    cluster: &Cluster,
    namespace: Option<&Namespace>,
) -> Result<BTreeMap<(String, String), (u64, u64)>, ClusterError> {
    let slices: Vec<EndpointSlice> = objects(cluster, namespace, "endpointslices").await?;
    // A dual-stack pod is in two slices.
    let mut pods: BTreeMap<(String, String), BTreeMap<String, bool>> = BTreeMap::new();
    for slice in slices {
        let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
        let (Some(namespace), Some(service)) = (slice.metadata.namespace.clone(), service.cloned()) else { continue };
        let of_service = pods.entry((namespace, service)).or_default();
        for endpoint in slice.endpoints.into_iter().flatten() {
            let is_ready = endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready != Some(false));
            let name = endpoint.target_ref.and_then(|target| target.name).or(endpoint.addresses.into_iter().next());
            *of_service.entry(name.unwrap_or_default()).or_default() |= is_ready;
        }
    }
    let count =
        |pods: BTreeMap<String, bool>| (pods.values().filter(|is_ready| **is_ready).count() as u64, pods.len() as u64);
    Ok(pods.into_iter().map(|(service, pods)| (service, count(pods))).collect())
}

async fn objects<K>(cluster: &Cluster, namespace: Option<&Namespace>, plural: &str) -> Result<Vec<K>, ClusterError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let api: Api<K> = match namespace {
        Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
        None => Api::all(cluster.client.clone()),
    };
    let mut params = ListParams::default().limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = match cluster.ask_for(LIST_TIMEOUT, &format!("listing {plural}"), namespace, api.list(&params)).await
        {
            Ok(page) => page,
            Err(AskError::Failed(error)) => return Err(error),
            Err(AskError::NotFound) => return Ok(found),
        };
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(found),
        }
    }
}

/// Returns the namespace and Service of a slice that contains pods.
fn pods_of(slice: &EndpointSlice) -> Option<(String, String)> {
    let is_pod =
        |endpoint: &Endpoint| endpoint.target_ref.as_ref().is_some_and(|target| target.kind.as_deref() == Some("Pod"));
    let service = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
    let names_pods = slice.endpoints.iter().flatten().any(is_pod);
    names_pods.then_some((slice.metadata.namespace.clone()?, service.clone()))
}

fn has_selector(spec: &ServiceSpec) -> bool {
    spec.selector.as_ref().is_some_and(|selector| !selector.is_empty())
}

/// Returns a Service if it is reachable. `by_hand`: Services without a selector whose slices contain pods.
fn listed(service: Service, by_hand: &BTreeSet<(String, String)>) -> Option<Listed> {
    let (spec, key) = (service.spec?, (service.metadata.namespace?, service.metadata.name?));
    let has_pods = spec.type_.as_deref() != Some("ExternalName") && (has_selector(&spec) || by_hand.contains(&key));
    let ports = ports::tcp_ports(&spec);
    (has_pods && !ports.is_empty()).then_some(Listed {
        namespace: key.0.parse().ok()?,
        name: key.1.parse().ok()?,
        ports,
    })
}
