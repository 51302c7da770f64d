//! The state of a running adit, for the API, the metrics and the log.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{feed::Feed, open::Opener, replay::Replayer};
use crate::{
    admin::keys::Keys,
    config::{ContextName, LocalPort},
    drain::Drain,
    guard::locks::Locks,
    journal::Journal,
    k8s::client::{Clusters, Health},
    metrics::{Exposition, Metrics},
    routing::{ClusterId, Router, SharedRouter},
    telemetry::{Line, Lines},
    tunnel::{Manager, SignInSnapshot, TunnelSnapshot},
};

/// Facts that change only with a reload.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// `None`: adit runs without a file.
    pub config: Option<PathBuf>,
    pub http: Vec<SocketAddr>,
    pub tcp: Vec<SocketAddr>,
    pub context: Option<String>,
    /// Namespace of the command line, for routes that set none.
    pub namespace: Option<String>,
    /// Local time at which the configuration in use was loaded.
    pub loaded_at: String,
    /// Why the last change of the file was rejected.
    pub rejected: Option<String>,
    /// Keys that the last reload changed.
    pub changed: Vec<String>,
    /// Local ports that relays make reachable, each with its entry of `local` in the configuration.
    pub local: Vec<(LocalPort, LocalStatus)>,
}

impl Facts {
    /// Returns the port of the HTTP listener; 0: there is none.
    pub fn port(&self) -> u16 {
        self.http.first().map_or(0, SocketAddr::port)
    }
}

/// A port of this machine, and how it stands with its relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocalStatus {
    pub port: u16,
    /// `host:port` of the relay.
    pub relay: String,
    /// The name that its entry wants.
    #[serde(default)]
    pub name: Option<String>,
    /// The public port that its entry wants. null: any, or a name.
    #[serde(default)]
    pub public_port: Option<u16>,
    /// `connecting`, `open` or `waiting`.
    pub state: String,
    /// How the public reaches it, while it is open.
    pub public: Option<String>,
    /// Why it is not open.
    pub reason: Option<String>,
    /// What to do if the local service refuses the Host header of its visitors, as dev servers do.
    pub hint: Option<String>,
}

impl LocalStatus {
    /// Returns the port and what its entry wants, which tells two entries of one port apart.
    pub fn entry(&self) -> String {
        let wanted = self.name.clone().or_else(|| Some(format!("port {}", self.public_port?)));
        format!("local port {}{}", self.port, wanted.map(|wanted| format!(" as {wanted}")).unwrap_or_default())
    }
}

/// Access to the state of a running adit, for the admin interface.
#[derive(Clone)]
pub struct Source {
    tunnels: Manager,
    metrics: Arc<Metrics>,
    drain: Drain,
    router: SharedRouter,
    pub clusters: Arc<Clusters>,
    lines: Lines,
    facts: Arc<Mutex<Facts>>,
    feed: Arc<Feed>,
    opener: Option<Arc<dyn Opener>>,
    keys: Option<Arc<Keys>>,
    replayer: Option<Arc<dyn Replayer>>,
    locks: Arc<Locks>,
}

/// Parts of a [`Source`].
pub struct Parts {
    pub tunnels: Manager,
    pub metrics: Arc<Metrics>,
    /// adit is ready until this drain starts.
    pub drain: Drain,
    pub router: SharedRouter,
    pub clusters: Arc<Clusters>,
    pub lines: Lines,
    pub facts: Facts,
    /// `None`: this adit opens no targets on request.
    pub opener: Option<Arc<dyn Opener>>,
    /// `None`: the dashboard is off.
    pub keys: Option<Arc<Keys>>,
    /// `None`: this adit replays no requests.
    pub replayer: Option<Arc<dyn Replayer>>,
    /// Contexts that `adit unlock` has unlocked.
    pub locks: Arc<Locks>,
}

impl Source {
    pub fn new(parts: Parts) -> Self {
        let Parts { tunnels, metrics, drain, router, clusters, lines, facts, opener, keys, replayer, locks } = parts;
        let facts = Arc::new(Mutex::new(facts));
        Self {
            tunnels,
            metrics,
            drain,
            router,
            clusters,
            lines,
            facts,
            feed: Arc::default(),
            opener,
            keys,
            replayer,
            locks,
        }
    }

    /// Returns whether adit accepts new connections.
    pub fn is_ready(&self) -> bool {
        !self.drain.is_draining()
    }

    /// Returns the metrics as OpenMetrics text.
    pub fn metrics(&self) -> String {
        let mut text = Exposition::default();
        self.metrics.write(&mut text);
        let mut states = BTreeMap::from([("failed", 0), ("running", 0), ("starting", 0)]);
        let (mut streams, mut connections) = (0, 0);
        let snapshot = self.tunnels.snapshot();
        for tunnel in &snapshot {
            *states.entry(tunnel.state).or_insert(0) += 1;
            streams += tunnel.streams;
            connections += tunnel.connections;
        }
        text.family("adit_tunnels", "gauge", "Tunnels, by state.");
        for (state, count) in &states {
            text.sample("adit_tunnels", &[("state", state)], count);
        }
        text.family("adit_tunnel_connections", "gauge", "Upgraded connections to API servers that are open.");
        text.sample("adit_tunnel_connections", &[], connections);
        text.family("adit_tunnel_streams_open", "gauge", "Streams to pods that are open.");
        text.sample("adit_tunnel_streams_open", &[], streams);
        let totals = self.tunnels.totals();
        text.family("adit_tunnel_opens", "counter", "Attempts to open a session to pods.");
        text.sample("adit_tunnel_opens_total", &[("result", "ok")], totals.opens);
        text.sample("adit_tunnel_opens_total", &[("result", "failed")], totals.failures);
        text.family("adit_tunnel_streams", "counter", "Streams to pods that were opened.");
        text.sample("adit_tunnel_streams_total", &[], totals.streams);
        text.family("adit_tunnel_bytes", "counter", "Bytes through tunnels: up to the pods, down to the clients.");
        text.sample("adit_tunnel_bytes_total", &[("direction", "up")], totals.up);
        text.sample("adit_tunnel_bytes_total", &[("direction", "down")], totals.down);
        text.finish()
    }

    /// Changes the facts.
    pub fn update(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts.lock().expect("no panic while the lock is held"));
    }

    pub fn facts(&self) -> Facts {
        self.facts.lock().expect("no panic while the lock is held").clone()
    }

    /// Returns every tunnel, sorted by id.
    pub fn tunnels(&self) -> Vec<TunnelSnapshot> {
        self.tunnels.snapshot()
    }

    /// Returns the state of a context of the kubeconfig. `None`: adit has not used it yet.
    pub fn health(&self, context: &ContextName) -> Option<Health> {
        let kubeconfig = self.router.load().http_contexts.kubeconfig.clone();
        self.clusters.health(&ClusterId { kubeconfig, context: context.clone() })
    }

    /// Returns the sign-ins that run or have failed.
    pub fn sign_ins(&self) -> Vec<SignInSnapshot> {
        self.tunnels.sign_ins()
    }

    pub fn tunnel(&self, id: &str) -> Option<TunnelSnapshot> {
        self.tunnels.snapshot_of(id)
    }

    /// Stops a tunnel. Returns whether one has this id.
    pub fn stop(&self, id: &str) -> bool {
        self.tunnels.stop(id)
    }

    /// Opens a new session for a tunnel. Returns whether one has this id.
    pub fn reconnect(&self, id: &str) -> bool {
        self.tunnels.reconnect(id)
    }

    pub fn journal(&self) -> &Arc<Journal> {
        self.tunnels.journal()
    }

    pub fn router(&self) -> Arc<Router> {
        self.router.load_full()
    }

    /// Returns the last lines of the log, oldest first.
    pub fn log(&self) -> Vec<Line> {
        self.lines.all()
    }

    /// Returns the lines after the one with this number, oldest first, and the number of the last line.
    pub fn log_since(&self, id: u64) -> (Vec<Line>, u64) {
        self.lines.since(id)
    }

    /// Returns the keys with which browsers sign in. `None`: the dashboard is off.
    pub fn keys(&self) -> Option<&Arc<Keys>> {
        self.keys.as_ref()
    }

    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    pub fn opener(&self) -> Option<Arc<dyn Opener>> {
        self.opener.clone()
    }

    pub fn locks(&self) -> &Locks {
        &self.locks
    }

    pub fn replayer(&self) -> Option<Arc<dyn Replayer>> {
        self.replayer.clone()
    }

    pub fn feed(&self) -> &Feed {
        &self.feed
    }
}
