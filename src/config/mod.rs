//! The configuration: parsed, validated, with defaults.
//!
//! Code outside this module sees only [`Config`], whose values are valid; the YAML and its mistakes stay in [`file`](mod@file) and
//! [`validate`].

pub mod defaults;
pub mod diff;
pub mod file;
pub mod keys;
pub mod listen;
pub mod names;
pub mod near;
pub mod problem;
pub mod reference;
pub mod schema;
pub mod shell;
pub mod shown;
pub mod validate;
pub mod values;
pub mod watch;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use http::{HeaderName, HeaderValue, Method};
use ipnet::IpNet;

pub use self::values::{
    ContextName, Host, HostPort, InvalidValue, Label, Namespace, PortName, PortRange, PortRef, RELAY_PORT,
    RelayAddress, Subdomain,
};

use crate::{tls::Fingerprint, wire::proxy_protocol};

/// Paths of the kubeconfig files, in the order in which they are merged.
///
/// Empty: there is no file, and adit uses the service account of its pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KubeconfigPaths(pub Vec<PathBuf>);

/// Hostname of the dashboard on the HTTP listener. No route may have it while the dashboard is on.
pub const DASHBOARD_HOST: &str = "adit.localhost";

/// The whole configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Path of the file. `None`: there is no file, and every value is a default.
    pub source: Option<PathBuf>,
    /// Content of the file, with its secrets hidden.
    pub shown: serde_json::Value,
    /// Log each request and connection. Default: false.
    pub verbose: bool,
    /// Apply changes of the file while running. Default: true.
    pub auto_reload: bool,
    /// Number of threads that carry data. `None`: according to the number of cores. A reload does not change it.
    pub workers: Option<NonZeroUsize>,
    /// Folders searched for credential plugins before `PATH`.
    pub exec_path: Vec<PathBuf>,
    /// Context of names and routes that set none. `None`: the kubeconfig's current context.
    pub default_context: Option<ContextName>,
    /// Short names for contexts, and what adit may do in these contexts, by alias.
    pub contexts: BTreeMap<String, ContextAlias>,
    /// The listener for HTTP and TLS, and its routes.
    pub http: Http,
    /// The TCP routes, each with a listener of its own.
    pub tcp: Tcp,
    /// The SNI listener and its routes. `None`: off.
    pub sni: Option<Sni>,
    /// Local ports that are reachable through relays.
    pub local: Vec<LocalPort>,
    /// The forward proxy. `None`: off.
    pub proxy: Option<ForwardProxy>,
    pub admin: Admin,
    /// Serve the dashboard at `adit.localhost`. Default: true.
    pub dashboard: bool,
    /// File to which adit appends a line for each request and connection. `None`: off.
    pub audit: Option<PathBuf>,
    /// Advice about a valid file that should be written differently.
    pub notes: Vec<String>,
}

/// `proxy:` in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardProxy {
    /// Addresses to listen on. Empty: the listeners of `http`.
    pub listen: Vec<SocketAddr>,
    pub elsewhere: Elsewhere,
    /// Domain of the cluster's names. Default: `cluster.local`. Lower case, without dots at the ends.
    pub cluster_domain: String,
}

impl Default for ForwardProxy {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            elsewhere: Elsewhere::default(),
            cluster_domain: defaults::CLUSTER_DOMAIN.to_owned(),
        }
    }
}

/// Policy of the forward proxy for hosts outside the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Elsewhere {
    #[default]
    Refuse,
    /// Connects, if the address is public.
    Direct,
}

/// An entry of `local`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalPort {
    pub to: RelayAddress,
    /// File with the secret. `None`: the secret is in `$ADIT_SECRET`.
    pub secret_file: Option<PathBuf>,
    /// Fingerprint that the relay's certificate must have: `sha256:...`. `None`: the relay proves itself with the secret.
    pub fingerprint: Option<Fingerprint>,
    /// CA bundle with which the relay's certificate is verified.
    pub ca: Option<PathBuf>,
    /// Host of the local service. `None`: 127.0.0.1 or `[::1]`, whichever answers.
    pub local_host: Option<String>,
    pub local_port: u16,
    /// Requested public port; 0: any port.
    pub public_port: u16,
    /// Requested public name. The relay serves it over HTTP, without a port of its own.
    pub name: Option<Label>,
    /// Host header that the local service gets instead of the public name. Only with `name`.
    pub host: Option<String>,
}

/// `sni:` in the file: a listener for TLS and PostgreSQL that never terminates TLS.
#[derive(Clone, Debug, PartialEq)]
pub struct Sni {
    pub listen: Vec<SocketAddr>,
    /// Whether connections begin with a PROXY header. Default: off.
    pub proxy_protocol: ProxyProtocol,
    /// Whether a reload may add commands that the file did not have at the start.
    pub allow_commands: bool,
    /// Routes by server name, lower case; `*.example.com` is for every name below.
    pub routes: BTreeMap<String, SniRoute>,
}

/// A value of `sni.routes`.
#[derive(Clone, Debug, PartialEq)]
pub struct SniRoute {
    pub backend: SniBackend,
    /// Version of the PROXY header that tells the backend the client's address. `None`: no header.
    pub send_proxy: Option<proxy_protocol::Version>,
    /// Default: 10 min.
    pub idle_timeout: Duration,
}

/// Backend of an SNI route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SniBackend {
    Kubernetes(Box<Destination>),
    Command(Arc<Command>),
}

/// A command that connects to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Command {
    /// The program, which adit searches for in `PATH`, and its arguments. `{port}` stands for the port to listen on.
    pub run: Vec<String>,
    pub mode: CommandMode,
    /// Environment variables to set, beside those that every program needs.
    pub env: BTreeMap<String, String>,
    /// Environment variables to copy from adit's environment: the command's name to adit's name. They may hold secrets.
    pub env_from: BTreeMap<String, String>,
    /// Time limit until the command listens.
    pub startup_timeout: Duration,
    /// Ports that adit assigns to commands.
    pub ports: PortRange,
}

impl Command {
    /// Returns whether both run the same program in the same way: not how long adit waits for it, and which ports it may get.
    pub fn runs_the_same(&self, other: &Self) -> bool {
        (&self.run, self.mode, &self.env, &self.env_from) == (&other.run, other.mode, &other.env, &other.env_from)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CommandMode {
    /// The command listens on a port, for all connections.
    Listen,
    /// One process per connection, over its standard input and output.
    Stdio,
}

/// Whether connections begin with a PROXY header. adit never guesses it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocol {
    #[default]
    Off,
    /// Every connection begins with one. adit accepts them only from proxies in these networks.
    Require(Vec<IpNet>),
}

/// `admin:` in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admin {
    /// Loopback address that serves `/healthz`, `/readyz` and `/metrics`. `None`: only the Unix socket serves them.
    pub listen: Option<SocketAddr>,
}

/// An alias of a context, and its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextAlias {
    /// Name of the context in the kubeconfig.
    pub name: ContextName,
    /// Namespace of names and routes that set none. `None`: the context's own, then `default`.
    pub namespace: Option<Namespace>,
    /// Whether dynamic names may reach this context. Default: true.
    pub dynamic: bool,
    /// HTTP methods that requests to this context may have. `None`: all.
    pub methods: Option<Vec<Method>>,
    /// Whether pages mark it as production. Default: whether the alias or the context has a word for production in its name.
    pub production: bool,
}

impl Config {
    /// Returns the context that a name stands for: that of the alias with this name, else the name itself.
    pub fn context_named(&self, name: ContextName) -> ContextName {
        self.contexts.get(name.as_str()).map_or(name, |alias| alias.name.clone())
    }

    /// Returns the first alias of a context, with its name.
    pub fn alias_of(&self, context: &ContextName) -> Option<(&String, &ContextAlias)> {
        self.contexts.iter().find(|(_, alias)| alias.name == *context)
    }

    /// Returns whether dynamic names may reach a context: none of its aliases forbids it.
    pub fn has_dynamic_names(&self, context: &ContextName) -> bool {
        self.contexts.values().all(|alias| alias.name != *context || alias.dynamic)
    }
}

impl fmt::Display for KubeconfigPaths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<_> = self.0.iter().map(|path| path.display().to_string()).collect();
        f.write_str(&paths.join(", "))
    }
}

/// `http:` in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// Addresses to listen on. Default: 127.0.0.1:8989 and `[::1]:8989`. An address after the first is skipped if the machine
    /// does not have it (a laptop without IPv6).
    pub listen: Vec<SocketAddr>,
    /// Closes a tunnel after this long without a connection. Zero: never. Default: 60 min.
    pub idle_timeout: Duration,
    pub kubeconfig: KubeconfigPaths,
    /// Suffix of long dynamic names. Default: `k8s.localhost`. Lower case, without dots at the ends.
    pub dynamic_host: String,
    /// Whether connections begin with a PROXY header. Default: off.
    pub proxy_protocol: ProxyProtocol,
    /// Routes by host, lower case: `web.localhost`, or `*.web.localhost` for every name below.
    pub routes: BTreeMap<String, HttpRoute>,
}

/// `tcp:` in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Tcp {
    pub idle_timeout: Duration,
    /// Whether connections begin with a PROXY header. Default: off.
    pub proxy_protocol: ProxyProtocol,
    pub kubeconfig: KubeconfigPaths,
    /// Routes and jumps by the first address of their listener.
    pub routes: BTreeMap<SocketAddr, TcpRoute>,
}

/// Destination of a route: the workload, its namespace, context and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// `None`: [`Config::default_context`], then the kubeconfig's current context.
    pub context: Option<ContextName>,
    /// `None`: the namespace of the alias, then that of the context, then `default`.
    pub namespace: Option<Namespace>,
    pub workload: Workload,
    pub port: PortRef,
    /// The host to reach from the pod. `None`: the pod itself is the target.
    pub jump: Option<Jump>,
}

/// Workload of a destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Workload {
    /// Any ready pod of this Service.
    Service(Label),
    /// This very pod.
    Pod(Subdomain),
    /// This pod, if it belongs to this Service (`{pod}.{service}` of a StatefulSet).
    PodOfService { pod: Subdomain, service: Label },
    /// An address in the cluster: the Service with this ClusterIP, else the pod with this IP.
    Address(IpAddr),
}

/// Treatment of a client's TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientTls {
    /// adit terminates TLS with a certificate of its own.
    Terminate,
    /// adit passes TLS through to a backend that accepts it.
    Passthrough,
}

/// Host header for the backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostHeader {
    /// The client's own Host header.
    #[default]
    Client,
    /// The backend's own name in the cluster.
    Own,
    /// This value, with a port if it has one. Origin and the X-Forwarded headers carry it too, because dev servers refuse others.
    Fixed(String),
}

/// Protocol between adit and the backend of an HTTP route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
    H2c,
}

/// A value of `http.k8s.routes`.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    pub destination: Destination,
    /// Default: [`Http::idle_timeout`].
    pub idle_timeout: Duration,
    pub options: Arc<HttpOptions>,
}

/// Options for the requests of a route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpOptions {
    /// `None`: according to the port's appProtocol, its name, or its number.
    pub scheme: Option<Scheme>,
    /// `None`: passthrough to a backend that accepts TLS, but termination if the user's local CA can issue a certificate for the
    /// name and the name has no port.
    pub client_tls: Option<ClientTls>,
    /// TLS settings for an https backend.
    pub tls: BackendTls,
    /// Changes of the request's headers, made after adit's own.
    pub request_headers: HeaderRules,
    /// Changes of the response's headers.
    pub response_headers: HeaderRules,
    /// Host header for the backend. Default: the client's; for a jump, the backend's own name.
    pub host: HostHeader,
    /// Whether redirects and cookies are rewritten to the client's name. `None`: those of the requested host. True: also those of
    /// the backend's own names, the default for a jump. False: none.
    pub rewrite_location: Option<bool>,
    /// Origins whose pages may send changes, beside the Service's own origin: `https://app.example.com`, or `*`.
    pub allow_origins: Vec<String>,
}

/// TLS settings for an https backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BackendTls {
    /// Whether to verify the backend's certificate. Default: true with a `ca`; else false, because certificates of pods rarely
    /// have a name that the laptop knows.
    pub verify: bool,
    /// CA bundle to verify with. `None`: that of the system.
    pub ca: Option<PathBuf>,
    /// Server name (SNI) for the backend and for its verification. `None`: the request's host.
    pub server_name: Option<String>,
    /// Client certificate, for a backend that requests one.
    pub client_cert: Option<KeyPairFiles>,
}

/// PEM files of a certificate chain and its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyPairFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Headers to set, then headers to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderRules {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

impl Tcp {
    /// Returns the route that listens on an address, with its key in `routes`.
    pub fn route(&self, listener: SocketAddr) -> Option<(SocketAddr, &TcpRoute)> {
        let known_as = |(address, route): (&SocketAddr, _)| (*address, route);
        let also = || self.routes.iter().find(|(_, route)| route.also == Some(listener));
        self.routes.get_key_value(&listener).or_else(also).map(known_as)
    }
}

/// A value of `tcp.k8s.routes`.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpRoute {
    pub destination: Destination,
    /// Second address, `[::1]` beside 127.0.0.1, if the machine has it. `None`: the route sets an address, or another key uses
    /// this one.
    pub also: Option<SocketAddr>,
    /// Default: [`Tcp::idle_timeout`].
    pub idle_timeout: Duration,
}

/// Target and method of a jump (`tcp.k8s.jump`). The workload of its destination is the jump host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Jump {
    /// `None`: the default container of the pod.
    pub container: Option<Label>,
    /// Settings of the pod to create if it does not exist. `None`: adit creates none.
    pub create: Option<JumpPod>,
    /// Host and port as the pod sees them.
    pub target: HostPort,
    pub method: JumpMethod,
}

/// The pod that a jump creates.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JumpPod {
    pub image: String,
    pub command: Vec<String>,
    pub timeout: Duration,
}

/// Program in the pod that carries a jump. Default: Auto.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum JumpMethod {
    Auto,
    Socat,
    Nc,
}
