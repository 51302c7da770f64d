//! The rules of a context, how adit reports them, and the audit log.

use std::{fs, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    dashboard::{Visit, send},
    process::Process,
    support::{PATIENCE, eventually, ports::free_port},
};

const READ_ONLY: &str = "contexts: {prod: {name: demo, methods: [GET, HEAD, OPTIONS]}}\n";

/// Sends a request over HTTP/2 without TLS, and returns status and body.
async fn http2(process: &Process, method: &str, host: &str, path: &str) -> (u16, String) {
    let exchange = async {
        let stream = TcpStream::connect(process.http).await.unwrap();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = http::Request::builder().method(method).uri(format!("http://{host}{path}")).body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let mut response = response.await.unwrap();
        let mut body = Vec::new();
        while let Some(Ok(data)) = response.body_mut().data().await {
            body.extend_from_slice(&data);
        }
        connection.abort();
        (response.status().as_u16(), String::from_utf8_lossy(&body).into_owned())
    };
    timeout(PATIENCE, exchange).await.expect("an answer in time")
}

/// Requests a WebSocket over HTTP/2 (RFC 8441), and returns the status.
async fn extended_connect(process: &Process, host: &str, path: &str) -> u16 {
    let exchange = async {
        let stream = TcpStream::connect(process.http).await.unwrap();
        let (client, mut connection) = h2::client::handshake(stream).await.unwrap();
        // The server's settings announce extended CONNECT.
        while !client.is_extended_connect_protocol_enabled() {
            futures::future::select(&mut connection, std::pin::pin!(sleep(Duration::from_millis(10)))).await;
        }
        let connection = tokio::spawn(connection);
        let mut request =
            http::Request::builder().method("CONNECT").uri(format!("http://{host}{path}")).body(()).unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (response, _stream) = client.ready().await.unwrap().send_request(request, false).unwrap();
        let status = response.await.unwrap().status().as_u16();
        connection.abort();
        status
    };
    timeout(PATIENCE, exchange).await.expect("an answer in time")
}

/// Sends a request by https, and returns the status.
async fn by_tls(process: &Process, line: &str, host: &str, lines: &[&str]) -> u16 {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let head = format!("{line} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n{lines}\r\n");
    first_status(crate::tls::connect_to(process.http, host).await, &head).await
}

/// Sends the head of a request, and returns the status of the response. Closes the connection.
async fn first_status<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, head: &str) -> u16 {
    let mut status = [0; 12];
    let exchange = async {
        stream.write_all(head.as_bytes()).await?;
        stream.read_exact(&mut status).await
    };
    timeout(PATIENCE, exchange).await.expect("an answer in time").unwrap();
    String::from_utf8_lossy(&status[9..]).parse().unwrap()
}

#[tokio::test]
async fn a_context_takes_only_the_methods_that_it_lists_until_it_is_unlocked() {
    let process = Process::start(READ_ONLY, &[]).await;
    let host = "web.shop.localhost";
    let visit = Visit::new(&process).await;
    // The alias is not in the name, but the page has it, with the command.
    let refused = send(&process, "POST /upload", host, &[], "x").await;
    assert_eq!((refused.status, refused.header("x-adit-error")), (403, Some("read-only")), "{}", refused.body);
    assert!(refused.body.contains("adit unlock prod --for 15m"), "{}", refused.body);
    for method in ["PUT", "PATCH", "DELETE", "get", "CUSTOM"] {
        assert_eq!(send(&process, &format!("{method} /upload"), host, &[], "").await.status, 403, "{method}");
    }
    for method in ["GET", "HEAD", "OPTIONS"] {
        assert_eq!(send(&process, &format!("{method} /whoami"), host, &[], "").await.status, 200, "{method}");
    }
    assert_eq!(http2(&process, "POST", host, "/upload").await.0, 403);
    assert_eq!(http2(&process, "GET", host, "/whoami").await.0, 200);
    let upgrade = [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    assert_eq!(send(&process, "GET /ws", host, &upgrade, "").await.status, 403, "a WebSocket can write");
    assert_eq!(extended_connect(&process, host, "/ws").await, 403, "nor by HTTP/2");
    // TLS for an https backend is not passed through, because the rules require to read the requests.
    let https = "443.tools.shop.localhost";
    for (method, path, status) in [("POST", "/upload", 403), ("DELETE", "/", 403), ("GET", "/whoami", 200)] {
        let line = format!("{method} {path}");
        assert_eq!(send(&process, &line, https, &[], "").await.status, status, "{line}");
        assert_eq!(by_tls(&process, &line, https, &[]).await, status, "{line} by TLS");
        assert_eq!(http2(&process, method, https, path).await.0, status, "{line} by HTTP/2");
    }
    assert_eq!(by_tls(&process, "GET /ws", https, &upgrade).await, 403);
    // psql sends the server's name, but adit cannot see what it writes.
    let psql = format!(
        "command -v psql >/dev/null || exit 0; psql -c 'SELECT 1' \"host=postgres.data.localhost hostaddr=127.0.0.1 port={} \
         user=demo dbname=demo sslmode=require\" 2>&1 && exit 1 || true",
        process.http.port()
    );
    let (is_refused, said) = process.shell(&psql).await;
    assert!(is_refused && (said.is_empty() || said.contains("adit unlock prod --for 15m")), "{said}");

    // A recorded GET cannot be replayed as a change.
    let rows = visit.get("/api/v1/requests").await.json();
    let is_get = |row: &&Value| row["method"] == "GET" && row["status"] == 200;
    let id = rows["requests"].as_array().unwrap().iter().find(is_get).expect("a GET")["id"].clone();
    let replay = async |edits: &str| visit.post(&format!("/api/v1/requests/{id}/replay"), edits).await.json();
    assert_eq!(replay("{}").await["status"], 200);
    let edited = replay(r#"{"method": "DELETE"}"#).await;
    assert_eq!((&edited["status"], &edited["error"]), (&403.into(), &"read-only".into()), "{edited}");

    let contexts = async || visit.get("/api/v1/status").await.json()["contexts"][0].clone();
    let locked = contexts().await;
    assert!(
        locked["methods"][0] == "GET" && locked["production"] == true && locked["unlocked_minutes"].is_null(),
        "{locked}"
    );
    assert_eq!(visit.post("/api/v1/contexts/prod/unlock", "{\"seconds\": 900}").await.status, 404, "not by a page");
    let (is_ok, said, error) = process.command(&["unlock", "prod", "--for", "15m"]).await;
    assert!(is_ok && said == "context demo allows every method for 15 min\n", "{said}{error}");
    assert_eq!(contexts().await["unlocked_minutes"], 15);
    assert_eq!(send(&process, "POST /upload", host, &[], "x").await.status, 200);
    assert_eq!(http2(&process, "POST", host, "/upload").await.0, 200);
    assert_eq!(replay(r#"{"method": "DELETE"}"#).await["status"], 200, "the pod answers");
    let opened = async |head: String| {
        let mut stream = TcpStream::connect(process.http).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(timeout(PATIENCE, stream.read_u8()).await.expect("an answer").unwrap());
        }
        (String::from_utf8_lossy(&answer[9..12]).into_owned(), stream)
    };
    let upgrade = upgrade.join("\r\n");
    let (status, websocket) = opened(format!("GET /ws HTTP/1.1\r\nHost: {host}\r\n{upgrade}\r\n\r\n")).await;
    assert_eq!(status, "101");
    let (status, connected) = opened("CONNECT web.shop:80 HTTP/1.1\r\nHost: web.shop:80\r\n\r\n".to_owned()).await;
    assert_eq!(status, "200");
    let passed = crate::tls::connect_to(process.http, https).await;
    assert!(process.command(&["unlock", "demo", "--for", "0"]).await.0);
    assert_eq!(send(&process, "POST /upload", host, &[], "x").await.status, 403);
    // Nothing writes any more through connections that were opened meanwhile.
    let streams: [Box<dyn AsyncRead + Unpin>; 3] = [Box::new(websocket), Box::new(connected), Box::new(passed)];
    for mut stream in streams {
        let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("the connection is closed");
    }
    let (is_ok, _, error) = process.command(&["unlock", "other"]).await;
    assert!(!is_ok && error.contains("those with methods are prod"), "{error}");
}

#[tokio::test]
async fn a_page_of_one_service_writes_to_another_only_by_a_line_of_the_configuration() {
    let process = Process::start("", &[]).await;
    let origin = format!("http://web.shop.localhost:{}", process.http.port());
    let lines = [format!("Origin: {origin}"), "Sec-Fetch-Site: same-site".to_owned()];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let own = send(&process, "POST /upload", "web.shop.localhost", &lines, "x").await;
    assert_eq!(own.status, 200, "its own");
    let refused = send(&process, "POST /upload", "80.tools.shop.localhost", &lines, "x").await;
    assert_eq!((refused.status, refused.header("x-adit-error")), (403, Some("foreign-origin")), "{}", refused.body);
    let line = refused.body.lines().find(|line| line.starts_with("\"80.tools.shop.localhost\": ")).expect("the line");
    fs::write(process.config(), format!("http:\n  k8s:\n    routes:\n      {line}\n")).unwrap();
    process.logs("config reloaded").await;
    let allowed = send(&process, "POST /upload", "80.tools.shop.localhost", &lines, "x").await;
    assert_eq!(allowed.status, 200, "{line}: {}", allowed.body);
}

#[tokio::test]
async fn the_audit_log_says_who_did_what_and_where() {
    let port = free_port();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.log");
    let config = format!(
        "audit: {}\ncontexts: {{prod: {{name: demo, methods: [GET]}}}}\n\
         tcp: {{k8s: {{routes: {{{port}: {{namespace: shop, service: tools, port: 7001}}}}}}}}\n",
        log.display()
    );
    let process = Process::start(&config, &[]).await;
    let visit = Visit::new(&process).await;
    let host = "web.shop.localhost";
    assert_eq!(send(&process, "GET /whoami?token=s3cret", host, &["Authorization: s3cret"], "").await.status, 200);
    assert_eq!(send(&process, "DELETE /carts/1", host, &[], "").await.status, 403);
    assert_eq!(http2(&process, "GET", host, "/http2").await.0, 404);
    let mut greeting = [0; 4];
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    timeout(PATIENCE, client.read_exact(&mut greeting)).await.unwrap().unwrap();
    drop(client);
    let rows = visit.get("/api/v1/requests").await.json();
    let is_first = |row: &&Value| row["path"] == "/whoami";
    let id = rows["requests"].as_array().unwrap().iter().find(is_first).unwrap()["id"].clone();
    visit.post(&format!("/api/v1/requests/{id}/replay"), "{}").await;

    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(&log).unwrap();
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    };
    eventually("five lines", || async { lines().len() >= 5 }).await;
    let text = fs::read_to_string(&log).unwrap();
    assert!(!text.contains("s3cret"), "{text}");
    let lines = lines();
    let find =
        |is: &dyn Fn(&Value) -> bool| lines.iter().find(|line| is(line)).unwrap_or_else(|| panic!("{text}")).clone();
    let first = find(&|line| line["path"] == "/whoami" && line["replay_of"].is_null());
    assert_eq!((&first["target"], &first["status"]), (&"demo/shop/web".into(), &200.into()), "{first}");
    assert!(first["took_ms"].as_f64().unwrap() > 0.0 && first["pod"].is_string(), "{first}");
    if cfg!(target_os = "linux") {
        let this = std::env::current_exe().unwrap().display().to_string();
        assert_eq!(first["client"]["program"], this, "{first}");
        assert_eq!(
            (first["client"]["pid"].as_u64(), &first["client"]["uid"]),
            (Some(std::process::id().into()), &rustix::process::getuid().as_raw().into())
        );
    }
    let denied = find(&|line| line["method"] == "DELETE");
    assert_eq!((&denied["error"], &denied["status"]), (&"read-only".into(), &403.into()), "{denied}");
    assert_eq!(find(&|line| line["path"] == "/http2")["status"], 404);
    assert!(find(&|line| line["kind"] == "tcp")["bytes_down"].as_u64().unwrap() >= 4);
    assert_eq!(find(&|line| line["replay_of"] == id)["path"], "/whoami");
}

#[tokio::test]
async fn every_way_to_a_context_is_in_the_audit_log_refused_or_not() {
    let port = free_port();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.log");
    let config = format!(
        "audit: {}\ncontexts: {{prod: {{name: demo, methods: [GET]}}}}\n\
         tcp: {{k8s: {{routes: {{{port}: {{namespace: shop, service: web, port: 80}}}}}}}}\n",
        log.display()
    );
    let process = Process::start(&config, &[]).await;
    let (host, https) = ("web.shop.localhost", "443.tools.shop.localhost");
    let upgrade = [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    };
    // Each protocol, with the fields of its line.
    let tried = async |is_refused: bool| {
        let before = lines().len();
        let status = |of: u16| if is_refused { 403 } else { of };
        for (host, by_tls) in [(https, true), (host, false)] {
            let head = format!("GET /ws HTTP/1.1\r\nHost: {host}\r\n{}\r\n\r\n", upgrade.join("\r\n"));
            let answered = match by_tls {
                true => first_status(crate::tls::connect_to(process.http, host).await, &head).await,
                false => first_status(TcpStream::connect(process.http).await.unwrap(), &head).await,
            };
            assert_eq!(answered, status(101), "{host}");
        }
        assert_eq!(send(&process, "POST /upload", https, &[], "x").await.status, status(200));
        assert_eq!(http2(&process, "POST", host, "/upload").await.0, status(200));
        let socks = crate::socks::connect(process.http, None, "web.shop", 80).await;
        assert_eq!(socks.is_err(), is_refused);
        drop(socks);
        let connect = TcpStream::connect(process.http).await.unwrap();
        let head = "CONNECT web.shop:80 HTTP/1.1\r\nHost: web.shop:80\r\n\r\n";
        assert_eq!(first_status(connect, head).await, status(200));
        // A TCP route is explicit configuration, so it passes everything.
        let route = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert_eq!(first_status(route, "POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await, 200);
        eventually("a line for each", || async { lines().len() >= before + 7 }).await;
        lines().split_off(before)
    };
    let of = |lines: &[Value], kind: &str, target: &str| -> Vec<Value> {
        // All names of a port share its tunnel, whichever comes first.
        let is_of =
            |line: &&Value| line["kind"] == kind && line["target"].as_str().is_some_and(|to| to.starts_with(target));
        lines.iter().filter(is_of).cloned().collect()
    };
    let refused = tried(true).await;
    for (kind, target, count) in [
        ("http", "demo/shop/web", 2),
        ("http", "demo/shop/tools:443", 2),
        ("socks", "demo/shop/web", 1),
        ("connect", "demo/shop/web", 1),
    ] {
        let found = of(&refused, kind, target);
        assert_eq!(found.len(), count, "{kind} {target}: {refused:?}");
        assert!(found.iter().all(|line| line["error"] == "read-only" && line["pod"].is_null()), "{found:?}");
    }
    assert!(process.command(&["unlock", "prod", "--for", "15m"]).await.0);
    let taken = tried(false).await;
    // TLS to an https backend is passed through if no rule requires to read it.
    for (kind, target) in [
        ("tls", "demo/shop/tools:443"),
        ("websocket", "demo/shop/web"),
        ("http", "demo/shop/tools:443"),
        ("http", "demo/shop/web"),
        ("socks", "demo/shop/web"),
        ("connect", "demo/shop/web"),
        ("tcp", "demo/shop/web"),
    ] {
        let found = of(&taken, kind, target);
        assert_eq!(found.len(), 1, "{kind} {target}: {taken:?}");
        assert!(found[0]["error"].is_null() && found[0]["pod"].is_string(), "{found:?}");
        if cfg!(target_os = "linux") {
            assert_eq!(found[0]["client"]["pid"], std::process::id(), "{found:?}");
        }
    }
}
