//! The limits of a relay for visitors, set on its command line.

use std::{process::Stdio, sync::Mutex};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::Instant,
};

use super::*;

/// A secret without spaces, as a file of keys requires.
const WORD: &str = "a-secret-of-the-tests";

/// `adit server` in a process, with a client in this process.
struct Process {
    child: Child,
    control: SocketAddr,
    http: SocketAddr,
    log: Arc<Mutex<String>>,
    _ports: Ports,
}

impl Process {
    async fn start(options: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
        // Ports that no other test gets.
        let ports = ports(20);
        let [listen, http] = [0, 1].map(|offset| format!("127.0.0.1:{}", ports.start() + offset));
        command.args(["server", "--listen", &listen, "--http-listen", &http, "--domain", "relay.test"]);
        command
            .args(["--ports", &format!("{}-{}", ports.start() + 2, ports.end())])
            .args(options)
            .env("ADIT_SECRET", WORD)
            .env_remove("RUST_LOG");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut address = async |of: &str| loop {
            let line = timeout(PATIENCE, said.next_line()).await.expect("it starts").unwrap().expect("it says where");
            if line.contains(of) {
                return line.split(' ').filter_map(|word| word.parse().ok()).next_back().expect("an address");
            }
        };
        let (control, http) = (address("listens for clients on").await, address("names").await);
        let (log, mut lines) =
            (Arc::new(Mutex::new(String::new())), BufReader::new(child.stderr.take().unwrap()).lines());
        let kept = log.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                kept.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Self { child, control, http, log, _ports: ports }
    }

    fn client(&self, local_port: u16, kind: Kind, name: &str) -> client::Options {
        client::Options {
            dial: Arc::new(Direct { host: self.control.ip().to_string(), port: self.control.port() }),
            key: "default".into(),
            secret: WORD.into(),
            trust: Trust::Secret,
            local_host: Some("127.0.0.1".into()),
            tunnels: vec![Wanted { local_port, kind, port: 0, name: name.into() }],
        }
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    async fn logs(&self, text: &str) {
        eventually(text, || async { self.log().contains(text) }).await;
    }

    async fn signal(&self) {
        let id = self.child.id().expect("it runs").to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
    }
}

/// Sends a GET on a connection, and returns the head of the response.
async fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: nobody.relay.test\r\n\r\n").await.unwrap();
    let (mut answer, mut piece) = (String::new(), [0; 4096]);
    while !answer.contains("\r\n\r\n") {
        let count = timeout(PATIENCE, stream.read(&mut piece)).await.expect("an answer in time").unwrap();
        assert!(count > 0, "it ends: {answer}");
        answer.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    answer
}

async fn connect(to: SocketAddr, count: usize) -> Vec<TcpStream> {
    futures::future::join_all((0..count).map(|_| async move { TcpStream::connect(to).await.unwrap() })).await
}

/// Returns the time until the other end has closed.
async fn until_closed(stream: &mut TcpStream) -> Duration {
    let began = Instant::now();
    // FIN or RST, both count.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("it is closed");
    began.elapsed()
}

#[tokio::test]
async fn silent_visitors_make_room_and_those_in_use_stay() {
    for (option, other) in
        [("--max-connections", "--max-connections-per-address"), ("--max-connections-per-address", "--max-connections")]
    {
        let relay = Process::start(&[option, "5", other, "100"]).await;
        let silent = connect(relay.http, 40).await;
        let mut kept = connect(relay.http, 1).await.remove(0);
        assert!(ask(&mut kept).await.starts_with("HTTP/1.1 404 "));
        let more = connect(relay.http, 40).await;
        assert!(ask(&mut kept).await.starts_with("HTTP/1.1 404 "), "one that is used is not closed for others");
        relay.logs(&format!("the oldest silent one is closed for each new one; {option} raises it")).await;
        drop((silent, more));

        let mut others = Vec::new();
        for mut visitor in connect(relay.http, 4).await {
            assert!(ask(&mut visitor).await.starts_with("HTTP/1.1 404 "));
            others.push(visitor);
        }
        let began = Instant::now();
        for _ in 0..200 {
            let answer = ask(&mut connect(relay.http, 1).await[0]).await;
            assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("too-many-connections"), "{answer}");
        }
        let said = format!("new ones are refused; {option} raises it");
        eventually("the log says so", || async {
            ask(&mut connect(relay.http, 1).await[0]).await;
            relay.log().contains(&said)
        })
        .await;
        let lines = relay.log().matches(&said).count() as u64;
        assert!(lines <= began.elapsed().as_secs() + 2, "once a second, not {lines} times: {}", relay.log());
        drop(others.pop());
        eventually("there is room again", || async {
            ask(&mut connect(relay.http, 1).await[0]).await.starts_with("HTTP/1.1 404 ")
        })
        .await;
    }
}

#[tokio::test]
async fn visitors_of_ports_and_names_are_counted_together() {
    let relay = Process::start(&["--max-connections-per-address", "3"]).await;
    let drain = Drain::new();
    let (mut rx, _running) = start(relay.client(echo().await.0, Kind::Tcp, ""), &drain);
    let public = opened(&mut rx).await;
    let mut visitors = connect(public, 2).await;
    for visitor in &mut visitors {
        visitor.write_all(b"x").await.unwrap();
        assert_eq!(timeout(PATIENCE, visitor.read_u8()).await.unwrap().unwrap(), b'x');
    }
    let mut by_name = connect(relay.http, 1).await.remove(0);
    assert!(ask(&mut by_name).await.starts_with("HTTP/1.1 404 "));
    let refused = async { TcpStream::connect(public).await?.read_u8().await };
    let error = timeout(PATIENCE, refused).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    drop(visitors.pop());
    eventually("there is room again", || async {
        // A refused connection may be reset before the client knows that it was connected.
        let Ok(mut visitor) = TcpStream::connect(public).await else { return false };
        visitor.write_all(b"y").await.is_ok() && visitor.read_u8().await.is_ok_and(|byte| byte == b'y')
    })
    .await;
}

#[tokio::test]
async fn each_limit_of_a_tunnel_is_logged_with_its_option() {
    let (local, drain) = (echo().await.0, Drain::new());
    for option in ["--max-streams", "--max-rate"] {
        let relay = Process::start(&[option, "2"]).await;
        let (mut rx, _running) = start(relay.client(local, Kind::Tcp, ""), &drain);
        let public = opened(&mut rx).await;
        let mut visitors = Vec::new();
        eventually("the limit is reached", || {
            visitors.push(std::net::TcpStream::connect(public).unwrap());
            async { relay.log().contains(&format!("{option} raises the limit")) }
        })
        .await;
    }
    let relay = Process::start(&["--max-tunnels", "1"]).await;
    let (mut rx, _running) = start(relay.client(local, Kind::Tcp, ""), &drain);
    opened(&mut rx).await;
    let options = relay.client(local, Kind::Tcp, "");
    let refused = client::run(move || Ok(options.clone()), Refusals::End, drain.clone(), |_| {});
    let refused = timeout(PATIENCE, refused).await.expect("soon").unwrap_err().to_string();
    assert!(refused.contains("has 1 tunnels, and may not have more"), "{refused}");
    relay.logs("--max-tunnels raises the limit").await;
}

#[tokio::test]
async fn times_are_those_of_the_command_line() {
    let relay =
        Process::start(&["--first-byte-timeout=1s", "--header-timeout=2s", "--idle-timeout=3s", "--body-timeout=4s"])
            .await;
    let drain = Drain::new();
    // This service accepts connections, and never answers.
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut rx, _running) = start(relay.client(service.local_addr().unwrap().port(), Kind::Http, "web"), &drain);
    timeout(PATIENCE, rx.recv()).await.expect("in time").expect("it runs");
    let post = "POST / HTTP/1.1\r\nHost: web.relay.test\r\nContent-Length: 9\r\n\r\nx";
    let sent = ["", "GET / HTTP/1.1\r\nX: ", "GET / HTTP/1.1\r\nHost: nobody.relay.test\r\n\r\n", post];
    let closing = sent.iter().zip(1..).map(|(sent, seconds)| async move {
        let mut visitor = TcpStream::connect(relay.http).await.unwrap();
        visitor.write_all(sent.as_bytes()).await.unwrap();
        let closed = until_closed(&mut visitor).await;
        // The margin is for lingering after an answer, and for slow machines.
        let expected = Duration::from_millis(seconds * 1000 - 100)..Duration::from_secs(seconds + 6);
        assert!(expected.contains(&closed), "{sent:?}: {closed:?}");
    });
    futures::future::join_all(closing).await;
}

#[tokio::test]
async fn the_grace_is_that_of_the_command_line() {
    let mut relay = Process::start(&["--body-timeout=60s", "--grace=1s"]).await;
    let drain = Drain::new();
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut rx, _running) = start(relay.client(service.local_addr().unwrap().port(), Kind::Http, "web"), &drain);
    timeout(PATIENCE, rx.recv()).await.expect("in time").expect("it runs");
    let mut visitor = TcpStream::connect(relay.http).await.unwrap();
    visitor.write_all(b"POST / HTTP/1.1\r\nHost: web.relay.test\r\nContent-Length: 9\r\n\r\nx").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    relay.signal().await;
    assert!(timeout(PATIENCE, relay.child.wait()).await.expect("it ends").unwrap().success());
    // The default is 10 s.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

/// Returns the local and the remote port of this machine's connections without TCP keep-alive (proc_pid_net(5)).
#[cfg(target_os = "linux")]
fn without_keepalive() -> Vec<(u16, u16)> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = |address: &str| u16::from_str_radix(address.split(':').nth(1).unwrap(), 16).unwrap();
    let established = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let established = established.filter(|fields| fields[3] == "01" && !fields[5].starts_with("02"));
    established.map(|fields| (port(fields[1]), port(fields[2]))).collect()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn every_connection_of_a_relay_has_keepalive() {
    let relay = Process::start(&[]).await;
    let (local, drain) = (echo().await.0, Drain::new());
    let (mut rx, _running) = start(relay.client(local, Kind::Tcp, ""), &drain);
    let public = opened(&mut rx).await;
    let mut visitor = TcpStream::connect(public).await.unwrap();
    visitor.write_all(b"x").await.unwrap();
    visitor.read_u8().await.unwrap();
    let mut by_name = TcpStream::connect(relay.http).await.unwrap();
    ask(&mut by_name).await;
    let control = relay.control.port();
    eventually(
        "both ends of the control and stream connections, and the relay's ends of the visitors, have it",
        || async {
            let without = without_keepalive();
            let is_ours = |(here, there): &(u16, u16)| {
                [control, public.port(), relay.http.port()].contains(here) || [control, local].contains(there)
            };
            !without.iter().any(is_ours)
        },
    )
    .await;
}

#[tokio::test]
async fn a_relay_with_idle_connections_alone_ends_at_once() {
    let mut relay = Process::start(&["--admin-listen", "127.0.0.1:0"]).await;
    let drain = Drain::new();
    let (mut rx, _running) = start(relay.client(echo().await.0, Kind::Tcp, ""), &drain);
    let public = opened(&mut rx).await;
    let mut visitor = TcpStream::connect(public).await.unwrap();
    visitor.write_all(b"x").await.unwrap();
    visitor.read_u8().await.unwrap();
    drop(visitor);
    let _silent = (connect(relay.http, 2).await, connect(relay.control, 2).await);
    let mut kept = connect(relay.http, 1).await;
    ask(&mut kept[0]).await;
    relay.signal().await;
    let ended = timeout(Duration::from_secs(5), relay.child.wait()).await;
    assert!(ended.expect("before the grace of 10 s is over").unwrap().success());
}

#[tokio::test]
async fn an_answer_by_name_goes_on_while_the_relay_ends() {
    let mut relay = Process::start(&[]).await;
    let (service, drain) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Drain::new());
    let port = service.local_addr().unwrap().port();
    let (mut rx, _running) = start(relay.client(port, Kind::Http, "web"), &drain);
    timeout(PATIENCE, rx.recv()).await.expect("in time").expect("it runs");
    let mut visitor = TcpStream::connect(relay.http).await.unwrap();
    visitor.write_all(b"GET / HTTP/1.1\r\nHost: web.relay.test\r\n\r\n").await.unwrap();
    let (mut service, _) = service.accept().await.unwrap();
    service.read_u8().await.unwrap();
    service.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nfirst").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"first") {
        assert_ne!(timeout(PATIENCE, visitor.read_buf(&mut answer)).await.unwrap().unwrap(), 0);
    }
    relay.signal().await;
    relay.logs("client gone").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    service.write_all(b", rest").await.unwrap();
    drop(service);
    // It is cut otherwise.
    let _ = timeout(PATIENCE, visitor.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.ends_with(b"\r\n\r\nfirst, rest"), "{}", answer.escape_ascii());
    let ended = timeout(Duration::from_secs(5), relay.child.wait()).await;
    assert!(ended.expect("with the last answer").unwrap().success());
}

/// Sends a GET for a name with these headers, and returns the whole answer.
async fn get(relay: &Process, headers: &str) -> String {
    let mut visitor = TcpStream::connect(relay.http).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nHost: web.relay.test\r\n{headers}Connection: close\r\n\r\n");
    visitor.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, visitor.read_to_string(&mut answer)).await.expect("an answer in time").unwrap();
    answer
}

#[tokio::test]
async fn a_load_balancer_in_front_of_a_relay_is_believed_where_that_is_configured() {
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    // Answers with the head of the request.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = service.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|count| count > 0) {}
            let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{head}", head.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let of_proxy = "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n";
    for (options, expected) in [
        (
            &["--http-public", "https"][..],
            ["x-forwarded-proto: https", "x-forwarded-port: 443", "x-forwarded-for: 203.0.113.7"],
        ),
        (
            &["--http-public", "https:8443"],
            ["x-forwarded-proto: https", "x-forwarded-port: 8443", "x-forwarded-for: 203.0.113.7"],
        ),
        (&[], ["x-forwarded-proto: http\r\n", "x-forwarded-for: 127.0.0.1\r\n", "x-forwarded-host: web.relay.test"]),
    ] {
        let (relay, drain) = (Process::start(options).await, Drain::new());
        let (mut rx, _running) = start(relay.client(port, Kind::Http, "web"), &drain);
        timeout(PATIENCE, rx.recv()).await.expect("in time").expect("it runs");
        let answer = get(&relay, of_proxy).await;
        assert!(expected.iter().all(|line| answer.contains(line)), "{options:?}: {answer}");
        assert_eq!(
            answer.contains("127.0.0.1"),
            options.is_empty() || answer.contains("203.0.113.7, 127.0.0.1"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_visitor_of_a_service_that_is_down_learns_nothing_of_it() {
    let (relay, drain) = (Process::start(&[]).await, Drain::new());
    let held = TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = held.local_addr().unwrap().port();
    let (mut rx, _running) = start(relay.client(port, Kind::Http, "web"), &drain);
    timeout(PATIENCE, rx.recv()).await.expect("in time").expect("it runs");
    let answer = get(&relay, "").await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("does not answer"), "{answer}");
    for of_client in ["127.0.0.1", "localhost", &port.to_string(), "adit doctor", "hint", "caused by"] {
        assert!(!answer.contains(of_client), "{of_client}: {answer}");
    }
    relay.logs(&format!("nothing answers on 127.0.0.1:{port}")).await;
}
