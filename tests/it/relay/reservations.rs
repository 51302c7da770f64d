//! Ports and names of clients whose connection was lost: for whom they are reserved, and how long.

use adit::relay::auth::{Role, Transcript, parse_keys};

use tokio::sync::Barrier;

use super::*;

/// A client that sends single frames, and can fall silent or be killed.
struct Bare {
    tls: TlsStream<TcpStream>,
}

impl Bare {
    async fn connect(relay: &Relay, key: &str) -> Self {
        let (mut tls, exporter) = relay.dial().await;
        send(&mut tls, &[Frame::Hello { version: 2, nonce: [1; 32], port: 0, key: key.into() }]).await.unwrap();
        let Frame::Challenge { nonce, .. } = frame(&mut tls).await else { panic!("no challenge") };
        let transcript = Transcript { key: key.into(), port: 0, client: [1; 32], server: nonce, exporter };
        send(&mut tls, &[Frame::Proof { proof: transcript.proof(SECRET, Role::Client) }]).await.unwrap();
        let Frame::Welcome { .. } = frame(&mut tls).await else { panic!("not welcome") };
        Self { tls }
    }

    /// Opens a tunnel without its old reservation. Returns the port, or the reason of a refusal.
    async fn open(&mut self, id: u32, kind: Kind, port: u16, name: &str) -> Result<u16, String> {
        let open = Frame::Open { tunnel: id, kind, port, resume: [0; 16], name: name.into() };
        send(&mut self.tls, &[open]).await.unwrap();
        loop {
            match frame(&mut self.tls).await {
                Frame::Opened { port, .. } => return Ok(port),
                Frame::Refused { reason, .. } => return Err(reason),
                Frame::Ping { cookie } => send(&mut self.tls, &[Frame::Pong { cookie }]).await.unwrap(),
                Frame::Pong { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Answers pings, and never ends.
    async fn stay(&mut self) {
        loop {
            if let Frame::Ping { cookie } = frame(&mut self.tls).await {
                send(&mut self.tls, &[Frame::Pong { cookie }]).await.unwrap();
            }
        }
    }
}

async fn relay(keys: &[&str], change: impl FnOnce(&mut Options)) -> Relay {
    let keys: String = keys.iter().map(|key| format!("{key} {}\n", SECRET.replace(' ', "-"))).collect();
    Relay::start(|options| {
        options.keys = parse_keys(&keys).unwrap().into_iter().map(|key| Key { secret: SECRET.into(), ..key }).collect();
        options.domain = Some("relay.test".into());
        change(options);
    })
    .await
}

#[tokio::test]
async fn a_client_that_was_killed_has_its_port_and_name_back_at_once() {
    let relay = relay(&["ana", "bo"], |options| options.ports = ports(10).forever()).await;
    let mut killed = Bare::connect(&relay, "ana").await;
    let port = killed.open(0, Kind::Tcp, 0, "").await.unwrap();
    killed.open(1, Kind::Http, 0, "web").await.unwrap();
    drop(killed);
    eventually("the relay knows", || async { relay.server.snapshot().is_empty() }).await;
    let mut other = Bare::connect(&relay, "bo").await;
    let refused = other.open(0, Kind::Tcp, port, "").await.unwrap_err();
    assert!(refused.starts_with(&format!("port {port} is reserved until ")), "{refused}");
    assert!(refused.ends_with(" UTC for a client of another key, which was disconnected"), "{refused}");
    let refused = other.open(1, Kind::Http, 0, "web").await.unwrap_err();
    assert!(refused.starts_with("the name \"web\" is reserved until "), "{refused}");
    let mut back = Bare::connect(&relay, "ana").await;
    assert_eq!(back.open(0, Kind::Tcp, port, "").await, Ok(port));
    assert_eq!(back.open(1, Kind::Http, 0, "web").await, Ok(0));
    // A connected client keeps its name, even from another client with its own key.
    let mut twin = Bare::connect(&relay, "ana").await;
    let refused = tokio::select! {
        refused = twin.open(0, Kind::Http, 0, "web") => refused,
        () = back.stay() => unreachable!(),
    };
    assert_eq!(refused.unwrap_err(), "the name \"web\" is in use");
}

#[tokio::test]
async fn a_name_is_for_keys_that_may_have_it_and_is_served_until_nobody_awaits_its_client() {
    let relay = relay(&["ana", "bo"], |options| options.keys[1].names = vec!["bo*".into()]).await;
    let mut bo = Bare::connect(&relay, "bo").await;
    for (name, refused) in
        [("ana", "the key may not have the name ana"), ("b.o", "\"b.o\" cannot be a part of a hostname")]
    {
        assert_eq!(bo.open(0, Kind::Http, 0, name).await.unwrap_err(), refused);
    }
    assert_eq!(bo.open(0, Kind::Http, 0, "Bob=localhost:3000").await, Ok(0));
    let name = HttpName { name: "bob".into(), host: Some("localhost:3000".into()) };
    assert_eq!(*relay.names.lock().unwrap(), (vec![name.clone()], Vec::new()));
    drop(bo);
    let lost = (Vec::new(), vec!["bob".to_owned()]);
    eventually("its client is awaited", || async { *relay.names.lock().unwrap() == lost }).await;
    // A client that returns ends the wait, also with other letters; one that says goodbye is not awaited.
    let mut back = Bare::connect(&relay, "bo").await;
    assert_eq!(back.open(0, Kind::Http, 0, "BOB=localhost:3000").await, Ok(0));
    assert_eq!(*relay.names.lock().unwrap(), (vec![name], Vec::new()));
    send(&mut back.tls, &[Frame::Goodbye { reason: String::new() }]).await.unwrap();
    eventually("the name is free", || async { *relay.names.lock().unwrap() == Default::default() }).await;
    let nameless = Relay::start(|_| {}).await;
    let refused = Bare::connect(&nameless, "default").await.open(0, Kind::Http, 0, "web").await.unwrap_err();
    assert_eq!(refused, "this relay has no domain for names");
}

#[tokio::test]
async fn visitors_wait_for_a_client_that_was_lost() {
    let relay = relay(&["ana", "bo"], |_| {}).await;
    let mut lost = Bare::connect(&relay, "ana").await;
    let port = lost.open(0, Kind::Tcp, 0, "").await.unwrap();
    lost.open(1, Kind::Http, 0, "web").await.unwrap();
    drop(lost);
    eventually("the relay knows", || async { relay.server.snapshot().is_empty() }).await;
    let mut visitors = Vec::new();
    for _ in 0..5 {
        let mut visitor = TcpStream::connect(("127.0.0.1", port)).await.expect("its port is open");
        visitor.write_all(b"x").await.unwrap();
        visitors.push(visitor);
    }
    let server = relay.server.clone();
    let by_name = spawn(async move { server.returning("web").await.is_some() });
    assert!(relay.server.returning("never").await.is_none());
    // Clients with other keys do not get them.
    let mut other = Bare::connect(&relay, "bo").await;
    assert!(other.open(0, Kind::Tcp, port, "").await.unwrap_err().starts_with("port "));
    let (local, drain) = (echo().await.0, Drain::new());
    let wanted = |kind, port, name: &str| Wanted { local_port: local, kind, port, name: name.into() };
    let tunnels = vec![wanted(Kind::Tcp, port, ""), wanted(Kind::Http, 0, "web")];
    let (mut rx, _running) = start(client::Options { key: "ana".into(), tunnels, ..relay.client(local, port) }, &drain);
    opened(&mut rx).await;
    for mut visitor in visitors {
        assert_eq!(timeout(PATIENCE, visitor.read_u8()).await.unwrap().unwrap(), b'x');
    }
    assert!(timeout(PATIENCE, by_name).await.unwrap().unwrap());
    // A client that ends cleanly frees its port at once.
    drain.start();
    eventually("its port is closed", || async { TcpStream::connect(("127.0.0.1", port)).await.is_err() }).await;
}

#[tokio::test]
async fn a_port_that_is_being_closed_is_waited_for() {
    let relay = relay(&["ana"], |_| {}).await;
    let mut client = Bare::connect(&relay, "ana").await;
    let port = client.open(0, Kind::Tcp, 0, "").await.unwrap();
    for _ in 0..30 {
        let mut next = Bare::connect(&relay, "ana").await;
        // The relay sees the end and the new request at the same moment.
        drop(client);
        assert_eq!(next.open(0, Kind::Tcp, port, "").await, Ok(port));
        client = next;
    }
}

#[tokio::test]
async fn a_client_that_has_fallen_silent_makes_room_for_one_of_its_key() {
    let relay = relay(&["ana", "bo"], |_| {}).await;
    let mut silent = Bare::connect(&relay, "ana").await;
    let port = silent.open(0, Kind::Tcp, 0, "").await.unwrap();
    silent.open(1, Kind::Http, 0, "web").await.unwrap();
    // The connection exists, but the client does not answer: a laptop that has changed its network.
    let mut other = Bare::connect(&relay, "bo").await;
    assert_eq!(other.open(0, Kind::Http, 0, "web").await.unwrap_err(), "the name \"web\" is in use");
    let began = tokio::time::Instant::now();
    let mut back = Bare::connect(&relay, "ana").await;
    assert_eq!(back.open(0, Kind::Tcp, port, "").await, Ok(port));
    assert_eq!(back.open(1, Kind::Http, 0, "Web=localhost:3000").await, Ok(0));
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}: not only when the silence counts as an end",
        began.elapsed()
    );
    drop(silent);
}

#[tokio::test]
async fn a_key_cannot_reserve_more_than_it_may_open() {
    let relay = relay(&["ana", "bo"], |options| {
        options.ports = ports(6).forever();
        options.limits.tunnels_per_key = 2;
    })
    .await;
    for _ in 0..6 {
        let mut ana = Bare::connect(&relay, "ana").await;
        ana.open(0, Kind::Tcp, 0, "").await.unwrap();
        ana.open(1, Kind::Tcp, 0, "").await.unwrap();
        drop(ana);
        eventually("the relay knows", || async { relay.server.snapshot().is_empty() }).await;
    }
    let mut bo = Bare::connect(&relay, "bo").await;
    for id in 0..2 {
        bo.open(id, Kind::Tcp, 0, "").await.unwrap();
    }
    drop(bo);
    eventually("the relay knows", || async { relay.server.snapshot().is_empty() }).await;
    // What a client opens counts too: the oldest reservations of its key end.
    let (mut ana, mut bo) = (Bare::connect(&relay, "ana").await, Bare::connect(&relay, "bo").await);
    for (id, name) in (0..).zip(["a", "b"]) {
        ana.open(id, Kind::Http, 0, name).await.unwrap();
    }
    drop(ana);
    eventually("the relay knows", || async { relay.server.snapshot().is_empty() }).await;
    assert!(bo.open(0, Kind::Http, 0, "a").await.unwrap_err().contains("is reserved"));
    let mut back = Bare::connect(&relay, "ana").await;
    for (id, name) in (0..).zip(["c", "d"]) {
        back.open(id, Kind::Http, 0, name).await.unwrap();
    }
    bo.open(0, Kind::Http, 0, "a").await.unwrap();
}

#[tokio::test]
async fn a_client_whose_port_another_one_gets_is_told_and_its_visitors_go_there() {
    let relay = relay(&["ana"], |options| options.ports = ports(10).forever()).await;
    let mut asleep = Bare::connect(&relay, "ana").await;
    let port = asleep.open(0, Kind::Tcp, 0, "").await.unwrap();
    let _visitor = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    while !matches!(frame(&mut asleep.tls).await, Frame::Incoming { .. }) {}
    let mut twin = Bare::connect(&relay, "ana").await;
    assert_eq!(twin.open(3, Kind::Tcp, port, "").await, Ok(port));
    let incoming = async { while !matches!(frame(&mut twin.tls).await, Frame::Incoming { tunnel: 3, .. }) {} };
    timeout(Duration::from_secs(5), incoming).await.expect("the visitor waits for the new client");
    let told = async {
        loop {
            if let Frame::Refused { tunnel: 0, reason } = frame(&mut asleep.tls).await {
                return reason;
            }
        }
    };
    let reason = timeout(Duration::from_secs(5), told).await.expect("the old client is told");
    assert_eq!(reason, "another client with the key \"ana\" has it now (127.0.0.1)");
}

#[tokio::test]
async fn clients_that_want_the_port_of_each_other_both_count_as_alive() {
    let relay = relay(&["ana"], |options| options.ports = ports(10).forever()).await;
    let (mut one, mut two) = (Bare::connect(&relay, "ana").await, Bare::connect(&relay, "ana").await);
    let (first, second) = (one.open(0, Kind::Tcp, 0, "").await.unwrap(), two.open(0, Kind::Tcp, 0, "").await.unwrap());
    // A client that has its own answer has to stay: the other one's may wait for its Pong.
    let both = Barrier::new(2);
    let open = async |client: &mut Bare, port| {
        let answer = client.open(1, Kind::Tcp, port, "").await;
        tokio::select! {
            _ = both.wait() => answer,
            () = client.stay() => unreachable!(),
        }
    };
    let (ones, twos) = tokio::join!(open(&mut one, second), open(&mut two, first));
    assert_eq!((ones, twos), (Err(format!("port {second} is in use")), Err(format!("port {first} is in use"))));
}
