//! Backends as they are in the world: some answer garbage, some send many headers, some serve one connection at a time.

use tokio::sync::Semaphore;

use super::*;

/// A pod that reads a head and answers with `answer`, on each connection as often as it is asked; `turn`: how many connections
/// it serves at a time.
fn saying(answer: impl Into<Bytes>, turn: usize) -> World {
    let (answer, turn) = (answer.into(), Arc::new(Semaphore::new(turn)));
    World::over(
        Scheme::Http,
        Box::new(move |pod, mut stream: DuplexStream| {
            let (answer, turn) = (answer.clone(), turn.clone());
            tokio::spawn(async move {
                let _turn = turn.acquire().await.unwrap();
                let mut asked = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    asked.push(byte);
                    if asked.ends_with(b"\r\n\r\n") {
                        asked.clear();
                        pod.requests.fetch_add(1, Ordering::SeqCst);
                        let _ = stream.write_all(&answer).await;
                    }
                }
            });
        }),
    )
}

fn asking(method: &str) -> String {
    format!("{method} / HTTP/1.1\r\nHost: web.localhost\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn a_request_that_was_answered_is_not_sent_again() {
    for garbage in ["220 mail ready\r\n", "HTTP/1.1 200\u{1} OK\r\n\r\n", "HTTP/1.1 2x0 OK\r\n\r\n"] {
        let world = saying(garbage, 100);
        for (count, method) in ["DELETE", "GET", "PUT", "POST"].into_iter().enumerate() {
            let answer = world.exchange(&asking(method)).await;
            assert!(answer.starts_with("HTTP/1.1 502 "), "{method}: {answer}");
            assert_eq!(world.seen(), count + 1, "{method}: {garbage:?}");
        }
    }
}

#[tokio::test]
async fn answers_that_browsers_take_pass() {
    let many: String = (0..1_000).map(|number| format!("X-{number}: {}\r\n", "v".repeat(200))).collect();
    let cookies: String = (0..150).map(|number| format!("Set-Cookie: c{number}={}\r\n", "v".repeat(100))).collect();
    for (headers, told) in [
        (many, "x-999: "),
        (cookies, "set-cookie: c149="),
        ("Server : old\r\n".to_owned(), "server: old"),
        (format!("X-Long: {}\r\n", "v".repeat(255 * 1024)), "x-long: v"),
    ] {
        let world = saying(format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: 2\r\n\r\nok"), 100);
        let answer = world.exchange(&asking("GET")).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nok"), "{told}: {}", &answer[..100]);
        assert!(answer.to_ascii_lowercase().contains(told), "{told}");
    }
}

#[tokio::test]
async fn nobody_waits_for_a_connection_that_is_idle() {
    let world = saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 1);
    let started = tokio::time::Instant::now();
    for method in ["GET", "POST", "GET", "PATCH", "POST"] {
        let answer = world.exchange(&asking(method)).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{method}: {answer}");
    }
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test]
async fn broken_chunks_are_the_clients_mistake() {
    for speaks in [Scheme::Http, Scheme::H2c] {
        let world = World::new(speaks, |request| {
            Box::pin(async move {
                request.into_body().collect().await.map_err(io::Error::other)?;
                Ok(Response::new(body_of("ok")))
            })
        });
        for body in ["g\r\n", "5 \r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\nno trailer\r\n\r\n"] {
            let head = "POST / HTTP/1.1\r\nHost: web.localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
            let answer = world.exchange(&format!("{head}{body}")).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{speaks:?} {body:?}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_body_without_a_length_arrives_whatever_the_method() {
    for speaks in [Scheme::Http, Scheme::H2c] {
        let world = World::new(speaks, |request| {
            Box::pin(async move {
                let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
                let mut response = Response::new(body_of(""));
                response.headers_mut().insert("x-length", HeaderValue::from(body.len()));
                Ok(response)
            })
        });
        for method in [Method::GET, Method::HEAD, Method::DELETE, Method::POST] {
            let frames = [Ok(Frame::data(Bytes::from_static(b"hello")))];
            let body = StreamBody::new(futures::stream::iter(frames)).boxed_unsync();
            let request = Request::builder().method(&method).uri("http://web.localhost/").body(body).unwrap();
            let response = world.http2().await.send_request(request).await.unwrap();
            assert_eq!(response.headers()["x-length"], "5", "{speaks:?} {method}");
        }
    }
}
