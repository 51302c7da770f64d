//! Streams that move, over a session with scripted streams.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Waker,
};

use futures::future::{BoxFuture, pending};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    time::timeout,
};

use super::*;
use crate::{
    backend::{Backend, CloseReason, ConnectError, Endpoint, Placement, ServicePort, Session, SessionGauges},
    config::{KubeconfigPaths, PortRef, Workload},
    drain::Drain,
    routing::{ClusterId, PodTarget, Target},
    tunnel::{Lease, Manager},
};

/// Longer than any of these tests may take.
const LATE: Duration = Duration::from_secs(60);

/// A scripted stream that records its writes.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    /// Number of bytes that it accepts before its writes wait.
    takes: usize,
    /// Accepts more than `takes`, with the same answer.
    takes_more: bool,
    /// After `takes` bytes: the reads in order, and the error after them.
    says: VecDeque<&'static [u8]>,
    fault: Option<StreamFault>,
    /// Whether flush, shutdown, and writes after `takes` bytes fail with the fault, too.
    fails_writes: bool,
    got: Vec<u8>,
    ended: bool,
    is_abandoned: bool,
    reader: Option<Waker>,
}

impl Fake {
    /// Accepts `takes` bytes, then answers `says`, then fails.
    fn failing(takes: usize, says: &[&'static [u8]], fault: StreamFault) -> Self {
        let says = says.iter().copied().collect();
        Self(Arc::new(Mutex::new(Script { takes, says, fault: Some(fault), ..Script::default() })))
    }

    fn with_failing_writes(self) -> Self {
        self.0.lock().unwrap().fails_writes = true;
        self
    }

    /// Accepts everything and never answers.
    fn silent() -> Self {
        Self(Arc::new(Mutex::new(Script { takes: usize::MAX, ..Script::default() })))
    }

    fn got(&self) -> Vec<u8> {
        self.0.lock().unwrap().got.clone()
    }

    fn has_ended(&self) -> bool {
        self.0.lock().unwrap().ended
    }

    fn is_abandoned(&self) -> bool {
        self.0.lock().unwrap().is_abandoned
    }
}

impl Script {
    fn write_fault(&self) -> Option<io::Error> {
        if !self.fails_writes || self.got.len() < self.takes { None } else { self.fault.clone().map(Into::into) }
    }
}

impl AsyncRead for Fake {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut script = self.0.lock().unwrap();
        if script.got.len() >= script.takes {
            if let Some(said) = script.says.pop_front() {
                buf.put_slice(said);
                return Poll::Ready(Ok(()));
            }
            if let Some(fault) = &script.fault {
                return Poll::Ready(Err(fault.clone().into()));
            }
        }
        script.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Fake {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut script = self.0.lock().unwrap();
        if let Some(error) = script.write_fault() {
            return Poll::Ready(Err(error));
        }
        let room = if script.takes_more { usize::MAX } else { script.takes - script.got.len() };
        let count = buf.len().min(room);
        if count == 0 {
            return Poll::Pending;
        }
        script.got.extend_from_slice(&buf[..count]);
        if let Some(reader) = script.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.lock().unwrap().write_fault().map_or(Ok(()), Err))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut script = self.0.lock().unwrap();
        script.ended = true;
        Poll::Ready(script.write_fault().map_or(Ok(()), Err))
    }
}

impl Io for Fake {
    fn abandon(&mut self) {
        self.0.lock().unwrap().is_abandoned = true;
    }
}

/// A session that never ends and returns the scripted streams in order.
struct Streams {
    streams: Arc<Mutex<VecDeque<BoxedIo>>>,
    connects: Arc<AtomicUsize>,
    endpoint: Endpoint,
    gauges: SessionGauges,
}

/// A backend that opens a [`Streams`] session.
struct Pod {
    streams: Arc<Mutex<VecDeque<BoxedIo>>>,
    connects: Arc<AtomicUsize>,
}

impl Backend for Pod {
    fn open<'a>(&'a self, _: &'a Target) -> BoxFuture<'a, Result<Box<dyn Session>, OpenError>> {
        let port = ServicePort { number: 80, name: None, app_protocol: None };
        let endpoint = Endpoint { pod: "pod".into(), container_port: 80, port, protocol: "test" };
        let (streams, connects) = (self.streams.clone(), self.connects.clone());
        Box::pin(async move {
            Ok(Box::new(Streams { streams, connects, endpoint, gauges: SessionGauges::default() }) as Box<dyn Session>)
        })
    }
}

impl Session for Streams {
    fn connect(&self) -> BoxFuture<'_, Result<(BoxedIo, Placement), ConnectError>> {
        Box::pin(async move {
            self.connects.fetch_add(1, Ordering::SeqCst);
            let next = self.streams.lock().unwrap().pop_front();
            Ok((next.unwrap_or_else(|| Box::new(Fake::failing(0, &[], refused()))), Placement::new("pod")))
        })
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(pending())
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn gauges(&self) -> &SessionGauges {
        &self.gauges
    }
}

fn refused() -> StreamFault {
    StreamFault::Refused { port: 80 }
}

/// The tunnel, manager and session around a stream under test.
struct Around {
    connects: Arc<AtomicUsize>,
    manager: Manager,
    drain: Drain,
    _lease: Lease,
}

impl Around {
    fn connects(&self) -> usize {
        self.connects.load(Ordering::SeqCst)
    }
}

/// Returns a stream whose session returns `streams` in turn, and refuses after them.
async fn stream<const N: usize>(streams: [BoxedIo; N]) -> (BoxedIo, Around) {
    let (streams, connects) = (Arc::new(Mutex::new(VecDeque::from(streams))), Arc::new(AtomicUsize::new(0)));
    let drain = Drain::new();
    let manager = Manager::new(Arc::new(Pod { streams, connects: connects.clone() }), drain.clone());
    let lease = manager.acquire(&target(), LATE).await.unwrap();
    let stream = lease.connect().await.unwrap();
    (stream, Around { connects, manager, drain, _lease: lease })
}

fn target() -> Target {
    Target::Pods(Arc::new(PodTarget {
        cluster: ClusterId { kubeconfig: Arc::new(KubeconfigPaths::default()), context: "c".parse().unwrap() },
        namespace: "n".parse().unwrap(),
        workload: Workload::Service("s".parse().unwrap()),
        port: PortRef::number(80).unwrap(),
        jump: None,
    }))
}

#[tokio::test(start_paused = true)]
async fn an_end_before_any_byte_is_told_to_the_next_pod_too() {
    let next = Fake::silent();
    let (mut stream, _around) = stream([Box::new(Fake::failing(0, &[], refused())), Box::new(next.clone())]).await;
    stream.shutdown().await.unwrap();
    assert!(timeout(LATE, stream.read(&mut [0; 8])).await.is_err(), "the next pod says nothing");
    assert!(next.has_ended());
}

#[tokio::test(start_paused = true)]
async fn an_end_after_bytes_is_told_to_the_next_pod_after_them() {
    let (near, mut far) = duplex(3);
    let (mut stream, _around) = stream([Box::new(Fake::failing(8, &[], refused())), Box::new(near)]).await;
    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    let reading = tokio::spawn(async move { stream.read(&mut [0; 8]).await });
    let mut question = Vec::new();
    timeout(LATE, far.read_to_end(&mut question)).await.expect("the end comes").unwrap();
    assert_eq!(question, b"question");
    drop(far);
    assert_eq!(reading.await.unwrap().unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_again_after_the_first_byte_of_an_answer() {
    let answering = Fake::failing(4, &[b"no"], refused());
    let never = Fake::silent();
    let (mut stream, around) =
        stream([Box::new(Fake::failing(8, &[], refused())), Box::new(answering.clone()), Box::new(never.clone())])
            .await;
    stream.write_all(b"question").await.unwrap();
    let mut answer = Vec::new();
    let end = timeout(LATE, stream.read_to_end(&mut answer)).await.expect("it ends");
    assert_eq!((answer.as_slice(), answering.got().as_slice()), (&b"no"[..], &b"ques"[..]));
    assert!(end.is_err() && never.got().is_empty());
    assert_eq!(around.connects(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_read_though_the_bytes_sent_again_are_not_all_taken() {
    let full = Fake::failing(4, &[b"413"], StreamFault::Reset).with_failing_writes();
    let (mut stream, _around) = stream([Box::new(Fake::failing(8, &[], refused())), Box::new(full)]).await;
    stream.write_all(b"question").await.unwrap();
    let mut answer = Vec::new();
    let end = timeout(LATE, stream.read_to_end(&mut answer)).await.expect("it ends");
    assert_eq!(answer, b"413");
    assert!(end.is_err(), "the reset is told after it");
}

#[tokio::test(start_paused = true)]
async fn a_flush_and_an_end_that_are_refused_move_the_stream() {
    for ends in [false, true] {
        let next = Fake::silent();
        let refusing = Fake::failing(8, &[], refused()).with_failing_writes();
        let (mut stream, _around) = stream([Box::new(refusing), Box::new(next.clone())]).await;
        stream.write_all(b"question").await.unwrap();
        let done = async { if ends { stream.shutdown().await } else { stream.flush().await } };
        timeout(LATE, done).await.expect("it goes on").unwrap();
        assert_eq!((next.got().as_slice(), next.has_ended()), (&b"question"[..], ends));
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_of_a_client_that_is_gone_are_sent_again_and_their_answer_is_not_waited_for() {
    let next = Fake::silent();
    let refusing = Fake::failing(8, &[], refused());
    let (mut stream, _around) = stream([Box::new(refusing.clone()), Box::new(next.clone())]).await;
    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    stream.abandon();
    assert!(refusing.is_abandoned());
    assert!(timeout(REFUSED_GRACE, stream.read_u8()).await.is_err());
    assert_eq!(next.got(), b"question");
    assert!(next.has_ended() && next.is_abandoned());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_asked_again_for_three_seconds_and_not_in_a_drain() {
    let (mut first, around) = stream([]).await;
    let started = Instant::now();
    assert!(timeout(LATE, first.read(&mut [0; 1])).await.expect("it ends").is_err());
    assert!((3..4).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    assert!(around.connects() > 5);

    let (mut second, around) = stream([]).await;
    around.drain.start();
    let started = Instant::now();
    assert!(timeout(LATE, second.read(&mut [0; 1])).await.expect("it ends").is_err());
    assert!(started.elapsed() < PAUSE, "{:?}", started.elapsed());
    assert_eq!(around.connects(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_restarts_is_asked_again_in_pauses() {
    let away = || {
        Box::new(Fake::failing(0, &[], StreamFault::Unavailable { detail: "away".into(), retry_after: None }))
            as BoxedIo
    };
    let (mut stream, around) = stream(std::array::from_fn::<_, 500, _>(|_| away())).await;
    assert!(timeout(LATE, stream.read(&mut [0; 1])).await.expect("it ends").is_err());
    assert!((20..=110).contains(&around.connects()), "{}", around.connects());
}

#[tokio::test(start_paused = true)]
async fn what_is_more_than_is_kept_waits_for_a_refusal() {
    let next = Fake::silent();
    let refusing = Fake::failing(KEPT, &[], refused());
    refusing.0.lock().unwrap().takes_more = true;
    let (stream, _around) = stream([Box::new(refusing), Box::new(next.clone())]).await;
    let (mut reading, mut writing) = tokio::io::split(stream);
    tokio::spawn(async move { reading.read(&mut [0; 1]).await });
    let sent = vec![7; 5 * KEPT];
    writing.write_all(&sent).await.unwrap();
    assert!(next.got() == sent, "all of it came to the next pod, once");
}

#[tokio::test(start_paused = true)]
async fn what_is_more_than_is_kept_waits_no_longer_than_for_an_answer() {
    let answering = Fake::failing(1, &[b"100"], StreamFault::Reset);
    answering.0.lock().unwrap().takes_more = true;
    let (stream, _around) = stream([Box::new(answering.clone())]).await;
    let (mut reading, mut writing) = tokio::io::split(stream);
    let reading = tokio::spawn(async move { reading.read(&mut [0; 3]).await });
    let started = Instant::now();
    writing.write_all(&vec![7; 5 * KEPT]).await.unwrap();
    assert_eq!((answering.got().len(), started.elapsed()), (5 * KEPT, Duration::ZERO));
    assert_eq!(reading.await.unwrap().unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_again_once_more_was_written_than_is_kept() {
    for (length, is_moved) in [(KEPT, true), (KEPT + 1, false)] {
        let next = Fake::silent();
        let (mut stream, _around) =
            stream([Box::new(Fake::failing(length, &[], refused())), Box::new(next.clone())]).await;
        stream.write_all(&vec![7; length]).await.unwrap();
        let end = timeout(Duration::from_secs(2), stream.read(&mut [0; 1])).await;
        assert_eq!((end.is_err(), next.got().len()), (is_moved, if is_moved { length } else { 0 }));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_reset_pod_may_have_seen_is_not_sent_again() {
    for fault in [StreamFault::Reset, StreamFault::Lost { detail: "eof".into() }] {
        let (mut stream, around) = stream([Box::new(Fake::failing(8, &[], fault)), Box::new(Fake::silent())]).await;
        stream.write_all(b"question").await.unwrap();
        assert!(timeout(LATE, stream.read(&mut [0; 1])).await.expect("it ends").is_err());
        assert_eq!(around.connects(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_and_a_writer_in_tasks_of_their_own_both_go_on_after_a_move() {
    let (near, mut far) = duplex(1024);
    let refusing = Fake::failing(8, &[], refused());
    let (mut stream, _around) = stream([Box::new(refusing), Box::new(near)]).await;
    stream.write_all(b"question").await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let mut answer = [0; 6];
    let reading = tokio::spawn(async move { read.read_exact(&mut answer).await.map(|_| answer) });
    // The reader has begun to move the stream. The writer waits for that, and has polled last.
    tokio::task::yield_now().await;
    let writing = tokio::spawn(async move { write.write_all(b", more").await });
    let mut question = [0; 14];
    timeout(LATE, far.read_exact(&mut question)).await.expect("the writer goes on").unwrap();
    assert_eq!(&question, b"question, more");
    far.write_all(b"answer").await.unwrap();
    assert_eq!(timeout(LATE, reading).await.expect("the reader goes on").unwrap().unwrap(), *b"answer");
    writing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reader_learns_of_the_stop_though_a_writer_has_looked_after_it() {
    let (near, _far) = duplex(1024);
    let (stream, around) = stream([Box::new(near)]).await;
    let (mut read, mut write) = tokio::io::split(stream);
    let reading = tokio::spawn(async move { read.read(&mut [0; 1]).await });
    tokio::task::yield_now().await;
    write.write_all(b"question").await.unwrap();
    assert!(around.manager.stop(&target().to_string()));
    assert!(timeout(LATE, reading).await.expect("the reader goes on").unwrap().is_err());
}
