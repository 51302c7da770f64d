//! Slow links: bytes of an upload or a download are ahead of every answer.

use super::*;

/// A link to a node: a buffer like those of this machine and of proxies, and a bandwidth after it.
struct Link {
    buffer: usize,
    /// Bytes per second.
    bandwidth: usize,
}

impl Link {
    fn connection(&self) -> (Arc<Connection>, DuplexStream) {
        let (near, far) = duplex(self.buffer);
        (Connection::start(Box::new(near), 80, Arc::new(Fate::new(Arc::default()))), far)
    }

    /// Reads the bytes that pass in about 100 ms, and waits that long.
    async fn pass(&self, far: &mut DuplexStream, input: &mut BytesMut) {
        let started = Instant::now();
        let mut left = self.bandwidth / 10;
        while left > 0 {
            let mut piece = far.take(left as u64);
            match timeout(Duration::from_millis(100), piece.read_buf(input)).await {
                Ok(count) => left -= count.unwrap(),
                Err(_) => break,
            }
        }
        tokio::time::sleep_until(started + Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_on_a_slow_link_arrives_whole_and_its_connection_stays_in_use() {
    const KBIT: usize = 125;
    for (buffer, kbits, bytes) in [
        (64 * 1024, 256, 1_300_000),
        (1 << 20, 256, 1_300_000),
        // A proxy that takes everything at once: no visible progress for 40 s.
        (4 << 20, 256, 1_300_000),
        (1 << 20, 1_000, 6_000_000),
        (4 << 20, 1_000, 6_000_000),
        (4 << 20, 5_000, 25_000_000),
    ] {
        let link = Link { buffer, bandwidth: kbits * KBIT };
        let (connection, mut far) = link.connection();
        let mut stream = connection.open().unwrap();
        let upload = tokio::spawn(async move {
            let piece = vec![7; 100_000];
            for _ in 0..bytes / piece.len() {
                stream.write_all(&piece).await.expect("the connection lives");
            }
            let mut answer = [0; 2];
            stream.read_exact(&mut answer).await.expect("the connection lives");
            stream
        });
        let (mut parser, mut input, mut received, mut id) = (Parser::default(), BytesMut::new(), 0, 0);
        while received < bytes {
            link.pass(&mut far, &mut input).await;
            let mut out = BytesMut::new();
            while let Some(frame) = parser.next(&mut input).unwrap() {
                match frame {
                    Frame::Data { payload, id: of, .. } => {
                        received += payload.len();
                        id = of;
                    }
                    Frame::Ping { id } => frame::put_ping(&mut out, id),
                    _ => {}
                }
            }
            far.write_all(&out).await.unwrap();
            assert_ne!(connection.opening(), Opening::Retired, "{buffer} {kbits}: {received} of {bytes}");
        }
        let mut out = BytesMut::new();
        frame::put_data_header(&mut out, id, 2, false);
        out.extend_from_slice(b"ok");
        far.write_all(&out).await.unwrap();
        let _stream = upload.await.unwrap();
        assert_ne!(connection.opening(), Opening::Retired);
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_has_died_below_an_upload_is_noticed() {
    for (buffer, within) in [(64 * 1024, 30), (1 << 20, 80), (4 << 20, 80)] {
        let link = Link { buffer, bandwidth: 1 };
        let (connection, far) = link.connection();
        let mut stream = connection.open().unwrap();
        let started = Instant::now();
        stream.write_all(&vec![7; 250_000]).await.unwrap();
        let mut answer = [0; 1];
        let error = timeout(Duration::from_secs(300), stream.read_exact(&mut answer)).await.expect("it is noticed");
        assert!(matches!(StreamFault::of(&error.unwrap_err()), Some(StreamFault::Lost { .. })));
        assert!(started.elapsed() < Duration::from_secs(within), "{buffer}: {:?}", started.elapsed());
        drop(far);
    }
}

#[tokio::test(start_paused = true)]
async fn small_requests_beside_a_download_on_a_slow_link_retire_nothing() {
    let (connection, far) = Link { buffer: 16 * 1024, bandwidth: 1 }.connection();
    let (mut reader, mut writer) = tokio::io::split(far);
    let mut download = connection.open().unwrap();
    // The node's bytes pass through a queue of 1 MB at 1 Mbit/s.
    let (say, mut said) = tokio::sync::mpsc::channel::<Bytes>(64);
    let of_pings = say.clone();
    let passing = tokio::spawn(async move {
        while let Some(piece) = said.recv().await {
            tokio::time::sleep(Duration::from_millis(8 * piece.len() as u64 / 1024)).await;
            if writer.write_all(&piece).await.is_err() {
                return;
            }
        }
    });
    let node = tokio::spawn(async move {
        let (mut parser, mut input, mut decoder) = (Parser::default(), BytesMut::new(), Decoder::default());
        let mut sending = None;
        while reader.read_buf(&mut input).await.unwrap_or(0) > 0 {
            while let Some(frame) = parser.next(&mut input).unwrap() {
                let mut out = BytesMut::new();
                match frame {
                    Frame::SynStream { id, headers, .. } => {
                        let is_data = decoder.decode(&headers).unwrap()[0].1 == "data";
                        if is_data && sending.is_none() {
                            let say = say.clone();
                            sending = Some(tokio::spawn(async move {
                                for _ in 0..300 {
                                    let mut out = BytesMut::new();
                                    frame::put_data_header(&mut out, id, 16_000, false);
                                    out.extend_from_slice(&[7; 16_000]);
                                    say.send(out.freeze()).await.unwrap();
                                }
                            }));
                        }
                    }
                    Frame::Data { id, payload, .. } if !payload.is_empty() => {
                        frame::put_data_header(&mut out, id, payload.len(), false);
                        out.extend_from_slice(&payload);
                    }
                    Frame::Ping { id } => frame::put_ping(&mut out, id),
                    _ => {}
                }
                if !out.is_empty() && of_pings.send(out.freeze()).await.is_err() {
                    return;
                }
            }
        }
    });
    let requests = {
        let connection = connection.clone();
        tokio::spawn(async move {
            for _ in 0..30 {
                let mut stream = connection.open().expect("the connection takes streams");
                stream.write_all(b"word").await.unwrap();
                let mut word = [0; 4];
                timeout(Duration::from_secs(60), stream.read_exact(&mut word)).await.expect("an answer").unwrap();
            }
        })
    };
    download.read_exact(&mut vec![0; 300 * 16_000]).await.expect("the connection lives");
    assert_ne!(connection.opening(), Opening::Retired);
    requests.await.unwrap();
    node.abort();
    passing.abort();
}
