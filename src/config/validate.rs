//! Turns the file's tree into the configuration, and reports every problem.

mod claims;
mod files;
mod http;
mod local;
mod proxy;
mod sni;
mod tcp;
mod values;

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use ::http::{HeaderName, HeaderValue, Method};
use ipnet::IpNet;

use self::files::{NamedFile, Usage};
use crate::{
    tls::{InvalidFingerprint, reason},
    wire::proxy_protocol,
};

use super::{
    BackendTls, ClientTls, Command, CommandMode, Config, ContextAlias, ContextName, DASHBOARD_HOST, Destination,
    Elsewhere, ForwardProxy, HeaderRules, Host, HostHeader, HostPort, HttpOptions, HttpRoute, Jump, JumpMethod,
    JumpPod, KeyPairFiles, KubeconfigPaths, Label, LocalPort, Namespace, PortRange, PortRef, ProxyProtocol, Scheme,
    Sni, SniBackend, SniRoute, Subdomain, TcpRoute, Workload, defaults,
    file::{self, Key, Node, Value},
    keys::Keys,
    names::{host_header, is_host, is_image, is_label, parse_duration},
    near::near,
    problem::{LoadError, Place, Problem},
    shown,
};

/// Maximum for `workers`. More threads than any machine has cores would only wait for each other.
pub const MOST_WORKERS: usize = 1024;

const SAME_HOST: &str = "this host has a route already: upper and lower case are the same, and so is a dot at the end";

/// Loads a file.
///
/// # Errors
/// The file cannot be read, or it has problems; the error has all of them.
pub fn load(file: &Path) -> Result<Config, LoadError> {
    parse(file, &read(file)?)
}

/// Reads a file only once, because it may be a pipe.
///
/// # Errors
/// The file cannot be read.
pub fn read(file: &Path) -> Result<Vec<u8>, LoadError> {
    fs::read(file).map_err(|error| unreadable(file, &error))
}

/// A context that a key names, by its own name or an alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedContext {
    pub key: String,
    pub place: Place,
    pub name: ContextName,
}

/// Everything that a configuration names outside of itself.
struct Names {
    files: Vec<NamedFile>,
    contexts: Vec<NamedContext>,
}

/// Parses the content of a file, and tries the files that it names. Returns the configuration, and the contexts that the file
/// names. (adit itself starts without some of the files, and fails when it uses them.)
///
/// # Errors
/// As of [`load`]; or adit could not use a file as the configuration requires.
pub fn check(file: &Path, bytes: &[u8]) -> Result<(Config, Vec<NamedContext>), LoadError> {
    let (config, named) = walk(file, bytes)?;
    let problems = files::problems(&named.files);
    match problems.is_empty() {
        true => Ok((config, named.contexts)),
        false => Err(LoadError {
            file: file.to_owned(),
            problems,
            text: String::from_utf8_lossy(without_mark(bytes)).into(),
        }),
    }
}

fn unreadable(file: &Path, error: &io::Error) -> LoadError {
    let (message, hint) = match error.kind() {
        io::ErrorKind::NotFound => {
            ("the file does not exist".to_owned(), Some(format!("adit init --config {}", file.display())))
        }
        _ => (reason(error), None),
    };
    let problem = Problem { path: String::new(), place: Place::default(), message, hint };
    LoadError { file: file.to_owned(), problems: vec![problem], text: String::new() }
}

/// Returns the content without its byte order mark.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes)
}

/// Parses the content of a file into a configuration. `file` is its path.
///
/// # Errors
/// As of [`load`].
pub fn parse(file: &Path, bytes: &[u8]) -> Result<Config, LoadError> {
    walk(file, bytes).map(|(config, _)| config)
}

/// Returns the configuration, and everything that it names.
fn walk(file: &Path, bytes: &[u8]) -> Result<(Config, Names), LoadError> {
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
    let Ok(text) = std::str::from_utf8(without_mark(bytes)) else {
        return Err(fail(vec![whole("the file is not UTF-8 text")], ""));
    };
    let node = file::parse(text).map_err(|problems| fail(problems, text))?;
    let mut walk = Walk {
        keys: Arc::new(Keys::default()),
        problems: Vec::new(),
        claimed: Vec::new(),
        files: Vec::new(),
        contexts: Vec::new(),
        path: Vec::new(),
    };
    let mut config = walk.root(&node);
    config.source = Some(file.to_owned());
    config.shown = shown::shown(&node);
    walk.problems.sort_by_key(|problem| problem.place);
    let names = Names { files: walk.files, contexts: walk.contexts };
    if walk.problems.is_empty() { Ok((config, names)) } else { Err(fail(walk.problems, text)) }
}

/// A walk through the tree that collects problems.
struct Walk {
    keys: Arc<Keys>,
    problems: Vec<Problem>,
    /// Addresses of listeners, each with the key that claims it.
    claimed: Vec<(SocketAddr, String)>,
    files: Vec<NamedFile>,
    contexts: Vec<NamedContext>,
    path: Vec<String>,
}

impl Walk {
    fn root(&mut self, node: &Node) -> Config {
        let mut config = defaults::config();
        let Some(map) = self.map(node, "File") else { return config };
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
        config.workers = self.field(&map, "workers", Self::workers);
        config.exec_path = self.field(&map, "exec_path", Self::folders).unwrap_or_default();
        config.contexts = self.field(&map, "contexts", Self::contexts).unwrap_or_default();
        let default_context = self.field(&map, "default_context", Self::context_name);
        config.default_context = default_context.map(|name| config.context_named(name));
        config.audit = self.field(&map, "audit", |walk, node| walk.file(node, Usage::Append));
        config.dashboard = self.field(&map, "dashboard", Self::on_or_off).unwrap_or(config.dashboard);
        self.field(&map, "http", |walk, node| walk.http(node, &mut config).then_some(()));
        self.claim(&config.http.listen, Place::default(), "http.listen");
        self.field(&map, "tcp", |walk, node| walk.tcp(node, &mut config).then_some(()));
        self.field(&map, "sni", |walk, node| {
            config.sni = walk.sni(node, &config);
            Some(())
        });
        let former = self.field(&map, "expose", Self::local_ports);
        let local = self.field(&map, "local", Self::local_ports);
        if let Some(former) = former {
            config.notes.push("the key 'expose' is called 'local' now: rename it".to_owned());
            if map.contains_key("local") {
                self.problem(
                    map["expose"].place,
                    "both local and expose are given",
                    Some("expose is the former name of local: move its entries there"),
                );
            }
            config.local = former;
        }
        config.local = local.unwrap_or(config.local);
        if let Some(node) = map.get("proxy") {
            config.proxy = self.at("proxy", |walk| walk.forward_proxy(node));
        }
        self.field(&map, "admin", |walk, node| {
            let map = walk.map(node, "Admin")?;
            config.admin.listen = walk.field(&map, "listen", |walk, node| {
                let address = walk.admin_listen(node)?;
                walk.claim(&[address], node.place, "admin.listen");
                Some(address)
            });
            Some(())
        });
        self.settle_second_addresses(&mut config);
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
                let Some(map) = walk.map(value, "ContextAlias") else { return };
                let name = walk.field(&map, "name", Self::context_name);
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
                let methods = walk.field(&map, "methods", Self::methods);
                let production = walk.field(&map, "production", Self::boolean);
                let Some(name) = name else { return };
                let production = production.unwrap_or_else(|| says_production(&key.name) || says_production(&name));
                let dynamic = dynamic.unwrap_or(true);
                contexts.insert(key.name.clone(), ContextAlias { name, namespace, dynamic, methods, production });
            });
        }
        Some(contexts)
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
            walk.each(list, Self::network)
        });
        match (is_required, trusted) {
            (Some(true), Some(trusted)) if !trusted.is_empty() => ProxyProtocol::Require(trusted),
            (Some(true), None) if map.contains_key("trusted_proxies") => ProxyProtocol::Off,
            (Some(true), _) => {
                let hint = "name the trusted proxies: trusted_proxies: [10.0.0.0/8]";
                self.problem(node.place, "proxy_protocol is required, and no proxy is trusted", Some(hint));
                ProxyProtocol::Off
            }
            _ => ProxyProtocol::Off,
        }
    }

    fn destination(&mut self, map: &Map<'_>, node: &Node, config: &Config) -> Option<Destination> {
        let context_name = self.field(map, "context", Self::context_name).map(|name| config.context_named(name));
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

    /// Returns the keys and values of a part of the file. `part` is a definition of the schema, which lists the known keys.
    fn map<'n>(&mut self, node: &'n Node, part: &str) -> Option<Map<'n>> {
        let entries = self.entries(node)?;
        let keys = self.keys.clone();
        let known = &keys.of(part)[..];
        let mut map = Map::new();
        for (key, value) in entries {
            if known.contains(&key.name.as_str()) {
                // A key without a value counts as absent: `routes:` with every route commented out.
                if value.value != Value::Null {
                    map.insert(key.name.as_str(), value);
                }
            } else {
                let hint = match near(&key.name, known, |known| known).first() {
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

    /// Reads every item of a list, even after a mistake, so that all mistakes are reported.
    fn each<'n, T>(
        &mut self,
        list: &'n [Node],
        mut read: impl FnMut(&mut Self, &'n Node) -> Option<T>,
    ) -> Option<Vec<T>> {
        let items: Vec<Option<T>> = list
            .iter()
            .enumerate()
            .map(|(index, node)| self.at(&format!("[{index}]"), |walk| read(walk, node)))
            .collect();
        items.into_iter().collect()
    }

    /// Returns the keys from the root to the current place: `local[0].port`.
    fn path(&self) -> String {
        self.path.join(".").replace(".[", "[")
    }

    fn at_child(&mut self, parent: &str, name: &str, inside: impl FnOnce(&mut Self)) {
        self.at(parent, |walk| walk.at(name, inside));
    }

    fn problem(&mut self, place: Place, message: &str, hint: Option<&str>) {
        self.problems.push(Problem {
            path: self.path(),
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

/// Returns whether the name of a context contains a word for production: `prod`, `eu-production-1`.
pub fn says_production(name: &str) -> bool {
    let mut words = name.split(|each: char| !each.is_ascii_alphanumeric());
    words.any(|word| matches!(word.to_ascii_lowercase().as_str(), "prod" | "prd" | "production"))
}

/// Returns a key as part of a path: in quotes if it contains dots or begins like an index.
fn quoted(name: &str) -> String {
    if name.contains('.') || name.starts_with('[') { format!("\"{name}\"") } else { name.to_owned() }
}

#[cfg(test)]
mod tests;
