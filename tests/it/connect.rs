//! The forward proxy by CONNECT and by requests in absolute form, and the file that configures browsers.

use std::process::Command;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{PATIENCE, TestApp};

/// Sends a CONNECT request, and returns the stream or the whole answer.
async fn connect(app: &TestApp, authority: &str, headers: &str) -> Result<TcpStream, String> {
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

/// `Basic` of `name:`.
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
        ("web.shop:80", user("demo-nobody"), 502, "forbidden"),
        ("tools.shop:7000", String::new(), 502, "refused"),
        ("broken.shop:80", String::new(), 503, "not-ready"),
        ("web.shop", String::new(), 400, "connect"),
        ("web.shop:0", String::new(), 400, "connect"),
        ("web.shop:80", "Content-Length: 5\r\n".to_owned(), 400, "connect"),
    ] {
        assert_eq!(refused(&app, authority, &headers).await, (status, code.to_owned()), "{authority} {headers}");
    }
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
    // A page that has rebound its name to our address sends the origin form, and reaches nothing.
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
    // It is not on every machine.
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
async fn three_hundred_connects_at_once_are_served() {
    let app = TestApp::start("").await;
    let all = (0..300).map(|_| async { connect(&app, "tools.shop:7000", "").await.map(drop).is_ok() });
    let served = futures::future::join_all(all).await.into_iter().filter(|is_served| *is_served).count();
    assert_eq!(served, 300);
    app.finish().await;
}
