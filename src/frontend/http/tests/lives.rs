//! Tests of the idle limits of client connections. Clients in memory, on a paused clock.

use tokio::time::Instant;

use super::{frames::*, *};

/// Longer than any limit of a connection.
const LONG: Duration = Duration::from_secs(600);

/// Reads until the frontend closes, and returns how long that took.
async fn until_closed(stream: &mut DuplexStream) -> Duration {
    let began = Instant::now();
    let mut received = Vec::new();
    let reading = stream.read_to_end(&mut received);
    // The connection may end with or without an error.
    let _ = timeout(LONG, reading).await.expect("the front closes");
    began.elapsed()
}

fn seconds(from: u64, to: u64) -> std::ops::Range<Duration> {
    Duration::from_secs(from)..Duration::from_secs(to)
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_http1_is_closed_a_minute_after_its_last_answer() {
    let world = World::new(Scheme::Http, show_headers);
    for host in ["web.localhost", "nobody.test", "localhost"] {
        let mut stream = world.connect(HttpVersion::Http1);
        for _ in 0..2 {
            stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        let closed = until_closed(&mut stream).await;
        assert!(seconds(29, 35).contains(&closed), "{host}: {closed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_takes_minutes_over_http1_comes() {
    let world = World::new(Scheme::Http, |_| {
        Box::pin(async {
            tokio::time::sleep(LONG / 2).await;
            Ok(Response::new(body_of("at last")))
        })
    });
    let mut stream = world.connect(HttpVersion::Http1);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    timeout(2 * LONG, stream.read_to_end(&mut answer)).await.expect("the front closes").unwrap();
    assert!(answer.ends_with(b"at last"), "{}", answer.escape_ascii());
}

#[tokio::test(start_paused = true)]
async fn a_head_that_drips_is_told_so_and_closed() {
    let world = World::new(Scheme::Http, show_headers);
    let (mut read, mut write) = tokio::io::split(world.connect(HttpVersion::Http1));
    let began = Instant::now();
    tokio::spawn(async move {
        write.write_all(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let mut answer = String::new();
    let _ = timeout(LONG, read.read_to_string(&mut answer)).await.expect("the front closes");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(seconds(29, 34).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn empty_lines_without_end_are_refused() {
    let world = World::new(Scheme::Http, show_headers);
    let (mut read, mut write) = tokio::io::split(world.connect(HttpVersion::Http1));
    tokio::spawn(async move {
        write.write_all(b"GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n").await.unwrap();
        while write.write_all(b"\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let mut answers = String::new();
    let _ = timeout(LONG, read.read_to_string(&mut answers)).await.expect("the front closes");
    assert!(answers.starts_with("HTTP/1.1 404 ") && answers.contains("HTTP/1.1 400 "), "{answers}");
}

/// Answers each PING until the frontend closes, and returns how long that took.
async fn answer_pings(mut stream: DuplexStream) -> Duration {
    let began = Instant::now();
    loop {
        let mut head = [0; 9];
        if timeout(LONG, stream.read_exact(&mut head)).await.expect("the front closes").is_err() {
            return began.elapsed();
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        if (head[3], head[4] & ACK) == (PING, 0) {
            // The frontend may have closed in the meantime.
            let _ = stream.write_all(&frame(PING, ACK, 0, &payload)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_preface_of_http2_has_a_deadline() {
    let world = World::new(Scheme::Http, show_headers);
    for begin in [&b""[..], &preface()[..10]] {
        let mut stream = world.connect(HttpVersion::Http2);
        stream.write_all(begin).await.unwrap();
        let closed = until_closed(&mut stream).await;
        assert!(seconds(9, 11).contains(&closed), "{closed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_of_http2_that_answers_no_ping_is_gone() {
    let world = World::new(Scheme::Http, |_| Box::pin(std::future::pending()));
    let request = frame(HEADERS, END_HEADERS | END_STREAM, 1, GET);
    for begin in [preface()[..24].to_vec(), preface(), [preface(), request].concat()] {
        let mut stream = world.connect(HttpVersion::Http2);
        stream.write_all(&begin).await.unwrap();
        let closed = until_closed(&mut stream).await;
        assert!(seconds(44, 46).contains(&closed), "{closed:?}");
    }
    assert_eq!(world.leases(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_of_http2_is_closed_after_a_minute() {
    let world = World::new(Scheme::Http, show_headers);
    for (begin, from) in [(vec![], 60), (frame(HEADERS, END_HEADERS | END_STREAM, 1, GET), 60)] {
        let mut stream = world.connect(HttpVersion::Http2);
        stream.write_all(&[preface(), begin].concat()).await.unwrap();
        let closed = answer_pings(stream).await;
        assert!(seconds(from - 1, from + 4).contains(&closed), "{closed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_takes_minutes_over_http2_comes_to_a_client_that_answers_pings() {
    let world = World::new(Scheme::Http, |_| {
        Box::pin(async {
            tokio::time::sleep(LONG / 2).await;
            Ok(Response::new(body_of("at last")))
        })
    });
    let response = world.http2().await.send_request(get("http://web.localhost/")).await.unwrap();
    assert_eq!(text(response).await, "at last");
}

#[tokio::test(start_paused = true)]
async fn a_body_over_http2_that_stalls_ends_its_request() {
    let world = World::new(Scheme::Http, |request: Request<Incoming>| {
        Box::pin(async move {
            request.into_body().collect().await.map_err(io::Error::other)?;
            Ok(Response::new(body_of("all of it")))
        })
    });
    let body = || {
        let first = futures::stream::iter([Ok(Frame::data(Bytes::from_static(b"x")))]);
        StreamBody::new(futures::StreamExt::chain(first, futures::stream::pending())).boxed_unsync()
    };
    let mut client = world.http2().await;
    let began = Instant::now();
    let response = client.send_request(Request::post("http://web.localhost/").body(body()).unwrap()).await.unwrap();
    assert!(!response.status().is_success(), "{}", response.status());
    assert!(seconds(59, 62).contains(&began.elapsed()), "{:?}", began.elapsed());
    // The messages of a call may be far apart.
    let call = Request::post("http://web.localhost/").header("content-type", "application/grpc").body(body()).unwrap();
    assert!(timeout(LONG, client.send_request(call)).await.is_err());
}
