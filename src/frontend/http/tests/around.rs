//! Tests of interim responses and trailers.

use tokio::sync::Notify;

use super::*;

/// Reads the request to its end and answers with its trailers and trailers of its own.
fn with_trailers(request: Request<Incoming>) -> Answered {
    Box::pin(async move {
        let collected = request.into_body().collect().await.map_err(io::Error::other)?;
        let mut trailers = collected.trailers().cloned().unwrap_or_default();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let frames = [Ok(Frame::data(collected.to_bytes())), Ok(Frame::trailers(trailers))];
        let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)).boxed_unsync());
        response.headers_mut().insert(http::header::TRAILER, HeaderValue::from_static("grpc-status"));
        Ok(response)
    })
}

#[tokio::test]
async fn trailers_pass_both_ways_between_http2_and_http2() {
    let world = World::new(Scheme::H2c, with_trailers);
    let sent = HeaderMap::from_iter([(HeaderName::from_static("checksum"), HeaderValue::from_static("7"))]);
    let frames = [Ok(Frame::data(Bytes::from_static(b"hello"))), Ok(Frame::trailers(sent))];
    let body = StreamBody::new(futures::stream::iter(frames)).boxed_unsync();
    let request = Request::post("http://web.localhost/").header("te", "trailers").body(body).unwrap();
    let response = world.http2().await.send_request(request).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    let trailers = collected.trailers().expect("trailers").clone();
    assert_eq!((trailers["checksum"].as_bytes(), trailers["grpc-status"].as_bytes()), (&b"7"[..], &b"0"[..]));
    assert_eq!(collected.to_bytes(), "hello");
}

#[tokio::test]
async fn a_pod_cannot_have_browsers_use_https_alone_for_names_of_this_machine() {
    const HSTS: &str = "strict-transport-security";
    let of_pod = |_| -> Answered {
        Box::pin(async {
            Ok(Response::builder().header(HSTS, "max-age=1; includeSubDomains").body(body_of("")).unwrap())
        })
    };
    let world = World::new(Scheme::Http, of_pod);
    for host in ["web.localhost", "web.example.test"] {
        let answer = world.exchange(&format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains(HSTS), "{answer}");
    }
}

#[tokio::test]
async fn trailers_pass_from_http1_to_http1() {
    let world = World::new(Scheme::Http, with_trailers);
    let answer =
        world.exchange("GET / HTTP/1.1\r\nHost: web.localhost\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n").await;
    assert!(answer.ends_with("0\r\ngrpc-status: 0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn trailers_that_nobody_announced_pass_both_ways_over_http1() {
    const END: &str = "0\r\nsum: 7\r\nx-sum: 8\r\n\r\n";
    // Its data look like the end of a body.
    const BODY: &str = "5\r\n0\r\n\r\n\r\n";
    let serve = |mut stream: DuplexStream| async move {
        loop {
            until(&mut stream, "\r\n\r\n").await;
            until(&mut stream, &format!("{BODY}{END}")).await;
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(format!("{head}{BODY}{END}").as_bytes()).await.unwrap();
        }
    };
    let world = World::over(Scheme::Http, Box::new(move |_, stream| drop(tokio::spawn(serve(stream)))));
    let mut client = world.connect(HttpVersion::Http1);
    let head = "PUT / HTTP/1.1\r\nHost: web.localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.write_all(format!("{head}{BODY}{END}").repeat(3).as_bytes()).await.unwrap();
    for _ in 0..3 {
        let answer = until(&mut client, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert_eq!(until(&mut client, END).await, format!("{BODY}{END}"));
    }
}

#[tokio::test]
async fn trailers_of_grpc_reach_a_client_of_http1() {
    let world = World::new(Scheme::H2c, |request| {
        Box::pin(async move {
            let mut response = with_trailers(request).await?;
            response.headers_mut().clear();
            Ok(response)
        })
    });
    let answer = |version: &str| {
        let asked = format!("POST / HTTP/{version}\r\nHost: web.localhost\r\nConnection: close\r\n");
        let world = &world;
        async move { world.exchange(&format!("{asked}Content-Length: 5\r\n\r\nhello")).await }
    };
    let chunked = answer("1.1").await;
    assert!(chunked.ends_with("\r\n\r\n5\r\nhello\r\n0\r\ngrpc-status: 0\r\n\r\n"), "{chunked}");
    let plain = answer("1.0").await;
    assert!(plain.ends_with("\r\n\r\nhello"), "{plain}");
}

const HINTS: [&str; 2] = ["</a.css>; rel=preload", "</b.css>; rel=preload"];

/// A pod that sends hints, and answers on a signal. Its connections run until the client has closed.
fn hinting(speaks: Scheme, go: Arc<Notify>) -> World {
    World::over(
        speaks,
        Box::new(move |_, stream: DuplexStream| {
            let go = go.clone();
            match speaks {
                Scheme::H2c => drop(tokio::spawn(hint_over_http2(stream, go))),
                _ => drop(tokio::spawn(hint_over_http1(stream, go))),
            }
        }),
    )
}

async fn hint_over_http1(mut stream: DuplexStream, go: Arc<Notify>) {
    let mut asked = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        asked.push(byte);
        if asked.ends_with(b"\r\n\r\n") {
            asked.clear();
            for hint in HINTS {
                let head = "HTTP/1.1 103 Early Hints\r\nConnection: X-Hop\r\nX-Hop: 1\r\nLink: ";
                stream.write_all(format!("{head}{hint}\r\n\r\n").as_bytes()).await.unwrap();
            }
            go.notified().await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        }
    }
}

async fn hint_over_http2(stream: DuplexStream, go: Arc<Notify>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        for hint in HINTS {
            respond.send_informational(Response::builder().status(103).header("link", hint).body(()).unwrap()).unwrap();
        }
        let go = go.clone();
        tokio::spawn(async move {
            go.notified().await;
            let head = Response::builder().header("content-length", 2).body(()).unwrap();
            respond.send_response(head, false).unwrap().send_data("ok".into(), true).unwrap();
        });
    }
}

async fn until(stream: &mut DuplexStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let byte = timeout(PATIENCE, stream.read_u8()).await.unwrap_or_else(|_| panic!("{end:?} comes: {text}"));
        text.push(char::from(byte.unwrap()));
    }
    text
}

#[tokio::test]
async fn interim_responses_come_before_the_answer_in_the_order_of_the_requests() {
    for speaks in [Scheme::Http, Scheme::H2c] {
        let go = Arc::new(Notify::new());
        let world = hinting(speaks, go.clone());
        let mut stream = world.connect(HttpVersion::Http1);
        let request = "GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n";
        stream.write_all(request.repeat(3).as_bytes()).await.unwrap();
        for _ in 0..3 {
            // The pod answers only after both hints have arrived.
            let hints = until(&mut stream, "link: </b.css>; rel=preload\r\n\r\n").await;
            let hint = |link: &str| format!("HTTP/1.1 103 Early Hints\r\nlink: {link}\r\n\r\n");
            assert_eq!(hints, hint(HINTS[0]) + &hint(HINTS[1]), "{speaks:?}");
            go.notify_one();
            let answer = until(&mut stream, "ok").await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{speaks:?}: {answer}");
        }
    }
}

/// Starts HTTP/2 with a client that reads interim responses.
async fn hinted_client(world: &World) -> h2::client::SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(world.connect(HttpVersion::Http2)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn next_interim(response: &mut h2::client::ResponseFuture) -> Option<Response<()>> {
    let next = std::future::poll_fn(|cx| response.poll_informational(cx));
    timeout(PATIENCE, next).await.expect("it comes").transpose().unwrap()
}

#[tokio::test]
async fn interim_responses_come_over_http2_on_the_stream_of_their_request() {
    for speaks in [Scheme::Http, Scheme::H2c] {
        let go = Arc::new(Notify::new());
        let world = hinting(speaks, go.clone());
        let mut sender = hinted_client(&world).await;
        let request = || Request::get("http://web.localhost/").version(Version::HTTP_2).body(()).unwrap();
        let (mut one, _) = sender.send_request(request(), true).unwrap();
        let (mut other, _) = sender.send_request(request(), true).unwrap();
        for response in [&mut other, &mut one] {
            for hint in HINTS {
                let interim = next_interim(response).await.expect("a hint");
                assert_eq!((interim.status().as_u16(), &interim.headers()["link"]), (103, &hint.parse().unwrap()));
                assert_eq!(interim.headers().len(), 1, "{speaks:?}: {:?}", interim.headers());
            }
            go.notify_one();
        }
        for response in [one, other] {
            let mut body = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "ok", "{speaks:?}");
        }
    }
}

#[tokio::test]
async fn who_knows_no_interim_responses_gets_none() {
    let go = Arc::new(Notify::new());
    let world = hinting(Scheme::Http, go.clone());
    go.notify_one();
    let answer = world.exchange("GET / HTTP/1.0\r\nHost: web.localhost\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.") && answer.contains(" 200 OK\r\n") && answer.ends_with("ok"), "{answer}");
    go.notify_one();
    let response = world.http2().await.send_request(get("http://web.localhost/")).await.unwrap();
    assert_eq!((response.status(), text(response).await.as_str()), (StatusCode::OK, "ok"));
}

#[tokio::test]
async fn a_client_of_http2_that_waits_to_be_asked_for_its_body_is_asked() {
    for speaks in [Scheme::Http, Scheme::H2c] {
        let world = World::new(speaks, |request| {
            Box::pin(async { Ok(Response::new(request.into_body().map_err(BoxError::from).boxed_unsync())) })
        });
        let mut sender = hinted_client(&world).await;
        let request = Request::put("http://web.localhost/").header("expect", "100-continue").version(Version::HTTP_2);
        let (mut response, mut sending) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        let asked = next_interim(&mut response).await.expect("an interim response");
        assert_eq!(asked.status(), StatusCode::CONTINUE, "{speaks:?}");
        sending.send_data("hello".into(), true).unwrap();
        let mut body = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "hello", "{speaks:?}");
    }
}
