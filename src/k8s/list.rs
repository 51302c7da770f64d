//! The Services that can be reached, for `adit routes`.

use kube::{Api, api::ListParams};

use crate::{
    config::Namespace,
    k8s::{
        ClusterError, ServicePort,
        client::{AskError, Cluster},
        objects::Service,
        ports,
    },
};

/// How many Services one answer of the API server holds.
const PAGE: u32 = 500;

/// A Service with pods behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub namespace: Namespace,
    pub name: String,
    /// Its TCP ports, at least one.
    pub ports: Vec<ServicePort>,
}

/// Lists the Services of a namespace, or of all, that a tunnel can lead to: with a selector and a TCP port.
pub async fn services(cluster: &Cluster, namespace: Option<&Namespace>) -> Result<Vec<Listed>, ClusterError> {
    let api: Api<Service> = match namespace {
        Some(namespace) => Api::namespaced(cluster.client.clone(), &namespace.0),
        None => Api::all(cluster.client.clone()),
    };
    let shown = namespace.cloned().unwrap_or(Namespace("*".to_owned()));
    let mut params = ListParams::default().limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = match cluster.ask("listing services", &shown, api.list(&params)).await {
            Ok(page) => page,
            Err(AskError::Failed(error)) => return Err(error),
            Err(AskError::NotFound) => break,
        };
        let next = page.metadata.continue_.filter(|token| !token.is_empty());
        found.extend(page.items.into_iter().filter_map(listed));
        match next {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    found.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Ok(found)
}

fn listed(service: Service) -> Option<Listed> {
    let spec = service.spec?;
    let has_pods = spec.type_.as_deref() != Some("ExternalName")
        && spec.selector.as_ref().is_some_and(|selector| !selector.is_empty());
    let ports = ports::tcp_ports(&spec);
    (has_pods && !ports.is_empty()).then_some(Listed {
        namespace: Namespace(service.metadata.namespace?),
        name: service.metadata.name?,
        ports,
    })
}
