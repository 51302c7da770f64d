//! What runs: tunnels, listeners, the last reload.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};

use crate::tunnel::{Manager, TunnelSnapshot};

/// What `adit status` shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    #[serde(flatten)]
    pub facts: Facts,
    pub tunnels: Vec<TunnelSnapshot>,
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
    facts: Arc<Mutex<Facts>>,
}

impl Source {
    pub fn new(tunnels: Manager, facts: Facts) -> Self {
        Self { tunnels, facts: Arc::new(Mutex::new(facts)) }
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
        }
    }

    /// Stops a tunnel; returns whether there was one of that name.
    pub fn stop(&self, tunnel: &str) -> bool {
        self.tunnels.stop(tunnel)
    }
}
