//! The JSON schema of the file, for editors. Its keys are those that [`super::validate`] takes ([`super::keys`]).

#![expect(dead_code, reason = "the types are described, never built")]

mod sni;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;

use self::sni::Sni;

/// Returns the schema (JSON Schema 2020-12).
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(File).to_value()
}

/// The configuration of adit.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "adit")]
#[expect(non_snake_case, reason = "the key is spelled as in Kubernetes")]
struct File {
    /// `adit/v1`; `autotunnel/v1` is accepted too.
    apiVersion: Option<ApiVersion>,
    /// Log each request and connection. Default: false.
    verbose: Option<bool>,
    /// Apply changes of the file while running. Default: true.
    auto_reload_config: Option<bool>,
    /// Threads that carry data, 1 to 1024; a restart applies a change. Default: one per core, at most 4.
    #[schemars(range(min = 1, max = 1024))]
    workers: Option<u16>,
    /// Folders that credential plugins are looked for in, before the usual ones.
    exec_path: Option<Vec<String>>,
    /// The context, or alias, of names and routes that give none. Default: the kubeconfig's current one.
    default_context: Option<String>,
    /// Short names for contexts.
    contexts: Option<std::collections::BTreeMap<String, ContextAlias>>,
    http: Option<Http>,
    tcp: Option<Tcp>,
    sni: Option<Sni>,
    /// Ports of this machine that are made reachable through relays, as 'adit local' does.
    local: Option<Vec<Local>>,
    /// The former name of local.
    expose: Option<Vec<Local>>,
    proxy: Option<Proxy>,
    admin: Option<Admin>,
    /// The dashboard at http://adit.localhost on the listener of HTTP. Default: on.
    dashboard: Option<OnOff>,
    /// A file that gets a line of JSON for each request and connection: who, what, where, how long. Default: none.
    audit: Option<String>,
}

/// on or off.
#[derive(Serialize)]
struct OnOff;

impl JsonSchema for OnOff {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OnOff".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({"description": "on or off", "enum": ["on", "off", true, false]})
    }
}

#[derive(Serialize, JsonSchema)]
enum ApiVersion {
    #[serde(rename = "adit/v1")]
    Adit,
    #[serde(rename = "autotunnel/v1")]
    Autotunnel,
}

/// A context under a name that fits into a hostname.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ContextAlias {
    /// The context's name in the kubeconfig.
    name: String,
    /// The namespace of names and routes that give none.
    namespace: Option<String>,
    /// Whether hostnames without a route may reach this context. Default: allow.
    dynamic: Option<Dynamic>,
    /// The methods of HTTP that it takes, for example [GET, HEAD, OPTIONS]; 'adit unlock' lifts this for a while. Default: every one.
    methods: Option<Vec<String>>,
    /// Show it as production in the dashboard. Default: true where its name has the word prod or production.
    production: Option<bool>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Dynamic {
    Allow,
    Deny,
}

/// The listener for HTTP and TLS.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Http {
    /// The address, or a list of them. Default: 127.0.0.1:8989, and [::1] with it.
    listen: Option<Addresses>,
    /// Close a tunnel after this long without a connection. 0: never. Default: 60m.
    idle_timeout: Option<GoDuration>,
    /// Whether each connection starts with a PROXY header. Default: off.
    proxy_protocol: Option<ProxyProtocol>,
    /// Addresses and networks of proxies whose PROXY headers are believed.
    trusted_proxies: Option<Vec<String>>,
    /// Routes by host.
    k8s: Option<HttpK8s>,
}

#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct HttpK8s {
    /// Kubeconfig files, a list like $KUBECONFIG. Default: $KUBECONFIG, then ~/.kube/config, then the pod's own account.
    kubeconfig: Option<String>,
    /// The suffix of long dynamic names. Default: k8s.localhost.
    dynamic_host: Option<String>,
    /// By host: `web.localhost`, or `*.web.localhost` for every name below.
    routes: Option<std::collections::BTreeMap<String, Option<HttpRoute>>>,
}

/// Route of a host: to a Service or a pod.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct HttpRoute {
    /// Default: the current context.
    context: Option<String>,
    /// Default: the context's namespace.
    namespace: Option<String>,
    /// The Service. One of service and pod, or via.
    service: Option<String>,
    /// The pod.
    pod: Option<String>,
    /// A number or name. Default: the only one, or the one that a browser would mean.
    port: Option<Port>,
    /// Protocol of the backend. Default: by the port's appProtocol, name and number, and by the backend's answers.
    scheme: Option<Scheme>,
    /// Terminate a client's TLS here, or pass it through to a backend that speaks TLS. Default: passthrough; terminate with a CA of adit trust install where no port is named.
    tls: Option<ClientTls>,
    /// Default: that of http.
    idle_timeout: Option<GoDuration>,
    /// The pod to go through, to a target that only the cluster can reach.
    via: Option<Via>,
    /// Target of the jump.
    target: Option<JumpTarget>,
    /// Program in the pod of via that copies the bytes; auto uses an installed one. Default: auto.
    method: Option<JumpMethod>,
    /// Verify the certificate of an https backend. Default: false; true with a ca.
    verify: Option<bool>,
    /// A PEM file of the certificate authorities to verify with. Default: the system's.
    ca: Option<String>,
    /// Server name (SNI) for an https backend. Default: the request's host.
    server_name: Option<String>,
    /// A PEM file of the certificate chain to show to an https backend.
    client_cert: Option<String>,
    /// A PEM file of the key of client_cert.
    client_key: Option<String>,
    headers: Option<Headers>,
    /// Send the backend its own name as Host. Default: false; true with a target.
    rewrite_host: Option<bool>,
    /// Lead redirects and cookies back to the name that the client used: true: those of the backend's own names too; false: none. Default: those of the host that was asked for; true with a target.
    rewrite_location: Option<bool>,
    /// Origins whose pages may send what changes something, beside those of this machine; * is every one.
    allow_origins: Option<Vec<String>>,
}

/// Changes of headers. `set` and `remove` beside `request` and `response` are about the request.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Headers {
    /// Headers that a request gets, by name.
    set: Option<std::collections::BTreeMap<String, String>>,
    /// Headers that are taken from a request.
    remove: Option<Vec<String>>,
    /// The same, written out.
    request: Option<HeaderRules>,
    /// Changes to the headers of a response.
    response: Option<HeaderRules>,
}

#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct HeaderRules {
    /// Headers that it gets, by name.
    set: Option<std::collections::BTreeMap<String, String>>,
    /// Headers that are taken from it.
    remove: Option<Vec<String>>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Scheme {
    Http,
    Https,
    H2c,
}

/// Treatment of a client's TLS.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ClientTls {
    Terminate,
    Passthrough,
}

/// Whether each connection starts with a PROXY header. Default: off.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ProxyProtocol {
    Off,
    Require,
}

/// A port of this machine that is made reachable through a relay.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Local {
    /// The port of the local service.
    port: u16,
    /// The relay: a host, with :7835 unless it is another port.
    to: String,
    /// The file with the secret that the relay knows. Default: $ADIT_SECRET has it.
    secret_file: Option<String>,
    /// Take the relay only by this fingerprint: sha256:...
    fingerprint: Option<String>,
    /// Take the relay only by a certificate of these authorities, a PEM file.
    ca: Option<String>,
    /// The host of the local service. Default: 127.0.0.1 and [::1], whichever answers.
    local_host: Option<String>,
    /// The public port that is wanted. Default: any.
    public_port: Option<u16>,
    /// Serve it by HTTP under this name of the relay's domain.
    name: Option<String>,
    /// The Host header that the local service gets, for dev servers that refuse public names (Vite, webpack, Rails): rewrite, which means localhost and its port, or a host. Default: the public name.
    host: Option<String>,
}

/// Probes and metrics of adit beside its Unix socket.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Admin {
    /// An address on loopback for /healthz, /readyz and /metrics. Default: none.
    listen: Option<String>,
}

/// One listener per local port.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Tcp {
    /// Close a tunnel after this long without a connection. 0: never. Default: 60m.
    idle_timeout: Option<GoDuration>,
    /// Whether each connection starts with a PROXY header. Default: off.
    proxy_protocol: Option<ProxyProtocol>,
    /// Addresses and networks of proxies whose PROXY headers are believed.
    trusted_proxies: Option<Vec<String>>,
    /// Routes by local port.
    k8s: Option<TcpK8s>,
}

#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TcpK8s {
    /// Kubeconfig files. Default: those of http.
    kubeconfig: Option<String>,
    /// By local port: Services and pods.
    routes: Option<std::collections::BTreeMap<String, TcpRoute>>,
    /// By local port: hosts that only the cluster can reach, through a pod.
    jump: Option<std::collections::BTreeMap<String, Jump>>,
}

/// Route of a local port: to a Service or a pod.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TcpRoute {
    /// Default: the current context.
    context: Option<String>,
    /// Default: the context's namespace.
    namespace: Option<String>,
    /// The Service. One of service and pod.
    service: Option<String>,
    /// The pod.
    pod: Option<String>,
    /// A number or name. Default: the only one.
    port: Option<Port>,
    /// The address to listen on. Default: 127.0.0.1, and [::1] with it.
    listen: Option<String>,
    /// Default: that of tcp.
    idle_timeout: Option<GoDuration>,
}

#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Jump {
    /// Default: the current context.
    context: Option<String>,
    /// Default: the context's namespace.
    namespace: Option<String>,
    via: Via,
    /// Target of the jump.
    target: JumpTarget,
    /// Program in the pod that copies the bytes; auto uses an installed one. Default: auto.
    method: Option<JumpMethod>,
}

/// The pod to go through.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Via {
    /// Any ready pod of this Service.
    service: Option<String>,
    /// This pod.
    pod: Option<String>,
    /// Default: the one that kubectl would take.
    container: Option<String>,
    /// How the pod is made where it does not exist.
    create: Option<Create>,
}

/// The pod that is created where it does not exist.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    /// An image with socat or nc.
    image: String,
    /// Command of the container. Default: sleep for a day.
    command: Option<Vec<String>>,
    /// How long it may take until it is Ready. Default: 60s.
    timeout: Option<GoDuration>,
}

#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct JumpTarget {
    /// A name or an address, as the pod sees it.
    host: String,
    /// Its port.
    port: u16,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum JumpMethod {
    Auto,
    Socat,
    Nc,
}

/// The forward proxy: SOCKS5, CONNECT, and requests with a whole URL. `off`: there is none.
#[derive(Serialize)]
struct Proxy;

impl JsonSchema for Proxy {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Proxy".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "description": "The forward proxy: SOCKS5, CONNECT, and requests with a whole URL. off: there is none",
            "type": ["object", "string"],
            "pattern": "^off$",
            "properties": {
                "listen": {
                    "description": "Address of its own, host:port. Default: none, it is on the listener of HTTP.",
                    "type": "string"
                },
                "elsewhere": {
                    "description": "What to do for hosts outside of the cluster; direct reaches only addresses of the internet. Default: refuse.",
                    "type": "string",
                    "enum": ["refuse", "direct"]
                },
                "cluster_domain": {
                    "description": "The domain of the cluster's names. Default: cluster.local.",
                    "type": "string"
                }
            },
            "additionalProperties": false
        })
    }
}

/// An address, or a list of them.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is of use")]
enum Addresses {
    One(String),
    Several(Vec<String>),
}

/// `90s`, `60m`, `1h30m`; 0 means never.
#[derive(Serialize)]
struct GoDuration;

impl JsonSchema for GoDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "description": "90s, 60m, 1h30m; 0 means never",
            "oneOf": [{"type": "string", "pattern": "^(0|([0-9]+(\\.[0-9]+)?(ms|s|m|h|d))+)$"}, {"const": 0}]
        })
    }
}

/// A port number, or the name of a port.
#[derive(Serialize)]
struct Port;

impl JsonSchema for Port {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Port".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "description": "A port number, or the name of a port",
            "oneOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {"type": "string", "minLength": 1, "maxLength": 15}]
        })
    }
}
