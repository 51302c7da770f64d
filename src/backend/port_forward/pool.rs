//! The upgraded connections to one pod: one in use, one warm, and more if streams crowd or move much data.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, timeout},
};
use tracing::debug;

use super::{
    channel_stream::ChannelStream,
    connection::{Connection, Fate, Opening, Silence},
    dialling::Dialling,
};
use crate::{
    backend::{Placement, SessionGauges, StreamFault},
    config::Namespace,
    io::BoxedIo,
    k8s::{
        ClusterError,
        client::Cluster,
        endpoints::ReadyPod,
        pods,
        upgrade::{self, Transport, UpgradeError, Upgraded, probation},
    },
};

/// Maximum number of upgraded connections to one pod that are dialled ahead of need. Each costs the API server and the
/// node two TLS connections.
const MOST_CONNECTIONS: usize = 8;

/// From this many streams on a connection, the pool dials another one: a node serves the streams of one connection with
/// five workers.
const SPREAD: usize = 5;

/// How long a WebSocket without a stream is used. Nothing is sent on it, and gateways close silent connections after 60 s,
/// some after 30.
const SPARE_LIFETIME: Duration = Duration::from_secs(25);

/// Idle time after which connections are closed, except two: the one in use and the warm one.
pub(super) const SHRINK_AFTER: Duration = Duration::from_secs(120);

/// The connections to one pod.
pub(super) struct PodPool {
    way: Way,
    placement: Placement,
    connections: Mutex<Vec<Arc<Connection>>>,
    dialling: Dialling,
    growing: Mutex<Option<JoinHandle<()>>>,
    /// Watches of new connections whose node has sent nothing yet.
    on_probation: Mutex<JoinSet<()>>,
    opened: AtomicU64,
    /// State of the channels transport: one WebSocket for each connection to the pod.
    channels: Channels,
}

#[derive(Default)]
struct Channels {
    are_used: AtomicBool,
    spare: SpareChannel,
    /// Held by each stream.
    streams: Arc<()>,
}

/// A WebSocket opened ahead of need, and when.
#[derive(Default)]
struct SpareChannel(Mutex<Option<(BoxedIo, Instant)>>);

impl SpareChannel {
    fn put(&self, io: BoxedIo) {
        *self.0.lock().expect("no panic while the lock is held") = Some((io, Instant::now()));
    }

    /// Returns the WebSocket, unless it is older than [`SPARE_LIFETIME`].
    fn take(&self) -> Option<BoxedIo> {
        let spare = self.0.lock().expect("no panic while the lock is held").take();
        spare.filter(|(_, since)| since.elapsed() < SPARE_LIFETIME).map(|(io, _)| io)
    }
}

/// A new upgraded connection, by transport.
enum Dialled {
    Connection(Arc<Connection>),
    Channel(BoxedIo),
}

/// The way to the pod. Dials use a copy, so that they keep no pool alive.
#[derive(Clone)]
struct Way {
    cluster: Arc<Cluster>,
    namespace: Namespace,
    pod: ReadyPod,
    fate: Arc<Fate>,
}

impl Way {
    async fn dial(&self) -> Result<Upgraded, StreamFault> {
        let (pod, port) = (&self.pod.name, self.pod.container_port);
        match upgrade::port_forward(&self.cluster, &self.namespace, pod, port, None).await {
            Ok(upgraded) => Ok(upgraded),
            // A kubelet that has just restarted knows no pods for some seconds.
            Err(UpgradeError::PodGone(detail)) if self.is_still_there().await => {
                Err(StreamFault::Unavailable { detail, retry_after: None })
            }
            Err(UpgradeError::PodGone(detail)) => {
                self.fate.pod_gone();
                Err(StreamFault::PodGone { detail })
            }
            Err(UpgradeError::Cluster(ClusterError::Unavailable { reason, retry_after, .. })) => {
                Err(StreamFault::Unavailable { detail: reason, retry_after })
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

    /// Asks the API server whether the pod exists and is not terminating. Returns `false` if there is no answer.
    async fn is_still_there(&self) -> bool {
        pods::is_running(&self.cluster, &self.namespace, &self.pod.name, &self.pod.uid).await.unwrap_or(false)
    }
}

impl PodPool {
    pub fn new(cluster: Arc<Cluster>, namespace: Namespace, pod: ReadyPod, gauges: Arc<SessionGauges>) -> Arc<Self> {
        Arc::new(Self {
            placement: Placement::new(&pod.name),
            way: Way { cluster, namespace, pod, fate: Arc::new(Fate::new(gauges)) },
            connections: Mutex::default(),
            dialling: Dialling::default(),
            growing: Mutex::default(),
            on_probation: Mutex::default(),
            opened: AtomicU64::new(0),
            channels: Channels::default(),
        })
    }

    pub fn pod(&self) -> &ReadyPod {
        &self.way.pod
    }

    pub fn placement(&self) -> Placement {
        self.placement.clone()
    }

    /// Returns whether a connection has reported that the pod is gone.
    pub fn is_gone(&self) -> bool {
        self.way.fate.is_gone()
    }

    /// Sends no new streams to the pod from now on. Open streams end with the pod.
    pub fn leave(&self) {
        self.placement.leave();
        let (cluster, namespace) = (self.way.cluster.clone(), self.way.namespace.clone());
        let (name, uid) = (self.way.pod.name.clone(), self.way.pod.uid.clone());
        self.way.fate.wait_for(async move { pods::wait_for_end(&cluster, &namespace, &name, &uid).await });
    }

    /// Adds a connection that is already open.
    pub fn adopt(&self, upgraded: Upgraded) {
        match self.dialled(upgraded) {
            Dialled::Connection(connection) => self.lock().push(connection),
            Dialled::Channel(io) => self.channels.spare.put(io),
        }
    }

    /// Returns the number of open streams to the pod.
    pub fn streams(&self) -> usize {
        let on_connections: usize = self.lock().iter().map(|connection| connection.streams()).sum();
        on_connections + Arc::strong_count(&self.channels.streams) - 1
    }

    /// Returns whether a stream can be opened without dialling.
    pub fn is_warm(&self) -> bool {
        self.uses_channels() || self.is_connected()
    }

    /// Returns whether a stream can be opened without dialling. Each stream over channels dials.
    pub fn is_connected(&self) -> bool {
        self.lock().iter().any(|connection| connection.opening() == Opening::Open)
    }

    /// Returns whether a stream can be opened without dialling, on a connection that is not crowded.
    pub fn has_room(&self) -> bool {
        self.lock().iter().any(|connection| {
            connection.opening() == Opening::Open && connection.streams() < SPREAD && !connection.is_busy()
        })
    }

    /// Opens a stream, on a new connection if no present one takes it.
    ///
    /// # Errors
    /// The pod is gone, or no connection to it can be opened.
    pub async fn open(self: &Arc<Self>) -> Result<BoxedIo, StreamFault> {
        if self.uses_channels() {
            let dialled = match self.channels.spare.take() {
                Some(io) => Dialled::Channel(io),
                None => self.dialled(self.dialling.beside(self.way.dial()).await?),
            };
            return self.stream_on(dialled);
        }
        if let Some(stream) = self.open_on_existing() {
            return Ok(stream);
        }
        let made = || match self.uses_channels() {
            true => self.stream_on(Dialled::Channel(self.channels.spare.take()?)).ok(),
            false => self.open_on_existing(),
        };
        match self.dialling.share(made, self.dial_ahead()).await? {
            Some(stream) => Ok(stream),
            // The WebSocket of the shared dial carries the stream of another caller.
            None if self.uses_channels() => {
                let upgraded = self.dialling.beside(self.way.dial()).await?;
                self.stream_on(self.dialled(upgraded))
            }
            None => Err(StreamFault::Lost { detail: "the new connection broke at once".to_owned() }),
        }
    }

    /// Returns a dial that adds its connection to the pool, and does not keep the pool alive.
    fn dial_ahead(self: &Arc<Self>) -> impl Future<Output = Result<(), StreamFault>> + Send + use<> {
        let (weak, way) = (Arc::downgrade(self), self.way.clone());
        async move {
            let upgraded = way.dial().await?;
            if let Some(pool) = weak.upgrade() {
                pool.adopt(upgraded);
            }
            Ok(())
        }
    }

    fn stream_on(&self, dialled: Dialled) -> Result<BoxedIo, StreamFault> {
        match dialled {
            Dialled::Channel(io) => {
                let count = self.channels.streams.clone();
                Ok(Box::new(ChannelStream::new(io, self.way.pod.container_port, self.way.fate.clone(), count)))
            }
            Dialled::Connection(connection) => {
                let broke = |_| StreamFault::Lost { detail: "the new connection broke at once".to_owned() };
                let stream = connection.open().map_err(broke)?;
                self.lock().push(connection);
                Ok(stream)
            }
        }
    }

    fn uses_channels(&self) -> bool {
        self.channels.are_used.load(Ordering::Relaxed)
    }

    /// Opens a stream on the connection with the most room, and grows the pool if that is little.
    fn open_on_existing(self: &Arc<Self>) -> Option<BoxedIo> {
        let (stream, should_grow) = {
            let mut connections = self.lock();
            connections.retain(|connection| !connection.is_finished());
            let open = connections.iter().filter(|connection| connection.opening() == Opening::Open);
            let best = open.min_by_key(|connection| (connection.is_busy(), connection.streams()))?;
            let is_crowded = best.is_busy() || best.streams() >= SPREAD;
            // Dial a warm connection for the next client, but not for the first stream: most pools need no second one.
            let wants_warm = connections.len() == 1 && self.opened.fetch_add(1, Ordering::Relaxed) > 0;
            let usable = connections.iter().filter(|connection| connection.opening() != Opening::Retired).count();
            (best.open().ok(), (is_crowded && usable < MOST_CONNECTIONS) || wants_warm)
        };
        if should_grow {
            self.grow();
        }
        stream
    }

    /// Dials one more connection in the background, unless such a dial is in progress or needs a sign-in: nobody waits for it.
    pub fn grow(self: &Arc<Self>) {
        let mut growing = self.growing.lock().expect("no panic while the lock is held");
        if growing.as_ref().is_some_and(|task| !task.is_finished()) || !self.way.cluster.has_credential() {
            return;
        }
        let (dial, pod) = (self.dial_ahead(), self.way.pod.name.clone());
        *growing = Some(tokio::spawn(async move {
            if let Err(error) = dial.await {
                debug!(pod = &*pod, %error, "no further connection to the pod");
            }
        }));
    }

    /// Closes connections that are idle after a burst.
    pub fn shrink(&self) {
        let mut connections = self.lock();
        let mut spare = connections.len().saturating_sub(2);
        connections.retain(|connection| {
            let closes = spare > 0 && connection.idle_since().is_some_and(|at| at.elapsed() >= SHRINK_AFTER);
            spare -= usize::from(closes);
            !closes
        });
    }

    fn dialled(&self, upgraded: Upgraded) -> Dialled {
        let is_channel = upgraded.transport == Transport::Channels;
        self.channels.are_used.store(is_channel, Ordering::Relaxed);
        match is_channel {
            true => Dialled::Channel(upgraded.io),
            false => {
                let connection = Connection::start(upgraded.io, self.way.pod.container_port, self.way.fate.clone());
                self.put_on_probation(connection.silence(), upgraded.transport, probation::patience(upgraded.took));
                Dialled::Connection(connection)
            }
        }
    }

    /// Watches a new connection until its node has sent anything. If another transport carries bytes first, the
    /// connection's streams move to it.
    fn put_on_probation(&self, silence: Silence, transport: Transport, patience: Duration) {
        let (cluster, namespace) = (self.way.cluster.clone(), self.way.namespace.clone());
        let (pod, port) = (self.way.pod.name.clone(), self.way.pod.container_port);
        let mut tasks = self.on_probation.lock().expect("no panic while the lock is held");
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            silence.ping();
            if timeout(patience, silence.broken()).await.is_ok() {
                return;
            }
            let outdone = probation::outdo(&cluster, &namespace, &pod, port, transport);
            tokio::select! {
                () = silence.broken() => {}
                outdone = outdone => if let Some(detail) = outdone {
                    silence.fail(StreamFault::Unavailable { detail, retry_after: None });
                }
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.connections.lock().expect("no panic while the lock is held")
    }
}

impl Drop for PodPool {
    fn drop(&mut self) {
        if let Some(task) = self.growing.lock().expect("no panic while the lock is held").take() {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::duplex, time::advance};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_websocket_that_a_gateway_may_have_closed_is_not_used() {
        let spare = SpareChannel::default();
        for (age, is_used) in [(Duration::from_secs(1), true), (SPARE_LIFETIME, false)] {
            spare.put(Box::new(duplex(1).0));
            advance(age).await;
            assert_eq!(spare.take().is_some(), is_used, "{age:?}");
            assert!(spare.take().is_none());
        }
    }
}
