//! Connections that are no HTTP, in the journal.

use crate::{
    frontend::{Connection, client},
    io::splice::{Side, SpliceEnd},
    journal::{Entry, Kind, Ongoing},
    routing::Route,
    tunnel::{Manager, OpenError, Placement},
};

/// Takes down a connection that begins. `host`: the name or the local address that its client has chosen.
pub async fn begin(tunnels: &Manager, kind: Kind, host: &str, route: &Route, connection: &Connection) -> Ongoing {
    known(tunnels.journal().begin(routed(entry(tunnels, kind, host, connection), route)), connection).await
}

/// Takes down a connection of which it is not known yet where it leads.
pub async fn begin_unrouted(tunnels: &Manager, kind: Kind, host: &str, connection: &Connection) -> Ongoing {
    known(tunnels.journal().begin(entry(tunnels, kind, host, connection)), connection).await
}

/// Takes note of where it leads.
pub fn leads(noted: &mut Ongoing, route: &Route) {
    noted.change(|entry| *entry = routed(entry.clone(), route));
}

/// Waits until the client is known, where it is looked for: it may be gone a moment later.
async fn known(noted: Ongoing, connection: &Connection) -> Ongoing {
    if let Some(client) = &noted.entry.client {
        client::wait_for(client, connection.socket).await;
    }
    noted
}

fn entry(tunnels: &Manager, kind: Kind, host: &str, connection: &Connection) -> Entry {
    let client = client::look_for(tunnels.journal(), connection);
    Entry { connection: connection.id, client, ..Entry::new(kind).with_host(host) }
}

fn routed(entry: Entry, route: &Route) -> Entry {
    Entry { route: Some(route.name.clone()), tunnel: Some(route.target.to_string().into()), ..entry }
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
