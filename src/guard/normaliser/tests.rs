//! Clients in memory, on a paused clock.

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;
use crate::io::accept::Limits;

/// Returns the bytes that the server reads, if a client sends these bytes and then its FIN.
async fn passed(sent: &[u8], gate: Arc<Gate>) -> io::Result<Vec<u8>> {
    let (mut client, server) = duplex(1 << 20);
    client.write_all(sent).await?;
    client.shutdown().await?;
    let mut passed = Vec::new();
    // No server answers: the end comes when the client counts as gone.
    Normaliser::new(server, gate).read_to_end(&mut passed).await?;
    Ok(passed)
}

#[tokio::test(start_paused = true)]
async fn requests_pass_unchanged_one_behind_the_other() {
    let requests = b"GET /a HTTP/1.1\r\nHost: a\r\nX:  y \r\n\r\nPOST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nGET PUT /c HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: v\r\n\r\nDELETE / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(passed(requests, Arc::default()).await.unwrap(), requests);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_refused_is_the_last_and_never_seen() {
    let gate: Arc<Gate> = Arc::default();
    let sent = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nPOST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /c HTTP/1.1\r\nHost: a\r\n\r\n";
    let passed = String::from_utf8(passed(sent, gate.clone()).await.unwrap()).unwrap();
    assert!(passed.starts_with("GET /a HTTP/1.1\r\nHost: a\r\n\r\nADIT-REFUSED"), "{passed}");
    assert!(!passed.contains("/b") && !passed.contains("/c"), "{passed}");
    assert_eq!(gate.refused(), Some(Refused::Ambiguous(Refusal::LengthAndCoding)));
}

#[tokio::test(start_paused = true)]
async fn what_follows_an_upgrade_waits_for_its_answer() {
    for switched in [true, false] {
        let gate: Arc<Gate> = Arc::default();
        let (mut client, server) = duplex(1 << 16);
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        client.write_all(request).await.unwrap();
        client.write_all(b"\x81\x00not http\r\n\r\n").await.unwrap();
        let mut server = Normaliser::new(server, gate.clone());
        let mut head = vec![0; request.len()];
        server.read_exact(&mut head).await.unwrap();
        let mut next = [0; 4];
        let _busy = gate.progress.begin();
        assert!(tokio::time::timeout(Duration::from_secs(5), server.read(&mut next)).await.is_err());
        gate.upgrade.answered(switched);
        server.read_exact(&mut next).await.unwrap();
        assert_eq!(&next, if switched { b"\x81\x00no" } else { b"ADIT" });
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_has_its_time_whatever_drips() {
    let gate: Arc<Gate> = Arc::default();
    let (mut client, server) = duplex(64);
    let began = Instant::now();
    let writing = tokio::spawn(async move {
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if client.write_all(b"G").await.is_err() {
                break;
            }
        }
        client
    });
    let mut server = Normaliser::new(server, gate.clone());
    server.read_exact(&mut [0; 27]).await.unwrap();
    let mut passed = String::new();
    server.read_to_string(&mut passed).await.unwrap();
    assert!(passed.starts_with("ADIT-REFUSED"), "{passed}");
    assert_eq!(gate.refused(), Some(Refused::Slow(Limits::default().head)));
    // The answer to the stand-in is still awaited.
    assert!(began.elapsed() <= Duration::from_secs(1) + Limits::default().head + QUIET, "{:?}", began.elapsed());
    drop(server);
    drop(writing.await);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_comes_within_its_time_passes() {
    let (mut client, server) = duplex(64);
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    tokio::spawn(async move {
        for byte in request {
            client.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        client
    });
    let mut passed = [0; 27];
    Normaliser::new(server, Arc::default()).read_exact(&mut passed).await.unwrap();
    assert_eq!(&passed, request);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_an_error() {
    let body = passed_slowly(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx").await;
    assert_eq!(body.unwrap_err().kind(), io::ErrorKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn empty_lines_are_left_out_a_few_times_and_never_held() {
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let few = format!("{}{request}\r\n{request}", "\r\n".repeat(http1::MOST_EMPTY_LINES));
    assert_eq!(passed(few.as_bytes(), Arc::default()).await.unwrap(), format!("{request}{request}").as_bytes());

    for (size, sent) in [(1, "\r\n".repeat(50)), (4096, "\r\n".repeat(1 << 20))] {
        let gate: Arc<Gate> = Arc::default();
        let (mut client, server) = duplex(size);
        let writing = tokio::spawn(async move {
            client.write_all(request.as_bytes()).await.unwrap();
            let _ = client.write_all(sent.as_bytes()).await;
            client
        });
        let mut server = Normaliser::new(server, gate.clone());
        server.read_exact(&mut [0; 27]).await.unwrap();
        let mut stand_in = [0; 12];
        server.read_exact(&mut stand_in).await.unwrap();
        assert_eq!(&stand_in, b"ADIT-REFUSED");
        assert_eq!(gate.refused(), Some(Refused::Ambiguous(Refusal::EmptyLines)));
        assert!(server.held() <= 2 * CHUNK, "{} bytes are held", server.held());
        drop(server);
        drop(writing.await);
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_a_minute_after_its_last_answer() {
    let idle = Limits::default().idle;
    let gate: Arc<Gate> = Arc::default();
    let (mut client, server) = duplex(1 << 16);
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut server = Normaliser::new(server, gate.clone());
    server.read_exact(&mut [0; 27]).await.unwrap();
    let busy = gate.progress.begin();
    // The server polls once while it answers, and then only after a wake-up.
    let reading = tokio::spawn(async move { (server.read(&mut [0; 1]).await.unwrap(), Instant::now()) });
    tokio::time::sleep(3 * idle).await;
    assert!(!reading.is_finished(), "an answer in progress is no idleness");
    let answered = Instant::now();
    drop(busy);
    let (count, ended) = tokio::time::timeout(2 * idle, reading).await.expect("an end").unwrap();
    assert_eq!(count, 0);
    assert!((idle..idle + Duration::from_secs(1)).contains(&(ended - answered)), "{:?}", ended - answered);
    drop(client);
}

async fn passed_slowly(sent: &[u8]) -> io::Result<Vec<u8>> {
    let (mut client, server) = duplex(1 << 16);
    client.write_all(sent).await?;
    let mut passed = Vec::new();
    Normaliser::new(server, Arc::default()).read_to_end(&mut passed).await?;
    Ok(passed)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ended_its_direction_gets_its_answer_while_there_is_one() {
    let gate: Arc<Gate> = Arc::default();
    let (mut client, server) = duplex(1 << 16);
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut server = Normaliser::new(server, gate.clone());
    let mut head = [0; 27];
    server.read_exact(&mut head).await.unwrap();
    let busy = gate.progress.begin();
    let mut next = [0; 1];
    for _ in 0..5 {
        assert!(tokio::time::timeout(Duration::from_secs(8), server.read(&mut next)).await.is_err());
        server.write_all(b"still here").await.unwrap();
    }
    let silence = Instant::now();
    assert_eq!(server.read(&mut next).await.unwrap(), 0);
    assert!(silence.elapsed() >= QUIET - Duration::from_secs(1));
    drop(busy);
    assert_eq!(server.read(&mut next).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ended_its_direction_and_has_its_socket_gets_its_answer_whenever_that_comes() {
    let (gate, open) = (Arc::<Gate>::default(), Arc::new(std::sync::atomic::AtomicBool::new(true)));
    let (mut client, server) = duplex(1 << 16);
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let asked = open.clone();
    let mut server =
        Normaliser::new(server, gate.clone()).asking(move || asked.load(std::sync::atomic::Ordering::Relaxed));
    server.read_exact(&mut [0; 27]).await.unwrap();
    let _busy = gate.progress.begin();
    let mut next = [0; 1];
    assert!(tokio::time::timeout(Duration::from_secs(300), server.read(&mut next)).await.is_err());
    open.store(false, std::sync::atomic::Ordering::Relaxed);
    let gone = tokio::time::timeout(QUIET + Duration::from_secs(1), server.read(&mut next));
    assert_eq!(gone.await.expect("its program has gone").unwrap(), 0);
}
