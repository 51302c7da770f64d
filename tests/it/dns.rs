//! DNS queries for names that adit serves, at the UDP port of its listener.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use adit::{
    app::{App, Overrides},
    config::{KubeconfigPaths, validate},
    drain::Drain,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::support::{PATIENCE, TestApp, eventually, ports::ports, spawn, start_demo};

/// Returns a query for the addresses of a name, as resolvers send it.
fn question(name: &str, kind: u8) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat());
    [b"\xab\xcd\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec(), labels.collect(), vec![0, 0, kind, 0, 1]].concat()
}

/// Returns the code of the answer, and the bytes behind the question.
async fn ask(server: SocketAddr, name: &str, kind: u8) -> (u8, Vec<u8>) {
    let socket = UdpSocket::bind((server.ip(), 0)).await.unwrap();
    let asked = question(name, kind);
    socket.send_to(&asked, server).await.unwrap();
    let mut answer = vec![0; 512];
    let (length, from) = timeout(PATIENCE, socket.recv_from(&mut answer)).await.expect("an answer in time").unwrap();
    assert_eq!((from, &answer[..2]), (server, &asked[..2]));
    (answer[3] & 15, answer[asked.len()..length].to_vec())
}

#[tokio::test]
async fn names_that_are_served_are_this_machine_and_others_are_refused() {
    let routes = ["shop.example.test: {", "gone.example.test: {context: gone, "];
    let routes = routes.map(|route| format!("{route}namespace: shop, service: web}}")).join(", ");
    let config = &format!("http: {{k8s: {{routes: {{{routes}}}}}}}\n");
    let app = TestApp::start(config).await;
    let below = ["web.shop.localhost", "WEB.localhost", "localhost", "anything.below.localhost"];
    for name in below.into_iter().chain(["shop.example.test", "gone.example.test"]) {
        let (code, answer) = ask(app.http, name, 1).await;
        assert!(code == 0 && answer.ends_with(&[127, 0, 0, 1]), "{name}: {code} {answer:?}");
    }
    for name in ["example.com", "example.test", "other.example.test"] {
        assert_eq!(ask(app.http, name, 1).await, (5, Vec::new()), "{name}");
    }
    // Over TCP, several on one connection (RFC 7766).
    let (first, second) = (question("web.shop.localhost", 1), question("example.com", 1));
    let framed = [&first, &second].map(|question| [&[0, question.len() as u8][..], question].concat()).concat();
    let mut stream = TcpStream::connect(app.http).await.unwrap();
    stream.write_all(&framed).await.unwrap();
    let mut answers = vec![0; framed.len() + 16];
    timeout(PATIENCE, stream.read_exact(&mut answers)).await.expect("answers in time").unwrap();
    let (of_first, of_second) = answers.split_at(2 + first.len() + 16);
    assert!(of_first.ends_with(&[127, 0, 0, 1]) && of_first[2..4] == first[..2], "{of_first:?}");
    assert_eq!((of_second[1], of_second[5] & 15), (second.len() as u8, 5), "refused");
    // adit does not invent addresses of the other family.
    let (code, answer) = ask(app.http, "web.shop.localhost", 28).await;
    assert!(code == 0 && (answer.is_empty() || answer.ends_with(&[0, 1])), "{answer:?}");
    app.finish().await;
}

/// Returns whether a query is answered soon.
async fn is_answered(server: SocketAddr) -> bool {
    let socket = UdpSocket::bind((server.ip(), 0)).await.unwrap();
    // An ICMP message about a closed port fails either call.
    if socket.connect(server).await.is_err() || socket.send(&question("localhost", 1)).await.is_err() {
        return false;
    }
    matches!(timeout(Duration::from_millis(300), socket.recv(&mut [0; 512])).await, Ok(Ok(_)))
}

#[tokio::test]
async fn queries_are_answered_once_the_udp_port_is_free_at_a_start_and_after_a_reload() {
    let range = ports(3);
    let [first, second, third] = [0, 1, 2].map(|offset| SocketAddr::from(([127, 0, 0, 1], range.start() + offset)));
    let in_the_way = UdpSocket::bind(first).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let listen = |on: &str| format!("http: {{listen: \"{on}\"}}\n");
    fs::write(&file, listen(&first.to_string())).unwrap();
    let demo = start_demo().await;
    let overrides = Overrides { kubeconfig: Some(KubeconfigPaths(vec![demo.kubeconfig()])), ..Overrides::default() };
    let app = App { overrides, file: Some(file.clone()), ..App::default() };
    let config = validate::parse(Path::new("test.yaml"), listen(&first.to_string()).as_bytes()).unwrap();
    let drain = Drain::new();
    let of_app = drain.clone();
    let running = spawn(async move { app.bind(config).expect("free TCP ports").run(of_app).await.expect("adit runs") });
    eventually("HTTP is served all the same", || async { TcpStream::connect(first).await.is_ok() }).await;
    assert!(!is_answered(first).await);
    drop(in_the_way);
    eventually("the first port", || is_answered(first)).await;

    // A listener on the same port of all addresses: its UDP socket can bind only after the old one is closed.
    for on in ["0.0.0.0", "127.0.0.1", "0.0.0.0"] {
        fs::write(&file, listen(&format!("{on}:{}", second.port()))).unwrap();
        eventually(on, || is_answered(second)).await;
    }

    let in_the_way = UdpSocket::bind(third).await.unwrap();
    fs::write(&file, listen(&third.to_string())).unwrap();
    eventually("the listener moves", || async { TcpStream::connect(third).await.is_ok() }).await;
    drop(in_the_way);
    eventually("the third port", || is_answered(third)).await;
    assert_eq!(drain.finish(Duration::from_secs(10)).await, 0, "tasks were left at the end");
    timeout(PATIENCE, running).await.expect("it ends").unwrap();
}
