//! Finds the owner of an address in the cluster.

use std::{net::IpAddr, str::FromStr};

use kube::{
    Api,
    api::{ListParams, ObjectList},
};

use super::{Lookup, NamespacedKind};
use crate::{
    config::{InvalidValue, Namespace, Workload},
    k8s::{
        ClusterError,
        client::AskError,
        objects::{Pod, Service},
    },
};

impl Lookup<'_> {
    /// Returns the Service with this ClusterIP, else the pod with this address, in any namespace. If the user may not
    /// list all namespaces, searches only the target's.
    pub(super) async fn owner_of(&self, address: IpAddr) -> Result<(Namespace, Workload), ClusterError> {
        let (of_services, of_pods) = (format!("spec.clusterIP={address}"), format!("status.podIP={address}"));
        let (services, pods) = tokio::join!(self.with::<Service>(&of_services), self.with::<Pod>(&of_pods));
        let is = |other: &str| other.parse() == Ok(address);
        let service = services?.items.into_iter().find(|service| {
            let of = |spec: &crate::k8s::objects::ServiceSpec| spec.cluster_ip.as_deref().is_some_and(is);
            service.spec.as_ref().is_some_and(of)
        });
        if let Some(service) = service {
            let name = self.valid(service.metadata.name)?;
            return Ok((self.in_or(service.metadata.namespace)?, Workload::Service(name)));
        }
        // Pods on the host network share the node's address, and an ended pod has none.
        let pod = pods?.items.into_iter().find(|pod| {
            let is_on_node = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
            let status = pod.status.as_ref();
            let has_ended = status
                .and_then(|status| status.phase.as_deref())
                .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
            let has = status.and_then(|status| status.pod_ip.as_deref()).is_some_and(is);
            has && !is_on_node && !has_ended
        });
        match pod {
            Some(pod) => {
                let name = self.valid(pod.metadata.name)?;
                Ok((self.in_or(pod.metadata.namespace)?, Workload::Pod(name)))
            }
            None => Err(ClusterError::NotFound {
                what: format!("Service or pod with the address {address}"),
                context: self.cluster.context.clone(),
                near: Vec::new(),
                hint: Some(format!("{} get services,pods -A -o wide | grep -wF {address}", self.cluster.kubectl())),
            }),
        }
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

    /// Returns the objects that match a field selector.
    async fn with<K: NamespacedKind>(&self, fields: &str) -> Result<ObjectList<K>, ClusterError> {
        let doing = format!("looking for {fields}");
        let params = ListParams::default().fields(fields);
        let everywhere: Api<K> = Api::all(self.cluster.client.clone());
        let all = match self.cluster.ask(&doing, &self.namespace, everywhere.list(&params)).await {
            Err(AskError::Failed(ClusterError::Forbidden { .. })) => {
                self.cluster.ask(&doing, &self.namespace, self.api::<K>().list(&params)).await
            }
            all => all,
        };
        all.map_err(|error| match error {
            AskError::Failed(error) => error,
            AskError::NotFound => {
                ClusterError::Protocol { context: self.cluster.context.clone(), reason: format!("404 ({doing})") }
            }
        })
    }
}
