//! Tests with unusual backends: some answer garbage, some send many headers, some serve one connection at a time.

use std::sync::atomic::AtomicBool;

use futures::future::join_all;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::Semaphore,
    time::{Instant, sleep},
};

use super::*;

/// A pod that answers each head it reads with `answer`. `turn`: number of connections that it serves at a time.
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
async fn the_head_of_an_answer_whose_body_breaks_at_once_arrives() {
    for body in ["no chunk\r\n", "3\r\nabc\r\nno chunk\r\n"] {
        let head = "HTTP/1.1 302 Found\r\nLocation: /there\r\nTransfer-Encoding: chunked\r\n\r\n";
        let world = saying(format!("{head}{body}"), 100);
        let answer = world.exchange(&asking("GET")).await;
        assert!(answer.starts_with("HTTP/1.1 302 ") && !answer.ends_with("0\r\n\r\n"), "{answer}");
        assert_eq!(answer.contains("abc"), body.contains("abc"), "{answer}");
        let response = world.http2().await.send_request(get("http://web.localhost/")).await.unwrap();
        assert_eq!(response.headers()["location"], "/there");
        assert!(response.into_body().collect().await.is_err(), "{body}");
    }
}

#[tokio::test]
async fn chunks_of_an_old_server_are_taken() {
    let world = saying("HTTP/1.0 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 100);
    for _ in 0..2 {
        assert_eq!(text(world.http2().await.send_request(get("http://web.localhost/")).await.unwrap()).await, "abc");
    }
    // curl and browsers take lines that end with a bare LF.
    for chunks in ["3\nabc\n0\n\n", "3;x\nabc\n0\nT: v\n\n"] {
        let world = saying(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"), 100);
        for _ in 0..3 {
            assert_eq!(
                text(world.http2().await.send_request(get("http://web.localhost/")).await.unwrap()).await,
                "abc"
            );
        }
    }
    let answer = "HTTP/1.0 200 OK\r\nContent-Length: 26\r\n\r\ntransfer-encoding: chunked";
    let answer = saying(answer, 100).exchange(&asking("GET")).await;
    assert!(answer.ends_with("\r\n\r\ntransfer-encoding: chunked"), "{answer}");
}

#[tokio::test]
async fn an_answer_without_content_has_no_length() {
    let world = saying("HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", 100);
    let response = world.http2().await.send_request(get("http://web.localhost/")).await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers().get("content-length")), (204, None));
}

#[tokio::test]
async fn a_length_that_an_answer_repeats_is_passed_on_once() {
    for lengths in ["Content-Length: 2\r\nContent-Length: 2", "Content-Length: 2, 2"] {
        let world = saying(format!("HTTP/1.1 200 OK\r\n{lengths}\r\n\r\nok"), 100);
        let response = world.http2().await.send_request(get("http://web.localhost/")).await.unwrap();
        let told: Vec<_> = response.headers().get_all("content-length").iter().collect();
        assert_eq!(told, ["2"], "{lengths}");
        assert_eq!(text(response).await, "ok");
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

/// A single-threaded pod with kept-alive connections, like Python's `http.server.HTTPServer`, behind a kubelet. Its backlog has
/// room for six connections beside the one in service. The pod sees a client's close a second later, and never once more
/// connections than these have sent bytes.
fn one_thread() -> World {
    let (turn, came) = (Arc::new(Semaphore::new(1)), Arc::new(AtomicUsize::new(0)));
    let is_stuck = Arc::new(AtomicBool::new(false));
    World::over(
        Scheme::Http,
        Box::new(move |pod, stream: DuplexStream| {
            let (turn, came, is_stuck) = (turn.clone(), came.clone(), is_stuck.clone());
            tokio::spawn(async move {
                if came.fetch_add(1, Ordering::SeqCst) >= 7 {
                    is_stuck.store(true, Ordering::SeqCst);
                }
                let _turn = turn.acquire().await.unwrap();
                let mut stream = BufReader::new(stream);
                loop {
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if !matches!(stream.read_line(&mut head).await, Ok(1..)) {
                            sleep(Duration::from_secs(if is_stuck.load(Ordering::SeqCst) { 1_000 } else { 1 })).await;
                            came.fetch_sub(1, Ordering::SeqCst);
                            return;
                        }
                    }
                    pod.requests.fetch_add(1, Ordering::SeqCst);
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                    if head.to_ascii_lowercase().contains("connection: close") {
                        came.fetch_sub(1, Ordering::SeqCst);
                        return;
                    }
                }
            });
        }),
    )
}

#[tokio::test(start_paused = true)]
async fn a_crowd_at_a_server_of_one_thread_is_served() {
    let world = one_thread();
    let client = world.http2().await;
    for count in [1, 12, 40] {
        let ask = || {
            let (mut client, request) =
                (client.clone(), Request::get("http://web.localhost/").body(body_of("")).unwrap());
            async move { client.send_request(request).await.unwrap().status() }
        };
        let answers = timeout(Duration::from_secs(100), join_all((0..count).map(|_| ask()))).await;
        assert!(answers.expect("nobody waits for good").iter().all(StatusCode::is_success), "{count}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_of_one_thread_is_waited_for_once() {
    let world = one_thread();
    let client = world.http2().await;
    let mut took = Vec::new();
    for _ in 0..6 {
        let request = Request::post("http://web.localhost/").body(body_of("")).unwrap();
        let started = Instant::now();
        assert_eq!(client.clone().send_request(request).await.unwrap().status(), StatusCode::OK);
        took.push(started.elapsed());
    }
    assert!(took[2..].iter().all(|took| took.as_millis() < 500), "{took:?}");
}

#[tokio::test]
async fn an_answer_is_passed_on_in_adits_own_words() {
    for (said, told, is_in) in [
        // RFC 9112, section 6.3: Transfer-Encoding overrides Content-Length.
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "\r\nhello\r\n",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "length: 3",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "content-encoding: gzip\r\n",
            true,
        ),
        ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\n", true),
        ("HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\nContent-Length: 2\r\n\r\nok", "x-folded: a", true),
        ("HTTP/1.1 200 OK\r\nX(Y): 1\r\nContent-Length: 2\r\n\r\nok", "\r\n\r\nok", true),
        ("HTTP/1.1 426 No\r\nConnection: upgrade\r\nUpgrade: x/2\r\nContent-Length: 0\r\n\r\n", "upgrade: x/2", true),
        // Both interim responses are sent before the answer that arrives with them.
        (
            "HTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 103 Early\r\nLink: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "link: a\r\n\r\nhttp/1.1 103 early hints\r\nlink: b\r\n\r\nhttp/1.1 200 ok",
            true,
        ),
    ] {
        let answer = saying(said, 1).exchange(&asking("GET")).await;
        assert_eq!(answer.to_ascii_lowercase().contains(&told.to_ascii_lowercase()), is_in, "{said:?}: {answer:?}");
    }
}

#[tokio::test]
async fn a_body_that_the_backend_does_not_ask_for_stays_with_the_client() {
    let world = saying("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno", 1);
    let head = "PUT / HTTP/1.1\r\nHost: web.localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let answer = world.exchange(head).await;
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.ends_with("\r\n\r\nno"), "{answer}");
    let mut client = saying("HTTP/1.1 100 Continue\r\n\r\n", 1).connect(HttpVersion::Http1);
    client.write_all(head.as_bytes()).await.unwrap();
    let mut asked = [0; 12];
    timeout(PATIENCE, client.read_exact(&mut asked)).await.expect("it is asked for").unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_fails_at_a_request_is_not_asked_it_often_nor_what_else_it_speaks() {
    let world = World::over(
        Scheme::Http,
        Box::new(|pod, mut stream: DuplexStream| {
            tokio::spawn(async move {
                let mut asked = vec![0; 1024];
                let count = stream.read(&mut asked).await.unwrap_or_default();
                pod.requests.fetch_add(1, Ordering::SeqCst);
                if asked[..count].starts_with(b"GET /good") {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                }
            });
        }),
    );
    let ask = |method: &str, path: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: web.localhost\r\nConnection: close\r\n\r\n")
    };
    assert!(world.exchange(&ask("GET", "/good")).await.starts_with("HTTP/1.1 200 "));
    assert!(world.exchange(&ask("POST", "/bad")).await.starts_with("HTTP/1.1 502 "));
    for (method, most) in [("GET", 3), ("POST", 1), ("DELETE", 3)] {
        let (before, started) = (world.seen(), Instant::now());
        assert!(world.exchange(&ask(method, "/bad")).await.starts_with("HTTP/1.1 502 "), "{method}");
        assert_eq!(world.seen() - before, most, "{method}");
        assert!(started.elapsed() < Duration::from_secs(1), "{method}: {:?}", started.elapsed());
    }
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

/// An HTTP/2 pod that allows `most` streams per connection, and answers once `together` requests have arrived.
fn at_its_limit(most: u32, together: usize) -> World {
    let came = Arc::new(Semaphore::new(0));
    let serve = move |pod: Arc<Pod>, stream: DuplexStream| {
        let came = came.clone();
        let service = service_fn(move |_: Request<Incoming>| {
            let (came, count) = (came.clone(), pod.requests.fetch_add(1, Ordering::SeqCst) + 1);
            async move {
                if count == together {
                    came.add_permits(Semaphore::MAX_PERMITS / 2);
                }
                let _ = came.acquire().await;
                Ok::<_, io::Error>(Response::new(body_of("ok")))
            }
        });
        tokio::spawn(async move {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.max_concurrent_streams(most).serve_connection(TokioIo::new(stream), service).await
        });
    };
    World::over(Scheme::H2c, Box::new(serve))
}

#[tokio::test]
async fn at_its_limit_of_streams_a_backend_gets_another_connection() {
    for (most, together, connections) in [(1, 5, 5..=5), (2, 6, 3..=3), (100, 20, 1..=1)] {
        let world = at_its_limit(most, together);
        // The first request teaches adit the backend's protocol and stream limit.
        let mut waiting = Vec::new();
        for _ in 0..together {
            let mut client = world.http2().await;
            let request = Request::post("http://web.localhost/").body(body_of("x")).unwrap();
            waiting.push(tokio::spawn(async move { client.send_request(request).await.unwrap().status() }));
            let seen = waiting.len();
            timeout(PATIENCE, async {
                while world.seen() < seen {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .unwrap_or_else(|_| panic!("request {seen} waits behind the others: {most}"));
        }
        for answered in waiting {
            assert_eq!(timeout(PATIENCE, answered).await.unwrap().unwrap(), 200);
        }
        assert!(connections.contains(&world.connections()), "{most}: {}", world.connections());
        // The open connections serve the requests that follow.
        let before = world.connections();
        for _ in 0..3 {
            let request = Request::post("http://web.localhost/").body(body_of("x")).unwrap();
            assert_eq!(world.http2().await.send_request(request).await.unwrap().status(), 200);
        }
        assert_eq!(world.connections(), before);
    }
}

/// Returns a world, and the number of open connections to its pod.
fn counted(
    speaks: Scheme,
    answer: impl Fn(Request<Incoming>) -> Answered + Send + Sync + 'static,
) -> (World, Arc<AtomicUsize>) {
    let (open, answer) = (Arc::<AtomicUsize>::default(), Arc::new(answer));
    let counted = open.clone();
    let serve = move |pod, stream| {
        let (open, answer) = (counted.clone(), answer.clone());
        open.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            serve_pod(pod, stream, answer).await;
            open.fetch_sub(1, Ordering::SeqCst);
        });
    };
    (World::over(speaks, Box::new(serve)), open)
}

#[tokio::test(start_paused = true)]
async fn an_http1_connection_that_nobody_uses_is_closed_before_the_server_does_it() {
    let (world, open) = counted(Scheme::Http, show_headers);
    for _ in 0..3 {
        world.exchange(&asking("GET")).await;
        sleep(Duration::from_secs(3)).await;
        assert_eq!((open.load(Ordering::SeqCst), world.connections()), (1, 1), "it is used again and again");
    }
    sleep(Duration::from_secs(2)).await;
    assert_eq!(open.load(Ordering::SeqCst), 0, "Node.js closes after 5 s");
}

#[tokio::test(start_paused = true)]
async fn an_unused_connection_is_closed_when_its_pod_leaves_or_adit_drains() {
    for speaks in [Scheme::Http, Scheme::H2c] {
        for drains in [false, true] {
            let (world, open) = counted(speaks, show_headers);
            world.exchange(&asking("GET")).await;
            assert_eq!(open.load(Ordering::SeqCst), 1);
            match drains {
                true => world.drain.start(),
                false => world.pod.placements.lock().unwrap()[0].leave(),
            }
            sleep(Duration::from_millis(1_500)).await;
            assert_eq!(open.load(Ordering::SeqCst), 0, "{speaks:?}, drains: {drains}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_http2_connection_that_nobody_uses_is_closed() {
    let (world, open) = counted(Scheme::H2c, show_headers);
    let get = async || {
        let answer = world.exchange(&asking("GET")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    };
    for _ in 0..3 {
        get().await;
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert_eq!(open.load(Ordering::SeqCst), 1, "it is used again and again");
    }
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(open.load(Ordering::SeqCst), 0);
    assert_eq!(world.connections(), 1);
}

#[tokio::test]
async fn an_http2_client_gets_the_path_that_it_asked_for_and_heads_of_any_length() {
    let world = World::new(Scheme::H2c, |request| {
        Box::pin(async move {
            let mut response = Response::new(body_of(""));
            response.headers_mut().insert("x-path", HeaderValue::from_str(&request.uri().to_string()).unwrap());
            response.headers_mut().insert("x-headers", HeaderValue::from(request.headers().len()));
            for number in 0..500 {
                let name = HeaderName::try_from(format!("x-{number}")).unwrap();
                response.headers_mut().insert(name, HeaderValue::try_from("v".repeat(300)).unwrap());
            }
            Ok(response)
        })
    });
    for path in ["/", "/a%20b/c;d=e?q=%7B%22a%22%3A1%7D&x", "/?", "/a//b/../c", "/api/{\"a\"}/x|y?query=up{job=x}|a`b"]
    {
        let mut request = Request::get(format!("http://web.localhost{path}")).body(body_of("")).unwrap();
        for number in 0..50 {
            let name = HeaderName::try_from(format!("x-{number}")).unwrap();
            request.headers_mut().insert(name, HeaderValue::try_from("v".repeat(100)).unwrap());
        }
        let stream = TokioIo::new(world.connect(HttpVersion::Http2));
        let mut builder = conn::http2::Builder::new(TokioExecutor::new());
        // Browsers accept 256 KiB; hyper's client only 16 KiB.
        let (mut client, connection) = builder.max_header_list_size(1 << 20).handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(response.headers()["x-path"], format!("http://web.localhost{path}"));
        assert!(response.headers()["x-headers"].to_str().unwrap().parse::<usize>().unwrap() >= 50);
        assert_eq!(response.headers()["x-499"].len(), 300);
    }
}

#[tokio::test]
async fn a_kept_connection_to_a_pod_that_leaves_is_not_used_again() {
    for speaks in [Scheme::Http, Scheme::H2c] {
        let world = World::new(speaks, show_headers);
        let mut client = world.http2().await;
        for (leaves, wanted) in [(false, 1), (false, 1), (true, 1), (false, 2)] {
            let response = client.send_request(get("http://web.localhost/")).await.unwrap();
            text(response).await;
            assert_eq!(world.connections(), wanted, "{speaks:?}");
            if leaves {
                world.pod.placements.lock().unwrap()[0].leave();
            }
        }
    }
}

/// A server that authenticates connections, as NTLM does: a challenge, and then the user's name.
fn authenticating(scheme: &'static str) -> World {
    let serve = move |pod: Arc<Pod>, stream: DuplexStream| {
        let user = Arc::new(Mutex::new(None));
        let service = service_fn(move |request: Request<Incoming>| {
            pod.requests.fetch_add(1, Ordering::SeqCst);
            let says = request.headers().get("authorization").map(|says| says.to_str().unwrap().to_owned());
            let mut user = user.lock().unwrap();
            let name = says.as_deref().and_then(|says| says.strip_prefix(scheme)).map(str::trim);
            let (status, answer) = match name {
                Some("hello") => (401, format!("{scheme} challenge")),
                Some(name) => {
                    *user = Some(name.to_owned());
                    (200, name.to_owned())
                }
                None => user.clone().map_or((401, scheme.to_owned()), |user| (200, user)),
            };
            let mut response = Response::builder().status(status);
            if status == 401 {
                response = response.header("www-authenticate", &answer);
            }
            std::future::ready(Ok::<_, io::Error>(response.body(body_of(answer)).unwrap()))
        });
        tokio::spawn(async move { http1::Builder::new().serve_connection(TokioIo::new(stream), service).await });
    };
    World::over(Scheme::Http, Box::new(serve))
}

#[tokio::test]
async fn a_connection_that_is_authenticated_is_of_its_client_alone() {
    for scheme in ["NTLM", "Negotiate"] {
        let world = authenticating(scheme);
        let (mut anna, mut ben) = (world.http1().await, world.http1().await);
        let ask = async |client: &mut conn::http1::SendRequest<Body>, method: &str, says: &str| {
            let mut request = Request::builder().method(method).uri("/").header(HOST, "web.localhost");
            if !says.is_empty() {
                request = request.header("authorization", format!("{scheme} {says}"));
            }
            client.ready().await.unwrap();
            let response = client.send_request(request.body(body_of("")).unwrap()).await.unwrap();
            (response.status().as_u16(), text(response).await)
        };
        let refused = (401, scheme.to_owned());
        assert_eq!(ask(&mut anna, "GET", "").await, refused);
        assert_eq!(ask(&mut anna, "POST", "hello").await, (401, format!("{scheme} challenge")));
        assert_eq!(ask(&mut anna, "POST", "anna").await, (200, "anna".to_owned()));
        for method in ["GET", "POST", "GET"] {
            assert_eq!(ask(&mut ben, method, "").await, refused, "he is not Anna");
            assert_eq!(ask(&mut anna, method, "").await, (200, "anna".to_owned()));
        }
        assert_eq!(ask(&mut ben, "GET", "ben").await, (200, "ben".to_owned()));
        assert_eq!(ask(&mut anna, "GET", "").await, (200, "anna".to_owned()));
        drop(anna);
        let mut carla = world.http1().await;
        for _ in 0..3 {
            assert_eq!(ask(&mut carla, "GET", "").await, refused);
        }
    }
}

/// A pod with https over HTTP/1.1 that answers each connection once, and closes it without a close_notify.
fn ending_tls(answer: &'static str) -> World {
    World::over(
        Scheme::Https,
        Box::new(move |pod, stream: DuplexStream| {
            let acceptor = TlsAcceptor::from(pod.certs.clone().server_config(&[b"http/1.1"]).unwrap());
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut asked = Vec::new();
                while !asked.ends_with(b"\r\n\r\n") {
                    asked.push(stream.read_u8().await.unwrap());
                }
                pod.requests.fetch_add(1, Ordering::SeqCst);
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
            });
        }),
    )
}

#[tokio::test]
async fn an_https_backend_may_end_an_answer_without_close_notify() {
    let world = ending_tls("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello");
    let answer = world.http1().await.send_request(get("/")).await.unwrap();
    assert_eq!(text(answer).await, "hello");
    for incomplete in ["Content-Length: 6\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
        let world = ending_tls(String::leak(format!("HTTP/1.1 200 OK\r\n{incomplete}")));
        let answer = world.http1().await.send_request(get("/")).await.unwrap();
        let body = timeout(PATIENCE, answer.into_body().collect()).await.expect("the body ends");
        assert!(body.is_err(), "{incomplete:?}");
    }
}

/// A pod that answers the first request of each connection. It answers the second one with a 408, as if it had closed the idle
/// connection before.
fn timing_out(after: &'static str) -> World {
    World::over(
        Scheme::Http,
        Box::new(move |pod, mut stream: DuplexStream| {
            tokio::spawn(async move {
                let slow = format!("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n{after}\r\n");
                for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", &slow] {
                    let mut asked = Vec::new();
                    while !asked.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        asked.push(byte);
                    }
                    pod.requests.fetch_add(1, Ordering::SeqCst);
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }),
    )
}

#[tokio::test]
async fn a_408_about_an_idle_connection_is_not_passed_on() {
    let close = "Connection: close\r\n";
    for (method, after, seen, status) in [
        ("GET", close, 3, 200),
        ("HEAD", close, 3, 200),
        // Neither safe, nor about the connection.
        ("PUT", close, 2, 408),
        ("GET", "", 2, 408),
    ] {
        let world = timing_out(after);
        assert!(world.exchange(&asking("GET")).await.starts_with("HTTP/1.1 200 "));
        let answer = world.exchange(&asking(method)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {after:?}: {answer}");
        assert_eq!((world.seen(), world.connections()), (seen, seen - 1), "{method} {after:?}");
    }
}
