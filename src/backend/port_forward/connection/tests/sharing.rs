//! Streams that share a connection: bursts of streams, and readers of different speed.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_crowd_that_comes_at_once_is_let_in_as_fast_as_the_workers_answer() {
    const CLIENTS: usize = 400;
    let (connection, mut node, _) = Node::new();
    let mut streams = Vec::new();
    for number in 0..CLIENTS {
        let mut stream = connection.open().unwrap();
        stream.write_all(&(number as u32).to_be_bytes()).await.unwrap();
        streams.push(stream);
    }
    let serving = async {
        let (mut queued, mut pings, mut last_id, mut answered) = ([0; LANES], 0, 0, 0);
        while answered < CLIENTS {
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
                    // The worker has taken the frames queued before the PING.
                    tokio::time::sleep(Duration::from_micros(200)).await;
                    queued[pings % LANES] = 0;
                    pings += 1;
                    node.pong(id).await;
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

/// Answers each byte on `asking` with one byte, and sends the remaining bytes on `reading` in between.
async fn serve_both(node: &mut Node, reading: Pair, asking: Pair, mut left: usize) {
    let piece = vec![7; 64 * 1024];
    loop {
        tokio::select! {
            biased;
            frame = node.frame() => match frame {
                Frame::Data { id, payload, .. } if id == asking.data && !payload.is_empty() => node.send(id, b"!", false).await,
                Frame::Ping { id } => {
                    node.pong(id).await;
                }
                // These bytes were on their way, and others before them are lost.
                Frame::RstStream { id, .. } if id == reading.data => {
                    for _ in 0..left.min(16) {
                        node.send(id, &[9; 64 * 1024], false).await;
                    }
                    left = 0;
                }
                _ => {}
            },
            () = std::future::ready(()), if left > 0 => {
                node.send(reading.data, &piece, false).await;
                left = left.saturating_sub(piece.len());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_reads_slowly_gets_every_byte_though_others_are_on_the_connection() {
    const TOTAL: usize = 80 * 1024 * 1024;
    let (connection, mut node, _) = Node::new();
    let (mut slow, slow_pair) = node.open(&connection).await;
    let (mut other, other_pair) = node.open(&connection).await;
    tokio::spawn(async move { serve_both(&mut node, slow_pair, other_pair, TOTAL).await });
    let reading = tokio::spawn(async move {
        let (mut read, mut piece) = (0, vec![0; 256 * 1024]);
        while read < TOTAL {
            tokio::time::sleep(Duration::from_millis(20)).await;
            read += slow.read(&mut piece).await.expect("it is not reset");
        }
    });
    let mut asked = 0;
    while !reading.is_finished() {
        other.write_all(b"?").await.unwrap();
        other.read_exact(&mut [0; 1]).await.unwrap();
        asked += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    reading.await.unwrap();
    assert!(asked > 10, "{asked}");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_at_all_stops_the_others_for_a_moment_only() {
    let (connection, mut node, _) = Node::new();
    let (mut stalled, stalled_pair) = node.open(&connection).await;
    let (mut other, other_pair) = node.open(&connection).await;
    tokio::spawn(async move { serve_both(&mut node, stalled_pair, other_pair, 100 * 1024 * 1024).await });
    for _ in 0..2 {
        let started = Instant::now();
        other.write_all(b"?").await.unwrap();
        other.read_exact(&mut [0; 1]).await.unwrap();
        assert!(started.elapsed() <= Duration::from_secs(3), "{:?}", started.elapsed());
        tokio::time::sleep(Duration::from_secs(40)).await;
    }
    let mut piece = vec![0; 65536];
    let error = loop {
        match stalled.read(&mut piece).await {
            Ok(0) => panic!("an end would look like all there is"),
            Ok(count) => assert!(piece[..count].iter().all(|byte| *byte == 7), "nothing from behind the hole"),
            Err(error) => break error,
        }
    };
    assert_eq!(StreamFault::of(&error), Some(&StreamFault::Reset));
}
