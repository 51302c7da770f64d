//! What may be sent to a context, who says so, and the log of who did what.

use std::fs;

use serde_json::Value;
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use crate::{
    dashboard::{Visit, send},
    process::{Process, free_port},
    support::{PATIENCE, eventually},
};

const READ_ONLY: &str = "contexts: {prod: {name: demo, methods: [GET, HEAD, OPTIONS]}}\n";

/// Sends a request of HTTP/2 without TLS, and returns status and body.
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

#[tokio::test]
async fn a_context_takes_only_the_methods_that_it_lists_until_it_is_unlocked() {
    let process = Process::start(READ_ONLY, &[]).await;
    let host = "web.shop.localhost";
    let visit = Visit::new(&process).await;
    // Before it is told to be read-only by name: the alias and the command are in the page.
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
    // A backend of https is not passed through unread.
    let https = send(&process, "POST /upload", "443.tools.shop.localhost", &[], "x").await;
    assert_eq!(https.status, 403);

    // A request that was read before is not sent again as a change.
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
    assert!(is_ok && said == "context demo takes every method for 15 min\n", "{said}{error}");
    assert_eq!(contexts().await["unlocked_minutes"], 15);
    assert_eq!(send(&process, "POST /upload", host, &[], "x").await.status, 200);
    assert_eq!(http2(&process, "POST", host, "/upload").await.0, 200);
    assert_eq!(replay(r#"{"method": "DELETE"}"#).await["status"], 200, "the pod answers");
    assert!(process.command(&["unlock", "demo", "--for", "0"]).await.0);
    assert_eq!(send(&process, "POST /upload", host, &[], "x").await.status, 403);
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
    let line = refused.body.lines().find(|line| line.starts_with("80.tools.shop.localhost: ")).expect("the line");
    fs::write(process.config(), format!("http:\n  k8s:\n    routes:\n      {line}\n")).unwrap();
    process.logs("config reloaded").await;
    let allowed = send(&process, "POST /upload", "80.tools.shop.localhost", &lines, "x").await;
    assert_eq!(allowed.status, 200, "{line}: {}", allowed.body);
}

#[tokio::test]
async fn the_audit_log_says_who_did_what_and_where() {
    let port = free_port().await;
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
