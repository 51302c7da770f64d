//! The changes that a reload makes, for the log and the API.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display},
    net::SocketAddr,
};

use super::{Config, Http, LocalPort, Sni, Tcp, TcpRoute};

/// A key of the file whose meaning has changed. It is displayed with `+` if it is new and `-` if it is gone:
/// `+http.k8s.routes.a.localhost`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    pub key: String,
    pub kind: ChangeKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    Added,
    Changed,
    Removed,
}

impl Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.kind {
            ChangeKind::Added => "+",
            ChangeKind::Changed => "",
            ChangeKind::Removed => "-",
        };
        write!(f, "{sign}{}", self.key)
    }
}

/// Returns the keys that differ between two configurations, sorted.
pub fn between(old: &Config, new: &Config) -> Vec<Change> {
    let mut diff = Diff::default();
    // The pattern names every field, so a new field does not compile until it is compared here.
    let Config {
        source: _,
        shown: _,
        notes: _,
        verbose,
        auto_reload,
        workers,
        exec_path,
        default_context,
        contexts,
        http,
        tcp,
        sni,
        local,
        proxy,
        admin,
        dashboard,
        audit,
    } = old;
    diff.value("verbose", verbose, &new.verbose);
    diff.value("auto_reload_config", auto_reload, &new.auto_reload);
    diff.value("workers", workers, &new.workers);
    diff.value("exec_path", exec_path, &new.exec_path);
    diff.value("default_context", default_context, &new.default_context);
    diff.map("contexts.", contexts, &new.contexts);
    diff.http(http, &new.http);
    diff.tcp(tcp, &new.tcp);
    match (sni, &new.sni) {
        (Some(old), Some(new)) => diff.sni(old, new),
        (old, new) => diff.presence("sni", old.is_some(), new.is_some()),
    }
    diff.map("local.", &by_name(local), &by_name(&new.local));
    diff.value("proxy", proxy, &new.proxy);
    diff.value("admin", admin, &new.admin);
    diff.value("dashboard", dashboard, &new.dashboard);
    diff.value("audit", audit, &new.audit);
    diff.0.into_iter().collect()
}

#[derive(Default)]
struct Diff(BTreeSet<Change>);

impl Diff {
    fn value<T: PartialEq>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            self.0.insert(Change { key: key.to_owned(), kind: ChangeKind::Changed });
        }
    }

    fn presence(&mut self, key: &str, was: bool, is: bool) {
        let kind = match (was, is) {
            (false, true) => ChangeKind::Added,
            (true, false) => ChangeKind::Removed,
            _ => return,
        };
        self.0.insert(Change { key: key.to_owned(), kind });
    }

    fn map<K: Ord + Display, T: PartialEq>(&mut self, prefix: &str, old: &BTreeMap<K, T>, new: &BTreeMap<K, T>) {
        for key in old.keys().chain(new.keys()) {
            let path = format!("{prefix}{key}");
            match (old.get(key), new.get(key)) {
                (Some(old), Some(new)) => self.value(&path, old, new),
                (old, new) => self.presence(&path, old.is_some(), new.is_some()),
            }
        }
    }

    fn http(&mut self, old: &Http, new: &Http) {
        let Http { listen, idle_timeout, kubeconfig, dynamic_host, proxy_protocol, routes } = old;
        self.value("http.listen", listen, &new.listen);
        self.value("http.idle_timeout", idle_timeout, &new.idle_timeout);
        self.value("http.proxy_protocol", proxy_protocol, &new.proxy_protocol);
        self.value("http.k8s.kubeconfig", kubeconfig, &new.kubeconfig);
        self.value("http.k8s.dynamic_host", dynamic_host, &new.dynamic_host);
        self.map("http.k8s.routes.", routes, &new.routes);
    }

    fn tcp(&mut self, old: &Tcp, new: &Tcp) {
        let Tcp { idle_timeout, proxy_protocol, kubeconfig, routes } = old;
        self.value("tcp.idle_timeout", idle_timeout, &new.idle_timeout);
        self.value("tcp.proxy_protocol", proxy_protocol, &new.proxy_protocol);
        self.value("tcp.k8s.kubeconfig", kubeconfig, &new.kubeconfig);
        self.map("tcp.k8s.", &by_port(routes), &by_port(&new.routes));
    }

    fn sni(&mut self, old: &Sni, new: &Sni) {
        let Sni { listen, proxy_protocol, allow_commands, routes } = old;
        self.value("sni.listen", listen, &new.listen);
        self.value("sni.proxy_protocol", proxy_protocol, &new.proxy_protocol);
        self.value("sni.allow_commands", allow_commands, &new.allow_commands);
        self.map("sni.routes.", routes, &new.routes);
    }
}

/// Returns routes and jumps by their keys in `tcp.k8s`, each with its listening address.
fn by_port(routes: &BTreeMap<SocketAddr, TcpRoute>) -> BTreeMap<String, (SocketAddr, &TcpRoute)> {
    let mut all = BTreeMap::new();
    for (address, route) in routes {
        let part = if route.destination.jump.is_some() { "jump" } else { "routes" };
        all.insert(format!("{part}.{}", address.port()), (*address, route));
    }
    all
}

/// Returns the local ports by port and relay: one port may be at several relays.
fn by_name(all: &[LocalPort]) -> BTreeMap<String, &LocalPort> {
    let name = |local: &LocalPort| format!("{} at {}", local.local_port, local.to);
    all.iter().map(|local| (name(local), local)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::validate::parse;

    fn config(text: &str) -> Config {
        parse(Path::new("c"), text.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
    }

    fn changes(old: &str, new: &str) -> Vec<String> {
        between(&config(old), &config(new)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_what_changed_is_named() {
        let old = "http: {listen: \"127.0.0.1:1\", k8s: {routes: {a: {service: x}, b: {service: y}}}}\n\
                   tcp: {k8s: {routes: {10: {service: x}, 11: {service: x}}}}\n";
        let new = "http: {listen: \"127.0.0.1:2\", k8s: {routes: {a: {service: x}, b: {service: z}}}}\n\
                   tcp: {k8s: {routes: {11: {service: x}, 12: {service: x}}}}\n";
        assert_eq!(changes(old, new), ["http.k8s.routes.b", "http.listen", "-tcp.k8s.routes.10", "+tcp.k8s.routes.12"]);
        assert_eq!(changes(old, old), <[&str; 0]>::default());
        assert_eq!(changes(old, &format!("# a comment\n{old}")), <[&str; 0]>::default());
    }

    #[test]
    fn every_part_of_the_file_is_compared() {
        let sni = "sni: {listen: \"127.0.0.1:1\", ";
        for (old, new, wanted) in [
            ("", "verbose: true", &["verbose"][..]),
            ("", "auto_reload_config: false", &["auto_reload_config"]),
            ("", "workers: 2", &["workers"]),
            ("", "exec_path: [/opt/bin]", &["exec_path"]),
            ("", "default_context: dev", &["default_context"]),
            ("", "dashboard: off", &["dashboard"]),
            ("", "audit: audit.jsonl", &["audit"]),
            ("", "admin: {listen: \"127.0.0.1:1\"}", &["admin"]),
            ("", "proxy: {elsewhere: direct}", &["proxy"]),
            ("contexts: {a: {name: x}}", "contexts: {a: {name: y}, b: {name: x}}", &["contexts.a", "+contexts.b"]),
            ("", "http: {idle_timeout: 1s}", &["http.idle_timeout"]),
            ("", "http: {proxy_protocol: require, trusted_proxies: [10.0.0.1]}", &["http.proxy_protocol"]),
            ("", "http: {k8s: {dynamic_host: a.test}}", &["http.k8s.dynamic_host"]),
            ("", "http: {k8s: {kubeconfig: /a}}", &["http.k8s.kubeconfig"]),
            (
                "http: {k8s: {routes: {a: {service: x}}}}",
                "http: {k8s: {routes: {a: {service: x, verify: true}}}}",
                &["http.k8s.routes.a"],
            ),
            ("", "tcp: {idle_timeout: 1s}", &["tcp.idle_timeout"]),
            ("", "tcp: {proxy_protocol: require, trusted_proxies: [10.0.0.1]}", &["tcp.proxy_protocol"]),
            ("", "tcp: {k8s: {kubeconfig: /a}}", &["tcp.k8s.kubeconfig"]),
            (
                "tcp: {k8s: {routes: {1: {service: x}}}}",
                "tcp: {k8s: {routes: {1: {service: x, listen: \"::1\"}}}}",
                &["tcp.k8s.routes.1"],
            ),
            (
                "tcp: {k8s: {jump: {1: {via: {pod: p}, target: {host: a, port: 1}}}}}",
                "tcp: {k8s: {jump: {1: {via: {pod: p}, target: {host: b, port: 1}}}}}",
                &["tcp.k8s.jump.1"],
            ),
            (
                "tcp: {k8s: {jump: {1: {via: {pod: p}, target: {host: a, port: 1}}}}}",
                "tcp: {k8s: {routes: {1: {pod: p}}}}",
                &["-tcp.k8s.jump.1", "+tcp.k8s.routes.1"],
            ),
            ("", &format!("{sni}}}"), &["+sni"]),
            (&format!("{sni}}}"), "", &["-sni"]),
            (&format!("{sni}}}"), "sni: {listen: \"127.0.0.1:2\"}", &["sni.listen"]),
            (
                &format!("{sni}}}"),
                &format!("{sni}proxy_protocol: require, trusted_proxies: [10.0.0.1]}}"),
                &["sni.proxy_protocol"],
            ),
            (&format!("{sni}}}"), &format!("{sni}allow_commands: true}}"), &["sni.allow_commands"]),
            (
                &format!("{sni}routes: {{a.test: {{command: {{run: [a, \"{{port}}\"]}}}}}}}}"),
                &format!("{sni}routes: {{a.test: {{command: {{run: [b, \"{{port}}\"]}}}}}}}}"),
                &["sni.routes.a.test"],
            ),
            (
                "local: [{port: 1, to: a.test}]",
                "local: [{port: 1, to: a.test, public_port: 5}, {port: 2, to: a.test}]",
                &["local.1 at a.test:7835", "+local.2 at a.test:7835"],
            ),
        ] {
            assert_eq!(changes(old, new), wanted, "{old:?} {new:?}");
        }
    }
}
