//! How to use a port from this machine: its protocol, a command, and the configuration that is missing for it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use super::{attention::quoted, services};
use crate::{
    config::{PortRef, Workload},
    k8s::{ServicePort, kubectl::kubectl as of_context, ports::is_web},
    routing::{PodTarget, PortProtocol, Router, Target},
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
    Ssh,
    Tcp,
    /// Nothing says which: HTTP, as a client may find out.
    Unknown,
}

impl Speaks {
    /// Returns the protocol according to the port's appProtocol, name and number.
    pub fn of(port: &ServicePort) -> Self {
        let words = || [&port.app_protocol, &port.name].into_iter().flatten();
        let is_grpc = |word: &String| word.contains("grpc") && !word.contains("grpc-web");
        if words().any(|word| is_grpc(&word.to_ascii_lowercase())) {
            return Self::Grpc;
        }
        if port.hint().is_some() {
            return Self::Http;
        }
        match words().find_map(|word| PortProtocol::of_name(word)).or_else(|| PortProtocol::of_number(port.number)) {
            Some(PortProtocol::Postgres) => Self::Postgres,
            Some(PortProtocol::MySql) => Self::MySql,
            Some(PortProtocol::Redis) => Self::Redis,
            Some(PortProtocol::MongoDb) => Self::MongoDb,
            Some(PortProtocol::Ssh) => Self::Ssh,
            Some(PortProtocol::Other) => Self::Tcp,
            None if is_web(port) => Self::Http,
            None => Self::Unknown,
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
            Self::Ssh => "ssh",
            Self::Tcp => "tcp",
            Self::Unknown => "unknown",
        }
    }

    /// Returns whether the HTTP listener serves this protocol by hostname.
    pub fn has_name(self) -> bool {
        matches!(self, Self::Http | Self::Grpc | Self::Postgres | Self::Unknown)
    }

    /// Returns the URL of a port of a Service: `http://…`, `postgresql://…` or, with a local address, `tcp://…`; empty if a
    /// program can only use a local port and there is none. `host`: its hostname, if it has one; `listener`: port of the
    /// HTTP listener; `address`: its local address.
    pub fn url(self, host: Option<&str>, listener: u16, address: Option<SocketAddr>) -> String {
        let local = address.map(|address| format!("tcp://{address}"));
        let named = host.map(|host| format!("http://{host}:{listener}/"));
        match self {
            Self::Http | Self::Grpc | Self::Unknown => named,
            Self::Postgres => {
                local.or_else(|| host.map(|host| format!("postgresql://{host}:{listener}/?sslmode=require")))
            }
            Self::Redis | Self::MongoDb | Self::MySql | Self::Ssh => local,
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
            Self::Http | Self::Unknown => Some(format!("curl {}", quoted(&format!("http://{host}:{listener}/")))),
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
            Self::Ssh => at(&|to| format!("ssh -p {} {}", to.port(), to.ip())),
            Self::Tcp => at(&|to| format!("nc {} {}", to.ip(), to.port())),
        }
    }

    /// Returns a command that opens it at the SNI listener.
    pub fn command_by_sni(self, name: &str, listener: SocketAddr) -> String {
        match self {
            Self::Postgres => format!(
                "psql \"host={name} hostaddr={} port={} sslmode=require user=postgres\"",
                listener.ip(),
                listener.port()
            ),
            _ => format!("openssl s_client -connect {listener} -servername {name}"),
        }
    }
}

/// Lowest port that a user may listen on without a permission.
const FIRST_FREE: u16 = 1024;

/// Returns the configuration that gives a port of a Service a local port: the same one if it is free.
pub fn missing_route(router: &Router, namespace: &str, service: &str, port: u16, context: Option<&str>) -> String {
    let config = &router.config;
    let of_sni = config.sni.iter().flat_map(|sni| &sni.listen);
    let own: Vec<u16> =
        config.tcp.routes.keys().chain(&config.http.listen).chain(of_sni).map(SocketAddr::port).collect();
    let is_free = |port: &u16| *port >= FIRST_FREE && !own.contains(port) && is_unused(*port);
    // 5432 becomes 15432, so that the number still says what it is.
    let beside = (port % 10_000 + 10_000)..=u16::MAX;
    let local = std::iter::once(port).chain(beside).find(is_free).unwrap_or(port);
    let context = context.map(|context| format!("context: {context:?}, ")).unwrap_or_default();
    format!(
        "tcp:\n  k8s:\n    routes:\n      {local}: {{{context}namespace: {namespace}, service: {service}, port: {port}}}\n"
    )
}

/// Returns whether no program of this machine listens on a port, as a database of its own may.
fn is_unused(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
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

/// Returns the equivalent kubectl command. `ports`: port of the Service, and of the pod; `None`: there is no session that knows.
pub fn kubectl(target: &Target, ports: Option<(u16, u16)>) -> Option<String> {
    let pods = target.pods().filter(|pods| pods.jump.is_none())?;
    let port = match (&pods.workload, &pods.port) {
        // For a pod, kubectl takes only its own ports, and this one may be the Service's.
        (Workload::PodOfService { .. }, _) => ports?.1.to_string(),
        (_, PortRef::Number(port)) => port.to_string(),
        (_, PortRef::Name(name)) => name.to_string(),
        (_, PortRef::Auto | PortRef::Https) => ports?.0.to_string(),
    };
    let object = match &pods.workload {
        Workload::Service(service) => format!("svc/{service}"),
        Workload::Pod(pod) | Workload::PodOfService { pod, .. } => format!("pod/{pod}"),
        // kubectl does not accept an address.
        Workload::Address(_) => return None,
    };
    let namespace = &pods.namespace;
    Some(format!("{} -n {namespace} port-forward {object} :{port}", of_context(&pods.cluster)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::ClusterId;

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
            (22, "", "", Speaks::Ssh),
            (2222, "ssh", "", Speaks::Ssh),
            (7001, "", "", Speaks::Unknown),
            (9090, "metrics", "", Speaks::Unknown),
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
    }

    #[test]
    fn a_route_to_add_has_a_port_that_nothing_else_has() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap().port();
        let config =
            "http: {listen: '127.0.0.1:29092'}\ntcp: {k8s: {routes: {26379: {namespace: a, service: redis}}}}\n";
        let config = crate::config::validate::parse(std::path::Path::new("c"), config.as_bytes()).unwrap();
        let contexts = std::sync::Arc::<crate::routing::Contexts>::default();
        let router = Router { config: config.into(), http_contexts: contexts.clone(), tcp_contexts: contexts };
        for port in [26379, 29092, 25, taken] {
            let lines = missing_route(&router, "shop", "db", port, None);
            let config = crate::config::validate::parse(std::path::Path::new("c"), lines.as_bytes()).unwrap();
            let local = config.tcp.routes.keys().next().unwrap().port();
            assert!(local >= 1024 && local != port, "{lines}");
            assert!(lines.ends_with(&format!(" port: {port}}}\n")), "{lines}");
        }
    }

    #[test]
    fn kubectl_is_given_the_port_of_a_pod() {
        let target = |workload, port| {
            let cluster = ClusterId { kubeconfig: Default::default(), context: "dev".parse().unwrap() };
            let namespace = "shop".parse().unwrap();
            Target::Pods(std::sync::Arc::new(PodTarget { cluster, namespace, workload, port, jump: None }))
        };
        let (pod, service) = ("db-0".parse().unwrap(), "db".parse().unwrap());
        let of_service = || Workload::PodOfService { pod, service };
        let command = kubectl(&target(of_service(), PortRef::number(80).unwrap()), Some((80, 8080))).unwrap();
        assert!(command.ends_with("-n shop port-forward pod/db-0 :8080"), "{command}");
        // Without a session, the port is unknown.
        let (pod, service) = ("db-0".parse().unwrap(), "db".parse().unwrap());
        let of_service = Workload::PodOfService { pod, service };
        assert_eq!(kubectl(&target(of_service, PortRef::number(80).unwrap()), None), None);
        let service = Workload::Service("db".parse().unwrap());
        let command = kubectl(&target(service, PortRef::Auto), Some((80, 8080))).unwrap();
        assert!(command.ends_with("port-forward svc/db :80"), "{command}");
    }

    #[test]
    fn a_url_has_the_scheme_of_the_protocol() {
        let local = Some("127.0.0.1:1".parse().unwrap());
        for (speaks, by_name, by_route) in [
            (Speaks::Http, "http://x.localhost:8989/", "http://x.localhost:8989/"),
            (Speaks::Grpc, "http://x.localhost:8989/", "http://x.localhost:8989/"),
            (Speaks::Postgres, "postgresql://x.localhost:8989/?sslmode=require", "tcp://127.0.0.1:1"),
            (Speaks::Redis, "", "tcp://127.0.0.1:1"),
            (Speaks::Ssh, "", "tcp://127.0.0.1:1"),
            (Speaks::Tcp, "http://x.localhost:8989/", "tcp://127.0.0.1:1"),
        ] {
            assert_eq!(speaks.url(Some("x.localhost"), 8989, None), by_name, "{speaks:?}");
            assert_eq!(speaks.url(Some("x.localhost"), 8989, local), by_route, "{speaks:?}");
        }
    }
}
