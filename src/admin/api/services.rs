//! Routes and Services that can be reached, with the URL of each.

use std::{fmt, net::SocketAddr};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{
    FORMAT,
    answers::{Problem, Service, Services},
};
use crate::{
    config::{ContextName, Namespace, PortRef, Workload},
    k8s::{
        ClusterError, ServicePort,
        client::Clusters,
        list::{self, Listed},
        ports::choose_port,
    },
    routing::{ClusterId, Router, Target, hostname::DynamicName},
};

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// None: the one of names that give none.
    pub context: Option<String>,
    /// None: all.
    pub namespace: Option<String>,
}

impl Query {
    /// Reads the query of a URL; keys that are not known are passed over.
    pub fn parse(query: &str) -> Self {
        let value = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let (_, value) = pairs.into_iter().find(|(key, _)| *key == name)?;
            Some(percent_decode_str(value).decode_utf8_lossy().into_owned()).filter(|value| !value.is_empty())
        };
        Self { context: value("context"), namespace: value("namespace") }
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = [("context", &self.context), ("namespace", &self.namespace)];
        let pairs = pairs.iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
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

/// Lists the routes of the configuration, then the Services of a context; why those are not there is one of the problems.
pub async fn list(clusters: &Clusters, router: &Router, query: &Query) -> Services {
    let listener = router.config.http.listen.first().map_or(0, SocketAddr::port);
    let mut services = routes(router, listener);
    let contexts = &router.http_contexts;
    let context = match &query.context {
        Some(name) => {
            Some(router.config.contexts.get(name).map_or_else(|| ContextName(name.clone()), |alias| alias.name.clone()))
        }
        None => router.config.default_context.clone().or_else(|| contexts.current.clone()),
    };
    let Some(context) = context else {
        let problem = Problem {
            code: Some("no-context".to_owned()),
            message: "the kubeconfig has no current context".to_owned(),
            cause: contexts.problem.clone(),
            hint: Some("kubectl config use-context NAME, or use --context".to_owned()),
            may_pass: false,
        };
        return Services { format: FORMAT, services, problems: vec![problem] };
    };
    let named = named_context(router, &context);
    let id = ClusterId { kubeconfig: contexts.kubeconfig.clone(), context };
    let namespace = query.namespace.clone().map(Namespace);
    let listing = async {
        let cluster = clusters.get(&id).await?;
        list::services(&cluster, namespace.as_ref()).await
    };
    match listing.await {
        Ok(found) => {
            let rows = found.iter().flat_map(|service| rows(service, &id.context, named.as_deref(), listener));
            services.extend(rows);
            Services { format: FORMAT, services, problems: Vec::new() }
        }
        Err(error) => Services { format: FORMAT, services, problems: vec![Problem::from(&error)] },
    }
}

/// Returns how a hostname has to name a context. None: it is the one that names without a context mean.
pub fn named_context(router: &Router, context: &ContextName) -> Option<String> {
    let default = router.config.default_context.as_ref().or(router.http_contexts.current.as_ref());
    if default == Some(context) {
        return None;
    }
    let alias = router.config.contexts.iter().find(|(_, alias)| alias.name == *context);
    Some(alias.map_or_else(|| context.to_string(), |(alias, _)| alias.clone()))
}

fn routes(router: &Router, listener: u16) -> Vec<Service> {
    let place = |target: &Target| {
        let pods = target.pods();
        (pods.map(|pods| pods.cluster.context.to_string()), pods.map(|pods| pods.namespace.to_string()))
    };
    let row =
        |name: String, url: String, from: &str, route: Result<crate::routing::Route, crate::routing::RouteError>| {
            let (leads_to, (context, namespace)) = match route {
                Ok(route) => (route.target.to_string(), place(&route.target)),
                Err(error) => (error.to_string(), (None, None)),
            };
            Service { name, port: None, url, leads_to, from: from.to_owned(), context, namespace }
        };
    let http = router.config.http.routes.keys();
    let http = http.map(|host| row(host.clone(), format!("http://{host}:{listener}/"), "http", router.http(host)));
    let tcp = router.config.tcp.routes.keys();
    let tcp = tcp.map(|address| row(address.to_string(), format!("tcp://{address}"), "tcp", router.tcp(*address)));
    http.chain(tcp).collect()
}

fn rows(service: &Listed, context: &ContextName, named: Option<&str>, listener: u16) -> Vec<Service> {
    let obvious = choose_port(&service.ports, &PortRef::Auto).map(|port| port.number);
    let row = |port: &ServicePort| Service {
        name: format!("{}/{}", service.namespace, service.name),
        port: Some(port.to_string()),
        url: url(
            &service.namespace,
            &service.name,
            (obvious != Some(port.number)).then_some(port.number),
            named,
            listener,
        ),
        leads_to: format!("{}/{}:{}", service.namespace, service.name, port.number),
        from: "service".to_owned(),
        context: Some(context.to_string()),
        namespace: Some(service.namespace.to_string()),
    };
    service.ports.iter().map(row).collect()
}

/// Returns the URL of a Service by its short name. `context`: as a hostname names it; None: the one that is meant where none
/// is named.
pub fn url(namespace: &Namespace, service: &str, port: Option<u16>, context: Option<&str>, listener: u16) -> String {
    let name = DynamicName {
        context: context.map(str::to_owned),
        namespace: namespace.clone(),
        workload: Workload::Service(service.to_owned()),
        port: port.map_or(PortRef::Auto, PortRef::Number),
    };
    format!("http://{name}:{listener}/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded() {
        let query = Query::parse("namespace=shop&x&context=a%2Fb%26c&namespace=");
        assert_eq!(query, Query { context: Some("a/b&c".into()), namespace: Some("shop".into()) });
        assert_eq!(Query::parse("namespace="), Query::default());
        let query = Query { context: Some("arn:aws/é&=x".into()), namespace: None };
        assert_eq!(Query::parse(&query.to_string()), query);
    }
}
