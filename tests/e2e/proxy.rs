//! The forward proxy in front of a real cluster: its names and addresses, from programs that know a proxy.

use std::process::{Command, Output};

use serde_json::json;

use crate::{
    chromium::Chromium,
    support::{Adit, NAMESPACE, kubectl, ready_pods, run, succeed},
};

fn curl(adit: &Adit, way: &str, url: &str) -> Output {
    let address = adit.address();
    let (proxy, tunnel) = match way {
        "socks" => (format!("socks5h://{address}"), None),
        "connect" => (format!("http://{address}"), Some("--proxytunnel")),
        _ => (format!("http://{address}"), None),
    };
    let mut command = Command::new("curl");
    command.args(["-sSf", "--max-time", "60", "--noproxy", "", "--proxy", &proxy]).args(tunnel).arg(url);
    run(&mut command)
}

fn get(adit: &Adit, way: &str, url: &str) -> String {
    let answer = curl(adit, way, url);
    assert!(answer.status.success(), "{url} by {way}: {}\n{}", String::from_utf8_lossy(&answer.stderr), adit.log());
    String::from_utf8(answer.stdout).expect("an answer in UTF-8")
}

fn jsonpath(what: &str, path: &str) -> String {
    kubectl(&["-n", NAMESPACE, "get", what, "-o", &format!("jsonpath={{{path}}}")])
}

#[test]
fn curl_reaches_services_by_name_and_address_each_way() {
    let adit = Adit::plain();
    let address = jsonpath("service/web", ".spec.clusterIP");
    for way in ["socks", "connect", "absolute"] {
        for host in [format!("web.{NAMESPACE}.svc.cluster.local"), format!("web.{NAMESPACE}.svc"), address.clone()] {
            assert!(get(&adit, way, &format!("http://{host}/whoami")).starts_with("web-"), "{host} by {way}");
        }
    }
    // One port of one Service, whatever it is called.
    let of_name = adit.tunnels().iter().filter(|tunnel| tunnel["id"].as_str().unwrap().contains("/web")).count();
    assert_eq!(of_name, 1, "{:?}", adit.tunnels());
}

#[test]
fn pods_are_reached_by_name_and_address() {
    let adit = Adit::plain();
    let pod = ready_pods("web").remove(0);
    let address = jsonpath(&format!("pod/{pod}"), ".status.podIP");
    for way in ["socks", "connect", "absolute"] {
        for host in [address.clone(), format!("{}.{NAMESPACE}.pod.cluster.local", address.replace('.', "-"))] {
            assert_eq!(get(&adit, way, &format!("http://{host}/whoami")).trim(), pod, "{host} by {way}");
        }
    }
    let of_set = format!("http://only-0.only.{NAMESPACE}.svc.cluster.local:8000/");
    assert!(curl(&adit, "socks", &of_set).status.success(), "{}", adit.log());
}

#[test]
fn refusals_have_their_codes() {
    let adit = Adit::plain();
    let code = |way: &str, url: &str| {
        let answer = curl(&adit, way, url);
        (answer.status.code(), String::from_utf8_lossy(&answer.stderr).into_owned())
    };
    for (host, socks, connect) in [
        (format!("none.{NAMESPACE}.svc"), "(4)", "404"),
        (format!("web.{NAMESPACE}.svc:82"), "(4)", "404"),
        ("10.255.255.254".to_owned(), "(4)", "404"),
        ("www.example.com".to_owned(), "(2)", "403"),
        ("169.254.169.254".to_owned(), "(2)", "403"),
    ] {
        let (status, said) = code("socks", &format!("http://{host}/"));
        assert!(status == Some(97) && said.contains(socks), "{host}: {said}");
        let (status, said) = code("connect", &format!("http://{host}/"));
        // Versions of curl do not agree on its exit code.
        assert!(matches!(status, Some(22 | 56)) && said.contains(connect), "{host}: {said}");
    }
}

#[test]
fn the_user_is_the_context() {
    let adit = Adit::plain();
    let context = kubectl(&["config", "current-context"]);
    let ask = |user: &str| {
        let mut command = Command::new("curl");
        let proxy = format!("socks5h://{}@{}", user.replace('@', "%40"), adit.address());
        command.args(["-sSf", "--max-time", "60", "--noproxy", "", "--proxy", &proxy]);
        run(command.arg(format!("http://web.{NAMESPACE}.svc/whoami"))).status.success()
    };
    assert!(ask(context.trim()) && !ask("no-such-context"), "{}", adit.log());
}

/// Python's own client of HTTP proxies, and Node's CONNECT: where they are installed.
#[test]
fn python_and_node_use_it() {
    let adit = Adit::plain();
    let (url, address) = (format!("web.{NAMESPACE}.svc.cluster.local"), adit.address());
    let python = format!(
        "import urllib.request, sys; handler = urllib.request.ProxyHandler({{'http': 'http://{address}'}}); \
         print(urllib.request.build_opener(handler).open('http://{url}/whoami', timeout=60).read().decode())"
    );
    let node = format!(
        "const http = require('http'); \
         http.request({{host: '127.0.0.1', port: {}, method: 'CONNECT', path: '{url}:80'}}).on('connect', (answer, socket) => {{ \
         if (answer.statusCode !== 200) process.exit(1); \
         http.get({{createConnection: () => socket, host: '{url}', path: '/whoami'}}, (answer) => answer.pipe(process.stdout)); \
         }}).end()",
        adit.http
    );
    for (program, option, script) in [("python3", "-c", &python), ("node", "-e", &node)] {
        if Command::new(program).arg("--version").output().is_err() {
            continue;
        }
        let said = succeed(Command::new(program).args([option, script]));
        assert!(said.starts_with("web-"), "{program}: {said}");
    }
}

#[test]
fn a_command_has_a_proxy_of_its_own() {
    let script = format!(
        "for way in '' -p \"--proxy $ALL_PROXY\"; do curl -sSf --max-time 60 $way http://web.{NAMESPACE}.svc.cluster.local/whoami; done"
    );
    crate::support::world();
    let said = succeed(Command::new(env!("CARGO_BIN_EXE_adit")).args(["run", "--proxy", "--", "sh", "-c", &script]));
    assert_eq!(said.lines().filter(|line| line.starts_with("web-")).count(), 3, "{said}");
}

/// Where a Chromium is installed.
#[tokio::test]
async fn chromium_with_the_file_shows_services_by_their_names_in_the_cluster() {
    if Command::new("chromium").arg("--version").output().is_err() {
        return;
    }
    let adit = Adit::plain();
    let pac = format!("--proxy-pac-url=http://{}/proxy.pac", adit.address());
    let mut browser = Chromium::start_for(None, &[&pac]).await;
    let mut page = browser.page().await;
    let host = format!("web.{NAMESPACE}.svc.cluster.local");
    page.goto(&format!("http://{host}/whoami")).await;
    assert!(page.text().await.starts_with("web-"), "{}", adit.log());
    assert_eq!(page.eval("location.host").await, json!(host));
    page.eval("document.cookie = 'seen=1; path=/'").await;
    page.goto(&format!("http://{host}/headers")).await;
    assert_eq!(page.eval("document.cookie").await, json!("seen=1"));
    let echo = format!(
        "new Promise((resolve, reject) => {{ const socket = new WebSocket('ws://echo.{NAMESPACE}.svc.cluster.local:7001/'); \
         socket.onopen = () => socket.send('hello'); socket.onmessage = (event) => resolve(event.data); \
         socket.onerror = () => reject('refused'); }})"
    );
    assert_eq!(page.eval(&echo).await, json!("hello"), "{}", adit.log());
}
