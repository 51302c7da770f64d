//! Restores Services that dead relays have left taken over.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::sleep;
use tracing::warn;

use super::{
    EXPOSED, Exposer, ServiceName,
    endpoints::{SERVICE_NAME, SLICE_MANAGED_BY},
    kube::{Kind, KubeError},
    text,
};

/// Pause after the first sweep, and after a failed one. It doubles each time. The first ones are short, because the API
/// server may still execute a call of the previous relay in this pod.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Maximum pause between two sweeps.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Exposer {
    /// Looks periodically for Services that any relay has changed, until the drain starts. The task of each Service
    /// restores it, unless its relay is alive.
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
                    // Logged once until a sweep succeeds. The first failure after a success also shortens the pause.
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

    /// Returns the Services with a trace of a relay.
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
