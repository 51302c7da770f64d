//! Ports of a Service, and the choice of one.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{
    config::{PortRef, Scheme},
    k8s::{
        ServicePort,
        objects::{ServicePort as ServicePortObject, ServiceSpec},
    },
    routing::PortProtocol,
    wire::database::Database,
};

impl ServicePort {
    /// Returns the protocol of a port: by its appProtocol, then its name, then its number. `None`: unknown.
    pub fn hint(&self) -> Option<Scheme> {
        self.by_app_protocol().or_else(|| self.by_name()).or((self.number == 443).then_some(Scheme::Https))
    }

    /// Returns the protocol in its `appProtocol` (KEP-3726, and the names of Istio and ingress controllers).
    pub fn by_app_protocol(&self) -> Option<Scheme> {
        let protocol = self.app_protocol.as_deref()?.to_ascii_lowercase();
        scheme_of(&protocol.trim_start_matches("kubernetes.io/").replace("http/2", "http2"))
    }

    /// Returns the database that the port's appProtocol, name or number declares. Only a whole name counts: `redis-exporter` speaks
    /// HTTP.
    pub fn database(&self) -> Option<Database> {
        let by_name = [&self.app_protocol, &self.name]
            .into_iter()
            .flatten()
            .find_map(|name| PortProtocol::of_whole_name(name)?.database());
        let is_unnamed = self.name.as_deref().is_none_or(|name| matches!(name, "tcp" | "db" | "database"));
        let by_number = || PortProtocol::of_number(self.number).and_then(PortProtocol::database).filter(|_| is_unnamed);
        by_name.or_else(by_number).filter(|_| self.hint().is_none())
    }

    /// Returns the protocol in its name: `https`, `grpc-api`.
    pub fn by_name(&self) -> Option<Scheme> {
        scheme_of(self.name.as_deref()?)
    }
}

fn scheme_of(name: &str) -> Option<Scheme> {
    // gRPC-Web works over HTTP/1.1.
    if name.starts_with("grpc-web") {
        return Some(Scheme::Http);
    }
    match name.split('-').next().unwrap_or(name) {
        "https" | "wss" => Some(Scheme::Https),
        "h2c" | "grpc" | "http2" => Some(Scheme::H2c),
        "http" | "ws" => Some(Scheme::Http),
        _ => None,
    }
}

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

/// Returns the number and the protocol of the requested port, if it is UDP or SCTP.
pub fn other_protocol<'s>(spec: &'s ServiceSpec, wanted: &PortRef) -> Option<(i32, &'s str)> {
    let is_it = |port: &&ServicePortObject| match wanted {
        PortRef::Number(number) => port.port == i32::from(number.get()),
        PortRef::Name(name) => port.name.as_deref() == Some(name),
        PortRef::Https | PortRef::Auto => false,
    };
    let port = spec.ports.iter().flatten().find(is_it)?;
    port.protocol.as_deref().filter(|protocol| *protocol != "TCP").map(|protocol| (port.port, protocol))
}

/// Returns the port of the pods behind a Service's port, by number or name. `port` is one of [`tcp_ports`].
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

/// Returns whether a port seems to speak HTTP, by its appProtocol, name or number.
pub fn is_web(port: &ServicePort) -> bool {
    port.by_app_protocol().or_else(|| port.by_name()).is_some()
        || port.name.as_deref() == Some("web")
        || port.name.is_none() && [80, 443, 3000, 8000, 8080, 8443].contains(&port.number)
}

/// Returns whether a word of the port's name is https or tls: `web-https`, `kong-proxy-tls`, and `websecure` of Traefik.
fn is_called_https(port: &ServicePort) -> bool {
    let mut words = port.name.as_deref().unwrap_or_default().split('-');
    words.any(|word| matches!(word, "https" | "tls" | "ssl" | "websecure"))
}

/// Returns the requested port. If none was requested: the only port, else the one for a browser.
pub fn choose_port<'p>(ports: &'p [ServicePort], wanted: &PortRef) -> Option<&'p ServicePort> {
    match wanted {
        PortRef::Number(number) => ports.iter().find(|port| port.number == number.get()),
        PortRef::Name(name) => ports.iter().find(|port| port.name.as_deref() == Some(name)),
        PortRef::Https => {
            let named = ports.iter().find(|port| port.name.as_deref() == Some("https"));
            let hinted = || ports.iter().find(|port| port.hint() == Some(Scheme::Https));
            // No port declares https. These are the likely ones.
            let called = || ports.iter().find(|port| port.hint().is_none() && is_called_https(port));
            let numbered = || ports.iter().find(|port| port.hint().is_none() && port.number == 8443);
            named.or_else(hinted).or_else(called).or_else(numbered).or_else(|| choose_port(ports, &PortRef::Auto))
        }
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
    fn only_a_port_that_is_declared_as_a_database_is_one() {
        for (number, name, wanted) in [
            (5432, None, Some(Database::Postgres)),
            (5432, Some("tcp"), Some(Database::Postgres)),
            (15432, Some("tcp-postgresql"), Some(Database::Postgres)),
            (6379, Some("Redis"), Some(Database::Redis)),
            (3306, Some("db"), Some(Database::MySql)),
            (5432, Some("http"), None),
            (6379, Some("metrics"), None),
            (9121, Some("redis-exporter"), None),
            (80, None, None),
        ] {
            assert_eq!(port(number, name).database(), wanted, "{number} {name:?}");
        }
        let declared = ServicePort { app_protocol: Some("mysql".into()), ..port(1, Some("a")) };
        assert_eq!(declared.database(), Some(Database::MySql));
        let declared = ServicePort { app_protocol: Some("http".into()), ..port(5432, None) };
        assert_eq!(declared.database(), None);
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
    fn a_port_of_another_protocol_is_known_by_number_and_name() {
        let ports = [("dns", 53, "UDP"), ("web", 80, "TCP")].map(|(name, number, protocol)| ServicePortObject {
            name: Some(name.to_owned()),
            port: number,
            protocol: Some(protocol.to_owned()),
            ..Default::default()
        });
        let spec = ServiceSpec { ports: Some(ports.into()), ..Default::default() };
        let other = |wanted: &str| other_protocol(&spec, &wanted.parse().unwrap());
        assert_eq!((other("53"), other("dns")), (Some((53, "UDP")), Some((53, "UDP"))));
        assert_eq!((other("80"), other("54")), (None, None));
    }

    #[test]
    fn for_https_the_port_that_says_so_is_chosen() {
        let https = |ports: &[ServicePort]| choose_port(ports, &PortRef::Https).map(|port| port.number);
        let by_protocol =
            ServicePort { number: 9000, name: Some("ui".into()), app_protocol: Some("kubernetes.io/wss".into()) };
        for (ports, number) in [
            (vec![port(80, Some("http")), port(443, Some("https"))], Some(443)),
            (vec![port(443, Some("web")), port(8443, Some("https"))], Some(8443)),
            (vec![port(443, Some("http")), port(8443, Some("https-ui"))], Some(8443)),
            (vec![port(80, Some("http")), by_protocol], Some(9000)),
            (vec![port(80, None), port(443, None)], Some(443)),
            (vec![port(80, Some("web")), port(8443, Some("websecure"))], Some(8443)),
            (vec![port(80, Some("ui")), port(9001, Some("dashboard-https"))], Some(9001)),
            (vec![port(80, Some("http")), port(7443, Some("proxy-tls"))], Some(7443)),
            (vec![port(8080, None), port(8443, None)], Some(8443)),
            (vec![port(8443, Some("http")), port(443, None)], Some(443)),
            // Without TLS in any name, plain HTTP wins.
            (vec![port(80, Some("http")), port(9090, Some("metrics"))], Some(80)),
            (vec![port(5432, None)], Some(5432)),
            (vec![port(6379, Some("redis")), port(3306, Some("mysql"))], None),
        ] {
            assert_eq!(https(&ports), number, "{ports:?}");
        }
    }

    #[test]
    fn what_a_port_speaks_is_told_by_app_protocol_then_name_then_number() {
        let hint = |number, name: Option<&str>, protocol: Option<&str>| {
            ServicePort { number, name: name.map(str::to_owned), app_protocol: protocol.map(str::to_owned) }.hint()
        };
        for (number, name, protocol, scheme) in [
            (443, Some("https"), Some("kubernetes.io/h2c"), Some(Scheme::H2c)),
            (80, None, Some("https"), Some(Scheme::Https)),
            (80, None, Some("kubernetes.io/wss"), Some(Scheme::Https)),
            (80, None, Some("HTTP/2"), Some(Scheme::H2c)),
            (80, Some("https"), Some("example.com/own"), Some(Scheme::Https)),
            (443, Some("http"), None, Some(Scheme::Http)),
            (8443, Some("https-web"), None, Some(Scheme::Https)),
            (50051, Some("grpc"), None, Some(Scheme::H2c)),
            (8080, Some("grpc-web"), None, Some(Scheme::Http)),
            (443, None, None, Some(Scheme::Https)),
            (8080, Some("api"), None, None),
        ] {
            assert_eq!(hint(number, name, protocol), scheme, "{number} {name:?} {protocol:?}");
        }
    }

    #[test]
    fn an_unknown_port_is_not_taken_for_a_container_port() {
        assert_eq!(choose_port(&[port(80, Some("http"))], &PortRef::number(8080).unwrap()), None);
        assert_eq!(choose_port(&[port(80, Some("http"))], &PortRef::Name("grpc".parse().unwrap())), None);
    }
}
