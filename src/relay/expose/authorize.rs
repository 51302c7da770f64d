//! Rules for the Services that a key may take over.

use super::{ExposeRequest, ServiceName};
use crate::relay::{
    auth::Key,
    pattern::{matches, names},
};

/// Namespace that a key must name explicitly, as it must the relay's own.
const SYSTEM: &str = "kube-system";

/// Service of the API server.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// Reasons why a key may not take over a Service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("this relay takes over Services in namespace \"{0}\" only")]
    Elsewhere(String),
    #[error(
        "the key \"{key}\" may not take over Service {service}, which {why}: an administrator of the relay can add \
         'services={service}' to the key"
    )]
    Protected { key: String, service: ServiceName, why: &'static str },
    #[error(
        "the key \"{key}\" may not take over Service {service}: an administrator of the relay can add 'services={service}' to the \
         key"
    )]
    NotNamed { key: String, service: ServiceName },
}

/// Rules of a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Namespace of the relay.
    pub own_namespace: String,
    /// The only namespace whose Services may be taken over. `None`: all namespaces; the relay's own only if a key names
    /// it.
    pub only: Option<String>,
}

impl Rules {
    /// # Errors
    /// Fails if the rules or the key do not allow it.
    pub fn check(&self, key: &Key, request: &ExposeRequest) -> Result<(), Denied> {
        let service = &request.service;
        if let Some(only) = self.only.as_ref().filter(|only| **only != service.namespace) {
            return Err(Denied::Elsewhere(only.clone()));
        }
        let name = (service.namespace.as_str(), service.name.as_str());
        let is_api_server = name == API_SERVER;
        let is_own = service.namespace == self.own_namespace && self.only.is_none();
        let why = match () {
            () if is_api_server => Some("is the API server's"),
            () if service.namespace == SYSTEM => Some("is in a namespace of the cluster itself"),
            () if is_own => Some("is in the relay's own namespace"),
            () => None,
        };
        let denied = (key.name.clone(), service.clone());
        match (why, key.services.is_empty()) {
            (Some(why), _) => {
                let names = |pattern: &String| names(pattern, name, is_api_server) && matches(pattern, name);
                match key.services.iter().any(names) {
                    true => Ok(()),
                    false => Err(Denied::Protected { key: denied.0, service: denied.1, why }),
                }
            }
            // A key with limits on ports or names must not get all Services by default.
            (None, true) if key.ports.is_empty() && key.names.is_empty() => Ok(()),
            (None, _) if key.services.iter().any(|pattern| matches(pattern, name)) => Ok(()),
            (None, _) => Err(Denied::NotNamed { key: denied.0, service: denied.1 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::auth::parse_keys;

    fn allowed(key: &str, service: &str, only: Option<&str>) -> bool {
        let key = parse_keys(&format!("ana 0123456789abcdef {key}")).unwrap().remove(0);
        let rules = Rules { own_namespace: "relay".into(), only: only.map(str::to_owned) };
        let request = ExposeRequest::parse(service, true, "ana".into()).unwrap();
        rules.check(&key, &request).is_ok()
    }

    #[test]
    fn a_key_takes_over_the_services_that_it_names() {
        for (key, service, is_allowed) in [
            ("", "web.shop:80", true),
            ("services=shop/web", "web.shop:80", true),
            ("services=shop/web", "web2.shop:80", false),
            ("services=shop/web", "web.shop2:80", false),
            ("services=shop/web*,data/*", "web2.shop:80", true),
            ("services=shop/web*,data/*", "postgres.data:5432", true),
            ("services=ana-*/*", "web.ana-1:80", true),
            ("services=ana-*/*", "web.shop:80", false),
            ("ports=20000-20010", "web.shop:80", false),
            ("names=ana-*", "web.shop:80", false),
            ("names=ana-* services=shop/*", "web.shop:80", true),
        ] {
            assert_eq!(allowed(key, service, None), is_allowed, "{key} {service}");
        }
    }

    #[test]
    fn what_the_cluster_and_the_relay_live_on_has_to_be_named() {
        for (key, service, is_allowed) in [
            ("", "kube-dns.kube-system:53", false),
            ("services=*/*", "kube-dns.kube-system:53", false),
            ("services=kube-*/*", "kube-dns.kube-system:53", false),
            ("services=kube-system/kube-dns", "kube-dns.kube-system:53", true),
            ("services=kube-system/*", "kube-dns.kube-system:53", true),
            ("", "kubernetes.default:443", false),
            ("services=default/*", "kubernetes.default:443", false),
            ("services=default/kubernetes", "kubernetes.default:443", true),
            ("", "web.default:80", true),
            ("", "relay-control.relay:7835", false),
            ("services=*/*", "relay-control.relay:7835", false),
            ("services=relay/relay-control", "relay-control.relay:7835", true),
        ] {
            assert_eq!(allowed(key, service, None), is_allowed, "{key} {service}");
        }
        assert!(allowed("", "web.relay:80", Some("relay")), "a relay for its own namespace alone");
        assert!(!allowed("services=*/*", "web.shop:80", Some("relay")));
    }
}
