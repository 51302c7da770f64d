//! Journal entries of connections other than HTTP.

use crate::{
    frontend::{Connection, client},
    io::splice::{Side, SpliceEnd},
    journal::{Entry, Kind, Ongoing},
    routing::Route,
    tunnel::{Lease, Manager, OpenError, Placement},
};

/// Begins the journal entry of a connection. `host`: the name or the local address that its client has chosen.
pub async fn begin(tunnels: &Manager, kind: Kind, host: &str, route: &Route, connection: &Connection) -> Ongoing {
    known(tunnels.journal().begin(routed(entry(tunnels, kind, host, connection), route)), connection).await
}

/// Begins the journal entry of a connection whose route is not known yet.
pub async fn begin_unrouted(tunnels: &Manager, kind: Kind, host: &str, connection: &Connection) -> Ongoing {
    known(tunnels.journal().begin(entry(tunnels, kind, host, connection)), connection).await
}

/// Records the route and the target.
pub fn leads(noted: &mut Ongoing, route: &Route) {
    noted.change(|entry| *entry = routed(entry.clone(), route));
}

/// Waits for the look-up of the client, if there is one: the client may exit a moment later.
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

/// Records why the connection has not reached a pod.
pub fn failed(noted: &mut Ongoing, error: &OpenError) {
    noted.error(&error.to_string());
}

/// Records the tunnel and the pod, and how long the connection took to reach it.
pub fn reached(noted: &mut Ongoing, lease: &Lease, placement: &Placement) {
    noted.change(|entry| {
        entry.tunnel = Some(lease.id());
        entry.pod = Some(placement.pod().clone());
        entry.tunnel_after = Some(entry.elapsed());
    });
}

/// Records the bytes of both directions, and how the backend broke.
pub fn ended(noted: &mut Ongoing, end: &SpliceEnd) {
    (noted.entry.bytes_up, noted.entry.bytes_down) = (end.up, end.down);
    if let Some((Side::Backend, error)) = &end.broken {
        noted.error(&error.to_string());
    }
}
