use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
    time::{advance, timeout},
};

use super::{super::stream::HOLD_ANSWERED, liveness::PROBE, state::OUTBOX, *};
use crate::wire::spdy::{
    frame::{self, Frame, Parser},
    headers::Decoder,
    session::{LANES, Pair, lane_of},
};

mod ended;
mod model;
mod sharing;
mod slow;

const PATIENCE: Duration = Duration::from_secs(10);

/// A scripted node.
struct Node {
    stream: DuplexStream,
    parser: Parser,
    input: BytesMut,
    headers: Decoder,
}

impl Node {
    fn new() -> (Arc<Connection>, Self, Arc<Fate>) {
        let (near, far) = duplex(1 << 20);
        let fate = Arc::new(Fate::new(Arc::default()));
        let connection = Connection::start(Box::new(near), 5432, fate.clone());
        (
            connection,
            Self { stream: far, parser: Parser::default(), input: BytesMut::new(), headers: Decoder::default() },
            fate,
        )
    }

    async fn frame(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.parser.next(&mut self.input).expect("SPDY") {
                return frame;
            }
            assert!(self.stream.read_buf(&mut self.input).await.expect("bytes") > 0, "the connection ended");
        }
    }

    /// Reads the three frames that open a pair.
    async fn accept(&mut self) -> Pair {
        let Frame::SynStream { id: error, headers, .. } = self.frame().await else { panic!("no error stream") };
        assert_eq!(self.headers.decode(&headers).unwrap()[0], ("streamtype".to_owned(), "error".to_owned()));
        assert_eq!(self.frame().await, Frame::Data { id: error, payload: Bytes::new(), fin: true });
        let Frame::SynStream { id: data, headers, .. } = self.frame().await else { panic!("no data stream") };
        assert_eq!(self.headers.decode(&headers).unwrap()[1], ("port".to_owned(), "5432".to_owned()));
        Pair { error, data }
    }

    async fn send(&mut self, id: u32, payload: &[u8], fin: bool) {
        let mut out = BytesMut::new();
        frame::put_data_header(&mut out, id, payload.len(), fin);
        out.extend_from_slice(payload);
        self.stream.write_all(&out).await.unwrap();
    }

    /// Opens a stream, and reads its frames on the node's side.
    async fn open(&mut self, connection: &Arc<Connection>) -> (BoxedIo, Pair) {
        let stream = connection.open().unwrap();
        (stream, self.accept().await)
    }

    async fn pong(&mut self, id: u32) {
        let mut out = BytesMut::new();
        frame::put_ping(&mut out, id);
        self.stream.write_all(&out).await.unwrap();
    }

    async fn end(&mut self, pair: Pair, report: &str) {
        self.send(pair.data, b"", true).await;
        if !report.is_empty() {
            self.send(pair.error, report.as_bytes(), false).await;
        }
        self.send(pair.error, b"", true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_opens_without_waiting_and_ends_when_both_have() {
    let (connection, mut node, _) = Node::new();
    let mut stream = connection.open().unwrap();
    stream.write_all(b"question").await.unwrap();
    let pair = node.accept().await;
    assert_eq!(node.frame().await, Frame::Data { id: pair.data, payload: Bytes::from_static(b"question"), fin: false });
    node.send(pair.data, b"answer", false).await;
    node.end(pair, "").await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
    drop(stream);
    assert_eq!(connection.streams(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_text_behind_the_end_of_the_data_decides_how_it_ended() {
    for (text, wanted) in [
        ("dial tcp4 127.0.0.1:5432: connect: connection refused", StreamFault::Refused { port: 5432 }),
        ("read: connection reset by peer", StreamFault::Reset),
    ] {
        let (connection, mut node, _) = Node::new();
        let (mut stream, pair) = node.open(&connection).await;
        node.end(pair, text).await;
        let error = stream.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(StreamFault::of(&error), Some(&wanted));
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_gone_takes_no_new_streams_and_the_others_live_on() {
    let (connection, mut node, fate) = Node::new();
    let (mut first, first_pair) = node.open(&connection).await;
    let (mut second, second_pair) = node.open(&connection).await;
    node.end(second_pair, "network namespace for sandbox \"x\" is closed").await;
    assert!(matches!(StreamFault::of(&second.read(&mut [0; 8]).await.unwrap_err()), Some(StreamFault::PodGone { .. })));
    assert!(fate.is_gone());
    assert_eq!(connection.open().err(), Some(Opening::Retired));
    node.send(first_pair.data, b"still here", false).await;
    let mut word = [0; 10];
    first.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"still here");
}

/// Returns a stream that has sent `?` and its FIN, and a task that reads the answer.
async fn ask_and_end(connection: &Arc<Connection>, node: &mut Node) -> (Pair, JoinHandle<(String, Instant)>) {
    let mut stream = connection.open().unwrap();
    stream.write_all(b"?").await.unwrap();
    let pair = node.accept().await;
    node.frame().await;
    stream.shutdown().await.unwrap();
    let reading = tokio::spawn(async move {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        (answer, Instant::now())
    });
    (pair, reading)
}

#[tokio::test(start_paused = true)]
async fn the_clients_end_is_held_back_until_the_pod_has_answered_and_is_quiet() {
    let (connection, mut node, _) = Node::new();
    let (pair, reading) = ask_and_end(&connection, &mut node).await;
    assert!(
        timeout(Duration::from_secs(9), node.stream.read_buf(&mut node.input)).await.is_err(),
        "an end before the answer cuts it off"
    );
    for piece in 0..5 {
        assert!(!reading.is_finished(), "an answer that pauses is cut off after {piece}");
        node.send(pair.data, b"!", false).await;
        tokio::time::sleep(Duration::from_millis(1_800)).await;
    }
    node.send(pair.data, b".", false).await;
    let last = Instant::now();
    let (answer, ended) = reading.await.unwrap();
    assert_eq!(answer, "!!!!!.");
    assert!((HOLD_ANSWERED..=Duration::from_secs(2)).contains(&(ended - last)), "{:?}", ended - last);
    while !matches!(node.frame().await, Frame::Data { id, fin: true, .. } if id == pair.data) {}
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_answers_while_it_still_reads_is_not_cut_off() {
    let (connection, mut node, _) = Node::new();
    let mut stream = connection.open().unwrap();
    stream.write_all(&vec![7; OUTBOX]).await.unwrap();
    let pair = node.accept().await;
    stream.shutdown().await.unwrap();
    let mut length = 0;
    while length < OUTBOX {
        let Frame::Data { payload, .. } = node.frame().await else { continue };
        length += payload.len();
    }
    node.send(pair.data, b"a word", false).await;
    let reading = tokio::spawn(async move {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    });
    // The node does not acknowledge that its worker has the upload.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!reading.is_finished());
    node.send(pair.data, b", and the rest", false).await;
    node.end(pair, "").await;
    assert_eq!(reading.await.unwrap().unwrap(), "a word, and the rest");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_speaks_first_to_a_client_that_only_listens_is_heard() {
    let (connection, mut node, _) = Node::new();
    let (mut stream, pair) = node.open(&connection).await;
    stream.shutdown().await.unwrap();
    node.send(pair.data, b"220 ready", false).await;
    let started = Instant::now();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "220 ready");
    assert!(started.elapsed() <= Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_asked_and_dies_without_an_answer() {
    let (connection, mut node, _) = Node::new();
    let mut stream = connection.open().unwrap();
    node.accept().await;
    advance(Duration::from_secs(10)).await;
    for _ in 0..5 {
        assert!(matches!(node.frame().await, Frame::Ping { .. }));
    }
    assert!(matches!(StreamFault::of(&stream.read(&mut [0; 8]).await.unwrap_err()), Some(StreamFault::Lost { .. })));
    assert!(connection.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_answers_lives_on() {
    let (connection, mut node, fate) = Node::new();
    let _stream = connection.open().unwrap();
    node.accept().await;
    for _ in 0..3 {
        for _ in 0..5 {
            let Frame::Ping { id } = node.frame().await else { panic!("no PING") };
            node.pong(id).await;
        }
    }
    assert!(!fate.is_gone());
    assert_eq!(connection.opening(), Opening::Open);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_hangs_behind_unread_bytes_retires_the_connection() {
    // The other workers answer, or the whole node hangs.
    for (answers, retired_after) in [(LANES - 1, PROBE), (0, Duration::from_secs(5))] {
        let (connection, mut node, _) = Node::new();
        let mut stream = connection.open().unwrap();
        stream.write_all(b"an upload that nobody reads").await.unwrap();
        let pair = node.accept().await;
        node.frame().await;
        node.end(pair, "connect: connection refused").await;
        assert!(stream.read(&mut [0; 8]).await.is_err());
        assert_eq!(connection.opening(), Opening::Doubtful);
        for _ in 0..answers {
            let Frame::Ping { id } = node.frame().await else { panic!("no PING") };
            node.pong(id).await;
        }
        tokio::time::sleep(retired_after - Duration::from_millis(1)).await;
        assert_eq!(connection.opening(), Opening::Doubtful, "{answers} answers");
        tokio::time::sleep(Duration::from_millis(2)).await;
        tokio::task::yield_now().await;
        assert_eq!(connection.opening(), Opening::Retired, "{answers} answers");
    }
}

#[tokio::test(start_paused = true)]
async fn behind_an_upload_that_was_answered_early_nothing_is_opened_until_all_workers_have_answered() {
    for has_ended in [false, true] {
        let (connection, mut node, _) = Node::new();
        let _other = node.open(&connection).await;
        let (mut upload, pair) = node.open(&connection).await;
        upload.write_all(&[0; 100_000]).await.unwrap();
        let mut left = 100_000;
        while left > 0 {
            let Frame::Data { payload, .. } = node.frame().await else { panic!("no data") };
            left -= payload.len();
        }
        node.send(pair.data, b"413", false).await;
        upload.read_exact(&mut [0; 3]).await.unwrap();
        assert_eq!(connection.opening(), Opening::Open);
        if has_ended {
            node.end(pair, "").await;
            assert_eq!(upload.read(&mut [0; 8]).await.unwrap(), 0);
        }
        drop(upload);
        assert_eq!(connection.opening(), Opening::Doubtful, "{has_ended}");
        let mut asked = Vec::new();
        while asked.len() < LANES {
            if let Frame::Ping { id } = node.frame().await {
                asked.push(id);
            }
        }
        for id in asked {
            assert_eq!(connection.opening(), Opening::Doubtful, "{has_ended}");
            node.pong(id).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(connection.opening(), Opening::Open, "{has_ended}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_sleep_a_connection_is_asked_before_it_is_used() {
    let (connection, mut node, _) = Node::new();
    let (mut stream, pair) = node.open(&connection).await;
    node.send(pair.data, b"hello", false).await;
    stream.read_exact(&mut [0; 5]).await.unwrap();
    assert_eq!(connection.opening(), Opening::Open);
    let slept = SystemTime::now() - Duration::from_secs(3600);
    connection.shared.lock().heard = Some((Instant::now(), slept));
    assert_eq!(connection.opening(), Opening::Doubtful);
    for _ in 0..LANES {
        let Frame::Ping { id } = node.frame().await else { panic!("no PING") };
        node.pong(id).await;
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(connection.opening(), Opening::Open, "it has answered");
}

/// Frames that the queue of a node's worker holds. A full queue stops the whole connection.
const QUEUE: usize = 50;

#[tokio::test(start_paused = true)]
async fn on_a_long_way_an_upload_is_sent_in_longer_frames() {
    for (answers_after, longest_expected) in
        [(Duration::from_micros(300), 64 * 1024), (Duration::from_millis(20), OUTBOX)]
    {
        let (connection, mut node, _) = Node::new();
        let mut stream = connection.open().unwrap();
        let sent = tokio::spawn(async move {
            stream.write_all(&vec![7; 8 << 20]).await.unwrap();
            stream
        });
        let (mut received, mut length, mut longest) = (0, 0, 0);
        while received < 8 << 20 {
            match node.frame().await {
                Frame::Data { payload, .. } => {
                    received += payload.len();
                    length += payload.len();
                    if !node.parser.is_within_data() {
                        longest = longest.max(std::mem::take(&mut length));
                    }
                }
                Frame::Ping { id } => {
                    if ((id / 2) as usize).is_multiple_of(LANES) {
                        tokio::time::sleep(answers_after).await;
                    }
                    node.pong(id).await;
                }
                _ => {}
            }
        }
        assert_eq!(longest, longest_expected, "answers after {answers_after:?}");
        drop(sent.await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_stream_that_nobody_uses_goes_with_what_comes_next() {
    let (connection, mut node, _) = Node::new();
    let (first, first_pair) = node.open(&connection).await;
    let since = Instant::now();
    drop(first);
    let mut second = connection.open().unwrap();
    second.write_all(b"next").await.unwrap();
    let second_pair = node.accept().await;
    assert_eq!(node.frame().await, Frame::Data { id: first_pair.data, payload: Bytes::new(), fin: true });
    let next = Frame::Data { id: second_pair.data, payload: Bytes::from_static(b"next"), fin: false };
    assert_eq!((node.frame().await, since.elapsed()), (next, Duration::ZERO));
    drop(second);
    assert_eq!(node.frame().await, Frame::Data { id: second_pair.data, payload: Bytes::new(), fin: true });
    assert!(since.elapsed() <= SOON + Duration::from_millis(1), "or in a moment: {:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_leaves_before_the_node_was_told_is_not_heard_of() {
    let (connection, mut node, _) = Node::new();
    drop(connection.open().unwrap());
    let mut stream = connection.open().unwrap();
    stream.write_all(b"next").await.unwrap();
    let pair = node.accept().await;
    assert_eq!(node.frame().await, Frame::Data { id: pair.data, payload: Bytes::from_static(b"next"), fin: false });
    assert_eq!(connection.streams(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_learns_at_once_of_a_client_that_is_gone_and_late_of_one_that_listens() {
    for waits in [true, false] {
        let (connection, mut node, _) = Node::new();
        let mut stream = connection.open().unwrap();
        let pair = node.accept().await;
        stream.write_all(b"question").await.unwrap();
        stream.shutdown().await.unwrap();
        let asked = Frame::Data { id: pair.data, payload: Bytes::from_static(b"question"), fin: false };
        assert_eq!(node.frame().await, asked);
        let since = Instant::now();
        if waits {
            let rest = timeout(Duration::from_secs(1), stream.read_u8()).await;
            assert!(rest.is_err(), "it may be answered: {rest:?}");
        }
        let before = since.elapsed();
        stream.abandon();
        let end = Frame::Data { id: pair.data, payload: Bytes::new(), fin: true };
        assert_eq!((node.frame().await, since.elapsed()), (end, before));
        node.end(pair, "").await;
        assert!(stream.read_u8().await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn for_a_client_that_is_gone_with_its_answer_nothing_is_waited_for() {
    let (connection, mut node, _) = Node::new();
    let mut stream = connection.open().unwrap();
    stream.write_all(b"question").await.unwrap();
    let pair = node.accept().await;
    node.frame().await;
    node.send(pair.data, b"answer", false).await;
    stream.read_exact(&mut [0; 6]).await.unwrap();
    stream.shutdown().await.unwrap();
    stream.abandon();
    let rest = timeout(HOLD_ANSWERED / 2, stream.read_to_end(&mut Vec::new())).await.expect("it is over").unwrap();
    assert_eq!(rest, 0);
    drop(stream);
    let end = Frame::Data { id: pair.data, payload: Bytes::new(), fin: true };
    assert_eq!(timeout(PATIENCE, node.frame()).await.expect("the pod is told"), end);
}
