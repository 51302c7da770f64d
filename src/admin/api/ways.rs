//! How to use a port from this machine: its protocol, a command, and the configuration that is missing for it.

use std::net::SocketAddr;

use super::{attention::quoted, services};
use crate::{
    config::{PortRef, Workload},
    k8s::{ServicePort, error},
    routing::{PodTarget, Router, Target},
};

/// Protocol that a port declares by its name, number or appProtocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    Http,
    Grpc,
    Postgres,
    Redis,
    MongoDb,
    MySql,
    Tcp,
}

impl Speaks {
    /// Returns the protocol according to the port's appProtocol, name and number.
    pub fn of(port: &ServicePort) -> Self {
        let words = [&port.app_protocol, &port.name];
        let says = |names: &[&str]| {
            let mut words = words.iter().filter_map(|word| word.as_deref()).map(str::to_ascii_lowercase);
            words.any(|word| names.iter().any(|name| word.contains(name)))
        };
        match port.number {
            _ if says(&["grpc"]) && !says(&["grpc-web"]) => Self::Grpc,
            _ if port.hint().is_some() => Self::Http,
            5432 => Self::Postgres,
            _ if says(&["postgres", "psql", "pgsql"]) => Self::Postgres,
            6379 => Self::Redis,
            _ if says(&["redis", "valkey"]) => Self::Redis,
            27017 => Self::MongoDb,
            _ if says(&["mongo"]) => Self::MongoDb,
            3306 => Self::MySql,
            _ if says(&["mysql", "mariadb"]) => Self::MySql,
            _ if says(&["tcp", "amqp", "mqtt", "kafka", "nats", "ldap", "smtp"]) => Self::Tcp,
            4222 | 5671 | 5672 | 9042 | 9092 => Self::Tcp,
            _ => Self::Http,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::MongoDb => "mongodb",
            Self::MySql => "mysql",
            Self::Tcp => "tcp",
        }
    }

    /// Returns whether the HTTP listener serves this protocol by hostname.
    pub fn has_name(self) -> bool {
        matches!(self, Self::Http | Self::Grpc | Self::Postgres)
    }

    /// Returns the URL of a port of a Service: `http://…`, `postgresql://…` or, with a local address, `tcp://…`; empty if a
    /// program can only use a local port and there is none. `host`: its hostname, if it has one; `listener`: port of the
    /// HTTP listener; `address`: its local address.
    pub fn url(self, host: Option<&str>, listener: u16, address: Option<SocketAddr>) -> String {
        let local = address.map(|address| format!("tcp://{address}"));
        let named = host.map(|host| format!("http://{host}:{listener}/"));
        match self {
            Self::Http | Self::Grpc => named,
            Self::Postgres => {
                local.or_else(|| host.map(|host| format!("postgresql://{host}:{listener}/?sslmode=require")))
            }
            Self::Redis | Self::MongoDb | Self::MySql => local,
            // The port may speak HTTP or TLS after all.
            Self::Tcp => local.or(named),
        }
        .unwrap_or_default()
    }

    /// Returns a command that opens it. `host`: its hostname; `listener`: port of the HTTP listener; `address`: its local
    /// address.
    pub fn command(self, host: &str, listener: u16, address: Option<SocketAddr>) -> Option<String> {
        let at = |program: &dyn Fn(SocketAddr) -> String| address.map(program);
        match self {
            Self::Http => Some(format!("curl {}", quoted(&format!("http://{host}:{listener}/")))),
            Self::Grpc => Some(format!("grpcurl -plaintext {} list", quoted(&format!("{host}:{listener}")))),
            Self::Postgres => {
                at(&|to| format!("psql \"host={} port={} user=postgres\"", to.ip(), to.port())).or_else(|| {
                    Some(format!(
                        "psql \"host={host} hostaddr=127.0.0.1 port={listener} sslmode=require user=postgres\""
                    ))
                })
            }
            Self::Redis => at(&|to| format!("redis-cli -h {} -p {}", to.ip(), to.port())),
            Self::MongoDb => at(&|to| format!("mongosh mongodb://{to}/?directConnection=true")),
            Self::MySql => at(&|to| format!("mysql -h {} -P {} -u root -p", to.ip(), to.port())),
            Self::Tcp => at(&|to| format!("nc {} {}", to.ip(), to.port())),
        }
    }
}

/// Returns the configuration that gives a port of a Service a local port.
pub fn missing_route(namespace: &str, service: &str, port: u16, context: Option<&str>) -> String {
    let context = context.map(|context| format!("context: {context:?}, ")).unwrap_or_default();
    format!(
        "tcp:\n  k8s:\n    routes:\n      {port}: {{{context}namespace: {namespace}, service: {service}, port: {port}}}\n"
    )
}

/// Returns the local address that a TCP route gives a target. `port`: port of the Service.
pub fn address(router: &Router, target: &PodTarget, port: u16) -> Option<SocketAddr> {
    let is_there = |address: &SocketAddr| {
        let route = router.tcp(*address).ok()?;
        let found = route.target.pods()?;
        let same = (&found.cluster.context, &found.namespace, &found.workload)
            == (&target.cluster.context, &target.namespace, &target.workload);
        (same && found.jump.is_none() && Some(&found.port) == PortRef::number(port).as_ref()).then_some(*address)
    };
    router.config.tcp.routes.keys().find_map(is_there)
}

/// Returns the URLs of the routes and names that use a tunnel.
pub fn names(router: &Router, id: &str, target: Option<&Target>, listener: u16) -> Vec<String> {
    let mut names: Vec<String> = services::routes(router, listener)
        .into_iter()
        .filter(|route| route.target == id)
        .map(|route| route.url)
        .collect();
    let pods = target.and_then(Target::pods).filter(|pods| pods.jump.is_none());
    let dynamic = pods.and_then(|pods| {
        let Workload::Service(service) = &pods.workload else { return None };
        let port = match pods.port {
            PortRef::Number(port) => Some(port.get()),
            PortRef::Auto => None,
            PortRef::Name(_) | PortRef::Https => return None,
        };
        let context = services::named_context(router, &pods.cluster.context).ok()?;
        Some(services::url(&pods.namespace, service, port, context.as_ref(), listener))
    });
    names.extend(dynamic);
    names
}

/// Returns the equivalent kubectl command. `port`: port of the Service, if known.
pub fn kubectl(target: &Target, port: Option<u16>) -> Option<String> {
    let pods = target.pods().filter(|pods| pods.jump.is_none())?;
    let port = match &pods.port {
        PortRef::Number(port) => port.to_string(),
        PortRef::Name(name) => name.to_string(),
        PortRef::Auto | PortRef::Https => port?.to_string(),
    };
    let object = match &pods.workload {
        Workload::Service(service) => format!("svc/{service}"),
        Workload::Pod(pod) | Workload::PodOfService { pod, .. } => format!("pod/{pod}"),
        // kubectl does not accept an address.
        Workload::Address(_) => return None,
    };
    let namespace = &pods.namespace;
    Some(format!("{} -n {namespace} port-forward {object} :{port}", error::kubectl(&pods.cluster)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u16, name: &str, app_protocol: &str) -> ServicePort {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        ServicePort { number, name: text(name), app_protocol: text(app_protocol) }
    }

    #[test]
    fn ports_say_what_they_speak() {
        for (number, name, app_protocol, speaks) in [
            (80, "", "", Speaks::Http),
            (8080, "http-web", "", Speaks::Http),
            (9000, "grpc", "", Speaks::Grpc),
            (9000, "", "kubernetes.io/h2c", Speaks::Http),
            (5432, "", "", Speaks::Postgres),
            (5432, "https", "", Speaks::Http),
            (7000, "pg-postgres", "", Speaks::Postgres),
            (6379, "", "", Speaks::Redis),
            (26379, "tcp-redis", "", Speaks::Redis),
            (27017, "", "", Speaks::MongoDb),
            (3306, "", "", Speaks::MySql),
            (5672, "", "", Speaks::Tcp),
            (1234, "tcp-x", "", Speaks::Tcp),
        ] {
            assert_eq!(Speaks::of(&port(number, name, app_protocol)), speaks, "{number} {name} {app_protocol}");
        }
    }

    #[test]
    fn commands_open_what_can_be_reached() {
        let local: SocketAddr = "127.0.0.1:15432".parse().unwrap();
        let command = |speaks: Speaks, local| speaks.command("db.shop.localhost", 8989, local);
        assert_eq!(command(Speaks::Http, None).unwrap(), "curl http://db.shop.localhost:8989/");
        assert_eq!(command(Speaks::Postgres, Some(local)).unwrap(), "psql \"host=127.0.0.1 port=15432 user=postgres\"");
        assert!(command(Speaks::Postgres, None).unwrap().contains("hostaddr=127.0.0.1 port=8989 sslmode=require"));
        assert_eq!(command(Speaks::Redis, None), None);
        assert_eq!(command(Speaks::Redis, Some(local)).unwrap(), "redis-cli -h 127.0.0.1 -p 15432");
        assert_eq!(missing_route("shop", "db", 6379, None).lines().count(), 4);
    }

    #[test]
    fn a_url_has_the_scheme_of_the_protocol() {
        let local = Some("127.0.0.1:1".parse().unwrap());
        for (speaks, by_name, by_route) in [
            (Speaks::Http, "http://x.localhost:8989/", "http://x.localhost:8989/"),
            (Speaks::Grpc, "http://x.localhost:8989/", "http://x.localhost:8989/"),
            (Speaks::Postgres, "postgresql://x.localhost:8989/?sslmode=require", "tcp://127.0.0.1:1"),
            (Speaks::Redis, "", "tcp://127.0.0.1:1"),
            (Speaks::Tcp, "http://x.localhost:8989/", "tcp://127.0.0.1:1"),
        ] {
            assert_eq!(speaks.url(Some("x.localhost"), 8989, None), by_name, "{speaks:?}");
            assert_eq!(speaks.url(Some("x.localhost"), 8989, local), by_route, "{speaks:?}");
        }
    }
}
