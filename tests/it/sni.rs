//! The SNI listener: names, commands, PROXY headers, PostgreSQL.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use adit::{
    app::{App, Overrides},
    config::{KubeconfigPaths, validate},
    demo::Demo,
    drain::Drain,
};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;

use crate::support::{PATIENCE, eventually, on_workers, spawn, start_demo};

/// Number of apps that the tests have started.
static APPS: AtomicU16 = AtomicU16::new(0);

/// adit with an SNI listener, and a fake cloudflared.
struct SniApp {
    sni: SocketAddr,
    http: SocketAddr,
    drain: Drain,
    folder: TempDir,
    _demo: Demo,
}

impl SniApp {
    /// `config`: the rest of the configuration below `sni`.
    async fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stand_in = folder.path().join("cloudflared");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/cloudflared.pl");
        fs::write(&stand_in, format!("#!/bin/sh\nexec perl {script} \"$@\"\n")).unwrap();
        fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
        let file = folder.path().join("config.yaml");
        // Each app has its own range of ports, so that two of them cannot choose the same port before a command listens there.
        let first = 13_000 + 50 * APPS.fetch_add(1, Ordering::SeqCst);
        let text = format!(
            "sni:\n  listen: 127.0.0.1:0\n  port_range: {first}-{}\n  cloudflared: {{path: {}}}\n{config}",
            first + 49,
            stand_in.display()
        );
        fs::write(&file, &text).unwrap();
        let demo = start_demo().await;
        let overrides = Overrides {
            kubeconfig: Some(KubeconfigPaths(vec![demo.kubeconfig()])),
            listen: Some(vec!["127.0.0.1:0".parse().unwrap()]),
            ..Overrides::default()
        };
        let supervisor = Some(PathBuf::from(env!("CARGO_BIN_EXE_adit")));
        let app = App { overrides, file: Some(file), supervisor, ..App::default() };
        let config = validate::parse("config.yaml".as_ref(), text.as_bytes()).unwrap();
        let bound = on_workers(async move { app.bind(config).unwrap() }).await;
        // Each loopback address gets another port. The first address is IPv4.
        let (sni, http) = (bound.sni_addresses()[0], bound.http_addresses()[0]);
        let drain = Drain::new();
        let of_app = drain.clone();
        spawn(async move { bound.run(of_app).await.unwrap() });
        Self { sni, http, drain, folder, _demo: demo }
    }

    /// Sends `before` and a ClientHello for `name`. Returns the first line of the answer, the stream, and the ClientHello.
    async fn greet(&self, before: &[u8], name: &str) -> (String, BufReader<TcpStream>, Vec<u8>) {
        let mut stream = TcpStream::connect(self.sni).await.unwrap();
        let hello = hello(name).await;
        stream.write_all(before).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        let (mut stream, mut line) = (BufReader::new(stream), Vec::new());
        // A TLS alert has no line feed, but ends.
        timeout(PATIENCE, stream.read_until(b'\n', &mut line)).await.expect("in time").unwrap();
        (String::from_utf8_lossy(&line).trim_end().to_owned(), stream, hello)
    }

    /// Returns the TLS alert for a client of `name`.
    async fn alert(&self, name: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.sni).await.unwrap();
        stream.write_all(&hello(name).await).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("in time").unwrap();
        answer
    }
}

fn connector(alpn: &[&[u8]]) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// Returns a ClientHello of rustls.
async fn hello(name: &str) -> Vec<u8> {
    let (client, mut server) = tokio::io::duplex(16 * 1024);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connecting = tokio::spawn(async move { connector(&[]).connect(name, client).await.map(drop) });
    let mut hello = vec![0; 5];
    server.read_exact(&mut hello).await.unwrap();
    let length = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
    hello.resize(5 + length, 0);
    server.read_exact(&mut hello[5..]).await.unwrap();
    connecting.abort();
    hello
}

const ROUTES: &str = "  idle_timeout: 1s\n  startup_timeout: 2s\n  routes:\n    db1.example.com: {cloudflared: {hostname: one.example.com}}\n\
    \x20   db2.example.com: {cloudflared: {hostname: one.example.com}}\n    \"*.pg.example.com\": {cloudflared: {hostname: other.example.com}}\n\
    \x20   fails.example.com: {cloudflared: {hostname: fails.example.com}}\n    hangs.example.com: {cloudflared: {hostname: hangs.example.com}}\n\
    \x20   cat.example.com: {command: {run: [cat], mode: stdio}, send_proxy: v1}\n";

fn is_alive(pid: &str) -> bool {
    // A zombie counts as dead.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn names_of_one_backend_share_a_process_that_comes_and_goes() {
    let app = SniApp::start(ROUTES).await;
    let (first, mut one, sent) = app.greet(b"", "db1.example.com").await;
    let (second, two, _) = app.greet(b"", "db2.example.com").await;
    assert!(first.starts_with("one.example.com "), "{first}");
    assert_eq!(first, second);
    let (other, three, _) = app.greet(b"", "a.b.pg.example.com").await;
    assert!(other.starts_with("other.example.com "), "{other}");
    // The client's first bytes arrive unchanged.
    let mut echo = vec![0; sent.len()];
    one.read_exact(&mut echo).await.unwrap();
    assert_eq!(echo, sent);
    // The process dies while in use: the next client gets a new one.
    one.get_mut().write_all(b"DIE").await.unwrap();
    drop((two, three));
    let pid = first.split(' ').nth(1).unwrap().to_owned();
    eventually("it is dead", || async { !is_alive(&pid) }).await;
    let (again, four, _) = app.greet(b"", "db1.example.com").await;
    assert!(again.starts_with("one.example.com ") && again != first, "{again}");
    drop((one, four));
    let pid = again.split(' ').nth(1).unwrap().to_owned();
    eventually("it is stopped when nobody uses it", || async { !is_alive(&pid) }).await;
    app.drain.finish(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_command_that_lives_and_listens_no_more_is_replaced() {
    let app = SniApp::start(ROUTES).await;
    let (first, mut one, sent) = app.greet(b"", "db1.example.com").await;
    let mut echo = vec![0; sent.len()];
    one.read_exact(&mut echo).await.unwrap();
    one.get_mut().write_all(b"DEAF").await.unwrap();
    one.read_exact(&mut [0; 4]).await.unwrap();
    let pid = first.split(' ').nth(1).unwrap().to_owned();
    sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    let (second, ..) = app.greet(b"", "db1.example.com").await;
    assert!(second.starts_with("one.example.com ") && second != first, "{second}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    drop(one);
    eventually("the first one is ended", || async { !is_alive(&pid) }).await;
    app.drain.finish(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn what_leads_nowhere_is_an_alert() {
    let app = SniApp::start(ROUTES).await;
    let alert = |description| vec![0x15, 3, 3, 0, 2, 2, description];
    assert_eq!(app.alert("nobody.example.com").await, alert(112));
    assert_eq!(app.alert("fails.example.com").await, alert(80));
    assert_eq!(app.alert("hangs.example.com").await, alert(80));
    // A TLS record that is not a ClientHello, and bytes that are not TLS.
    for (sent, wanted) in [(&b"\x16\x03\x01\x00\x04\x02\0\0\0"[..], alert(50)), (b"GET / HTTP/1.1\r\n\r\n", Vec::new())]
    {
        let mut stream = TcpStream::connect(app.sni).await.unwrap();
        stream.write_all(sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("in time");
        assert_eq!(answer, wanted);
    }
    app.drain.finish(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_proxy_header_is_read_where_it_is_configured_and_passed_on() {
    let app = SniApp::start(&format!("  proxy_protocol: require\n  trusted_proxies: [127.0.0.0/8]\n{ROUTES}")).await;
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\x12\x34\x01\xbb";
    for header in [&b"PROXY TCP4 192.0.2.1 192.0.2.2 4660 443\r\n"[..], v2] {
        let (line, ..) = app.greet(header, "cat.example.com").await;
        assert!(line.starts_with("PROXY TCP4 192.0.2.1 192.0.2.2 4660 443"), "{line}");
    }
    // Without a PROXY header, adit does not answer.
    let (line, ..) = app.greet(b"", "cat.example.com").await;
    assert_eq!(line, "");
    app.drain.finish(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn postgres_asks_for_tls_first_and_says_its_name_then() {
    let app = SniApp::start(ROUTES).await;
    let gssenc = b"\0\0\0\x08\x04\xd2\x16\x30";
    let ssl = b"\0\0\0\x08\x04\xd2\x16\x2f";
    let mut stream = TcpStream::connect(app.http).await.unwrap();
    let mut answer = [0];
    for (request, wanted) in [(gssenc, b'N'), (ssl, b'S')] {
        stream.write_all(request).await.unwrap();
        timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer[0], wanted);
    }
    // The demo's server has no TLS, so adit terminates it, with a certificate that no CA has signed.
    let name = ServerName::try_from("postgres.data.localhost").unwrap();
    let error = connector(&[b"postgresql"]).connect(name, stream).await.unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    // Without TLS there is no name; adit reports that as a PostgreSQL error.
    for address in [app.http, app.sni] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"\0\0\0\x17\0\x03\0\0user\0demo\0\0").await.unwrap();
        let mut answer = Vec::new();
        stream.shutdown().await.unwrap();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with(b"E") && String::from_utf8_lossy(&answer).contains("sslmode=require"));
    }
    app.drain.finish(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_reload_brings_no_command_that_nobody_has_asked_for() {
    let app = SniApp::start(ROUTES).await;
    let file = app.folder.path().join("config.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let marker = app.folder.path().join("ran");
    let evil =
        format!("{text}    evil.example.com: {{command: {{run: [touch, {}, \"{{port}}\"]}}}}\n", marker.display());
    fs::write(&file, evil).unwrap();
    sleep(Duration::from_secs(1)).await;
    app.alert("evil.example.com").await;
    assert!(!marker.exists());
    // A reload that removes a route is applied, even without permission for new commands.
    fs::write(&file, text.replace("db2.example.com", "db3.example.com")).unwrap();
    eventually("the new name leads there", || async { app.greet(b"", "db3.example.com").await.0.starts_with("one.") })
        .await;
    app.drain.finish(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_command_ends_with_its_last_route() {
    let app = SniApp::start(&ROUTES.replace("idle_timeout: 1s", "idle_timeout: 10m")).await;
    let file = app.folder.path().join("config.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let (said, ..) = app.greet(b"", "a.pg.example.com").await;
    let pid = said.rsplit(' ').next().unwrap_or_default().to_owned();
    assert!(is_alive(&pid), "{said}");
    let without: Vec<&str> = text.lines().filter(|line| !line.contains("other.example.com")).collect();
    fs::write(&file, without.join("\n") + "\n").unwrap();
    eventually("the command has ended", || async { !is_alive(&pid) }).await;
    app.drain.finish(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn no_command_outlives_adit() {
    // The supervisor's parent is a shell, which is killed.
    let mut shell = tokio::process::Command::new("sh")
        .args([
            "-c",
            "\"$0\" supervise -- sh -c 'echo $$; trap \"\" TERM; while :; do sleep 0.1; done' & wait",
            env!("CARGO_BIN_EXE_adit"),
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(shell.stdout.take().unwrap());
    let mut pid = String::new();
    timeout(PATIENCE, said.read_line(&mut pid)).await.unwrap().unwrap();
    let pid = pid.trim().to_owned();
    assert!(is_alive(&pid));
    shell.kill().await.unwrap();
    eventually("the command is dead, though it does not listen to SIGTERM", || async { !is_alive(&pid) }).await;
}
