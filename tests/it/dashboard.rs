//! The dashboard of the running binary: who can sign in, and that nobody else can read or change anything.

use std::{fs, os::unix::fs::PermissionsExt, process::Command as StdCommand, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    process::Process,
    support::{PATIENCE, eventually, schema::assert_valid},
};

/// The answer to a request.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

/// Sends a request with these lines in its head.
pub async fn send(process: &Process, line: &str, host: &str, lines: &[&str], body: &str) -> Answer {
    let exchange = async {
        let mut stream = TcpStream::connect(process.http).await.unwrap();
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let length = body.len();
        let head =
            format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n{lines}\r\n");
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    let answer = timeout(PATIENCE, exchange).await.expect("an answer in time");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let body = match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        true => body.split("\r\n").skip(1).step_by(2).collect(),
        false => body.to_owned(),
    };
    Answer { status: head[9..12].parse().unwrap(), head: head.to_owned(), body }
}

/// A signed-in browser.
pub struct Visit<'p> {
    pub process: &'p Process,
    pub host: String,
    pub cookie: String,
}

impl<'p> Visit<'p> {
    pub async fn new(process: &'p Process) -> Self {
        let host = format!("adit.localhost:{}", process.http.port());
        let code = code(process).await;
        let answer = send(process, &format!("GET /in?code={code}"), &host, &[], "").await;
        assert_eq!((answer.status, answer.header("location")), (303, Some("/")), "{}", answer.head);
        let cookie = answer.header("set-cookie").expect("a cookie").to_owned();
        let name = format!("adit-{}=", process.http.port());
        assert!(cookie.starts_with(&name) && cookie.ends_with("; HttpOnly; SameSite=Strict; Path=/"), "{cookie}");
        Self { process, host, cookie: cookie.split(';').next().unwrap().to_owned() }
    }

    pub async fn get(&self, path: &str) -> Answer {
        let cookie = format!("Cookie: {}", self.cookie);
        send(self.process, &format!("GET {path}"), &self.host, &[&cookie, "Accept: text/html"], "").await
    }

    /// Sends a change as the page does.
    pub async fn post(&self, path: &str, body: &str) -> Answer {
        let lines = self.lines();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        send(self.process, &format!("POST {path}"), &self.host, &lines, body).await
    }

    fn lines(&self) -> Vec<String> {
        vec![
            format!("Cookie: {}", self.cookie),
            format!("Origin: http://{}", self.host),
            "Sec-Fetch-Site: same-origin".to_owned(),
            "Content-Type: application/json".to_owned(),
            "X-Adit: 1".to_owned(),
        ]
    }
}

/// Returns a code in the same way as `adit ui`.
async fn code(process: &Process) -> String {
    let (is_ok, link, error) = process.command(&["ui", "--print"]).await;
    assert!(is_ok, "{error}");
    let start = format!("http://adit.localhost:{}/in?code=", process.http.port());
    link.trim().strip_prefix(&start).unwrap_or_else(|| panic!("{link}")).to_owned()
}

#[tokio::test]
async fn a_code_is_a_sign_in_once_and_nothing_is_shown_without() {
    let process = Process::start("", &[]).await;
    assert!(process.serves("web.shop.localhost").await);
    let visit = Visit::new(&process).await;
    let now = visit.get("/").await;
    assert!(now.status == 200 && now.body.contains("demo/shop/web"), "{}", now.body);
    let services = visit.get("/services").await;
    assert!(services.body.contains("<th scope=\"row\">shop/web</th>"), "{}", services.body);
    assert!(services.body.contains(&format!("http://web.shop.localhost:{}/", process.http.port())));
    assert_eq!(visit.get("/tunnel/demo%2Fshop%2Fweb").await.status, 200);
    assert_eq!(visit.get("/nothing").await.status, 404);

    let used = code(&process).await;
    for (code, status) in [(used.as_str(), 303), (used.as_str(), 403), ("", 403), ("x", 403)] {
        let answer = send(&process, &format!("GET /in?code={code}"), &visit.host, &[], "").await;
        assert_eq!((answer.status, answer.header("set-cookie").is_some()), (status, status == 303), "{code}");
    }
    let kept = code(&process).await;
    assert_eq!(send(&process, &format!("HEAD /in?code={kept}"), &visit.host, &[], "").await.status, 403);
    assert_eq!(send(&process, &format!("GET /in?code={kept}"), &visit.host, &[], "").await.status, 303);

    let other = format!("Cookie: adit-{}={}", process.http.port(), "0".repeat(32));
    for lines in [&["Accept: text/html"][..], &["Accept: text/html", &other]] {
        for path in ["/", "/services", "/requests", "/log", "/tunnel/demo%2Fshop%2Fweb"] {
            let page = send(&process, &format!("GET {path}"), &visit.host, lines, "").await;
            assert!(page.status == 200 && page.body.contains("adit ui"), "{path}: {}", page.body);
            let told = ["shop", "demo", "Services</a>", env!("CARGO_PKG_VERSION"), "app.js"];
            assert!(!told.iter().any(|word| page.body.contains(word)), "{path}: {}", page.body);
        }
    }
    let text = send(&process, "GET /", &visit.host, &[], "").await;
    assert!(text.body.starts_with("adit is running") && !text.body.contains("shop"), "{}", text.body);
    // A link on another site comes without the cookie, so the page reloads itself.
    let from = async |site: &str| send(&process, "GET /", &visit.host, &["Accept: text/html", site], "").await;
    assert!(from("Sec-Fetch-Site: cross-site").await.body.contains("http-equiv=\"refresh\""));
    assert!(!from("Sec-Fetch-Site: same-origin").await.body.contains("http-equiv=\"refresh\""));

    let token = process.socket().with_extension("token");
    assert_eq!(fs::metadata(&token).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(visit.cookie.ends_with(&fs::read_to_string(&token).unwrap()));
}

#[tokio::test]
async fn data_is_only_for_our_own_names_and_our_own_page() {
    let process = Process::start("", &[]).await;
    assert!(process.serves("web.shop.localhost").await);
    let visit = Visit::new(&process).await;
    let (port, cookie) = (process.http.port(), format!("Cookie: {}", visit.cookie));
    let get = async |host: &str, lines: &[&str]| {
        let lines: Vec<&str> = lines.iter().copied().chain([cookie.as_str()]).collect();
        send(&process, "GET /api/v1/tunnels", host, &lines, "").await
    };
    for host in ["adit.localhost", "localhost"] {
        for host in [host.to_owned(), format!("{host}:{port}"), format!("{host}:1")] {
            let answer = get(&host, &[]).await;
            assert!(answer.status == 200 && answer.body.contains("demo/shop/web"), "{host}: {}", answer.body);
        }
    }
    for host in [
        "evil.example",
        "evil.localhost",
        "web.shop.localhost",
        "adit.localhost.evil.example",
        "xadit.localhost",
        "x.adit.localhost",
        "adit.localhost.",
        "localhost.",
        "127.0.0.1",
        "[::1]",
        "adit.localhost:x",
        "adit.localhost@evil.example",
    ] {
        for host in [host.to_owned(), format!("{host}:{port}")] {
            let answer = get(&host, &[]).await;
            assert!(!answer.body.contains("demo/shop/web"), "{host}: {}", answer.body);
        }
    }
    for line in [
        "Origin: http://evil.localhost",
        "Origin: http://web.shop.localhost",
        "Origin: http://localhost",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
        "Sec-Fetch-Site: none",
    ] {
        let answer = get(&visit.host, &[line]).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (403, &"other-page".into()), "{line}");
    }
    let without = send(&process, "GET /api/v1/tunnels", &visit.host, &[], "").await;
    assert_eq!((without.status, &without.json()["error"]["code"]), (403, &"not-signed-in".into()));

    for path in ["/", "/app.css", "/app.js", "/in", "/nothing", "/api/v1/status", "/api/v1/nothing"] {
        let answer = visit.get(path).await;
        let is = |name: &str, value: &str| assert_eq!(answer.header(name), Some(value), "{path}: {}", answer.head);
        is("x-content-type-options", "nosniff");
        is("referrer-policy", "no-referrer");
        is("cross-origin-resource-policy", "same-origin");
        is("cross-origin-opener-policy", "same-origin");
        is("cache-control", if path.starts_with("/app.") { "no-cache" } else { "no-store" });
        let policy = answer.header("content-security-policy").expect(path);
        for word in [
            "default-src 'none'",
            "script-src 'self'",
            "frame-ancestors 'none'",
            "form-action 'none'",
            "base-uri 'none'",
        ] {
            assert!(policy.contains(word), "{path}: {policy}");
        }
        assert!(answer.header("access-control-allow-origin").is_none(), "{path}");
    }
}

#[tokio::test]
async fn a_change_needs_every_proof() {
    let process = Process::start("", &[]).await;
    assert!(process.serves("web.shop.localhost").await);
    let visit = Visit::new(&process).await;
    let stop = "/api/v1/tunnels/demo%2Fshop%2Fweb/stop";
    let lines = visit.lines();
    for left_out in [0, 1, 3, 4] {
        let some: Vec<&str> =
            lines.iter().enumerate().filter(|(at, _)| *at != left_out).map(|(_, line)| line.as_str()).collect();
        let answer = send(&process, &format!("POST {stop}"), &visit.host, &some, "{}").await;
        assert_eq!(answer.status, 403, "without {}", lines[left_out]);
    }
    let form =
        lines.iter().map(|line| if line.starts_with("Content-Type") { "Content-Type: text/plain" } else { line });
    let form: Vec<&str> = form.collect();
    assert_eq!(send(&process, &format!("POST {stop}"), &visit.host, &form, "{}").await.status, 403);
    let evil =
        lines.iter().map(|line| if line.starts_with("Origin") { "Origin: http://web.shop.localhost" } else { line });
    let evil: Vec<&str> = evil.collect();
    assert_eq!(send(&process, &format!("POST {stop}"), &visit.host, &evil, "{}").await.status, 403);
    // The dashboard does not serve the parts of the API that its page does not use.
    for path in ["/api/v1/open", "/api/v1/ui"] {
        assert_eq!(visit.post(path, "{\"target\": \"web.shop\"}").await.status, 404, "{path}");
    }
    assert_eq!(send(&process, "POST /", &visit.host, &[], "").await.status, 405);
    let upgrade = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    assert_ne!(send(&process, "GET /api/v1/events", &visit.host, &upgrade, "").await.status, 101);
    assert!(process.status().await.contains("demo/shop/web"), "nothing was stopped");

    assert_eq!(visit.post(stop, "{}").await.status, 204);
    eventually("it is stopped", || async { process.status().await.contains("no tunnels") }).await;
}

#[tokio::test]
async fn two_adits_side_by_side_keep_both_sign_ins() {
    let (first, second) = (Process::start("", &[]).await, Process::start("", &[]).await);
    let (one, two) = (Visit::new(&first).await, Visit::new(&second).await);
    let both = format!("Cookie: {}; {}", one.cookie, two.cookie);
    for visit in [&one, &two] {
        assert_eq!(send(visit.process, "GET /api/v1/status", &visit.host, &[&both], "").await.status, 200);
    }
    let swapped =
        format!("Cookie: {}", one.cookie.replace(&first.http.port().to_string(), &second.http.port().to_string()));
    assert_eq!(send(&second, "GET /api/v1/status", &two.host, &[&swapped], "").await.status, 403);
}

#[tokio::test]
async fn over_https_the_cookie_stays_there() {
    let process = Process::start("", &[]).await;
    let (port, code) = (process.http.port(), code(&process).await);
    let curl = format!("curl -sk -i --max-time 20 --resolve adit.localhost:{port}:127.0.0.1");
    let (is_ok, answer) = process.shell(&format!("{curl} 'https://adit.localhost:{port}/in?code={code}'")).await;
    let cookie =
        answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap_or_else(|| panic!("{answer}"));
    assert!(is_ok && cookie.trim().ends_with("; SameSite=Strict; Path=/; Secure"), "{answer}");
    let cookie = cookie.split(';').next().unwrap();
    let ask = async |origin: &str| {
        let ask =
            format!("{curl} -H 'Cookie: {cookie}' -H 'Origin: {origin}' https://adit.localhost:{port}/api/v1/status");
        process.shell(&ask).await.1
    };
    assert!(ask(&format!("https://adit.localhost:{port}")).await.contains("\"version\""));
    assert!(ask(&format!("http://adit.localhost:{port}")).await.contains("other-page"));
}

#[tokio::test]
async fn the_dashboard_can_be_off_and_its_name_is_reserved() {
    let process = Process::start("dashboard: off\n", &[]).await;
    let page = process.get(process.http, "adit.localhost").await.unwrap();
    assert!(page.starts_with("HTTP/1.1 404"), "{page}");
    let (is_ok, _, error) = process.command(&["ui", "--print"]).await;
    assert!(!is_ok && error.contains("the dashboard is off"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let check = |config: &str| {
        fs::write(&file, config).unwrap();
        let output =
            StdCommand::new(env!("CARGO_BIN_EXE_adit")).args(["check", "--config"]).arg(&file).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let route = "http: {k8s: {routes: {Adit.localhost: {namespace: shop, service: web}}}}\n";
    let said = check(route);
    assert!(said.contains("adit.localhost is the name of the dashboard") && said.contains("dashboard: off"), "{said}");
    assert!(!check(&format!("dashboard: off\n{route}")).contains("is the name of the dashboard"));
    assert!(check("dashboard: perhaps\n").contains("expected on or off"));
}

#[tokio::test]
async fn a_wildcard_leaves_the_dashboard_its_name() {
    let config = "http: {k8s: {routes: {'*.localhost': {namespace: shop, service: web}}}}\n";
    let process = Process::start(config, &[]).await;
    assert_eq!(Visit::new(&process).await.get("/services").await.status, 200);
    assert!(process.serves("any.localhost").await);
}

#[tokio::test]
async fn what_was_wanted_in_vain_needs_attention() {
    let process = Process::start("", &[]).await;
    let visit = Visit::new(&process).await;
    assert!(!process.serves("broken.shop.localhost").await && !process.serves("nothing.shop.localhost").await);
    let status = visit.get("/api/v1/status").await.json();
    let schema = StdCommand::new(env!("CARGO_BIN_EXE_adit")).args(["schema", "--api"]).output().unwrap();
    assert_valid(&serde_json::from_slice(&schema.stdout).unwrap(), "status", &status);
    let found = |key: &str, value: &str| {
        let all = status["attention"].as_array().unwrap();
        all.iter().find(|one| one[key] == value).cloned().unwrap_or_else(|| panic!("no {value} in {status}"))
    };
    // A shell in which the command is pasted may mean another kubeconfig.
    let doctor = format!("adit doctor --kubeconfig {}", process.demo.kubeconfig().display());
    assert_eq!(found("kind", "not-ready")["command"], format!("{doctor} broken.shop.localhost"));
    let failed = found("tunnel", "demo/shop/nothing");
    assert_eq!((&failed["kind"], &failed["command"]), (&"tunnel".into(), &format!("{doctor} nothing.shop").into()));
    assert!(failed["hint"].is_string(), "{failed}");
    assert!(visit.get("/").await.body.contains(&format!("{doctor} nothing.shop")));
}

/// Waits for a row of this path for which `is` holds.
async fn row_that(visit: &Visit<'_>, path: &str, is: impl Fn(&Value) -> bool) -> Value {
    let found = async {
        loop {
            let requests = visit.get("/api/v1/requests").await.json();
            let rows = requests["requests"].as_array().expect("rows").iter();
            if let Some(row) = rows.clone().find(|row| row["path"] == path && is(row)) {
                return row.clone();
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no such row of {path}"))
}

#[tokio::test]
async fn a_request_that_hangs_is_a_row_while_it_runs() {
    let process = Process::start("", &[]).await;
    let visit = Visit::new(&process).await;
    let mut stream = TcpStream::connect(process.http).await.unwrap();
    let head = "POST /upload HTTP/1.1\r\nHost: web.shop.localhost\r\nConnection: close\r\nContent-Length: 3\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let running = row_that(&visit, "/upload", |_| true).await;
    assert_eq!((&running["status"], &running["took_ms"]), (&Value::Null, &Value::Null));
    assert_eq!(running["tunnel"], "demo/shop/web");
    stream.write_all(b"abc").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let ended = row_that(&visit, "/upload", |row| !row["took_ms"].is_null()).await;
    assert_eq!((&ended["id"], &ended["status"]), (&running["id"], &200.into()), "it is the same row: {answer}");

    // One whose client leaves ends too.
    let mut stream = TcpStream::connect(process.http).await.unwrap();
    stream.write_all(head.replace("/upload", "/upload?2").replace("POST", "PUT").as_bytes()).await.unwrap();
    let second = row_that(&visit, "/upload", |row| row["method"] == "PUT").await;
    drop(stream);
    let left = row_that(&visit, "/upload", |row| row["method"] == "PUT" && !row["took_ms"].is_null()).await;
    assert_eq!(left["id"], second["id"]);
    let tunnel = visit.get("/api/v1/tunnels/demo%2Fshop%2Fweb").await.json();
    assert_eq!(tunnel["tunnel"]["requests"], 2, "each counts once");
    assert_eq!(tunnel["per_second"].as_array().unwrap().len(), 300);
}

#[tokio::test]
async fn a_download_is_a_row_while_it_runs() {
    let process = Process::start("", &[]).await;
    let visit = Visit::new(&process).await;
    let mut stream = TcpStream::connect(process.http).await.unwrap();
    let head = "GET /download?bytes=1099511627776 HTTP/1.1\r\nHost: web.shop.localhost\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let reading = async {
        let mut buffer = vec![0; 65536];
        while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    };
    let running = async {
        let first = row_that(&visit, "/download", |_| true).await;
        row_that(&visit, "/download", |row| row["bytes_down"].as_u64() > first["bytes_down"].as_u64()).await
    };
    let running = tokio::select! {
        row = running => row,
        () = reading => panic!("it has ended"),
    };
    assert_eq!((&running["status"], &running["took_ms"]), (&200.into(), &Value::Null));
}

#[tokio::test]
async fn services_say_how_they_are_reached() {
    let port = crate::support::ports::free_port();
    let route = format!("{port}: {{namespace: data, service: postgres, port: postgres}}");
    let process = Process::start(&format!("tcp: {{k8s: {{routes: {{{route}}}}}}}\n"), &[]).await;
    let visit = Visit::new(&process).await;
    let services = visit.get("/api/v1/services?pods=1").await.json();
    let row = |name: &str, port: &str| {
        let is =
            |row: &&Value| row["name"] == name && row["port"].as_str().is_some_and(|found| found.starts_with(port));
        services["services"]
            .as_array()
            .unwrap()
            .iter()
            .find(is)
            .cloned()
            .unwrap_or_else(|| panic!("{name} in {services}"))
    };
    let web = row("shop/web", "80");
    assert_eq!((&web["ready"], &web["pods"], &web["tunnel"]), (&2.into(), &2.into(), &"demo/shop/web".into()));
    assert_eq!(row("shop/broken", "80")["ready"], 0);
    let queue = row("shop/queue", "5672");
    assert!(queue["command"].is_null() && queue["missing_route"].as_str().unwrap().lines().count() == 4, "{queue}");
    assert!(row("data/postgres", "5432")["command"].as_str().unwrap().starts_with("psql "), "{services}");
    let route = services["services"].as_array().unwrap().iter().find(|row| row["from"] == "tcp").unwrap();
    assert!(route["command"].as_str().unwrap().starts_with("psql "), "its port has a name: {route}");

    assert!(process.serves("web.shop.localhost").await);
    let tunnel = visit.get("/api/v1/tunnels/demo%2Fshop%2Fweb").await.json();
    assert_eq!(tunnel["names"][0], format!("http://web.shop.localhost:{}/", process.http.port()));
    let command = tunnel["kubectl"].as_str().unwrap();
    assert!(
        command.starts_with("kubectl --kubeconfig ")
            && command.ends_with(" --context demo -n shop port-forward svc/web :80"),
        "{command}"
    );
    assert_eq!((&tunnel["tunnel"]["recent_requests"], &tunnel["tunnel"]["context"]), (&1.into(), &"demo".into()));
}

/// Returns the newest row with this path.
async fn row(visit: &Visit<'_>, path: &str) -> Value {
    let find = async {
        loop {
            let requests = visit.get("/api/v1/requests").await.json();
            let rows = requests["requests"].as_array().expect("rows").clone();
            match rows.into_iter().find(|row| row["path"] == path) {
                Some(found) => break found,
                None => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let found = timeout(PATIENCE, find).await.unwrap_or_else(|_| panic!("no row of {path}"));
    visit.get(&format!("/api/v1/requests/{}", found["id"])).await.json()
}

#[tokio::test]
async fn a_request_is_sent_again_with_what_nobody_is_shown() {
    let process = Process::start("", &[]).await;
    let visit = Visit::new(&process).await;
    let secret = ["Authorization: Bearer s3cret-1", "Cookie: sid=s3cret-2", "X-Note: plain"];
    let path = "/headers?access_token=s3cret-3&a=b";
    let first = send(&process, &format!("GET {path}"), "web.shop.localhost", &secret, "").await;
    assert!(first.status == 200 && first.body.contains("s3cret-1"), "{}", first.body);

    let detail = row(&visit, "/headers").await;
    let schema = StdCommand::new(env!("CARGO_BIN_EXE_adit")).args(["schema", "--api"]).output().unwrap();
    assert_valid(&serde_json::from_slice(&schema.stdout).unwrap(), "request", &detail);
    let kept = &detail["exchange"];
    assert!(kept["no_replay"].is_null() && kept["target"] == "/headers?access_token=(hidden, 8 bytes)&a=b", "{kept}");
    let header = |name: &str| {
        let pairs = kept["request_headers"].as_array().unwrap();
        pairs.iter().find(|pair| pair[0] == name).map(|pair| pair[1].clone()).unwrap_or_default()
    };
    assert_eq!((header("authorization"), header("x-note")), ("(hidden, 15 bytes)".into(), "plain".into()));
    assert!(kept["curl"].as_str().unwrap().contains("'authorization: (hidden, 15 bytes)'"), "{kept}");

    let id = detail["id"].clone();
    visit.post("/api/v1/record", "{\"route\": \"web.shop.localhost\", \"minutes\": 10}").await;
    let again = visit.post(&format!("/api/v1/requests/{id}/replay"), "{}").await;
    let replayed = again.json();
    assert_eq!((again.status, &replayed["replay_of"], &replayed["status"]), (200, &id, &200.into()), "{}", again.body);
    // The pod has received the secrets, and its response, which is recorded, shows them.
    let body = replayed["exchange"]["response_body"]["text"].as_str().unwrap().to_owned();
    assert!(body.contains("Bearer s3cret-1") && body.contains("sid=s3cret-2"), "{body}");
    let edits =
        r#"{"target": "/whoami?x=1", "headers": [["authorization", "(hidden, 15 bytes)"], ["x-note", "edited"]]}"#;
    let edited = visit.post(&format!("/api/v1/requests/{id}/replay"), edits).await.json();
    assert_eq!((&edited["path"], &edited["replay_of"]), (&"/whoami".into(), &id), "{edited}");

    visit.post("/api/v1/record", "{\"route\": \"web.shop.localhost\", \"minutes\": 0}").await;
    let fourth = send(&process, "GET /headers?token=s3cret-4", "web.shop.localhost", &secret, "").await;
    assert_eq!(fourth.status, 200);
    let mut shown = String::new();
    for path in ["requests", "log", "status", "config", &format!("requests/{id}/har"), &format!("requests/{id}")] {
        shown += &visit.get(&format!("/api/v1/{path}")).await.body;
    }
    shown += &process.log();
    assert!(!shown.contains("s3cret"), "{shown}");
    let har = visit.get(&format!("/api/v1/requests/{id}/har")).await;
    let disposition = har.header("content-disposition").unwrap();
    assert_eq!(disposition, format!("attachment; filename=\"adit-{id}.har\""));
    assert_eq!(har.json()["log"]["entries"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_body_is_sent_again_as_the_same_bytes_where_it_was_recorded() {
    let process = Process::start("", &[]).await;
    let visit = Visit::new(&process).await;
    let body = "{\"a\": \"\u{e4}\\u0000\"}";
    let post =
        async || send(&process, "POST /upload", "web.shop.localhost", &["Content-Type: application/json"], body).await;
    post().await;
    let unrecorded = row(&visit, "/upload").await;
    assert!(unrecorded["exchange"]["no_replay"].as_str().unwrap().contains("not recorded"), "{unrecorded}");
    let id = unrecorded["id"].clone();
    let refused = visit.post(&format!("/api/v1/requests/{id}/replay"), "{}").await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (409, &"no-replay".into()));

    assert_eq!(visit.post("/api/v1/record", "{\"route\": \"web.shop.localhost\", \"minutes\": 10}").await.status, 204);
    let echoed = post().await;
    let recorded = row(&visit, "/upload").await;
    let kept = &recorded["exchange"];
    assert!(kept["recording_seconds"].as_u64().unwrap() > 500, "{kept}");
    assert_eq!((&kept["request_body"]["text"], &kept["request_body"]["is_whole"]), (&body.into(), &true.into()));
    assert_eq!(kept["response_body"]["text"], echoed.body.as_str());
    let again = visit.post(&format!("/api/v1/requests/{}/replay", recorded["id"]), "{}").await.json();
    assert_eq!(again["exchange"]["request_body"]["text"], body, "{again}");
    assert_eq!(again["exchange"]["response_body"]["text"], echoed.body.as_str(), "{again}");
}

#[tokio::test]
async fn an_edited_request_keeps_its_secrets_apart_and_names_that_share_a_tunnel_are_no_move() {
    let process =
        Process::start("http: {k8s: {routes: {w.localhost: {namespace: shop, service: web, port: 80}}}}\n", &[]).await;
    let visit = Visit::new(&process).await;
    assert!(process.serves("web.shop.localhost").await);
    let cookies = ["Cookie: a=1", "Cookie: b=2"];
    send(&process, "GET /headers?x=1&token=ab", "w.localhost", &cookies, "").await;
    let kept = row(&visit, "/headers").await;
    let headers =
        kept["exchange"]["request_headers"].as_array().unwrap().iter().filter(|header| header[0] != "connection");
    let headers = headers.cloned().collect::<Vec<_>>();
    let edits = json!({"target": "/headers?x=2&token=(hidden, 2 bytes)", "headers": headers});
    assert_eq!(visit.post("/api/v1/record", "{\"route\": \"w.localhost\", \"minutes\": 10}").await.status, 204);
    let again = visit.post(&format!("/api/v1/requests/{}/replay", kept["id"]), &edits.to_string()).await.json();
    let seen = again["exchange"]["response_body"]["text"].as_str().unwrap_or_else(|| panic!("{again}"));
    assert!(seen.contains("a=1") && seen.contains("b=2"), "{seen}");
    assert_eq!(again["exchange"]["target"], "/headers?x=2&token=(hidden, 2 bytes)");
}

#[tokio::test]
async fn an_upload_that_broke_off_is_no_body_to_send_again() {
    let process = Process::start("", &[]).await;
    let visit = Visit::new(&process).await;
    assert_eq!(visit.post("/api/v1/record", "{\"route\": \"web.shop.localhost\", \"minutes\": 10}").await.status, 204);
    let mut client = TcpStream::connect(process.http).await.unwrap();
    client
        .write_all(b"POST /upload HTTP/1.1\r\nHost: web.shop.localhost\r\nContent-Length: 9\r\n\r\nabc")
        .await
        .unwrap();
    sleep(Duration::from_millis(300)).await;
    drop(client);
    let broken = row(&visit, "/upload").await;
    assert!(broken["exchange"]["no_replay"].as_str().unwrap().contains("not all of it"), "{broken}");
    send(&process, "POST /whoami", "web.shop.localhost", &[], "12345").await;
    let whole = row(&visit, "/whoami").await;
    assert_eq!((&whole["bytes_up"], &whole["exchange"]["no_replay"]), (&5.into(), &Value::Null), "{whole}");
}

#[tokio::test]
async fn a_change_is_made_by_post_alone() {
    let process = Process::start("", &[]).await;
    let visit = Visit::new(&process).await;
    for (path, allowed) in [("/api/v1/tunnels/x/stop", "POST"), ("/api/v1/record", "POST")] {
        let answer = visit.get(path).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allowed)), "{path}");
    }
}

#[tokio::test]
async fn a_replay_goes_nowhere_else() {
    let process = Process::start("http: {k8s: {routes: {w.localhost: {namespace: shop, service: web}}}}\n", &[]).await;
    let visit = Visit::new(&process).await;
    assert!(process.serves("w.localhost").await && process.serves("web.shop.localhost").await);
    let rows = visit.get("/api/v1/requests").await.json();
    let id_of = |host: &str| {
        let rows = rows["requests"].as_array().unwrap();
        rows.iter().find(|row| row["host"] == host).expect("its row")["id"].clone()
    };
    let replay = async |id: Value, edits: &str| visit.post(&format!("/api/v1/requests/{id}/replay"), edits).await;
    for edits in [
        r#"{"target": "http://evil.example/"}"#,
        r#"{"target": "//"}"#,
        r#"{"method": "CONNECT"}"#,
        r#"{"method": "a b"}"#,
        r#"{"headers": [["upgrade", "websocket"]]}"#,
        r#"{"headers": [["x", "a\nb"]]}"#,
    ] {
        let answer = replay(id_of("w.localhost"), edits).await;
        // `//` is a valid path, so this edit is not refused.
        let is_path = edits.contains("\"//\"");
        assert!(answer.status == 409 || is_path, "{edits}: {}", answer.body);
    }
    assert_eq!(replay(id_of("w.localhost"), "{\"host\": \"x\"}").await.status, 400);
    let other_host = replay(id_of("w.localhost"), r#"{"headers": [["host", "evil.example"]]}"#).await.json();
    assert_eq!(other_host["host"], "w.localhost", "{other_host}");

    fs::write(
        process.config(),
        "contexts: {c: {name: demo, dynamic: deny}}\nhttp: {k8s: {routes: {w.localhost: {namespace: shop, service: tools, port: 80}}}}\n",
    )
    .unwrap();
    process.logs("config reloaded").await;
    let moved = replay(id_of("w.localhost"), "{}").await.json();
    assert_eq!((&moved["status"], &moved["error"]), (&409.into(), &"moved".into()), "{moved}");
    let denied = replay(id_of("web.shop.localhost"), "{}").await.json();
    assert_eq!((&denied["status"], &denied["error"]), (&403.into(), &"dynamic-denied".into()), "{denied}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn another_user_of_the_machine_is_refused() {
    // Only root can become another user.
    if !rustix::process::getuid().is_root() {
        return;
    }
    let process = Process::start("", &[]).await;
    let (host, url) = (format!("Host: adit.localhost:{}", process.http.port()), format!("http://{}/", process.http));
    let status = async |user: &str| {
        let mut command = tokio::process::Command::new("setpriv");
        command.args(["--reuid", user, "--clear-groups", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"]);
        let answered = command.args(["-m", "20", "-H", &host, &url]).output().await.expect("setpriv and curl run");
        String::from_utf8(answered.stdout).unwrap()
    };
    assert_ne!(status("0").await, "403");
    assert_eq!(status("4242").await, "403");
}
