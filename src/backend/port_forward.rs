//! Reaches a pod's port through the API server's portforward.

pub mod connection;
pub mod stream;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use futures::future::BoxFuture;
use tracing::debug;

use self::connection::{Connection, Fate, Opening};
use crate::{
    backend::{Backend, CloseReason, Endpoint, OpenError, Session, SessionGauges, StreamFault},
    config::Namespace,
    io::BoxedIo,
    k8s::{
        ClusterError,
        client::{Cluster, Clusters},
        resolve::{Resolved, resolve},
        upgrade::{self, UpgradeError},
    },
    routing::Target,
};

/// The most upgraded connections to one pod. Each costs the API server and the node two TLS connections.
const MOST_CONNECTIONS: usize = 8;

/// From this many streams on a connection, the next one is dialled: a node serves the streams of a connection with
/// five workers.
const SPREAD: usize = 5;

/// The backend of everything that runs in a pod.
pub struct PortForward {
    clusters: Arc<Clusters>,
    /// Counts up, so that sessions are spread over the pods of a Service.
    spread: AtomicUsize,
}

impl PortForward {
    pub fn new(clusters: Arc<Clusters>) -> Self {
        Self { clusters, spread: AtomicUsize::new(0) }
    }

    async fn open_session(&self, target: &Target) -> Result<PodSession, OpenError> {
        let mut signed_in_again = false;
        loop {
            match self.try_open(target).await {
                // What the API server no longer accepts may have been renewed meanwhile.
                Err(OpenError::Cluster(ClusterError::Credentials { .. })) if !signed_in_again => {
                    signed_in_again = true;
                    self.clusters.forget(&target.cluster);
                }
                opened => return opened,
            }
        }
    }

    async fn try_open(&self, target: &Target) -> Result<PodSession, OpenError> {
        let cluster = self.clusters.get(&target.cluster).await?;
        let mut dialled = None;
        let mut gone = String::new();
        // A pod that went away between its EndpointSlice and the upgrade: the next one, twice.
        for _ in 0..3 {
            let spread = self.spread.fetch_add(1, Ordering::Relaxed);
            let look_up = resolve(&cluster, &target.namespace, &target.workload, &target.port, spread);
            let resolved = match dialled.take() {
                Some(_) => look_up.await?,
                None => {
                    let (resolved, connection) = tokio::join!(look_up, upgrade::dial(&cluster));
                    dialled = Some(connection?);
                    resolved?
                }
            };
            match upgrade::port_forward(&cluster, &target.namespace, &resolved.pod, dialled.take()).await {
                Ok(upgraded) => return Ok(PodSession::new(cluster, target.namespace.clone(), resolved, upgraded)),
                Err(UpgradeError::Cluster(error)) => return Err(error.into()),
                Err(UpgradeError::PodGone(message)) => gone = message,
            }
        }
        Err(OpenError::Cluster(ClusterError::NotReady {
            what: target.to_string(),
            context: cluster.context.clone(),
            cause: gone,
            hint: format!("kubectl --context {} -n {} get pods", cluster.context, target.namespace),
        }))
    }
}

impl Backend for PortForward {
    fn open<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Box<dyn Session>, OpenError>> {
        Box::pin(async move { Ok(Box::new(self.open_session(target).await?) as Box<dyn Session>) })
    }
}

/// The upgraded connections to one pod.
struct PodSession {
    pod: Arc<Pod>,
    connections: Arc<Mutex<Vec<Arc<Connection>>>>,
    /// Held while a connection is dialled that somebody waits for: the others share it.
    dialling: tokio::sync::Mutex<()>,
    growing: Arc<Mutex<Option<tokio::task::JoinHandle<()>>>>,
    endpoint: Endpoint,
}

/// What a new connection to the pod needs.
struct Pod {
    cluster: Arc<Cluster>,
    namespace: Namespace,
    name: String,
    port: u16,
    fate: Arc<Fate>,
}

impl Pod {
    fn connection(&self, upgraded: upgrade::Upgraded) -> Arc<Connection> {
        Connection::start(upgraded.io, self.port, self.fate.clone())
    }

    async fn dial(&self) -> Result<Arc<Connection>, StreamFault> {
        match upgrade::port_forward(&self.cluster, &self.namespace, &self.name, None).await {
            Ok(upgraded) => Ok(self.connection(upgraded)),
            Err(UpgradeError::PodGone(detail)) => {
                self.fate.pod_gone(detail.clone());
                Err(StreamFault::PodGone { detail })
            }
            Err(UpgradeError::Cluster(error)) => {
                let detail = match error.cause() {
                    Some(cause) => format!("{error}: {cause}"),
                    None => error.to_string(),
                };
                Err(StreamFault::Lost { detail })
            }
        }
    }
}

impl PodSession {
    fn new(cluster: Arc<Cluster>, namespace: Namespace, resolved: Resolved, upgraded: upgrade::Upgraded) -> Self {
        let endpoint = Endpoint {
            pod: resolved.pod.clone(),
            container_port: resolved.container_port,
            port: resolved.port,
            protocol: upgraded.envelope.name(),
        };
        let pod = Pod { cluster, namespace, name: resolved.pod, port: resolved.container_port, fate: Arc::default() };
        let first = pod.connection(upgraded);
        Self {
            pod: Arc::new(pod),
            connections: Arc::new(Mutex::new(vec![first])),
            dialling: tokio::sync::Mutex::default(),
            growing: Arc::default(),
            endpoint,
        }
    }

    async fn open_stream(&self) -> Result<BoxedIo, StreamFault> {
        if let Some(stream) = self.open_on_existing() {
            return Ok(stream);
        }
        let _turn = self.dialling.lock().await;
        if let Some(stream) = self.open_on_existing() {
            return Ok(stream);
        }
        let connection = self.pod.dial().await.inspect_err(|fault| self.pod.fate.lost(fault.to_string()))?;
        let stream = connection
            .open()
            .map_err(|_| StreamFault::Lost { detail: "the new connection broke at once".to_owned() })?;
        self.connections.lock().expect("no panic while the lock is held").push(connection);
        Ok(stream)
    }

    /// Opens a stream on the connection that has the most room, and lets the pool grow when that is little.
    fn open_on_existing(&self) -> Option<BoxedIo> {
        let mut connections = self.connections.lock().expect("no panic while the lock is held");
        connections.retain(|connection| !connection.is_finished());
        let best = connections.iter().filter(|connection| connection.opening() == Opening::Open);
        let best = best.min_by_key(|connection| (connection.is_busy(), connection.streams()))?;
        let is_crowded = best.is_busy() || best.streams() >= SPREAD;
        let stream = best.open().ok();
        if is_crowded && connections.len() < MOST_CONNECTIONS {
            self.grow();
        }
        stream
    }

    /// Dials one more connection in the background, unless one is being dialled.
    fn grow(&self) {
        let mut growing = self.growing.lock().expect("no panic while the lock is held");
        if growing.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (pod, connections) = (self.pod.clone(), self.connections.clone());
        *growing = Some(tokio::spawn(async move {
            match pod.dial().await {
                Ok(connection) => connections.lock().expect("no panic while the lock is held").push(connection),
                Err(error) => debug!(pod = pod.name, %error, "no further connection to the pod"),
            }
        }));
    }
}

impl Drop for PodSession {
    fn drop(&mut self) {
        if let Some(task) = self.growing.lock().expect("no panic while the lock is held").take() {
            task.abort();
        }
    }
}

impl Session for PodSession {
    fn connect(&self) -> BoxFuture<'_, Result<BoxedIo, StreamFault>> {
        Box::pin(self.open_stream())
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        let mut closed = self.pod.fate.subscribe();
        Box::pin(async move {
            match closed.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(reason)) => reason.clone(),
                _ => CloseReason::Lost { detail: "the session ended".to_owned() },
            }
        })
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn gauges(&self) -> &SessionGauges {
        &self.pod.fate.gauges
    }
}
