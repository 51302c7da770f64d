//! Pods without processes whose node says nothing: their network was removed before their sockets were closed.

use super::*;

async fn node() -> (Arc<Connection>, Node, Arc<Fate>, BoxedIo, Pair) {
    let (connection, mut node, fate) = Node::new();
    let (stream, pair) = node.open(&connection).await;
    (connection, node, fate, stream, pair)
}

/// The last bytes, and then silence. PINGs are answered all the time.
async fn last_words(node: &mut Node, pair: Pair, pieces: usize, piece: &[u8]) {
    for _ in 0..pieces {
        node.send(pair.data, piece, false).await;
        tokio::time::sleep(LAST_BYTES / 2).await;
    }
    loop {
        if let Frame::Ping { id } = node.frame().await {
            node.pong(id).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_a_pod_that_has_ended_breaks_after_the_last_bytes() {
    let (_connection, mut node, fate, mut stream, pair) = node().await;
    fate.wait_for(std::future::ready(()));
    let mut all = Vec::new();
    let error = tokio::select! {
        () = last_words(&mut node, pair, 8, b"bytes") => unreachable!(),
        read = timeout(PATIENCE * 6, stream.read_to_end(&mut all)) => read.expect("an end").unwrap_err(),
    };
    assert_eq!(all, b"bytes".repeat(8), "bytes in flight arrive");
    assert_eq!(StreamFault::of(&error), Some(&Fate::unended()));
}

#[tokio::test(start_paused = true)]
async fn a_silent_pod_that_terminates_keeps_its_streams() {
    let (_connection, mut node, fate, mut stream, pair) = node().await;
    fate.wait_for(std::future::pending());
    let mut word = [0; 8];
    tokio::select! {
        () = last_words(&mut node, pair, 0, b"") => unreachable!(),
        read = timeout(PATIENCE * 6, stream.read(&mut word)) => assert!(read.is_err(), "it still serves"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_gets_the_end_of_a_pod_that_has_ended() {
    const PIECE: usize = 1 << 20;
    for ends in [false, true] {
        let (_connection, mut node, fate, mut stream, pair) = node().await;
        fate.wait_for(std::future::ready(()));
        let speak = async {
            // More than a stream that is alone on its connection may have unread.
            for _ in 0..4 {
                node.send(pair.data, &vec![1; PIECE], false).await;
            }
            if ends {
                node.end(pair, "").await;
            }
            std::future::pending().await
        };
        let read = async {
            let mut count = 0;
            loop {
                match stream.read(&mut [0; 10_000]).await {
                    Ok(0) => return (count, None),
                    Ok(read) => count += read,
                    Err(error) => return (count, Some(error)),
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let (count, error) = tokio::select! {
            () = speak => unreachable!(),
            read = read => read,
        };
        match error {
            Some(error) => {
                assert!(!ends && count < PIECE, "at its pace, it would take minutes: {count}");
                assert_eq!(StreamFault::of(&error), Some(&Fate::unended()));
            }
            None => assert!(ends && count == 4 * PIECE, "a clean end, and every byte before it: {count}"),
        }
    }
}
