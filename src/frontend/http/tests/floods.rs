//! HTTP/2 clients that flood: their connection ends, and other clients notice nothing.

use super::{frames::*, *};

#[tokio::test]
async fn a_connection_that_is_flooded_ends() {
    // Name, first bytes, and frames by their number.
    type Flood = (&'static str, Vec<u8>, fn(u32) -> Vec<u8>);
    let floods: [Flood; 7] = [
        ("PING", vec![], |_| frame(PING, 0, 0, &[0; 8])),
        ("SETTINGS", vec![], |_| frame(SETTINGS, 0, 0, &[])),
        ("PRIORITY", vec![], |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9])),
        ("rapid reset", vec![], |number| {
            let stream = 2 * number + 1;
            [frame(HEADERS, END_HEADERS | END_STREAM, stream, GET), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
                .concat()
        }),
        ("empty DATA", frame(HEADERS, END_HEADERS, 1, POST), |_| frame(DATA, 0, 1, &[])),
        ("CONTINUATION", frame(HEADERS, 0, 1, GET), |_| frame(CONTINUATION, 0, 1, b"\x10\x01a\x01b")),
        ("empty CONTINUATION", frame(HEADERS, 0, 1, GET), |_| frame(CONTINUATION, 0, 1, &[])),
    ];
    let world = World::new(Scheme::Http, |_| Box::pin(std::future::pending()));
    for (name, begin, flood) in floods {
        let (mut read, mut write) = tokio::io::split(world.connect(HttpVersion::Http2));
        let flooding = tokio::spawn(async move {
            write.write_all(&preface()).await.unwrap();
            write.write_all(&begin).await.unwrap();
            let mut number = 0;
            while number < 100_000 && write.write_all(&flood(number)).await.is_ok() {
                number += 1;
            }
            number
        });
        timeout(PATIENCE, read.read_to_end(&mut Vec::new()))
            .await
            .unwrap_or_else(|_| panic!("{name}: it goes on"))
            .unwrap();
        assert!(flooding.await.unwrap() < 100_000, "{name}");
    }
    let answer = world.exchange("GET / HTTP/1.1\r\nHost: nobody.test\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}
