//! Credential plugins: a shell script controlled by the test, in front of the demo cluster.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use adit::{app::App, demo::Demo};
use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{Instant, sleep, timeout},
};

use crate::{
    process::{Process, environment},
    support::{PATIENCE, TestApp, echoes, eventually, ports::free_port, start_demo},
};

/// Plugin that records each run, and obeys the files beside it.
const SCRIPT: &str = "#!/bin/sh
cd \"${0%/*}\"
echo $$ >> runs
[ -f says ] && cat says >&2
[ -f waits ] && sleep \"$(cat waits)\"
[ -f fails ] && exit \"$(cat fails)\"
cat answer
";

/// A plugin, with the kubeconfig that uses it.
pub struct Plugin {
    folder: TempDir,
    token: String,
}

impl Plugin {
    /// Creates the plugin for a cluster. It returns a token that never expires.
    pub fn new(demo: &Demo) -> Self {
        let written = fs::read_to_string(demo.kubeconfig()).unwrap();
        let (_, token) = written.split_once("token: \"").unwrap();
        let token = token.split('"').next().unwrap().to_owned();
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("aws");
        fs::write(&program, SCRIPT).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let exec = format!(
            "{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: {}, interactiveMode: Never}}}}",
            program.display()
        );
        let kubeconfig = written.replacen(&format!("{{token: \"{token}\"}}"), &exec, 1);
        fs::write(folder.path().join("kubeconfig"), kubeconfig).unwrap();
        let plugin = Self { folder, token };
        plugin.answer(json!({"token": plugin.token}));
        plugin
    }

    fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        // Replace the file atomically, because the plugin may be reading it.
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path(name)).unwrap();
    }

    fn no_longer(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn answer(&self, status: Value) {
        let answer =
            json!({"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": status});
        self.write("answer", &answer.to_string());
    }

    /// Makes the plugin return a token that expires after this many seconds.
    fn answer_for(&self, token: &str, seconds: u64) {
        let expires = Timestamp::try_from(SystemTime::now() + Duration::from_secs(seconds)).unwrap();
        self.answer(json!({"token": token, "expirationTimestamp": expires.to_string()}));
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.path("runs")).unwrap_or_default().lines().count()
    }

    /// Returns the process ids of runs that have not ended.
    fn alive(&self) -> Vec<String> {
        let runs = fs::read_to_string(self.path("runs")).unwrap_or_default();
        let is_alive = |pid: &&str| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            !status.is_empty() && !status.contains("State:\tZ")
        };
        runs.lines().filter(is_alive).map(str::to_owned).collect()
    }
}

async fn app(config: &str) -> (TestApp, Plugin) {
    let demo = start_demo().await;
    let plugin = Plugin::new(&demo);
    (TestApp::start_on(demo, plugin.kubeconfig(), config, App::default()).await, plugin)
}

async fn process() -> (Process, Plugin) {
    let demo = start_demo().await;
    let plugin = Plugin::new(&demo);
    (Process::start_on(demo, &plugin.kubeconfig(), "", &[], "exec \"$@\"").await, plugin)
}

fn route(route: &str) -> String {
    let local = free_port();
    route.replace("PORT", &local.to_string())
}

async fn get(address: SocketAddr, host: &str, accept: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /whoami HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer in time").unwrap();
    answer
}

async fn page(address: SocketAddr) -> String {
    get(address, "web.shop.localhost", "text/html,*/*").await
}

#[tokio::test]
async fn a_plugin_of_15_s_works_through_one_request() {
    let (app, plugin) = app("").await;
    plugin.write("waits", "15");
    let began = Instant::now();
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    assert!(began.elapsed() >= Duration::from_secs(15));
    assert_eq!(plugin.runs(), 1);
    app.finish().await;
}

#[tokio::test]
async fn a_sign_in_goes_on_when_the_client_has_gone() {
    let (app, plugin) = app("").await;
    plugin.write("waits", "3");
    for _ in 0..3 {
        let impatient = timeout(Duration::from_millis(300), app.get("web.shop.localhost", "/whoami"));
        assert!(impatient.await.is_err());
    }
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    assert_eq!(plugin.runs(), 1);
    app.finish().await;
}

#[tokio::test]
async fn what_a_plugin_says_is_in_the_page_the_log_and_the_status_as_it_comes() {
    let (process, plugin) = process().await;
    plugin.write("says", "\x1b[1mgo to https://example.com/device and enter ABCD\x1b[0m\ntoken=hush-hush\n");
    plugin.write("waits", "8");
    let first = tokio::spawn(get(process.http, "web.shop.localhost", "*/*"));
    process.logs_after(0, "'aws' says: go to https://example.com/device and enter ABCD").await;
    let status = process.status().await;
    assert!(status.contains("signing in with 'aws'") && status.contains("enter ABCD"), "{status}");
    let shown = page(process.http).await;
    assert!(shown.starts_with("HTTP/1.1 503") && shown.contains("x-adit-error: signing-in"), "{shown}");
    assert!(shown.contains("href=\"https://example.com/device\"") && shown.contains("enter ABCD"), "{shown}");
    assert!(shown.contains("http-equiv=\"refresh\""), "{shown}");
    let (_, json, _) = process.command(&["status", "-o", "json"]).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["sign_ins"][0]["said"][0], "go to https://example.com/device and enter ABCD");
    assert_eq!(json["sign_ins"][0]["state"], "running");
    assert!(first.await.unwrap().starts_with("HTTP/1.1 200"), "the first one has waited");
    for text in [process.log(), status, shown, json.to_string()] {
        assert!(!text.contains("hush-hush") && !text.contains(&plugin.token) && !text.contains('\x1b'), "{text}");
    }
    assert_eq!(plugin.runs(), 1);
    assert!(!process.status().await.contains("ABCD"), "what is well is not shown");
}

#[tokio::test]
async fn a_page_that_refreshes_starts_one_plugin_and_says_that_it_waits() {
    let (app, plugin) = app("").await;
    plugin.write("waits", "60");
    let began = Instant::now();
    let shown = page(app.http).await;
    assert!(shown.starts_with("HTTP/1.1 503") && shown.contains("signing in with &#39;aws&#39;"), "{shown}");
    assert!((9..40).contains(&began.elapsed().as_secs()), "a silent one is waited for: {:?}", began.elapsed());
    let (one, two) = tokio::join!(page(app.http), page(app.http));
    assert!(one.starts_with("HTTP/1.1 503") && two.starts_with("HTTP/1.1 503"));
    assert_eq!((plugin.runs(), plugin.alive().len()), (1, 1));
    app.finish().await;
    eventually("the plugin ends with adit", || async { plugin.alive().is_empty() }).await;
}

#[tokio::test]
async fn a_plugin_that_fails_is_started_once_for_a_request_and_less_and_less_often() {
    let (app, plugin) = app("").await;
    plugin.write("says", "token has expired\nrun aws sso login\n");
    plugin.write("fails", "7");
    let (status, body) = app.get("web.shop.localhost", "/whoami").await;
    assert_eq!((status, plugin.runs()), (502, 1));
    let wanted =
        "cannot sign in to context demo: 'aws' ended with exit code 7: token has expired / run aws sso login\n";
    assert!(body.starts_with(wanted), "{body}");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        assert!(app.get("web.shop.localhost", "/whoami").await.1.starts_with(wanted));
        assert_eq!(app.get("tools.shop.localhost", "/").await.0, 502);
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(plugin.runs(), 2, "at once, and after 2 s; the next after 6 s");
    plugin.no_longer("fails");
    eventually("it recovers", || async { app.get("web.shop.localhost", "/whoami").await.0 == 200 }).await;
    assert_eq!(plugin.runs(), 3);
    app.finish().await;
}

#[tokio::test]
async fn no_watch_and_no_idle_tunnel_starts_a_plugin() {
    let (app, plugin) =
        app(&route("tcp: {k8s: {routes: {PORT: {namespace: shop, service: tools, port: 7000}}}}\n")).await;
    plugin.answer_for(&plugin.token, 5);
    let mut open = TcpStream::connect(app.tcp[0]).await.unwrap();
    let mut word = [0; 4];
    open.write_all(b"word").await.unwrap();
    open.read_exact(&mut word).await.unwrap();
    eventually("it is watched", || async { app.demo.faults().requests_seen("/endpointslices") == 2 }).await;
    plugin.write("fails", "1");
    sleep(Duration::from_secs(5)).await;
    for _ in 0..10 {
        app.demo.faults().end_watches();
        sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(plugin.runs(), 1, "nobody has asked for anything");
    assert_eq!(app.demo.faults().requests_seen("/endpointslices"), 2, "no watch goes without a credential");
    open.write_all(b"more").await.unwrap();
    timeout(PATIENCE, open.read_exact(&mut word)).await.unwrap().unwrap();
    assert_eq!(&word, b"more", "what is open lives on");
    plugin.no_longer("fails");
    plugin.answer(json!({"token": plugin.token}));
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    assert_eq!(plugin.runs(), 2);
    eventually("the watch goes on", || async { app.demo.faults().requests_seen("/endpointslices") >= 5 }).await;
    drop(open);
    app.finish().await;
}

#[tokio::test]
async fn a_token_that_holds_for_50_s_is_used_for_that_long() {
    let (app, plugin) = app("").await;
    plugin.answer_for(&plugin.token, 50);
    for host in [
        "web.shop.localhost",
        "tools.shop.localhost",
        "queue.shop.localhost",
        "web-6d5f-a1-8080.pod.shop.ns.demo.cx.k8s.localhost",
    ] {
        app.get(host, "/whoami").await;
    }
    app.demo.faults().drop_upgraded_connections();
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    assert_eq!(plugin.runs(), 1);
    app.finish().await;
}

#[tokio::test]
async fn a_token_that_expires_is_renewed_by_the_next_request_that_needs_one() {
    let (app, plugin) = app("").await;
    plugin.answer_for(&plugin.token, 6);
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    plugin.answer(json!({"token": plugin.token}));
    sleep(Duration::from_millis(6_200)).await;
    assert_eq!(app.get("tools.shop.localhost", "/whoami").await.0, 200);
    assert_eq!(plugin.runs(), 2);
    app.finish().await;
}

/// The first token is rejected once the plugin gives it; a later one is accepted.
#[tokio::test]
async fn a_token_that_is_refused_is_asked_for_again_once_everywhere_the_same() {
    let forward = route("tcp: {k8s: {routes: {PORT: {namespace: shop, service: tools, port: 7000}}}}\n");
    let jump = route(
        "tcp: {k8s: {jump: {PORT: {namespace: shop, via: {pod: tools-0}, target: {host: tools.shop, port: 7000}}}}}\n",
    );
    for config in [forward, jump] {
        let (app, plugin) = app(&config).await;
        plugin.answer_for("refused-1", 3600);
        assert!(!echoes(app.tcp[0], PATIENCE).await, "{config}");
        assert_eq!(plugin.runs(), 2, "it was asked again once: {config}");
        plugin.answer(json!({"token": plugin.token}));
        eventually("it is good again", || echoes(app.tcp[0], PATIENCE)).await;
        assert_eq!(plugin.runs(), 3, "{config}");

        // A valid token is revoked while it is in use.
        app.demo.faults().refuse_tokens(true);
        app.demo.faults().drop_upgraded_connections();
        // A stream that is opened before adit has read the end of the connection needs no token.
        sleep(Duration::from_millis(200)).await;
        assert!(!echoes(app.tcp[0], PATIENCE).await, "{config}");
        let runs = plugin.runs();
        assert!((4..=5).contains(&runs), "{runs} runs: {config}");
        app.demo.faults().refuse_tokens(false);
        eventually("it is good again", || echoes(app.tcp[0], PATIENCE)).await;
        assert!(plugin.runs() <= runs + 2, "{} runs: {config}", plugin.runs());
        app.finish().await;
    }
}

#[tokio::test]
async fn one_refusal_in_the_middle_is_not_seen_by_anybody() {
    let jump = route(
        "tcp: {k8s: {jump: {PORT: {namespace: shop, via: {pod: tools-0}, target: {host: tools.shop, port: 7000}}}}}\n",
    );
    let (app, plugin) = app(&jump).await;
    assert!(echoes(app.tcp[0], PATIENCE).await);
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    for (path, runs) in [("/pods/tools-0/exec", 2), ("/pods/web-6d5f-a1/portforward", 3), ("/services/queue", 4)] {
        app.demo.faults().answer_once(path, 401);
        app.demo.faults().drop_upgraded_connections();
        match path.rsplit('/').next() {
            Some("exec") => assert!(echoes(app.tcp[0], PATIENCE).await),
            Some("portforward") => {
                for _ in 0..4 {
                    assert_eq!(app.get("web-6d5f-a1-8080.pod.shop.ns.demo.cx.k8s.localhost", "/whoami").await.0, 200);
                }
            }
            _ => assert_eq!(app.get("queue.shop.localhost", "/whoami").await.0, 404, "which port?"),
        }
        assert_eq!(plugin.runs(), runs, "{path}");
    }
    app.finish().await;
}

#[tokio::test]
async fn adit_ends_at_once_while_a_plugin_runs_and_the_plugin_with_it() {
    for signal in ["INT", "TERM"] {
        let (mut process, plugin) = process().await;
        plugin.write("waits", "60");
        let waiting = tokio::spawn(get(process.http, "web.shop.localhost", "*/*"));
        eventually("the plugin runs", || async { plugin.runs() == 1 }).await;
        let began = Instant::now();
        process.signal(signal).await;
        assert_eq!(process.exit_code().await, Some(0));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?} {}", began.elapsed(), process.log());
        eventually("the plugin has ended", || async { plugin.alive().is_empty() }).await;
        let answer = waiting.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    }
}

async fn routes(plugin: &Plugin, home: &TempDir) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    environment(&mut command, home).args(["routes", "-n", "shop"]).env("KUBECONFIG", plugin.kubeconfig());
    timeout(PATIENCE, command.output()).await.expect("it ends").unwrap()
}

#[tokio::test]
async fn a_command_shows_what_the_plugin_says_and_takes_it_along_when_it_ends() {
    let (demo, home) = (start_demo().await, tempfile::tempdir().unwrap());
    let plugin = Plugin::new(&demo);
    plugin.write("says", "enter ABCD\n");
    let output = routes(&plugin, &home).await;
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("shop/web"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.starts_with("'aws' says: enter ABCD\nnote: no adit is running ") && said.lines().count() == 2,
        "{said}"
    );
    plugin.answer(json!({"token": "refused-1"}));
    let output = routes(&plugin, &home).await;
    assert_eq!((output.status.code(), plugin.runs()), (Some(1), 3));

    plugin.write("waits", "60");
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    environment(&mut command, &home).args(["routes"]).env("KUBECONFIG", plugin.kubeconfig()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    eventually("the plugin runs", || async { plugin.runs() == 4 }).await;
    let id = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
    assert_eq!(timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap().code(), Some(130));
    eventually("the plugin has ended", || async { plugin.alive().is_empty() }).await;
}

#[tokio::test]
async fn a_kubeconfig_that_is_written_anew_keeps_its_sign_in() {
    let (app, plugin) = app("").await;
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    let path: &Path = &plugin.kubeconfig();
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, format!("{text}# changed\n")).unwrap();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(app.get("tools.shop.localhost", "/whoami").await.0, 200);
    assert_eq!(plugin.runs(), 1);
    app.finish().await;
}

#[tokio::test]
async fn a_wait_ends_in_its_time_while_a_sign_in_runs_and_says_so() {
    let (process, plugin) = process().await;
    plugin.write("waits", "60");
    plugin.write("says", "enter ABCD\n");
    let command = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
        environment(&mut command, process.home_folder()).args(["--listen", &process.http.to_string(), "--config"]);
        command.arg(process.config()).env("KUBECONFIG", plugin.kubeconfig()).args(arguments).kill_on_drop(true);
        let began = Instant::now();
        let output = timeout(2 * PATIENCE, command.output()).await.expect("it ends").unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), said, began.elapsed())
    };
    let (code, said, took) = command(&["wait", "--timeout", "3s", "web.shop"]).await;
    assert!(code == Some(1) && took < Duration::from_secs(15), "{took:?} {said}");
    assert!(said.contains("signing in with 'aws'") && said.contains("enter ABCD"), "{said}");
    let (code, said, took) = command(&["env", "--to", "web=web.shop"]).await;
    assert!(code == Some(0) && took < Duration::from_secs(15) && said.contains("WEB_PORT="), "{took:?} {said}");
    assert!(!said.contains("WEB_SERVICE_PORT"), "the Service's ports are not known: {said}");
    assert_eq!(plugin.runs(), 1);
    // Once signed in, the port is the same, and the Service's ports are there.
    plugin.no_longer("waits");
    for pid in plugin.alive() {
        assert!(Command::new("kill").args(["-KILL", "--", &format!("-{pid}")]).status().await.unwrap().success());
    }
    let port = said.lines().find(|line| line.contains(" WEB_PORT=")).unwrap().to_owned();
    eventually("the ports are known", || async {
        let (_, said, _) = command(&["env", "--to", "web=web.shop"]).await;
        said.contains("WEB_SERVICE_PORT=") && said.contains(&port)
    })
    .await;
}

#[tokio::test]
async fn doctor_takes_its_plugin_along_when_a_signal_ends_it() {
    let (demo, home) = (start_demo().await, tempfile::tempdir().unwrap());
    let plugin = Plugin::new(&demo);
    plugin.write("waits", "60");
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    environment(&mut command, &home).args(["doctor"]).env("KUBECONFIG", plugin.kubeconfig()).kill_on_drop(true);
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    eventually("the plugin runs", || async { plugin.runs() > 0 }).await;
    let id = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().await.unwrap().success());
    assert_eq!(timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap().code(), Some(130));
    eventually("the plugin has ended", || async { plugin.alive().is_empty() }).await;
}
