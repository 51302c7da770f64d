//! Restores Services that relays left taken over.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::sleep;
use tracing::warn;

use super::{
    EXPOSED, Exposer, ServiceName,
    endpoints::{SERVICE_NAME, SLICE_MANAGED_BY},
    kube::{Kind, KubeError},
    text,
};

/// The pause after the first sweep, and after one that failed. It doubles: the relay before this one in the same pod may have made
/// a call that the API server does later.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause between two sweeps.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Exposer {
    /// Looks from time to time for Services that some relay has changed, until the drain starts. Each is put in order by its own
    /// task, unless its relay lives.
    pub(super) async fn sweep(self: Arc<Self>) {
        let mut pause = FIRST_PAUSE;
        let mut has_failed = false;
        loop {
            match self.exposed().await {
                Ok(names) => {
                    has_failed = false;
                    self.expiry.retain(&names);
                    names.iter().for_each(|name| self.tidy(name));
                }
                Err(error) => {
                    // Once, until it works again; a second failure after a success looks again soon.
                    if !has_failed {
                        warn!(%error, "relay: cannot list the Services that relays have left");
                        pause = FIRST_PAUSE;
                    }
                    has_failed = true;
                }
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.drain.started() => return,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Returns the Services that carry a trace of a relay.
    async fn exposed(&self) -> Result<BTreeSet<ServiceName>, KubeError> {
        let of_relays = format!("{SLICE_MANAGED_BY}=adit");
        let (services, leases, slices) = tokio::join!(
            self.kube.list(Kind::Service, self.only(), EXPOSED),
            self.kube.list(Kind::Lease, self.only(), EXPOSED),
            self.kube.list(Kind::EndpointSlice, self.only(), &of_relays),
        );
        let mut names = BTreeSet::new();
        let mut add = |namespace: &str, name: &str| {
            if !name.is_empty() {
                names.insert(ServiceName { namespace: namespace.to_owned(), name: name.to_owned() });
            }
        };
        for service in services? {
            add(text(&service["metadata"]["namespace"]), text(&service["metadata"]["name"]));
        }
        for lease in leases? {
            let name = text(&lease["metadata"]["name"]).strip_prefix("adit-").unwrap_or_default().to_owned();
            add(text(&lease["metadata"]["namespace"]), &name);
        }
        for slice in slices? {
            add(text(&slice["metadata"]["namespace"]), text(&slice["metadata"]["labels"][SERVICE_NAME]));
        }
        Ok(names)
    }
}
