//! Backends connect to the targets. A backend never sees HTTP or a hostname.

pub mod command;
pub mod error;
pub mod exec;
pub mod port_forward;

pub use error::{Blame, CloseReason, ConnectError, OpenError, StreamFault};

pub use crate::k8s::{ClusterError, ServicePort, sign_in::Report as SignInReport};

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{config::PortRef, drain::Drain, io::BoxedIo, k8s::client::Clusters, routing::Target};

/// Opens sessions to targets. Each kind has a backend: port-forward, exec (jump hosts) and commands.
pub trait Backend: Send + Sync + 'static {
    /// Resolves the target now, and opens the first connection to it.
    ///
    /// # Errors
    /// Each implementation limits its own time, and does not wait for a pod to become ready (the tunnel does).
    fn open<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Box<dyn Session>, OpenError>>;

    /// Returns the present or the last sign-in that a session to `target` waits for. `None`: it needs none.
    fn sign_in(&self, _: &Target) -> Option<SignInReport> {
        None
    }

    /// Returns the running and the failed sign-ins.
    fn sign_ins(&self) -> Vec<SignInReport> {
        Vec::new()
    }

    /// Returns a receiver that changes when a sign-in begins, prints something, or ends. `None`: this backend has none.
    fn sign_in_changes(&self) -> Option<watch::Receiver<()>> {
        None
    }
}

/// All backends; the kind of the target selects one.
pub struct Backends {
    clusters: Arc<Clusters>,
    port_forward: port_forward::PortForward,
    exec: exec::Exec,
    commands: command::Commands,
}

impl Backends {
    /// `supervisor`: the program that runs between adit and a command; see [`command`]. `drain` waits for programs in
    /// pods that have lost their client.
    pub fn new(clusters: Arc<Clusters>, supervisor: Option<PathBuf>, drain: Drain) -> Self {
        Self {
            port_forward: port_forward::PortForward::new(clusters.clone()),
            exec: exec::Exec::new(clusters.clone(), drain),
            commands: command::Commands::new(clusters.clone(), supervisor),
            clusters,
        }
    }
}

impl Backend for Backends {
    fn open<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Box<dyn Session>, OpenError>> {
        match target {
            Target::Pods(target) => match &target.jump {
                Some(jump) => Box::pin(self.exec.open(target, jump)),
                None => Box::pin(self.port_forward.open(target)),
            },
            Target::Command(command) => Box::pin(self.commands.open(command)),
            // A relay has its own backend for these.
            Target::Named(name) => Box::pin(async { Err(OpenError::NoClient { name: name.to_string() }) }),
        }
    }

    fn sign_in(&self, target: &Target) -> Option<SignInReport> {
        match target {
            Target::Pods(target) => self.clusters.sign_in(&target.cluster),
            Target::Command(command) => self.commands.wait(command),
            Target::Named(_) => None,
        }
    }

    fn sign_ins(&self) -> Vec<SignInReport> {
        let mut reports = self.clusters.sign_ins().reports();
        reports.extend(self.commands.waits());
        reports
    }

    fn sign_in_changes(&self) -> Option<watch::Receiver<()>> {
        Some(self.clusters.sign_ins().changes())
    }
}

/// A connection to the endpoints of a target, which carries many streams.
pub trait Session: Send + Sync + 'static {
    /// Opens a stream. A port-forward accepts writes before the pod has accepted the stream: a refusal is a read error
    /// that carries a [`StreamFault`].
    ///
    /// # Errors
    /// [`ConnectError`] tells whether the session takes other streams.
    fn connect(&self) -> BoxFuture<'_, Result<(BoxedIo, Placement), ConnectError>>;

    /// Opens a stream to one of [`pods`](Self::pods). If that pod is gone, does the same as [`connect`](Self::connect).
    fn connect_to<'a>(&'a self, pod: &'a str) -> BoxFuture<'a, Result<(BoxedIo, Placement), ConnectError>> {
        let _ = pod;
        self.connect()
    }

    /// Waits until the session takes no new streams, whatever the reason. Open streams may stay open.
    fn closed(&self) -> BoxFuture<'_, CloseReason>;

    /// Returns the endpoint of the first connection.
    fn endpoint(&self) -> &Endpoint;

    /// Returns whether `port` is another name of this session's port. May return `false` if it does not know.
    fn leads_to(&self, port: &PortRef) -> bool {
        let _ = port;
        false
    }

    /// Returns the names of the pods that the session uses now.
    fn pods(&self) -> Vec<String> {
        vec![self.endpoint().pod.clone()]
    }

    /// Returns why the pod is not ready, if the target names this pod and the session uses it all the same.
    fn not_ready(&self) -> Option<String> {
        None
    }

    /// Returns live counters for `adit status`.
    fn gauges(&self) -> &SessionGauges;
}

/// Pod of a stream, and whether new streams still go there.
#[derive(Clone, Debug)]
pub struct Placement {
    pod: Arc<str>,
    is_leaving: Arc<AtomicBool>,
    /// Cancelled when the session takes no more new streams.
    session: CancellationToken,
}

impl Placement {
    pub fn new(pod: &str) -> Self {
        Self { pod: pod.into(), is_leaving: Arc::default(), session: CancellationToken::new() }
    }

    /// Ties the placement to its session: once `session` is cancelled, no new stream goes there.
    pub fn of_session(self, session: CancellationToken) -> Self {
        Self { session, ..self }
    }

    pub fn pod(&self) -> &Arc<str> {
        &self.pod
    }

    /// Returns whether the pod is terminating, not ready or gone, or the session has ended. Kept-alive connections to
    /// it should not be used again.
    pub fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Relaxed) || self.session.is_cancelled()
    }

    pub fn leave(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
    }
}

/// The pod and port of a session, and its transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Name of the pod; other backends put the name of their command or client here.
    pub pod: String,
    /// Port inside the pod.
    pub container_port: u16,
    /// Requested port, as the Service or pod describes it.
    pub port: ServicePort,
    /// Transport, for people: `spdy`, `spdy over websocket`.
    pub protocol: &'static str,
}

/// Counts one open stream or upgraded connection until it is dropped.
#[derive(Debug)]
pub struct Counted {
    gauges: Arc<SessionGauges>,
    of: fn(&SessionGauges) -> &AtomicU64,
}

impl SessionGauges {
    pub fn count_stream(self: &Arc<Self>) -> Counted {
        self.count(|gauges| &gauges.streams)
    }

    pub fn count_connection(self: &Arc<Self>) -> Counted {
        self.count(|gauges| &gauges.connections)
    }

    fn count(self: &Arc<Self>, of: fn(&SessionGauges) -> &AtomicU64) -> Counted {
        of(self).fetch_add(1, Ordering::Relaxed);
        Counted { gauges: self.clone(), of }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.of)(&self.gauges).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counters that a session keeps and `adit status` reads.
#[derive(Debug, Default)]
pub struct SessionGauges {
    /// Upgraded connections that are open now.
    pub connections: AtomicU64,
    /// Streams that are open now.
    pub streams: AtomicU64,
}
