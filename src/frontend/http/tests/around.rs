//! What comes before an answer and behind it: interim responses, trailers.

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
async fn trailers_pass_from_http1_to_http1() {
    let world = World::new(Scheme::Http, with_trailers);
    let answer =
        world.exchange("GET / HTTP/1.1\r\nHost: web.localhost\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n").await;
    assert!(answer.ends_with("0\r\ngrpc-status: 0\r\n\r\n"), "{answer}");
}

/// Hints, and answers when it is told to; the tasks of its connections go on until the client has gone.
fn hinting(go: Arc<tokio::sync::Notify>) -> World {
    let serve = move |_, mut stream: DuplexStream| {
        let go = go.clone();
        tokio::spawn(async move {
            let mut asked = Vec::new();
            while let Ok(byte) = stream.read_u8().await {
                asked.push(byte);
                if asked.ends_with(b"\r\n\r\n") {
                    asked.clear();
                    for hint in ["</a.css>; rel=preload", "</b.css>; rel=preload"] {
                        let head = "HTTP/1.1 103 Early Hints\r\nConnection: X-Hop\r\nX-Hop: 1\r\nLink: ";
                        stream.write_all(format!("{head}{hint}\r\n\r\n").as_bytes()).await.unwrap();
                    }
                    go.notified().await;
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                }
            }
        });
    };
    World::over(Scheme::Http, Box::new(serve))
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
    let go = Arc::new(tokio::sync::Notify::new());
    let world = hinting(go.clone());
    let mut stream = world.connect(HttpVersion::Http1);
    let request = "GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n";
    stream.write_all(request.repeat(3).as_bytes()).await.unwrap();
    for _ in 0..3 {
        // The pod does not answer before both have come.
        let hints = until(&mut stream, "link: </b.css>; rel=preload\r\n\r\n").await;
        let hint = |name: &str| format!("HTTP/1.1 103 Early Hints\r\nlink: </{name}.css>; rel=preload\r\n\r\n");
        assert_eq!(hints, hint("a") + &hint("b"));
        go.notify_one();
        let answer = until(&mut stream, "\r\n\r\nok").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn who_knows_no_interim_responses_gets_none() {
    let go = Arc::new(tokio::sync::Notify::new());
    let world = hinting(go.clone());
    go.notify_one();
    let answer = world.exchange("GET / HTTP/1.0\r\nHost: web.localhost\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.") && answer.contains(" 200 OK\r\n") && answer.ends_with("ok"), "{answer}");
    go.notify_one();
    let response = world.http2().await.send_request(get("http://web.localhost/")).await.unwrap();
    assert_eq!((response.status(), text(response).await.as_str()), (StatusCode::OK, "ok"));
}
