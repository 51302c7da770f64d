//! Finds the owner of an address in the cluster.

use std::{net::IpAddr, str::FromStr};

use kube::{Api, api::ListParams};

use super::{Lookup, MOST_PAGES, NamespacedKind, PAGE};
use crate::{
    config::{InvalidValue, Namespace, Workload},
    k8s::{
        ClusterError,
        client::AskError,
        endpoints,
        objects::{Pod, Service},
    },
};

impl Lookup<'_> {
    /// Returns the Service with this ClusterIP, else the pod with this address, in any namespace. If the user may not
    /// list all namespaces, searches only the target's.
    pub(super) async fn owner_of(&self, address: IpAddr) -> Result<(Namespace, Workload), ClusterError> {
        let (of_services, of_pods) = (format!("spec.clusterIP={address}"), format!("status.podIP={address}"));
        // Field selectors know only the first address family of a dual-stack cluster.
        for (of_services, of_pods) in [(&*of_services, &*of_pods), ("", "")] {
            let (services, pods) = tokio::join!(self.with::<Service>(of_services), self.with::<Pod>(of_pods));
            if let Some(service) = services?.into_iter().find(|service| has_cluster_ip(service, address)) {
                let name = self.valid(service.metadata.name)?;
                return Ok((self.in_or(service.metadata.namespace)?, Workload::Service(name)));
            }
            if let Some(pod) = pods?.into_iter().find(|pod| owns(pod, address)) {
                let name = self.valid(pod.metadata.name)?;
                return Ok((self.in_or(pod.metadata.namespace)?, Workload::Pod(name)));
            }
        }
        Err(ClusterError::NotFound {
            what: format!("Service or pod with the address {address}"),
            context: self.cluster.context.clone(),
            near: Vec::new(),
            hint: Some(format!("{} get services,pods -A -o json | grep -wF {address}", self.cluster.kubectl())),
        })
    }

    fn in_or(&self, namespace: Option<String>) -> Result<Namespace, ClusterError> {
        namespace.map_or_else(|| Ok(self.namespace.clone()), |namespace| self.valid(Some(namespace)))
    }

    /// Returns a validated name from an answer of the API server.
    fn valid<T: FromStr<Err = InvalidValue>>(&self, name: Option<String>) -> Result<T, ClusterError> {
        name.unwrap_or_default().parse().map_err(|invalid: InvalidValue| ClusterError::Protocol {
            context: self.cluster.context.clone(),
            reason: invalid.to_string(),
        })
    }

    /// Returns the objects that match a field selector, of all namespaces if the user may list them.
    async fn with<K: NamespacedKind>(&self, fields: &str) -> Result<Vec<K>, ClusterError> {
        match self.pages(Api::all(self.cluster.client.clone()), fields).await {
            Err(ClusterError::Forbidden { .. }) => self.pages(self.api(), fields).await,
            all => all,
        }
    }

    async fn pages<K: NamespacedKind>(&self, api: Api<K>, fields: &str) -> Result<Vec<K>, ClusterError> {
        let doing = "looking for the owner of an address";
        let mut params = ListParams::default().fields(fields).limit(PAGE);
        let mut found = Vec::new();
        for _ in 0..MOST_PAGES {
            let page = self.cluster.ask(doing, &self.namespace, api.list(&params)).await;
            let page = page.map_err(|error| match error {
                AskError::Failed(error) => error,
                AskError::NotFound => {
                    ClusterError::Protocol { context: self.cluster.context.clone(), reason: format!("404 ({doing})") }
                }
            })?;
            found.extend(page.items);
            let Some(token) = page.metadata.continue_.filter(|token| !token.is_empty()) else { break };
            params = params.continue_token(&token);
        }
        Ok(found)
    }
}

fn has_cluster_ip(service: &Service, address: IpAddr) -> bool {
    let Some(spec) = &service.spec else { return false };
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    all.filter_map(|text| text.parse().ok()).any(|other: IpAddr| other == address)
}

/// Returns whether the pod alone has the address. Pods on the host network share the node's, and an ended pod has none.
fn owns(pod: &Pod, address: IpAddr) -> bool {
    let is_on_node = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    endpoints::has_address(pod, address) && !is_on_node && !matches!(phase, Some("Succeeded" | "Failed"))
}
