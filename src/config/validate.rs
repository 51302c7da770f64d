//! From the file's tree to the configuration, with every problem named.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{HeaderName, HeaderValue};

use crate::wire::proxy_protocol;

use super::{
    BackendTls, Command, CommandMode, Config, ContextAlias, ContextName, Destination, Expose, HeaderRules, HttpOptions,
    HttpRoute, Jump, JumpMethod, JumpPod, Namespace, PortRef, ProxyProtocol, Scheme, Sni, SniBackend, SniRoute,
    TcpRoute, Workload, defaults,
    file::{self, Key, Node, Place, Value},
    names::{is_host, is_image, is_label, is_port_name, parse_duration, similar},
    problem::{LoadError, Problem},
};

pub(super) const ROOT: &[&str] = &[
    "apiVersion",
    "verbose",
    "auto_reload_config",
    "exec_path",
    "default_context",
    "contexts",
    "http",
    "tcp",
    "sni",
    "expose",
    "admin",
];
pub(super) const CONTEXT: &[&str] = &["name", "namespace", "dynamic"];
pub(super) const HTTP: &[&str] = &["listen", "idle_timeout", "proxy_protocol", "trusted_proxies", "k8s"];
pub(super) const HTTP_K8S: &[&str] = &["kubeconfig", "dynamic_host", "routes"];
pub(super) const HTTP_ROUTE: &[&str] = &[
    "context",
    "namespace",
    "service",
    "pod",
    "port",
    "via",
    "target",
    "method",
    "scheme",
    "idle_timeout",
    "verify",
    "ca",
    "server_name",
    "client_cert",
    "client_key",
    "headers",
    "rewrite_host",
    "rewrite_location",
    "allow_origins",
];
pub(super) const HEADERS: &[&str] = &["request", "response", "set", "remove"];
pub(super) const HEADER_RULES: &[&str] = &["set", "remove"];
pub(super) const ADMIN: &[&str] = &["listen"];
pub(super) const TCP: &[&str] = &["idle_timeout", "proxy_protocol", "trusted_proxies", "k8s"];
pub(super) const EXPOSE: &[&str] =
    &["port", "to", "secret_file", "fingerprint", "ca", "local_host", "public_port", "name"];
pub(super) const SNI: &[&str] = &[
    "listen",
    "idle_timeout",
    "startup_timeout",
    "port_range",
    "proxy_protocol",
    "trusted_proxies",
    "allow_commands",
    "cloudflared",
    "routes",
];
pub(super) const CLOUDFLARED: &[&str] = &["path", "service_token_id_env", "service_token_secret_env"];
pub(super) const SNI_ROUTE: &[&str] = &["cloudflared", "command", "k8s", "send_proxy", "idle_timeout"];
pub(super) const SNI_CLOUDFLARED: &[&str] = &["hostname"];
pub(super) const COMMAND: &[&str] = &["run", "mode", "env", "env_from"];
pub(super) const SNI_K8S: &[&str] = &["context", "namespace", "service", "pod", "port"];
pub(super) const TCP_K8S: &[&str] = &["kubeconfig", "routes", "jump"];
pub(super) const TCP_ROUTE: &[&str] = &["context", "namespace", "service", "pod", "port", "listen", "idle_timeout"];
pub(super) const JUMP: &[&str] = &["context", "namespace", "via", "target", "method"];
pub(super) const VIA: &[&str] = &["service", "pod", "container", "create"];
pub(super) const CREATE: &[&str] = &["image", "command", "timeout"];
pub(super) const TARGET: &[&str] = &["host", "port"];

/// Where a relay listens.
const RELAY_PORT: u16 = 7835;

/// Loads a file.
///
/// # Errors
/// The file cannot be read, or it has problems: all of them.
pub fn load(file: &Path) -> Result<Config, LoadError> {
    let bytes = fs::read(file).map_err(|error| unreadable(file, &error))?;
    parse(file, &bytes)
}

fn unreadable(file: &Path, error: &io::Error) -> LoadError {
    let hint = (error.kind() == io::ErrorKind::NotFound).then(|| "'adit init' writes one".to_owned());
    let problem = Problem { path: String::new(), place: Place::default(), message: error.to_string(), hint };
    LoadError { file: file.to_owned(), problems: vec![problem], text: String::new() }
}

/// Makes a configuration of a file's content. `file` is where it came from.
///
/// # Errors
/// See [`load`].
pub fn parse(file: &Path, bytes: &[u8]) -> Result<Config, LoadError> {
    let fail =
        |problems: Vec<Problem>, text: &str| LoadError { file: file.to_owned(), problems, text: text.to_owned() };
    let whole = |message: &str| Problem {
        path: String::new(),
        place: Place::default(),
        message: message.to_owned(),
        hint: None,
    };
    if bytes.len() > file::LARGEST {
        return Err(fail(vec![whole("the file is larger than 1 MiB")], ""));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return Err(fail(vec![whole("the file is not UTF-8 text")], "")) };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let node = file::parse(text).map_err(|problems| fail(problems, text))?;
    let mut walk = Walk::default();
    let mut config = walk.root(&node);
    config.source = Some(file.to_owned());
    walk.problems.sort_by_key(|problem| problem.place);
    if walk.problems.is_empty() { Ok(config) } else { Err(fail(walk.problems, text)) }
}

/// Collects problems on the way through the tree.
#[derive(Default)]
struct Walk {
    problems: Vec<Problem>,
    path: Vec<String>,
}

impl Walk {
    fn root(&mut self, node: &Node) -> Config {
        let mut config = defaults::config();
        let Some(map) = self.map(node, ROOT) else { return config };
        if let Some(version) = map.get("apiVersion") {
            self.at("apiVersion", |walk| {
                let text = walk.text(version);
                if text.as_deref().is_some_and(|text| !matches!(text, "adit/v1" | "autotunnel/v1")) {
                    walk.wrong::<()>(version, "adit/v1 or autotunnel/v1", None);
                }
            });
        }
        config.verbose = self.field(&map, "verbose", Self::boolean).unwrap_or(config.verbose);
        config.auto_reload = self.field(&map, "auto_reload_config", Self::boolean).unwrap_or(config.auto_reload);
        config.exec_path = self.field(&map, "exec_path", Self::folders).unwrap_or_default();
        config.contexts = self.field(&map, "contexts", Self::contexts).unwrap_or_default();
        let default_context = self.field(&map, "default_context", Self::text);
        config.default_context = default_context.map(|name| context(&config, name));
        self.field(&map, "http", |walk, node| walk.http(node, &mut config).then_some(()));
        self.field(&map, "tcp", |walk, node| walk.tcp(node, &mut config).then_some(()));
        self.field(&map, "sni", |walk, node| {
            config.sni = walk.sni(node, &config);
            Some(())
        });
        config.expose = self.field(&map, "expose", Self::exposed).unwrap_or_default();
        self.field(&map, "admin", |walk, node| {
            let map = walk.map(node, ADMIN)?;
            config.admin.listen = walk.field(&map, "listen", Self::admin_listen);
            Some(())
        });
        config
    }

    fn contexts(&mut self, node: &Node) -> Option<BTreeMap<String, ContextAlias>> {
        let entries = self.entries(node)?;
        let mut contexts = BTreeMap::new();
        for (key, value) in entries {
            self.at(&quoted(&key.name), |walk| {
                if !is_label(&key.name) {
                    walk.problem(
                        key.place,
                        "an alias has to be a part of a hostname: lower-case letters, digits and hyphens",
                        None,
                    );
                }
                let Some(map) = walk.map(value, CONTEXT) else { return };
                let name = walk.field(&map, "name", Self::text);
                if name.is_none() && !map.contains_key("name") {
                    walk.problem(
                        key.place,
                        "name is missing",
                        Some("give the context's name in the kubeconfig: kubectl config get-contexts"),
                    );
                }
                let namespace = walk.field(&map, "namespace", Self::namespace);
                let dynamic = walk.field(&map, "dynamic", |walk, node| match walk.text(node)?.as_str() {
                    "allow" => Some(true),
                    "deny" => Some(false),
                    _ => walk.wrong(node, "allow or deny", None),
                });
                let name = ContextName(name.unwrap_or_default());
                contexts.insert(key.name.clone(), ContextAlias { name, namespace, dynamic: dynamic.unwrap_or(true) });
            });
        }
        Some(contexts)
    }

    fn http(&mut self, node: &Node, config: &mut Config) -> bool {
        let Some(map) = self.map(node, HTTP) else { return false };
        if let Some(listen) = self.field(&map, "listen", Self::listen) {
            config.http.listen = listen;
        }
        config.http.idle_timeout = self.field(&map, "idle_timeout", Self::duration).unwrap_or(config.http.idle_timeout);
        config.http.proxy_protocol = self.proxy_protocol(&map, node);
        let idle_timeout = config.http.idle_timeout;
        self.field(&map, "k8s", |walk, node| {
            let map = walk.map(node, HTTP_K8S)?;
            if let Some(list) = walk.field(&map, "kubeconfig", Self::path_list) {
                config.http.kubeconfig = defaults::kubeconfig_paths(Some(&list));
            }
            if let Some(host) = walk.field(&map, "dynamic_host", Self::host) {
                config.http.dynamic_host = host;
            }
            let entries = walk.field(&map, "routes", Self::entries)?;
            for (key, value) in entries {
                walk.at_child("routes", &quoted(&key.name), |walk| {
                    let host = walk.route_host(&key.name, key.place);
                    let Some(map) = walk.map(value, HTTP_ROUTE) else { return };
                    let destination = match map.contains_key("via") || map.contains_key("target") {
                        true => walk.jump(&map, value, config),
                        false => walk.destination(&map, value, config),
                    };
                    let idle_timeout = walk.field(&map, "idle_timeout", Self::duration).unwrap_or(idle_timeout);
                    let options = Arc::new(walk.http_options(&map, value));
                    if let (Some(host), Some(destination)) = (host, destination) {
                        let route = HttpRoute { destination, idle_timeout, options };
                        if config.http.routes.insert(host, route).is_some() {
                            walk.problem(
                                key.place,
                                "this host has a route already: upper and lower case are the same",
                                None,
                            );
                        }
                    }
                });
            }
            Some(())
        });
        true
    }

    fn tcp(&mut self, node: &Node, config: &mut Config) -> bool {
        let Some(map) = self.map(node, TCP) else { return false };
        config.tcp.idle_timeout = self.field(&map, "idle_timeout", Self::duration).unwrap_or(config.tcp.idle_timeout);
        config.tcp.proxy_protocol = self.proxy_protocol(&map, node);
        let idle_timeout = config.tcp.idle_timeout;
        self.field(&map, "k8s", |walk, node| {
            let map = walk.map(node, TCP_K8S)?;
            config.tcp.kubeconfig = match walk.field(&map, "kubeconfig", Self::path_list) {
                Some(list) => defaults::kubeconfig_paths(Some(&list)),
                None => config.http.kubeconfig.clone(),
            };
            let mut taken: BTreeMap<SocketAddr, String> =
                config.http.listen.iter().map(|address| (*address, "http.listen".to_owned())).collect();
            for (key, value) in walk.field(&map, "routes", Self::entries).unwrap_or_default() {
                walk.at_child("routes", &key.name, |walk| {
                    let port = walk.port_number(&key.name, key.place);
                    let Some(map) = walk.map(value, TCP_ROUTE) else { return };
                    let destination = walk.destination(&map, value, config);
                    let idle = walk.field(&map, "idle_timeout", Self::duration).unwrap_or(idle_timeout);
                    let ip = walk.field(&map, "listen", Self::listen_ip).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
                    let Some(port) = port else { return };
                    let address = SocketAddr::new(ip, port);
                    walk.claim(&mut taken, address, key.place, format!("tcp.k8s.routes.{port}"));
                    if let Some(destination) = destination {
                        config.tcp.routes.insert(address, TcpRoute { destination, idle_timeout: idle });
                    }
                });
            }
            for (key, value) in walk.field(&map, "jump", Self::entries).unwrap_or_default() {
                walk.at_child("jump", &key.name, |walk| {
                    let port = walk.port_number(&key.name, key.place);
                    let jump = walk.map(value, JUMP).and_then(|map| walk.jump(&map, value, config));
                    let Some(port) = port else { return };
                    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
                    walk.claim(&mut taken, address, key.place, format!("tcp.k8s.jump.{port}"));
                    if let Some(destination) = jump {
                        let idle_timeout = config.tcp.idle_timeout;
                        config.tcp.routes.insert(address, TcpRoute { destination, idle_timeout });
                    }
                });
            }
            Some(())
        });
        true
    }

    /// Two listeners cannot share an address; one on every address takes the port from all.
    fn claim(&mut self, taken: &mut BTreeMap<SocketAddr, String>, address: SocketAddr, place: Place, owner: String) {
        let clash = taken.iter().find(|(other, _)| {
            other.port() == address.port()
                && (other.ip() == address.ip() || other.ip().is_unspecified() || address.ip().is_unspecified())
        });
        match clash {
            Some((_, other)) => {
                let message = format!("port {} is used by {other} already", address.port());
                self.problem(place, &message, Some("choose another local port"));
            }
            None => {
                taken.insert(address, owner);
            }
        }
    }

    fn sni(&mut self, node: &Node, config: &Config) -> Option<Sni> {
        let map = self.map(node, SNI)?;
        let idle_timeout = self.field(&map, "idle_timeout", Self::duration).unwrap_or(Duration::from_secs(10 * 60));
        let startup_timeout = self.field(&map, "startup_timeout", Self::duration).unwrap_or(Duration::from_secs(15));
        let ports = self.field(&map, "port_range", Self::port_range).unwrap_or((20_000, 20_999));
        let (mut path, mut env_from) = ("cloudflared".to_owned(), BTreeMap::new());
        self.field(&map, "cloudflared", |walk, node| {
            let map = walk.map(node, CLOUDFLARED)?;
            path = walk.field(&map, "path", Self::text).unwrap_or(path.clone());
            for (key, name) in [
                ("service_token_id_env", "TUNNEL_SERVICE_TOKEN_ID"),
                ("service_token_secret_env", "TUNNEL_SERVICE_TOKEN_SECRET"),
            ] {
                if let Some(ours) = walk.field(&map, key, Self::text) {
                    env_from.insert(name.to_owned(), ours);
                }
            }
            Some(())
        });
        let listen = self.required(&map, node, "listen", Self::listen);
        let proxy_protocol = self.proxy_protocol(&map, node);
        let allow_commands = self.field(&map, "allow_commands", Self::boolean).unwrap_or(false);
        let mut routes = BTreeMap::new();
        for (key, value) in self.field(&map, "routes", Self::entries).unwrap_or_default() {
            self.at_child("routes", &quoted(&key.name), |walk| {
                let name = walk.route_host(&key.name, key.place);
                let Some(map) = walk.map(value, SNI_ROUTE) else { return };
                if ["cloudflared", "command", "k8s"].iter().filter(|key| map.contains_key(**key)).count() != 1 {
                    let hint = "give one of them: what the name leads to";
                    walk.problem(value.place, "expected one of cloudflared, command and k8s", Some(hint));
                }
                let of_command = |run, mode, env, env_from| {
                    SniBackend::Command(Arc::new(Command { run, mode, env, env_from, startup_timeout, ports }))
                };
                let mut backend = walk.field(&map, "cloudflared", |walk, node| {
                    let map = walk.map(node, SNI_CLOUDFLARED)?;
                    let hostname = walk.required(&map, node, "hostname", Self::host)?;
                    let words = ["access", "tcp", "--hostname", &hostname, "--url", "127.0.0.1:{port}"];
                    let run = [path.clone()].into_iter().chain(words.map(str::to_owned)).collect();
                    Some(of_command(run, CommandMode::Listen, BTreeMap::new(), env_from.clone()))
                });
                if let Some(command) = walk.field(&map, "command", |walk, node| {
                    let map = walk.map(node, COMMAND)?;
                    let run = walk.required(&map, node, "run", Self::words);
                    let mode = walk.field(&map, "mode", |walk, node| match walk.text(node)?.as_str() {
                        "listen" => Some(CommandMode::Listen),
                        "stdio" => Some(CommandMode::Stdio),
                        _ => walk.wrong(node, "listen or stdio", None),
                    });
                    let (env, from) =
                        (walk.field(&map, "env", Self::variables), walk.field(&map, "env_from", Self::variables));
                    let (run, mode) = (run?, mode.unwrap_or(CommandMode::Listen));
                    let has_port = run.iter().skip(1).any(|word| word.contains("{port}"));
                    let wrong = match (run.is_empty(), mode, has_port) {
                        (true, ..) => Some("the command is empty"),
                        (_, CommandMode::Listen, false) => Some("none of the words has {port}, the port to listen on"),
                        (_, CommandMode::Stdio, true) => Some("{port} has no meaning where mode is stdio"),
                        _ => None,
                    };
                    if let Some(wrong) = wrong {
                        walk.problem(
                            node.place,
                            wrong,
                            Some("write run: [ssh, -N, -L, \"127.0.0.1:{port}:db:5432\", bastion]"),
                        );
                        return None;
                    }
                    Some(of_command(run, mode, env.unwrap_or_default(), from.unwrap_or_default()))
                }) {
                    backend = Some(command);
                }
                if let Some(destination) = walk.field(&map, "k8s", |walk, node| {
                    let map = walk.map(node, SNI_K8S)?;
                    walk.destination(&map, node, config)
                }) {
                    backend = Some(SniBackend::Kubernetes(Box::new(destination)));
                }
                let send_proxy = walk.field(&map, "send_proxy", |walk, node| match walk.text(node)?.as_str() {
                    "v1" => Some(proxy_protocol::Version::V1),
                    "v2" => Some(proxy_protocol::Version::V2),
                    _ => walk.wrong(node, "v1 or v2", None),
                });
                let idle_timeout = walk.field(&map, "idle_timeout", Self::duration).unwrap_or(idle_timeout);
                if let (Some(name), Some(backend)) = (name, backend) {
                    routes.insert(name, SniRoute { backend, send_proxy, idle_timeout });
                }
            });
        }
        Some(Sni { listen: listen?, proxy_protocol, allow_commands, routes })
    }

    fn exposed(&mut self, node: &Node) -> Option<Vec<Expose>> {
        let Value::List(list) = &node.value else {
            return self.wrong(node, "a list", Some("write expose: [{port: 3000, to: relay.example.com}]"));
        };
        let mut all = Vec::new();
        for node in list {
            let map = self.map(node, EXPOSE)?;
            let port = |walk: &mut Self, node: &Node| {
                let text = walk.text(node)?;
                walk.port_number(&text, node.place)
            };
            let local_port = self.required(&map, node, "port", port);
            let public_port = self.field(&map, "public_port", port).unwrap_or(0);
            let to = self.required(&map, node, "to", |walk, node| {
                let text = walk.text(node)?;
                let (host, port) = match text.rsplit_once(':') {
                    Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()),
                    _ => (text.as_str(), Some(RELAY_PORT)),
                };
                let plain = host.trim_matches(['[', ']']);
                let is_known = plain.parse::<IpAddr>().is_ok() || is_host(&plain.to_ascii_lowercase());
                match port.filter(|port| is_known && *port > 0) {
                    Some(port) => Some((plain.to_owned(), port)),
                    None => walk.wrong(node, "a relay", Some("write relay.example.com, or relay.example.com:7835")),
                }
            });
            let expose = Expose {
                to: to?,
                secret_file: self.field(&map, "secret_file", Self::file),
                fingerprint: self.field(&map, "fingerprint", Self::text),
                ca: self.field(&map, "ca", Self::file),
                local_host: self.field(&map, "local_host", Self::text).unwrap_or_else(|| "127.0.0.1".to_owned()),
                local_port: local_port?,
                public_port,
                name: self.field(&map, "name", Self::label),
            };
            if expose.name.is_some() && expose.public_port != 0 {
                self.problem(node.place, "both name and public_port are given", Some("a name has no port of its own"));
            }
            all.push(expose);
        }
        Some(all)
    }

    fn variables(&mut self, node: &Node) -> Option<BTreeMap<String, String>> {
        let mut variables = BTreeMap::new();
        for (key, value) in self.entries(node)? {
            variables.insert(key.name.clone(), self.text(value)?);
        }
        Some(variables)
    }

    fn port_range(&mut self, node: &Node) -> Option<(u16, u16)> {
        let text = self.text(node)?;
        let range = text
            .split_once('-')
            .and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)));
        match range {
            Some((first, last)) if first > 0 && first <= last => Some((first, last)),
            _ => self.wrong(node, "two ports", Some("write 20000-20999")),
        }
    }

    fn proxy_protocol(&mut self, map: &Map<'_>, node: &Node) -> ProxyProtocol {
        let is_required = self.field(map, "proxy_protocol", |walk, node| match walk.text(node)?.as_str() {
            "off" => Some(false),
            "require" => Some(true),
            _ => walk.wrong(node, "off or require", None),
        });
        let trusted = self.field(map, "trusted_proxies", |walk, node| {
            let Value::List(list) = &node.value else {
                return walk.wrong(node, "a list of addresses and networks", None);
            };
            list.iter().map(|node| walk.network(node)).collect::<Option<Vec<_>>>()
        });
        match (is_required, trusted) {
            (Some(true), Some(trusted)) if !trusted.is_empty() => ProxyProtocol::Require(trusted),
            (Some(true), None) if map.contains_key("trusted_proxies") => ProxyProtocol::Off,
            (Some(true), _) => {
                let hint = "say which proxies are believed: trusted_proxies: [10.0.0.0/8]";
                self.problem(node.place, "proxy_protocol is required, and no proxy is trusted", Some(hint));
                ProxyProtocol::Off
            }
            _ => ProxyProtocol::Off,
        }
    }

    fn network(&mut self, node: &Node) -> Option<(IpAddr, u8)> {
        let text = self.text(node)?;
        let (ip, prefix) = text.split_once('/').map_or((text.as_str(), None), |(ip, prefix)| (ip, Some(prefix)));
        let ip: Option<IpAddr> = ip.trim_matches(['[', ']']).parse().ok();
        let most = ip.map_or(0, |ip| if ip.is_ipv4() { 32 } else { 128 });
        match (ip, prefix.map_or(Some(most), |prefix| prefix.parse().ok())) {
            (Some(ip), Some(prefix)) if prefix <= most => Some((ip, prefix)),
            _ => self.wrong(node, "an address or a network", Some("write 127.0.0.1 or 10.0.0.0/8")),
        }
    }

    fn http_options(&mut self, map: &Map<'_>, node: &Node) -> HttpOptions {
        let scheme = self.field(map, "scheme", |walk, node| match walk.text(node)?.to_ascii_lowercase().as_str() {
            "http" => Some(Scheme::Http),
            "https" => Some(Scheme::Https),
            "h2c" => Some(Scheme::H2c),
            _ => walk.wrong(node, "http, https or h2c", None),
        });
        let ca = self.field(map, "ca", Self::file);
        let verify = self.field(map, "verify", Self::boolean).unwrap_or(ca.is_some());
        let server_name = self.field(map, "server_name", Self::host);
        let client_cert = match (self.field(map, "client_cert", Self::file), self.field(map, "client_key", Self::file))
        {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => {
                self.problem(node.place, "client_cert and client_key are given one without the other", None);
                None
            }
        };
        let (mut request_headers, mut response_headers) = <(HeaderRules, HeaderRules)>::default();
        self.field(map, "headers", |walk, node| {
            let map = walk.map(node, HEADERS)?;
            request_headers = walk.header_rules(&map);
            for (key, rules) in [("request", &mut request_headers), ("response", &mut response_headers)] {
                walk.field(&map, key, |walk, node| {
                    let of_one_way = walk.map(node, HEADER_RULES).map(|map| walk.header_rules(&map))?;
                    rules.set.extend(of_one_way.set);
                    rules.remove.extend(of_one_way.remove);
                    Some(())
                });
            }
            Some(())
        });
        HttpOptions {
            scheme,
            tls: BackendTls { verify, ca, server_name, client_cert },
            request_headers,
            response_headers,
            // What is behind a jump has a name of its own, and serves nobody who calls it otherwise.
            rewrite_host: self.field(map, "rewrite_host", Self::boolean).unwrap_or(map.contains_key("target")),
            rewrite_location: self.field(map, "rewrite_location", Self::boolean).unwrap_or(map.contains_key("target")),
            allow_origins: self.field(map, "allow_origins", Self::origins).unwrap_or_default(),
        }
    }

    fn header_rules(&mut self, map: &Map<'_>) -> HeaderRules {
        let mut rules = HeaderRules::default();
        for (key, value) in self.field(map, "set", Self::entries).unwrap_or_default() {
            self.at_child("set", &quoted(&key.name), |walk| {
                let name = walk.header_name(&key.name, key.place);
                let text = match &value.value {
                    Value::Scalar { text, .. } => Some(text.as_str()),
                    _ => None,
                };
                match text.and_then(|text| HeaderValue::from_str(text).ok()) {
                    Some(value) => rules.set.extend(name.map(|name| (name, value))),
                    None => walk.problem(value.place, "expected a header's value: text on one line", None),
                }
            });
        }
        if let Some(names) = self.field(map, "remove", |walk, node| match &node.value {
            Value::List(list) => {
                list.iter().map(|node| walk.text(node).and_then(|name| walk.header_name(&name, node.place))).collect()
            }
            _ => walk.wrong::<Vec<HeaderName>>(node, "a list of header names", None),
        }) {
            rules.remove = names;
        }
        rules
    }

    fn header_name(&mut self, text: &str, place: Place) -> Option<HeaderName> {
        let name = HeaderName::from_bytes(text.as_bytes()).ok();
        // What says where a message ends is not the configuration's to change.
        const FRAMING: [&str; 5] = ["connection", "content-length", "transfer-encoding", "upgrade", "te"];
        match name {
            Some(name) if FRAMING.contains(&name.as_str()) => {
                self.problem(place, &format!("{name} is about one connection, and cannot be changed"), None);
                None
            }
            Some(name) => Some(name),
            None => {
                self.problem(place, &format!("expected a header's name, found {text:?}"), None);
                None
            }
        }
    }

    fn origins(&mut self, node: &Node) -> Option<Vec<String>> {
        let Value::List(list) = &node.value else {
            return self.wrong(node, "a list of origins", Some("write [https://app.example.com]"));
        };
        let mut origins = Vec::new();
        for node in list {
            let text = self.text(node)?;
            let host = text.split_once("://").map(|(_, host)| host);
            let is_origin = host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*', ' ']));
            if text != "*" && !is_origin {
                return self.wrong(
                    node,
                    "an origin",
                    Some("write scheme, host and port as the browser does, without a path"),
                );
            }
            origins.push(text);
        }
        Some(origins)
    }

    fn file(&mut self, node: &Node) -> Option<PathBuf> {
        self.text(node).map(|text| defaults::expand_home(&text))
    }

    fn admin_listen(&mut self, node: &Node) -> Option<SocketAddr> {
        let address = *self.listen(node)?.first()?;
        match address.ip().is_loopback() {
            true => Some(address),
            false => {
                self.wrong(node, "an address on loopback", Some("write 127.0.0.1:PORT: it tells what you work on"))
            }
        }
    }

    fn jump(&mut self, map: &Map<'_>, node: &Node, config: &Config) -> Option<Destination> {
        let context_name = self.field(map, "context", Self::text).map(|name| context(config, name));
        let namespace = self.field(map, "namespace", Self::namespace);
        let method = self.field(map, "method", |walk, node| match walk.text(node)?.as_str() {
            "auto" => Some(JumpMethod::Auto),
            "socat" => Some(JumpMethod::Socat),
            "nc" => Some(JumpMethod::Nc),
            _ => walk.wrong(node, "auto, socat or nc", None),
        });
        let via = self.required(map, node, "via", |walk, node| {
            let map = walk.map(node, VIA)?;
            let workload = walk.workload(&map, node)?;
            let container = walk.field(&map, "container", Self::label);
            let create = walk.field(&map, "create", |walk, node| {
                let map = walk.map(node, CREATE)?;
                let image = walk.required(&map, node, "image", |walk, node| {
                    let image = walk.text(node)?;
                    let hint = Some("write alpine/socat, or registry.example.com/socat:1.8");
                    if is_image(&image) { Some(image) } else { walk.wrong(node, "the name of an image", hint) }
                });
                let command = walk.field(&map, "command", Self::words).unwrap_or_default();
                let timeout = walk.field(&map, "timeout", Self::duration).unwrap_or(Duration::from_secs(60));
                Some(JumpPod { image: image?, command, timeout })
            });
            Some((workload, container, create))
        });
        let target = self.required(map, node, "target", |walk, node| {
            let map = walk.map(node, TARGET)?;
            let host = walk.required(&map, node, "host", |walk, node| {
                let host = walk.text(node)?;
                let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
                if is_address || is_host(&host.to_ascii_lowercase()) {
                    Some(host)
                } else {
                    walk.wrong(node, "a hostname or an IP address", None)
                }
            });
            let port = walk.required(&map, node, "port", |walk, node| {
                let text = walk.text(node)?;
                walk.port_number(&text, node.place)
            });
            Some((host?, port?))
        });
        let ((workload, container, create), (host, port)) = (via?, target?);
        let host = host.trim_matches(['[', ']']).to_owned();
        let jump = Jump { container, create, host, port, method: method.unwrap_or(JumpMethod::Auto) };
        Some(Destination { context: context_name, namespace, workload, port: PortRef::Auto, jump: Some(jump) })
    }

    fn destination(&mut self, map: &Map<'_>, node: &Node, config: &Config) -> Option<Destination> {
        let context_name = self.field(map, "context", Self::text).map(|name| context(config, name));
        let namespace = self.field(map, "namespace", Self::namespace);
        let workload = self.workload(map, node);
        let port = match map.get("port") {
            Some(_) => self.field(map, "port", Self::port)?,
            None => PortRef::Auto,
        };
        Some(Destination { context: context_name, namespace, workload: workload?, port, jump: None })
    }

    fn workload(&mut self, map: &Map<'_>, node: &Node) -> Option<Workload> {
        let service = self.field(map, "service", Self::label);
        let pod = self.field(map, "pod", Self::pod_name);
        match (map.contains_key("service"), map.contains_key("pod")) {
            (true, true) => {
                self.problem(node.place, "both service and pod are given", Some("keep the one that is meant"))
            }
            (false, false) => {
                self.problem(node.place, "neither service nor pod is given", Some("say what to reach: service: NAME"))
            }
            _ => return service.map(Workload::Service).or(pod.map(Workload::Pod)),
        }
        None
    }

    // ---- values

    fn boolean(&mut self, node: &Node) -> Option<bool> {
        match &node.value {
            Value::Scalar { text, quoted: false } => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Some(true),
                "false" | "no" | "off" => Some(false),
                _ => self.wrong(node, "true or false", None),
            },
            _ => self.wrong(node, "true or false", None),
        }
    }

    fn text(&mut self, node: &Node) -> Option<String> {
        match &node.value {
            Value::Scalar { text, .. } if !text.is_empty() => Some(text.clone()),
            _ => self.wrong(node, "a word", None),
        }
    }

    fn words(&mut self, node: &Node) -> Option<Vec<String>> {
        match &node.value {
            Value::List(list) => list.iter().map(|node| self.text(node)).collect(),
            _ => self.wrong(node, "a list of words, e.g. [sleep, infinity]", None),
        }
    }

    fn folders(&mut self, node: &Node) -> Option<Vec<PathBuf>> {
        match &node.value {
            Value::List(list) => list.iter().map(|node| Some(defaults::expand_home(&self.text(node)?))).collect(),
            Value::Scalar { text, .. } => {
                Some(std::env::split_paths(text).map(|path| defaults::expand_home(&path.to_string_lossy())).collect())
            }
            _ => self.wrong(node, "a list of folders", None),
        }
    }

    fn path_list(&mut self, node: &Node) -> Option<String> {
        match &node.value {
            Value::List(list) => Some(list.iter().map(|node| self.text(node)).collect::<Option<Vec<_>>>()?.join(":")),
            _ => self.text(node),
        }
    }

    fn duration(&mut self, node: &Node) -> Option<Duration> {
        let text = self.text(node)?;
        parse_duration(&text).or_else(|| self.wrong(node, "a duration", Some("write 90s, 60m or 1h30m; 0 means never")))
    }

    fn label(&mut self, node: &Node) -> Option<String> {
        let text = self.text(node)?;
        if is_label(&text) {
            Some(text)
        } else {
            self.wrong(node, "a name of lower-case letters, digits and hyphens", None)
        }
    }

    fn namespace(&mut self, node: &Node) -> Option<Namespace> {
        self.label(node).map(Namespace)
    }

    fn pod_name(&mut self, node: &Node) -> Option<String> {
        let text = self.text(node)?;
        if is_host(&text) {
            Some(text)
        } else {
            self.wrong(node, "a name of lower-case letters, digits, hyphens and dots", None)
        }
    }

    fn host(&mut self, node: &Node) -> Option<String> {
        let text = self.text(node)?.trim_matches('.').to_ascii_lowercase();
        if is_host(&text) { Some(text) } else { self.wrong(node, "a hostname", None) }
    }

    fn route_host(&mut self, text: &str, place: Place) -> Option<String> {
        let host = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let name = host.strip_prefix("*.").unwrap_or(&host);
        if is_host(name) || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return Some(host);
        }
        let hint = if host.contains(':') {
            "leave the port out: the listener decides it"
        } else {
            "write web.localhost, or *.web.localhost for every name below"
        };
        self.problem(place, &format!("expected a hostname, found {text:?}"), Some(hint));
        None
    }

    fn port(&mut self, node: &Node) -> Option<PortRef> {
        let text = self.text(node)?;
        match text.parse::<i64>() {
            Ok(number) => match u16::try_from(number) {
                Ok(number) if number > 0 => Some(PortRef::Number(number)),
                _ => self.wrong(node, "1-65535", Some("use the Service port, e.g. 443")),
            },
            Err(_) if is_port_name(&text) => Some(PortRef::Name(text)),
            Err(_) => {
                self.wrong(node, "a port number or the name of a port", Some("use the Service port, e.g. 443 or https"))
            }
        }
    }

    fn port_number(&mut self, text: &str, place: Place) -> Option<u16> {
        match text.parse::<u16>() {
            Ok(port) if port > 0 => Some(port),
            _ => {
                self.problem(
                    place,
                    &format!("expected 1-65535, found {text}"),
                    Some("use a free port of this machine, e.g. 5432"),
                );
                None
            }
        }
    }

    /// `127.0.0.1:8989`; `localhost:8989`; `:8989` as Go writes it, for every address of the machine.
    fn listen(&mut self, node: &Node) -> Option<Vec<SocketAddr>> {
        let text = self.text(node)?;
        let missing = format!(
            "write 127.0.0.1:{}",
            if text.bytes().all(|byte| byte.is_ascii_digit()) { text.as_str() } else { "8989" }
        );
        let Some((host, port)) = text.rsplit_once(':') else {
            self.problem(node.place, &format!("{text:?} has no host"), Some(&missing));
            return None;
        };
        let Ok(port) = port.parse::<u16>() else {
            return self.wrong(node, "an address with a port from 0 to 65535", Some("write 127.0.0.1:8989"));
        };
        if host.is_empty() {
            return Some(vec![
                SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
                SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
            ]);
        }
        if host.eq_ignore_ascii_case("localhost") {
            return Some(defaults::loopback(port));
        }
        match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            // Browsers try [::1] first for names below localhost.
            Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)) => Some(defaults::loopback(port)),
            Ok(ip) => Some(vec![SocketAddr::new(ip, port)]),
            Err(_) => self.wrong(node, "an IP address and a port", Some("write 127.0.0.1:8989")),
        }
    }

    fn listen_ip(&mut self, node: &Node) -> Option<IpAddr> {
        let text = self.text(node)?;
        let text = if text.eq_ignore_ascii_case("localhost") { "127.0.0.1" } else { text.trim_matches(['[', ']']) };
        text.parse()
            .ok()
            .or_else(|| self.wrong(node, "an IP address", Some("write 127.0.0.1; the port is the route's key")))
    }

    // ---- the tree

    fn map<'n>(&mut self, node: &'n Node, known: &[&str]) -> Option<Map<'n>> {
        let entries = self.entries(node)?;
        let mut map = Map::new();
        for (key, value) in entries {
            if known.contains(&key.name.as_str()) {
                // A key without a value is as good as none: `routes:` with every route commented out.
                if value.value != Value::Null {
                    map.insert(key.name.as_str(), value);
                }
            } else {
                let near = known
                    .iter()
                    .filter(|other| similar(&key.name, other))
                    .min_by_key(|other| other.len().abs_diff(key.name.len()));
                let hint = match near {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("the keys here are {}", known.join(", ")),
                };
                self.problem_at_key(key, "unknown key", &hint);
            }
        }
        Some(map)
    }

    fn entries<'n>(&mut self, node: &'n Node) -> Option<Vec<(&'n Key, &'n Node)>> {
        match &node.value {
            Value::Map(entries) => Some(entries.iter().map(|(key, value)| (key, value)).collect()),
            Value::Null => Some(Vec::new()),
            _ => self.wrong(node, "keys and values", None),
        }
    }

    fn field<'n, T>(
        &mut self,
        map: &Map<'n>,
        name: &str,
        read: impl FnOnce(&mut Self, &'n Node) -> Option<T>,
    ) -> Option<T> {
        let node = *map.get(name)?;
        self.at(name, |walk| read(walk, node))
    }

    fn required<'n, T>(
        &mut self,
        map: &Map<'n>,
        parent: &Node,
        name: &str,
        read: impl FnOnce(&mut Self, &'n Node) -> Option<T>,
    ) -> Option<T> {
        if !map.contains_key(name) {
            self.problem(parent.place, &format!("{name} is missing"), None);
        }
        self.field(map, name, read)
    }

    fn at<T>(&mut self, name: &str, inside: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(name.to_owned());
        let result = inside(self);
        self.path.pop();
        result
    }

    fn at_child(&mut self, parent: &str, name: &str, inside: impl FnOnce(&mut Self)) {
        self.at(parent, |walk| walk.at(name, inside));
    }

    fn problem(&mut self, place: Place, message: &str, hint: Option<&str>) {
        self.problems.push(Problem {
            path: self.path.join("."),
            place,
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
        });
    }

    fn problem_at_key(&mut self, key: &Key, message: &str, hint: &str) {
        let name = quoted(&key.name);
        self.at(&name, |walk| walk.problem(key.place, message, Some(hint)));
    }

    fn wrong<T>(&mut self, node: &Node, expected: &str, hint: Option<&str>) -> Option<T> {
        let message = format!("expected {expected}, found {}", node.value.describe());
        self.problem(node.place, &message, hint);
        None
    }
}

type Map<'n> = std::collections::HashMap<&'n str, &'n Node>;

/// Returns the context that a name or alias stands for.
fn context(config: &Config, name: String) -> ContextName {
    config.contexts.get(&name).map_or(ContextName(name), |alias| alias.name.clone())
}

/// Returns a key as a part of a path: in quotes where it has dots of its own.
fn quoted(name: &str) -> String {
    if name.contains('.') { format!("\"{name}\"") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, LoadError> {
        parse(Path::new("config.yaml"), text.as_bytes())
    }

    fn problems(text: &str) -> Vec<String> {
        load(text).expect_err("problems").problems.iter().map(Problem::line).collect()
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        for text in ["", "---\n", "# nothing\n", "http:\ntcp:\n  k8s:\n    routes:\n    jump:\n"] {
            let config = load(text).unwrap();
            assert_eq!(
                config.http.listen,
                ["127.0.0.1:8989".parse().unwrap(), "[::1]:8989".parse::<SocketAddr>().unwrap()]
            );
            assert_eq!(config.http.idle_timeout, Duration::from_secs(3600));
        }
    }

    #[test]
    fn an_autotunnel_file_is_read_with_the_same_keys() {
        let config = load(
            "apiVersion: autotunnel/v1\nverbose: true\nauto_reload_config: false\nexec_path: [/custom/bin]\n\
             http:\n  listen: \":8989\"\n  idle_timeout: 90m\n  k8s:\n    kubeconfig: /a:/b\n    dynamic_host: k8s.local.gd\n    routes:\n\
             \x20     Argocd.localhost: {context: prod, namespace: argocd, service: argocd-server, port: 443, scheme: https}\n\
             \x20     debug.localhost: {context: microk8s, namespace: default, pod: my-debug-pod, port: \"8080\"}\n\
             tcp:\n  idle_timeout: 30m\n  k8s:\n    routes:\n      5432: {context: prod, namespace: db, service: postgresql, port: 5432}\n    jump:\n\
             \x20     3306: {context: eks, namespace: default, via: {service: backend-api}, target: {host: mydb.rds.amazonaws.com, port: 3306}, method: socat}\n",
        )
        .unwrap();
        assert!(config.verbose && !config.auto_reload);
        assert_eq!(config.http.listen[0], "0.0.0.0:8989".parse().unwrap());
        let argocd = &config.http.routes["argocd.localhost"];
        assert_eq!((argocd.options.scheme, &argocd.destination.port), (Some(Scheme::Https), &PortRef::Number(443)));
        assert_eq!(config.http.routes["debug.localhost"].destination.workload, Workload::Pod("my-debug-pod".into()));
        assert_eq!(config.http.kubeconfig.0, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(config.tcp.routes[&"127.0.0.1:5432".parse().unwrap()].idle_timeout, Duration::from_secs(1800));
        let jump = &config.tcp.routes[&"127.0.0.1:3306".parse().unwrap()].destination.jump;
        assert_eq!(jump.as_ref().unwrap().host, "mydb.rds.amazonaws.com");
    }

    #[test]
    fn every_problem_is_told_at_once_with_its_place() {
        let text = "http:\n  listn: 127.0.0.1:1\n  listen: \"8989\"\n  idle_timeout: soon\n  k8s:\n    routes:\n      argocd.localhost:\n        service: a\n        port: 70000\n\
                    \x20     both.localhost: {service: a, pod: b}\n      none.localhost: {port: 80}\n      \"x:80\": {service: a}\ntcp: [1]\nfoo: 1\n";
        assert_eq!(
            problems(text),
            [
                "http.listn: unknown key (line 2, column 3)",
                "http.listen: \"8989\" has no host (line 3, column 11)",
                "http.idle_timeout: expected a duration, found soon (line 4, column 17)",
                "http.k8s.routes.\"argocd.localhost\".port: expected 1-65535, found 70000 (line 9, column 15)",
                "http.k8s.routes.\"both.localhost\": both service and pod are given (line 10, column 23)",
                "http.k8s.routes.\"none.localhost\": neither service nor pod is given (line 11, column 23)",
                "http.k8s.routes.x:80: expected a hostname, found \"x:80\" (line 12, column 7)",
                "tcp: expected keys and values, found a list (line 13, column 6)",
                "foo: unknown key (line 14, column 1)",
            ]
        );
    }

    #[test]
    fn clashing_ports_are_told() {
        let text = "http: {listen: \"127.0.0.1:5432\"}\ntcp:\n  k8s:\n    routes:\n      5432: {service: a}\n      6379: {service: a}\n    jump:\n      6379: {via: {pod: p}, target: {host: h, port: 1}}\n      0: {via: {pod: p}, target: {host: h, port: 1}}\n";
        assert_eq!(
            problems(text),
            [
                "tcp.k8s.routes.5432: port 5432 is used by http.listen already (line 5, column 7)",
                "tcp.k8s.jump.6379: port 6379 is used by tcp.k8s.routes.6379 already (line 8, column 7)",
                "tcp.k8s.jump.0: expected 1-65535, found 0 (line 9, column 7)",
            ]
        );
    }

    #[test]
    fn aliases_of_contexts_stand_for_their_names() {
        let config = load("contexts:\n  prod: {name: \"arn:aws:eks:x\", namespace: shop, dynamic: deny}\ndefault_context: prod\nhttp: {k8s: {routes: {a.localhost: {context: prod, service: a}}}}\n").unwrap();
        assert_eq!(config.default_context, Some(ContextName("arn:aws:eks:x".into())));
        assert_eq!(config.http.routes["a.localhost"].destination.context, Some(ContextName("arn:aws:eks:x".into())));
        assert!(!config.contexts["prod"].dynamic);
        assert_eq!(problems("contexts: {Prod: {dynamic: maybe}}\n").len(), 3);
    }

    #[test]
    fn a_snippet_shows_the_line_and_the_hint() {
        let shown = load("http:\n  listn: x\n").unwrap_err().snippets(false);
        assert!(shown.contains("listn: x") && shown.contains("did you mean listen?"), "{shown}");
    }

    #[test]
    fn files_that_are_too_large_or_not_text_are_refused() {
        assert!(parse(Path::new("x"), &vec![b'#'; file::LARGEST + 1]).unwrap_err().to_string().contains("1 MiB"));
        assert!(parse(Path::new("x"), b"\xff\xfe").unwrap_err().to_string().contains("UTF-8"));
    }
}
