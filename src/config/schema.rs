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
    /// Folders searched for credential plugins before PATH.
    exec_path: Option<Vec<String>>,
    /// Context, or alias, for names and routes that set none. Default: the kubeconfig's current one.
    default_context: Option<String>,
    /// Aliases of contexts, and rules for them.
    contexts: Option<std::collections::BTreeMap<String, ContextAlias>>,
    http: Option<Http>,
    tcp: Option<Tcp>,
    sni: Option<Sni>,
    /// Local ports exposed through relays, as 'adit local' does.
    local: Option<Vec<Local>>,
    /// The former name of local.
    expose: Option<Vec<Local>>,
    proxy: Option<Proxy>,
    admin: Option<Admin>,
    /// Serve the dashboard at http://adit.localhost:8989. Default: on.
    dashboard: Option<OnOff>,
    /// Audit log: a line of JSON for each request and connection, with client, target, status and duration. Default: none.
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

/// Alias of a context, for hostnames.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ContextAlias {
    /// The context's name in the kubeconfig.
    name: String,
    /// Namespace for names and routes that set none. Default: that of the context.
    namespace: Option<String>,
    /// Whether hostnames without a route may reach this context. Default: allow.
    dynamic: Option<Dynamic>,
    /// HTTP methods to allow, for example [GET, HEAD, OPTIONS]; 'adit unlock' allows all for a while. Default: all.
    methods: Option<Vec<String>>,
    /// Mark the context as production in the dashboard. Default: true if its name has the word prod, prd or production.
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
    /// Addresses and networks of the proxies whose PROXY headers are accepted.
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
    /// Default: default_context, else the current context.
    context: Option<String>,
    /// Default: the context's namespace.
    namespace: Option<String>,
    /// The Service. One of service and pod, or via.
    service: Option<String>,
    /// The pod.
    pod: Option<String>,
    /// A number or name. Default: the only port, else the HTTP port (see docs/names.md).
    port: Option<Port>,
    /// Protocol of the backend. Default: detected (see docs/protocols.md).
    scheme: Option<Scheme>,
    /// Terminate a client's TLS here, or pass it through to a backend that speaks TLS. Default: passthrough; terminate with a CA of 'adit trust install' if the name has no port.
    tls: Option<ClientTls>,
    /// Default: that of http.
    idle_timeout: Option<GoDuration>,
    /// Pod to reach the target through.
    via: Option<Via>,
    /// Target of the jump.
    target: Option<JumpTarget>,
    /// Program in the pod of via that copies the bytes; auto uses an installed one. Default: auto.
    method: Option<JumpMethod>,
    /// Verify the certificate of an https backend. Default: false; true with a ca.
    verify: Option<bool>,
    /// CA bundle (PEM) to verify the backend with. Default: that of the system.
    ca: Option<String>,
    /// Server name (SNI) for an https backend. Default: the request's host.
    server_name: Option<String>,
    /// Client certificate chain (PEM) for an https backend.
    client_cert: Option<String>,
    /// Private key (PEM) of client_cert.
    client_key: Option<String>,
    headers: Option<Headers>,
    /// Send the backend its own name as Host, and in Origin instead of the client's. Default: false; true with a target.
    rewrite_host: Option<bool>,
    /// Rewrite redirects and cookies to the client's host. true: the backend's own names too; false: never. Default: only the requested host; true with target.
    rewrite_location: Option<bool>,
    /// Origins allowed to send POST, PUT, DELETE and WebSocket requests, besides local ones; * allows all.
    allow_origins: Option<Vec<String>>,
}

/// Changes of headers. `set` and `remove` apply to the request.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Headers {
    /// Request headers to set, by name.
    set: Option<std::collections::BTreeMap<String, String>>,
    /// Request headers to remove.
    remove: Option<Vec<String>>,
    /// Changes of request headers, as `set` and `remove` above.
    request: Option<HeaderRules>,
    /// Changes of response headers.
    response: Option<HeaderRules>,
}

#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct HeaderRules {
    /// Headers to set, by name.
    set: Option<std::collections::BTreeMap<String, String>>,
    /// Headers to remove.
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

/// A local port exposed through a relay.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Local {
    /// The port of the local service.
    port: u16,
    /// Address of the relay: HOST[:PORT]. Default port: 7835.
    to: String,
    /// File with the secret shared with the relay. Default: the secret in $ADIT_SECRET.
    secret_file: Option<String>,
    /// SHA-256 fingerprint that the relay's certificate must have: sha256:... Default: any; the secret proves the relay.
    fingerprint: Option<String>,
    /// CA bundle (PEM) that must have signed the relay's certificate. Default: none; the secret proves the relay.
    ca: Option<String>,
    /// The host of the local service. Default: 127.0.0.1 and [::1], whichever answers.
    local_host: Option<String>,
    /// Public port to ask for. Default: any.
    public_port: Option<u16>,
    /// Name below the relay's domain that serves the port by HTTP.
    name: Option<String>,
    /// Host header for the local service: a host, or rewrite for localhost and its port, for dev servers that refuse public names (Vite, webpack, Rails). Default: the public name.
    host: Option<String>,
}

/// Probes and metrics on TCP, besides the Unix socket.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Admin {
    /// Loopback address for /healthz, /readyz and /metrics. Default: none.
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
    /// Addresses and networks of the proxies whose PROXY headers are accepted.
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
    /// By local port: hosts that only the cluster can reach.
    jump: Option<std::collections::BTreeMap<String, Jump>>,
}

/// Route of a local port: to a Service or a pod.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TcpRoute {
    /// Default: default_context, else the current context.
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
    /// Default: default_context, else the current context.
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
    /// Container to run the program in. Default: as kubectl chooses it.
    container: Option<String>,
    /// Creates the pod if it does not exist.
    create: Option<Create>,
}

/// The pod to create if it does not exist.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    /// An image with socat or nc.
    image: String,
    /// Command of the container. Default: sleep for a day.
    command: Option<Vec<String>>,
    /// Time limit until the pod is ready. Default: 60s.
    timeout: Option<TimeLimit>,
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

/// The forward proxy: SOCKS5, CONNECT, and absolute-form requests. `off` disables it.
#[derive(Serialize)]
struct Proxy;

impl JsonSchema for Proxy {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Proxy".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "description": "The forward proxy: SOCKS5, CONNECT, and absolute-form requests. off disables it.",
            "type": ["object", "string"],
            "pattern": "^off$",
            "properties": {
                "listen": {
                    "description": "Address to listen on, host:port. Default: that of http.listen.",
                    "type": "string"
                },
                "elsewhere": {
                    "description": "Policy for hosts outside the cluster; direct connects to public addresses only. Default: refuse.",
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

/// An address, a port of loopback, or a list of addresses.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is of use")]
enum Addresses {
    One(String),
    Port(u16),
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

/// `90s`, `10m`; more than 0.
#[derive(Serialize)]
struct TimeLimit;

impl JsonSchema for TimeLimit {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TimeLimit".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "description": "90s, 10m, 1h30m; more than 0",
            "oneOf": [{"type": "string", "pattern": "^([0-9]+(\\.[0-9]+)?(ms|s|m|h|d))+$"}]
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
