//! Tests of streams that switch protocols or end early.

use tokio::net::{TcpListener, TcpStream};

use super::{frames::*, *};

/// Switches the protocol, and echoes the bytes.
fn switch_and_echo(mut request: Request<Incoming>) -> Answered {
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrading.await.unwrap()));
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut response = Response::new(body_of(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    Box::pin(async { Ok(response) })
}

#[tokio::test]
async fn websocket_frames_pass_as_they_are_the_invalid_ones_too() {
    let world = World::new(Scheme::Http, switch_and_echo);
    let mut frames = Vec::new();
    // Every first byte (FIN, reserved bits, opcode), masked or not, with lengths in each form, and in the wrong one.
    for first in 0..=255u8 {
        frames.extend([first, 0]);
        frames.extend([first, 0x85, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        frames.extend([first, 126, 0, 3, 1, 2, 3]);
        frames.extend([first, 127, 0, 0, 0, 0, 0, 0, 0, 1, 9]);
    }
    for code in [0, 999, 1000, 1001, 1005, 1006, 1012, 2999, 3000, 4999, 65535u16] {
        frames.extend([0x88, 2]);
        frames.extend(code.to_be_bytes());
    }
    frames.extend([0x88, 1, 3]);
    // A text message of invalid UTF-8, then a message of 16 MiB in fragments.
    frames.extend([0x81, 3, 0xff, 0xfe, 0xfd]);
    for fragment in 0..256u32 {
        let first = if fragment == 0 { 0x02 } else { u8::from(fragment == 255) << 7 };
        frames.extend([first, 127]);
        frames.extend(65536u64.to_be_bytes());
        frames.extend((0..65536u32).map(|at| (at.wrapping_mul(31) ^ fragment) as u8));
    }
    let mut stream = world.connect(HttpVersion::Http1);
    let head = "GET /ws HTTP/1.1\r\nHost: web.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", answer.escape_ascii());
    let (mut read, mut write) = tokio::io::split(stream);
    let mut back = Vec::new();
    let sending = async {
        write.write_all(&frames).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let ((), read) = tokio::join!(sending, timeout(PATIENCE, read.read_to_end(&mut back)));
    read.expect("it ends").unwrap();
    assert!(back == frames, "{} of {} bytes came back as they were", back.len(), frames.len());
}

/// A pod that switches to `protocol`, whichever one the request asks for, and reads on.
fn switching_to(protocol: &'static str) -> Serve {
    Box::new(move |_, mut stream: DuplexStream| {
        tokio::spawn(async move {
            let head =
                format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n");
            stream.read_u8().await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.read_to_end(&mut Vec::new()).await
        });
    })
}

/// Returns a client over TCP that the pod has switched to another protocol.
async fn switched(world: &World) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    world.serve(Box::new(listener.accept().await.unwrap().0), HttpVersion::Http1);
    let head = "GET /chat HTTP/1.1\r\nHost: web.localhost\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(timeout(PATIENCE, client.read_u8()).await.unwrap().unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", answer.escape_ascii());
    client
}

#[tokio::test]
async fn a_client_whose_upgraded_backend_breaks_is_reset() {
    let world = World::over(Scheme::Http, switching_to("chat"));
    let mut client = switched(&world).await;
    world.tunnels.stop(&world.tunnels.snapshot()[0].id);
    let end = timeout(PATIENCE, client.read_u8()).await.expect("it ends");
    assert!(matches!(&end, Err(error) if error.kind() == io::ErrorKind::ConnectionReset), "{end:?}");
}

#[tokio::test]
async fn a_backend_whose_upgraded_client_breaks_is_reset() {
    let world = World::over(Scheme::Http, switching_to("chat"));
    let client = switched(&world).await;
    client.set_zero_linger().unwrap();
    drop(client);
    let reset = async {
        while world.pod.resets.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, reset).await.expect("the pod's stream is reset");
}

#[tokio::test]
async fn an_offer_to_switch_to_h2c_is_not_passed_on() {
    let world = World::new(Scheme::Http, show_headers);
    let answer = world
        .exchange(
            "GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n",
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let (_, shown) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!shown.contains("upgrade") && !shown.contains("http2-settings"), "{shown}");
}

#[tokio::test]
async fn a_pod_that_switches_unasked_has_not_answered() {
    let world = World::over(Scheme::Http, switching_to("surprise"));
    let answer = world.exchange("GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("x-adit-error: switched"), "{answer}");
    let response = world.http2().await.send_request(get("http://web.localhost/")).await.unwrap();
    let code = response.headers()["x-adit-error"].to_str().unwrap();
    assert_eq!((response.status(), code), (StatusCode::BAD_GATEWAY, "switched"));
}

#[tokio::test(start_paused = true)]
async fn an_upload_over_http2_that_is_answered_early_is_let_go_behind_the_answer_and_without_an_error() {
    for speaks in [Scheme::H2c, Scheme::Http] {
        let world = World::new(speaks, |_| Box::pin(async { Ok(Response::new(body_of(""))) }));
        let mut stream = world.connect(HttpVersion::Http2);
        // The first bytes of a longer body.
        let sent = [preface(), frame(HEADERS, END_HEADERS, 1, POST), frame(DATA, 0, 1, b"abc")].concat();
        stream.write_all(&sent).await.unwrap();
        let (mut of_stream, mut answered) = (Vec::new(), tokio::time::Instant::now());
        while of_stream.last() != Some(&(RST_STREAM, 0)) {
            let received = receive(&mut stream).await;
            match (received.kind, received.stream) {
                (HEADERS, 1) => {
                    of_stream.push((HEADERS, received.flags & END_STREAM));
                    answered = tokio::time::Instant::now();
                }
                (RST_STREAM, 1) => of_stream.push((RST_STREAM, received.payload[3])),
                _ => {}
            }
            assert!(of_stream.len() <= 2, "{of_stream:?}");
        }
        assert_eq!(of_stream, [(HEADERS, END_STREAM), (RST_STREAM, 0)], "{speaks:?}: the whole answer, then NO_ERROR");
        assert!(
            !answered.elapsed().is_zero(),
            "{speaks:?}: curl 7.88 loses an answer that comes together with a reset"
        );
    }
}

#[tokio::test]
async fn the_short_rest_of_an_upload_over_http2_is_taken_behind_the_answer() {
    for speaks in [Scheme::H2c, Scheme::Http] {
        let world = World::new(speaks, |_| Box::pin(async { Ok(Response::new(body_of("no"))) }));
        let (mut sender, connection) = h2::client::handshake(world.connect(HttpVersion::Http2)).await.unwrap();
        tokio::spawn(connection);
        let mut left = 1024 * 1024;
        let request = Request::post("http://web.localhost/").version(Version::HTTP_2).header("content-length", left);
        let (response, mut sending) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        let mut answer = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
        assert_eq!(answer.data().await.unwrap().unwrap(), "no", "{speaks:?}");
        assert!(answer.data().await.is_none(), "{speaks:?}");
        while left > 0 {
            sending.reserve_capacity(left);
            let room = std::future::poll_fn(|cx| sending.poll_capacity(cx));
            let room = timeout(PATIENCE, room).await.expect("there is room").expect("it is wanted").unwrap();
            sending.send_data(vec![0; room].into(), room == left).unwrap();
            left -= room;
        }
    }
}

#[tokio::test]
async fn a_client_of_http2_may_go_on_behind_the_last_answer_of_a_drain() {
    let world = World::new(Scheme::Http, |_| Box::pin(async { Ok(Response::new(body_of("the last answer"))) }));
    let mut stream = world.connect(HttpVersion::Http2);
    let sent = [preface(), frame(HEADERS, END_HEADERS | END_STREAM, 1, GET)].concat();
    stream.write_all(&sent).await.unwrap();
    let mut received = Vec::new();
    while !received.ends_with(b"the last answer") {
        timeout(PATIENCE, stream.read_buf(&mut received)).await.expect("it is answered").unwrap();
    }
    world.drain.start();
    // Answer the PING of a graceful end.
    let ping = loop {
        let received = receive(&mut stream).await;
        if received.kind == PING {
            break received.payload;
        }
    };
    stream.write_all(&frame(PING, ACK, 0, &ping)).await.unwrap();
    timeout(PATIENCE, stream.read_to_end(&mut received)).await.expect("its direction ends").unwrap();
    stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0xff, 0xff])).await.expect("it is not closed over");
}

#[tokio::test]
async fn an_answer_before_the_end_of_an_upload_announces_that_the_connection_closes() {
    let refuse = |request: Request<Incoming>| -> Answered {
        let is_wanted = request.uri().path() == "/wanted";
        let status = if request.uri().path() == "/moved" { 307 } else { 413 };
        Box::pin(async move {
            if is_wanted {
                request.into_body().collect().await.map_err(io::Error::other)?;
            }
            Ok(Response::builder().status(status).body(body_of("")).unwrap())
        })
    };
    let world = World::new(Scheme::Http, refuse);
    for (path, host, closes) in [
        ("/", "web.localhost", true),
        ("/moved", "web.localhost", true),
        ("/wanted", "web.localhost", false),
        ("/", "nothing.localhost", true),
    ] {
        let mut stream = world.connect(HttpVersion::Http1);
        let head = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 300000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let sent = if closes { 1_000 } else { 300_000 };
        stream.write_all(&vec![b'a'; sent]).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(timeout(PATIENCE, stream.read_u8()).await.expect("an answer in time").unwrap());
        }
        let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
        assert!(answer.starts_with(if path == "/moved" { "http/1.1 307" } else { "http/1.1 4" }), "{answer}");
        assert_eq!(answer.contains("\r\nconnection: close\r\n"), closes, "{path} of {host}: {answer}");
    }
}

#[tokio::test]
async fn an_answer_that_a_reset_cuts_off_does_not_look_complete() {
    for (code, name) in [(0, "NO_ERROR"), (8, "CANCEL")] {
        let cut = move |stream| {
            let head = frame(HEADERS, END_HEADERS, stream, b"\x88");
            [head, frame(DATA, 0, stream, b"part"), frame(RST_STREAM, 0, stream, &[0, 0, 0, code])].concat()
        };
        let world = World::over(Scheme::H2c, answering(cut));
        let mut client = world.connect(HttpVersion::Http1);
        client.write_all(b"GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // A reset of the connection is an end, too.
        let _ = timeout(PATIENCE, client.read_to_end(&mut answer)).await.expect("it ends");
        assert!(!answer.ends_with(b"0\r\n\r\n"), "{name}: {}", answer.escape_ascii());
        let answer = world.http2().await.send_request(get("http://web.localhost/")).await;
        if let Ok(answer) = answer {
            let body = timeout(PATIENCE, answer.into_body().collect()).await.expect("it ends");
            assert!(body.is_err(), "{name}: {body:?}");
        }
    }
}

#[tokio::test]
async fn an_upload_that_a_reset_cuts_off_does_not_look_complete() {
    for (speaks, code) in [(Scheme::Http, 0), (Scheme::H2c, 0), (Scheme::Http, 8), (Scheme::H2c, 8)] {
        let (read_tx, mut read) = tokio::sync::mpsc::unbounded_channel();
        let world = World::new(speaks, move |request| {
            let read_tx = read_tx.clone();
            Box::pin(async move {
                let mut body = request.into_body();
                read_tx.send(body.frame().await.map(|frame| frame.is_ok())).unwrap();
                read_tx.send(body.frame().await.map(|frame| frame.is_ok())).unwrap();
                Ok(Response::new(body_of("")))
            })
        });
        let mut client = world.connect(HttpVersion::Http2);
        let sent = [preface(), frame(HEADERS, END_HEADERS, 1, POST), frame(DATA, 0, 1, b"part")].concat();
        client.write_all(&sent).await.unwrap();
        assert_eq!(timeout(PATIENCE, read.recv()).await.unwrap(), Some(Some(true)));
        client.write_all(&frame(RST_STREAM, 0, 1, &[0, 0, 0, code])).await.unwrap();
        let end = timeout(PATIENCE, read.recv()).await.unwrap();
        // `None`: the server has noticed first that its connection or stream is gone.
        assert!(matches!(end, None | Some(Some(false))), "{speaks:?} {code}: {end:?}");
    }
}

#[tokio::test]
async fn a_backend_that_has_answered_may_stop_an_upload() {
    let world = World::over(
        Scheme::H2c,
        answering(|stream| {
            let head = frame(HEADERS, END_HEADERS, stream, b"\x88");
            [head, frame(DATA, END_STREAM, stream, b"whole"), frame(RST_STREAM, 0, stream, &[0; 4])].concat()
        }),
    );
    let mut client = world.connect(HttpVersion::Http1);
    let head = b"POST / HTTP/1.1\r\nHost: web.localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nup\r\n";
    client.write_all(head).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"5\r\nwhole\r\n0\r\n\r\n") {
        let count = timeout(PATIENCE, client.read_buf(&mut answer)).await.expect("the whole answer").unwrap();
        assert_ne!(count, 0, "{}", answer.escape_ascii());
    }
}

#[tokio::test]
async fn clients_that_leave_at_once_do_not_end_the_connection_of_others_to_the_pod() {
    const LEAVING: usize = 1_200;
    let (near, mut far) = duplex(1 << 20);
    let (mut sender, connection) = crate::frontend::http::http2::client::handshake(Box::new(near)).await.unwrap();
    tokio::spawn(connection);
    let (asked_tx, asked) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        far.read_exact(&mut [0; 24]).await.unwrap();
        far.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        let (mut streams, mut resets, mut asked_tx) = (Vec::new(), 0, Some(asked_tx));
        loop {
            let received = receive(&mut far).await;
            match (received.kind, received.flags & ACK) {
                (SETTINGS, 0) => far.write_all(&frame(SETTINGS, ACK, 0, &[])).await.unwrap(),
                (HEADERS, _) => streams.push(received.stream),
                (RST_STREAM, _) => resets += 1,
                _ => {}
            }
            if let Some(all) = asked_tx.take_if(|_| streams.len() == LEAVING) {
                all.send(()).unwrap();
            }
            // The answers of the pod cross the resets.
            if resets >= LEAVING {
                for stream in streams.drain(..) {
                    far.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\x88")).await.unwrap();
                }
            }
        }
    });
    let asking = || Request::get("http://web.localhost/").body(body_of("")).unwrap();
    let leaving: Vec<_> = (0..LEAVING)
        .map(|_| {
            let (mut sender, request) = (sender.clone(), asking());
            tokio::spawn(async move { sender.send(request).await.is_ok() })
        })
        .collect();
    timeout(PATIENCE, asked).await.expect("all requests arrive").unwrap();
    leaving.iter().for_each(|client| client.abort());
    let answer = timeout(PATIENCE, sender.send(asking())).await.expect("an answer");
    assert_eq!(answer.map_err(|(error, _)| error).unwrap().status(), StatusCode::OK);
    let answer = timeout(PATIENCE, sender.send(asking())).await.expect("an answer");
    assert_eq!(answer.map_err(|(error, _)| error).unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_websocket_to_a_backend_of_http2_alone_gets_an_error_that_says_so() {
    let over_tls = || -> Serve {
        Box::new(|pod, stream| {
            let acceptor = TlsAcceptor::from(pod.certs.clone().server_config(&[b"h2"]).unwrap());
            tokio::spawn(async move { acceptor.accept(stream).await.is_ok() });
        })
    };
    for world in [World::new(Scheme::H2c, show_headers), World::over(Scheme::Https, over_tls())] {
        let head = "GET /ws HTTP/1.1\r\nHost: web.localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let answer = world.exchange(head).await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("x-adit-error: no-switch"), "{answer}");
        assert!(answer.contains("it speaks only HTTP/2"), "{answer}");
    }
}
