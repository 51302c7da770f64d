//! Gateways between adit and the API server that do not pass every upgrade.

use std::{
    fs, io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use adit::{app::App, tls::Pinned};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, ServerName},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::{PATIENCE, TestApp, ports::free_port, start_demo};

/// What a gateway does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Pass,
    /// Sends a text, and passes the request.
    PassAfter(&'static str),
    /// Passes the request late.
    PassLate(Duration),
    /// Passes the request, and ends the connection after this long without bytes.
    PassUntilIdle(Duration),
    /// Ends the connection cleanly, with TLS close_notify and FIN.
    Close,
    /// Ends the connection with a reset.
    Reset,
    /// Keeps the connection open without an answer.
    Swallow,
    /// Passes the request and the 101, but nothing that follows.
    SwitchAndSwallow,
    /// Sends a 101 itself at once, and passes everything late.
    SwitchAndPassLate(Duration),
    Say(&'static str),
}
use Does::{Close, Pass, PassAfter, PassLate, PassUntilIdle, Reset, Say, Swallow, SwitchAndPassLate, SwitchAndSwallow};

/// Kinds of upgrade that a gateway can distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Spdy,
    Tunnel,
    Channels,
}

impl Kind {
    /// Returns the kind of upgrade that a request head asks for. `None`: no upgrade.
    fn of(head: &str) -> Option<Self> {
        let head = head.to_ascii_lowercase();
        if !head.contains("\r\nupgrade:") {
            return None;
        }
        Some(if head.contains("spdy/3.1+portforward.k8s.io") {
            Self::Tunnel
        } else if head.contains("upgrade: spdy/3.1") {
            Self::Spdy
        } else {
            Self::Channels
        })
    }
}

type Rule = Box<dyn Fn(Kind) -> Does + Send + Sync>;

/// A gateway that terminates TLS in front of a demo API server, and applies its rule to the first request of each connection.
struct Gateway {
    port: u16,
    rule: Arc<Mutex<Rule>>,
    seen: Arc<Mutex<Vec<Kind>>>,
    task: JoinHandle<()>,
}

impl Gateway {
    async fn start(to: SocketAddr, rule: impl Fn(Kind) -> Does + Send + Sync + 'static) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let server = rustls::ServerConfig::builder_with_provider(provider.clone());
        let mut server = server
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let client = rustls::ClientConfig::builder_with_provider(provider.clone());
        let client = client
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Pinned::to_nothing(provider))
            .with_no_client_auth();
        let (acceptor, connector) = (TlsAcceptor::from(Arc::new(server)), TlsConnector::from(Arc::new(client)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let rule: Arc<Mutex<Rule>> = Arc::new(Mutex::new(Box::new(rule)));
        let seen: Arc<Mutex<Vec<Kind>>> = Arc::default();
        let (ruling, noting) = (rule.clone(), seen.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, connector) = (acceptor.clone(), connector.clone());
                tokio::spawn(serve(client, to, acceptor, connector, ruling.clone(), noting.clone()));
            }
        });
        Self { port, rule, seen, task }
    }

    fn change(&self, rule: impl Fn(Kind) -> Does + Send + Sync + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
    }

    /// Returns the upgrades requested since the last call.
    fn seen(&self) -> Vec<Kind> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    client: TcpStream,
    to: SocketAddr,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    rule: Arc<Mutex<Rule>>,
    seen: Arc<Mutex<Vec<Kind>>>,
) -> io::Result<()> {
    let mut client = acceptor.accept(client).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let does = match Kind::of(&String::from_utf8_lossy(&head)) {
        Some(kind) => {
            seen.lock().unwrap().push(kind);
            (rule.lock().unwrap())(kind)
        }
        None => Pass,
    };
    match does {
        Pass | PassUntilIdle(_) | SwitchAndSwallow | SwitchAndPassLate(_) => {}
        PassAfter(said) => client.write_all(said.as_bytes()).await?,
        PassLate(late) => sleep(late).await,
        Close => return client.shutdown().await,
        Reset => return client.into_inner().0.set_zero_linger(),
        Swallow => {
            while client.read_u8().await.is_ok() {}
            return Ok(());
        }
        Say(said) => {
            client.write_all(said.as_bytes()).await?;
            return client.shutdown().await;
        }
    }
    let server = TcpStream::connect(to).await?;
    let mut server = connector.connect(ServerName::try_from("kubernetes").unwrap(), server).await?;
    server.write_all(&head).await?;
    match does {
        SwitchAndSwallow => {
            let mut switch = Vec::new();
            while !switch.ends_with(b"\r\n\r\n") {
                switch.push(server.read_u8().await?);
            }
            client.write_all(&switch).await?;
            while client.read_u8().await.is_ok() {}
            return Ok(());
        }
        SwitchAndPassLate(late) => {
            let mut switch = Vec::new();
            while !switch.ends_with(b"\r\n\r\n") {
                switch.push(server.read_u8().await?);
            }
            client.write_all(&switch).await?;
            sleep(late).await;
        }
        _ => {}
    }
    let PassUntilIdle(idle) = does else {
        copy_bidirectional(&mut client, &mut server).await?;
        return Ok(());
    };
    let (mut up, mut down) = ([0; 16 * 1024], [0; 16 * 1024]);
    loop {
        tokio::select! {
            count = client.read(&mut up) => match count? {
                0 => return Ok(()),
                count => server.write_all(&up[..count]).await?,
            },
            count = server.read(&mut down) => match count? {
                0 => return Ok(()),
                count => client.write_all(&down[..count]).await?,
            },
            () = sleep(idle) => return Ok(()),
        }
    }
}

/// adit behind a gateway, with a TCP route to the echo of `tools`: a port-forward, or a jump.
struct Behind {
    app: TestApp,
    gateway: Gateway,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Behind {
    async fn start(jumps: bool, rule: impl Fn(Kind) -> Does + Send + Sync + 'static) -> Self {
        let demo = start_demo().await;
        let gateway = Gateway::start(demo.address(), rule).await;
        let written = fs::read_to_string(demo.kubeconfig()).unwrap();
        let token = written.split_once("token:").unwrap().1.trim_start_matches([' ', '"']);
        let token = token.split(['"', '}']).next().unwrap().trim();
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("config");
        let port = gateway.port;
        let text = format!(
            "current-context: x\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: \"https://127.0.0.1:{port}\", insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: u, user: {{token: \"{token}\"}}}}]\n"
        );
        fs::write(&kubeconfig, text).unwrap();
        let local = free_port();
        let config = match jumps {
            false => {
                format!("tcp: {{k8s: {{routes: {{{local}: {{namespace: shop, service: tools, port: 7000}}}}}}}}\n")
            }
            true => format!(
                "tcp: {{k8s: {{jump: {{{local}: {{namespace: shop, via: {{pod: tools-0}}, target: {{host: tools.shop, port: 7000}}}}}}}}}}\n"
            ),
        };
        let app = TestApp::start_on(demo, kubeconfig, &config, App::default()).await;
        let address = app.tcp[0];
        Self { app, gateway, address, _folder: folder }
    }

    /// Sends a word to the echo, and returns the time until it came back. `None`: it did not.
    async fn echo(&self) -> Option<Duration> {
        let started = Instant::now();
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_all(b"word").await?;
            let mut word = [0; 4];
            stream.read_exact(&mut word).await?;
            io::Result::Ok(word)
        };
        let word = timeout(PATIENCE, exchange).await.ok()?.ok()?;
        (&word == b"word").then(|| started.elapsed())
    }

    /// Ends the upgraded connections, so that the next stream needs a new one.
    async fn cut(&self) {
        self.app.demo.faults().drop_upgraded_connections();
        sleep(Duration::from_millis(100)).await;
    }
}

const REFUSALS: &[Does] = &[
    Close,
    Reset,
    Swallow,
    Say("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    Say("HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\n\r\n<html>blocked</html>"),
    Say("HTTP/1.1 426 Upgrade Required\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n"),
    Say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    Say("HTTP/1.1 302 Found\r\nLocation: https://sso.example.com/\r\nContent-Length: 0\r\n\r\n"),
    Say("HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot found"),
    Say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n"),
    Say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: \r\nSec-WebSocket-Protocol: \r\n\r\n"),
    Say("HTTP/1.0 400 Bad Request\r\n\r\n"),
    Say("HTTP/1.1 405 Method Not Allowed\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno!\r\n0\r\n\r\n"),
    Say("HTTP/2 is what I speak\r\n\r\n"),
    Say("\x15\x03\x01\x00\x02\x02\x28"),
];

#[tokio::test]
async fn the_transport_that_gets_through_is_found_and_remembered() {
    let mut cases = Vec::new();
    for refusal in REFUSALS {
        for passes in [Kind::Spdy, Kind::Tunnel, Kind::Channels] {
            cases.push((*refusal, passes, false));
        }
        for passes in [Kind::Spdy, Kind::Channels] {
            cases.push((*refusal, passes, true));
        }
    }
    let case = |(refusal, passes, jumps): (Does, Kind, bool)| async move {
        let behind = Behind::start(jumps, move |kind| if kind == passes { Pass } else { refusal }).await;
        let name = format!("{passes:?} passes, others: {refusal:?}, jump: {jumps}");
        let first = behind.echo().await.unwrap_or_else(|| panic!("{name}"));
        assert!(first < Duration::from_secs(15), "{name}: {first:?}");
        let tried = behind.gateway.seen();
        assert!(tried.iter().filter(|kind| **kind != passes).count() <= 2, "{name}: {tried:?}");
        behind.cut().await;
        assert!(behind.echo().await.is_some(), "{name}: again");
        let again = behind.gateway.seen();
        assert!(again.iter().all(|kind| *kind == passes), "{name} is remembered: {again:?}");
        behind.app.drain().cut();
    };
    // A few at a time: an overloaded machine answers late, which looks like a swallowed upgrade.
    for some in cases.chunks(4) {
        futures::future::join_all(some.iter().copied().map(case)).await;
    }
}

#[tokio::test]
async fn load_and_restarts_change_no_transport_and_are_left_alone() {
    let refusals = [
        ("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n", 4),
        ("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n", 4),
        ("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 17\r\n\r\n{\"kind\":\"Status\"}", 14),
        ("HTTP/1.1 502 Bad Gateway\r\nAudit-Id: 1\r\nContent-Length: 4\r\n\r\n<p/>", 14),
    ];
    let case = |(refusal, most): (&'static str, usize)| async move {
        // adit has learned that this path does not pass SPDY, and uses the tunnel.
        let behind = Behind::start(false, |kind| if kind == Kind::Spdy { Close } else { Pass }).await;
        assert!(behind.echo().await.is_some());
        behind.gateway.seen();
        for _ in 0..2 {
            behind.gateway.change(move |_| Say(refusal));
            behind.cut().await;
            let restart = async {
                sleep(Duration::from_millis(1500)).await;
                behind.gateway.change(|_| Pass);
            };
            let (echo, ()) = tokio::join!(behind.echo(), restart);
            assert!(echo.is_some(), "{refusal}");
            let seen = behind.gateway.seen();
            assert!(seen.iter().all(|kind| *kind == Kind::Tunnel), "{refusal}: {seen:?}");
            assert!(seen.len() <= most, "{refusal}: {} upgrades", seen.len());
        }
        behind.app.drain().cut();
    };
    futures::future::join_all(refusals.map(case)).await;
}

#[tokio::test]
async fn a_gateway_that_says_an_error_to_an_upgrade_it_does_not_know_is_passed_by_another() {
    for refusal in [
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\n<p/>",
        "HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n",
    ] {
        let behind = Behind::start(false, move |kind| if kind == Kind::Spdy { Say(refusal) } else { Pass }).await;
        assert!(behind.echo().await.is_some(), "{refusal}");
        assert_eq!(behind.gateway.seen(), [Kind::Spdy, Kind::Tunnel], "{refusal}");
        behind.app.drain().cut();
    }
}

#[tokio::test]
async fn clients_that_wait_for_the_same_dial_share_its_failure() {
    const CLIENTS: usize = 50;
    for passes in [Kind::Spdy, Kind::Channels] {
        let behind = Behind::start(false, move |kind| if kind == passes { Pass } else { Close }).await;
        assert!(behind.echo().await.is_some());
        behind.gateway.seen();
        let status = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 17\r\n\r\n{\"kind\":\"Status\"}";
        behind.gateway.change(move |_| Say(status));
        behind.cut().await;
        let restart = async {
            sleep(Duration::from_millis(1500)).await;
            let seen = behind.gateway.seen().len();
            behind.gateway.change(|_| Pass);
            seen
        };
        let clients = futures::future::join_all((0..CLIENTS).map(|_| behind.echo()));
        let (echoes, seen) = tokio::join!(clients, restart);
        assert!(echoes.iter().all(Option::is_some), "{passes:?}");
        // If each client needs its own connection, the first failures happen at the same time.
        let most = if passes == Kind::Spdy { 15 } else { CLIENTS + 15 };
        assert!(seen <= most, "{passes:?}: {seen} upgrades within 1.5 s for {CLIENTS} clients");
        behind.app.drain().cut();
    }
}

#[tokio::test]
async fn a_cluster_that_asks_to_be_left_alone_for_long_is_and_clients_are_told() {
    let behind =
        Behind::start(false, |_| Say("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 30\r\nContent-Length: 0\r\n\r\n"))
            .await;
    for _ in 0..3 {
        let started = Instant::now();
        let mut stream = TcpStream::connect(behind.app.http).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web.shop.localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.to_lowercase().contains("retry-after: 30\r\n") && answer.contains("unavailable"), "{answer}");
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    }
    assert_eq!(behind.gateway.seen().len(), 1);
    behind.app.drain().cut();
}

#[tokio::test]
async fn a_server_that_is_slow_keeps_its_transport() {
    for jumps in [false, true] {
        let behind = Behind::start(jumps, |_| PassLate(Duration::from_millis(1300))).await;
        assert!(behind.echo().await.is_some());
        behind.gateway.change(|_| Pass);
        sleep(Duration::from_millis(1500)).await;
        behind.gateway.seen();
        behind.cut().await;
        assert!(behind.echo().await.is_some());
        let default = if jumps { Kind::Channels } else { Kind::Spdy };
        assert_eq!(behind.gateway.seen().first(), Some(&default));
        behind.app.drain().cut();
    }
    // The first transport answers last: it was only slow.
    let behind =
        Behind::start(false, |kind| if kind == Kind::Spdy { PassLate(Duration::from_secs(2)) } else { Pass }).await;
    assert!(behind.echo().await.is_some());
    sleep(Duration::from_millis(1500)).await;
    behind.gateway.seen();
    behind.cut().await;
    assert!(behind.echo().await.is_some());
    assert_eq!(behind.gateway.seen().first(), Some(&Kind::Spdy));
    behind.app.drain().cut();
}

#[tokio::test]
async fn a_transport_that_is_switched_to_and_swallowed_is_left_for_the_next() {
    for passes in [Kind::Tunnel, Kind::Channels] {
        let behind = Behind::start(false, move |kind| if kind == passes { Pass } else { SwitchAndSwallow }).await;
        let first = behind.echo().await.unwrap_or_else(|| panic!("{passes:?}"));
        assert!(first < Duration::from_secs(12), "{passes:?}: {first:?}");
        behind.gateway.seen();
        behind.cut().await;
        assert!(behind.echo().await.is_some(), "{passes:?}: again");
        let again = behind.gateway.seen();
        assert!(!again.is_empty() && again.iter().all(|kind| *kind == passes), "{passes:?} is remembered: {again:?}");
        // The same holds for a request that must not be repeated.
        let (status, answer) = behind
            .app
            .request(
                "POST /whoami HTTP/1.1\r\nHost: web.shop.localhost\r\nContent-Length: 4\r\nConnection: close\r\n\r\nword",
            )
            .await;
        assert_eq!(status, 200, "{answer}");
        behind.app.drain().cut();
    }
}

#[tokio::test]
async fn a_jump_leaves_a_transport_that_is_switched_to_and_swallowed_for_the_other() {
    let behind = Behind::start(true, |_| SwitchAndSwallow).await;
    for passes in [Kind::Spdy, Kind::Channels] {
        behind.gateway.change(move |kind| if kind == passes { Pass } else { SwitchAndSwallow });
        let first = behind.echo().await.unwrap_or_else(|| panic!("{passes:?}"));
        assert!(first < Duration::from_secs(12), "{passes:?}: {first:?}");
        behind.gateway.seen();
        assert!(behind.echo().await.is_some(), "{passes:?}: again");
        assert_eq!(behind.gateway.seen(), [passes], "it is remembered");
    }
    behind.app.drain().cut();
}

#[tokio::test]
async fn a_node_that_is_slow_behind_a_gateway_that_switches_at_once_keeps_its_transport() {
    let late = SwitchAndPassLate(Duration::from_secs(2));
    for (jumps, default) in [(false, Kind::Spdy), (true, Kind::Channels)] {
        let behind = Behind::start(jumps, move |_| late).await;
        assert!(behind.echo().await.is_some());
        behind.gateway.change(|_| Pass);
        behind.gateway.seen();
        behind.cut().await;
        assert!(behind.echo().await.is_some());
        assert_eq!(behind.gateway.seen().first(), Some(&default));
        behind.app.drain().cut();
    }
}

#[tokio::test]
async fn interim_answers_are_passed_over() {
    for said in [
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n",
    ] {
        for (jumps, wanted) in [(false, Kind::Spdy), (true, Kind::Channels)] {
            let behind = Behind::start(jumps, move |_| PassAfter(said)).await;
            assert!(behind.echo().await.is_some());
            let seen = behind.gateway.seen();
            assert!(seen.iter().all(|kind| *kind == wanted), "{seen:?}");
            behind.app.drain().cut();
        }
    }
}

#[tokio::test]
async fn what_a_refusal_says_reaches_people() {
    let denied = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n\
        2c\r\n{\"kind\":\"Status\",\"message\":\"pods \\\"web\\\" is \r\n62\r\nforbidden: User \\\"ana\\\" cannot create resource \
        \\\"pods/portforward\\\" in API group \\\"\\\"\",\"code\":403}\r\n0\r\n\r\n";
    for (does, words) in [
        (Say(denied), "user ana may not create pods/portforward"),
        (
            Say("HTTP/1.1 404 Not Found\r\nContent-Length: 21\r\n\r\n404 request not found"),
            "does not support port-forwards",
        ),
        (Say("HTTP/1.1 501 Not Implemented\r\nContent-Length: 3\r\n\r\n501"), "does not support port-forwards"),
        (
            Say("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
            "does a gateway in front of it pass upgrades on",
        ),
        (Say("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"), "401"),
        (Close, "closed"),
        (Say("SSH-2.0-x\r\n"), "not HTTP"),
    ] {
        let behind = Behind::start(false, move |_| does).await;
        let (status, body) = behind.app.get("web.shop.localhost", "/").await;
        assert_eq!(status, 502, "{body}");
        assert!(body.contains(words), "{does:?}: {body}");
        behind.app.drain().cut();
    }
}

#[tokio::test]
async fn idle_connections_outlive_a_gateway_that_cuts_silence() {
    let case = |(passes, jumps): (Kind, bool)| async move {
        let rule = move |kind| if kind == passes { PassUntilIdle(Duration::from_secs(12)) } else { Close };
        let behind = Behind::start(jumps, rule).await;
        let mut stream = TcpStream::connect(behind.address).await.unwrap();
        for pause in [0, 40, 1] {
            sleep(Duration::from_secs(pause)).await;
            stream.write_all(b"word").await.unwrap();
            let mut word = [0; 4];
            let answer = timeout(PATIENCE, stream.read_exact(&mut word)).await;
            answer.unwrap().unwrap_or_else(|error| panic!("{passes:?}, jump: {jumps}, after {pause} s: {error}"));
            assert_eq!(&word, b"word");
        }
        drop(stream);
        behind.app.drain().cut();
    };
    let cases = [
        (Kind::Spdy, false),
        (Kind::Tunnel, false),
        (Kind::Channels, false),
        (Kind::Channels, true),
        (Kind::Spdy, true),
    ];
    futures::future::join_all(cases.map(case)).await;
}

#[tokio::test]
async fn an_upgrade_that_outlives_its_caller_serves_the_next_one() {
    let app = TestApp::start("").await;
    assert_eq!(app.get("tools.shop.localhost", "/whoami").await.0, 200);
    let faults = app.demo.faults();
    faults.delay("/portforward", Some(Duration::from_secs(12)));
    faults.drop_upgraded_connections();
    let started = Instant::now();
    let (first, _) = app.get("tools.shop.localhost", "/whoami").await;
    let (second, body) = app.get("tools.shop.localhost", "/whoami").await;
    assert_eq!((first, second), (504, 200), "{body}");
    assert!(started.elapsed() < Duration::from_secs(16), "{:?}", started.elapsed());
    app.finish().await;
}
