//! Tunnels over a scripted backend, with a paused clock.

mod reach;
mod starts;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::watch,
    time::{Instant, sleep},
};

use super::*;
use crate::{
    backend::{Backend, CloseReason, ConnectError, Placement, Session, SessionGauges},
    config::{KubeconfigPaths, PortRef, Workload},
    drain::Drain,
    io::BoxedIo,
    k8s::ClusterError,
    routing::{ClusterId, PodTarget, Target},
};

const IDLE: Duration = Duration::from_secs(60);

/// Returns the errors that its test has scripted, in order, and sessions after that.
#[derive(Default)]
struct Scripted {
    answers: Mutex<VecDeque<OpenError>>,
    delay: Duration,
    opened: AtomicUsize,
    pods: Mutex<Vec<DuplexStream>>,
    sessions: Mutex<Vec<watch::Sender<Option<CloseReason>>>>,
    /// How many streams break as if their pod were gone.
    gone_streams: AtomicUsize,
    /// Errors of the next streams. An error that ends its session also closes it.
    refusals: Mutex<VecDeque<ConnectError>>,
    /// Whether streams never finish opening.
    stalls: AtomicBool,
    /// Whether opening the next session panics.
    panics: AtomicBool,
}

struct ScriptedSession {
    backend: Arc<Scripted>,
    closed: watch::Receiver<Option<CloseReason>>,
    endpoint: Endpoint,
    gauges: SessionGauges,
}

struct Shared(Arc<Scripted>);

impl Backend for Shared {
    fn open<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Box<dyn Session>, OpenError>> {
        Box::pin(async move {
            sleep(self.0.delay).await;
            let number = self.0.opened.fetch_add(1, Ordering::SeqCst) + 1;
            assert!(!self.0.panics.swap(false, Ordering::SeqCst), "as scripted");
            if let Some(error) = self.0.answers.lock().unwrap().pop_front() {
                return Err(error);
            }
            let (closed_tx, closed) = watch::channel(None);
            self.0.sessions.lock().unwrap().push(closed_tx);
            let number_of_port = match target.pods().map(|pods| &pods.port) {
                Some(PortRef::Number(number)) => number.get(),
                _ => 80,
            };
            let port = ServicePort { number: number_of_port, name: None, app_protocol: None };
            let endpoint = Endpoint { pod: format!("pod-{number}"), container_port: 80, port, protocol: "test" };
            Ok(
                Box::new(ScriptedSession {
                    backend: self.0.clone(),
                    closed,
                    endpoint,
                    gauges: SessionGauges::default(),
                }) as Box<dyn Session>,
            )
        })
    }
}

impl Session for ScriptedSession {
    fn connect(&self) -> BoxFuture<'_, Result<(BoxedIo, Placement), ConnectError>> {
        Box::pin(async move {
            if self.backend.stalls.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let refusal = self.backend.refusals.lock().unwrap().pop_front();
            if let Some(error) = refusal {
                if let ConnectError::Over(reason) = &error {
                    self.backend.sessions.lock().unwrap().last().unwrap().send_replace(Some(reason.clone()));
                }
                return Err(error);
            }
            if self.backend.gone_streams.load(Ordering::SeqCst) > 0 {
                self.backend.gone_streams.fetch_sub(1, Ordering::SeqCst);
                let fault = StreamFault::PodGone { detail: "sandbox not found".into() };
                self.backend
                    .sessions
                    .lock()
                    .unwrap()
                    .last()
                    .unwrap()
                    .send_replace(Some(CloseReason::PodGone { detail: "gone".into() }));
                let stream = tokio_test::io::Builder::new().write(b"question").read_error(fault.into()).build();
                return Ok((Box::new(stream) as BoxedIo, Placement::new("pod")));
            }
            let (near, far) = duplex(1024);
            self.backend.pods.lock().unwrap().push(far);
            Ok((Box::new(near) as BoxedIo, Placement::new("pod")))
        })
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        let mut closed = self.closed.clone();
        Box::pin(async move { closed.wait_for(Option::is_some).await.unwrap().clone().unwrap() })
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The Service of this session has one port, and each name of a port means 80.
    fn leads_to(&self, port: &PortRef) -> bool {
        let number = if let PortRef::Number(number) = port { number.get() } else { 80 };
        self.endpoint.port.number == number
    }

    fn gauges(&self) -> &SessionGauges {
        &self.gauges
    }
}

fn target(service: &str) -> Target {
    target_at(service, PortRef::number(80).unwrap())
}

async fn lease_at(manager: &Manager, service: &str, port: PortRef) -> Result<Lease, OpenError> {
    manager.acquire(&target_at(service, port), IDLE).await
}

fn target_at(service: &str, port: PortRef) -> Target {
    Target::Pods(Arc::new(PodTarget {
        cluster: ClusterId { kubeconfig: Arc::new(KubeconfigPaths::default()), context: "c".parse().unwrap() },
        namespace: "n".parse().unwrap(),
        workload: Workload::Service(service.parse().unwrap()),
        port,
        jump: None,
    }))
}

fn manager(backend: Scripted) -> (Manager, Arc<Scripted>, Drain) {
    let (backend, drain) = (Arc::new(backend), Drain::new());
    (Manager::new(Arc::new(Shared(backend.clone())), drain.clone()), backend, drain)
}

fn not_ready() -> OpenError {
    ClusterError::NotReady {
        what: "service n/s".into(),
        context: "c".parse().unwrap(),
        cause: "0 of 1".into(),
        hint: String::new(),
    }
    .into()
}

fn not_found() -> OpenError {
    ClusterError::NotFound { what: "service n/s".into(), context: "c".parse().unwrap(), near: vec![], hint: None }
        .into()
}

#[tokio::test(start_paused = true)]
async fn a_new_idle_timeout_holds_for_tunnels_that_run() {
    let (manager, _, _) = manager(Scripted::default());
    for old in [Duration::ZERO, 10 * IDLE] {
        drop(manager.acquire(&target("s"), old).await.unwrap());
        sleep(Duration::from_secs(1)).await;
        manager.retain(|_| true, |_| Some(IDLE));
        sleep(IDLE / 2).await;
        assert_eq!(manager.snapshot().len(), 1, "{old:?}");
        sleep(IDLE).await;
        assert!(manager.snapshot().is_empty(), "{old:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn tunnels_whose_targets_have_one_text_have_ids_of_their_own() {
    let (manager, _, _) = manager(Scripted::default());
    let target = |file: &str| {
        let Target::Pods(pods) = target_at("s", PortRef::Auto) else { panic!("it has pods") };
        let kubeconfig = Arc::new(KubeconfigPaths(vec![file.into()]));
        let cluster = ClusterId { kubeconfig, ..pods.cluster.clone() };
        Target::Pods(Arc::new(PodTarget { cluster, ..(*pods).clone() }))
    };
    let lease = async |file: &str| manager.acquire(&target(file), IDLE).await.unwrap();
    let (first, second) = (lease("a").await, lease("b").await);
    assert_eq!(*second.id(), format!("{} (2)", first.id()));
    assert!(manager.stop(&second.id()));
    second.ended().await;
    assert!(tokio::time::timeout(Duration::from_secs(1), first.ended()).await.is_err(), "the other one goes on");
    assert!(manager.snapshot_of(&first.id()).is_some_and(|tunnel| tunnel.target == Some(target("a"))));
    let second = lease("b").await;
    drop(first);
    sleep(2 * IDLE).await;
    let first = lease("a").await;
    assert_eq!(*second.id(), format!("{} (2)", first.id()), "an id stays while its tunnel is open");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_is_idle_after_its_last_lease_and_its_last_byte() {
    let (manager, backend, _) = manager(Scripted::default());
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    let mut stream = lease.connect().await.unwrap();
    sleep(IDLE * 3).await;
    assert_eq!(manager.snapshot()[0].state, "running", "a lease is use");
    drop(lease);
    sleep(IDLE / 2).await;
    stream.write_all(b"x").await.unwrap();
    sleep(IDLE * 3 / 4).await;
    assert_eq!(manager.snapshot()[0].state, "running", "bytes are use");
    sleep(IDLE).await;
    assert!(manager.snapshot().is_empty());
    assert_eq!(backend.opened.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn zero_means_never_idle() {
    let (manager, ..) = manager(Scripted::default());
    drop(manager.acquire(&target("s"), Duration::ZERO).await.unwrap());
    sleep(IDLE * 1000).await;
    assert_eq!(manager.snapshot()[0].state, "running");
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_is_opened_again_for_who_holds_a_lease() {
    let (manager, backend, _) = manager(Scripted::default());
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    assert_eq!(lease.endpoint().pod, "pod-1");
    backend.sessions.lock().unwrap()[0].send_replace(Some(CloseReason::Lost { detail: "eof".into() }));
    sleep(Duration::from_millis(10)).await;
    lease.connect().await.unwrap();
    assert_eq!(lease.endpoint().pod, "pod-2");
}

#[tokio::test(start_paused = true)]
async fn a_stream_to_a_pod_that_is_gone_is_moved_with_its_bytes_once() {
    let (manager, backend, _) = manager(Scripted { gone_streams: AtomicUsize::new(1), ..Scripted::default() });
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    let mut stream = lease.connect().await.unwrap();
    stream.write_all(b"question").await.unwrap();
    let pods = backend.clone();
    let answering = tokio::spawn(async move {
        loop {
            let pod = pods.pods.lock().unwrap().pop();
            match pod {
                Some(mut pod) => {
                    let mut question = [0; 8];
                    pod.read_exact(&mut question).await.unwrap();
                    pod.write_all(&question).await.unwrap();
                    return pod;
                }
                None => sleep(Duration::from_millis(1)).await,
            }
        }
    });
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"question");
    let mut pod = answering.await.unwrap();
    drop(stream);
    let mut rest = Vec::new();
    pod.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "the question was sent once");
    assert_eq!(lease.endpoint().pod, "pod-2");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_tunnel_ends_its_streams_and_is_made_again() {
    let (manager, ..) = manager(Scripted::default());
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    let mut stream = lease.connect().await.unwrap();
    assert!(manager.stop("c/n/s:80") && !manager.stop("c/n/other:80"));
    assert!(stream.read(&mut [0; 1]).await.is_err());
    sleep(Duration::from_millis(1)).await;
    assert_eq!(manager.acquire(&target("s"), IDLE).await.unwrap().endpoint().pod, "pod-2");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_no_route_leads_to_ends_with_its_last_lease() {
    let (manager, ..) = manager(Scripted::default());
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    manager.retain(|_| false, |_| None);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(manager.snapshot().len(), 1);
    drop(lease);
    sleep(Duration::from_secs(1)).await;
    assert!(manager.snapshot().is_empty());
}

/// Opens a kept-alive connection: it holds no lease, and a task reads from it.
async fn kept_connection(manager: &Manager) -> (tokio::task::JoinHandle<std::io::Result<usize>>, Placement) {
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    let (mut stream, placement) = lease.connect_to(None).await.unwrap();
    assert!(!placement.is_leaving());
    (tokio::spawn(async move { stream.read(&mut [0; 1]).await }), placement)
}

type EndedBy = fn(&Manager, &Scripted);

#[tokio::test(start_paused = true)]
async fn nothing_outlives_its_tunnel() {
    let ends: [(&str, EndedBy); 4] = [
        ("idle", |_, _| {}),
        ("stopped", |manager, _| assert!(manager.stop("c/n/s:80"))),
        ("no route leads to it", |manager, _| manager.retain(|_| false, |_| None)),
        ("lost while nobody uses it", |_, backend| {
            backend.sessions.lock().unwrap()[0].send_replace(Some(CloseReason::Lost { detail: "eof".into() }));
        }),
    ];
    for (why, end) in ends {
        let (manager, backend, _) = manager(Scripted::default());
        let (reading, placement) = kept_connection(&manager).await;
        end(&manager, &backend);
        let read = tokio::time::timeout(IDLE * 2, reading).await.unwrap_or_else(|_| panic!("it ends: {why}"));
        assert!(read.unwrap().is_err(), "{why}");
        assert!(placement.is_leaving(), "{why}");
        sleep(Duration::from_millis(1)).await;
        assert!(backend.sessions.lock().unwrap()[0].is_closed(), "the session is dropped: {why}");
        assert!(manager.snapshot().is_empty(), "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_keeps_nothing_of_a_tunnel_that_was_stopped() {
    let (manager, backend, _) = manager(Scripted::default());
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    // Nothing polls it.
    let mut stream = lease.connect().await.unwrap();
    let mut pod = backend.pods.lock().unwrap().pop().unwrap();
    assert!(manager.stop("c/n/s:80"));
    tokio::time::timeout(IDLE, lease.ended()).await.expect("who holds a lease learns of it");
    assert_eq!(pod.read(&mut [0; 1]).await.unwrap(), 0, "the stream to the pod is dropped");
    sleep(Duration::from_millis(1)).await;
    assert!(backend.sessions.lock().unwrap()[0].is_closed(), "and its session");
    assert!(stream.read(&mut [0; 1]).await.is_err());
    assert!(stream.write(&[0; 1]).await.is_err());
    assert_eq!(lease.connect().await.err(), Some(OpenError::Stopped));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_waits_for_a_stream_learns_of_the_stop() {
    let (manager, backend, _) = manager(Scripted::default());
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    backend.stalls.store(true, Ordering::SeqCst);
    let started = Instant::now();
    let (connected, ()) = tokio::join!(lease.connect(), async {
        sleep(Duration::from_millis(1)).await;
        assert!(manager.stop("c/n/s:80"));
    });
    assert_eq!(connected.err(), Some(OpenError::Stopped));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_a_session_that_was_replaced_takes_no_new_requests() {
    let (manager, backend, _) = manager(Scripted::default());
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    let (reading, placement) = kept_connection(&manager).await;
    backend.sessions.lock().unwrap()[0].send_replace(Some(CloseReason::Lost { detail: "eof".into() }));
    sleep(Duration::from_millis(10)).await;
    assert!(placement.is_leaving(), "the next request goes over the next session");
    assert!(!reading.is_finished(), "those that are open live on");
    drop(lease);
    assert!(reading.await.unwrap().is_err(), "until the tunnel is over");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_starts_in_a_drain_does_not_stay() {
    let (manager, _, drain) = manager(Scripted { delay: Duration::from_secs(2), ..Scripted::default() });
    let waiting = manager.clone();
    let caller = tokio::spawn(async move { waiting.acquire(&target("s"), IDLE).await.map(drop) });
    sleep(Duration::from_secs(1)).await;
    caller.abort();
    assert_eq!(drain.finish(Duration::from_secs(10)).await, 0);
    assert_eq!(manager.acquire(&target("s"), IDLE).await.err(), Some(OpenError::Stopped));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_lost_in_a_drain_leaves_its_streams_their_time() {
    let (manager, backend, drain) = manager(Scripted::default());
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    let mut stream = lease.connect().await.unwrap();
    let mut pod = backend.pods.lock().unwrap().pop().unwrap();
    backend.answers.lock().unwrap().push_back(OpenError::NoClient { name: "s".into() });
    let draining = drain.clone();
    let finished = tokio::spawn(async move { draining.finish(Duration::from_secs(10)).await });
    sleep(Duration::from_millis(10)).await;
    backend.sessions.lock().unwrap()[0].send_replace(Some(CloseReason::ClientGone));
    sleep(Duration::from_secs(1)).await;
    pod.write_all(b"rest").await.unwrap();
    let mut rest = [0; 4];
    stream.read_exact(&mut rest).await.expect("the stream goes on");
    drop((stream, lease));
    assert_eq!(finished.await.unwrap(), 0, "it ends with its last stream");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_gives_no_stream_is_not_waited_for_for_ever() {
    let (manager, backend, _) = manager(Scripted::default());
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    backend.stalls.store(true, Ordering::SeqCst);
    let started = Instant::now();
    let connected = tokio::time::timeout(IDLE, lease.connect()).await.expect("it ends with the budget");
    assert_eq!(connected.err(), Some(OpenError::TimedOut { after: BUDGET }));
    assert!((9..=11).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_fails_alone_is_told_at_once_and_leaves_the_session() {
    let (manager, backend, _) = manager(Scripted::default());
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    let fault = StreamFault::Other { detail: "too many open files".into() };
    backend.refusals.lock().unwrap().push_back(fault.clone().into());
    let started = Instant::now();
    assert_eq!(lease.connect().await.err(), Some(OpenError::Stream(fault)));
    assert!(started.elapsed() < Duration::from_millis(100), "{:?}", started.elapsed());
    lease.connect().await.unwrap();
    assert_eq!(backend.opened.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_backend_ends_its_tunnel_and_another_takes_its_place() {
    let (manager, backend, _) = manager(Scripted::default());
    backend.panics.store(true, Ordering::SeqCst);
    let started = Instant::now();
    manager.acquire(&target("s"), IDLE).await.expect("the next tunnel works");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn sessions_that_end_at_once_are_not_replaced_in_a_tight_loop() {
    let (manager, backend, _) = manager(Scripted::default());
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    let gone = || ConnectError::Over(CloseReason::PodGone { detail: "deleted".into() });
    backend.refusals.lock().unwrap().extend(std::iter::repeat_with(gone).take(100_000));
    assert!(lease.connect().await.is_err());
    assert!(backend.opened.load(Ordering::SeqCst) < 200, "{}", backend.opened.load(Ordering::SeqCst));
    backend.refusals.lock().unwrap().clear();
    backend.gone_streams.store(100_000, Ordering::SeqCst);
    let mut stream = lease.connect().await.unwrap();
    stream.write_all(b"question").await.unwrap();
    assert!(stream.read(&mut [0; 8]).await.is_err());
    assert!(backend.opened.load(Ordering::SeqCst) < 400, "{}", backend.opened.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_over_is_replaced_for_its_caller() {
    let (manager, backend, _) = manager(Scripted::default());
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    let gone = || ConnectError::Over(CloseReason::PodGone { detail: "deleted".into() });
    let command = || ConnectError::Over(CloseReason::Command { detail: "ssh: it refuses".into() });
    for (over, opened) in [(vec![gone()], 2), (vec![gone(), gone(), gone()], 5), (vec![command()], 6)] {
        backend.refusals.lock().unwrap().extend(over);
        lease.connect().await.unwrap();
        assert_eq!(backend.opened.load(Ordering::SeqCst), opened);
    }
    // A command that fails again after a restart is not started again and again.
    backend.refusals.lock().unwrap().extend([command(), command()]);
    let started = Instant::now();
    let error = lease.connect().await.err().unwrap();
    assert_eq!(error, OpenError::Stream(StreamFault::Other { detail: "ssh: it refuses".into() }));
    assert!(started.elapsed() < Duration::from_millis(100), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_cause_is_told_and_not_the_time_where_sessions_keep_ending() {
    let (manager, backend, _) = manager(Scripted { delay: Duration::from_secs(1), ..Scripted::default() });
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    let reason = CloseReason::Lost { detail: "the node hangs up".into() };
    backend.refusals.lock().unwrap().extend(std::iter::repeat_n(ConnectError::Over(reason.clone()), 100));
    assert_eq!(lease.connect().await.err(), Some(OpenError::Stream(StreamFault::from(reason))));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_backend_is_told_once_and_asked_for_again_in_a_second() {
    for error in [OpenError::Stopped, OpenError::NoClient { name: "web".into() }] {
        let (manager, backend, _) =
            manager(Scripted { answers: Mutex::new([error.clone()].into()), ..Scripted::default() });
        let started = Instant::now();
        assert_eq!(manager.acquire(&target("s"), IDLE).await.err(), Some(error.clone()));
        assert_eq!(manager.acquire(&target("s"), IDLE).await.err(), Some(error));
        assert!(started.elapsed() < Duration::from_millis(100), "{:?}", started.elapsed());
        assert_eq!(backend.opened.load(Ordering::SeqCst), 1);
        sleep(Duration::from_secs(1)).await;
        manager.acquire(&target("s"), IDLE).await.unwrap();
    }
}

/// In real time: the tunnel goes idle at the moment at which a caller acquires it.
#[tokio::test]
async fn a_lease_never_finds_its_tunnel_closed_as_idle() {
    let (manager, backend, _) = manager(Scripted::default());
    let until = Instant::now() + Duration::from_secs(2);
    let users = (0..4).map(|_| {
        let manager = manager.clone();
        tokio::spawn(async move {
            let target = target("s");
            while Instant::now() < until {
                let lease = manager.acquire(&target, Duration::from_millis(1)).await.unwrap();
                drop(lease.connect().await.unwrap());
                drop(lease);
                sleep(Duration::from_millis(1)).await;
            }
        })
    });
    for user in users.collect::<Vec<_>>() {
        user.await.unwrap();
    }
    assert!(backend.opened.load(Ordering::SeqCst) > 10, "it was closed in between");
}
