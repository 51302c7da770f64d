//! How long a client's connection lives when nothing is asked on it. Clients in memory, on a paused clock.

use tokio::time::Instant;

use super::*;

/// Longer than any limit of a connection.
const LONG: Duration = Duration::from_secs(600);

/// Reads until the front closes, and returns how long that took.
async fn until_closed(stream: &mut DuplexStream) -> Duration {
    let began = Instant::now();
    let mut received = Vec::new();
    let reading = stream.read_to_end(&mut received);
    // How it ends, with or without an error, is not looked at here.
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
