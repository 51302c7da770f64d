//! The proxy auto-configuration (PAC) file for browsers: it names the hosts that go through adit.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};

use super::body::{Body, body_of};
use crate::{
    config::{Config, SniBackend, listen::of_this_machine},
    routing::{Router, table},
};

const PATH: &str = "/proxy.pac";

/// Host name of adit itself.
const HOST: &str = "adit.localhost";

/// Answers a request for the file. `None`: the request is for something else, or there is no forward proxy.
///
/// `host`: lower case, without port. `local`: the address at which the client has arrived.
pub fn answer<B>(request: &Request<B>, router: &Router, host: &str, local: SocketAddr) -> Option<Response<Body>> {
    let has_route = table::find(&router.config.http.routes, host).is_some();
    let is_ours = !has_route && (host == HOST || table::is_own_name(host));
    let is_asked = is_ours && request.uri().path() == PATH && matches!(*request.method(), Method::GET | Method::HEAD);
    let proxy = router.config.proxy.as_ref().filter(|_| is_asked)?;
    let at = of_this_machine(proxy.listen.first().copied().unwrap_or_else(|| listener(&router.config, local)));
    let body = if request.method() == Method::HEAD { String::new() } else { script(router, &proxy.cluster_domain, at) };
    let mut response = Response::new(body_of(body));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ns-proxy-autoconfig"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Otherwise a web page could load the file as a script, and read the namespaces.
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    Some(response)
}

/// Returns the address of the listener that has accepted a connection at `local`. On a listener on all addresses, `local` may be
/// an address inside a container that the browser cannot reach.
fn listener(config: &Config, local: SocketAddr) -> SocketAddr {
    let is_local = |listener: &&SocketAddr| listener.ip() == local.ip().to_canonical();
    match config.http.listen.iter().find(is_local) {
        Some(listener) => SocketAddr::new(listener.ip(), local.port()),
        None if local.ip().to_canonical().is_ipv4() => (Ipv4Addr::UNSPECIFIED, local.port()).into(),
        None => (Ipv6Addr::UNSPECIFIED, local.port()).into(),
    }
}

/// Returns the script, with the namespaces from the kubeconfig and the configuration.
fn script(router: &Router, cluster_domain: &str, at: SocketAddr) -> String {
    let of_contexts = router.http_contexts.namespaces.values().flatten().map(ToString::to_string);
    let of_aliases = router.config.contexts.values().filter_map(|alias| Some(alias.namespace.as_ref()?.to_string()));
    let routes = router.config.http.routes.values().map(|route| &route.destination);
    let routes = routes.chain(router.config.tcp.routes.values().map(|route| &route.destination));
    let of_sni =
        router.config.sni.iter().flat_map(|sni| sni.routes.values()).filter_map(|route| match &route.backend {
            SniBackend::Kubernetes(destination) => Some(&**destination),
            SniBackend::Command(_) => None,
        });
    let of_routes = routes.clone().chain(of_sni);
    let of_routes = of_routes.filter_map(|destination| Some(destination.namespace.as_ref()?.to_string()));
    let namespaces: BTreeSet<String> = of_contexts.chain(of_aliases).chain(of_routes).collect();
    let hosts: BTreeSet<String> =
        routes.filter_map(|destination| Some(destination.jump.as_ref()?.target.host.to_lowercase())).collect();
    let list = |names: Vec<String>| serde_json::Value::from(names).to_string();
    let suffixes = list(vec![".svc".to_owned(), format!(".svc.{cluster_domain}")]);
    let (namespaces, hosts) = (list(namespaces.into_iter().collect()), list(hosts.into_iter().collect()));
    format!(
        "// Names of the cluster go through adit, everything else does not.\n\
         var suffixes = {suffixes};\n\
         var namespaces = {namespaces};\n\
         var hosts = {hosts};\n\
         function FindProxyForURL(url, host) {{\n\
         \x20 var name = host.toLowerCase();\n\
         \x20 if (name.charAt(name.length - 1) === \".\") name = name.substring(0, name.length - 1);\n\
         \x20 var isOurs = hosts.indexOf(name) >= 0;\n\
         \x20 for (var i = 0; i < suffixes.length; i++) {{\n\
         \x20   var at = name.length - suffixes[i].length;\n\
         \x20   if (at > 0 && name.indexOf(suffixes[i], at) === at) isOurs = true;\n\
         \x20 }}\n\
         \x20 var labels = name.split(\".\");\n\
         \x20 if (labels.length === 2 && namespaces.indexOf(labels[1]) >= 0) isOurs = true;\n\
         \x20 return isOurs ? \"PROXY {at}\" : \"DIRECT\";\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::validate;

    #[test]
    fn the_proxy_is_where_the_client_has_arrived() {
        for (listen, local, wanted) in [
            ("127.0.0.1:8989", "127.0.0.1:8989", "127.0.0.1:8989"),
            ("127.0.0.77:8989", "127.0.0.77:8989", "127.0.0.77:8989"),
            ("[::1]:8989", "[::1]:8989", "[::1]:8989"),
            ("192.0.2.7:80", "192.0.2.7:80", "192.0.2.7:80"),
            ("0.0.0.0:8989", "172.17.0.2:8989", "127.0.0.1:8989"),
            ("[::]:8989", "[2001:db8::2]:8989", "[::1]:8989"),
            ("127.0.0.1:0", "127.0.0.1:40000", "127.0.0.1:40000"),
        ] {
            let text = format!("http: {{listen: '{listen}'}}\n");
            let config = validate::parse(std::path::Path::new("test.yaml"), text.as_bytes()).unwrap();
            let found = of_this_machine(listener(&config, local.parse().unwrap()));
            assert_eq!(found.to_string(), wanted, "{listen}");
        }
    }

    #[test]
    fn the_namespaces_of_every_kind_of_route_are_of_the_cluster() {
        let text = "http: {k8s: {routes: {a.localhost: {namespace: a, service: x}}}}\n\
                    tcp: {k8s: {routes: {10: {namespace: b, service: x}}}}\n\
                    sni: {listen: '127.0.0.1:0', routes: {c.test: {k8s: {namespace: c, service: x}}}}\n";
        let config = validate::parse(std::path::Path::new("test.yaml"), text.as_bytes()).unwrap();
        let contexts = std::sync::Arc::<crate::routing::Contexts>::default();
        let router = Router { config: config.into(), http_contexts: contexts.clone(), tcp_contexts: contexts };
        let script = script(&router, "cluster.local", "127.0.0.1:1".parse().unwrap());
        assert!(script.contains("var namespaces = [\"a\",\"b\",\"c\"];"), "{script}");
    }
}
