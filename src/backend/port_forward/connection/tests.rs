use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::{advance, timeout},
};

use super::*;
use crate::wire::spdy::{
    headers::Decoder,
    session::{LANES, Pair, lane_of},
};

/// A node that does what its test says.
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

    /// Takes the three frames that open a pair.
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
        let mut stream = connection.open().unwrap();
        let pair = node.accept().await;
        node.end(pair, text).await;
        let error = stream.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(StreamFault::of(&error), Some(&wanted));
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_gone_takes_no_new_streams_and_the_others_live_on() {
    let (connection, mut node, fate) = Node::new();
    let mut first = connection.open().unwrap();
    let first_pair = node.accept().await;
    let mut second = connection.open().unwrap();
    let second_pair = node.accept().await;
    node.end(second_pair, "network namespace for sandbox \"x\" is closed").await;
    assert!(matches!(StreamFault::of(&second.read(&mut [0; 8]).await.unwrap_err()), Some(StreamFault::PodGone { .. })));
    assert!(fate.is_gone());
    assert_eq!(connection.open().err(), Some(Opening::Retired));
    node.send(first_pair.data, b"still here", false).await;
    let mut word = [0; 10];
    first.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"still here");
}

#[tokio::test(start_paused = true)]
async fn the_clients_end_is_held_back_until_the_pod_has_answered_and_is_quiet() {
    let (connection, mut node, _) = Node::new();
    let mut stream = connection.open().unwrap();
    stream.write_all(b"?").await.unwrap();
    let pair = node.accept().await;
    node.frame().await;
    stream.shutdown().await.unwrap();
    let reading = tokio::spawn(async move {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    });
    assert!(
        timeout(Duration::from_secs(9), node.stream.read_buf(&mut node.input)).await.is_err(),
        "an end before the answer cuts it off"
    );
    node.send(pair.data, b"!", false).await;
    let mut ended_after = Duration::ZERO;
    loop {
        let started = Instant::now();
        let frame = node.frame().await;
        ended_after += started.elapsed();
        match frame {
            Frame::Data { id, fin: true, .. } if id == pair.data => break,
            Frame::Ping { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(ended_after >= Duration::from_secs(4), "{ended_after:?}");
    node.end(pair, "").await;
    assert_eq!(reading.await.unwrap().unwrap(), "!");
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
            let mut out = BytesMut::new();
            frame::put_ping(&mut out, id);
            node.stream.write_all(&out).await.unwrap();
        }
    }
    assert!(!fate.is_gone());
    assert_eq!(connection.opening(), Opening::Open);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_hangs_behind_unread_bytes_retires_the_connection() {
    let (connection, mut node, _) = Node::new();
    let mut stream = connection.open().unwrap();
    stream.write_all(b"an upload that nobody reads").await.unwrap();
    let pair = node.accept().await;
    node.frame().await;
    node.end(pair, "connect: connection refused").await;
    assert!(stream.read(&mut [0; 8]).await.is_err());
    assert_eq!(connection.opening(), Opening::Doubtful);
    tokio::time::sleep(PROBE + Duration::from_millis(1)).await;
    tokio::task::yield_now().await;
    assert_eq!(connection.opening(), Opening::Retired);
}

#[tokio::test(start_paused = true)]
async fn after_a_sleep_a_connection_is_asked_before_it_is_used() {
    let (connection, mut node, _) = Node::new();
    let mut stream = connection.open().unwrap();
    let pair = node.accept().await;
    node.send(pair.data, b"hello", false).await;
    stream.read_exact(&mut [0; 5]).await.unwrap();
    assert_eq!(connection.opening(), Opening::Open);
    let slept = SystemTime::now() - Duration::from_secs(3600);
    connection.shared.lock().heard = Some((Instant::now(), slept));
    assert_eq!(connection.opening(), Opening::Doubtful);
    for _ in 0..LANES {
        let Frame::Ping { id } = node.frame().await else { panic!("no PING") };
        let mut out = BytesMut::new();
        frame::put_ping(&mut out, id);
        node.stream.write_all(&out).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(connection.opening(), Opening::Open, "it has answered");
}

/// A node's worker has a queue of 50 frames; a full one stops everything on the connection.
const QUEUE: usize = 50;

#[tokio::test(start_paused = true)]
async fn a_crowd_that_comes_at_once_is_let_in_as_fast_as_the_workers_answer() {
    const CROWD: usize = 400;
    let (connection, mut node, _) = Node::new();
    let mut streams = Vec::new();
    for number in 0..CROWD {
        let mut stream = connection.open().unwrap();
        stream.write_all(&(number as u32).to_be_bytes()).await.unwrap();
        streams.push(stream);
    }
    let serving = async {
        let (mut queued, mut pings, mut last_id, mut answered) = ([0; LANES], 0, 0, 0);
        while answered < CROWD {
            match node.frame().await {
                Frame::SynStream { id, .. } => {
                    assert!(id > last_id, "ids increase");
                    last_id = id;
                    queued[lane_of(id)] += 1;
                }
                Frame::Data { id, payload, .. } => {
                    queued[lane_of(id)] += 1;
                    if !payload.is_empty() {
                        node.send(id, &payload, false).await;
                        answered += 1;
                    }
                }
                Frame::Ping { id } => {
                    // It has taken what was in the queue before it.
                    tokio::time::sleep(Duration::from_micros(200)).await;
                    queued[pings % LANES] = 0;
                    pings += 1;
                    let mut out = BytesMut::new();
                    frame::put_ping(&mut out, id);
                    node.stream.write_all(&out).await.unwrap();
                }
                other => panic!("{other:?}"),
            }
            assert!(queued.iter().all(|queued| *queued < QUEUE), "{queued:?}");
        }
    };
    let asking = async {
        for (number, stream) in streams.iter_mut().enumerate() {
            assert_eq!(stream.read_u32().await.unwrap(), number as u32);
        }
    };
    timeout(Duration::from_secs(1), async { tokio::join!(serving, asking) }).await.expect("nobody waits for long");
}

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
                    let mut out = BytesMut::new();
                    frame::put_ping(&mut out, id);
                    node.stream.write_all(&out).await.unwrap();
                }
                _ => {}
            }
        }
        assert_eq!(longest, longest_expected, "answers after {answers_after:?}");
        drop(sent.await.unwrap());
    }
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

/// Numbers that look random and are the same each time (Steele, Lea, Flood: SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 27)) >> 11) as usize % limit
    }
}

/// The byte at a place of what a stream carries: another sequence for each stream.
fn byte_at(stream: u32, place: usize) -> u8 {
    (place.wrapping_mul(31) ^ (place >> 8) ^ stream as usize) as u8
}

/// What a model of a node knows of a stream.
#[derive(Default)]
struct Pod {
    received: usize,
    sent: usize,
    /// Its pod does not read for now, and holds its lane up.
    stalls: bool,
    ended: bool,
}

/// A node as the measurements have it: five workers with queues of 50 frames, held up by pods that do not read. It
/// takes and does things in an order that a seed decides, and checks that no queue is ever full.
async fn model_node(mut stream: DuplexStream, seed: u64, stop: Arc<AtomicBool>) -> HashMap<u32, Pod> {
    const QUEUE: usize = 50;
    let (mut random, mut parser, mut headers, mut input) =
        (Random(seed), Parser::default(), Decoder::default(), BytesMut::new());
    let mut lanes: [VecDeque<Frame>; LANES] = Default::default();
    let mut pods: HashMap<u32, Pod> = HashMap::new();
    let (mut pings, mut out) = (0, BytesMut::new());
    loop {
        let is_over = stop.load(Ordering::SeqCst);
        // Some frames come in, whole ones: the model's pieces of a frame count as one.
        for _ in 0..random.below(8) {
            match parser.next(&mut input).expect("SPDY") {
                Some(Frame::SynStream { id, headers: block, .. }) => {
                    let kind = headers.decode(&block).unwrap().remove(0).1;
                    if kind == "data" {
                        pods.insert(id, Pod::default());
                    }
                }
                Some(Frame::Ping { id }) => {
                    lanes[pings % LANES].push_back(Frame::Ping { id });
                    pings += 1;
                }
                Some(frame @ Frame::Data { id, .. }) => {
                    let lane = &mut lanes[lane_of(id)];
                    match (lane.back_mut(), frame) {
                        // The rest of a frame whose beginning waits already.
                        (
                            Some(Frame::Data { id: last, payload, fin: false }),
                            Frame::Data { payload: more, fin, .. },
                        ) if *last == id && !payload.is_empty() => {
                            *payload = [&payload[..], &more[..]].concat().into();
                            if fin {
                                lane.push_back(Frame::Data { id, payload: Bytes::new(), fin });
                            }
                        }
                        (_, frame) => lane.push_back(frame),
                    }
                }
                Some(_) => {}
                None => break,
            }
        }
        for lane in &lanes {
            assert!(lane.len() <= QUEUE, "a queue of {} frames stops the whole connection", lane.len());
        }
        // A worker takes something.
        let number = random.below(LANES);
        let is_held_up = matches!(lanes[number].front(), Some(Frame::Data { id, .. }) if pods.get(id).is_some_and(|pod| pod.stalls && !is_over));
        if !is_held_up {
            match lanes[number].pop_front() {
                Some(Frame::Data { id, payload, .. }) => {
                    if let Some(pod) = pods.get_mut(&id) {
                        for byte in &payload {
                            assert_eq!(*byte, byte_at(id, pod.received), "stream {id}, byte {}", pod.received);
                            pod.received += 1;
                        }
                    }
                }
                Some(Frame::Ping { id }) => frame::put_ping(&mut out, id),
                _ => {}
            }
        }
        // A pod says something, or stalls, or goes on.
        if let Some(id) = pods.keys().copied().nth(random.below(pods.len().max(1))) {
            let pod = pods.get_mut(&id).unwrap();
            match random.below(40) {
                0 => pod.stalls = true,
                1 | 2 => pod.stalls = false,
                3..=9 if !pod.ended && !is_over => {
                    let length = 1 + random.below(3000);
                    frame::put_data_header(&mut out, id, length, false);
                    out.extend((0..length).map(|at| byte_at(id, pod.sent + at)));
                    pod.sent += length;
                }
                10 if is_over && !pod.ended && lanes.iter().all(VecDeque::is_empty) => {
                    pod.ended = true;
                    frame::put_data_header(&mut out, id, 0, true);
                    frame::put_data_header(&mut out, id - 10, 0, true);
                }
                _ => {}
            }
        }
        if stream.write_all(&out.split()).await.is_err() {
            return pods;
        }
        if let Ok(Ok(0) | Err(_)) = timeout(Duration::from_millis(1), stream.read_buf(&mut input)).await {
            return pods;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn in_any_order_of_events_the_bytes_that_go_in_come_out() {
    for seed in 0..6 {
        let (near, far) = duplex(256 * 1024);
        let connection = Connection::start(Box::new(near), 80, Arc::new(Fate::new(Arc::default())));
        let stop = Arc::new(AtomicBool::new(false));
        let node = tokio::spawn(model_node(far, seed, stop.clone()));
        let mut clients = Vec::new();
        let mut random = Random(seed ^ 0xabcd);
        for _ in 0..9 {
            let Ok(stream) = connection.open() else { break };
            let number = *connection.shared.lock().streams.keys().max().unwrap();
            let pair = loop {
                if let Some(pair) = connection.shared.lock().streams[&number].pair {
                    break pair;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            let id = pair.data;
            let (pieces, pause) = (20 + random.below(60), random.below(4) as u64);
            let (mut read, mut write) = tokio::io::split(stream);
            let mut random = Random(seed ^ u64::from(id) << 8);
            clients.push(tokio::spawn(async move {
                let writing = async {
                    let mut sent = 0;
                    for _ in 0..pieces {
                        let length = 1 + random.below(20_000);
                        let piece: Vec<u8> = (0..length).map(|at| byte_at(id, sent + at)).collect();
                        write.write_all(&piece).await.unwrap();
                        sent += length;
                        tokio::time::sleep(Duration::from_millis(pause)).await;
                    }
                    sent
                };
                let reading = async {
                    let (mut received, mut buffer) = (0, vec![0; 4096]);
                    loop {
                        let count = read.read(&mut buffer).await.unwrap();
                        if count == 0 {
                            return received;
                        }
                        for byte in &buffer[..count] {
                            assert_eq!(*byte, byte_at(id, received));
                            received += 1;
                        }
                        // A reader that is slow from time to time.
                        if received % 7 == 0 {
                            tokio::time::sleep(Duration::from_millis(pause * 3)).await;
                        }
                    }
                };
                let (sent, received) = tokio::join!(writing, reading);
                (id, sent, received)
            }));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        stop.store(true, Ordering::SeqCst);
        let mut ends = Vec::new();
        for client in clients {
            ends.push(timeout(Duration::from_secs(600), client).await.expect("every stream ends").unwrap());
        }
        drop(connection);
        let pods = node.await.unwrap();
        for (id, sent, received) in ends {
            let pod = &pods[&id];
            assert_eq!((pod.received, pod.sent), (sent, received), "seed {seed}, stream {id}");
        }
    }
}
