//! Targets as a person writes them on the command line.
//!
//! ```text
//! [POD.]SERVICE[.NAMESPACE][.CONTEXT.cx][:PORT]      postgres.shop, postgres.shop:5432, pg-0.pg.data
//! pod/POD[.NAMESPACE[.CONTEXT.cx]][:PORT]            pod/web-7c4.shop:8080
//! via WORKLOAD HOST:PORT                             via backend-api.shop mydb.example.com:5432
//! a route's name                                     shop.localhost, 5432, 127.0.0.1:5432
//! ```
//!
//! Each may end with `@PORT`, the wanted port on this machine. Routes come first: their names mean the same as for a client.

use std::{fmt, net::SocketAddr, sync::Arc};

use super::{Route, RouteError, Router, Target, hostname::DynamicName, table};
use crate::config::{
    ContextName, Destination, Host, HostPort, InvalidValue, Jump, JumpMethod, Namespace, PortRef, Workload,
};

/// End of Service names in most clusters.
const CLUSTER_DOMAIN: &str = ".svc.cluster.local";

/// A target that the user named, and its route.
#[derive(Clone, Debug)]
pub struct Named {
    /// The name as written, without the local port.
    pub text: String,
    pub route: Route,
    /// Requested port of this machine. `None`: any.
    pub local_port: Option<u16>,
    /// Local address of the named route. `None`: it is not in `tcp.k8s.routes`.
    pub listener: Option<SocketAddr>,
}

/// Why a text does not name a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamedError {
    #[error("{text:?} names no target: {reason}")]
    Malformed { text: String, reason: String },
    /// The namespace given in addition to the text is invalid.
    #[error(transparent)]
    Namespace(#[from] InvalidValue),
    #[error(transparent)]
    Route(#[from] RouteError),
}

impl NamedError {
    /// Returns what the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Malformed { .. } => Some(
                "write SERVICE.NAMESPACE[:PORT], pod/POD.NAMESPACE[:PORT], 'via SERVICE.NAMESPACE HOST:PORT', or a route's name"
                    .to_owned(),
            ),
            Self::Namespace(_) => None,
            Self::Route(error) => error.hint(),
        }
    }
}

/// A workload and its port, as written.
struct Written {
    context: Option<ContextName>,
    namespace: Option<Namespace>,
    workload: Workload,
    port: PortRef,
}

impl Router {
    /// Returns the meaning of a text. `namespace`: used for names without one, in place of the context's own.
    ///
    /// Contexts with `dynamic: deny`, which are closed to names without a route, are open here: the user of a command
    /// names the target on purpose, and is not a web page.
    ///
    /// # Errors
    /// The text has none of the forms, or there is no context.
    pub fn named(&self, text: &str, namespace: Option<&Namespace>) -> Result<Named, NamedError> {
        let malformed = |reason: String| NamedError::Malformed { text: text.to_owned(), reason };
        let (name, local_port) = local_port(text.trim()).map_err(malformed)?;
        if let Some((route, listener)) = self.route_called(name)? {
            return Ok(Named { text: name.to_owned(), route, local_port, listener });
        }
        let (written, jump) = match name.strip_prefix("via ") {
            Some(rest) => {
                let (written, jump) = self.via(rest).map_err(malformed)?;
                (written, Some(jump))
            }
            None => (self.written(name).map_err(malformed)?, None),
        };
        let destination = Destination {
            context: written.context.map(|context| self.context_of(context)),
            namespace: written.namespace.or_else(|| namespace.cloned()),
            workload: written.workload,
            port: written.port,
            jump,
        };
        let target = self.target(&destination, &self.http_contexts, &self.config.http.kubeconfig, name)?;
        let idle_timeout = self.config.http.idle_timeout;
        let route = Route { name: name.into(), target: Target::Pods(target), idle_timeout, options: Arc::default() };
        Ok(Named { text: name.to_owned(), route, local_port, listener: None })
    }

    /// Returns the configured route of this name, and its listener.
    fn route_called(&self, name: &str) -> Result<Option<(Route, Option<SocketAddr>)>, RouteError> {
        let listeners = || self.config.tcp.routes.keys();
        let listener = match (name.parse::<SocketAddr>(), name.parse::<u16>()) {
            (Ok(address), _) => Some(address),
            (_, Ok(port)) => listeners().find(|address| address.port() == port).copied(),
            _ => None,
        };
        if let Some(listener) = listener.filter(|listener| self.config.tcp.routes.contains_key(listener)) {
            return Ok(Some((self.tcp(listener)?, Some(listener))));
        }
        if name.contains(':') {
            return Ok(None);
        }
        let host = table::normalise(name);
        if table::find(&self.config.http.routes, &host).is_some() {
            return Ok(Some((self.http(&host)?, None)));
        }
        if self.config.sni.as_ref().is_some_and(|sni| table::find(&sni.routes, &host).is_some()) {
            return Ok(Some((self.sni(&host)?.0, None)));
        }
        Ok(None)
    }

    fn via(&self, text: &str) -> Result<(Written, Jump), String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [workload, to] = words.as_slice() else {
            return Err("behind via there are a Service or a pod, and HOST:PORT".to_owned());
        };
        let written = self.written(workload)?;
        if written.port != PortRef::Auto {
            return Err(format!("the pod that is gone through has no port: {workload:?}"));
        }
        let (host, port) = to.rsplit_once(':').ok_or_else(|| format!("{to:?} is not HOST:PORT"))?;
        let port = port.parse().map_err(|_| format!("the port of {to:?} is not one of 1-65535"))?;
        let plain = host.trim_matches(['[', ']']);
        let host = Host::new(plain).map_err(|_| format!("{host:?} is neither a hostname nor an IP address"))?;
        let (target, method) = (HostPort { host, port }, JumpMethod::Auto);
        Ok((written, Jump { container: None, create: None, target, method }))
    }

    fn written(&self, text: &str) -> Result<Written, String> {
        if text.is_empty() {
            return Err("it is empty".to_owned());
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let ports: Vec<String> = self.config.tcp.routes.keys().map(|address| address.port().to_string()).collect();
            return Err(match ports.as_slice() {
                [] => format!("no route of tcp.k8s.routes has port {text}: there are none"),
                ports => format!("no route of tcp.k8s.routes has port {text}: they are on {}", ports.join(", ")),
            });
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => {
                let port = port.parse();
                (name, Some(port.map_err(|_| "the port behind the colon is neither 1-65535 nor a port's name")?))
            }
            None => (text, None),
        };
        let mut written = match name.split_once('/') {
            Some(("pod" | "pods" | "po", pod)) => written_pod(pod)?,
            Some(("svc" | "service" | "services", service)) => self.written_service(service)?,
            Some((kind, _)) => {
                return Err(format!("{kind}/ is not known: name a Service, or a pod as pod/NAME.NAMESPACE"));
            }
            None => self.written_service(name)?,
        };
        match (&written.port, port) {
            (PortRef::Auto, Some(port)) => written.port = port,
            (_, Some(_)) => return Err("it has two ports".to_owned()),
            (_, None) => {}
        }
        Ok(written)
    }

    fn written_service(&self, name: &str) -> Result<Written, String> {
        let name = without_cluster_domain(name);
        if !name.contains('.') {
            let workload = Workload::Service(name.parse().map_err(|error: InvalidValue| error.to_string())?);
            return Ok(Written { context: None, namespace: None, workload, port: PortRef::Auto });
        }
        let host = if name.ends_with(".localhost") { name.to_owned() } else { format!("{name}.localhost") };
        let DynamicName { context, namespace, workload, port } =
            DynamicName::parse(&host, &self.config.http.dynamic_host).map_err(|error| error.to_string())?;
        Ok(Written { context, namespace: Some(namespace), workload, port })
    }
}

/// Returns `SERVICE.NAMESPACE` of a Service's name in the cluster, with or without the domain; any other text as it is.
pub fn without_cluster_domain(name: &str) -> &str {
    let name = name.strip_suffix('.').unwrap_or(name);
    let name = name.strip_suffix(CLUSTER_DOMAIN).unwrap_or(name);
    // In a cluster, `web.shop.svc` is a Service, and not a pod in a namespace `svc`.
    name.strip_suffix(".svc").filter(|name| name.contains('.')).unwrap_or(name)
}

/// Parses `POD[.NAMESPACE[.CONTEXT.cx]]`. The name of a pod with dots needs its namespace.
fn written_pod(text: &str) -> Result<Written, String> {
    let (text, context) = match text.strip_suffix(".cx").and_then(|before| before.rsplit_once('.')) {
        Some((text, context)) => (text, Some(context.parse().map_err(|_| "the context before .cx is missing")?)),
        None => (text, None),
    };
    let (pod, namespace) = match text.rsplit_once('.') {
        Some((pod, namespace)) => (pod, Some(namespace)),
        None => (text, None),
    };
    let (Ok(pod), Ok(namespace)) = (pod.parse(), namespace.map(str::parse).transpose()) else {
        return Err(format!("{text:?} is not POD or POD.NAMESPACE"));
    };
    let workload = Workload::Pod(pod);
    Ok(Written { context, namespace, workload, port: PortRef::Auto })
}

/// Removes `@PORT` from the end. A context may contain an `@`, but never with only digits after it.
fn local_port(text: &str) -> Result<(&str, Option<u16>), String> {
    match text.rsplit_once('@') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            let port = port.parse().ok().filter(|port| *port > 0);
            port.map(|port| (name, Some(port)))
                .ok_or_else(|| "the local port behind @ is not one of 1-65535".to_owned())
        }
        // A context may contain an `@`.
        Some((_, port)) if !port.ends_with(".cx") && !port.contains([':', '.']) => {
            Err(format!("{port:?} is not a local port: write 1-65535 behind @"))
        }
        _ => Ok((text, None)),
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use super::*;
    use crate::{config::validate, routing::Contexts};

    const CONFIG: &str = "
contexts: {prod: {name: 'arn:aws:eks:x:cluster/prod', namespace: live, dynamic: deny}}
http: {k8s: {routes: {shop.localhost: {namespace: shop, service: web, port: http}, '*.corp.example': {service: corp}}}}
tcp:
  k8s:
    routes: {5432: {namespace: data, service: postgres}}
    jump: {5433: {namespace: shop, via: {service: api}, target: {host: db.example.com, port: 5432}}}
sni: {listen: '127.0.0.1:1', routes: {db.example.com: {command: {run: [ssh, host], mode: stdio}}}}
";

    fn router() -> Router {
        let config = Arc::new(validate::parse(Path::new("c"), CONFIG.as_bytes()).unwrap());
        let contexts = Arc::new(Contexts {
            kubeconfig: Arc::new(config.http.kubeconfig.clone()),
            current: Some("dev".parse().unwrap()),
            namespaces: BTreeMap::from([("dev".parse().unwrap(), Ok("team".parse().unwrap()))]),
            problem: None,
        });
        Router { config, http_contexts: contexts.clone(), tcp_contexts: contexts }
    }

    fn shown(text: &str) -> String {
        match router().named(text, None) {
            Ok(Named { route, local_port, .. }) => {
                format!("{}{}", route.target, local_port.map(|port| format!(" on {port}")).unwrap_or_default())
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn every_form_leads_where_it_says() {
        for (text, target) in [
            ("postgres", "dev/team/postgres"),
            ("postgres:5432", "dev/team/postgres:5432"),
            ("postgres.shop", "dev/shop/postgres"),
            ("postgres.shop:5432", "dev/shop/postgres:5432"),
            ("postgres.shop:pg", "dev/shop/postgres:pg"),
            ("svc/postgres.shop", "dev/shop/postgres"),
            ("service/postgres", "dev/team/postgres"),
            ("5432.postgres.shop", "dev/shop/postgres:5432"),
            ("postgres.shop.svc.cluster.local", "dev/shop/postgres"),
            ("postgres.shop.svc.cluster.local.:5432", "dev/shop/postgres:5432"),
            ("postgres.shop.svc", "dev/shop/postgres"),
            ("pg-0.pg.data.svc", "dev/data/pg/pg-0"),
            ("web.svc", "dev/svc/web"),
            ("postgres.shop.localhost", "dev/shop/postgres"),
            ("pg-0.pg.data:5432", "dev/data/pg/pg-0:5432"),
            ("pg-0.pg.data.svc.cluster.local", "dev/data/pg/pg-0"),
            ("web.shop.prod.cx", "arn:aws:eks:x:cluster/prod/shop/web"),
            ("web.shop.other@cluster.cx:80", "other@cluster/shop/web:80"),
            ("pod/web-0", "dev/team/pod/web-0"),
            ("pod/web-0.shop:8080", "dev/shop/pod/web-0:8080"),
            ("pod/my.pod.0.shop:8080", "dev/shop/pod/my.pod.0:8080"),
            ("pod/web-0.shop.prod.cx:8080", "arn:aws:eks:x:cluster/prod/shop/pod/web-0:8080"),
            ("via api.shop db.example.com:5432", "dev/shop/api->db.example.com:5432"),
            ("via  pod/api-0.shop   [fd00::1]:5432", "dev/shop/pod/api-0->[fd00::1]:5432"),
            ("via api 10.0.0.1:80@8080", "dev/team/api->10.0.0.1:80 on 8080"),
            ("postgres.shop@15432", "dev/shop/postgres on 15432"),
            ("postgres.shop:5432@5432", "dev/shop/postgres:5432 on 5432"),
            ("5432", "dev/data/postgres"),
            ("127.0.0.1:5432", "dev/data/postgres"),
            ("5432@6000", "dev/data/postgres on 6000"),
            ("5433", "dev/shop/api->db.example.com:5432"),
            ("shop.localhost", "dev/shop/web:http"),
            ("Shop.localhost", "dev/shop/web:http"),
            ("wiki.corp.example", "dev/team/corp"),
            ("db.example.com", "command ssh host"),
        ] {
            assert_eq!(shown(text), target, "{text}");
        }
    }

    #[test]
    fn a_text_that_is_no_target_says_why() {
        for (text, part) in [
            ("", "it is empty"),
            ("Postgres", "is not a name"),
            ("postgres:", "behind the colon"),
            ("postgres:0", "behind the colon"),
            ("postgres:70000", "behind the colon"),
            ("postgres@0", "behind @"),
            ("postgres@x", "\"x\" is not a local port"),
            ("postgres@70000", "behind @"),
            ("deploy/web.shop", "deploy/ is not known"),
            ("80.web.shop:81", "two ports"),
            ("a.b.c.d.e", "short form"),
            ("web.-", "not a Kubernetes name"),
            ("via api.shop", "behind via"),
            ("via api.shop db", "not HOST:PORT"),
            ("via api.shop db:0", "1-65535"),
            ("via api.shop:80 db:1", "has no port"),
            ("via api.shop d_b:1", "neither a hostname"),
            ("1234", "they are on 5432, 5433"),
            ("pod/", "is not POD"),
            ("pod/Web", "is not POD"),
        ] {
            let error = shown(text);
            assert!(error.contains("names no target") && error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_namespace_is_taken_where_the_name_has_none() {
        let named = |text: &str| router().named(text, Some(&"ops".parse().unwrap())).unwrap().route.target.to_string();
        assert_eq!(named("web:80"), "dev/ops/web:80");
        assert_eq!(named("web.shop:80"), "dev/shop/web:80");
        assert_eq!(named("pod/web-0"), "dev/ops/pod/web-0");
    }

    #[test]
    fn nothing_that_is_written_panics() {
        let router = router();
        let words = ["via", " ", "a", ".", ":", "@", "/", "pod/", "5432", "cx", "[", "]", "é", "-", "localhost", "svc"];
        for a in words {
            for b in words {
                for c in words {
                    for d in words {
                        let _ = router.named(&format!("{a}{b}{c}{d}"), None);
                    }
                }
            }
        }
    }
}
