//! Tunnels under faults: pods that come and go, nodes that hang, and gateways.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::support::{PATIENCE, TestApp, echoes, eventually, ports::free_port, start_demo};

/// Starts adit with a TCP route to a port of `tools`, and returns the route's address.
async fn app(port: u16) -> (TestApp, SocketAddr) {
    let local = free_port();
    let app = TestApp::start(&format!(
        "tcp: {{k8s: {{routes: {{{local}: {{namespace: shop, service: tools, port: {port}}}}}}}}}\n"
    ))
    .await;
    let address = app.tcp[0];
    (app, address)
}

/// Sends GETs one after the other until `stop` is set, and counts them. Returns those without a 200.
async fn load(app: &TestApp, stop: &AtomicBool, sent: &AtomicUsize) -> Vec<String> {
    let mut failed = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let (status, body) = app.get("web.shop.localhost", "/whoami").await;
        sent.fetch_add(1, Ordering::SeqCst);
        if status != 200 {
            failed.push(format!("{status}: {body}"));
        }
    }
    failed
}

/// Runs `change` under load, and asserts that no request failed.
async fn no_request_fails_while(app: &TestApp, change: impl Future<Output = ()>) {
    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let more = async |count: usize| {
        let wanted = sent.load(Ordering::SeqCst) + count;
        eventually("there is load", || async { sent.load(Ordering::SeqCst) >= wanted }).await;
    };
    let changing = async {
        more(10).await;
        change.await;
        sleep(Duration::from_millis(300)).await;
        more(10).await;
        stop.store(true, Ordering::SeqCst);
    };
    let (one, two, ()) = tokio::join!(load(app, &stop, &sent), load(app, &stop, &sent), changing);
    assert!(one.is_empty() && two.is_empty(), "of {}: {one:?} {two:?}", sent.into_inner());
}

fn pods_of_web(app: &TestApp) -> Vec<String> {
    let (pods, _) = app.demo.world().list("pods", Some("shop"));
    let of_web = pods
        .iter()
        .filter(|pod| pod["metadata"]["labels"]["app"] == "web" && pod["metadata"]["deletionTimestamp"].is_null());
    of_web
        .filter(|pod| pod["status"]["containerStatuses"][0]["ready"] == true)
        .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn pods_that_terminate_one_after_another_cost_no_request() {
    let app = TestApp::start("").await;
    no_request_fails_while(&app, async {
        for _ in 0..6 {
            eventually("two pods are ready", || async { pods_of_web(&app).len() == 2 }).await;
            let pod = pods_of_web(&app).swap_remove(0);
            app.demo.world().terminate_pod("shop", &pod, None).unwrap();
        }
    })
    .await;
    app.finish().await;
}

#[tokio::test]
async fn a_container_that_restarts_costs_no_request_where_another_pod_is_ready() {
    let app = TestApp::start("").await;
    no_request_fails_while(&app, async {
        for _ in 0..3 {
            eventually("two pods are ready", || async { pods_of_web(&app).len() == 2 }).await;
            let pod = pods_of_web(&app).swap_remove(1);
            assert!(app.demo.world().restart_container("shop", &pod));
        }
    })
    .await;
    app.finish().await;
}

#[tokio::test]
async fn connections_that_are_cut_and_watches_that_end_cost_no_request() {
    let app = TestApp::start("").await;
    no_request_fails_while(&app, async {
        for _ in 0..5 {
            app.demo.faults().drop_upgraded_connections();
            app.demo.faults().end_watches();
            sleep(Duration::from_millis(100)).await;
        }
        app.demo.world().forget_history();
        app.demo.faults().end_watches();
        sleep(Duration::from_millis(500)).await;
        let pod = pods_of_web(&app).swap_remove(0);
        app.demo.world().terminate_pod("shop", &pod, None).unwrap();
    })
    .await;
    app.finish().await;
}

#[tokio::test]
async fn new_streams_go_to_the_ready_pod_with_the_fewest() {
    let app = TestApp::start("").await;
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(app.http).await.unwrap();
        stream.write_all(b"GET /sse HTTP/1.1\r\nHost: web.shop.localhost\r\n\r\n").await.unwrap();
        let mut seen = Vec::new();
        while !seen.windows(5).any(|part| part == b"data:") {
            assert!(timeout(PATIENCE, stream.read_buf(&mut seen)).await.unwrap().unwrap() > 0);
        }
        held.push(stream);
    }
    let mut counts = Vec::new();
    for pod in pods_of_web(&app) {
        let uid = app.demo.world().get("pods", "shop", &pod).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
        let (log, _) = app.demo.world().process(&uid).unwrap().lines(0);
        counts.push(log.matches("GET /sse").count());
    }
    assert!(counts.iter().all(|count| (8..=12).contains(count)), "{counts:?}");
    drop(held);
    app.finish().await;
}

#[tokio::test]
async fn streams_on_a_terminating_pod_live_until_they_end() {
    let app = TestApp::start("").await;
    let mut stream = TcpStream::connect(app.http).await.unwrap();
    stream.write_all(b"GET /sse HTTP/1.1\r\nHost: web.shop.localhost\r\n\r\n").await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(7).any(|part| part == b"data: 0") {
        assert!(timeout(PATIENCE, stream.read_buf(&mut seen)).await.unwrap().unwrap() > 0);
    }
    // No pod is ready any more, but their processes continue.
    for pod in pods_of_web(&app) {
        let mut object = (*app.demo.world().get("pods", "shop", &pod).unwrap()).clone();
        object["status"]["containerStatuses"][0]["ready"] = false.into();
        app.demo.world().put("pods", object);
    }
    sleep(Duration::from_millis(300)).await;
    let asked = app.get("web.shop.localhost", "/whoami");
    let ready_again = async {
        sleep(Duration::from_millis(1500)).await;
        let (pods, _) = app.demo.world().list("pods", Some("shop"));
        for pod in pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == "web") {
            let mut object = (**pod).clone();
            object["status"]["containerStatuses"][0]["ready"] = true.into();
            app.demo.world().put("pods", object);
        }
    };
    let ((status, body), ()) = tokio::join!(asked, ready_again);
    assert_eq!(status, 200, "who comes while no pod is ready waits for one: {body}");
    while !seen.windows(7).any(|part| part == b"data: 2") {
        assert!(timeout(PATIENCE, stream.read_buf(&mut seen)).await.unwrap().unwrap() > 0);
    }
    drop(stream);
    app.finish().await;
}

#[tokio::test]
async fn a_context_that_has_another_cluster_is_followed_and_open_streams_stay() {
    let (app, second) = (TestApp::start("").await, start_demo().await);
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    let mut stream = TcpStream::connect(app.http).await.unwrap();
    stream.write_all(b"GET /sse HTTP/1.1\r\nHost: web.shop.localhost\r\n\r\n").await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(7).any(|part| part == b"data: 0") {
        assert!(timeout(PATIENCE, stream.read_buf(&mut seen)).await.unwrap().unwrap() > 0);
    }
    let path = app.demo.kubeconfig();
    let first = fs::read_to_string(&path).unwrap();
    // Another current context changes nothing for the tunnels of this one.
    fs::write(&path, first.replace("current-context: demo\n", "current-context: demo # as before\n")).unwrap();
    sleep(Duration::from_secs(2)).await;
    let before = app.demo.faults().streams_seen();
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    assert_eq!((app.demo.faults().streams_seen(), second.faults().streams_seen()), (before + 1, 0));

    // As k3d and k3s do: no context for a moment, and then another cluster by the same name.
    fs::write(&path, "apiVersion: v1\nkind: Config\n").unwrap();
    sleep(Duration::from_secs(1)).await;
    fs::copy(second.kubeconfig(), &path).unwrap();
    eventually("the second cluster answers", || async {
        app.get("web.shop.localhost", "/whoami").await;
        second.faults().streams_seen() > 0
    })
    .await;
    let of_first = app.demo.faults().streams_seen();
    for _ in 0..5 {
        assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    }
    assert_eq!(app.demo.faults().streams_seen(), of_first);
    while !seen.windows(7).any(|part| part == b"data: 4") {
        assert!(timeout(PATIENCE, stream.read_buf(&mut seen)).await.unwrap().unwrap() > 0);
    }
    drop(stream);
    app.finish().await;
}

#[tokio::test]
async fn a_pod_whose_node_does_not_forward_ports_is_passed_over() {
    for (status, delay) in [(Some(502), None), (None, Some(Duration::from_secs(60)))] {
        let app = TestApp::start("").await;
        let first = pods_of_web(&app).into_iter().min().unwrap();
        app.demo.faults().answer(&format!("/{first}/portforward"), status);
        app.demo.faults().delay(&format!("/{first}/portforward"), delay);
        for _ in 0..3 {
            let started = Instant::now();
            let (status, pod) = app.get("web.shop.localhost", "/whoami").await;
            assert!(status == 200 && pod.trim() != first, "{status} {pod}");
            assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
        }
        // More streams than a connection takes, so that the other pod seems to have more room.
        let mut held = Vec::new();
        for _ in 0..12 {
            let mut stream = TcpStream::connect(app.http).await.unwrap();
            stream.write_all(b"GET /sse HTTP/1.1\r\nHost: web.shop.localhost\r\n\r\n").await.unwrap();
            let came = timeout(Duration::from_secs(8), stream.read(&mut [0; 64])).await;
            assert!(came.expect("an answer in time").unwrap() > 0);
            held.push(stream);
        }
        drop(held);
        app.finish().await;
    }
}

#[tokio::test]
async fn what_a_policy_forbids_is_tried_once_and_told_in_its_words() {
    let app = TestApp::start("").await;
    app.demo.faults().answer("/portforward", Some(403));
    let (status, body) = app.get("web.shop.localhost", "/whoami").await;
    assert!(status == 502 && body.contains("a policy of the cluster"), "{status} {body}");
    assert!(body.contains("the demo was told to answer so"), "{body}");
    assert_eq!(app.demo.faults().upgrades_seen(), 0);
    assert_eq!(app.demo.faults().requests_seen("/portforward"), 1);
    app.finish().await;
}

#[tokio::test]
async fn without_the_right_to_watch_the_wire_tells_when_a_pod_goes() {
    let app = TestApp::start("").await;
    app.demo.faults().forbid("watch", "endpointslices", true);
    for round in 0..4 {
        let (status, pod) = app.get("web.shop.localhost", "/whoami").await;
        assert_eq!(status, 200, "{pod}");
        assert!(app.demo.world().delete_pod("shop", pod.trim(), Some(&format!("web-{round}"))));
    }
    app.finish().await;
}

#[tokio::test]
async fn a_kubelet_that_restarts_is_waited_for() {
    // While it is down, and after it is back but does not know its pods yet.
    for status in [500, 404] {
        let (app, address) = app(7000).await;
        assert!(echoes(address, PATIENCE).await);
        app.demo.faults().answer("/portforward", Some(status));
        app.demo.faults().drop_upgraded_connections();
        // Until adit has read the end of the connection, it may open a stream there, whose bytes may be lost.
        sleep(Duration::from_millis(200)).await;
        let asked = echoes(address, PATIENCE);
        let restart = async {
            sleep(Duration::from_secs(1)).await;
            app.demo.faults().answer("/portforward", None);
        };
        let (came, ()) = tokio::join!(asked, restart);
        assert!(came, "{status} for a pod that the API server knows is not believed");
        app.finish().await;
    }
}

#[tokio::test]
async fn a_crowd_that_comes_at_once_is_served() {
    let (app, address) = app(7000).await;
    for _ in 0..2 {
        let crowd = (0..400u32).map(|number| async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&number.to_be_bytes()).await.unwrap();
            assert_eq!(timeout(PATIENCE, stream.read_u32()).await.expect("an answer").unwrap(), number);
        });
        futures::future::join_all(crowd).await;
    }
    app.finish().await;
}

#[tokio::test]
async fn a_gateway_that_knows_no_spdy_is_passed_by_channels() {
    let (app, address) = app(7000).await;
    app.demo.faults().only_channels(true);
    assert!(echoes(address, PATIENCE).await);
    let (status, body) = app.get("web.shop.localhost", "/whoami").await;
    assert_eq!(status, 200, "{body}");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let sent: Vec<u8> = (0..1_000_000u32).map(|number| (number * 31 % 251) as u8).collect();
    let mut received = vec![0; sent.len()];
    let (mut read, mut write) = stream.split();
    let (written, back) = tokio::join!(write.write_all(&sent), timeout(PATIENCE, read.read_exact(&mut received)));
    written.unwrap();
    back.unwrap().unwrap();
    assert!(sent == received);
    drop(stream);
    app.demo.faults().refuse(7000, true);
    let mut refused = TcpStream::connect(address).await.unwrap();
    assert!(timeout(PATIENCE, refused.read(&mut [0; 8])).await.unwrap().is_err(), "a refusal is a reset");
    app.finish().await;
}

#[tokio::test]
async fn stalled_clients_of_a_port_stop_nobody_else_on_it() {
    let (app, address) = app(7000).await;
    assert!(echoes(address, PATIENCE).await);
    let mut stalled = Vec::new();
    for _ in 0..12 {
        // An echo whose answers are not read: both directions fill up.
        let mut stream = TcpStream::connect(address).await.unwrap();
        let piece = vec![b'x'; 64 * 1024];
        while timeout(Duration::from_millis(200), stream.write_all(&piece)).await.is_ok_and(|written| written.is_ok()) {
        }
        stalled.push(stream);
        assert!(echoes(address, Duration::from_secs(2)).await, "beside {} stalled ones", stalled.len());
    }
    drop(stalled);
    app.drain().cut();
}

#[tokio::test]
async fn a_worker_that_hangs_for_good_is_left_within_seconds() {
    let (app, address) = app(7000).await;
    app.demo.faults().wedge(true);
    assert!(echoes(address, PATIENCE).await);
    app.demo.faults().refuse(7000, true);
    for _ in 0..5 {
        // The reset may come before this thread has seen the connection.
        let Ok(mut stream) = TcpStream::connect(address).await else { continue };
        // The stream is refused, and more bytes follow for a pair of streams that is gone.
        let _ = stream.write_all(&vec![0; 100_000]).await;
        let _ = timeout(PATIENCE, stream.read(&mut [0; 8])).await;
    }
    app.demo.faults().refuse(7000, false);
    for _ in 0..10 {
        assert!(echoes(address, Duration::from_secs(3)).await);
    }
    app.drain().cut();
}

#[tokio::test]
async fn a_node_that_hangs_is_given_up_and_used_again() {
    let (app, address) = app(7000).await;
    assert!(echoes(address, PATIENCE).await);
    app.demo.faults().freeze(true);
    let started = Instant::now();
    let asked = tokio::spawn(async move { echoes(address, Duration::from_secs(40)).await });
    sleep(Duration::from_secs(2)).await;
    app.demo.faults().freeze(false);
    assert!(asked.await.unwrap(), "after {:?}", started.elapsed());
    app.finish().await;
}

#[tokio::test]
async fn posts_are_never_sent_twice_while_pods_go() {
    let app = Arc::new(TestApp::start("").await);
    let (sent, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let stop = AtomicBool::new(false);
    let posting = async {
        while !stop.load(Ordering::SeqCst) {
            let number = sent.fetch_add(1, Ordering::SeqCst);
            let request = format!(
                "POST /upload?id={number} HTTP/1.1\r\nHost: web.shop.localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
            );
            if app.request(&request).await.0 == 200 {
                answered.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    let mut logs = String::new();
    let changing = async {
        for round in 0..8 {
            sleep(Duration::from_millis(150)).await;
            let pod = pods_of_web(&app).swap_remove(round % 2);
            let uid =
                app.demo.world().get("pods", "shop", &pod).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
            let process = app.demo.world().process(&uid).unwrap();
            app.demo.world().delete_pod("shop", &pod, Some(&format!("web-{round}")));
            logs += &process.lines(0).0;
        }
        sleep(Duration::from_millis(300)).await;
        stop.store(true, Ordering::SeqCst);
    };
    tokio::join!(posting, changing);
    for pod in pods_of_web(&app) {
        let uid = app.demo.world().get("pods", "shop", &pod).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
        logs += &app.demo.world().process(&uid).unwrap().lines(0).0;
    }
    let (sent, answered) = (sent.into_inner(), answered.into_inner());
    for number in 0..sent {
        let seen = logs.lines().filter(|line| line.ends_with(&format!("/upload?id={number}"))).count();
        assert!(seen <= 1, "request {number} was seen {seen} times");
    }
    assert!(answered * 10 >= sent * 8, "{answered} of {sent} were answered");
    Arc::into_inner(app).unwrap().finish().await;
}
