//! TCP routes, from a client to a pod of the demo.

use std::io::ErrorKind;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{PATIENCE, TestApp, eventually, every_byte_returns, ports::free_port};

async fn app(service: &str, port: u16) -> TestApp {
    app_of("shop", service, port).await
}

async fn app_of(namespace: &str, service: &str, port: u16) -> TestApp {
    let local = free_port();
    TestApp::start(&format!(
        "tcp: {{k8s: {{routes: {{{local}: {{namespace: {namespace}, service: {service}, port: {port}}}}}}}}}\n"
    ))
    .await
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_at_once() {
    let app = app("tools", 7001).await;
    let mut client = TcpStream::connect(app.tcp[0]).await.unwrap();
    let mut greeting = [0; 19];
    timeout(PATIENCE, client.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(&greeting, b"hello from tools-0\n");
    drop(client);
    app.finish().await;
}

#[tokio::test]
async fn every_byte_comes_back_before_the_end() {
    let app = app("tools", 7000).await;
    every_byte_returns(app.tcp[0], 3_000_000).await;
    app.finish().await;
}

#[tokio::test]
async fn a_reset_of_the_pod_is_a_reset_of_the_client() {
    let app = app("tools", 7000).await;
    app.demo.faults().reset(7000, true);
    let mut client = TcpStream::connect(app.tcp[0]).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    let end = timeout(PATIENCE, client.read(&mut [0; 8])).await.unwrap();
    assert!(matches!(&end, Err(error) if error.kind() == ErrorKind::ConnectionReset), "{end:?}");
    app.finish().await;
}

/// For a client that has only half-closed, adit waits up to 30 s. Ending the app waits less.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn for_a_client_that_has_closed_its_socket_no_answer_is_waited_for() {
    let app = app_of("data", "postgres", 5432).await;
    let mut client = TcpStream::connect(app.tcp[0]).await.unwrap();
    // The start of a message, so that the server waits for the rest.
    client.write_all(b"\0\0\0\x28").await.unwrap();
    drop(client);
    eventually("the pod has its stream", || async { app.demo.faults().streams_seen() == 1 }).await;
    app.finish().await;
}

#[tokio::test]
async fn a_stalled_stream_leaves_others_alone() {
    let app = app("tools", 7000).await;
    let mut echoing = TcpStream::connect(app.tcp[0]).await.unwrap();
    let mut word = [0; 5];
    echoing.write_all(b"first").await.unwrap();
    timeout(PATIENCE, echoing.read_exact(&mut word)).await.unwrap().unwrap();
    app.demo.faults().stall(7000, true);
    let stalled = TcpStream::connect(app.tcp[0]).await.unwrap();
    eventually("the second stream is open", || async { app.demo.faults().streams_seen() >= 2 }).await;
    echoing.write_all(b"again").await.unwrap();
    timeout(PATIENCE, echoing.read_exact(&mut word)).await.unwrap().unwrap();
    assert_eq!(&word, b"again");
    drop((echoing, stalled));
    app.drain().cut();
}

#[tokio::test]
async fn a_port_that_refuses_resets_the_client() {
    let app = app("tools", 7000).await;
    app.demo.faults().refuse(7000, true);
    let mut client = TcpStream::connect(app.tcp[0]).await.unwrap();
    let end = timeout(PATIENCE, client.read(&mut [0; 8])).await.unwrap();
    assert!(end.is_err(), "{end:?}");
    app.finish().await;
}
