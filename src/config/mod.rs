//! The configuration: parsed, validated, with defaults.
//!
//! Everything outside this module sees only [`Config`], whose values cannot be wrong; the YAML and its
//! mistakes stay in [`file`] and [`validate`].

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
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use http::{HeaderName, HeaderValue, Method};
use ipnet::IpNet;

pub use self::values::{
    ContextName, Host, HostPort, InvalidValue, Label, Namespace, PortName, PortRange, PortRef, RelayAddress, Subdomain,
};

use crate::{tls::Fingerprint, wire::proxy_protocol};

/// Paths of the kubeconfig files, in the order of their merge.
///
/// Empty: there is no file, and adit uses the service account of the pod it runs in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KubeconfigPaths(pub Vec<PathBuf>);

/// The name of the dashboard on the HTTP listener. No route has it while the dashboard is on.
pub const DASHBOARD_HOST: &str = "adit.localhost";

/// The whole configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The file it came from. None: no file, everything is a default.
    pub source: Option<PathBuf>,
    /// Content of the file without its secrets.
    pub shown: serde_json::Value,
    /// Logs each request and connection. Default: false.
    pub verbose: bool,
    /// Applies changes of the file while running. Default: true.
    pub auto_reload: bool,
    /// How many threads carry data. None: by the processors. A reload does not change it.
    pub workers: Option<NonZeroUsize>,
    /// Folders put in front of `PATH` when a credential plugin is looked for.
    pub exec_path: Vec<PathBuf>,
    /// The context of names and routes that give none. None: the kubeconfig's current one.
    pub default_context: Option<ContextName>,
    /// Short names for contexts, and what may be done with them, by alias.
    pub contexts: BTreeMap<String, ContextAlias>,
    /// The listener for HTTP and TLS, and its routes.
    pub http: Http,
    /// One listener per local port.
    pub tcp: Tcp,
    /// None: there is no listener for it.
    pub sni: Option<Sni>,
    /// Ports of this machine that are made reachable through relays.
    pub local: Vec<LocalPort>,
    /// The forward proxy on the listener of HTTP. None: it is off.
    pub proxy: Option<ForwardProxy>,
    pub admin: Admin,
    /// Serves the dashboard at `adit.localhost`. Default: true.
    pub dashboard: bool,
    /// The file that gets a line for each request and connection. None: there is none.
    pub audit: Option<PathBuf>,
    /// Advice about the file: it is valid, but should be written differently.
    pub notes: Vec<String>,
}

/// `proxy:` in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardProxy {
    /// Addresses to listen on. Empty: the HTTP listeners.
    pub listen: Vec<SocketAddr>,
    pub elsewhere: Elsewhere,
    /// The domain of the cluster's names. Default: `cluster.local`. Lower case, no dots at the ends.
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
    /// Connects, where the address is one of the internet.
    Direct,
}

/// An entry of `local`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalPort {
    pub to: RelayAddress,
    /// None: the secret is in `$ADIT_SECRET`.
    pub secret_file: Option<PathBuf>,
    /// The certificate that the relay has to have: `sha256:...`. None: the secret proves it.
    pub fingerprint: Option<Fingerprint>,
    /// A PEM file of the authorities that the relay's certificate has to be of.
    pub ca: Option<PathBuf>,
    /// None: 127.0.0.1 and `[::1]`, whichever answers.
    pub local_host: Option<String>,
    pub local_port: u16,
    /// The public port that is wanted; 0 for any.
    pub public_port: u16,
    /// Served by HTTP under this name instead of a port.
    pub name: Option<Label>,
    /// The Host header that the local service gets instead of the public name. Only with `name`.
    pub host: Option<String>,
}

/// `sni:` in the file: a listener for TLS and PostgreSQL that never ends TLS.
#[derive(Clone, Debug, PartialEq)]
pub struct Sni {
    pub listen: Vec<SocketAddr>,
    /// Whether a proxy in front says who the client is.
    pub proxy_protocol: ProxyProtocol,
    /// Whether a reload may bring commands that were not in the file as first started.
    pub allow_commands: bool,
    /// By server name, lower case, or `*.` and what is below it.
    pub routes: BTreeMap<String, SniRoute>,
}

/// A value of `sni.routes`.
#[derive(Clone, Debug, PartialEq)]
pub struct SniRoute {
    pub backend: SniBackend,
    /// Tells the backend who the client is.
    pub send_proxy: Option<proxy_protocol::Version>,
    /// Default: 10 min.
    pub idle_timeout: Duration,
}

/// Backend of a server name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SniBackend {
    Kubernetes(Box<Destination>),
    Command(Arc<Command>),
}

/// A command that leads to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Command {
    /// The program, looked for in `PATH`, and its arguments. `{port}` stands for the port that it is to listen on.
    pub run: Vec<String>,
    pub mode: CommandMode,
    /// Set for it, beside what every program needs.
    pub env: BTreeMap<String, String>,
    /// Passed on to it from our environment, under the name that it knows: (its name, our name). Secrets.
    pub env_from: BTreeMap<String, String>,
    /// How long it may take until it listens.
    pub startup_timeout: Duration,
    /// The ports that are lent to commands.
    pub ports: PortRange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CommandMode {
    /// It listens on a port, for as many connections as there are.
    Listen,
    /// One process for each connection, over its standard input and output.
    Stdio,
}

/// Whether connections start with a PROXY header. It is never guessed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocol {
    #[default]
    Off,
    /// Every one does, and only proxies from these networks are believed.
    Require(Vec<IpNet>),
}

/// `admin:` in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admin {
    /// Loopback address that serves `/healthz`, `/readyz` and `/metrics`. None: only the Unix socket serves them.
    pub listen: Option<SocketAddr>,
}

/// A context as the configuration speaks of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextAlias {
    /// The context of the kubeconfig.
    pub name: ContextName,
    /// The namespace of names and routes that give none. None: the context's own, then `default`.
    pub namespace: Option<Namespace>,
    /// Whether hostnames without a route may reach this context. Default: true.
    pub dynamic: bool,
    /// The methods of HTTP that it takes. None: every one.
    pub methods: Option<Vec<Method>>,
    /// Whether pages show it as production. Default: by the names of the alias and the context.
    pub production: bool,
}

/// `http:` in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// Default: 127.0.0.1:8989 and `[::1]:8989`. Addresses after the first are left out where the machine
    /// does not have them (a laptop without IPv6).
    pub listen: Vec<SocketAddr>,
    /// Closes a tunnel after this long without a connection. Zero: never. Default: 60 min.
    pub idle_timeout: Duration,
    pub kubeconfig: KubeconfigPaths,
    /// The suffix of long dynamic names. Default: `k8s.localhost`. Lower case, no dots at the ends.
    pub dynamic_host: String,
    /// Whether a proxy in front says who the client is. Default: off.
    pub proxy_protocol: ProxyProtocol,
    /// By host, lower case: `web.localhost`, or `*.web.localhost` for every name below.
    pub routes: BTreeMap<String, HttpRoute>,
}

/// `tcp:` in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Tcp {
    pub idle_timeout: Duration,
    /// Whether a proxy in front says who the client is. Default: off.
    pub proxy_protocol: ProxyProtocol,
    pub kubeconfig: KubeconfigPaths,
    /// By the first address that is listened on; those of `tcp.k8s.jump` among them.
    pub routes: BTreeMap<SocketAddr, TcpRoute>,
}

/// Destination of a route: the workload, its namespace, context and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// None: [`Config::default_context`], then the kubeconfig's current context.
    pub context: Option<ContextName>,
    /// None: the alias's, then the context's, then `default`.
    pub namespace: Option<Namespace>,
    pub workload: Workload,
    pub port: PortRef,
    /// Goes on from the pod to a host that only the cluster can reach.
    pub jump: Option<Jump>,
}

/// Workload of a destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Workload {
    /// Any ready pod of this Service.
    Service(Label),
    /// This pod.
    Pod(Subdomain),
    /// This pod, which has to belong to this Service (`{pod}.{service}` of a StatefulSet).
    PodOfService { pod: Subdomain, service: Label },
    /// An address in the cluster: the Service with this ClusterIP, else the pod.
    Address(IpAddr),
}

/// Treatment of a client's TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientTls {
    /// It ends here, behind a certificate of ours.
    Terminate,
    /// It goes on to a backend that speaks TLS.
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
    /// This one, with a port where it has one. Origin and the X-Forwarded headers name it too, for dev servers that refuse others.
    Fixed(String),
}

/// How adit speaks to the backend of an HTTP route.
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

/// How requests of a route are treated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpOptions {
    /// None: from the port's appProtocol, its name, its number.
    pub scheme: Option<Scheme>,
    /// Treatment of a client's TLS. None: passthrough to a backend that speaks TLS, and termination where an authority of this user
    /// vouches for the name and no port is named.
    pub client_tls: Option<ClientTls>,
    /// TLS settings for an https backend.
    pub tls: BackendTls,
    /// Changes of the request's headers, after adit's own.
    pub request_headers: HeaderRules,
    /// Changes of the answer's headers.
    pub response_headers: HeaderRules,
    /// The name that the backend is sent. Default: the client's; its own for a jump.
    pub host: HostHeader,
    /// Redirects and cookies that are rewritten to the client's name. None: those of the requested host; true: those
    /// of the backend's own names as well, the default for a jump; false: none.
    pub rewrite_location: Option<bool>,
    /// Origins whose pages may send changes, beside the Service's own: `https://app.example.com`, or `*`.
    pub allow_origins: Vec<String>,
}

/// TLS settings for an https backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BackendTls {
    /// Verifies the backend's certificate. Default: false, as pods' certificates are
    /// rarely made out to a name that the laptop knows; true where a `ca` is given.
    pub verify: bool,
    /// A PEM file of certificate authorities to verify with. None: the system's.
    pub ca: Option<PathBuf>,
    /// Server name (SNI) for the backend, and for its verification. None: the request's host.
    pub server_name: Option<String>,
    /// Client certificate for a backend that asks for one.
    pub client_cert: Option<KeyPairFiles>,
}

/// PEM files of a certificate chain and its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyPairFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Headers that are set, then removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderRules {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

impl Tcp {
    /// Returns the route that listens on an address, with the address that it is known by.
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
    /// `[::1]` beside 127.0.0.1, where the machine has it. None: an address was given, or something else listens there.
    pub also: Option<SocketAddr>,
    /// Default: [`Tcp::idle_timeout`].
    pub idle_timeout: Duration,
}

/// Target and method of a jump (`tcp.k8s.jump`). Its pod is the destination's workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Jump {
    /// None: the pod's default container.
    pub container: Option<Label>,
    /// Creates the pod where it does not exist.
    pub create: Option<JumpPod>,
    /// As the pod knows it.
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

/// The program in the pod that a jump goes through. Default: Auto.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum JumpMethod {
    Auto,
    Socat,
    Nc,
}
