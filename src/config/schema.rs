//! The JSON schema of the file, for editors. What it describes is checked in [`super::validate`]; a test holds the two
//! together.

#![expect(dead_code, reason = "the types are described, never built")]

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;

/// Returns the schema (JSON Schema 2020-12).
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(File).to_value()
}

/// Returns every key as a page for people (Markdown).
pub fn markdown() -> String {
    let schema = schema();
    let mut page = "# Configuration\n\nEvery key, as `adit schema -o markdown` writes them. Durations are `90s`, `60m`, `1h30m`; 0 means never.\n".to_owned();
    let mut waiting = vec![(String::new(), &schema)];
    while let Some((path, object)) = waiting.pop() {
        page += &match path.as_str() {
            "" => "\n## The file\n".to_owned(),
            path => format!("\n## `{path}`\n"),
        };
        if let Some(about) = object["description"].as_str().filter(|_| !path.is_empty()) {
            page += &format!("\n{about}\n");
        }
        page += "\n| key | value | |\n|---|---|---|\n";
        let mut below = Vec::new();
        for (key, value) in object["properties"].as_object().into_iter().flatten() {
            let (kind, inner, step) = kind(&schema, value);
            let about = value["description"].as_str().or_else(|| inner.and_then(|inner| inner["description"].as_str()));
            let needed = object["required"].as_array().is_some_and(|all| all.iter().any(|name| name == key));
            let needed = if needed { "**Required.** " } else { "" };
            page += &format!(
                "| `{key}` | {kind} | {needed}{} |\n",
                about.unwrap_or("").replace('|', "\\|").replace('\n', " ")
            );
            if let Some(inner) = inner {
                let dot = if path.is_empty() { "" } else { "." };
                below.push((format!("{path}{dot}{key}{step}"), inner));
            }
        }
        // In the order of the table.
        waiting.extend(below.into_iter().rev());
    }
    page
}

/// Returns what a value is in words, and the object in it, with how its path goes on.
fn kind<'s>(
    root: &'s serde_json::Value,
    value: &'s serde_json::Value,
) -> (String, Option<&'s serde_json::Value>, &'static str) {
    let value = resolved(root, value);
    if let Some(choices) = value["enum"].as_array() {
        let choices: Vec<String> =
            choices.iter().filter_map(|choice| Some(format!("`{}`", choice.as_str()?))).collect();
        return (choices.join(", "), None, "");
    }
    if value["properties"].is_object() {
        return ("keys below".to_owned(), Some(value), "");
    }
    if value["additionalProperties"].is_object() {
        let (inner, object, _) = kind(root, &value["additionalProperties"]);
        return (format!("by name: {inner}"), object, ".*");
    }
    let types: Vec<&str> = match &value["type"] {
        serde_json::Value::String(one) => vec![one],
        serde_json::Value::Array(several) => several.iter().filter_map(|kind| kind.as_str()).collect(),
        _ => Vec::new(),
    };
    if types.contains(&"array") {
        let (inner, object, _) = kind(root, &value["items"]);
        return (format!("list of: {inner}"), object, "[]");
    }
    let shown = types.into_iter().find(|kind| *kind != "null");
    match (shown, value["description"].as_str()) {
        (Some("string"), _) => ("text".to_owned(), None, ""),
        (Some("boolean"), _) => ("`true` or `false`".to_owned(), None, ""),
        (Some("integer"), _) => ("number".to_owned(), None, ""),
        (_, Some(about)) => (about.replace('|', "\\|"), None, ""),
        _ => ("text".to_owned(), None, ""),
    }
}

/// Follows a reference, and leaves out that there may be nothing.
fn resolved<'s>(root: &'s serde_json::Value, value: &'s serde_json::Value) -> &'s serde_json::Value {
    if let Some(name) = value["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
        return resolved(root, &root["$defs"][name]);
    }
    let choice = value["anyOf"].as_array().and_then(|all| all.iter().find(|choice| choice["type"] != "null"));
    choice.map_or(value, |choice| resolved(root, choice))
}

/// The configuration of adit.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "adit")]
#[allow(non_snake_case, reason = "the key is spelled as in Kubernetes")]
struct File {
    /// `adit/v1`; `autotunnel/v1` is accepted too.
    apiVersion: Option<ApiVersion>,
    /// Log each request and connection. Default: false.
    verbose: Option<bool>,
    /// Apply changes of the file while running. Default: true.
    auto_reload_config: Option<bool>,
    /// Folders that credential plugins are looked for in, before the usual ones.
    exec_path: Option<Vec<String>>,
    /// The context, or alias, of names and routes that give none. Default: the kubeconfig's current one.
    default_context: Option<String>,
    /// Short names for contexts.
    contexts: Option<std::collections::BTreeMap<String, ContextAlias>>,
    http: Option<Http>,
    tcp: Option<Tcp>,
    sni: Option<Sni>,
    expose: Option<Vec<Expose>>,
    admin: Option<Admin>,
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
    /// Default: 127.0.0.1:8989, and [::1] with it.
    listen: Option<String>,
    /// Close a tunnel after this long without a connection. 0: never. Default: 60m.
    idle_timeout: Option<GoDuration>,
    proxy_protocol: Option<ProxyProtocol>,
    /// Addresses and networks of proxies whose PROXY headers are believed.
    trusted_proxies: Option<Vec<String>>,
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

/// Where a host leads: to a Service or a pod.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct HttpRoute {
    /// Default: the current context.
    context: Option<String>,
    /// Default: the context's namespace.
    namespace: Option<String>,
    service: Option<String>,
    pod: Option<String>,
    /// A number or name. Default: the only one, or the one that a browser would mean.
    port: Option<Port>,
    /// What the backend speaks. Default: told by the port's appProtocol, name and number.
    scheme: Option<Scheme>,
    idle_timeout: Option<GoDuration>,
    /// The pod to go through, to a target that only the cluster can reach.
    via: Option<Via>,
    /// Where to go on to from there.
    target: Option<JumpTarget>,
    method: Option<JumpMethod>,
    /// Verify the certificate of an https backend. Default: false; true with a ca.
    verify: Option<bool>,
    /// A PEM file of the certificate authorities to verify with. Default: the system's.
    ca: Option<String>,
    /// The name that an https backend is asked for. Default: the request's host.
    server_name: Option<String>,
    /// A PEM file of the certificate chain to show to an https backend.
    client_cert: Option<String>,
    /// A PEM file of the key of client_cert.
    client_key: Option<String>,
    headers: Option<Headers>,
    /// Send the backend its own name as Host. Default: false; true with a target.
    rewrite_host: Option<bool>,
    /// Lead redirects and cookies of the backend's own names back to the name that the client used. Default: false; true with a target.
    rewrite_location: Option<bool>,
    /// Origins whose pages may send what changes something, beside those of this machine; * is every one.
    allow_origins: Option<Vec<String>>,
}

/// Changes of headers. `set` and `remove` beside `request` and `response` are about the request.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Headers {
    set: Option<std::collections::BTreeMap<String, String>>,
    remove: Option<Vec<String>>,
    request: Option<HeaderRules>,
    response: Option<HeaderRules>,
}

#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct HeaderRules {
    set: Option<std::collections::BTreeMap<String, String>>,
    remove: Option<Vec<String>>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Scheme {
    Http,
    Https,
    H2c,
}

/// Whether each connection starts with a PROXY header. Default: off.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ProxyProtocol {
    Off,
    Require,
}

/// A listener for TLS and PostgreSQL that never ends TLS: the server name decides where a connection goes.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Sni {
    listen: String,
    /// Default: 10m.
    idle_timeout: Option<GoDuration>,
    /// How long a command may take until it listens. Default: 15s.
    startup_timeout: Option<GoDuration>,
    /// The local ports that are lent to commands. Default: 20000-20999.
    port_range: Option<String>,
    proxy_protocol: Option<ProxyProtocol>,
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
    /// Default: cloudflared, looked for in PATH.
    path: Option<String>,
    /// The variable of our environment that has the id of the service token.
    service_token_id_env: Option<String>,
    service_token_secret_env: Option<String>,
}

/// Where a server name leads: one of cloudflared, command and k8s.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SniRoute {
    cloudflared: Option<SniCloudflared>,
    command: Option<Command>,
    k8s: Option<SniK8s>,
    /// Tell the backend who the client is, by a PROXY header of this version.
    send_proxy: Option<SendProxy>,
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
    /// Default: listen.
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
    context: Option<String>,
    namespace: Option<String>,
    service: Option<String>,
    pod: Option<String>,
    port: Option<Port>,
}

/// A port of this machine that is made reachable through a relay.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Expose {
    /// The port of the local service.
    port: u16,
    /// The relay: a host, with :7835 unless it is another port.
    to: String,
    /// Default: the secret is in $ADIT_SECRET.
    secret_file: Option<String>,
    /// Take the relay only by this fingerprint: sha256:...
    fingerprint: Option<String>,
    /// Take the relay only by a certificate of these authorities, a PEM file.
    ca: Option<String>,
    /// Default: 127.0.0.1.
    local_host: Option<String>,
    /// The public port that is wanted. Default: any.
    public_port: Option<u16>,
    /// Serve it by HTTP under this name of the relay's domain.
    name: Option<String>,
}

/// What adit tells of itself, beside its Unix socket.
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
    idle_timeout: Option<GoDuration>,
    proxy_protocol: Option<ProxyProtocol>,
    trusted_proxies: Option<Vec<String>>,
    k8s: Option<TcpK8s>,
}

#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TcpK8s {
    /// Default: that of http.
    kubeconfig: Option<String>,
    /// By local port.
    routes: Option<std::collections::BTreeMap<String, TcpRoute>>,
    /// By local port: hosts that only the cluster can reach, through a pod.
    jump: Option<std::collections::BTreeMap<String, Jump>>,
}

/// Where a local port leads: to a Service or a pod.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TcpRoute {
    context: Option<String>,
    namespace: Option<String>,
    service: Option<String>,
    pod: Option<String>,
    port: Option<Port>,
    /// The address to listen on. Default: 127.0.0.1.
    listen: Option<String>,
    idle_timeout: Option<GoDuration>,
}

#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Jump {
    context: Option<String>,
    namespace: Option<String>,
    via: Via,
    target: JumpTarget,
    method: Option<JumpMethod>,
}

/// The pod to go through.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Via {
    service: Option<String>,
    pod: Option<String>,
    container: Option<String>,
    create: Option<Create>,
}

/// The pod that is created where it does not exist.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    image: String,
    command: Option<Vec<String>>,
    timeout: Option<GoDuration>,
}

#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct JumpTarget {
    host: String,
    port: u16,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum JumpMethod {
    Auto,
    Socat,
    Nc,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::validate;

    #[test]
    fn the_page_of_keys_is_that_of_the_schema() {
        let page = include_str!("../../docs/configuration.md");
        assert_eq!(page, markdown(), "adit schema -o markdown > docs/configuration.md");
    }

    #[test]
    fn the_schema_has_the_keys_that_are_read_and_no_others() {
        let schema = schema();
        let keys = |name: &str| -> BTreeSet<String> {
            let part = if name.is_empty() { &schema } else { &schema["$defs"][name] };
            part["properties"].as_object().expect(name).keys().cloned().collect()
        };
        for (name, known) in [
            ("", validate::ROOT),
            ("ContextAlias", validate::CONTEXT),
            ("Http", validate::HTTP),
            ("HttpK8s", validate::HTTP_K8S),
            ("HttpRoute", validate::HTTP_ROUTE),
            ("Headers", validate::HEADERS),
            ("HeaderRules", validate::HEADER_RULES),
            ("Admin", validate::ADMIN),
            ("Expose", validate::EXPOSE),
            ("Sni", validate::SNI),
            ("Cloudflared", validate::CLOUDFLARED),
            ("SniRoute", validate::SNI_ROUTE),
            ("SniCloudflared", validate::SNI_CLOUDFLARED),
            ("Command", validate::COMMAND),
            ("SniK8s", validate::SNI_K8S),
            ("Tcp", validate::TCP),
            ("TcpK8s", validate::TCP_K8S),
            ("TcpRoute", validate::TCP_ROUTE),
            ("Jump", validate::JUMP),
            ("Via", validate::VIA),
            ("Create", validate::CREATE),
            ("JumpTarget", validate::TARGET),
        ] {
            assert_eq!(keys(name), known.iter().map(|key| (*key).to_owned()).collect(), "{name}");
        }
    }
}
