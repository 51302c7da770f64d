//! The two destinations of a request to a shared port: the tunnel of a laptop, or a pod.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use futures::future::BoxFuture;

use super::{
    CLIENT, PODS, Split,
    passing::{self, NoPod},
};
use crate::{
    backend::{
        Backend, CloseReason, ConnectError, Endpoint, OpenError, Placement, ServicePort, Session, SessionGauges,
        StreamFault,
    },
    drain::Drain,
    io::BoxedIo,
    relay::{backend::TunnelSession, expose::PodAddress, server::Server},
    routing::Target,
};

/// Reaches the targets of a [`Split`].
pub struct Ways {
    server: Arc<Server>,
    split: Arc<Split>,
    drain: Drain,
}

impl Ways {
    pub fn new(server: Arc<Server>, split: Arc<Split>, drain: Drain) -> Self {
        Self { server, split, drain }
    }
}

impl Backend for Ways {
    fn open<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Box<dyn Session>, OpenError>> {
        Box::pin(async move {
            let no_client = || OpenError::NoClient { name: self.split.name.clone() };
            let Target::Named(name) = target else { return Err(no_client()) };
            if &**name == PODS {
                return Ok(Box::new(PodsSession::new(self.split.clone(), self.drain.clone())) as Box<dyn Session>);
            }
            let tunnel = name
                .strip_prefix(CLIENT)
                .and_then(|number| number.parse().ok())
                .and_then(|number| self.server.tunnel_by_number(number));
            let tunnel = tunnel.ok_or_else(no_client)?;
            Ok(Box::new(TunnelSession::new(self.server.clone(), tunnel, &self.split.name)) as Box<dyn Session>)
        })
    }
}

/// Placements of idle connections, by pod.
type Placements = Arc<Mutex<HashMap<PodAddress, Placement>>>;

struct PodsSession {
    split: Arc<Split>,
    endpoint: Endpoint,
    placements: Placements,
    gauges: Arc<SessionGauges>,
    drain: Drain,
}

impl PodsSession {
    fn new(split: Arc<Split>, drain: Drain) -> Self {
        let endpoint = Endpoint {
            pod: split.name.clone(),
            container_port: 0,
            port: ServicePort { number: 80, name: None, app_protocol: None },
            protocol: "tcp",
        };
        Self { split, endpoint, placements: Placements::default(), gauges: Arc::default(), drain }
    }

    /// Returns the placement of a pod. It is closed when the pod is no longer ready.
    fn placement(&self, pod: &PodAddress) -> Placement {
        let mut placements = self.placements.lock().expect("no panic while the lock is held");
        placements.entry(pod.clone()).or_insert_with(|| Placement::new(&pod.pod)).clone()
    }
}

impl Session for PodsSession {
    fn connect(&self) -> BoxFuture<'_, Result<(BoxedIo, Placement), ConnectError>> {
        Box::pin(async move {
            match passing::dial(&self.split).await {
                Ok((stream, pod)) => Ok((Box::new(stream) as BoxedIo, self.placement(&pod))),
                Err(NoPod::Refused { pod, .. }) => Err(StreamFault::Refused { port: pod.address.port() }.into()),
                Err(error @ NoPod::NoneReady(_)) => Err(StreamFault::PodGone { detail: error.to_string() }.into()),
            }
        })
    }

    /// Lives as long as the port. Closes the placements of pods that are no longer ready.
    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(async move {
            let mut pods = self.split.pods.subscribe();
            let following = async {
                while pods.changed().await.is_ok() {
                    let now = pods.borrow_and_update().clone();
                    let mut placements = self.placements.lock().expect("no panic while the lock is held");
                    placements.retain(|pod, placement| {
                        let is_there = now.contains(pod);
                        if !is_there {
                            placement.leave();
                        }
                        is_there
                    });
                }
            };
            tokio::select! {
                () = following => {}
                () = self.drain.started() => {
                    // Connections with a lease may still connect.
                    std::future::pending::<()>().await;
                }
            }
            CloseReason::ClientGone
        })
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn gauges(&self) -> &SessionGauges {
        &self.gauges
    }
}
