//! How the demo can be told to misbehave.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

/// What the demo is told to do wrong; each call takes effect at once.
#[derive(Debug, Default)]
pub struct Faults {
    refused_ports: Mutex<HashSet<u16>>,
    reset_ports: Mutex<HashSet<u16>>,
    stalled_ports: Mutex<HashSet<u16>>,
    /// Statuses instead of answers, by the end of the path.
    statuses: Mutex<HashMap<String, u16>>,
    no_tunnel: AtomicBool,
    pub(super) drop_upgrades: Notify,
    upgrades: AtomicU64,
    streams: AtomicU64,
}

impl Faults {
    /// Pods refuse connections to this port, or take them again.
    pub fn refuse(&self, port: u16, on: bool) {
        set(&self.refused_ports, port, on);
    }

    /// Pods reset connections to this port as soon as they are made.
    pub fn reset(&self, port: u16, on: bool) {
        set(&self.reset_ports, port, on);
    }

    /// Pods accept connections to this port, and neither read nor write.
    pub fn stall(&self, port: u16, on: bool) {
        set(&self.stalled_ports, port, on);
    }

    /// Requests whose path ends so are answered with this status. None: as usual again.
    pub fn answer(&self, path_end: &str, status: Option<u16>) {
        let mut statuses = self.statuses.lock().expect("no panic while the lock is held");
        match status {
            Some(status) => statuses.insert(path_end.to_owned(), status),
            None => statuses.remove(path_end),
        };
    }

    /// The servers know SPDY only, as those of Kubernetes 1.30.
    pub fn spdy_only(&self, on: bool) {
        self.no_tunnel.store(on, Ordering::SeqCst);
    }

    /// Ends every upgraded connection that is open now, as a restart of the API server does.
    pub fn drop_upgraded_connections(&self) {
        self.drop_upgrades.notify_waiters();
    }

    /// Returns how many connections have been upgraded.
    pub fn upgrades_seen(&self) -> u64 {
        self.upgrades.load(Ordering::SeqCst)
    }

    /// Returns how many streams have been opened.
    pub fn streams_seen(&self) -> u64 {
        self.streams.load(Ordering::SeqCst)
    }

    pub(super) fn count_upgrade(&self) {
        self.upgrades.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn count_stream(&self) {
        self.streams.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn has_tunnel(&self) -> bool {
        !self.no_tunnel.load(Ordering::SeqCst)
    }

    pub(super) fn refuses(&self, port: u16) -> bool {
        self.refused_ports.lock().expect("no panic while the lock is held").contains(&port)
    }

    pub(super) fn resets(&self, port: u16) -> bool {
        self.reset_ports.lock().expect("no panic while the lock is held").contains(&port)
    }

    pub(super) fn stalls(&self, port: u16) -> bool {
        self.stalled_ports.lock().expect("no panic while the lock is held").contains(&port)
    }

    pub(super) fn status_for(&self, path: &str) -> Option<u16> {
        let statuses = self.statuses.lock().expect("no panic while the lock is held");
        statuses.iter().find(|(end, _)| path.ends_with(end.as_str())).map(|(_, status)| *status)
    }
}

fn set(ports: &Mutex<HashSet<u16>>, port: u16, on: bool) {
    let mut ports = ports.lock().expect("no panic while the lock is held");
    if on {
        ports.insert(port)
    } else {
        ports.remove(&port)
    };
}
