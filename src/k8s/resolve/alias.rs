//! ExternalNames for a Service of the same cluster.

use crate::{
    config::{Label, Namespace, PortRef, Subdomain, Workload},
    k8s::{
        objects::ServiceSpec,
        ports::{choose_port, tcp_ports},
    },
};

/// Domain of nearly every cluster. A client cannot find out another one.
const DOMAIN: &str = "cluster.local";

/// Name in the cluster's DNS: `[{pod}.]{service}.{namespace}.svc[.cluster.local][.]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InCluster {
    pod: Option<Subdomain>,
    service: Label,
    namespace: Namespace,
}

impl InCluster {
    /// Parses a name. `None`: it is outside of the cluster.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let name = name.strip_suffix(DOMAIN).and_then(|name| name.strip_suffix('.')).unwrap_or(&name);
        let (rest, namespace) = name.strip_suffix(".svc")?.rsplit_once('.')?;
        let (pod, service) = match rest.rsplit_once('.') {
            Some((pod, service)) => (Some(pod.parse().ok()?), service),
            None => (None, rest),
        };
        Some(Self { pod, service: service.parse().ok()?, namespace: namespace.parse().ok()? })
    }

    /// Returns the namespace and the workload for `asked`. A named pod stays named.
    pub fn workload(self, asked: Workload) -> (Namespace, Workload) {
        let of_asked = match asked {
            Workload::PodOfService { pod, .. } => Some(pod),
            Workload::Service(_) | Workload::Pod(_) | Workload::Address(_) => None,
        };
        let workload = match self.pod.or(of_asked) {
            Some(pod) => Workload::PodOfService { pod, service: self.service },
            None => Workload::Service(self.service),
        };
        (self.namespace, workload)
    }
}

/// Returns the port behind an ExternalName. A number stays the same, because the name is only a CNAME; a port name of the
/// ExternalName is replaced by its number.
pub fn port_behind(spec: &ServiceSpec, wanted: &PortRef) -> PortRef {
    match (wanted, choose_port(&tcp_ports(spec), wanted)) {
        (PortRef::Name(_), Some(port)) => PortRef::number(port.number).unwrap_or_else(|| wanted.clone()),
        _ => wanted.clone(),
    }
}

/// Returns the port that an ExternalName chooses where the Service behind it has several, and none is requested. In the cluster, only
/// the Service's ports count.
pub fn chosen_port(spec: &ServiceSpec, wanted: &PortRef) -> Option<PortRef> {
    match wanted {
        PortRef::Auto | PortRef::Https => PortRef::number(choose_port(&tcp_ports(spec), wanted)?.number),
        PortRef::Number(_) | PortRef::Name(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_cluster_are_told_from_those_outside() {
        let shown = |name: &str| {
            let InCluster { pod, service, namespace } = InCluster::parse(name)?;
            Some(format!("{}/{service}/{namespace}", pod.map(String::from).unwrap_or_default()))
        };
        for (name, wanted) in [
            ("web.shop.svc.cluster.local", Some("/web/shop")),
            ("web.shop.svc.cluster.local.", Some("/web/shop")),
            ("web.shop.svc", Some("/web/shop")),
            ("Web.Shop.SVC.Cluster.Local", Some("/web/shop")),
            ("pg-0.pg.data.svc.cluster.local", Some("pg-0/pg/data")),
            ("svc.svc.svc", Some("/svc/svc")),
            ("api.example.com", None),
            ("web.shop.svc.example.com", None),
            ("web.shop.pod.cluster.local", None),
            ("shop.svc.cluster.local", None),
            ("svc.cluster.local", None),
            ("cluster.local", None),
            (".shop.svc", None),
            ("we_b.shop.svc", None),
            ("", None),
            (".", None),
            ("192.0.2.1", None),
        ] {
            assert_eq!(shown(name).as_deref(), wanted, "{name}");
        }
    }

    #[test]
    fn a_port_that_the_external_name_calls_something_has_a_number_behind_it() {
        let spec: ServiceSpec =
            serde_json::from_value(serde_json::json!({"ports": [{"name": "http", "port": 8080}]})).unwrap();
        assert_eq!(port_behind(&spec, &PortRef::Name("http".parse().unwrap())), PortRef::number(8080).unwrap());
        assert_eq!(
            port_behind(&spec, &PortRef::Name("other".parse().unwrap())),
            PortRef::Name("other".parse().unwrap())
        );
        assert_eq!(port_behind(&spec, &PortRef::number(1).unwrap()), PortRef::number(1).unwrap());
        assert_eq!(port_behind(&spec, &PortRef::Auto), PortRef::Auto);
        assert_eq!(chosen_port(&spec, &PortRef::Auto), PortRef::number(8080));
        assert_eq!(chosen_port(&spec, &PortRef::number(1).unwrap()), None);
        assert_eq!(chosen_port(&ServiceSpec::default(), &PortRef::Auto), None);
    }
}
