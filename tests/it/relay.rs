//! Reverse tunnels: a relay, its clients, and peers that are not clients.

mod files;
mod limits;
mod local;
mod reservations;
mod streams;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use adit::{
    drain::Drain,
    relay::{
        auth::{self, Key, Role, Transcript},
        client::{self, ClientState, Direct, Fatal, Open, Refusals, Wanted},
        conversation::{receive, send},
        server::{Limits, Options, Server, tunnels::HttpName},
        tls::{self, Identity, Trust},
    },
    wire::relay::{Frame, Kind},
};
use bytes::Bytes;
use rustls::pki_types::ServerName;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::support::{
    PATIENCE, eventually, on_workers,
    ports::{Ports, ports},
    spawn,
};

pub const SECRET: &str = "a secret of the tests";

pub struct Relay {
    pub server: Arc<Server>,
    pub address: SocketAddr,
    identity: Identity,
    pub drain: Drain,
    /// The names that it serves, each with its Host header, and those whose clients it awaits.
    names: Arc<Mutex<(Vec<HttpName>, Vec<String>)>>,
    _ports: Ports,
}

impl Relay {
    pub async fn start(change: impl FnOnce(&mut Options)) -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap(), change).await
    }

    async fn start_on(address: SocketAddr, change: impl FnOnce(&mut Options)) -> Self {
        let of_relay = ports(20);
        let key = Key {
            name: "default".into(),
            secret: SECRET.into(),
            ports: Vec::new(),
            names: Vec::new(),
            services: Vec::new(),
        };
        let mut options = Options {
            keys: vec![key],
            ports: of_relay.clone(),
            bind: "127.0.0.1".parse().unwrap(),
            domain: None,
            http_public: "http".parse().unwrap(),
            allow_v1: false,
            limits: Limits::default(),
            exposer: None,
        };
        change(&mut options);
        let (identity, drain) = (Identity::generate().unwrap(), Drain::new());
        let (config, of_server) = (identity.relay_config().unwrap(), drain.clone());
        let names = Arc::<Mutex<_>>::default();
        let told = names.clone();
        let (server, address) = on_workers(async move {
            let server = Server::new(options, config, of_server.clone(), move |names, awaited| {
                *told.lock().unwrap() = (names, awaited);
            });
            let listener = adit::io::accept::listen(address).unwrap();
            let address = listener.local_addr().unwrap();
            of_server.spawn(server.clone().serve(listener));
            (server, address)
        })
        .await;
        Self { server, address, identity, drain, names, _ports: of_relay }
    }

    pub fn client(&self, local_port: u16, port: u16) -> client::Options {
        client::Options {
            dial: Arc::new(Direct { host: self.address.ip().to_string(), port: self.address.port() }),
            key: "default".into(),
            secret: SECRET.into(),
            trust: Trust::Fingerprint(self.identity.fingerprint()),
            local_host: None,
            tunnels: vec![Wanted { local_port, kind: Kind::Tcp, port, name: String::new() }],
        }
    }

    /// Opens a TLS connection as a client does, and returns it with its exporter.
    pub async fn dial(&self) -> (TlsStream<TcpStream>, [u8; 32]) {
        let config = tls::client_config(&Trust::Secret).unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
        let exporter = tls::exporter(stream.get_ref().1).unwrap();
        (stream, exporter)
    }
}

/// Starts a client, and returns the reports about its tunnels, and its task.
pub fn start(
    options: client::Options,
    drain: &Drain,
) -> (mpsc::UnboundedReceiver<Vec<Open>>, tokio::task::JoinHandle<Result<(), Fatal>>) {
    let (tx, rx) = mpsc::unbounded_channel();
    let running = spawn(client::run(
        move || Ok(options.clone()),
        Refusals::End,
        drain.clone(),
        move |state| {
            if let ClientState::Open(open) = state {
                drop(tx.send(open.clone()));
            }
        },
    ));
    (rx, running)
}

async fn opened(rx: &mut mpsc::UnboundedReceiver<Vec<Open>>) -> SocketAddr {
    let open = timeout(PATIENCE, rx.recv()).await.expect("in time").expect("it runs");
    open[0].public.parse().unwrap()
}

/// Starts an echo server that counts its connections.
pub async fn echo() -> (u16, Arc<AtomicUsize>) {
    echo_on("127.0.0.1:0").await
}

async fn echo_on(address: &str) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let (port, count) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (port, count)
}

pub async fn frame(stream: &mut (impl AsyncRead + Unpin)) -> Frame {
    timeout(PATIENCE, receive(stream)).await.expect("a frame in time").expect("a frame")
}

#[tokio::test]
async fn clients_are_back_on_their_ports_after_the_relay_was_restarted() {
    let of_relay = ports(20);
    let (relay, drain) = (Relay::start(|options| options.ports = of_relay.clone()).await, Drain::new());
    let (local, count) = echo().await;
    let (mut rx, _running) = start(client::Options { trust: Trust::Secret, ..relay.client(local, 0) }, &drain);
    let public = opened(&mut rx).await;
    let mut open = TcpStream::connect(public).await.unwrap();
    open.write_all(b"before").await.unwrap();
    let mut back = [0; 6];
    open.read_exact(&mut back).await.unwrap();
    let address = relay.address;
    relay.drain.finish(Duration::from_millis(100)).await;
    drop(relay);
    let relay = Relay::start_on(address, |options| options.ports = of_relay.clone()).await;
    assert_eq!(opened(&mut rx).await, public);
    let mut again = TcpStream::connect(public).await.unwrap();
    again.write_all(b"after!").await.unwrap();
    timeout(PATIENCE, again.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!((&back, count.load(Ordering::Relaxed)), (b"after!", 2));
    drop(relay);
}

#[tokio::test]
async fn a_service_on_ipv6_loopback_alone_is_served_unless_another_host_is_given() {
    let (relay, drain) = (Relay::start(|_| {}).await, Drain::new());
    // Held without listening: another test could serve the same port on 127.0.0.1.
    let (local, _held) = loop {
        let ((local, _), ipv4) = (echo_on("[::1]:0").await, TcpSocket::new_v4().unwrap());
        if ipv4.bind(SocketAddr::from(([127, 0, 0, 1], local))).is_ok() {
            break (local, ipv4);
        }
    };
    let (mut rx, _running) = start(relay.client(local, 0), &drain);
    let mut visitor = TcpStream::connect(opened(&mut rx).await).await.unwrap();
    visitor.write_all(b"x").await.unwrap();
    assert_eq!(timeout(PATIENCE, visitor.read_u8()).await.unwrap().unwrap(), b'x');
    let given = client::Options { local_host: Some("127.0.0.1".into()), ..relay.client(local, 0) };
    let (mut rx, _running) = start(given, &drain);
    let public = opened(&mut rx).await;
    let visit = async {
        let mut visitor = TcpStream::connect(public).await?;
        visitor.write_all(b"x").await?;
        visitor.read_u8().await
    };
    // The reset may come before or after the client looks at its connection, or writes.
    assert!(timeout(PATIENCE, visit).await.unwrap().is_err(), "nothing else is tried");
}

#[tokio::test]
async fn what_would_not_help_is_not_tried_again() {
    let only = ports(1);
    let (relay, drain) = (Relay::start(|options| options.ports = only.clone()).await, Drain::new());
    let ended = async |options: client::Options| {
        timeout(PATIENCE, client::run(move || Ok(options.clone()), Refusals::End, drain.clone(), |_| {}))
            .await
            .expect("soon")
            .unwrap_err()
            .to_string()
    };
    let wrong = ended(client::Options { secret: "another secret entirely".into(), ..relay.client(1, 0) }).await;
    assert!(wrong.contains("refused the client: the secret is not the one of this relay"), "{wrong}");
    let other = Trust::Fingerprint(Identity::generate().unwrap().fingerprint());
    let pinned = ended(client::Options { trust: other, ..relay.client(1, 0) }).await;
    assert!(
        pinned.starts_with(&format!("the certificate of the relay at {} is not the right one: ", relay.address)),
        "{pinned}"
    );
    let web = Identity::generate().unwrap().server_config(&[b"h2", b"http/1.1"]).unwrap();
    let no_relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = no_relay.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = no_relay.accept().await.unwrap();
        let _ = tokio_rustls::TlsAcceptor::from(web).accept(stream).await;
    });
    let dial = Arc::new(Direct { host: address.ip().to_string(), port: address.port() });
    let stranger = ended(client::Options { dial, ..relay.client(1, 0) }).await;
    assert_eq!(stranger, format!("there is no adit relay at {address}: the server does not speak its protocol"));
    let unknown = ended(client::Options { key: "nobody".into(), ..relay.client(1, 0) }).await;
    assert_eq!(unknown, wrong, "nobody learns which keys there are");
    let port = ended(relay.client(1, 80)).await;
    assert!(port.contains("port 80 is outside of the relay's public ports"), "{port}");
    let (mut rx, _running) = start(relay.client(1, 0), &drain);
    opened(&mut rx).await;
    let full = ended(relay.client(1, 0)).await;
    let port = only.start();
    assert!(full.contains(&format!("no port from {port} to {port} is free")), "{full}");
}

#[tokio::test]
async fn a_relay_that_takes_any_proof_and_has_no_secret_gets_no_more_than_that() {
    let identity = Identity::generate().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(identity.relay_config().unwrap());
    let posing = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut tls = acceptor.accept(stream).await.unwrap();
        let Frame::Hello { .. } = frame(&mut tls).await else { panic!("no hello") };
        send(&mut tls, &[Frame::Challenge { nonce: [2; 32] }]).await.unwrap();
        let Frame::Proof { proof } = frame(&mut tls).await else { panic!("no proof") };
        // The client's own proof is no proof of the relay.
        send(&mut tls, &[Frame::Welcome { session: [3; 16], heartbeat: 15, proof }]).await.unwrap();
        assert!(timeout(PATIENCE, receive(&mut tls)).await.unwrap().is_err(), "it says nothing more");
    });
    let options = client::Options {
        dial: Arc::new(Direct { host: address.ip().to_string(), port: address.port() }),
        key: "default".into(),
        secret: SECRET.into(),
        trust: Trust::Secret,
        local_host: None,
        tunnels: vec![Wanted { local_port: 1, kind: Kind::Tcp, port: 0, name: String::new() }],
    };
    let running = client::run(move || Ok(options.clone()), Refusals::End, Drain::new(), |_| {});
    let ended = timeout(PATIENCE, running).await.expect("soon").unwrap_err().to_string();
    assert!(ended.contains("does not have the secret: wrong relay, or a man in the middle"), "{ended}");
    posing.await.unwrap();
}

#[tokio::test]
async fn who_does_not_have_the_secret_gets_nothing_however_often_he_asks() {
    let relay = Relay::start(|_| {}).await;
    let (mut good, exporter) = relay.dial().await;
    send(&mut good, &[Frame::Hello { version: 2, nonce: [1; 32], port: 0, key: "default".into() }]).await.unwrap();
    // A random number only, so there is nothing to test secrets against.
    let Frame::Challenge { nonce } = frame(&mut good).await else { panic!("no challenge") };
    let transcript = Transcript { key: "default".into(), port: 0, client: [1; 32], server: nonce, exporter };
    // Reflection: the relay's proof is no proof of a client.
    send(&mut good, &[Frame::Proof { proof: transcript.proof(SECRET, Role::Server) }]).await.unwrap();
    assert!(matches!(frame(&mut good).await, Frame::Reject { .. }));
    let (mut good, exporter) = relay.dial().await;
    send(&mut good, &[Frame::Hello { version: 2, nonce: [1; 32], port: 0, key: "default".into() }]).await.unwrap();
    let Frame::Challenge { nonce } = frame(&mut good).await else { panic!("no challenge") };
    let transcript = Transcript { server: nonce, exporter, ..transcript };
    send(&mut good, &[Frame::Proof { proof: transcript.proof(SECRET, Role::Client) }]).await.unwrap();
    let Frame::Welcome { proof, .. } = frame(&mut good).await else { panic!("not welcome") };
    assert!(transcript.is_proven(SECRET, Role::Server, &proof));
    // Replay: a proof is valid on its own connection only.
    let right = transcript.proof(SECRET, Role::Client);
    for _ in 0..50 {
        let (mut other, _) = relay.dial().await;
        send(&mut other, &[Frame::Hello { version: 2, nonce: [1; 32], port: 0, key: "default".into() }]).await.unwrap();
        assert!(matches!(frame(&mut other).await, Frame::Challenge { .. }));
        send(&mut other, &[Frame::Proof { proof: right }]).await.unwrap();
        assert!(matches!(frame(&mut other).await, Frame::Reject { .. }));
    }
    // A guessed stream.
    let (mut guessed, exporter) = relay.dial().await;
    let proof = auth::claim(SECRET, &[7; 16], &[8; 16], &exporter);
    send(&mut guessed, &[Frame::Claim { session: [7; 16], stream: [8; 16], proof }]).await.unwrap();
    assert!(matches!(frame(&mut guessed).await, Frame::StreamReject { .. }));
    assert!(relay.server.snapshot().is_empty());
    // A client with the secret is served as before.
    let drain = Drain::new();
    let (mut rx, _running) = start(relay.client(1, 0), &drain);
    opened(&mut rx).await;
}

#[tokio::test]
async fn silent_and_slow_peers_do_not_keep_others_out() {
    let relay = Relay::start(|options| options.limits.handshakes = 20).await;
    let mut silent = Vec::new();
    for number in 0..40 {
        let mut stream = TcpStream::connect(relay.address).await.unwrap();
        let _ = stream.write_all(if number % 2 == 0 { b"" } else { b"\x16" }).await;
        silent.push(stream);
    }
    let (local, drain) = (echo().await.0, Drain::new());
    let (mut rx, _running) = start(relay.client(local, 0), &drain);
    // At once, before the silent ones time out: the oldest of them was closed to make room.
    let public = timeout(Duration::from_secs(5), opened(&mut rx)).await.expect("before anything times out");
    let mut visitor = TcpStream::connect(public).await.unwrap();
    visitor.write_all(b"x").await.unwrap();
    assert_eq!(timeout(PATIENCE, visitor.read_u8()).await.unwrap().unwrap(), b'x');
    assert!(relay.server.counters.rejected.load(Ordering::Relaxed) >= 20);
    // An authenticated client stays, however many others come.
    for _ in 0..40 {
        silent.push(TcpStream::connect(relay.address).await.unwrap());
    }
    visitor.write_all(b"y").await.unwrap();
    assert_eq!(timeout(PATIENCE, visitor.read_u8()).await.unwrap().unwrap(), b'y');
    assert_eq!(relay.server.snapshot().len(), 1);
}

#[tokio::test]
async fn version_1_is_served_where_it_is_allowed() {
    let relay = Relay::start(|options| options.allow_v1 = true).await;
    let mut control = TcpStream::connect(relay.address).await.unwrap();
    send(&mut control, &[Frame::Handshake { version: 1, secret: Bytes::from_static(SECRET.as_bytes()) }])
        .await
        .unwrap();
    let Frame::Accept { port, .. } = frame(&mut control).await else { panic!("not accepted") };
    let mut visitor = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    visitor.write_all(b"hello").await.unwrap();
    let Frame::Connect { stream } = frame(&mut control).await else { panic!("no visitor") };
    let mut joined = TcpStream::connect(relay.address).await.unwrap();
    send(&mut joined, &[Frame::StreamHandshake { stream }]).await.unwrap();
    let mut accepted = [0; 5];
    joined.read_exact(&mut accepted).await.unwrap();
    assert_eq!(&accepted, b"\x06\0\0\0\0");
    let mut said = [0; 5];
    timeout(PATIENCE, joined.read_exact(&mut said)).await.unwrap().unwrap();
    assert_eq!(&said, b"hello");
    // A stream can be claimed only once.
    let mut again = TcpStream::connect(relay.address).await.unwrap();
    send(&mut again, &[Frame::StreamHandshake { stream }]).await.unwrap();
    assert!(matches!(frame(&mut again).await, Frame::StreamReject { .. }));
    let mut wrong = TcpStream::connect(relay.address).await.unwrap();
    send(&mut wrong, &[Frame::Handshake { version: 1, secret: Bytes::from_static(b"wrong") }]).await.unwrap();
    assert!(matches!(frame(&mut wrong).await, Frame::Reject { .. }));

    let closed = Relay::start(|_| {}).await;
    let mut refused = TcpStream::connect(closed.address).await.unwrap();
    send(&mut refused, &[Frame::Handshake { version: 1, secret: Bytes::from_static(SECRET.as_bytes()) }])
        .await
        .unwrap();
    assert!(matches!(frame(&mut refused).await, Frame::Reject { .. }));
    assert_eq!(closed.server.counters.rejected.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_second_connection_of_a_client_costs_no_signature() {
    let relay = Relay::start(|_| {}).await;
    let connector = TlsConnector::from(tls::client_config(&Trust::Secret).unwrap());
    for wanted in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
        let stream = TcpStream::connect(relay.address).await.unwrap();
        let mut stream = connector.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(wanted));
        send(&mut stream, &[Frame::Claim { session: [7; 16], stream: [8; 16], proof: [9; 32] }]).await.unwrap();
        // The ticket for the next connection comes before the answer.
        assert!(matches!(frame(&mut stream).await, Frame::StreamReject { .. }));
    }
}
