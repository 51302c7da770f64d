//! The part `sni` of the schema.

use schemars::JsonSchema;
use serde::Serialize;

use super::{GoDuration, Port, ProxyProtocol};

/// A listener for TLS and PostgreSQL that never ends TLS: the server name decides where a connection goes.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sni {
    /// The address: 127.0.0.1:19000.
    listen: String,
    /// Stop a command this long after its last connection. 0: never. Default: 10m.
    idle_timeout: Option<GoDuration>,
    /// How long a command may take until it listens. Default: 15s.
    startup_timeout: Option<GoDuration>,
    /// The local ports that are lent to commands. Default: 20000-20999.
    port_range: Option<String>,
    /// Whether each connection starts with a PROXY header. Default: off.
    proxy_protocol: Option<ProxyProtocol>,
    /// Addresses and networks of proxies whose PROXY headers are believed.
    trusted_proxies: Option<Vec<String>>,
    /// Whether a reload may bring new commands. Counts as first started. Default: false.
    allow_commands: Option<bool>,
    cloudflared: Option<Cloudflared>,
    /// By server name: `db1.example.com`, or `*.example.com` for every name below.
    routes: Option<std::collections::BTreeMap<String, SniRoute>>,
}

/// How cloudflared is started.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Cloudflared {
    /// The program. Default: cloudflared, looked for in PATH.
    path: Option<String>,
    /// The variable of our environment that has the id of the service token.
    service_token_id_env: Option<String>,
    /// The variable of our environment that has its secret.
    service_token_secret_env: Option<String>,
}

/// Backend of a server name: one of cloudflared, command and k8s.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SniRoute {
    /// Through `cloudflared access tcp`.
    cloudflared: Option<SniCloudflared>,
    /// Through any program.
    command: Option<Command>,
    /// To a Service or a pod.
    k8s: Option<SniK8s>,
    /// Tell the backend who the client is, by a PROXY header of this version.
    send_proxy: Option<SendProxy>,
    /// Default: that of sni.
    idle_timeout: Option<GoDuration>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum SendProxy {
    V1,
    V2,
}

#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SniCloudflared {
    /// The hostname that Cloudflare Access serves.
    hostname: String,
}

#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Command {
    /// The program and its arguments; {port} stands for the port that it is to listen on.
    run: Vec<String>,
    /// Whether it listens on {port}, or serves one connection over its standard input and output. Default: listen.
    mode: Option<CommandMode>,
    /// Variables that are set for it.
    env: Option<std::collections::BTreeMap<String, String>>,
    /// Variables that are passed on from our environment: its name, our name.
    env_from: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum CommandMode {
    Listen,
    Stdio,
}

#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SniK8s {
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
}
