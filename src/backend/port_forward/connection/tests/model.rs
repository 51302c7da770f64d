//! A model of a node, whose workers block each other, against streams that do anything in any order.

use std::collections::{HashMap, VecDeque};

use super::*;

/// Deterministic pseudo-random numbers (Steele, Lea, Flood: SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 27)) >> 11) as usize % limit
    }
}

/// Returns the byte at a position of a stream's data: each stream has another sequence.
fn byte_at(stream: u32, place: usize) -> u8 {
    (place.wrapping_mul(31) ^ (place >> 8) ^ stream as usize) as u8
}

/// A stream in the model of a node.
#[derive(Default)]
struct Pod {
    received: usize,
    sent: usize,
    /// The pod does not read for now, and blocks its lane.
    stalls: bool,
    ended: bool,
}

/// A node as measured: five workers with queues of 50 frames, which pods that do not read block. A seed decides the
/// order of all steps. Checks that no queue is ever full.
async fn model_node(mut stream: DuplexStream, seed: u64, stop: Arc<AtomicBool>) -> HashMap<u32, Pod> {
    const QUEUE: usize = 50;
    let (mut random, mut parser, mut headers, mut input) =
        (Random(seed), Parser::default(), Decoder::default(), BytesMut::new());
    let mut lanes: [VecDeque<Frame>; LANES] = Default::default();
    let mut pods: HashMap<u32, Pod> = HashMap::new();
    let (mut pings, mut out) = (0, BytesMut::new());
    loop {
        let is_over = stop.load(Ordering::SeqCst);
        // Whole frames arrive: pieces of one frame in the model count as one.
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
                        // The rest of a frame whose beginning is in the queue.
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
        // A worker takes a frame.
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
        // A pod sends bytes, stalls, or goes on.
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
                        // The reader is slow from time to time.
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
