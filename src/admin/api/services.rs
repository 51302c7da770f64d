//! Routes, and the Services of a context, with their URLs.

use std::fmt;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{
    FORMAT,
    answers::{Problem, Service, Services},
    ways::{self, Speaks},
};
use crate::{
    config::{
        ContextName, Destination, InvalidValue, Label, Namespace, PortRef, SniBackend, Workload,
        listen::of_this_machine, shell::kubectl,
    },
    k8s::{
        ClusterError, ServicePort,
        client::Clusters,
        list::{self, Listed},
        ports::choose_port,
    },
    routing::{ClusterId, Route, RouteError, Router, Target, alias, hostname::DynamicName},
};

/// Parameters of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// `None`: the context of names that set none.
    pub context: Option<ContextName>,
    /// `None`: all namespaces.
    pub namespace: Option<Namespace>,
    /// Whether to count the ready pods of each Service.
    pub pods: bool,
    /// Whether to leave out the Services if listing them needs a sign-in.
    pub signed_in: bool,
}

impl Query {
    /// Parses the query of a URL; unknown keys are ignored.
    ///
    /// # Errors
    /// The namespace or the context is not valid.
    pub fn parse(query: &str) -> Result<Self, InvalidValue> {
        let value = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let (_, value) = pairs.into_iter().find(|(key, _)| *key == name)?;
            Some(percent_decode_str(value).decode_utf8_lossy().into_owned()).filter(|value| !value.is_empty())
        };
        Ok(Self {
            context: value("context").map(ContextName::new).transpose()?,
            namespace: value("namespace").map(Namespace::new).transpose()?,
            pods: value("pods").is_some(),
            signed_in: value("signed_in").is_some(),
        })
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = [
            ("context", self.context.as_deref()),
            ("namespace", self.namespace.as_deref()),
            ("pods", self.pods.then_some("1")),
            ("signed_in", self.signed_in.then_some("1")),
        ];
        let pairs = pairs.iter().filter_map(|(name, value)| Some((name, (*value)?)));
        for (at, (name, value)) in pairs.enumerate() {
            let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
            write!(f, "{}{name}={value}", if at == 0 { "" } else { "&" })?;
        }
        Ok(())
    }
}

impl From<&ClusterError> for Problem {
    fn from(error: &ClusterError) -> Self {
        Self { code: None, message: error.to_string(), cause: error.cause(), hint: error.hint(), may_pass: false }
    }
}

/// Lists the routes of the configuration, then the Services of a context. If these cannot be listed, `problems` says why.
/// `listener`: port of the HTTP listener.
pub async fn list(clusters: &Clusters, router: &Router, query: &Query, listener: u16) -> Services {
    let mut services = routes(router, listener);
    let contexts = &router.http_contexts;
    let context = match &query.context {
        Some(name) => Some(router.config.context_named(name.clone())),
        None => router.default_context().cloned(),
    };
    let Some(context) = context else {
        let problem = Problem {
            code: Some("no-context".to_owned()),
            message: "the kubeconfig has no current context".to_owned(),
            cause: contexts.problem.clone(),
            hint: Some(format!("{} config use-context NAME, or use --context", kubectl(&contexts.kubeconfig))),
            may_pass: false,
        };
        return Services { format: FORMAT, services, problems: vec![problem] };
    };
    let named = named_context(router, &context);
    let id = ClusterId { kubeconfig: contexts.kubeconfig.clone(), context };
    let listing = async {
        let cluster = clusters.get(&id).await?;
        if query.signed_in && !cluster.has_credential() {
            return Ok((Vec::new(), None));
        }
        let pods = async {
            match query.pods {
                // A user without the permission to list EndpointSlices still gets the Services.
                true => list::readiness(&cluster, query.namespace.as_ref()).await.ok(),
                false => None,
            }
        };
        let (found, pods) = tokio::join!(list::services(&cluster, query.namespace.as_ref()), pods);
        Ok::<_, ClusterError>((found?, pods))
    };
    match listing.await {
        Ok((found, pods)) => {
            let place = Placed { router, context: &id.context, named, listener };
            services.extend(found.iter().flat_map(|service| {
                let key = (service.namespace.to_string(), service.name.to_string());
                // A Service without an EndpointSlice has no pods.
                place.rows(service, pods.as_ref().map(|pods| pods.get(&key).copied().unwrap_or_default()))
            }));
            Services { format: FORMAT, services, problems: Vec::new() }
        }
        Err(error) => Services { format: FORMAT, services, problems: vec![Problem::from(&error)] },
    }
}

/// No hostname can contain the name of the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoName;

/// Returns the name by which hostnames refer to a context: its alias if it has one. `None`: hostnames may omit it.
///
/// # Errors
/// No alias or hostname leads to the context.
pub fn named_context(router: &Router, context: &ContextName) -> Result<Option<ContextName>, NoName> {
    if router.default_context() == Some(context) { Ok(None) } else { router.name_of(context).map(Some).ok_or(NoName) }
}

/// Returns the routes of the configuration.
pub fn routes(router: &Router, listener: u16) -> Vec<Service> {
    let row = |name: String, url: String, from: &str, speaks: &str, route: Result<Route, RouteError>| {
        let (shown, target) = match route {
            Ok(route) => (route.target.to_string(), Some(route.target)),
            Err(error) => (error.to_string(), None),
        };
        let pods = target.as_ref().and_then(Target::pods);
        Service {
            name,
            url,
            from: from.to_owned(),
            context: pods.map(|pods| pods.cluster.context.to_string()),
            namespace: pods.map(|pods| pods.namespace.to_string()),
            speaks: speaks.to_owned(),
            tunnel: target.is_some().then(|| shown.clone()),
            target: shown,
            ..Service::default()
        }
    };
    let http = router.config.http.routes.iter();
    let http = http.map(|(host, route)| {
        let url = format!("http://{host}:{listener}/");
        let command = (!host.starts_with('*')).then(|| Speaks::Http.command(host, listener, None)).flatten();
        let from = if route.destination.jump.is_some() { "jump" } else { "http" };
        Service { command, ..row(host.clone(), url, from, "http", router.http(host)) }
    });
    let tcp = router.config.tcp.routes.iter();
    let tcp = tcp.map(|(address, route)| {
        let speaks = speaks(&route.destination);
        let command = speaks.command("", listener, Some(*address));
        let shown = address.to_string();
        let from = if route.destination.jump.is_some() { "jump" } else { "tcp" };
        let row = row(shown.clone(), format!("tcp://{address}"), from, speaks.as_str(), router.tcp(*address));
        Service { command, address: Some(shown), ..row }
    });
    let sni = router.config.sni.iter().flat_map(|sni| {
        let address = sni.listen.first().copied().map(of_this_machine);
        sni.routes.iter().filter_map(move |(name, route)| Some((name, route, address?)))
    });
    let sni = sni.map(|(name, route, address)| {
        let speaks = match &route.backend {
            SniBackend::Kubernetes(destination) => speaks(destination),
            SniBackend::Command(_) => Speaks::Tcp,
        };
        let command = (!name.starts_with('*')).then(|| speaks.command_by_sni(name, address));
        let url = format!("tls://{name}:{}", address.port());
        let row = row(name.clone(), url, "sni", speaks.as_str(), router.sni(name).map(|(route, _)| route));
        Service { command, address: Some(address.to_string()), ..row }
    });
    http.chain(tcp).chain(sni).collect()
}

/// Returns the protocol of a destination that is reached without a hostname, so that an HTTP URL would be wrong.
fn speaks(destination: &Destination) -> Speaks {
    let port = |number, name| ServicePort { number, name, app_protocol: None };
    let speaks = match (&destination.jump, &destination.port) {
        // The port of the destination is the pod's, through which the jump goes.
        (Some(jump), _) => Speaks::of(&port(jump.target.port.get(), None)),
        (None, PortRef::Number(number)) => Speaks::of(&port(number.get(), None)),
        (None, PortRef::Name(name)) => Speaks::of(&port(0, Some(name.to_string()))),
        (None, PortRef::Auto | PortRef::Https) => Speaks::Tcp,
    };
    if matches!(speaks, Speaks::Http | Speaks::Unknown) { Speaks::Tcp } else { speaks }
}

/// Context and names of the Services in a list.
struct Placed<'r> {
    router: &'r Router,
    context: &'r ContextName,
    /// As of [`named_context`].
    named: Result<Option<ContextName>, NoName>,
    listener: u16,
}

impl Placed<'_> {
    /// Returns a row per port. `pods`: the numbers of ready pods and of all pods.
    fn rows(&self, service: &Listed, pods: Option<(u64, u64)>) -> Vec<Service> {
        let obvious = choose_port(&service.ports, &PortRef::Auto).map(|port| port.number);
        let row = |port: &ServicePort| {
            let number = (obvious != Some(port.number)).then_some(port.number);
            let name = |context| dynamic_name(&service.namespace, &service.name, number, context);
            let host = self.named.as_ref().ok().map(|named| name(named.as_ref()).to_string());
            let route = match &host {
                Some(host) => self.router.http(host),
                None => self.router.named_by(name(Some(self.context)), String::new()),
            };
            let target = route.ok().map(|route| route.target);
            let address =
                target.as_ref().and_then(Target::pods).and_then(|pods| ways::address(self.router, pods, port.number));
            let speaks = Speaks::of(port);
            let missing_route = || match speaks.has_name() {
                true => host.is_none().then(|| alias::lines(self.context, &self.router.http_contexts)),
                false => {
                    let context = (self.named != Ok(None)).then_some(self.context.as_str());
                    Some(ways::missing_route(self.router, &service.namespace, &service.name, port.number, context))
                }
            };
            Service {
                name: format!("{}/{}", service.namespace, service.name),
                port: Some(port.to_string()),
                url: speaks.url(host.as_deref(), self.listener, address),
                target: format!("{}/{}:{}", service.namespace, service.name, port.number),
                from: "service".to_owned(),
                context: Some(self.context.to_string()),
                namespace: Some(service.namespace.to_string()),
                speaks: speaks.as_str().to_owned(),
                tunnel: target.map(|target| target.to_string()),
                command: match &host {
                    None if address.is_none() => None,
                    host => speaks.command(host.as_deref().unwrap_or_default(), self.listener, address),
                },
                missing_route: address.is_none().then(missing_route).flatten(),
                address: address.map(|address| address.to_string()),
                ready: pods.map(|(ready, _)| ready),
                pods: pods.map(|(_, all)| all),
            }
        };
        service.ports.iter().map(row).collect()
    }
}

/// Returns the URL of a Service, with its short name. `context`: its name in hostnames; `None`: omitted.
pub fn url(
    namespace: &Namespace,
    service: &Label,
    port: Option<u16>,
    context: Option<&ContextName>,
    listener: u16,
) -> String {
    format!("http://{}:{listener}/", dynamic_name(namespace, service, port, context))
}

fn dynamic_name(
    namespace: &Namespace,
    service: &Label,
    port: Option<u16>,
    context: Option<&ContextName>,
) -> DynamicName {
    DynamicName {
        context: context.cloned(),
        namespace: namespace.clone(),
        workload: Workload::Service(service.clone()),
        port: port.and_then(PortRef::number).unwrap_or(PortRef::Auto),
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::{config::validate, routing::Contexts};

    #[test]
    fn a_row_has_a_name_that_works_or_the_lines_that_give_one() {
        let config = "contexts: {prod: {name: 'arn:aws:eks:x:cluster/prod'}}\n";
        let config = Arc::new(validate::parse(Path::new("c"), config.as_bytes()).unwrap());
        let names = ["dev", "gke_p_europe-west1-b_shop", "arn:aws:eks:x:cluster/prod", "admin@kube", "Dev"];
        let contexts = Arc::new(Contexts {
            kubeconfig: Arc::new(config.http.kubeconfig.clone()),
            current: Some("dev".parse().unwrap()),
            namespaces: names.iter().map(|name| (name.parse().unwrap(), Ok(Namespace::default()))).collect(),
            problem: None,
        });
        let router = Router { config, http_contexts: contexts.clone(), tcp_contexts: contexts };
        let ports = vec![ServicePort { number: 80, name: None, app_protocol: None }];
        let service = Listed { namespace: "shop".parse().unwrap(), name: "web".parse().unwrap(), ports };
        for (context, url, lines) in [
            ("dev", "http://web.shop.localhost:1/", None),
            ("gke_p_europe-west1-b_shop", "http://web.shop.gke_p_europe-west1-b_shop.cx.localhost:1/", None),
            ("arn:aws:eks:x:cluster/prod", "http://web.shop.prod.cx.localhost:1/", None),
            ("admin@kube", "", Some("contexts:\n  kube: {name: \"admin@kube\"}\n")),
            ("Dev", "", Some("contexts:\n  dev-2: {name: \"Dev\"}\n")),
        ] {
            let context = context.parse().unwrap();
            let named = named_context(&router, &context);
            let row = Placed { router: &router, context: &context, named, listener: 1 }.rows(&service, None).remove(0);
            assert_eq!((&*row.url, row.missing_route.as_deref()), (url, lines), "{context}");
            assert_eq!(row.tunnel, Some(format!("{context}/shop/web")));
            assert_eq!(row.command.is_none(), url.is_empty(), "{context}");
        }
    }

    #[test]
    fn every_kind_of_route_has_a_row_with_the_protocol_of_its_target() {
        let config = "default_context: dev\n\
            http: {k8s: {routes: {a.localhost: {service: a}, b.localhost: {via: {service: bastion}, target: {host: b.corp, port: 80}}}}}\n\
            tcp: {k8s: {jump: {15432: {via: {service: bastion}, target: {host: db.corp, port: 5432}}}, routes: {16379: {service: x, port: 6379}}}}\n\
            sni: {listen: '127.0.0.1:8443', routes: {db.test: {k8s: {service: db, port: 5432}}, \
            '*.x.test': {k8s: {service: x}}, c.test: {command: {run: [nc, '{port}']}}}}\n";
        let config = Arc::new(validate::parse(Path::new("c"), config.as_bytes()).unwrap());
        let contexts = Arc::<Contexts>::default();
        let router = Router { config, http_contexts: contexts.clone(), tcp_contexts: contexts };
        let rows = routes(&router, 8989);
        let rows: Vec<_> = rows
            .iter()
            .map(|row| (&*row.name, &*row.from, &*row.speaks, row.command.as_deref().unwrap_or("-")))
            .collect();
        assert_eq!(
            rows,
            [
                ("a.localhost", "http", "http", "curl http://a.localhost:8989/"),
                ("b.localhost", "jump", "http", "curl http://b.localhost:8989/"),
                ("127.0.0.1:15432", "jump", "postgres", "psql \"host=127.0.0.1 port=15432 user=postgres\""),
                ("127.0.0.1:16379", "tcp", "redis", "redis-cli -h 127.0.0.1 -p 16379"),
                ("*.x.test", "sni", "tcp", "-"),
                ("c.test", "sni", "tcp", "openssl s_client -connect 127.0.0.1:8443 -servername c.test"),
                (
                    "db.test",
                    "sni",
                    "postgres",
                    "psql \"host=db.test hostaddr=127.0.0.1 port=8443 sslmode=require user=postgres\""
                ),
            ]
        );
    }

    #[test]
    fn a_query_is_decoded() {
        let query = Query::parse("namespace=shop&x&context=a%2Fb%26c&namespace=").unwrap();
        let (context, namespace) = ("a/b&c".parse().unwrap(), "shop".parse().unwrap());
        assert_eq!(query, Query { context: Some(context), namespace: Some(namespace), ..Query::default() });
        assert_eq!(Query::parse("namespace="), Ok(Query::default()));
        let query =
            Query { context: Some("arn:aws/é&=x".parse().unwrap()), namespace: None, pods: true, signed_in: true };
        assert_eq!(Query::parse(&query.to_string()), Ok(query));
        for wrong in ["namespace=a%2Fb", "namespace=..", "namespace=A", "namespace=a%00"] {
            assert!(Query::parse(wrong).is_err(), "{wrong}");
        }
    }
}
