//! The session to the ready pods of a target. A watch keeps the list of pods current.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tracing::info;

use super::{
    SLOW_POD,
    affinity::Affinity,
    pool::{PodPool, SHRINK_AFTER},
};
use crate::{
    backend::{CloseReason, ConnectError, Endpoint, Placement, ServicePort, Session, SessionGauges, StreamFault},
    config::{Namespace, PortRef},
    io::BoxedIo,
    k8s::{
        client::Cluster,
        endpoints::{Reachable, ReadyPod},
        ports::choose_port,
        resolve::{KnownService, Resolution},
        upgrade::Upgraded,
        watch::{changed, follow},
    },
};

/// How long to wait for a node that restarts, and the pause between attempts.
const RESTART: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(250);

/// A session to the ready pods of a target.
pub struct TargetSession {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    /// Ports of the Service. Empty if the target is a pod.
    ports: Vec<ServicePort>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    cluster: Arc<Cluster>,
    namespace: Namespace,
    pools: Mutex<Vec<Arc<PodPool>>>,
    /// Counter by which pods with equally many streams take turns.
    turn: AtomicUsize,
    closed: watch::Sender<Option<CloseReason>>,
    gauges: Arc<SessionGauges>,
    /// Why the pod that the target names is not ready.
    not_ready: Mutex<Option<String>>,
    /// Session affinity: the pod that clients stay with.
    affinity: Option<Arc<Affinity>>,
}

impl TargetSession {
    /// Starts with the pod of the `first` connection, and connects to the others when they are needed.
    pub fn start(
        cluster: Arc<Cluster>,
        resolution: Resolution,
        affinity: Option<Arc<Affinity>>,
        first: (ReadyPod, Upgraded),
    ) -> Self {
        let (pod, upgraded) = first;
        let endpoint = Endpoint {
            pod: pod.name.to_string(),
            container_port: pod.container_port,
            port: resolution.port.clone(),
            protocol: upgraded.transport.name(),
        };
        let ports = resolution.ports;
        let shared = Arc::new(Shared {
            cluster,
            namespace: resolution.namespace,
            pools: Mutex::default(),
            turn: AtomicUsize::new(0),
            closed: watch::Sender::new(None),
            gauges: Arc::default(),
            not_ready: Mutex::default(),
            affinity,
        });
        shared.change_to(resolution.reachable);
        if let Some(pool) = shared.lock().iter().find(|pool| pool.pod() == &pod) {
            pool.adopt(upgraded);
        }
        let mut tasks: Vec<_> =
            resolution.services.into_iter().map(|service| tokio::spawn(shared.clone().end_with(service))).collect();
        let (following, source) = (shared.clone(), resolution.source);
        let follow = tokio::spawn(async move {
            let told = following.clone();
            let tell = |reachable| told.change_to(reachable);
            let cluster = &following.cluster;
            // Without new streams, the list of pods has no use.
            cluster.replaced().run_until_cancelled(follow(cluster, &following.namespace, source, tell)).await;
        });
        let shrinking = Arc::downgrade(&shared);
        let shrink = tokio::spawn(async move {
            loop {
                sleep(SHRINK_AFTER).await;
                let Some(shared) = shrinking.upgrade() else { return };
                shared.lock().iter().for_each(|pool| pool.shrink());
            }
        });
        tasks.extend([follow, shrink]);
        Self { shared, endpoint, ports, tasks }
    }

    /// `wanted`: the pod to try first.
    async fn open_stream(&self, wanted: Option<&str>) -> Result<(BoxedIo, Placement), ConnectError> {
        if self.shared.cluster.replaced().is_cancelled() {
            return Err(ConnectError::Over(CloseReason::replaced(&self.shared.cluster)));
        }
        let started = Instant::now();
        let mut tried: Vec<Arc<PodPool>> = Vec::new();
        let mut last = None;
        loop {
            let wanted = wanted.filter(|_| tried.is_empty()).and_then(|pod| self.shared.pool_of(pod));
            let Some(pool) = wanted.or_else(|| self.shared.choose(&tried)) else {
                // All pods have failed. Retry while a node restarts, and not before the time that the cluster asks for.
                match &last {
                    Some(StreamFault::Unavailable { retry_after, .. }) => {
                        let pause = retry_after.unwrap_or_default().max(PAUSE);
                        if started.elapsed() + pause > RESTART {
                            break;
                        }
                        sleep(pause).await;
                        tried.clear();
                        continue;
                    }
                    _ => break,
                }
            };
            // A node that hangs must not cost the time of a stream that another pod can serve.
            let opened = match self.shared.has_warm(&tried, &pool) {
                true => timeout(SLOW_POD, pool.open()).await.unwrap_or_else(|_| {
                    let detail = format!("no answer within {} s", SLOW_POD.as_secs());
                    Err(StreamFault::Unavailable { detail, retry_after: None })
                }),
                false => pool.open().await,
            };
            match opened {
                Ok(stream) => return Ok((stream, pool.placement())),
                Err(fault) => {
                    if matches!(fault, StreamFault::PodGone { .. }) {
                        self.shared.remove(&pool, &fault);
                    }
                    last = Some(fault);
                    tried.push(pool);
                }
            }
        }
        // No pod is left to try: the next session resolves the target again.
        let reason = last.map_or_else(none_ready, CloseReason::from);
        Err(ConnectError::Over(self.shared.close(reason)))
    }
}

impl Drop for TargetSession {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<PodPool>>> {
        self.pools.lock().expect("no panic while the lock is held")
    }

    /// Replaces the list of ready pods. The others get no new streams; their open streams stay open.
    fn change_to(&self, Reachable { pods: ready, not_ready }: Reachable) {
        *self.not_ready.lock().expect("no panic while the lock is held") = not_ready;
        let mut pools = self.lock();
        pools.retain(|pool| {
            let stays = ready.contains(pool.pod()) && !pool.is_gone();
            if !stays {
                info!(pod = &*pool.pod().name, "takes no new streams: terminating, not ready, or gone");
                pool.leave();
            }
            stays
        });
        for pod in ready {
            if !pools.iter().any(|pool| pool.pod() == &pod) {
                pools.push(PodPool::new(self.cluster.clone(), self.namespace.clone(), pod, self.gauges.clone()));
            }
        }
        let is_empty = pools.is_empty();
        drop(pools);
        if is_empty {
            self.close(none_ready());
        }
    }

    fn remove(&self, gone: &Arc<PodPool>, fault: &StreamFault) {
        info!(pod = &*gone.pod().name, %fault, "takes no new streams");
        gone.leave();
        self.lock().retain(|pool| !Arc::ptr_eq(pool, gone));
    }

    /// Returns the pool of the pod with this name. `None`: the pod is not ready or gone.
    fn pool_of(&self, pod: &str) -> Option<Arc<PodPool>> {
        self.lock().iter().find(|pool| *pool.pod().name == *pod && !pool.is_gone()).cloned()
    }

    /// Returns whether another pod, not tried yet, takes a stream without dialling.
    fn has_warm(&self, tried: &[Arc<PodPool>], but: &Arc<PodPool>) -> bool {
        let is_other = |pool: &Arc<PodPool>| tried.iter().chain([but]).all(|other| !Arc::ptr_eq(other, pool));
        self.lock().iter().any(|pool| is_other(pool) && !pool.is_gone() && pool.is_connected())
    }

    /// Returns the pool for the next stream, without those already tried: the pod that clients stay with, or else the
    /// pod with the fewest streams. If that pod has no connection yet and another pod has room, returns the other one
    /// and dials in the background.
    fn choose(&self, tried: &[Arc<PodPool>]) -> Option<Arc<PodPool>> {
        let pools = self.lock();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = pools.len();
        let left = (0..count)
            .map(|at| &pools[(turn + at) % count])
            .filter(|pool| !pool.is_gone() && !tried.iter().any(|tried| Arc::ptr_eq(tried, pool)));
        if let Some(affinity) = &self.affinity {
            // With session affinity, no other pod is dialled ahead of need.
            let warm_first = || left.clone().min_by_key(|pool| (!pool.is_warm(), pool.streams()));
            return affinity.keep(left.clone(), |pool| pool.pod(), warm_first).cloned();
        }
        let fewest = left.clone().min_by_key(|pool| pool.streams())?;
        if fewest.is_warm() {
            return Some(fewest.clone());
        }
        match left.filter(|pool| pool.has_room()).min_by_key(|pool| pool.streams()) {
            Some(warm) => {
                fewest.grow();
                Some(warm.clone())
            }
            None => Some(fewest.clone()),
        }
    }

    /// Closes the session once a Service on the way to its pods has changed.
    async fn end_with(self: Arc<Self>, service: KnownService) {
        let name = format!("{}/{}", service.namespace, service.name);
        if self.cluster.replaced().run_until_cancelled(changed(&self.cluster, service)).await.is_some() {
            self.close(CloseReason::ServiceChanged { service: name });
        }
    }

    /// Closes the session, and returns the reason. Only the first reason counts.
    fn close(&self, reason: CloseReason) -> CloseReason {
        self.closed.send_if_modified(|closed| {
            closed.is_none() && {
                *closed = Some(reason.clone());
                true
            }
        });
        self.closed.borrow().clone().unwrap_or(reason)
    }
}

fn none_ready() -> CloseReason {
    CloseReason::PodGone { detail: "no pod is ready".to_owned() }
}

impl Session for TargetSession {
    fn connect(&self) -> BoxFuture<'_, Result<(BoxedIo, Placement), ConnectError>> {
        Box::pin(self.open_stream(None))
    }

    fn connect_to<'a>(&'a self, pod: &'a str) -> BoxFuture<'a, Result<(BoxedIo, Placement), ConnectError>> {
        Box::pin(self.open_stream(Some(pod)))
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(CloseReason::of_session(self.shared.closed.subscribe(), &self.shared.cluster))
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn leads_to(&self, port: &PortRef) -> bool {
        choose_port(&self.ports, port).is_some_and(|port| port.number == self.endpoint.port.number)
    }

    fn pods(&self) -> Vec<String> {
        self.shared.lock().iter().filter(|pool| pool.is_warm()).map(|pool| pool.pod().name.to_string()).collect()
    }

    fn not_ready(&self) -> Option<String> {
        self.shared.not_ready.lock().expect("no panic while the lock is held").clone()
    }

    fn gauges(&self) -> &SessionGauges {
        &self.shared.gauges
    }
}
