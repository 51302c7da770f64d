//! The forward proxy with CONNECT and with requests in absolute form, and the PAC file.

use std::process::Command;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{PATIENCE, TestApp};

/// Sends a CONNECT request, and returns the stream, or the whole answer.
pub async fn connect(app: &TestApp, authority: &str, headers: &str) -> Result<TcpStream, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(app.http).await.unwrap();
        let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).await.unwrap() == 0 {
                break;
            }
            head.push(byte[0]);
        }
        let mut head = String::from_utf8(head).unwrap();
        if head.starts_with("HTTP/1.1 200 ") {
            return Ok(stream);
        }
        stream.read_to_string(&mut head).await.unwrap();
        Err(head)
    };
    timeout(PATIENCE, exchange).await.expect("an answer in time")
}

async fn refused(app: &TestApp, authority: &str, headers: &str) -> (u16, String) {
    let answer = connect(app, authority, headers).await.err().unwrap_or_else(|| panic!("{authority} is connected"));
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let code = answer.lines().find_map(|line| line.strip_prefix("x-adit-error: ")).unwrap_or_default();
    (status, code.to_owned())
}

async fn get(mut stream: TcpStream) -> String {
    stream.write_all(b"GET /whoami HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer in time").unwrap();
    answer
}

/// Returns the header with `Basic` of `name:`.
fn user(name: &str) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(format!("{name}:")))
}

#[tokio::test]
async fn connect_leads_to_names_of_the_cluster() {
    let app = TestApp::start("contexts: {d: {name: demo, namespace: shop}}\n").await;
    for (authority, headers) in [
        ("web.shop.svc.cluster.local:80", String::new()),
        ("WEB.shop:80", String::new()),
        ("web:80", String::new()),
        ("web.shop:80", user("demo")),
        ("web.shop:80", user("d")),
        ("web.shop.localhost:80", String::new()),
    ] {
        let stream = connect(&app, authority, &headers).await.unwrap_or_else(|answer| panic!("{authority}: {answer}"));
        assert!(get(stream).await.contains("200 OK"), "{authority}");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_client_that_does_not_wait_for_the_answer_loses_nothing() {
    let app = TestApp::start("").await;
    let mut stream = TcpStream::connect(app.http).await.unwrap();
    let sent = "CONNECT tools.shop:7000 HTTP/1.1\r\nHost: tools.shop:7000\r\n\r\nword";
    stream.write_all(sent.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut all)).await.expect("an end").unwrap();
    assert!(all.starts_with("HTTP/1.1 200 ") && all.ends_with("\r\n\r\nword"), "{all}");
    app.finish().await;
}

#[tokio::test]
async fn each_refusal_of_connect_has_its_status_and_code() {
    let app = TestApp::start("").await;
    app.demo.faults().refuse(7000, true);
    for (authority, headers, status, code) in [
        ("none.shop.svc.cluster.local:80", String::new(), 404, "not-found"),
        ("web.shop:81", String::new(), 404, "no-such-port"),
        ("web.shop:80", user("no-such-context"), 404, "unknown-context"),
        ("www.example.com:443", String::new(), 403, "elsewhere"),
        ("127.0.0.1:80", String::new(), 403, "elsewhere"),
        ("web.shop:80", user("demo-nobody"), 403, "forbidden"),
        ("tools.shop:7000", String::new(), 502, "refused"),
        ("broken.shop:80", String::new(), 503, "not-ready"),
        ("web.shop", String::new(), 400, "connect"),
        ("web.shop:0", String::new(), 400, "connect"),
        ("web.shop:80", "Content-Length: 5\r\n".to_owned(), 400, "connect"),
    ] {
        assert_eq!(refused(&app, authority, &headers).await, (status, code.to_owned()), "{authority} {headers}");
    }
    app.demo.faults().answer("/services/web", Some(500));
    assert_eq!(refused(&app, "web.shop:80", "").await.0, 502);
    app.demo.faults().answer("/services/web", None);
    app.demo.faults().delay("/services/tools", Some(10 * PATIENCE));
    assert_eq!(refused(&app, "tools.shop:8080", "").await, (504, "timeout".to_owned()));
    app.demo.faults().delay("/services/tools", None);
    app.finish().await;
}

#[tokio::test]
async fn hosts_of_other_networks_are_reached_only_where_that_is_allowed_and_never_near_ones() {
    let app = TestApp::start("proxy: {elsewhere: direct}\n").await;
    let whole = |host: &str, headers: &str| {
        format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n{headers}Connection: close\r\n\r\n")
    };
    let near = [
        "127.0.0.1:1".to_owned(),
        format!("127.0.0.1:{}", app.http.port()),
        "10.0.0.1:80".to_owned(),
        "192.168.1.1:80".to_owned(),
        "169.254.169.254:80".to_owned(),
        "[::1]:80".to_owned(),
        "[fd00::1]:80".to_owned(),
        "[::ffff:127.0.0.1]:80".to_owned(),
    ];
    for host in &near {
        assert_eq!(refused(&app, host, "").await, (403, "elsewhere".to_owned()), "{host}");
        // For other names of this machine, a browser gets adit's page.
        if !host.contains("127.") && host != "[::1]:80" {
            let (status, said) = app.request(&whole(host, "")).await;
            assert_eq!(status, 403, "{host}: {said}");
        }
    }
    // A public name that does not exist.
    assert_eq!(refused(&app, "nobody.of.invalid:443", "").await, (502, "direct".to_owned()));
    let (status, said) = app.request(&whole("nobody.of.invalid", "")).await;
    assert!(status == 502 && said.contains("its name is not known"), "{status} {said}");
    // A name that could be a Service.
    let (status, said) = app.request(&whole("nobody.invalid", "")).await;
    assert!(status == 502 && said.contains("cannot reach nobody.invalid:80"), "{status} {said}");
    // A page may send it what it likes, but not a Service.
    let post = |host: &str| {
        let head = format!("POST http://{host}/ HTTP/1.1\r\nHost: {host}\r\nOrigin: https://other.test\r\n");
        format!("{head}Content-Length: 0\r\nConnection: close\r\n\r\n")
    };
    let (status, said) = app.request(&post("nobody.invalid")).await;
    assert!(status == 502 && said.contains("cannot reach nobody.invalid:80"), "{status} {said}");
    let (status, said) = app.request(&post("web.shop")).await;
    assert!(status == 403 && said.contains("cross-origin request"), "{status} {said}");
    assert_eq!(app.request(&whole("none.shop.svc", "")).await.0, 404, "names of the cluster stay there");
    assert_eq!(app.request(&whole("web.shop", "")).await.0, 200);
    // With a context, the request is for the cluster only.
    assert_eq!(app.request(&whole("nobody.of.invalid", &user("demo"))).await.0, 403);
    app.finish().await;
}

#[tokio::test]
async fn a_context_that_only_reads_is_closed_to_connections_that_could_write() {
    let app = TestApp::start("contexts: {prod: {name: demo, methods: [GET]}}\n").await;
    for (authority, headers) in [("web.shop:80", String::new()), ("web.shop.localhost:80", user("prod"))] {
        assert_eq!(refused(&app, authority, &headers).await, (403, "read-only".to_owned()), "{authority}");
        let host = authority.split(':').next().unwrap();
        assert_eq!(crate::socks::connect(app.http, None, host, 80).await.err(), Some(2), "{host}");
    }
    let whole = |method: &str| {
        format!(
            "{method} http://web.shop/whoami HTTP/1.1\r\nHost: web.shop\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
    };
    assert_eq!((app.request(&whole("GET")).await.0, app.request(&whole("POST")).await.0), (200, 403));
    app.finish().await;
}

#[tokio::test]
async fn what_a_web_page_can_send_reaches_nothing() {
    let app = TestApp::start("").await;
    let (name, foreign) = ("web.shop.svc.cluster.local", "Origin: https://evil.example\r\nConnection: close\r\n");
    let upgrade = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let length = |body: &str| format!("Content-Length: {}\r\n", body.len());
    let connect = format!("CONNECT {name}:80 HTTP/1.1\r\nHost: {name}\r\n\r\n");
    let socks = "\x05\x01\x00\x05\x01\x00\x03\x08web.shop\x00\x50";
    let requests = [
        // A page with a name that was rebound to adit's address.
        format!("GET /whoami HTTP/1.1\r\nHost: {name}\r\n{foreign}\r\n"),
        format!(
            "GET /whoami HTTP/1.1\r\nHost: {name}\r\n{upgrade}Origin: https://evil.example\r\nConnection: upgrade, close\r\n\r\n"
        ),
        // A body that a lenient parser would read as another request.
        format!("POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n{foreign}{}\r\n{connect}", length(&connect)),
        format!("POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n{foreign}{}\r\n{socks}", length(socks)),
        format!("POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n{connect}"),
        format!("GET //{name}/whoami HTTP/1.1\r\nHost: 127.0.0.1\r\n{foreign}\r\n"),
        format!("GET http:{name}/ HTTP/1.1\r\nHost: 127.0.0.1\r\n{foreign}\r\n"),
    ];
    for request in &requests {
        let (_, said) = app.request(request).await;
        assert!(!said.contains("web-6d5f-"), "{request}: {said}");
    }
    assert_eq!(app.demo.faults().requests_seen("/services/web"), 0, "the cluster was not asked");
    app.finish().await;
}

#[tokio::test]
async fn a_proxy_with_an_address_of_its_own_is_there_and_nowhere_else() {
    let port = crate::support::ports::free_port();
    let app = TestApp::start(&format!("proxy: {{listen: '127.0.0.1:{port}'}}\n")).await;
    assert_eq!(refused(&app, "web.shop:80", "").await.0, 400);
    let whole = "GET http://web.shop/whoami HTTP/1.1\r\nHost: web.shop\r\nConnection: close\r\n\r\n";
    assert_eq!(app.request(whole).await.0, 404);
    let (_, script) = app.get("adit.localhost", "/proxy.pac").await;
    assert!(script.contains(&format!("PROXY 127.0.0.1:{port}")), "{script}");
    let own = ([127, 0, 0, 1], port).into();
    let mut stream = TcpStream::connect::<std::net::SocketAddr>(own).await.unwrap();
    stream.write_all(whole.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer in time").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(crate::socks::connect(own, None, "web.shop", 80).await.is_ok());
    app.finish().await;
}

#[tokio::test]
async fn a_closed_context_and_a_proxy_that_is_off_are_closed_to_every_way() {
    let whole = |host: &str| format!("GET http://{host}/whoami HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let app = TestApp::start("contexts: {d: {name: demo, dynamic: deny}}\n").await;
    for (authority, headers) in
        [("web.shop:80", String::new()), ("web.shop.svc:80", user("d")), ("web.shop.localhost:80", user("demo"))]
    {
        assert_eq!(refused(&app, authority, &headers).await, (403, "dynamic-denied".to_owned()), "{authority}");
    }
    assert_eq!(app.request(&whole("web.shop.svc.cluster.local")).await.0, 403);
    assert_eq!(app.demo.faults().requests_seen("/services/web"), 0, "the cluster was not asked");
    app.finish().await;
    let app = TestApp::start("proxy: off\n").await;
    assert_eq!(refused(&app, "web.shop:80", "").await.0, 400);
    assert_eq!(app.request(&whole("web.shop.svc.cluster.local")).await.0, 404);
    assert!(!app.get("127.0.0.1", "/proxy.pac").await.1.contains("FindProxyForURL"));
    app.finish().await;
}

#[tokio::test]
async fn the_context_that_a_client_names_holds_for_every_name_in_absolute_form() {
    let app = TestApp::start("").await;
    for host in ["web.shop.svc.cluster.local", "web.shop.localhost"] {
        for (context, wanted) in [("demo", 200), ("demo-nobody", 502), ("no-such-context", 404)] {
            let head = format!("GET http://{host}/whoami HTTP/1.1\r\nHost: {host}\r\n{}", user(context));
            let (status, said) = app.request(&format!("{head}Connection: close\r\n\r\n")).await;
            assert_eq!(status, wanted, "{host} {context}: {said}");
        }
    }
    app.finish().await;
}

#[tokio::test]
async fn requests_in_absolute_form_lead_to_names_of_the_cluster() {
    let app = TestApp::start("").await;
    let send = async |url: &str, headers: &str| {
        let host = url.split('/').nth(2).unwrap();
        app.request(&format!("GET {url} HTTP/1.1\r\nHost: {host}\r\n{headers}Connection: close\r\n\r\n")).await
    };
    for url in ["http://web.shop.svc.cluster.local/whoami", "http://web.shop/whoami", "http://web.shop:80/whoami"] {
        assert_eq!(send(url, "").await.0, 200, "{url}");
        assert_eq!(send(url, &user("demo")).await.0, 200, "{url}");
    }
    let (status, seen) = send("http://web.shop/headers", &user("demo")).await;
    assert!(status == 200 && !seen.to_lowercase().contains("proxy-authorization"), "{seen}");
    for (url, headers, status) in [
        ("http://none.shop.svc/", String::new(), 404),
        ("http://www.example.com/", String::new(), 403),
        ("http://web.shop/", user("demo-nobody"), 502),
        ("http://web.shop/", user("no-such-context"), 404),
    ] {
        assert_eq!(send(url, &headers).await.0, status, "{url}");
    }
    // A page with a rebound name sends the origin form, and reaches nothing.
    let page = app.get("web.shop.svc.cluster.local", "/whoami").await;
    assert_eq!(page.0, 404, "{}", page.1);
    let foreign = "Origin: https://evil.example\r\n";
    let post = format!(
        "POST http://web.shop/whoami HTTP/1.1\r\nHost: web.shop\r\n{foreign}Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(app.request(&post).await.0, 403, "the guard holds");
    app.finish().await;
}

#[tokio::test]
async fn the_file_for_browsers_leads_names_of_the_cluster_through_adit() {
    let app =
        TestApp::start("contexts: {d: {name: demo, namespace: tools}}\nproxy: {cluster_domain: prod.example}\n").await;
    let mut texts = Vec::new();
    for host in ["adit.localhost", "127.0.0.1", "localhost"] {
        let host = format!("{host}:{}", app.http.port());
        let (status, script) = app.get(&host, "/proxy.pac").await;
        assert_eq!(status, 200, "{host}");
        texts.push(script);
    }
    assert!(texts.iter().all(|text| *text == texts[0]));
    let calls = [
        ("web.shop.svc.cluster.local", false),
        ("web.shop.svc.prod.example", true),
        ("WEB.shop.svc", true),
        ("web.shop.svc.", true),
        ("web.shop", true),
        ("web.tools", true),
        ("example.com", false),
        ("svc", false),
        ("www.example.com", false),
        ("evil-svc", false),
        ("localhost", false),
    ];
    let hosts: Vec<&str> = calls.iter().map(|(host, _)| *host).collect();
    let program = format!(
        "{}\nconsole.log(JSON.stringify({}.map(h => FindProxyForURL('http://' + h, h))))",
        texts[0],
        serde_json::json!(hosts)
    );
    let run = tokio::task::spawn_blocking(move || Command::new("node").args(["-e", &program]).output()).await.unwrap();
    // Node is not on every machine.
    if let Ok(run) = run {
        let found: Vec<String> =
            serde_json::from_slice(&run.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&run.stderr)));
        let through = format!("PROXY 127.0.0.1:{}", app.http.port());
        for ((host, is_ours), found) in calls.iter().zip(found) {
            assert_eq!(found, if *is_ours { through.as_str() } else { "DIRECT" }, "{host}");
        }
    }
    app.finish().await;
}

#[tokio::test]
async fn curl_uses_it_as_an_http_proxy() {
    let app = TestApp::start("").await;
    let proxy = format!("http://demo:@{}", app.http);
    for (arguments, host) in [
        (vec!["-p"], "web.shop.svc.cluster.local"),
        (vec![], "web.shop.svc.cluster.local"),
        (vec!["-k"], "tools.shop.svc"),
    ] {
        let mut command = Command::new("curl");
        let scheme = if arguments == ["-k"] { "https" } else { "http" };
        command.args(["-sS", "--max-time", "20", "--noproxy", "", "--proxy", &proxy]).args(&arguments);
        command.arg(format!("{scheme}://{host}/whoami"));
        let Ok(answer) = tokio::task::spawn_blocking(move || command.output()).await.unwrap() else { return };
        assert!(answer.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&answer.stderr));
    }
    app.finish().await;
}

#[tokio::test]
async fn a_thousand_connects_in_parallel_are_served() {
    adit::cli::up::raise_open_file_limit();
    let app = TestApp::start("").await;
    // All are open at the same time: each sends only after the last one has connected.
    let all = (0..1_000).map(|_| connect(&app, "tools.shop:7000", ""));
    let open: Vec<TcpStream> = futures::future::join_all(all).await.into_iter().flatten().collect();
    assert_eq!(open.len(), 1_000);
    let all = open.into_iter().enumerate().map(|(number, mut stream)| async move {
        let word = format!("word {number}");
        stream.write_all(word.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = String::new();
        timeout(2 * PATIENCE, stream.read_to_string(&mut back)).await.expect("an end").unwrap();
        back == word
    });
    let right = futures::future::join_all(all).await.into_iter().filter(|is_right| *is_right).count();
    assert_eq!(right, 1_000);
    app.finish().await;
}
