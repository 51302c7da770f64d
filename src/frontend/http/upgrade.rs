//! WebSocket and other upgrades: after the backend's 101, bytes both ways.

use hyper_util::rt::TokioIo;
use tracing::debug;

use crate::{drain::Drain, io::splice::splice, tunnel::Lease};

/// Joins the two connections once both have been upgraded. The lease is held for as long as they live.
pub fn join(client: hyper::upgrade::OnUpgrade, backend: hyper::upgrade::OnUpgrade, lease: Lease, drain: &Drain) {
    drain.spawn(async move {
        let (client, backend) = match tokio::try_join!(client, backend) {
            Ok(both) => both,
            Err(error) => return debug!(%error, "upgrade not completed"),
        };
        let end = splice(&mut TokioIo::new(client), &mut TokioIo::new(backend)).await;
        debug!(up = end.up, down = end.down, broken = ?end.broken, "upgraded connection ended");
        drop(lease);
    });
}
