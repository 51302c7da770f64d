//! Questions of DNS about the names that adit serves, at the UDP port of its listener.

use std::net::SocketAddr;

use tokio::{net::UdpSocket, time::timeout};

use crate::support::{PATIENCE, TestApp};

/// A question about the addresses of a name, as resolvers send it.
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
    let config = "http: {k8s: {routes: {shop.example.test: {namespace: shop, service: web}}}}\n";
    let app = TestApp::start(config).await;
    for name in ["web.shop.localhost", "WEB.localhost", "localhost", "anything.below.localhost", "shop.example.test"] {
        let (code, answer) = ask(app.http, name, 1).await;
        assert!(code == 0 && answer.ends_with(&[127, 0, 0, 1]), "{name}: {code} {answer:?}");
    }
    for name in ["example.com", "example.test", "other.example.test"] {
        assert_eq!(ask(app.http, name, 1).await, (5, Vec::new()), "{name}");
    }
    // No address of another family is made up.
    let (code, answer) = ask(app.http, "web.shop.localhost", 28).await;
    assert!(code == 0 && (answer.is_empty() || answer.ends_with(&[0, 1])), "{answer:?}");
    app.finish().await;
}
