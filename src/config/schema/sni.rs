//! The part `sni` of the schema.

use schemars::JsonSchema;
use serde::Serialize;

use super::{GoDuration, Port, ProxyProtocol, TimeLimit};

/// A listener that routes TLS and PostgreSQL connections by server name, without decrypting them.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sni {
    /// The address: 127.0.0.1:19000.
    listen: String,
    /// Stop a command this long after its last connection. 0: never. Default: 10m.
    idle_timeout: Option<GoDuration>,
    /// Time limit until a command listens. Default: 15s.
    startup_timeout: Option<TimeLimit>,
    /// Port range for commands. Default: 20000-20999.
    port_range: Option<String>,
    /// Whether each connection starts with a PROXY header. Default: off.
    proxy_protocol: Option<ProxyProtocol>,
    /// Addresses and networks of the proxies whose PROXY headers are accepted.
    trusted_proxies: Option<Vec<String>>,
    /// Whether a reload may add commands; only the value at the start counts. Default: false.
    allow_commands: Option<bool>,
    cloudflared: Option<Cloudflared>,
    /// By server name: `db1.example.com`, or `*.example.com` for every name below.
    routes: Option<std::collections::BTreeMap<String, SniRoute>>,
}

/// Settings of cloudflared.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Cloudflared {
    /// Path of the program. Default: cloudflared in PATH.
    path: Option<String>,
    /// Variable of adit's environment with the ID of the service token. Needs service_token_secret_env.
    service_token_id_env: Option<String>,
    /// Variable of adit's environment with the secret of the service token.
    service_token_secret_env: Option<String>,
}

/// Backend of a server name: one of cloudflared, command and k8s.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SniRoute {
    /// Connect through `cloudflared access tcp`.
    cloudflared: Option<SniCloudflared>,
    /// Connect through a program.
    command: Option<Command>,
    /// Connect to a Service or a pod.
    k8s: Option<SniK8s>,
    /// Send the client's address to the backend in a PROXY header of this version.
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
    /// The program and its arguments; {port} stands for the port to listen on.
    run: Vec<String>,
    /// listen: the program listens on {port}; stdio: it serves one connection on standard input and output. Default: listen.
    mode: Option<CommandMode>,
    /// Environment variables to set.
    env: Option<std::collections::BTreeMap<String, String>>,
    /// Environment variables to copy from adit's environment: new name, own name.
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
