//! Normalised hosts, and static routes by host.

use std::{collections::BTreeMap, net::IpAddr};

use crate::config::near;

/// Longer hosts have no route, because the work for a host grows with the square of its length, and a Host header may have 64 KiB.
/// The longest dynamic name has about 500 bytes.
pub(super) const LONGEST_HOST: usize = 1024;

/// Returns a host in the form of route keys: lower case, without port or trailing dot.
///
/// Accepts Host headers (`Web.Localhost:8989`), SNI, and IPv6 literals (`[::1]:8989`, `::1`).
pub fn normalise(host: &str) -> String {
    let without_port = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        // More than one colon without brackets: an IPv6 address without a port.
        None if host.matches(':').count() > 1 => host,
        None => host.split(':').next().unwrap_or(host),
    };
    without_port.strip_suffix('.').unwrap_or(without_port).to_ascii_lowercase()
}

/// Returns whether a normalised host means this machine itself, which has no route.
pub fn is_own_name(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok()
}

/// Returns whether a normalised host means this machine wherever it is used, even by a client of the forward proxy.
pub fn is_here(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback() || address.is_unspecified())
}

/// Returns the key and the route of a normalised host: the exact one, else the longest matching `*.` wildcard. A
/// wildcard matches one or more labels.
pub fn find<'t, T>(routes: &'t BTreeMap<String, T>, host: &str) -> Option<(&'t str, &'t T)> {
    if host.len() > LONGEST_HOST {
        return None;
    }
    let bracketed = format!("[{host}]");
    let exact = routes.get_key_value(host).or_else(|| routes.get_key_value(&bracketed));
    let wildcard = || host.match_indices('.').find_map(|(at, _)| routes.get_key_value(&format!("*{}", &host[at..])));
    exact.or_else(wildcard).map(|(key, route)| (key.as_str(), route))
}

/// Returns up to three keys that are similar to `host`, most similar first.
pub fn near<T>(routes: &BTreeMap<String, T>, host: &str) -> Vec<String> {
    fn first(name: &str) -> &str {
        name.split('.').next().unwrap_or_default()
    }
    if host.len() > LONGEST_HOST {
        return Vec::new();
    }
    let keys = routes.keys().filter(|key| !key.starts_with("*."));
    near::near(first(host), keys, |key| first(key.as_str())).into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_of_64_kib_has_no_route() {
        let routes = BTreeMap::from([("*.localhost".to_owned(), ())]);
        assert!(find(&routes, &format!("{}localhost", "a.".repeat(500))).is_some());
        let long = format!("{}localhost", "a.".repeat(32_000));
        assert!(find(&routes, &long).is_none() && near(&routes, &long).is_empty());
    }

    fn routes() -> BTreeMap<String, u8> {
        [("argocd.localhost", 1), ("*.localhost", 2), ("*.shop.localhost", 3), ("[::1]", 4)]
            .map(|(key, value)| (key.to_owned(), value))
            .into()
    }

    #[test]
    fn case_port_and_trailing_dot_do_not_matter() {
        for host in ["ArgoCD.localhost", "argocd.localhost:8989", "argocd.localhost.", "argocd.localhost.:80"] {
            assert_eq!(find(&routes(), &normalise(host)), Some(("argocd.localhost", &1)), "{host}");
        }
        assert_eq!((normalise("[::1]:8989"), normalise("::1")), ("::1".into(), "::1".into()));
        assert_eq!(find(&routes(), "::1"), Some(("[::1]", &4)));
    }

    #[test]
    fn exact_routes_come_before_wildcards_and_long_ones_before_short_ones() {
        let value = |host: &str| find(&routes(), host).map(|(_, value)| *value);
        assert_eq!(
            [value("x.localhost"), value("x.shop.localhost"), value("y.x.shop.localhost"), value("shop.localhost")],
            [2, 3, 3, 2].map(Some)
        );
        assert_eq!(value("localhost"), None);
        assert_eq!(value("example.com"), None);
    }

    #[test]
    fn names_that_are_like_it_are_found() {
        assert_eq!(near(&routes(), "argo.localhost"), ["argocd.localhost"]);
        assert!(near(&routes(), "zzz.localhost").is_empty());
        assert!(is_own_name("127.0.0.1") && is_own_name("localhost") && !is_own_name("a.localhost"));
    }
}
