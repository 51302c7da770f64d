//! The answers of the API. Field names are part of the API; times are RFC 3339 in UTC.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use jiff::{Timestamp, Unit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    FORMAT,
    attention::{self, Attention},
    exchange::ExchangeRow,
    ways,
};
use crate::{
    admin::api::source::{Facts, LocalStatus, Source},
    config::{ContextName, validate::says_production},
    journal::{self, Entry, Happened, Percentiles},
    telemetry::Line,
    tunnel::{SignInSnapshot, TunnelSnapshot},
};

/// The running adit: its listeners, contexts, configuration and tunnels.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Version of the format.
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    #[serde(flatten)]
    pub overview: Overview,
    /// The last complete second.
    pub last_second: Second,
    pub first_byte_ms: FirstByte,
    pub tunnels: Vec<Tunnel>,
    /// Sign-ins that are in progress, or have failed.
    pub sign_ins: Vec<SignIn>,
    /// Problems that need a person, each with a hint and a command.
    pub attention: Vec<Attention>,
}

/// A sign-in of a user of a kubeconfig.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SignIn {
    /// `user "ana" of /home/ana/.kube/config`.
    pub user: String,
    /// Program or provider that issues the credential: `'aws'`.
    pub issuer: String,
    /// `running` or `failed`.
    pub state: String,
    /// Running: seconds since it began. Failed: seconds until the next one may begin.
    pub seconds: u64,
    /// Reason of the failure.
    pub error: Option<String>,
    /// Last lines of its output.
    pub said: Vec<String>,
}

/// Facts about the process. Only a reload changes them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Overview {
    pub version: String,
    pub pid: u32,
    /// Start of the process.
    pub started: String,
    /// Configuration file. null: adit uses the defaults.
    pub config: Option<PathBuf>,
    /// Kubeconfig files, in the order of $KUBECONFIG.
    pub kubeconfig: Vec<PathBuf>,
    /// Addresses of the HTTP listener, which also takes TLS.
    #[schemars(with = "Vec<String>")]
    pub http: Vec<SocketAddr>,
    /// Addresses of the TCP routes.
    #[schemars(with = "Vec<String>")]
    pub tcp: Vec<SocketAddr>,
    /// Context of names that set none.
    pub context: Option<String>,
    /// Value of --namespace. null: not set.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Local time at which the current configuration was loaded.
    pub loaded_at: String,
    /// Reason that the last change of the file was not applied.
    pub rejected: Option<String>,
    /// Ports of this machine that relays make reachable.
    pub local: Vec<LocalStatus>,
    /// Contexts of the kubeconfig.
    #[serde(default)]
    pub contexts: Vec<ContextRow>,
}

/// A context of the kubeconfig.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ContextRow {
    pub name: String,
    /// Alias of the context in hostnames. null: it has none.
    pub alias: Option<String>,
    /// Whether this is the context of names that set none.
    pub is_default: bool,
    /// Whether pages mark it as production.
    pub production: bool,
    /// Allowed HTTP methods. null: all.
    pub methods: Option<Vec<String>>,
    /// Minutes until it is locked again. null: it is not unlocked.
    pub unlocked_minutes: Option<u64>,
    /// Whether adit has used it since adit started.
    #[serde(default)]
    pub is_used: bool,
    /// Time of the first request without an answer since the last answer. null: its API server answers.
    pub unreachable_since: Option<String>,
    /// Time when the credential of the sign-in expires. null: it does not, or nobody has signed in.
    pub sign_in_ends: Option<String>,
}

/// Counters of one second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Second {
    /// Start of the second.
    pub time: String,
    /// Requests and connections that ended.
    pub requests: u32,
    /// Those of them that failed, and not because of the client.
    pub errors: u32,
    /// Bytes from clients to pods.
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// Maximum number of open client connections.
    pub connections: u32,
}

/// Percentiles of the time from a request to the first byte of its answer, in milliseconds. null: no request yet.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FirstByte {
    /// Number of measured requests.
    pub count: u64,
    pub p50: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
}

/// All tunnels.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Tunnels {
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    pub tunnels: Vec<Tunnel>,
}

/// A tunnel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tunnel {
    /// Id in paths: `CONTEXT/NAMESPACE/SERVICE:PORT`.
    pub id: String,
    /// The target.
    pub target: String,
    /// `starting`, `running`, `failed` or `stopping`.
    pub state: String,
    /// Pods that streams now go to.
    pub pods: Vec<String>,
    /// Deprecated: the pods as one text. null: none.
    pub pod: Option<String>,
    /// Transport: `spdy`, `spdy over websocket` and others.
    pub transport: Option<String>,
    /// Open upgraded connections to the API server.
    pub connections: u64,
    /// Open streams to pods.
    pub streams: u64,
    /// Streams opened since the tunnel was created.
    pub streams_total: u64,
    /// Requests and connections that keep the tunnel open.
    pub leases: u64,
    /// Requests and connections that have ended.
    pub requests: u64,
    /// Those of them that failed, and not because of the client.
    pub errors: u64,
    /// The same, for the last five minutes.
    pub recent_requests: u64,
    pub recent_errors: u64,
    /// Context of its pods. null: its target is not in a cluster.
    pub context: Option<String>,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub first_byte_ms: FirstByte,
    /// Seconds since the last use. null: in use.
    pub idle_seconds: Option<u64>,
    /// Seconds until it closes as idle. null: in use, or it stays open.
    pub closes_in_seconds: Option<u64>,
    pub last_error: Option<String>,
}

/// One tunnel, with its history.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TunnelAnswer {
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    pub id: String,
    /// null: the tunnel has closed.
    pub tunnel: Option<Tunnel>,
    /// Last 20 events, newest first.
    pub events: Vec<EventRow>,
    /// Histogram of the time to the first byte of an answer. Empty buckets are left out.
    pub first_byte: Vec<Bucket>,
    /// Number of requests and connections that ended in each of the last 300 seconds, oldest first.
    #[serde(default)]
    pub per_second: Vec<u32>,
    /// URLs of the names and routes that use it.
    pub names: Vec<String>,
    /// Equivalent kubectl command. null: kubectl cannot do it, or the tunnel has closed.
    pub kubectl: Option<String>,
}

/// An event of a tunnel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventRow {
    pub time: String,
    /// `opened`, `failed`, `lost`, `new-pod`, `retried`, `idle`, `stopped` or `reconnect`.
    pub event: String,
    /// Pod, or reason.
    pub text: String,
}

/// A bucket of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bucket {
    /// Upper bound in milliseconds. The lower bound is at least 80 % of it.
    pub upto_ms: f64,
    pub count: u64,
}

/// Last requests and connections, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Requests {
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    pub requests: Vec<Row>,
}

/// One request or connection.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RequestAnswer {
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    #[serde(flatten)]
    pub request: Row,
    /// Heads and bodies. null: not recorded.
    pub exchange: Option<ExchangeRow>,
}

/// A request, or a connection that is not HTTP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Row {
    /// Number, from 1 at the start of the process.
    pub id: u64,
    /// `http`, `grpc`, `websocket`, `sse`, `tcp`, `tls`, `sni`, `postgres`, `socks` or `connect`.
    pub kind: String,
    /// Time of the start.
    pub time: String,
    /// Id of the client's connection in the log.
    pub connection: u64,
    pub method: Option<String>,
    /// Name or local address that the client used.
    pub host: String,
    /// Path without the query. Empty: not HTTP.
    pub path: String,
    pub status: Option<u16>,
    /// Code of adit's error page, or the way a connection broke.
    pub error: Option<String>,
    pub route: Option<String>,
    /// Id of the tunnel.
    pub tunnel: Option<String>,
    pub pod: Option<String>,
    /// Number of retries by adit.
    pub retries: u32,
    /// Id of the request that this one replays.
    pub replay_of: Option<u64>,
    /// gRPC status.
    pub grpc_status: Option<u32>,
    /// Messages from the pod: Server-Sent Events, or, after the end, messages of a WebSocket.
    pub messages: u64,
    /// Messages from the client of a WebSocket, after the end.
    #[serde(default)]
    pub messages_up: u64,
    /// Milliseconds until the tunnel was running.
    pub tunnel_ms: Option<f64>,
    /// Milliseconds until the connection to the pod was ready.
    pub connected_ms: Option<f64>,
    /// Milliseconds to the first byte of the answer.
    pub first_byte_ms: Option<f64>,
    /// Milliseconds to the end. null: still in progress.
    pub took_ms: Option<f64>,
    pub bytes_up: u64,
    pub bytes_down: u64,
}

/// Routes and Services that can be reached.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Services {
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    pub services: Vec<Service>,
    /// Reasons that Services are missing from the list.
    pub problems: Vec<Problem>,
}

/// A port of a Service, or a route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Service {
    /// `NAMESPACE/SERVICE`, or the host or address of a route.
    pub name: String,
    /// Number and name of the port. null: a route.
    pub port: Option<String>,
    /// `http://…`, `postgresql://…` or `tcp://ADDRESS`. Empty: no URL can contain the name of its context, or its protocol
    /// needs a TCP route.
    pub url: String,
    /// The target of the URL, or the reason that it has none.
    pub target: String,
    /// `service`; or the kind of the route: `http`, `tcp`, `sni`, or `jump` for one with `via`.
    pub from: String,
    pub context: Option<String>,
    pub namespace: Option<String>,
    /// Protocol according to the port's name and number: `http`, `grpc`, `postgres`, `redis`, `mongodb`, `mysql`, `ssh`, `tcp` or
    /// `unknown`.
    pub speaks: String,
    /// Id of its tunnel, open or not.
    pub tunnel: Option<String>,
    /// Local address for clients of other protocols than HTTP. null: no TCP route has this target.
    pub address: Option<String>,
    /// Shell command that opens it.
    pub command: Option<String>,
    /// Configuration lines that it needs: a local port, or an alias of its context. null: none.
    pub missing_route: Option<String>,
    /// Number of ready pods. null: not requested (`?pods=1`), a route, or no permission to list EndpointSlices.
    pub ready: Option<u64>,
    pub pods: Option<u64>,
}

/// The current configuration.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ConfigAnswer {
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    /// Configuration file. null: adit uses the defaults.
    pub file: Option<PathBuf>,
    /// Local time at which it was loaded.
    pub loaded_at: String,
    /// Reason that the last change of the file was not applied.
    pub rejected: Option<String>,
    /// Keys that the last reload changed; `+` marks added and `-` removed ones. Empty: no reload yet.
    #[serde(default)]
    pub changed: Vec<String>,
    /// Content of the file. Secrets are replaced by `(hidden, 32 bytes)`.
    pub config: serde_json::Value,
}

/// Last lines of the log, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Log {
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    pub log: Vec<LogRow>,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LogRow {
    /// Number, from 1 at the start of the process.
    pub id: u64,
    pub time: String,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    pub text: String,
}

/// Answer to a request that failed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    pub error: Problem,
}

/// A problem.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// Stable code, if it has one.
    pub code: Option<String>,
    pub message: String,
    pub cause: Option<String>,
    /// Next step for the user.
    pub hint: Option<String>,
    /// Whether a later try may succeed without any change.
    #[serde(default)]
    pub may_pass: bool,
}

impl Status {
    pub fn of(source: &Source) -> Self {
        let (journal, tunnels, sign_ins) = (source.journal(), source.tunnels(), SignIn::all(source));
        Self {
            format: FORMAT,
            overview: Overview::of(source),
            last_second: Second::of(journal, &journal.last_second().unwrap_or_default()),
            first_byte_ms: journal.first_byte().into(),
            attention: attention::of(source, &tunnels, &sign_ins),
            tunnels: tunnels.iter().map(Tunnel::of).collect(),
            sign_ins,
        }
    }
}

impl SignIn {
    pub fn all(source: &Source) -> Vec<Self> {
        source.sign_ins().into_iter().map(Self::of).collect()
    }

    fn of(SignInSnapshot { user, issuer, state, seconds, error, said }: SignInSnapshot) -> Self {
        Self { user, issuer, state, seconds, error, said }
    }
}

impl Overview {
    pub fn of(source: &Source) -> Self {
        let Facts { config, http, tcp, context, namespace, loaded_at, rejected, local, changed: _ } = source.facts();
        let local = local.into_iter().map(|(_, status)| status).collect();
        let kubeconfig = source.router().config.http.kubeconfig.0.clone();
        let started = time(source.journal().started());
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let pid = std::process::id();
        let contexts = ContextRow::all(source, context.as_deref());
        Self {
            version,
            pid,
            started,
            config,
            kubeconfig,
            http,
            tcp,
            context,
            namespace,
            loaded_at,
            rejected,
            local,
            contexts,
        }
    }
}

impl ContextRow {
    fn all(source: &Source, default: Option<&str>) -> Vec<Self> {
        let router = source.router();
        let row = |name: &ContextName| {
            let alias = router.config.alias_of(name);
            let methods = alias.and_then(|(_, alias)| alias.methods.as_ref());
            let left = source.locks().time_left(name);
            let health = source.health(name);
            Self {
                name: name.to_string(),
                alias: alias.map(|(alias, _)| alias.clone()),
                is_default: default == Some(name.as_str()),
                production: alias.map_or_else(|| says_production(name), |(_, alias)| alias.production),
                methods: methods.map(|methods| methods.iter().map(ToString::to_string).collect()),
                unlocked_minutes: left.map(|left| left.as_secs().div_ceil(60)),
                is_used: health.is_some(),
                unreachable_since: health.and_then(|health| health.lost_since).map(time),
                sign_in_ends: health.and_then(|health| health.sign_in_ends).map(time),
            }
        };
        router.http_contexts.namespaces.keys().map(row).collect()
    }
}

impl Second {
    pub fn of(journal: &journal::Journal, second: &journal::Second) -> Self {
        let journal::Second { requests, errors, up, down, connections, .. } = *second;
        let time = time(journal.time_of(second.second));
        Self { time, requests, errors, bytes_up: up, bytes_down: down, connections }
    }
}

impl From<Percentiles> for FirstByte {
    fn from(Percentiles { count, p50, p95, p99 }: Percentiles) -> Self {
        Self { count, p50, p95, p99 }
    }
}

impl Tunnels {
    pub fn of(source: &Source) -> Self {
        Self { format: FORMAT, tunnels: source.tunnels().iter().map(Tunnel::of).collect() }
    }
}

impl Tunnel {
    pub fn of(snapshot: &TunnelSnapshot) -> Self {
        let pods = snapshot.target.as_ref().and_then(|target| target.pods());
        Self {
            id: snapshot.id.to_string(),
            target: snapshot.id.to_string(),
            state: snapshot.state.to_owned(),
            pods: snapshot.pods.clone(),
            pod: (!snapshot.pods.is_empty()).then(|| snapshot.pods.join(", ")),
            transport: snapshot.transport.map(str::to_owned),
            connections: snapshot.connections,
            streams: snapshot.streams,
            streams_total: snapshot.streams_total,
            leases: snapshot.leases,
            requests: snapshot.requests,
            errors: snapshot.errors,
            recent_requests: snapshot.recent.0,
            recent_errors: snapshot.recent.1,
            context: pods.map(|pods| pods.cluster.context.to_string()),
            bytes_up: snapshot.bytes_up,
            bytes_down: snapshot.bytes_down,
            first_byte_ms: snapshot.first_byte.into(),
            idle_seconds: snapshot.idle.map(|idle| idle.as_secs()),
            closes_in_seconds: snapshot.closes_in.map(|left| left.as_secs()),
            last_error: snapshot.last_error.clone(),
        }
    }
}

impl TunnelAnswer {
    /// Returns `None` if no tunnel or history has this id.
    pub fn of(source: &Source, id: &str) -> Option<Self> {
        let snapshot = source.tunnel(id);
        let tunnel = snapshot.as_ref().map(Tunnel::of);
        let history = source.journal().past(id);
        if tunnel.is_none() && history.is_none() {
            return None;
        }
        let events = history.iter().flat_map(|history| history.events()).map(|event| EventRow::of(&event)).collect();
        let buckets = history.iter().flat_map(|history| history.first_byte_counts());
        let first_byte = buckets.map(|(upto_ms, count)| Bucket { upto_ms, count }).collect();
        let per_second = history.as_ref().map(|history| history.per_second()).unwrap_or_default();
        let kubectl = snapshot.as_ref().and_then(|tunnel| ways::kubectl(tunnel.target.as_ref()?, tunnel.ports));
        let names = {
            let target = snapshot.as_ref().and_then(|tunnel| tunnel.target.as_ref());
            ways::names(&source.router(), id, target, source.facts().port())
        };
        Some(Self { format: FORMAT, id: id.to_owned(), tunnel, events, first_byte, per_second, names, kubectl })
    }
}

impl EventRow {
    fn of(Happened { at, event, text }: &Happened) -> Self {
        Self { time: time(*at), event: event.as_str().to_owned(), text: text.to_string() }
    }
}

impl RequestAnswer {
    pub fn of(entry: &Entry, journal: &journal::Journal) -> Self {
        Self { format: FORMAT, request: Row::of(entry), exchange: ExchangeRow::of(entry, journal) }
    }
}

impl Requests {
    pub fn of(source: &Source) -> Self {
        Self { format: FORMAT, requests: source.journal().since(0).0.iter().map(Row::of).collect() }
    }
}

impl Row {
    pub fn of(entry: &Entry) -> Self {
        let text = |text: &std::sync::Arc<str>| text.to_string();
        Self {
            id: entry.id,
            kind: entry.kind.as_str().to_owned(),
            time: time(entry.at),
            connection: entry.connection,
            method: entry.method.as_ref().map(ToString::to_string),
            host: entry.host.to_string(),
            path: entry.path.to_string(),
            status: entry.status,
            error: entry.error.as_ref().map(ToString::to_string),
            route: entry.route.as_ref().map(text),
            tunnel: entry.tunnel.as_ref().map(text),
            pod: entry.pod.as_ref().map(text),
            retries: entry.retries,
            replay_of: entry.replay_of,
            grpc_status: entry.grpc_status,
            messages: entry.messages,
            messages_up: entry.messages_up,
            tunnel_ms: entry.tunnel_after.map(millis),
            connected_ms: entry.connected_after.map(millis),
            first_byte_ms: entry.first_byte.map(millis),
            took_ms: entry.took.map(millis),
            bytes_up: entry.bytes_up,
            bytes_down: entry.bytes_down,
        }
    }
}

impl ConfigAnswer {
    pub fn of(source: &Source) -> Self {
        let Facts { config: file, loaded_at, rejected, changed, .. } = source.facts();
        Self { format: FORMAT, file, loaded_at, rejected, changed, config: source.router().config.shown.clone() }
    }
}

impl Log {
    pub fn of(source: &Source) -> Self {
        Self { format: FORMAT, log: source.log().iter().rev().map(LogRow::of).collect() }
    }
}

impl LogRow {
    pub fn of(line: &Line) -> Self {
        let level = line.level.as_str().to_lowercase();
        Self { id: line.id, time: time(line.at), level, text: line.text.to_string() }
    }
}

/// Returns a time in RFC 3339, rounded to milliseconds.
pub fn time(at: SystemTime) -> String {
    let at = Timestamp::try_from(at).unwrap_or_default();
    at.round(Unit::Millisecond).unwrap_or(at).to_string()
}

/// Returns milliseconds, rounded to microseconds.
fn millis(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}
