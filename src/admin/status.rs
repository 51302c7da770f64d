//! What runs: tunnels, listeners, the last reload.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};

use crate::{
    drain::Drain,
    metrics::{Exposition, Metrics},
    tunnel::{Manager, SignInSnapshot, TunnelSnapshot},
};

/// What `adit status` shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    #[serde(flatten)]
    pub facts: Facts,
    pub tunnels: Vec<TunnelSnapshot>,
    /// Sign-ins that run, or have failed.
    #[serde(default)]
    pub sign_ins: Vec<SignInSnapshot>,
}

/// What changes with a reload only.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// None: adit runs on defaults.
    pub config: Option<PathBuf>,
    pub http: Vec<SocketAddr>,
    pub tcp: Vec<SocketAddr>,
    pub context: Option<String>,
    /// When the configuration in use was loaded, in local time.
    pub loaded_at: String,
    /// Why the last change of the file was not applied.
    pub rejected: Option<String>,
}

/// Where the status comes from.
#[derive(Clone)]
pub struct Source {
    tunnels: Manager,
    metrics: Arc<Metrics>,
    drain: Drain,
    facts: Arc<Mutex<Facts>>,
}

impl Source {
    /// `drain`: once it has started, adit is not ready any more.
    pub fn new(tunnels: Manager, metrics: Arc<Metrics>, drain: Drain, facts: Facts) -> Self {
        Self { tunnels, metrics, drain, facts: Arc::new(Mutex::new(facts)) }
    }

    /// Returns whether new connections are taken.
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
            *states.entry(tunnel.state.as_str()).or_insert(0) += 1;
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

    pub fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            facts: self.facts.lock().expect("no panic while the lock is held").clone(),
            tunnels: self.tunnels.snapshot(),
            sign_ins: self.tunnels.sign_ins(),
        }
    }

    /// Stops a tunnel; returns whether there was one of that name.
    pub fn stop(&self, tunnel: &str) -> bool {
        self.tunnels.stop(tunnel)
    }
}
