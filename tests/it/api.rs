//! The API on the admin socket of the running binary.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command as StdCommand,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, UnixStream},
    time::{Instant, sleep, timeout},
};

use crate::{
    process::Process,
    support::{PATIENCE, eventually, ports::free_port, schema::assert_valid},
};

/// Sends a request to the socket, and returns status and body. `path`: absolute, or below the root of the API.
async fn call(process: &Process, method: &str, path: &str) -> (u16, Value) {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/api/v1/{path}") };
    let exchange = async {
        let mut stream = UnixStream::connect(process.socket()).await.unwrap();
        stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: adit\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = timeout(PATIENCE, exchange).await.expect("an answer in time");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let body = match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        true => body.split("\r\n").skip(1).step_by(2).collect(),
        false => body.to_owned(),
    };
    (head[9..12].parse().unwrap(), serde_json::from_str(&body).unwrap_or(Value::Null))
}

async fn get(process: &Process, path: &str) -> Value {
    let (status, body) = call(process, "GET", path).await;
    assert_eq!((status, &body["format"]), (200, &1.into()), "{path}: {body}");
    body
}

fn schema() -> Value {
    let output = StdCommand::new(env!("CARGO_BIN_EXE_adit")).args(["schema", "--api"]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A reader of the events.
struct Reader {
    lines: tokio::io::Lines<BufReader<UnixStream>>,
}

#[derive(Debug)]
struct Event {
    id: String,
    name: String,
    data: Value,
}

impl Reader {
    async fn new(process: &Process, last: Option<&str>) -> Self {
        let mut stream = UnixStream::connect(process.socket()).await.unwrap();
        let last = last.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let request = format!("GET /api/v1/events HTTP/1.1\r\nHost: adit\r\n{last}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self { lines: BufReader::new(stream).lines() }
    }

    async fn next(&mut self) -> Event {
        timeout(PATIENCE, self.read()).await.expect("an event in time")
    }

    async fn read(&mut self) -> Event {
        let (mut id, mut name) = (String::new(), String::new());
        loop {
            let line = self.lines.next_line().await.unwrap().unwrap();
            if let Some(found) = line.strip_prefix("id: ") {
                id = found.to_owned();
            } else if let Some(found) = line.strip_prefix("event: ") {
                name = found.to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Event { id, name, data: serde_json::from_str(data).unwrap() };
            }
        }
    }

    /// Reads until a change for which `is_wanted` holds.
    async fn change(&mut self, mut is_wanted: impl FnMut(&Value) -> bool) -> Event {
        loop {
            let event = self.next().await;
            assert_eq!(event.name, "change", "{event:?}");
            if is_wanted(&event.data) {
                return event;
            }
        }
    }
}

fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn the_committed_schema_is_this_one() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/api.schema.json");
    let committed: Value = serde_json::from_str(&fs::read_to_string(committed).unwrap()).unwrap();
    assert!(committed == schema(), "write it anew: adit schema --api > docs/api.schema.json");
}

#[tokio::test]
async fn a_namespace_that_cannot_be_one_is_refused_and_the_configuration_says_what_a_reload_changed() {
    let process = Process::start("verbose: true\n", &[]).await;
    for query in ["namespace=x%2Fy", "namespace=..", "namespace=Shop", "namespace=a%0d"] {
        let (status, body) = call(&process, "GET", &format!("services?{query}")).await;
        assert_eq!((status, &body["error"]["code"]), (400, &"malformed".into()), "{query}: {body}");
    }
    let open = |target: &str, namespace: &str| {
        let body =
            serde_json::json!({"target": target, "namespace": namespace, "as": "check", "wait_ms": 10_000}).to_string();
        let length = body.len();
        let head = format!(
            "POST /api/v1/open HTTP/1.1\r\nHost: adit\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        let socket = process.socket();
        async move {
            let mut stream = UnixStream::connect(socket).await.unwrap();
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            let mut answer = String::new();
            timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
            answer
        }
    };
    for (target, namespace) in [("web", "x/y"), ("web", ".."), ("web.x/y", "shop"), ("pod/../a.shop", "shop")] {
        let answer = open(target, namespace).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("is not"), "{target} {namespace}: {answer}");
    }
    assert!(open("", "shop").await.starts_with("HTTP/1.1 400"));
    assert!(open("web", "shop").await.starts_with("HTTP/1.1 200"));

    assert_eq!(get(&process, "config").await["changed"], serde_json::json!([]));
    fs::write(process.config(), "http: {idle_timeout: 1m}\nadmin: {listen: \"127.0.0.1:0\"}\n").unwrap();
    process.logs("config reloaded").await;
    let changed = serde_json::json!(["admin", "http.idle_timeout", "verbose"]);
    eventually("the change is told", || async { get(&process, "config").await["changed"] == changed }).await;
    assert!(process.log().contains("admin, http.idle_timeout, verbose"), "{}", process.log());
}

#[tokio::test]
async fn every_answer_is_what_its_schema_says() {
    let port = free_port();
    let config = format!(
        "http: {{k8s: {{routes: {{w.localhost: {{namespace: shop, service: web, headers: {{request: {{set: {{authorization: Bearer s3cret}}}}}}}}}}}}}}\n\
         tcp: {{k8s: {{routes: {{{port}: {{namespace: shop, service: web, port: 80}}}}}}}}\n"
    );
    let process = Process::start(&config, &[]).await;
    assert!(process.serves("w.localhost").await && process.serves("web.shop.localhost").await);
    assert!(process.get(SocketAddr::from(([127, 0, 0, 1], port)), "any").await.is_some());
    assert!(!process.serves("broken.shop.localhost").await && !process.serves("no-name").await);
    let schema = schema();
    for name in ["status", "services", "tunnels", "requests", "config", "log"] {
        let answer = get(&process, name).await;
        assert_valid(&schema, name, &answer);
        if !["status", "config"].contains(&name) {
            assert!(!list(&answer, name).is_empty(), "{name}: {answer}");
        }
        assert!(!answer.to_string().contains("s3cret"), "{answer}");
    }
    let tunnels = get(&process, "tunnels").await;
    let running = list(&tunnels, "tunnels").iter().find(|tunnel| tunnel["state"] == "running").unwrap();
    assert!(running["pods"][0].as_str().unwrap().starts_with("web-"), "{running}");
    let id = running["id"].as_str().unwrap().replace('/', "%2F").replace(':', "%3a");
    let tunnel = get(&process, &format!("tunnels/{id}")).await;
    assert_valid(&schema, "tunnel", &tunnel);
    assert_eq!(tunnel["events"].as_array().unwrap().last().unwrap()["event"], "opened");
    assert!(!list(&tunnel, "first_byte").is_empty(), "{tunnel}");

    let requests = get(&process, "requests").await;
    let rows = list(&requests, "requests");
    let row = |kind: &str, host: &str| {
        let is = |row: &&Value| row["kind"] == kind && row["host"].as_str().unwrap().starts_with(host);
        rows.iter().find(is).unwrap_or_else(|| panic!("{kind} {host}: {rows:#?}"))
    };
    let web = row("http", "web.shop.localhost");
    assert_eq!((&web["status"], &web["path"], &web["method"]), (&200.into(), &"/whoami".into(), &"GET".into()));
    assert!(web["pod"].as_str().unwrap().starts_with("web-") && web["first_byte_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(row("http", "broken.shop.localhost")["error"], "not-ready");
    let tcp = row("tcp", "127.0.0.1");
    assert!(tcp["bytes_down"].as_u64().unwrap() > 0 && tcp["pod"].is_string() && tcp["method"].is_null(), "{tcp}");
    let one = get(&process, &format!("requests/{}", web["id"])).await;
    assert_valid(&schema, "request", &one);
    assert_eq!(one["id"], web["id"]);

    let shown = get(&process, "config").await;
    assert_eq!(
        shown["config"]["http"]["k8s"]["routes"]["w.localhost"]["headers"]["request"]["set"]["authorization"],
        "(hidden, 13 bytes)"
    );
    for (method, path, status) in [
        ("GET", "nothing", 404),
        ("GET", "/api/v2/status", 404),
        ("GET", "requests/0", 404),
        ("GET", "requests/x", 404),
        ("GET", "tunnels/x", 404),
        ("POST", "tunnels/x/stop", 404),
        ("POST", "tunnels/x/reconnect", 404),
        ("POST", "status", 405),
        ("DELETE", &format!("tunnels/{id}"), 405),
        ("GET", &format!("tunnels/{id}/stop"), 405),
    ] {
        let (found, answer) = call(&process, method, path).await;
        assert_eq!(found, status, "{method} {path}: {answer}");
        assert_valid(&schema, "error", &answer);
    }
}

#[tokio::test]
async fn a_tunnel_is_reconnected_and_stopped_by_its_id() {
    let process = Process::start("", &[]).await;
    assert!(process.serves("web.shop.localhost").await);
    let tunnels = get(&process, "tunnels").await;
    let id = tunnels["tunnels"][0]["id"].as_str().unwrap().replace('/', "%2F");
    assert_eq!(call(&process, "POST", &format!("tunnels/{id}/reconnect")).await.0, 202);
    let events = async || get(&process, &format!("tunnels/{id}")).await["events"].clone();
    let names = async || -> Vec<String> {
        events().await.as_array().unwrap().iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect()
    };
    eventually("it has another session", || async { names().await == ["opened", "reconnect", "opened"] }).await;
    assert!(process.serves("web.shop.localhost").await);
    assert_eq!(call(&process, "POST", &format!("tunnels/{id}/stop")).await.0, 204);
    eventually("it is gone", || async { list(&get(&process, "tunnels").await, "tunnels").is_empty() }).await;
    let after = get(&process, &format!("tunnels/{id}")).await;
    assert!(after["tunnel"].is_null() && after["events"][0]["event"] == "stopped", "{after}");
}

#[tokio::test]
async fn events_are_a_snapshot_and_then_what_changes() {
    let process = Process::start("", &[]).await;
    let schema = schema();
    let mut reader = Reader::new(&process, None).await;
    let first = reader.next().await;
    assert_eq!(first.name, "snapshot");
    assert_valid(&schema, "snapshot", &first.data);
    assert!(list(&first.data, "requests").is_empty() && list(&first.data, "tunnels").is_empty());

    assert!(process.serves("web.shop.localhost").await);
    let mut ids = vec![first.id];
    let mut running = None;
    let (mut is_done, mut is_counted) = (false, false);
    while running.is_none() || !is_done || !is_counted {
        let event = reader.change(|_| true).await;
        assert_valid(&schema, "change", &event.data);
        let tunnel = list(&event.data, "tunnels").iter().find(|tunnel| tunnel["state"] == "running").cloned();
        running = running.or(tunnel);
        is_done |= list(&event.data, "requests").iter().any(|row| row["status"] == 200);
        is_counted |= list(&event.data, "seconds").iter().any(|second| second["requests"] != 0);
        ids.push(event.id);
    }
    let mut unique = ids.clone();
    unique.dedup();
    assert_eq!(unique, ids, "each event has an id of its own");

    // A reader that reconnects resumes after its last event.
    drop(reader);
    assert!(process.serves("web.shop.localhost").await);
    let last = ids.last().unwrap();
    let mut resumed = Reader::new(&process, Some(last)).await;
    resumed.change(|change| list(change, "requests").iter().any(|row| row["path"] == "/whoami")).await;
    for unknown in ["", "x", "00000000-1", &last.replace('-', "x"), &format!("{last}99999")] {
        assert_eq!(Reader::new(&process, Some(unknown)).await.next().await.name, "snapshot", "{unknown:?}");
    }

    let id = running.unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(call(&process, "POST", &format!("tunnels/{}/stop", id.replace('/', "%2F"))).await.0, 204);
    resumed.change(|change| list(change, "closed").contains(&id.clone().into())).await;
}

#[tokio::test]
async fn nothing_is_said_while_nothing_happens() {
    let process = Process::start("", &[]).await;
    assert!(process.serves("web.shop.localhost").await);
    let mut reader = Reader::new(&process, None).await;
    assert_eq!(reader.next().await.name, "snapshot");
    // The last seconds and the end of the connection are still sent.
    let silent = async {
        let mut heard = Instant::now();
        while heard.elapsed() < Duration::from_secs(3) {
            if timeout(Duration::from_secs(3), reader.next()).await.is_ok() {
                heard = Instant::now();
            }
        }
    };
    timeout(PATIENCE, silent).await.expect("it falls silent");
}

#[tokio::test]
async fn a_reader_that_stalls_delays_nobody_and_gets_a_snapshot() {
    let process = Process::start("", &[]).await;
    let mut stalled = Reader::new(&process, None).await;
    assert_eq!(stalled.next().await.name, "snapshot");
    let mut reads = Reader::new(&process, None).await;
    assert_eq!(reads.next().await.name, "snapshot");
    let requests = tokio::spawn({
        let address = process.http;
        async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let (mut answers, until) = (vec![0; 64 * 1024], Instant::now() + Duration::from_secs(8));
            while Instant::now() < until {
                let path = "x".repeat(400);
                let request = format!("GET /{path} HTTP/1.1\r\nHost: no-name.example\r\n\r\n").repeat(20);
                stream.write_all(request.as_bytes()).await.unwrap();
                let _ = stream.read(&mut answers).await.unwrap();
                sleep(Duration::from_millis(5)).await;
            }
        }
    });
    // The other reader gets everything promptly, at most four times a second.
    let (mut events, until) = (0, Instant::now() + Duration::from_secs(6));
    while Instant::now() < until {
        assert_eq!(reads.next().await.name, "change");
        events += 1;
    }
    assert!((12..=26).contains(&events), "{events} events in 6 s");
    requests.await.unwrap();
    let mut names = Vec::new();
    for _ in 0..200 {
        names.push(stalled.next().await.name);
        if names.last().unwrap() == "snapshot" {
            break;
        }
    }
    assert_eq!(names.last().unwrap(), "snapshot", "{names:?}");
}

#[tokio::test]
async fn websockets_and_event_streams_are_rows_while_they_go_on() {
    let process = Process::start("", &[]).await;
    let mut stream = TcpStream::connect(process.http).await.unwrap();
    let request = "GET /ws HTTP/1.1\r\nHost: web.shop.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut first)).await.unwrap().unwrap();
    assert_eq!(&first, b"HTTP/1.1 101");
    let row = async || {
        let requests = get(&process, "requests").await;
        list(&requests, "requests").iter().find(|row| row["kind"] == "websocket").cloned().unwrap_or_default()
    };
    let open = row().await;
    assert!(open["took_ms"].is_null() && open["status"] == 101, "{open}");
    assert!(open["tunnel_ms"].as_f64() <= open["connected_ms"].as_f64(), "{open}");
    assert!(open["connected_ms"].as_f64() <= open["first_byte_ms"].as_f64(), "{open}");
    // Two texts, a ping, which is not a message, and the Close frame; all masked with zeros.
    stream
        .write_all(b"\x81\x81\0\0\0\0a\x01\x81\0\0\0\0b\x89\x80\0\0\0\0\x80\x81\0\0\0\0c\x88\x80\0\0\0\0")
        .await
        .unwrap();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("it is closed");
    drop(stream);
    eventually("its end is known", || async { row().await["took_ms"].is_number() }).await;
    let row = row().await;
    assert_eq!(row["messages_up"], 2, "{row}");
    assert!(row["messages"].as_u64() >= Some(2), "the pod echoes: {row}");
}

#[tokio::test]
async fn a_context_says_since_when_its_server_does_not_answer() {
    let process = Process::start("", &[]).await;
    let context = async || {
        let status = get(&process, "status").await;
        list(&status, "contexts").iter().find(|row| row["is_default"] == true).cloned().unwrap()
    };
    assert_eq!(context().await["is_used"], false);
    let visit = async |host: &str| {
        let mut stream = TcpStream::connect(process.http).await.unwrap();
        stream
            .write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer in time").unwrap();
        answer
    };
    assert!(visit("web.shop.localhost").await.starts_with("HTTP/1.1 200 "));
    let used = context().await;
    assert!(used["is_used"] == true && used["unreachable_since"].is_null(), "{used}");
    // No process listens there any more.
    let file = process.demo.kubeconfig();
    let kubeconfig = fs::read_to_string(&file).unwrap();
    let start = kubeconfig.find("https://").unwrap();
    let length = kubeconfig[start..].find(['\n', '"']).unwrap();
    fs::write(file, kubeconfig.replace(&kubeconfig[start..start + length], "https://127.0.0.1:1")).unwrap();
    let answer = visit("tools.shop.localhost").await;
    assert!(answer.contains("x-adit-error: unreachable"), "{answer}");
    let lost = context().await;
    assert!(lost["unreachable_since"].is_string(), "{lost}");
    let status = get(&process, "status").await;
    let said = list(&status, "attention").iter().find(|each| each["kind"] == "context").cloned().unwrap_or_default();
    assert!(said["title"].as_str().is_some_and(|title| title.ends_with("does not answer")), "{status}");
}

#[tokio::test]
async fn two_requests_for_one_local_port_at_a_time_get_the_same() {
    let process = Process::start("", &[]).await;
    let of_test = crate::support::ports::ports(2);
    let target = |port: &u16| format!("web.shop@{port}");
    // With a wait of zero, adit does not wait for the target, but still for the request before.
    let bodies = [
        serde_json::json!({"target": target(of_test.start()), "as": "port"}),
        serde_json::json!({"target": target(of_test.end()), "as": "port", "wait_ms": 0}),
    ];
    let open = |body: String, socket: PathBuf| async move {
        let head = format!(
            "POST /api/v1/open HTTP/1.1\r\nHost: adit\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = UnixStream::connect(socket).await.unwrap();
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    };
    for body in bodies {
        for answer in futures::future::join_all([(); 3].map(|()| open(body.to_string(), process.socket()))).await {
            assert!(answer.starts_with("HTTP/1.1 200"), "{body}: {answer}");
        }
    }
}
