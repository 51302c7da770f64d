//! Jump hosts: connections through a program in a pod of the demo.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::support::{PATIENCE, TestApp, eventually, every_byte_returns, ports::free_port};

async fn app(jump: &str) -> TestApp {
    let local = free_port();
    TestApp::start(&format!("tcp: {{k8s: {{jump: {{{local}: {{namespace: shop, {jump}}}}}}}}}\n")).await
}

#[tokio::test]
async fn bytes_pass_through_each_program_both_ways() {
    for (via, method) in [("pod: tools-0", "socat"), ("pod: tools-0", "nc"), ("service: web", "auto")] {
        let app = app(&format!("via: {{{via}}}, target: {{host: tools.shop, port: 7000}}, method: {method}")).await;
        every_byte_returns(app.tcp[0], 500_000).await;
        app.finish().await;
    }
}

#[tokio::test]
async fn where_nothing_lets_a_websocket_through_spdy_is_taken() {
    for method in ["socat", "nc", "auto"] {
        let app =
            app(&format!("via: {{pod: tools-0}}, target: {{host: tools.shop, port: 7000}}, method: {method}")).await;
        app.demo.faults().no_websocket(true);
        for _ in 0..2 {
            every_byte_returns(app.tcp[0], 500_000).await;
        }
        app.finish().await;
    }
    let app = app("via: {pod: tools-0}, target: {host: tools.shop, port: 9}").await;
    app.demo.faults().no_websocket(true);
    let mut stream = TcpStream::connect(app.tcp[0]).await.unwrap();
    assert!(
        timeout(PATIENCE, stream.read(&mut [0; 8])).await.unwrap().is_err(),
        "what the program says is known here too"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_target_that_refuses_resets_the_client_with_what_the_program_said() {
    let app = app("via: {pod: tools-0}, target: {host: tools.shop, port: 9}").await;
    let mut stream = TcpStream::connect(app.tcp[0]).await.unwrap();
    let end = timeout(PATIENCE, stream.read(&mut [0; 8])).await.unwrap();
    assert!(end.is_err(), "{end:?}");
    app.finish().await;
}

#[tokio::test]
async fn an_exec_that_is_refused_is_told_at_once_and_one_that_cannot_be_done_is_not_asked_for_without_a_pause() {
    let app = app("via: {pod: tools-0}, target: {host: tools.shop, port: 7000}, method: socat").await;
    let faults = app.demo.faults();
    let fails = async || {
        let (before, started) = (faults.requests_seen("/exec"), Instant::now());
        let mut stream = TcpStream::connect(app.tcp[0]).await.unwrap();
        let end = timeout(PATIENCE, stream.read(&mut [0; 8])).await.unwrap();
        assert!(matches!(end, Err(_) | Ok(0)), "{end:?}");
        (faults.requests_seen("/exec") - before, started.elapsed())
    };
    faults.forbid("create", "pods/exec", true);
    faults.forbid("get", "pods/exec", true);
    let (asked, took) = fails().await;
    assert!(asked <= 4 && took < Duration::from_secs(2), "{asked} {took:?}");
    faults.forbid("create", "pods/exec", false);
    faults.forbid("get", "pods/exec", false);
    faults.answer("/exec", Some(503));
    let (asked, _) = fails().await;
    assert!(asked < 150, "{asked}");
    app.finish().await;
}

#[tokio::test]
async fn a_pod_whose_node_hangs_is_left_for_the_next_one() {
    let app = app("via: {service: web}, target: {host: tools.shop, port: 7000}, method: socat").await;
    let echoes = async || {
        let mut stream = TcpStream::connect(app.tcp[0]).await.unwrap();
        stream.write_all(b"word").await.unwrap();
        let mut word = [0; 4];
        timeout(PATIENCE, stream.read_exact(&mut word)).await.unwrap().is_ok()
    };
    assert!(echoes().await);
    let (pods, _) = app.demo.world().list("pods", Some("shop"));
    let names = pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).filter(|name| name.starts_with("web-"));
    let execs = |name: &str| format!("/{name}/exec");
    let used = names.map(execs).find(|path| app.demo.faults().requests_seen(path) > 0).unwrap();
    app.demo.faults().delay(&used, Some(Duration::from_secs(60)));
    let before = app.demo.faults().requests_seen(&used);
    let results = [echoes().await, echoes().await, echoes().await];
    assert!(results[2], "{results:?}, {} more execs in the pod", app.demo.faults().requests_seen(&used) - before);
    app.finish().await;
}

#[tokio::test]
async fn a_check_for_a_program_that_is_cut_off_is_repeated() {
    let app = app("via: {pod: tools-0}, target: {host: tools.shop, port: 7000}, method: nc").await;
    let faults = app.demo.faults();
    faults.freeze(true);
    let echo = async {
        let mut stream = TcpStream::connect(app.tcp[0]).await.unwrap();
        stream.write_all(b"word").await.unwrap();
        let mut word = [0; 4];
        timeout(PATIENCE, stream.read_exact(&mut word)).await.unwrap().unwrap();
    };
    let cut = async {
        eventually("the check is cut off", async || {
            faults.drop_upgraded_connections();
            faults.requests_seen("/exec") > 1
        })
        .await;
        faults.freeze(false);
    };
    tokio::join!(echo, cut);
    assert!(faults.requests_seen("/exec") >= 3, "two checks and a connection: {}", faults.requests_seen("/exec"));
    app.finish().await;
}

#[tokio::test]
async fn a_pod_that_is_not_ready_gets_no_new_connections_and_keeps_those_it_has() {
    let app = app("via: {service: web}, target: {host: tools.shop, port: 7000}, method: socat").await;
    let execs = |pod: &str| app.demo.faults().requests_seen(&format!("/{pod}/exec"));
    let echo = async |stream: &mut TcpStream| {
        stream.write_all(b"word").await.unwrap();
        let mut word = [0; 4];
        timeout(PATIENCE, stream.read_exact(&mut word)).await.unwrap().unwrap();
    };
    let end = async |mut stream: TcpStream| {
        stream.shutdown().await.unwrap();
        assert_eq!(timeout(PATIENCE, stream.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    };
    let echo_once = async || {
        let mut stream = TcpStream::connect(app.tcp[0]).await.unwrap();
        echo(&mut stream).await;
        end(stream).await;
    };
    let mut first = TcpStream::connect(app.tcp[0]).await.unwrap();
    echo(&mut first).await;
    let pods = ["web-6d5f-a1", "web-6d5f-b2"];
    let [used, other] = if execs(pods[0]) > 0 { pods } else { [pods[1], pods[0]] };
    let mut pod = (*app.demo.world().get("pods", "shop", used).unwrap()).clone();
    pod["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
    pod["status"]["containerStatuses"][0]["ready"] = json!(false);
    app.demo.world().put("pods", pod);
    eventually("the other pod is used", async || {
        echo_once().await;
        execs(other) > 0
    })
    .await;
    let before = execs(used);
    echo_once().await;
    assert_eq!(execs(used), before);
    echo(&mut first).await;
    end(first).await;
    app.finish().await;
}

#[tokio::test]
async fn without_the_permission_to_watch_a_jump_works() {
    let app = app("via: {service: web}, target: {host: tools.shop, port: 7000}").await;
    for resource in ["pods", "endpointslices"] {
        app.demo.faults().forbid("watch", resource, true);
    }
    for _ in 0..3 {
        every_byte_returns(app.tcp[0], 5_000).await;
    }
    app.finish().await;
}

#[tokio::test]
async fn the_end_of_a_server_that_answers_and_closes_is_seen() {
    for (method, spdy_only) in [("socat", false), ("socat", true), ("nc", false), ("auto", false)] {
        let app = app(&format!("via: {{pod: tools-0}}, target: {{host: web.shop, port: 80}}, method: {method}")).await;
        app.demo.faults().no_websocket(spdy_only);
        let mut stream = TcpStream::connect(app.tcp[0]).await.unwrap();
        stream.write_all(b"GET /whoami HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let started = Instant::now();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect(method).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && started.elapsed() < Duration::from_secs(2), "{method}: {answer}");
        app.finish().await;
    }
}

#[tokio::test]
async fn many_connections_through_one_pod_are_kept_apart() {
    let app = app("via: {service: web}, target: {host: tools.shop, port: 7000}").await;
    let connections = (0..50u32).map(|number| {
        let address = app.tcp[0];
        async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&number.to_be_bytes()).await.unwrap();
            assert_eq!(timeout(PATIENCE, stream.read_u32()).await.unwrap().unwrap(), number);
        }
    });
    futures::future::join_all(connections).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    app.finish().await;
}
