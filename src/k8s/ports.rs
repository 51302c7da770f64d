//! The ports of a Service, and which one is meant.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{
    config::PortRef,
    k8s::{
        ServicePort,
        objects::{ServicePort as ServicePortObject, ServiceSpec},
    },
};

/// Returns the TCP ports of a Service.
pub fn tcp_ports(spec: &ServiceSpec) -> Vec<ServicePort> {
    let is_tcp = |port: &&ServicePortObject| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    spec.ports
        .iter()
        .flatten()
        .filter(is_tcp)
        .filter_map(|port| {
            Some(ServicePort {
                number: u16::try_from(port.port).ok()?,
                name: port.name.clone(),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

/// Returns which port of the pods a port of a Service leads to: by number, or by name. `port` is one of [`tcp_ports`].
pub fn target_port(spec: &ServiceSpec, port: &ServicePort) -> IntOrString {
    let is_it = |object: &&ServicePortObject| {
        object.port == i32::from(port.number) && object.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
    };
    let target = spec.ports.iter().flatten().find(is_it).and_then(|object| object.target_port.clone());
    match target {
        None | Some(IntOrString::Int(0)) => IntOrString::Int(port.number.into()),
        Some(target) => target,
    }
}

/// Returns the port that is meant. Where none was named: the only one, else the one that a browser would mean.
pub fn choose_port<'p>(ports: &'p [ServicePort], wanted: &PortRef) -> Option<&'p ServicePort> {
    match wanted {
        PortRef::Number(number) => ports.iter().find(|port| port.number == *number),
        PortRef::Name(name) => ports.iter().find(|port| port.name.as_deref() == Some(name)),
        PortRef::Auto => match ports {
            [only] => Some(only),
            several => {
                let named = |name: &&str| several.iter().find(|port| port.name.as_deref() == Some(*name));
                let numbered = |number: &u16| several.iter().find(|port| port.number == *number);
                ["http", "web", "https", "grpc"]
                    .iter()
                    .find_map(named)
                    .or_else(|| [80, 443, 8080, 8000, 3000].iter().find_map(numbered))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u16, name: Option<&str>) -> ServicePort {
        ServicePort { number, name: name.map(str::to_owned), app_protocol: None }
    }

    #[test]
    fn without_a_port_the_one_that_a_browser_means_is_chosen() {
        let auto = |ports: &[ServicePort]| choose_port(ports, &PortRef::Auto).map(|port| port.number);
        assert_eq!(auto(&[port(5432, None)]), Some(5432));
        assert_eq!(auto(&[port(9090, Some("metrics")), port(8000, Some("web")), port(80, Some("x"))]), Some(8000));
        assert_eq!(auto(&[port(9090, Some("metrics")), port(3000, Some("x")), port(443, Some("y"))]), Some(443));
        assert_eq!(auto(&[port(6379, Some("redis")), port(3306, Some("mysql"))]), None);
        assert_eq!(auto(&[]), None);
    }

    #[test]
    fn an_unknown_port_is_not_taken_for_a_container_port() {
        assert_eq!(choose_port(&[port(80, Some("http"))], &PortRef::Number(8080)), None);
        assert_eq!(choose_port(&[port(80, Some("http"))], &PortRef::Name("grpc".into())), None);
    }
}
