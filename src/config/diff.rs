//! Difference of two configurations, for the parts that act on a reload.

use std::{collections::BTreeSet, net::SocketAddr};

use super::Config;

/// The difference that a reload makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Addresses that are no longer, and newly, listened on for HTTP and TLS.
    pub http_removed: Vec<SocketAddr>,
    pub http_added: Vec<SocketAddr>,
    /// The same for TCP routes.
    pub tcp_removed: Vec<SocketAddr>,
    pub tcp_added: Vec<SocketAddr>,
    /// Names of routes that were added, removed, or lead elsewhere now.
    pub routes: BTreeSet<String>,
}

impl Diff {
    pub fn between(old: &Config, new: &Config) -> Self {
        let (http_removed, http_added) = changes(old.http.listen.iter(), new.http.listen.iter());
        let (tcp_removed, tcp_added) = changes(tcp_addresses(old), tcp_addresses(new));
        let hosts = old.http.routes.keys().chain(new.http.routes.keys());
        let ports = old.tcp.routes.keys().chain(new.tcp.routes.keys());
        let changed_hosts = hosts.filter(|host| old.http.routes.get(*host) != new.http.routes.get(*host)).cloned();
        let changed_ports =
            ports.filter(|port| old.tcp.routes.get(*port) != new.tcp.routes.get(*port)).map(SocketAddr::to_string);
        Self { http_removed, http_added, tcp_removed, tcp_added, routes: changed_hosts.chain(changed_ports).collect() }
    }
}

fn tcp_addresses(config: &Config) -> impl Iterator<Item = &SocketAddr> {
    config.tcp.routes.iter().flat_map(|(address, route)| [Some(address), route.also.as_ref()]).flatten()
}

fn changes<'a>(
    old: impl Iterator<Item = &'a SocketAddr>,
    new: impl Iterator<Item = &'a SocketAddr>,
) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (old.copied().collect(), new.copied().collect());
    (old.difference(&new).copied().collect(), new.difference(&old).copied().collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::validate::parse;

    #[test]
    fn only_what_changed_is_named() {
        let config = |text: &str| parse(Path::new("c"), text.as_bytes()).unwrap();
        let old = config(
            "http: {listen: \"127.0.0.1:1\", k8s: {routes: {a: {service: x}, b: {service: y}}}}\ntcp: {k8s: {routes: {10: {service: x}, 11: {service: x}}}}\n",
        );
        let new = config(
            "http: {listen: \"127.0.0.1:2\", k8s: {routes: {a: {service: x}, b: {service: z}}}}\ntcp: {k8s: {routes: {11: {service: x}, 12: {service: x}}}}\n",
        );
        let diff = Diff::between(&old, &new);
        assert_eq!(diff.http_added, ["127.0.0.1:2".parse().unwrap(), "[::1]:2".parse::<SocketAddr>().unwrap()]);
        assert_eq!(
            (diff.tcp_removed, diff.tcp_added),
            (crate::config::defaults::loopback(10), crate::config::defaults::loopback(12))
        );
        assert_eq!(diff.routes.into_iter().collect::<Vec<_>>(), ["127.0.0.1:10", "127.0.0.1:12", "b"]);
        assert_eq!(Diff::between(&old, &old), Diff::default());
    }
}
