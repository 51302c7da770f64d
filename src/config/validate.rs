//! From the file's tree to the configuration, with every problem named.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Config, ContextAlias, ContextName, Destination, HttpRoute, Jump, JumpMethod, JumpPod, Namespace, PortRef, Scheme,
    TcpRoute, Workload, defaults,
    file::{self, Key, Node, Place, Value},
    names::{is_host, is_label, is_port_name, parse_duration, similar},
    problem::{LoadError, Problem},
};

pub(super) const ROOT: &[&str] =
    &["apiVersion", "verbose", "auto_reload_config", "exec_path", "default_context", "contexts", "http", "tcp"];
pub(super) const CONTEXT: &[&str] = &["name", "namespace", "dynamic"];
pub(super) const HTTP: &[&str] = &["listen", "idle_timeout", "k8s"];
pub(super) const HTTP_K8S: &[&str] = &["kubeconfig", "dynamic_host", "routes"];
pub(super) const HTTP_ROUTE: &[&str] =
    &["context", "namespace", "service", "pod", "port", "scheme", "idle_timeout", "verify", "server_name"];
pub(super) const TCP: &[&str] = &["idle_timeout", "k8s"];
pub(super) const TCP_K8S: &[&str] = &["kubeconfig", "routes", "jump"];
pub(super) const TCP_ROUTE: &[&str] = &["context", "namespace", "service", "pod", "port", "listen", "idle_timeout"];
pub(super) const JUMP: &[&str] = &["context", "namespace", "via", "target", "method"];
pub(super) const VIA: &[&str] = &["service", "pod", "container", "create"];
pub(super) const CREATE: &[&str] = &["image", "command", "timeout"];
pub(super) const TARGET: &[&str] = &["host", "port"];

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
                    let destination = walk.destination(&map, value, config);
                    let scheme =
                        walk.field(&map, "scheme", |walk, node| match walk.text(node)?.to_ascii_lowercase().as_str() {
                            "http" => Some(Scheme::Http),
                            "https" => Some(Scheme::Https),
                            "h2c" => Some(Scheme::H2c),
                            _ => walk.wrong(node, "http, https or h2c", None),
                        });
                    let idle = walk.field(&map, "idle_timeout", Self::duration).unwrap_or(idle_timeout);
                    let verify = walk.field(&map, "verify", Self::boolean).unwrap_or(false);
                    let server_name = walk.field(&map, "server_name", Self::host);
                    if let (Some(host), Some(destination)) = (host, destination) {
                        let route = HttpRoute { destination, scheme, idle_timeout: idle, verify, server_name };
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
                    let jump = walk.jump(value, config);
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

    fn jump(&mut self, node: &Node, config: &Config) -> Option<Destination> {
        let map = self.map(node, JUMP)?;
        let context_name = self.field(&map, "context", Self::text).map(|name| context(config, name));
        let namespace = self.field(&map, "namespace", Self::namespace);
        let method = self.field(&map, "method", |walk, node| match walk.text(node)?.as_str() {
            "auto" => Some(JumpMethod::Auto),
            "socat" => Some(JumpMethod::Socat),
            "nc" => Some(JumpMethod::Nc),
            _ => walk.wrong(node, "auto, socat or nc", None),
        });
        let via = self.required(&map, node, "via", |walk, node| {
            let map = walk.map(node, VIA)?;
            let workload = walk.workload(&map, node)?;
            let container = walk.field(&map, "container", Self::label);
            let create = walk.field(&map, "create", |walk, node| {
                let map = walk.map(node, CREATE)?;
                let image = walk.required(&map, node, "image", Self::text);
                let command = walk.field(&map, "command", Self::words).unwrap_or_default();
                let timeout = walk.field(&map, "timeout", Self::duration).unwrap_or(Duration::from_secs(60));
                Some(JumpPod { image: image?, command, timeout })
            });
            Some((workload, container, create))
        });
        let target = self.required(&map, node, "target", |walk, node| {
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
        assert_eq!((argocd.scheme, &argocd.destination.port), (Some(Scheme::Https), &PortRef::Number(443)));
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
