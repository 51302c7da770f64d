//! Tests of streams that stall beside others on one HTTP/2 connection.

use super::{frames::*, *};

/// A message of gRPC: short, like those of many streams of events.
const MESSAGE: &[u8] = b"\0\0\0\0\x06update";

/// Sends messages of `length` bytes as the peer's windows allow, and counts the bytes.
async fn fill(mut sending: h2::SendStream<Bytes>, length: usize, sent: Arc<AtomicUsize>) {
    loop {
        sending.reserve_capacity(length);
        while sending.capacity() < length {
            let Some(Ok(_)) = std::future::poll_fn(|cx| sending.poll_capacity(cx)).await else { return };
        }
        if sending.send_data(Bytes::from(MESSAGE.repeat(length / MESSAGE.len())), false).is_err() {
            return;
        }
        sent.fetch_add(length, Ordering::SeqCst);
    }
}

/// Waits until nothing more is sent: the windows are full.
async fn until_full(sent: &AtomicUsize) {
    let mut before = 0;
    while before == 0 || sent.load(Ordering::SeqCst) != before {
        before = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// An HTTP/2 pod that answers /endless with messages of `length` bytes without end, and everything else at once.
fn endless(length: usize, sent: Arc<AtomicUsize>) -> World {
    let serve = move |pod: Arc<Pod>, stream: DuplexStream| {
        let sent = sent.clone();
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                pod.requests.fetch_add(1, Ordering::SeqCst);
                let is_endless = request.uri().path() == "/endless";
                let mut sending = respond.send_response(Response::new(()), false).unwrap();
                match is_endless {
                    true => drop(tokio::spawn(fill(sending, length, sent.clone()))),
                    false => sending.send_data("ok".into(), true).unwrap(),
                }
            }
        });
    };
    World::over(Scheme::H2c, Box::new(serve))
}

/// Returns a client that reads no answer to its request for /endless.
async fn stalled_client(world: &World) -> DuplexStream {
    let mut client = world.connect(HttpVersion::Http1);
    client.write_all(b"GET /endless HTTP/1.1\r\nHost: web.localhost\r\n\r\n").await.unwrap();
    client
}

#[tokio::test]
async fn a_reader_of_short_messages_that_stalls_leaves_the_connection_to_others() {
    let sent = Arc::<AtomicUsize>::default();
    let world = endless(MESSAGE.len(), sent.clone());
    let mut client = stalled_client(&world).await;
    until_full(&sent).await;
    let answer = world.exchange("GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && world.connections() == 1, "{}: {answer}", world.connections());
    let mut read = vec![0; 3 << 20];
    timeout(6 * PATIENCE, client.read_exact(&mut read)).await.expect("it goes on").unwrap();
}

#[tokio::test]
async fn many_downloads_that_stall_leave_the_connection_to_others() {
    let sent = Arc::<AtomicUsize>::default();
    let world = endless(16 * 1024 / MESSAGE.len() * MESSAGE.len(), sent.clone());
    // One connection, which all share.
    let ask = "GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: close\r\n\r\n";
    world.exchange(ask).await;
    let mut clients = Vec::new();
    for _ in 0..70 {
        clients.push(stalled_client(&world).await);
    }
    until_full(&sent).await;
    let answer = timeout(PATIENCE, world.exchange(ask)).await.expect("it is answered");
    assert!(answer.starts_with("HTTP/1.1 200 ") && world.connections() == 1, "{}: {answer}", world.connections());
}

#[tokio::test]
async fn an_upload_of_short_messages_that_stalls_leaves_the_connection_to_others() {
    let world = World::new(Scheme::Http, |request| {
        Box::pin(async move {
            if request.method() == Method::POST {
                std::future::pending::<()>().await;
            }
            Ok(Response::new(body_of("ok")))
        })
    });
    let (mut sender, connection) = h2::client::handshake(world.connect(HttpVersion::Http2)).await.unwrap();
    tokio::spawn(connection);
    let request = |method: &str, path: &str| {
        let uri = format!("http://web.localhost{path}");
        Request::builder().method(method).version(Version::HTTP_2).uri(uri).body(()).unwrap()
    };
    let sent = Arc::<AtomicUsize>::default();
    let (_response, sending) = sender.send_request(request("POST", "/"), false).unwrap();
    tokio::spawn(fill(sending, MESSAGE.len(), sent.clone()));
    until_full(&sent).await;
    let (response, _) = sender.send_request(request("GET", "/"), true).unwrap();
    assert_eq!(timeout(PATIENCE, response).await.unwrap().expect("the connection goes on").status(), 200);
}

#[tokio::test]
async fn many_uploads_that_stall_leave_the_connection_to_others() {
    // It reads and answers nothing at /stalled.
    let serve = |_, stream: DuplexStream| {
        tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            builder.initial_connection_window_size(1 << 30);
            let mut connection = builder.handshake(stream).await.unwrap();
            let mut stalled = Vec::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                match request.uri().path() {
                    "/stalled" => stalled.push((request, respond)),
                    _ => drop(tokio::spawn(async move {
                        request.into_body().data().await;
                        let mut sending = respond.send_response(Response::new(()), false).unwrap();
                        sending.send_data(Bytes::from("ok"), true).unwrap();
                    })),
                }
            }
        });
    };
    let world = World::over(Scheme::H2c, Box::new(serve));
    // One connection, which all share.
    world.exchange("GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: close\r\n\r\n").await;
    let (mut sender, connection) = h2::client::handshake(world.connect(HttpVersion::Http2)).await.unwrap();
    tokio::spawn(connection);
    let post = |path: &str| {
        let uri = format!("http://web.localhost{path}");
        Request::post(uri).version(Version::HTTP_2).body(()).unwrap()
    };
    let (sent, mut waiting) = (Arc::<AtomicUsize>::default(), Vec::new());
    for _ in 0..70 {
        let (response, sending) = sender.send_request(post("/stalled"), false).unwrap();
        waiting.push(response);
        tokio::spawn(fill(sending, 16 * 1024 / MESSAGE.len() * MESSAGE.len(), sent.clone()));
    }
    until_full(&sent).await;
    let (response, mut sending) = sender.send_request(post("/"), false).unwrap();
    sending.send_data(MESSAGE.into(), true).unwrap();
    assert_eq!(timeout(PATIENCE, response).await.expect("it is answered").unwrap().status(), 200);
    assert_eq!(world.connections(), 1);
}

#[tokio::test]
async fn empty_frames_now_and_then_end_no_connection() {
    let empty = |stream| frame(DATA, 0, stream, &[]).repeat(150);
    let world = World::over(
        Scheme::H2c,
        answering(move |stream| {
            let head = frame(HEADERS, END_HEADERS, stream, b"\x88");
            [head, empty(stream), frame(DATA, END_STREAM, stream, b"ok")].concat()
        }),
    );
    let answer = world.exchange("GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: close\r\n\r\n").await;
    assert!(answer.ends_with("2\r\nok\r\n0\r\n\r\n"), "{answer}");

    let world = World::new(Scheme::Http, |request| {
        Box::pin(async move { Ok(Response::new(body_of(request.into_body().collect().await.unwrap().to_bytes()))) })
    });
    let mut client = world.connect(HttpVersion::Http2);
    let sent = [frame(HEADERS, END_HEADERS, 1, POST), empty(1), frame(DATA, END_STREAM, 1, b"ok")].concat();
    client.write_all(&[preface(), sent].concat()).await.unwrap();
    let data = loop {
        let received = receive(&mut client).await;
        if received.kind == DATA && !received.payload.is_empty() {
            break received.payload;
        }
    };
    assert_eq!(data, b"ok");
}
