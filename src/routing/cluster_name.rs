//! Names inside a cluster (Kubernetes DNS specification 1.1), as a program in a pod would write them.
//!
//! ```text
//! {service}[.{namespace}[.svc[.{cluster_domain}]]]      {pod}.{service}.{namespace}.svc[.{cluster_domain}]
//! {10-0-0-5}.{namespace}.pod[.{cluster_domain}]
//! ```
//!
//! A service alone is in the default namespace. `example.com` could be `{service}.{namespace}`, which only the cluster
//! can tell. `www.example.com` is not the name of a pod, which ends with `svc`.

use std::net::IpAddr;

use crate::config::{Label, Namespace, Workload};

/// A parsed cluster name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterName {
    /// `None`: the default namespace of the context.
    pub namespace: Option<Namespace>,
    pub workload: Workload,
}

impl ClusterName {
    /// Parses a host in lower case, without port or trailing dot. `None`: the name belongs to another network.
    pub fn parse(host: &str, cluster_domain: &str) -> Option<Self> {
        if host == cluster_domain {
            return None;
        }
        let in_cluster = host.strip_suffix(cluster_domain).and_then(|name| name.strip_suffix('.'));
        let labels: Vec<&str> = in_cluster.unwrap_or(host).split('.').collect();
        if let [address, namespace, "pod"] = labels.as_slice()
            && let (Some(address), Ok(namespace)) = (address_of(address), namespace.parse())
        {
            return Some(Self { namespace: Some(namespace), workload: Workload::Address(address) });
        }
        let (labels, is_whole) = match labels.as_slice() {
            [labels @ .., "svc"] if labels.len() >= 2 => (labels, true),
            // Below the cluster domain, every name has a kind: `svc` for Services, `pod` for addresses of pods.
            _ if in_cluster.is_some() => return None,
            labels => (labels, false),
        };
        if labels.iter().all(|label| is_number(label)) {
            return None;
        }
        let (workload, namespace) = match labels {
            [service] if !is_whole => (Workload::Service(service.parse().ok()?), None),
            [service, namespace] => (Workload::Service(service.parse().ok()?), Some(*namespace)),
            [pod, service, namespace] if is_whole => {
                let pod: Label = pod.parse().ok()?;
                (Workload::PodOfService { pod: pod.into(), service: service.parse().ok()? }, Some(*namespace))
            }
            _ => return None,
        };
        Some(Self { namespace: namespace.map(str::parse).transpose().ok()?, workload })
    }
}

/// Returns the address of a label that writes it with hyphens: `10-0-0-5`, `fd00--5`.
fn address_of(label: &str) -> Option<IpAddr> {
    let of_v4 = label.replace('-', ".").parse().map(IpAddr::V4);
    of_v4.or_else(|_| label.replace('-', ":").parse().map(IpAddr::V6)).ok()
}

fn is_number(label: &str) -> bool {
    label.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(host: &str) -> Option<(Option<String>, String)> {
        let name = ClusterName::parse(host, "cluster.local")?;
        let workload = match name.workload {
            Workload::Service(service) => service.to_string(),
            Workload::PodOfService { pod, service } => format!("{service}/{pod}"),
            Workload::Pod(pod) => format!("pod/{pod}"),
            Workload::Address(address) => address.to_string(),
        };
        Some((name.namespace.map(String::from), workload))
    }

    #[test]
    fn services_and_pods_have_the_names_of_cluster_dns() {
        for (host, namespace, workload) in [
            ("web.shop.svc.cluster.local", Some("shop"), "web"),
            ("web.shop.svc", Some("shop"), "web"),
            ("web.shop", Some("shop"), "web"),
            ("web", None, "web"),
            ("db-0.db.shop.svc.cluster.local", Some("shop"), "db/db-0"),
            ("db-0.db.shop.svc", Some("shop"), "db/db-0"),
            ("svc.svc.svc", Some("svc"), "svc"),
            ("web.svc", Some("svc"), "web"),
            ("svc", None, "svc"),
            ("10-0-0-5.shop.pod.cluster.local", Some("shop"), "10.0.0.5"),
            ("10-0-0-5.shop.pod", Some("shop"), "10.0.0.5"),
            ("fd00--5.shop.pod.cluster.local", Some("shop"), "fd00::5"),
        ] {
            assert_eq!(parse(host), Some((namespace.map(str::to_owned), workload.to_owned())), "{host}");
        }
        assert!(ClusterName::parse("web.shop.svc.prod.example", "prod.example").is_some());
    }

    #[test]
    fn names_of_other_networks_are_none() {
        for host in [
            "",
            "a.b.c.d",
            "www.example.com",
            "www.api.example.com",
            "web.shop.svc.other.local",
            "shop.svc.cluster.local",
            "svc.cluster.local",
            "cluster.local",
            "web.shop.cluster.local",
            "10.0.0.5",
            "8080",
            "1.2.3",
            "we_b.shop",
            "web..shop",
            ".web.shop",
            "[::1]",
            "_http._tcp.web.shop.svc.cluster.local",
            "web-0.shop.pod.cluster.local",
            "10-0-0-5.pod.cluster.local",
            "10-0-0.shop.pod",
        ] {
            assert_eq!(parse(host), None, "{host}");
        }
    }
}
