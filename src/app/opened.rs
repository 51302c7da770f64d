//! Targets at local ports, and the environment variables with their addresses.

use std::{collections::BTreeMap, net::SocketAddr};

use crate::{config::Scheme, k8s::ServicePort, routing::Target};

/// A target and its local address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Name that the user gave it. `None`: none was given.
    pub name: Option<String>,
    pub address: SocketAddr,
    /// Scheme of the port. `None`: it does not serve HTTP.
    pub scheme: Option<Scheme>,
    /// Port in the cluster, if known.
    pub port: Option<ServicePort>,
    /// The Service, if the target is one.
    pub service: Option<OpenedService>,
}

/// A Service with its local ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedService {
    pub name: String,
    /// Its namespace and context: a Service with the same name elsewhere is another one.
    pub place: String,
    /// Ports that can be reached, in the Service's own order.
    pub ports: Vec<(ServicePort, SocketAddr)>,
}

impl Opened {
    /// Returns the name that templates use: its own, else its Service's.
    pub fn called(&self) -> Option<&str> {
        self.name.as_deref().or_else(|| self.service.as_ref().map(|service| service.name.as_str()))
    }

    /// Returns whether it has the ports of its Service. They are unknown if a sign-in took too long.
    pub fn has_ports_of(&self, target: &Target) -> bool {
        self.service.is_some() || target.service().is_none()
    }

    /// Returns its URL, if it serves HTTP.
    pub fn url(&self) -> Option<String> {
        let scheme = match self.scheme? {
            Scheme::Http | Scheme::H2c => "http",
            Scheme::Https => "https",
        };
        Some(format!("{scheme}://{}", self.address))
    }
}

/// Returns the variables of all targets, by name: `DB_HOST`, `DB_PORT`, `DB_ADDR` and `WEB_URL` for targets with a name, and for
/// each Service those that Kubernetes sets in pods. If Services of several places have the same name, the first one counts.
pub fn variables(targets: &[Opened]) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for target in targets {
        let Some(name) = target.name.as_deref().map(upper) else { continue };
        variables.insert(format!("{name}_HOST"), target.address.ip().to_string());
        variables.insert(format!("{name}_PORT"), target.address.port().to_string());
        variables.insert(format!("{name}_ADDR"), target.address.to_string());
        if let Some(url) = target.url() {
            variables.insert(format!("{name}_URL"), url);
        }
    }
    let mut places: BTreeMap<&str, &str> = BTreeMap::new();
    for service in targets.iter().filter_map(|target| target.service.as_ref()) {
        if *places.entry(&service.name).or_insert(&service.place) == service.place {
            variables.extend(of_service(service, targets));
        }
    }
    variables
}

/// Returns the address of a port of a Service: that of the target that was opened for this port, else the one beside the Service's
/// first target.
fn address_of(service: &OpenedService, port: &ServicePort, beside: SocketAddr, targets: &[Opened]) -> SocketAddr {
    let is_for_it = |target: &&Opened| {
        let is_same = |other: &OpenedService| (&other.name, &other.place) == (&service.name, &service.place);
        target.service.as_ref().is_some_and(is_same) && target.port.as_ref() == Some(port)
    };
    targets.iter().find(is_for_it).map_or(beside, |target| target.address)
}

/// Returns `WEB_SERVICE_HOST`, `WEB_SERVICE_PORT` (the first port) and `WEB_SERVICE_PORT_HTTP` (by the port's name), as the
/// kubelet sets them (pkg/kubelet/envvars in Kubernetes).
fn of_service(service: &OpenedService, targets: &[Opened]) -> Vec<(String, String)> {
    let name = upper(&service.name);
    let at = |(port, beside): &(ServicePort, SocketAddr)| address_of(service, port, *beside, targets);
    let Some(first) = service.ports.first().map(at).filter(|_| name.starts_with(|c: char| c.is_ascii_alphabetic()))
    else {
        return Vec::new();
    };
    let mut variables = vec![
        (format!("{name}_SERVICE_HOST"), first.ip().to_string()),
        (format!("{name}_SERVICE_PORT"), first.port().to_string()),
    ];
    for port in &service.ports {
        if let Some(called) = &port.0.name {
            variables.push((format!("{name}_SERVICE_PORT_{}", upper(called)), at(port).port().to_string()));
        }
    }
    variables
}

/// Returns a name in the form of a variable's name.
pub fn upper(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

/// Returns whether `name` is valid for a target: a letter, then letters, digits, `-` and `_`.
pub fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// Returns whether `name` is valid for an environment variable (POSIX.1-2017, 8.1, plus lower case).
pub fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u16, name: &str) -> ServicePort {
        ServicePort { number, name: (!name.is_empty()).then(|| name.to_owned()), app_protocol: None }
    }

    fn local(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn opened(name: &str, at: u16, service: &str, ports: &[(u16, &str, u16)]) -> Opened {
        Opened {
            name: (!name.is_empty()).then(|| name.to_owned()),
            address: local(at),
            scheme: None,
            port: None,
            service: Some(OpenedService {
                name: service.to_owned(),
                place: "shop.demo".to_owned(),
                ports: ports.iter().map(|(number, name, at)| (port(*number, name), local(*at))).collect(),
            }),
        }
    }

    fn shown(targets: &[Opened]) -> Vec<String> {
        variables(targets).into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn a_named_target_has_its_own_variables_and_those_of_its_service() {
        let mut web =
            opened("my-web", 4000, "argocd-server", &[(80, "http", 4001), (443, "https", 4000), (9, "", 4002)]);
        web.scheme = Some(Scheme::Https);
        assert_eq!(
            shown(&[web]),
            [
                "ARGOCD_SERVER_SERVICE_HOST=127.0.0.1",
                "ARGOCD_SERVER_SERVICE_PORT=4001",
                "ARGOCD_SERVER_SERVICE_PORT_HTTP=4001",
                "ARGOCD_SERVER_SERVICE_PORT_HTTPS=4000",
                "MY_WEB_ADDR=127.0.0.1:4000",
                "MY_WEB_HOST=127.0.0.1",
                "MY_WEB_PORT=4000",
                "MY_WEB_URL=https://127.0.0.1:4000",
            ]
        );
    }

    #[test]
    fn a_route_has_those_of_its_service_alone() {
        assert_eq!(
            shown(&[opened("", 5432, "postgres", &[(5432, "", 5432)])]),
            ["POSTGRES_SERVICE_HOST=127.0.0.1", "POSTGRES_SERVICE_PORT=5432"]
        );
        let jump = Opened { name: None, address: local(1), scheme: None, port: None, service: None };
        assert!(shown(&[jump]).is_empty());
    }

    #[test]
    fn of_two_services_with_one_name_the_first_counts() {
        let mut targets = [opened("a", 1, "web", &[(80, "", 1)]), opened("b", 2, "web", &[(80, "http", 2)])];
        targets[1].service.as_mut().unwrap().place = "other.demo".to_owned();
        let shown = shown(&targets);
        assert!(!shown.iter().any(|variable| variable.starts_with("WEB_SERVICE_PORT_")), "{shown:?}");
        assert!(shown.contains(&"WEB_SERVICE_PORT=1".to_owned()), "{shown:?}");
        assert!(shown.contains(&"A_PORT=1".to_owned()) && shown.contains(&"B_PORT=2".to_owned()), "{shown:?}");
    }

    #[test]
    fn routes_of_several_ports_of_a_service_each_have_their_port() {
        let all = |at: [u16; 2]| [(22, "ssh", at[0]), (6379, "redis", at[1])];
        let mut routes =
            [opened("", 2022, "data", &all([2022, 40_001])), opened("", 2079, "data", &all([40_002, 2079]))];
        (routes[0].port, routes[1].port) = (Some(port(22, "ssh")), Some(port(6379, "redis")));
        let shown = shown(&routes);
        for variable in ["DATA_SERVICE_PORT=2022", "DATA_SERVICE_PORT_SSH=2022", "DATA_SERVICE_PORT_REDIS=2079"] {
            assert!(shown.contains(&variable.to_owned()), "{shown:?}");
        }
    }

    #[test]
    fn names_can_be_variables() {
        assert!(is_name("db") && is_name("my-db_2") && !is_name("2db") && !is_name("") && !is_name("d.b"));
        assert!(is_variable("_X1") && !is_variable("1X") && !is_variable("A-B") && !is_variable(""));
    }
}
