//! The running binary: its listeners, socket, signals and log.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use adit::demo::Demo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use crate::support::{
    PATIENCE, eventually,
    ports::{free_port, ports},
    start_demo,
};

/// adit in a process, with its own home folder, in front of a demo cluster in this process.
pub struct Process {
    pub demo: Demo,
    home: TempDir,
    child: Child,
    pub http: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Process {
    pub async fn start(config: &str, arguments: &[&str]) -> Self {
        Self::start_with(config, arguments, "exec \"$@\"").await
    }

    /// `script`: shell script that runs the command line (`"$@"`).
    async fn start_with(config: &str, arguments: &[&str], script: &str) -> Self {
        let demo = start_demo().await;
        let kubeconfig = demo.kubeconfig();
        Self::start_on(demo, &kubeconfig, config, arguments, script).await
    }

    /// Starts in front of a running cluster, with a kubeconfig for it.
    pub async fn start_on(demo: Demo, kubeconfig: &Path, config: &str, arguments: &[&str], script: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("config.yaml");
        fs::write(&file, config).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_adit"), "--listen", "127.0.0.1:0"]).args(arguments);
        command.arg("--config").arg(&file);
        environment(&mut command, &home).env("KUBECONFIG", kubeconfig);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
        let first = timeout(PATIENCE, lines.next_line()).await.expect("it starts").unwrap().expect("it says where");
        let http = first.split(' ').find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("no address: {first}"));
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let log = Arc::new(Mutex::new(String::new()));
        let (kept, errors) = (log.clone(), child.stderr.take().unwrap().into_owned_fd().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(fs::File::from(errors)).lines().map_while(Result::ok) {
                kept.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Self { demo, home, child, http, log }
    }

    /// Returns the path of its admin socket.
    pub fn socket(&self) -> PathBuf {
        self.home.path().join(format!("adit/{}.sock", self.http.port()))
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn home_folder(&self) -> &TempDir {
        &self.home
    }

    pub fn config(&self) -> PathBuf {
        self.home.path().join("config.yaml")
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub async fn logs(&self, text: &str) {
        eventually(text, || async { self.log().contains(text) }).await;
    }

    /// Waits for a text in the log behind byte `from`, and returns the position behind the text.
    pub async fn logs_after(&self, from: usize, text: &str) -> usize {
        let found = || self.log.lock().unwrap()[from..].find(text).map(|at| from + at + text.len());
        eventually(text, || async { found().is_some() }).await;
        found().expect("it was there")
    }

    pub async fn signal(&self, name: &str) {
        let id = self.child.id().expect("it runs").to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().await.unwrap().success());
    }

    /// Runs another adit as the same user. Returns whether it succeeded, its standard output and its standard error.
    pub async fn command(&self, arguments: &[&str]) -> (bool, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
        let output = environment(&mut command, &self.home).args(arguments).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }

    /// Runs a shell script with this adit and its cluster. Returns whether it succeeded, and its output.
    pub async fn shell(&self, script: &str) -> (bool, String) {
        let mut command = Command::new("sh");
        let programs = Path::new(env!("CARGO_BIN_EXE_adit")).parent().unwrap().display();
        let path = format!("{programs}:{}", std::env::var("PATH").unwrap_or_default());
        environment(&mut command, &self.home).env("PATH", path).env("KUBECONFIG", self.demo.kubeconfig());
        command.args(["-euc", script]).stdin(Stdio::null()).current_dir(self.home.path());
        let output = timeout(2 * PATIENCE, command.output()).await.expect("it ends").unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    pub async fn status(&self) -> String {
        self.command(&["status"]).await.1
    }

    pub async fn get(&self, address: SocketAddr, host: &str) -> Option<String> {
        let exchange = async {
            let mut stream = TcpStream::connect(address).await?;
            let request = format!("GET /whoami HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        timeout(PATIENCE, exchange).await.ok()?.ok()
    }

    /// Sends so many requests at once, which no route answers: their paths are `path` and their numbers.
    pub async fn burst(&self, count: usize, path: &str) {
        let (mut read, mut write) = TcpStream::connect(self.http).await.unwrap().into_split();
        let lines = (0..count).map(|at| format!("GET {path}{at} HTTP/1.1\r\nHost: nope.localhost\r\n\r\n"));
        let requests =
            lines.collect::<String>() + "GET /last HTTP/1.1\r\nHost: nope.localhost\r\nConnection: close\r\n\r\n";
        let writing = async { write.write_all(requests.as_bytes()).await.unwrap() };
        let mut answers = Vec::new();
        let reading = async { read.read_to_end(&mut answers).await.unwrap() };
        timeout(PATIENCE, async { tokio::join!(writing, reading) }).await.expect("they are answered");
    }

    pub async fn serves(&self, host: &str) -> bool {
        self.get(self.http, host).await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    pub async fn exit_code(&mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap().code()
    }
}

pub fn environment<'c>(command: &'c mut Command, home: &TempDir) -> &'c mut Command {
    for variable in
        ["ADIT_CONFIG", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "RUST_LOG", "KUBERNETES_SERVICE_HOST"]
    {
        command.env_remove(variable);
    }
    command.env("HOME", home.path()).env("XDG_RUNTIME_DIR", home.path())
}

fn tcp_routes(ip: &str, ports: &[u16]) -> String {
    let route = |port: &u16| format!("{port}: {{namespace: shop, service: web, port: 80, listen: {ip}}}");
    format!("tcp: {{k8s: {{routes: {{{}}}}}}}\n", ports.iter().map(route).collect::<Vec<_>>().join(", "))
}

fn tcp_route(ip: &str, port: u16) -> String {
    format!("tcp: {{k8s: {{routes: {{{port}: {{namespace: shop, service: web, port: 80, listen: {ip}}}}}}}}}\n")
}

#[tokio::test]
async fn two_names_of_one_port_share_a_tunnel_whichever_comes_first() {
    for names_first in [true, false] {
        let process = Process::start("", &[]).await;
        let by_name = async || assert!(process.serves("web.shop.localhost").await);
        let by_socks = async || {
            for (host, port) in [("web.shop", 80), ("web.shop.svc.cluster.local", 80), ("web.shop.localhost", 80)] {
                assert!(crate::socks::connect(process.http, None, host, port).await.is_ok(), "{host}:{port}");
            }
        };
        match names_first {
            true => (by_name().await, by_socks().await),
            false => (by_socks().await, by_name().await),
        };
        assert!(process.serves("80.web.shop.localhost").await);
        let status = process.status().await;
        assert_eq!(status.matches("demo/shop/web").count(), 1, "{status}");
        // Each port of a Service has its own tunnel.
        for port in [7000, 443] {
            assert!(crate::socks::connect(process.http, None, "tools.shop", port).await.is_ok(), "{port}");
        }
        let status = process.status().await;
        assert_eq!(status.matches("demo/shop/tools:").count(), 2, "{status}");
    }
}

#[tokio::test]
async fn status_shows_a_tunnel_and_stop_ends_it() {
    let process = Process::start("", &[]).await;
    assert!(process.status().await.contains("no tunnels"));
    assert!(process.serves("web.shop.localhost").await);
    let shown = process.status().await;
    assert!(shown.contains("demo/shop/web") && shown.contains("running") && shown.contains("web-"), "{shown}");
    let (_, json, _) = process.command(&["status", "-o", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let tunnel = json["tunnels"][0]["target"].as_str().unwrap().to_owned();
    let (ok, _, error) = process.command(&["stop", "no/such/tunnel:1"]).await;
    assert!(!ok && error.contains(&tunnel), "{error}");
    let (ok, said, _) = process.command(&["stop", &tunnel]).await;
    assert!(ok && said == format!("stopped {tunnel}\n"), "{said}");
    eventually("the tunnel is gone", || async { process.status().await.contains("no tunnels") }).await;
    assert!(process.serves("web.shop.localhost").await);
}

#[tokio::test]
async fn a_client_that_does_not_read_learns_of_the_stop_of_its_tunnel() {
    let port = free_port();
    let process = Process::start(&tcp_route("127.0.0.1", port), &[]).await;
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    client.write_all(b"GET /download?bytes=1000000000 HTTP/1.1\r\nHost: any\r\n\r\n").await.unwrap();
    client.readable().await.unwrap();
    // Sockets and queues fill up; then all wait for the client.
    let moved = async || {
        let (_, json, _) = process.command(&["status", "-o", "json"]).await;
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        json["tunnels"][0]["bytes_down"].as_u64().unwrap()
    };
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = moved().await;
        if now == before && now > 0 {
            break;
        }
        before = now;
    }
    let (ok, said, error) = process.command(&["stop", "demo/shop/web:80"]).await;
    assert!(ok, "{said}{error}");
    let reset = async {
        while client.take_error().unwrap().is_none() {
            client.ready(tokio::io::Interest::ERROR).await.unwrap();
        }
    };
    timeout(PATIENCE, reset).await.expect("it is reset though it reads nothing");
}

#[tokio::test]
async fn a_tcp_route_can_change_its_address_and_a_taken_port_changes_nothing() {
    let port = free_port();
    let process = Process::start(&tcp_route("127.0.0.1", port), &[]).await;
    let local = SocketAddr::from(([127, 0, 0, 1], port));
    let serves = async || process.get(local, "any").await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200"));
    assert!(serves().await);

    fs::write(process.config(), tcp_route("0.0.0.0", port)).unwrap();
    process.logs("config reloaded").await;
    eventually("all addresses are listed", || async { process.status().await.contains(&format!("0.0.0.0:{port}")) })
        .await;
    assert!(serves().await, "{}", process.log());

    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = taken.local_addr().unwrap();
    fs::write(process.config(), tcp_route("127.0.0.1", other.port())).unwrap();
    eventually("the refusal is shown", || async { process.status().await.contains("config not reloaded") }).await;
    let shown = process.status().await;
    assert!(shown.contains(&format!("cannot listen on {other}: the port is already in use")), "{shown}");
    assert!(shown.contains(&format!("rename tcp.k8s.routes.{}", other.port())), "{shown}");
    assert!(serves().await);

    fs::write(process.config(), "http: [not, a, map]\n").unwrap();
    eventually("the problem is shown", || async { process.status().await.contains("http: expected") }).await;
    assert!(serves().await);
}

#[tokio::test]
async fn a_configuration_whose_port_was_taken_is_applied_once_the_port_is_free() {
    let process = Process::start(&tcp_route("127.0.0.1", free_port()), &[]).await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = taken.local_addr().unwrap();
    fs::write(process.config(), tcp_route("127.0.0.1", other.port())).unwrap();
    process.logs("config not reloaded").await;
    // Until the next attempt, which fails too.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(process.log().matches("config not reloaded").count(), 1, "{}", process.log());
    drop(taken);
    process.logs("config reloaded").await;
    assert!(process.get(other, "any").await.is_some(), "{}", process.log());
    eventually("nothing is refused", || async { !process.status().await.contains("config not reloaded") }).await;
}

#[tokio::test]
async fn a_configuration_whose_port_was_taken_is_forgotten_once_the_file_has_another() {
    let first = tcp_route("127.0.0.1", free_port());
    let process = Process::start(&first, &[]).await;
    for next in [first.as_str(), "http: [not, a, map]\n"] {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = taken.local_addr().unwrap();
        fs::write(process.config(), tcp_route("127.0.0.1", other.port())).unwrap();
        let refused = format!("cannot listen on {other}");
        eventually("it is refused", || async { process.status().await.contains(&refused) }).await;
        fs::write(process.config(), next).unwrap();
        eventually("the next one counts", || async { !process.status().await.contains(&refused) }).await;
        drop(taken);
        // Longer than until the next attempt.
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert!(process.get(other, "any").await.is_none(), "{}", process.log());
    }
}

#[tokio::test]
async fn two_tcp_routes_can_change_their_address_at_once_and_come_back_where_that_fails() {
    let ports = [free_port(), free_port()];
    let process = Process::start(&tcp_routes("127.0.0.1", &ports), &[]).await;
    let serve = async || {
        for port in ports {
            let answer = process.get(SocketAddr::from(([127, 0, 0, 1], port)), "any").await;
            assert!(answer.is_some_and(|answer| answer.starts_with("HTTP/1.1 200")), "{port}: {}", process.log());
        }
    };
    fs::write(process.config(), tcp_routes("0.0.0.0", &ports)).unwrap();
    process.logs("config reloaded").await;
    serve().await;

    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let _taken = TcpListener::bind(("0.0.0.0", taken.port())).await.unwrap();
    fs::write(process.config(), tcp_routes("127.0.0.1", &[ports[0], ports[1], taken.port()])).unwrap();
    process.logs("config not reloaded").await;
    serve().await;
}

#[tokio::test]
async fn a_port_that_another_program_took_during_a_failed_reload_is_had_again_when_it_is_free() {
    let range = ports(20);
    let all: Vec<u16> = range.clone().collect();
    let process = Process::start(&tcp_routes("127.0.0.1", &all), &[]).await;
    let wanted = SocketAddr::from(([127, 0, 0, 1], all[0]));
    assert!(process.get(wanted, "any").await.is_some());
    let thief = tokio::task::spawn_blocking(move || {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            match std::net::TcpListener::bind(wanted) {
                Ok(listener) => return listener,
                Err(_) => assert!(std::time::Instant::now() < deadline, "it never left the port"),
            }
        }
    });
    // Each attempt closes all ports for a moment, then fails.
    let _taken = TcpListener::bind(("127.0.0.2", all[19])).await.unwrap();
    let mut length = process.log().len();
    for attempt in 0.. {
        fs::write(process.config(), format!("{}# {attempt}\n", tcp_routes("0.0.0.0", &all))).unwrap();
        length = process.logs_after(length, "config not reloaded").await;
        if thief.is_finished() {
            break;
        }
    }
    process.logs(&format!("no longer listening there: trying again until the port is free address={wanted}")).await;
    drop(thief.await.unwrap());
    eventually("it listens again", || async { process.get(wanted, "any").await.is_some() }).await;
    assert!(process.status().await.contains(&format!("{wanted}")));
}

#[tokio::test]
async fn an_audit_log_that_cannot_be_written_costs_no_listener() {
    let port = free_port();
    let process = Process::start(&tcp_route("127.0.0.1", port), &[]).await;
    let local = SocketAddr::from(([127, 0, 0, 1], port));
    let audit = "audit: /nowhere/at/all/audit.log\n";
    fs::write(process.config(), format!("{audit}{}", tcp_route("0.0.0.0", port))).unwrap();
    process.logs("config not reloaded").await;
    assert!(process.get(local, "any").await.is_some(), "{}", process.log());
}

#[tokio::test]
async fn a_reload_that_waits_for_a_port_leaves_the_listener_alone_and_the_log_quiet() {
    let port = free_port();
    let process = Process::start(&tcp_route("127.0.0.1", port), &[]).await;
    let other = std::net::TcpListener::bind(("127.0.0.2", port)).unwrap();
    fs::write(process.config(), tcp_route("0.0.0.0", port)).unwrap();
    process.logs("listening again").await;
    // The first retry is 5 s later, the second one 10 s after that.
    tokio::time::sleep(Duration::from_secs(7)).await;
    let log = process.log();
    assert_eq!((log.matches("no longer listening").count(), log.matches("listening again").count()), (1, 1), "{log}");
    assert!(process.get(SocketAddr::from(([127, 0, 0, 1], port)), "any").await.is_some());
    drop(other);
    process.logs("config reloaded").await;
}

#[tokio::test]
async fn a_socket_of_the_service_manager_that_a_reload_does_not_want_resets_its_clients() {
    let port = free_port();
    let script = format!(
        "exec perl -MIO::Socket::INET -e '$^F = 9; $s = IO::Socket::INET->new(Listen => 5, LocalAddr => \"127.0.0.1:{port}\") \
         or die; fileno($s) == 3 or die; $ENV{{LISTEN_FDS}} = 1; $ENV{{LISTEN_PID}} = $$; exec @ARGV' \"$@\""
    );
    let process = Process::start_with(&tcp_route("127.0.0.1", port), &[], &script).await;
    let local = SocketAddr::from(([127, 0, 0, 1], port));
    assert!(process.get(local, "any").await.is_some(), "{}", process.log());
    fs::write(process.config(), "{}\n").unwrap();
    process.logs("the service manager listens there").await;
    let came = Instant::now();
    assert!(process.get(local, "any").await.is_none() && came.elapsed() < Duration::from_secs(5));
    fs::write(process.config(), tcp_route("127.0.0.1", port)).unwrap();
    eventually("it is used again", || async { process.get(local, "any").await.is_some() }).await;
}

#[tokio::test]
async fn a_kubeconfig_that_becomes_a_pipe_stops_neither_requests_nor_signals() {
    let script = "cp \"$KUBECONFIG\" \"$HOME/kube\" && exec \"$@\" --kubeconfig \"$HOME/kube\"";
    let mut process = Process::start_with("", &[], script).await;
    assert!(process.serves("web.shop.localhost").await);
    let kubeconfig = process.home().join("kube");
    fs::remove_file(&kubeconfig).unwrap();
    assert!(Command::new("mkfifo").arg(&kubeconfig).status().await.unwrap().success());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(process.serves("web.shop.localhost").await, "{}", process.log());
    process.logs("still using its contexts").await;
    let new = process.home().join("new");
    fs::write(&new, fs::read_to_string(process.demo.kubeconfig()).unwrap().replace("demo", "another")).unwrap();
    fs::rename(&new, &kubeconfig).unwrap();
    let context = async || process.command(&["status", "-o", "json"]).await.1;
    eventually("it is read again", || async { context().await.contains("\"context\": \"another\"") }).await;
    fs::remove_file(&kubeconfig).unwrap();
    assert!(Command::new("mkfifo").arg(&kubeconfig).status().await.unwrap().success());
    tokio::time::sleep(Duration::from_secs(2)).await;
    process.signal("TERM").await;
    timeout(Duration::from_secs(11), process.child.wait()).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn a_tcp_route_listens_on_both_loopbacks_and_follows_a_change_of_either() {
    let port = free_port();
    let route = |listen: &str| {
        format!("tcp: {{k8s: {{routes: {{{port}: {{namespace: shop, service: web, port: 80{listen}}}}}}}}}\n")
    };
    let process = Process::start(&route(""), &[]).await;
    let serves = async |ip: &str| process.get(format!("{ip}:{port}").parse().unwrap(), "any").await.is_some();
    assert!(serves("127.0.0.1").await && serves("[::1]").await);
    fs::write(process.config(), route(", listen: \"::1\"")).unwrap();
    process.logs("config reloaded").await;
    assert!(!serves("127.0.0.1").await && serves("[::1]").await);
    fs::write(process.config(), route(", listen: 127.0.0.1")).unwrap();
    eventually("the other one", || async { serves("127.0.0.1").await && !serves("[::1]").await }).await;
}

#[tokio::test]
async fn the_first_connection_of_a_new_listener_finds_its_route() {
    // So many that a connection arrives while they are closed. None is in the ephemeral range.
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let gone: Vec<u16> = (11_000..20_000).filter(is_free).take(400).collect();
    let process = Process::start(&tcp_routes("127.0.0.1", &gone), &[]).await;
    for round in 0..3 {
        let port = free_port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let client = tokio::task::spawn_blocking(move || {
            let deadline = std::time::Instant::now() + PATIENCE;
            let mut stream = loop {
                match std::net::TcpStream::connect(address) {
                    Ok(stream) => break stream,
                    Err(_) => assert!(std::time::Instant::now() < deadline, "it never listened"),
                }
            };
            let mut answer = String::new();
            std::io::Write::write_all(&mut stream, b"GET /whoami HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
            std::io::Read::read_to_string(&mut stream, &mut answer).map(|_| answer)
        });
        // The others close in the same reload, and open in the next one.
        let mut ports = if round % 2 == 0 { Vec::new() } else { gone.clone() };
        ports.push(port);
        fs::write(process.config(), tcp_routes("127.0.0.1", &ports)).unwrap();
        let answer = client.await.unwrap().unwrap_or_else(|error| panic!("round {round}: {error}: {}", process.log()));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn a_comment_is_no_change_and_a_signal_applies_what_is_not_followed() {
    let process = Process::start("auto_reload_config: false\n", &[]).await;
    let with_route =
        "auto_reload_config: false\nhttp: {k8s: {routes: {one.localhost: {namespace: shop, service: web}}}}\n";
    fs::write(process.config(), "auto_reload_config: false # still\n").unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(!process.log().contains("config"), "{}", process.log());
    fs::write(process.config(), with_route).unwrap();
    process.logs("auto_reload_config is false").await;
    assert!(!process.serves("one.localhost").await);
    process.signal("HUP").await;
    process.logs("config reloaded").await;
    assert!(process.serves("one.localhost").await);
}

#[tokio::test]
async fn a_signal_lets_requests_finish_and_a_second_one_ends_them() {
    for (signals, code, body) in [(1, 0, "slow\n"), (2, 130, "")] {
        let mut process = Process::start("", &[]).await;
        assert!(process.serves("web.shop.localhost").await);
        let mut stream = TcpStream::connect(process.http).await.unwrap();
        stream.write_all(b"GET /slow HTTP/1.1\r\nHost: web.shop.localhost\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        for _ in 0..signals {
            process.signal("TERM").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(process.exit_code().await, Some(code));
        let mut answer = String::new();
        // After the second signal the connection may be reset.
        let _ = stream.read_to_string(&mut answer).await;
        assert_eq!(answer.split_once("\r\n\r\n").map_or("", |(_, body)| body), body, "{answer}");
    }
}

#[tokio::test]
async fn log_lines_are_json_where_that_is_asked_for() {
    let process = Process::start("", &["--log-format", "json", "--verbose"]).await;
    assert!(process.serves("web.shop.localhost").await);
    process.logs("/whoami").await;
    let log = process.log();
    assert!(log.lines().all(|line| line.matches("\"target\":").count() == 1), "a key comes once: {log}");
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let access = lines.iter().find(|line| line["path"] == "/whoami").unwrap_or_else(|| panic!("{log}"));
    assert_eq!((&access["status"], &access["level"]), (&200.into(), &"INFO".into()), "{access}");
}

#[tokio::test]
async fn at_its_open_file_limit_it_answers_everybody_and_serves_again_when_there_are_some() {
    let process = Process::start_with("", &[], "ulimit -Sn 40; ulimit -Hn 40; exec \"$@\"").await;
    // More connections than adit accepts, so that new ones wait in the socket's queue.
    let mut silent = Vec::new();
    for _ in 0..150 {
        silent.push(TcpStream::connect(process.http).await.unwrap());
    }
    let mut waited = Vec::new();
    for _ in 0..3 {
        let (began, mut told) = (Instant::now(), String::new());
        let mut visitor = TcpStream::connect(process.http).await.unwrap();
        visitor.write_all(b"GET / HTTP/1.1\r\nHost: web.shop.localhost\r\n\r\n").await.unwrap();
        timeout(PATIENCE, visitor.read_to_string(&mut told)).await.unwrap().unwrap();
        assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("open-file-limit"), "{told}");
        waited.push(began.elapsed());
    }
    // It takes 100 ms on an idle machine.
    assert!(waited.iter().min() < Some(&Duration::from_secs(1)), "{waited:?}");
    process.logs("cannot accept").await;
    drop(silent);
    let started = Instant::now();
    eventually("it serves again", || process.serves("web.shop.localhost")).await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_second_adit_leaves_the_socket_of_the_first_alone() {
    let process = Process::start("", &[]).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    let mut second = environment(&mut command, &process.home)
        .args(["--listen", "127.0.0.1:0", "--config"])
        .arg(process.config())
        .env("KUBECONFIG", process.demo.kubeconfig())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut said = [0; 16];
    timeout(PATIENCE, second.stdout.as_mut().unwrap().read_exact(&mut said)).await.unwrap().unwrap();
    eventually("both are shown", || async { process.status().await.matches(" listens on ").count() == 2 }).await;
    let (ok, _, error) = process.command(&["stop", "demo/shop/web"]).await;
    assert!(
        !ok && error.contains("2 adits are running") && error.contains("hint: say which: --listen 127.0.0.1:"),
        "{error}"
    );
    let port = process.http.port().to_string();
    let (_, shown, _) = process.command(&["--listen", &port, "status"]).await;
    assert_eq!(shown.matches(" listens on ").count(), 1, "{shown}");
}

#[tokio::test]
async fn an_adit_that_found_its_sockets_in_use_has_one_when_another_is_gone() {
    let mut first = Process::start("", &[]).await;
    // The same port on other addresses, so the socket has the same name, and there are two folders for it.
    let mut others = Vec::new();
    for address in ["127.0.0.2", "127.0.0.3"] {
        let address = format!("{address}:{}", first.http.port());
        let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
        let child = environment(&mut command, &first.home)
            .args(["--listen", &address, "--config"])
            .arg(first.config())
            .env("KUBECONFIG", first.demo.kubeconfig())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        eventually("it serves", || async { TcpStream::connect(&address).await.is_ok() }).await;
        others.push((address, child));
    }
    let found = first.status().await;
    assert!(found.contains(&others[0].0) && !found.contains(&others[1].0), "{found}");
    first.signal("TERM").await;
    assert_eq!(first.exit_code().await, Some(0));
    eventually("the third is found", || async { first.status().await.contains(&others[1].0) }).await;
}

#[tokio::test]
async fn a_file_selects_the_adit_that_runs_with_it() {
    let process = Process::start("", &[]).await;
    let (own, other) = (process.config(), process.home().join("other.yaml"));
    fs::write(&other, "").unwrap();
    let status = async |file: &Path| process.command(&["--config", file.to_str().unwrap(), "status"]).await;
    let (is_ok, shown, error) = status(&own).await;
    assert!(is_ok && shown.contains(&process.http.to_string()), "{shown}{error}");
    let (is_ok, _, error) = status(&other).await;
    assert!(!is_ok && error.contains("no adit is running with this"), "{error}");
    assert!(error.contains(&process.http.to_string()), "it names the one that runs: {error}");
    let (is_ok, _, error) = status(&process.home().join("missing.yaml")).await;
    assert!(!is_ok && error.contains("no such file"), "{error}");
}

/// Requests a page by https, and trusts only the CA in a file. Returns the response.
async fn https(process: &Process, host: &str, authority: &[u8]) -> Result<String, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let config =
        config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(process.http).await.unwrap();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let mut stream = timeout(PATIENCE, connecting).await.expect("in time").map_err(|error| error.to_string())?;
    let request = format!("GET /headers HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("in time");
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn an_authority_is_taken_up_while_adit_runs_and_ends_tls_by_name() {
    let routes = "http: {k8s: {routes: {\n\
        pass.localhost: {namespace: shop, service: tools, port: https, tls: passthrough},\n\
        end.localhost: {namespace: shop, service: tools, port: https, tls: terminate}}}}\n";
    let process = Process::start(routes, &[]).await;
    let (_, said, _) = process.command(&["trust", "status"]).await;
    assert!(said.contains("there is no CA"), "{said}");
    for _ in 0..2 {
        let (_, said, errors) = process.command(&["trust", "install"]).await;
        assert!(said.contains("local names only, sha256:") && said.contains("names     localhost"), "{said}{errors}");
    }
    let authority = fs::read(process.home.path().join(".local/share/adit/ca/cert.pem")).unwrap();
    let plain = https(&process, "web.shop.localhost", &authority);
    eventually("the authority is taken up", || async {
        https(&process, "web.shop.localhost", &authority).await.is_ok()
    })
    .await;
    assert!(plain.await.unwrap().contains("\"tls\": false"));
    // adit terminates TLS, and opens its own to the backend.
    for host in ["end.localhost", "127.0.0.1"] {
        let answer = https(&process, host, &authority).await.unwrap();
        assert!(
            host == "127.0.0.1" || answer.contains("\"tls\": true") && answer.contains("x-forwarded-proto"),
            "{answer}"
        );
    }
    let spec = serde_json::json!({
        "selector": {"app": "tools"}, "clusterIP": "10.96.7.7",
        "ports": [{"name": "smtps", "port": 465, "targetPort": 8443, "protocol": "TCP"}],
    });
    process
        .demo
        .world()
        .put("services", serde_json::json!({"metadata": {"namespace": "shop", "name": "mail"}, "spec": spec}));
    // The last one is no HTTP by its port, and the client does not offer HTTP.
    for host in ["443.tools.shop.localhost", "pass.localhost", "mail.shop.localhost"] {
        let error = https(&process, host, &authority).await.unwrap_err();
        assert!(error.contains("UnknownIssuer") || error.contains("invalid peer certificate"), "{host}: {error}");
    }
    let (_, variables, _) = process.command(&["trust", "env"]).await;
    assert!(
        variables.contains("export NODE_EXTRA_CA_CERTS='") && variables.contains("export SSL_CERT_FILE='"),
        "{variables}"
    );
    let (_, said, errors) = process.command(&["trust", "uninstall"]).await;
    assert!(said.contains("deleted   the CA and its key"), "{said}{errors}");
    assert!(!process.home.path().join(".local/share/adit/ca").exists() && !process.home.path().join(".pki").exists());
    eventually("it is forgotten", || async { https(&process, "web.shop.localhost", &authority).await.is_err() }).await;
}

#[tokio::test]
async fn a_kubeconfig_that_is_a_pipe_is_read_once_and_served() {
    let script =
        "mkfifo \"$HOME/pipe\" && { cat \"$KUBECONFIG\" > \"$HOME/pipe\" & exec \"$@\" --kubeconfig \"$HOME/pipe\"; }";
    let process = Process::start_with("", &[], script).await;
    assert!(process.serves("web.shop.localhost").await);
}

#[tokio::test]
async fn a_command_reads_a_kubeconfig_that_is_a_pipe_once() {
    let (demo, home) = (start_demo().await, tempfile::tempdir().unwrap());
    let secret =
        serde_json::json!({"metadata": {"namespace": "shop", "name": "pass"}, "data": {"key": "aHVudGVyMg=="}});
    demo.world().put("secrets", secret);
    for (arguments, told) in [
        (
            &["run", "--to", "web=web.shop", "--secret", "WORD=shop/pass:key", "--", "sh", "-c", "echo $WORD"][..],
            "hunter2",
        ),
        (&["routes", "--context", "demo", "-n", "shop"], "shop/web"),
        (&["url", "--context", "demo", "web.shop"], "web.shop"),
    ] {
        let script = "rm -f \"$HOME/pipe\" && mkfifo \"$HOME/pipe\" && { cat \"$KUBECONFIG\" > \"$HOME/pipe\" & \
            exec \"$@\" --kubeconfig \"$HOME/pipe\"; }";
        // The options of adit come before the command that it runs.
        let script = if arguments[0] == "run" {
            "rm -f \"$HOME/pipe\" && mkfifo \"$HOME/pipe\" && { cat \"$KUBECONFIG\" > \"$HOME/pipe\" & \
                export KUBECONFIG=\"$HOME/pipe\"; exec \"$@\"; }"
        } else {
            script
        };
        let mut command = Command::new("sh");
        let command = environment(&mut command, &home).args(["-c", script, "sh", env!("CARGO_BIN_EXE_adit")]);
        let command = command.args(arguments).env("KUBECONFIG", demo.kubeconfig()).kill_on_drop(true);
        let output =
            timeout(PATIENCE, command.output()).await.unwrap_or_else(|_| panic!("{arguments:?} ends")).unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(told), "{arguments:?}: {said} {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn a_kubeconfig_that_nobody_writes_is_told_and_a_signal_ends_the_wait() {
    let home = tempfile::tempdir().unwrap();
    let pipe = home.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().await.unwrap().success());
    let up = (&["up", "--listen", "127.0.0.1:0"][..], "still reading the kubeconfig");
    let others = [
        &["routes"][..],
        &["wait", "web.shop"],
        &["run", "--to", "web=web.shop", "--", "true"],
        &["expose", "3000:80", "--as", "web.shop"],
        &["expose", "ls"],
        &["doctor"],
        &["connect", "web.shop"],
    ];
    for (arguments, told) in [up].into_iter().chain(others.map(|arguments| (arguments, ""))) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
        let command = environment(&mut command, &home).args(arguments).env("KUBECONFIG", &pipe).kill_on_drop(true);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut errors = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stderr.take().unwrap()));
        if told.is_empty() {
            // It has its signals by then.
            tokio::time::sleep(Duration::from_millis(500)).await;
        } else {
            let line = timeout(PATIENCE, errors.next_line()).await.expect("it is told").unwrap().unwrap();
            assert!(line.contains(told) && line.ends_with("/pipe"), "{line}");
        }
        let id = child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().await.unwrap().success());
        let ended = timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
        let by_signal = std::os::unix::process::ExitStatusExt::signal(&ended);
        assert!(ended.code() == Some(130) || by_signal == Some(2), "{arguments:?}: {ended}");
    }
}

#[tokio::test]
async fn a_context_that_does_not_exist_is_told_at_the_start() {
    let (demo, home) = (start_demo().await, tempfile::tempdir().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    let command = environment(&mut command, &home).args(["up", "--listen", "127.0.0.1:0", "--context", "nope"]);
    let command = command.env("KUBECONFIG", demo.kubeconfig()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    let line = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.starts_with("context") {
                return line;
            }
        }
        String::new()
    };
    let line = timeout(PATIENCE, line).await.expect("it starts");
    let file = demo.kubeconfig().display().to_string();
    let wanted = format!("context   nope, which does not exist: {file} has demo, ");
    assert!(line.starts_with(&wanted), "{line}");
}

#[tokio::test]
async fn a_socket_that_a_killed_adit_has_left_hides_no_running_one() {
    let home = tempfile::tempdir().unwrap();
    // The running adit has no $XDG_RUNTIME_DIR, and the command has one, with a socket that nobody answers.
    let process = {
        let demo = start_demo().await;
        let kubeconfig = demo.kubeconfig();
        Process::start_on(demo, &kubeconfig, "", &[], "unset XDG_RUNTIME_DIR; exec \"$@\"").await
    };
    let name = format!("{}.sock", process.http.port());
    assert!(process.home().join(".local/state/adit").join(&name).exists());
    fs::create_dir(home.path().join("adit")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(home.path().join("adit").join(&name)).unwrap());
    let command = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
        environment(&mut command, &process.home).env("XDG_RUNTIME_DIR", home.path());
        command.args(["--listen", &process.http.to_string(), "--config"]).arg(process.config());
        let output = command.args(arguments).env("KUBECONFIG", process.demo.kubeconfig()).output().await.unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (is_ok, said) = command(&["env", "--to", "web=web.shop"]).await;
    assert!(is_ok && said.contains("WEB_PORT="), "{said}");
    let (_, said) = command(&["doctor"]).await;
    assert!(!said.contains("none runs with this configuration"), "{said}");
}
