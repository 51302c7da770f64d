//! Clients of HTTP/2 that flood: their connection ends, and nobody else notices.

use super::*;

/// A frame of RFC 9113, section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// GET http://web.localhost/ by HPACK's static table.
const GET: &[u8] = b"\x82\x86\x84\x41\x0dweb.localhost";
const POST: &[u8] = b"\x83\x86\x84\x41\x0dweb.localhost";

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

#[tokio::test]
async fn a_connection_that_is_flooded_ends() {
    // What begins the flood, and its frames by their number.
    type Flood = (&'static str, Vec<u8>, fn(u32) -> Vec<u8>);
    let floods: [Flood; 7] = [
        ("PING", vec![], |_| frame(6, 0, 0, &[0; 8])),
        ("SETTINGS", vec![], |_| frame(4, 0, 0, &[])),
        ("PRIORITY", vec![], |_| frame(2, 0, 1, &[0, 0, 0, 0, 9])),
        ("rapid reset", vec![], |number| {
            let stream = 2 * number + 1;
            [frame(1, END_HEADERS | END_STREAM, stream, GET), frame(3, 0, stream, &[0, 0, 0, 8])].concat()
        }),
        ("empty DATA", frame(1, END_HEADERS, 1, POST), |_| frame(0, 0, 1, &[])),
        ("CONTINUATION", frame(1, 0, 1, GET), |_| frame(9, 0, 1, b"\x10\x01a\x01b")),
        ("empty CONTINUATION", frame(1, 0, 1, GET), |_| frame(9, 0, 1, &[])),
    ];
    let world = World::new(Scheme::Http, |_| Box::pin(std::future::pending()));
    for (name, begin, flood) in floods {
        let (mut read, mut write) = tokio::io::split(world.connect(HttpVersion::Http2));
        let flooding = tokio::spawn(async move {
            write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
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
