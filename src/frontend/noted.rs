//! Connections that are no HTTP, in the journal.

use crate::{
    frontend::{Connection, client},
    io::splice::{Side, SpliceEnd},
    journal::{Entry, Kind, Ongoing},
    routing::Route,
    tunnel::{Manager, OpenError, Placement},
};

/// Takes down a connection that begins. `host`: the name or the local address that its client has chosen.
pub fn begin(tunnels: &Manager, kind: Kind, host: &str, route: &Route, connection: &Connection) -> Ongoing {
    let entry = Entry::new(kind).with_host(host);
    let (route, tunnel) = (Some(route.name.clone()), Some(route.target.to_string().into()));
    let client = client::look_for(tunnels.journal(), connection);
    tunnels.journal().begin(Entry { connection: connection.id, route, tunnel, client, ..entry })
}

/// Takes note that it has not reached a pod.
pub fn failed(noted: &mut Ongoing, error: &OpenError) {
    noted.error(&error.to_string());
}

/// Takes note that it leads to a pod.
pub fn reached(noted: &mut Ongoing, placement: &Placement) {
    noted.change(|entry| {
        entry.pod = Some(placement.pod().clone());
        entry.tunnel_after = Some(entry.elapsed());
    });
}

/// Takes note of how it ended.
pub fn ended(noted: &mut Ongoing, end: &SpliceEnd) {
    (noted.entry.bytes_up, noted.entry.bytes_down) = (end.up, end.down);
    if let Some((Side::Backend, error)) = &end.broken {
        noted.error(&error.to_string());
    }
}
