//! From a name to its route.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;

use crate::{
    config::{
        Config, ContextName, Destination, InvalidValue, KubeconfigPaths, Namespace, PortRef, SniBackend, Workload,
        shell::{kubectl, quoted},
    },
    error_code::ErrorCode,
    routing::{
        ClusterId, Contexts, PodTarget, Route, Target,
        cluster_name::ClusterName,
        hostname::{DynamicName, NameError, fits_a_url},
        table,
    },
    wire::proxy_protocol::Version,
};

/// The routes of all names, for one configuration and one state of the kubeconfig.
#[derive(Clone, Debug)]
pub struct Router {
    pub config: Arc<Config>,
    /// Contexts of `http.k8s.kubeconfig`.
    pub http_contexts: Arc<Contexts>,
    /// Contexts of `tcp.k8s.kubeconfig`.
    pub tcp_contexts: Arc<Contexts>,
}

/// The router in force. A reload or a change of the kubeconfig replaces it. Each request reads it once.
pub type SharedRouter = Arc<ArcSwap<Router>>;

/// Why a name has no route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Display: `no route for argo.localhost`.
    #[error("no route for {host}")]
    Unknown { host: String, near: Vec<String> },
    /// A dynamic name that does not match the grammar.
    #[error("{host} is not a name that can be reached: {reason}")]
    Malformed { host: String, reason: String },
    #[error("context {context} refuses names without a route (dynamic: deny)")]
    DynamicDenied { host: String, context: String },
    /// The host of a forward proxy request belongs to another network.
    #[error("{host} is not a name of the cluster")]
    Elsewhere { host: String },
    /// The name has no context, and there is no current context (or no kubeconfig).
    #[error("no context for {host}: {reason}")]
    NoContext { host: String, reason: String, kubectl: String },
    /// The name has no namespace, and the kubeconfig's namespace for this context is invalid.
    #[error("context {context} of the kubeconfig has no namespace to use: {invalid}")]
    NoNamespace { context: ContextName, invalid: InvalidValue, kubectl: String },
}

impl Router {
    /// Returns the route of a Host header or SNI, in any case, with or without port and trailing dot.
    ///
    /// Static routes come first (exact ones, then the longest wildcard), then dynamic names.
    ///
    /// # Errors
    /// The host is no name of adit, names no route, or dynamic names are off.
    pub fn http(&self, host: &str) -> Result<Route, RouteError> {
        self.http_in(None, host)
    }

    /// Does the same for a client that names a context, which is used for a dynamic name without one.
    fn http_in(&self, context: Option<&ContextName>, host: &str) -> Result<Route, RouteError> {
        let host = table::normalise(host);
        let routes = &self.config.http.routes;
        if let Some((key, route)) = table::find(routes, &host) {
            return Ok(Route {
                name: key.into(),
                target: Target::Pods(self.target(
                    &route.destination,
                    &self.http_contexts,
                    &self.config.http.kubeconfig,
                    &host,
                )?),
                idle_timeout: route.idle_timeout,
                options: route.options.clone(),
            });
        }
        let name = match DynamicName::parse(&host, &self.config.http.dynamic_host) {
            Ok(name) => name,
            Err(NameError::NotDynamic) => return Err(RouteError::Unknown { near: table::near(routes, &host), host }),
            Err(error) => return Err(RouteError::Malformed { reason: error.to_string(), host }),
        };
        let context = name.context.or_else(|| context.cloned()).map(|context| self.context_of(context));
        self.named_by(DynamicName { context, ..name }, host)
    }

    /// Returns the route of a dynamic name with the name of a context in place of an alias.
    ///
    /// # Errors
    /// As [`http`](Self::http).
    pub fn named_by(&self, name: DynamicName, host: String) -> Result<Route, RouteError> {
        let destination = Destination {
            context: name.context,
            namespace: Some(name.namespace),
            workload: name.workload,
            port: name.port,
            jump: None,
        };
        let target = self.target(&destination, &self.http_contexts, &self.config.http.kubeconfig, &host)?;
        self.dynamic(host, target)
    }

    /// Returns the route of a host and port that a client of the forward proxy names: one of adit's own names, a
    /// cluster name, or the target of a jump. `context`: name or alias of the client's context. `None`: the current
    /// one.
    ///
    /// # Errors
    /// The host is none of the cluster's, or as [`http`](Self::http).
    pub fn forward(&self, context: Option<&ContextName>, host: &str, port: u16) -> Result<Route, RouteError> {
        let elsewhere = |host: String| Err(RouteError::Elsewhere { host });
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let Some(proxy) = self.config.proxy.as_ref() else { return elsewhere(host) };
        if table::is_here(&host) {
            return elsewhere(host);
        }
        // The port of adit itself, in a URL of one of its pages, is not the backend's port. 80 and 443 are defaults of
        // the protocol.
        let is_own = |port| !matches!(port, 80 | 443) && self.config.http.listen.iter().any(|own| own.port() == port);
        match self.http_in(context, &host) {
            Ok(route) if is_own(port) => return Ok(route),
            Ok(route) => return Ok(route.for_port(port)),
            Err(RouteError::Unknown { .. }) if !host.ends_with(".localhost") => {}
            Err(error) => return Err(error),
        }
        let Some(port_ref) = PortRef::number(port) else {
            return Err(RouteError::Malformed { host, reason: "its port is 0".to_owned() });
        };
        if let Some(route) = self.jump_to(&host, port).filter(|_| context.is_none()) {
            return route;
        }
        let name = match host.parse() {
            Ok(address) if may_be_of_cluster(address) => {
                Some(ClusterName { namespace: None, workload: Workload::Address(address) })
            }
            Ok(_) => None,
            Err(_) => ClusterName::parse(&host, &proxy.cluster_domain),
        };
        let Some(ClusterName { namespace, workload }) = name else { return elsewhere(host) };
        let context = context.map(|context| self.context_of(context.clone()));
        let destination = Destination { context, namespace, workload, port: port_ref, jump: None };
        let target = self.target(&destination, &self.http_contexts, &self.config.http.kubeconfig, &host)?;
        self.dynamic(host, target)
    }

    /// Returns the route that jumps to a host and port.
    fn jump_to(&self, host: &str, port: u16) -> Option<Result<Route, RouteError>> {
        let is_there = |destination: &Destination| {
            destination
                .jump
                .as_ref()
                .is_some_and(|jump| jump.target.host.eq_ignore_ascii_case(host) && jump.target.port.get() == port)
        };
        let of_http = self.config.http.routes.iter().find(|(_, route)| is_there(&route.destination));
        if let Some((name, _)) = of_http {
            return Some(self.http(name));
        }
        let of_tcp = self.config.tcp.routes.iter().find(|(_, route)| is_there(&route.destination));
        of_tcp.map(|(address, _)| self.tcp(*address))
    }

    /// Returns a dynamic route to a target, unless its context is closed to dynamic names.
    fn dynamic(&self, host: String, target: Arc<PodTarget>) -> Result<Route, RouteError> {
        let context = &target.cluster.context;
        if !self.config.has_dynamic_names(context) {
            return Err(RouteError::DynamicDenied { context: context.to_string(), host });
        }
        let target = Target::Pods(target);
        let idle_timeout = self.config.http.idle_timeout;
        Ok(Route { name: host.as_str().into(), target, idle_timeout, options: Arc::default() })
    }

    /// Returns the route of a TCP listener.
    ///
    /// # Errors
    /// No route has the port, or its context is not known.
    pub fn tcp(&self, listener: SocketAddr) -> Result<Route, RouteError> {
        let Some((address, route)) = self.config.tcp.route(listener) else {
            return Err(RouteError::Unknown { host: listener.to_string(), near: Vec::new() });
        };
        let name = address.to_string();
        let target = self.target(&route.destination, &self.tcp_contexts, &self.config.tcp.kubeconfig, &name)?;
        let target = Target::Pods(target);
        Ok(Route { name: name.into(), target, idle_timeout: route.idle_timeout, options: Arc::default() })
    }

    /// Returns the route of a server name at the SNI listener, and the PROXY protocol version that its backend wants.
    ///
    /// # Errors
    /// No backend has the name.
    pub fn sni(&self, name: &str) -> Result<(Route, Option<Version>), RouteError> {
        let name = table::normalise(name);
        let routes = self.config.sni.as_ref().map(|sni| &sni.routes);
        let Some((key, route)) = routes.and_then(|routes| table::find(routes, &name)) else {
            let near = routes.map(|routes| table::near(routes, &name)).unwrap_or_default();
            return Err(RouteError::Unknown { host: name, near });
        };
        let target = match &route.backend {
            SniBackend::Kubernetes(destination) => {
                Target::Pods(self.target(destination, &self.http_contexts, &self.config.http.kubeconfig, &name)?)
            }
            SniBackend::Command(command) => Target::Command(command.clone()),
        };
        let (idle_timeout, send_proxy) = (route.idle_timeout, route.send_proxy);
        Ok((Route { name: key.into(), target, idle_timeout, options: Arc::default() }, send_proxy))
    }

    /// Returns whether a static or dynamic route may still go to a target after a reload.
    pub fn leads_to(&self, target: &Target) -> bool {
        matches!(target, Target::Named(_)) || self.idle_timeout(target).is_some()
    }

    /// Returns the longest idle timeout of the routes and names of a target. Zero: never. `None`: there are none.
    pub fn idle_timeout(&self, target: &Target) -> Option<Duration> {
        let longest = |one: Duration, other: Duration| match one.is_zero() || other.is_zero() {
            true => Duration::ZERO,
            false => one.max(other),
        };
        let sni = || self.config.sni.iter().flat_map(|sni| sni.routes.values());
        let target = match target {
            Target::Command(command) => {
                let is = |backend: &SniBackend| matches!(backend, SniBackend::Command(other) if other == command);
                return sni().filter(|route| is(&route.backend)).map(|route| route.idle_timeout).reduce(longest);
            }
            Target::Pods(target) => target,
            Target::Named(_) => return None,
        };
        let is = |found: Result<Arc<PodTarget>, RouteError>| {
            found.is_ok_and(|mut found| {
                // A route without a port has the one of https by https, and any other through the forward proxy.
                if found.port == PortRef::Auto {
                    Arc::make_mut(&mut found).port = target.port.clone();
                }
                found == *target
            })
        };
        let of_sni = sni().filter_map(|route| match &route.backend {
            SniBackend::Kubernetes(destination) => {
                Some((&**destination, route.idle_timeout, &self.http_contexts, &self.config.http.kubeconfig))
            }
            SniBackend::Command(_) => None,
        });
        let http =
            self.config.http.routes.values().map(|route| {
                (&route.destination, route.idle_timeout, &self.http_contexts, &self.config.http.kubeconfig)
            });
        let tcp = self
            .config
            .tcp
            .routes
            .values()
            .map(|route| (&route.destination, route.idle_timeout, &self.tcp_contexts, &self.config.tcp.kubeconfig));
        let of_routes = http.chain(tcp).chain(of_sni).filter_map(|(destination, idle_timeout, contexts, paths)| {
            is(self.target(destination, contexts, paths, "")).then_some(idle_timeout)
        });
        // Any target of these clusters has a dynamic name, unless its context is closed to them or it is a jump.
        let has_name = target.jump.is_none()
            && *target.cluster.kubeconfig == self.config.http.kubeconfig
            && self.config.has_dynamic_names(&target.cluster.context);
        of_routes.chain(has_name.then_some(self.config.http.idle_timeout)).reduce(longest)
    }

    /// Returns the context of an alias or a context name in a hostname. Ignores case, because browsers send hosts in
    /// lower case.
    pub(super) fn context_of(&self, written: ContextName) -> ContextName {
        let alias = self
            .config
            .contexts
            .iter()
            .find(|(alias, _)| alias.eq_ignore_ascii_case(&written))
            .map(|(_, alias)| alias.name.clone());
        let known = || self.http_contexts.namespaces.keys();
        let exact = || known().find(|context| **context == written).cloned();
        let any_case = || known().find(|context| context.eq_ignore_ascii_case(&written)).cloned();
        alias.or_else(exact).or_else(any_case).unwrap_or(written)
    }

    /// Returns the context of HTTP names that contain none.
    pub fn default_context(&self) -> Option<&ContextName> {
        self.default_in(&self.http_contexts)
    }

    fn default_in<'a>(&'a self, contexts: &'a Contexts) -> Option<&'a ContextName> {
        self.config.default_context.as_ref().or(contexts.current.as_ref())
    }

    /// Returns the name of a context in hostnames: its alias, else its own name. `None`: no hostname can contain it, or
    /// it would mean another context.
    pub fn name_of(&self, context: &ContextName) -> Option<ContextName> {
        let alias = self.config.alias_of(context);
        let own = || {
            let sent: ContextName = context.to_ascii_lowercase().parse().ok()?;
            (fits_a_url(context) && self.context_of(sent) == *context).then(|| context.clone())
        };
        alias.and_then(|(alias, _)| alias.parse().ok()).or_else(own)
    }

    pub(super) fn target(
        &self,
        destination: &Destination,
        contexts: &Contexts,
        paths: &KubeconfigPaths,
        host: &str,
    ) -> Result<Arc<PodTarget>, RouteError> {
        let Some(context) = destination.context.as_ref().or_else(|| self.default_in(contexts)) else {
            let reason = contexts.problem.clone().unwrap_or_else(|| "the kubeconfig has no current context".to_owned());
            return Err(RouteError::NoContext { host: host.to_owned(), reason, kubectl: kubectl(paths) });
        };
        let of_alias = || self.config.alias_of(context).and_then(|(_, alias)| alias.namespace.clone());
        let of_context = || contexts.namespaces.get(context).cloned().unwrap_or_else(|| Ok(Namespace::default()));
        let namespace = destination.namespace.clone().or_else(of_alias).map_or_else(of_context, Ok);
        let namespace = namespace.map_err(|invalid| {
            let kubectl = kubectl(paths);
            RouteError::NoNamespace { context: context.clone(), invalid, kubectl }
        })?;
        let kubeconfig =
            if *contexts.kubeconfig == *paths { contexts.kubeconfig.clone() } else { Arc::new(paths.clone()) };
        Ok(Arc::new(PodTarget {
            cluster: ClusterId { kubeconfig, context: context.clone() },
            namespace,
            workload: destination.workload.clone(),
            port: destination.port.clone(),
            jump: destination.jump.clone(),
        }))
    }
}

/// Returns whether a Service or a pod may have this address: any except those of a machine itself or of a link.
fn may_be_of_cluster(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [first, ..] = address.octets();
            !(address.is_loopback() || address.is_link_local() || address.is_multicast() || first == 0 || first >= 240)
        }
        IpAddr::V6(address) => {
            let [first, ..] = address.segments();
            !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || first & 0xffc0 == 0xfe80)
        }
    }
}

impl RouteError {
    /// Returns the stable error code.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Unknown { .. } => ErrorCode::UnknownHost,
            Self::Malformed { .. } => ErrorCode::MalformedHost,
            Self::DynamicDenied { .. } => ErrorCode::DynamicDenied,
            Self::Elsewhere { .. } => ErrorCode::Elsewhere,
            Self::NoContext { .. } => ErrorCode::NoContext,
            Self::NoNamespace { .. } => ErrorCode::NoNamespace,
        }
    }

    /// Returns the most similar name, if there is one.
    pub fn near(&self) -> Option<&str> {
        match self {
            Self::Unknown { near, .. } => near.first().map(String::as_str),
            _ => None,
        }
    }

    /// Returns what the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unknown { near, .. } if !near.is_empty() => {
                format!("did you mean {}? or use <service>.<namespace>.localhost", near.join(" or "))
            }
            Self::Unknown { .. } => "use <service>.<namespace>.localhost, or add a route to http.k8s.routes".to_owned(),
            Self::Malformed { .. } => "use <service>.<namespace>.localhost".to_owned(),
            Self::DynamicDenied { context, .. } => {
                format!("add a route to http.k8s.routes, or set dynamic: allow for {context}")
            }
            Self::Elsewhere { .. } => {
                "write <service>.<namespace>.svc.cluster.local, make a route with 'via' through a pod, or set \
                 proxy.elsewhere: direct"
                    .to_owned()
            }
            Self::NoContext { reason, .. } if reason.ends_with("does not exist") => {
                "set $KUBECONFIG, or use --kubeconfig".to_owned()
            }
            Self::NoContext { kubectl, .. } => format!("{kubectl} config use-context NAME, or set default_context"),
            Self::NoNamespace { context, kubectl, .. } => format!(
                "name the namespace, or correct the kubeconfig: {kubectl} config set-context {} --namespace NAME",
                quoted(context)
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use super::*;
    use crate::config::validate;

    fn router(text: &str) -> Router {
        let config = Arc::new(validate::parse(Path::new("c"), text.as_bytes()).unwrap());
        let contexts = Arc::new(Contexts {
            kubeconfig: Arc::new(config.http.kubeconfig.clone()),
            current: Some("dev".parse().unwrap()),
            namespaces: BTreeMap::from([
                ("dev".parse().unwrap(), Ok("team".parse().unwrap())),
                ("Prod".parse().unwrap(), Ok(Namespace::default())),
            ]),
            problem: None,
        });
        Router { config, http_contexts: contexts.clone(), tcp_contexts: contexts }
    }

    #[test]
    fn two_names_of_one_service_are_one_target() {
        let router = router("http: {k8s: {routes: {shop.localhost: {namespace: shop, service: web, port: 80}}}}\n");
        let one = router.http("Shop.localhost:8989").unwrap().target;
        assert_eq!(one, router.http("80.web.shop.localhost").unwrap().target);
        assert_eq!(one, router.http("web-80.svc.shop.ns.dev.cx.k8s.localhost").unwrap().target);
        assert_eq!(one.to_string(), "dev/shop/web:80");
    }

    #[test]
    fn what_is_left_out_comes_from_the_context() {
        let router =
            router("http: {k8s: {routes: {a.localhost: {service: a}, b.localhost: {service: b, context: Prod}}}}\n");
        let a = router.http("a.localhost").unwrap().target;
        let a = a.pods().unwrap().clone();
        assert_eq!(
            (a.to_string(), a.port, a.workload),
            ("dev/team/a".into(), PortRef::Auto, Workload::Service("a".parse().unwrap()))
        );
        assert_eq!(router.http("b.localhost").unwrap().target.to_string(), "Prod/default/b");
    }

    #[test]
    fn a_closed_context_has_routes_but_no_dynamic_names() {
        let router = router(
            "contexts: {p: {name: Prod, dynamic: deny}}\nhttp: {k8s: {routes: {a.localhost: {service: a, context: p}}}}\n",
        );
        assert!(router.http("a.localhost").is_ok());
        for host in
            ["web.shop.p.cx.localhost", "web.shop.prod.cx.localhost", "web-80.svc.shop.ns.prod.cx.k8s.localhost"]
        {
            assert_eq!(router.http(host).unwrap_err().code(), ErrorCode::DynamicDenied, "{host}");
        }
        assert!(router.http("web.shop.localhost").is_ok());
    }

    #[test]
    fn the_forward_proxy_knows_names_of_the_cluster_routes_and_jumps() {
        let router = router(
            "contexts: {p: {name: Prod, dynamic: deny}}\n\
             http: {k8s: {routes: {shop.test: {namespace: shop, service: web}}}}\n\
             tcp: {k8s: {jump: {15432: {namespace: shop, via: {service: socat}, target: {host: db.internal, port: 5432}}}}}\n",
        );
        let context_of = |text: Option<&str>| text.map(|text| text.parse::<ContextName>().unwrap());
        let target = |context, host, port| {
            router.forward(context_of(context).as_ref(), host, port).map(|route| route.target.to_string())
        };
        for (host, port, wanted) in [
            ("web.shop.svc.cluster.local.", 80, "dev/shop/web:80"),
            ("WEB.shop", 8080, "dev/shop/web:8080"),
            ("web", 443, "dev/team/web:443"),
            ("pg-0.pg.data.svc", 5432, "dev/data/pg/pg-0:5432"),
            ("web.shop.localhost", 80, "dev/shop/web"),
            ("web.shop.localhost", 8989, "dev/shop/web"),
            ("web.shop.localhost", 443, "dev/shop/web+https"),
            ("web.shop.localhost", 5432, "dev/shop/web:5432"),
            ("8080.web.shop.localhost", 80, "dev/shop/web:8080"),
            ("shop.test", 8080, "dev/shop/web:8080"),
            ("DB.internal", 5432, "dev/shop/socat->db.internal:5432"),
            ("10.0.0.1", 80, "dev/team/10.0.0.1:80"),
            ("fd00::1", 80, "dev/team/[fd00::1]:80"),
            ("10-0-0-5.shop.pod.cluster.local", 80, "dev/shop/10.0.0.5:80"),
        ] {
            assert_eq!(target(None, host, port).as_deref(), Ok(wanted), "{host}:{port}");
        }
        for (context, host, code) in [
            (None, "www.example.com", ErrorCode::Elsewhere),
            (None, "localhost", ErrorCode::Elsewhere),
            (None, "127.0.0.2", ErrorCode::Elsewhere),
            (None, "169.254.169.254", ErrorCode::Elsewhere),
            (None, "::ffff:127.0.0.1", ErrorCode::Elsewhere),
            (None, "fe80::1", ErrorCode::Elsewhere),
            (Some("p"), "10.0.0.1", ErrorCode::DynamicDenied),
            (Some("p"), "web.shop", ErrorCode::DynamicDenied),
            (Some("prod"), "web.shop.svc.cluster.local", ErrorCode::DynamicDenied),
        ] {
            assert_eq!(router.forward(context_of(context).as_ref(), host, 80).unwrap_err().code(), code, "{host}");
        }
        // A name without a context is in the client's context.
        for (host, wanted) in [
            ("web.shop.localhost", "other/shop/web"),
            ("web.shop.dev.cx.localhost", "dev/shop/web"),
            ("web.shop", "other/shop/web:80"),
        ] {
            assert_eq!(target(Some("other"), host, 80).as_deref(), Ok(wanted), "{host}");
        }
        let off = Router { config: Arc::new(Config { proxy: None, ..(*router.config).clone() }), ..router.clone() };
        assert_eq!(off.forward(None, "web.shop", 80).unwrap_err().code(), ErrorCode::Elsewhere);
    }

    #[test]
    fn the_ports_of_http_and_https_say_what_they_mean_where_adit_listens_on_them_too() {
        let router = router("http: {listen: [\"127.0.0.1:8989\", \"127.0.0.1:80\", \"127.0.0.1:443\"]}\n");
        for (port, wanted) in [(80, "dev/shop/web"), (443, "dev/shop/web+https"), (8989, "dev/shop/web")] {
            let route = router.forward(None, "web.shop.localhost", port).unwrap();
            assert_eq!(route.target.to_string(), wanted, "{port}");
        }
    }

    #[test]
    fn a_kubeconfig_whose_namespace_is_none_serves_names_that_say_theirs() {
        let mut router = router("http: {k8s: {routes: {a.localhost: {service: a}}}}\n");
        let mut contexts = (*router.http_contexts).clone();
        contexts.namespaces.insert("dev".parse().unwrap(), Namespace::new("../x"));
        router.http_contexts = Arc::new(contexts);
        assert!(router.http("web.shop.localhost").is_ok());
        for error in [router.http("a.localhost").unwrap_err(), router.forward(None, "web", 80).unwrap_err()] {
            assert_eq!(error.code(), ErrorCode::NoNamespace);
            assert!(error.to_string().contains("\"../x\" is not the name of a namespace"), "{error}");
            assert!(error.hint().unwrap().contains("kubectl config set-context dev --namespace"), "{error}");
        }
    }

    #[test]
    fn an_unknown_host_is_told_with_names_that_are_like_it() {
        let router = router("http: {k8s: {routes: {argocd.localhost: {service: a}}}}\n");
        let error = router.http("argo.localhost").unwrap_err();
        assert_eq!(error.to_string(), "no route for argo.localhost");
        assert_eq!(error.hint().unwrap(), "did you mean argocd.localhost? or use <service>.<namespace>.localhost");
    }

    #[test]
    fn tunnels_of_removed_routes_are_found() {
        let with = router("tcp: {k8s: {kubeconfig: /other, routes: {5432: {service: pg, context: x}}}}\n");
        let target = with.tcp("127.0.0.1:5432".parse().unwrap()).unwrap().target;
        assert!(with.leads_to(&target));
        assert!(!router("").leads_to(&target));
        let jump = router("tcp: {k8s: {jump: {1: {via: {pod: p}, target: {host: a, port: 1}}}}}\n");
        let target = jump.tcp("127.0.0.1:1".parse().unwrap()).unwrap().target;
        assert!(jump.leads_to(&target) && !router("").leads_to(&target), "no dynamic name is a jump");
        // In a context without dynamic names, the routes alone lead there, to any port through the forward proxy.
        let closed = "contexts: {p: {name: Prod, dynamic: deny}}\n";
        let with = router(&format!("{closed}http: {{k8s: {{routes: {{a.test: {{service: x, context: p}}}}}}}}\n"));
        let mut target = with.http("a.test").unwrap().target;
        if let Target::Pods(pods) = &mut target {
            Arc::make_mut(pods).port = PortRef::Number(9000.try_into().unwrap());
        }
        assert!(with.leads_to(&target) && !router(closed).leads_to(&target));
        let sni = "sni: {listen: \"127.0.0.1:0\", routes: {a.test: {k8s: {service: x, context: p}}, \
                   b.test: {command: {run: [ssh, \"{port}\"]}}}}\n";
        let with = router(&format!("{closed}{sni}"));
        for name in ["a.test", "b.test"] {
            let (route, _) = with.sni(name).unwrap();
            assert!(with.leads_to(&route.target) && !router(closed).leads_to(&route.target), "{name}");
        }
    }
}
