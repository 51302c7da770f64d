//! Quotas per key or tunnel, and the messages when they are used up.

use tracing::warn;

use super::Limits;
use crate::io::accept::Notice;

/// A limited resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quota {
    Tunnels,
    Streams,
    Pending,
    Rate,
}

/// Error: a quota is used up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsedUp(String);

/// Logs that a quota is used up, at most once per second and quota.
#[derive(Default)]
pub(super) struct Notices {
    tunnels: Notice,
    streams: Notice,
    pending: Notice,
    rate: Notice,
}

impl Notices {
    /// Logs that `quota` is used up, and returns the error. `whose`: the name of the key, or the public address.
    pub(super) fn used_up(&self, quota: Quota, limits: &Limits, whose: &str) -> UsedUp {
        let (notice, option, words) = match quota {
            Quota::Tunnels => (
                &self.tunnels,
                "--max-tunnels",
                format!("the key {whose:?} has {} tunnels, and may not have more", limits.tunnels_per_key),
            ),
            Quota::Streams => (
                &self.streams,
                "--max-streams",
                format!("the tunnel {whose} has {} streams, and may not have more", limits.streams_per_tunnel),
            ),
            Quota::Pending => (
                &self.pending,
                "--max-pending",
                format!(
                    "{} visitors of {whose} wait for its client, and others have waited for theirs too long",
                    limits.pending_per_tunnel
                ),
            ),
            Quota::Rate => (
                &self.rate,
                "--max-rate",
                format!("the tunnel {whose} may have {} new visitors in a second", limits.visitors_per_second),
            ),
        };
        if let Some(times) = notice.due() {
            warn!(times, "relay: {words}; {option} raises the limit");
        }
        UsedUp(words)
    }
}
