//! Reloads while connections are open.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use crate::support::{Adit, eventually, free_port, run};

#[test]
fn a_reload_keeps_connections_and_requests() {
    let local = free_port();
    let tcp = format!("tcp:\n  k8s:\n    routes:\n      {local}: {{namespace: adit-e2e, service: echo, port: 7000}}");
    let with = |routes: &str| {
        format!(
            "http:\n  listen: \"@HTTP@\"\n  k8s:\n    routes:\n      kept.localhost: {{namespace: adit-e2e, service: web, port: 80}}\n{routes}{tcp}"
        )
    };
    let adit = Adit::start(&with(""));
    let mut session = TcpStream::connect(("127.0.0.1", local)).unwrap();
    session.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut echo = |word: &[u8]| {
        session.write_all(word).unwrap();
        let mut back = vec![0; word.len()];
        session.read_exact(&mut back).unwrap();
        assert_eq!(back, word);
    };
    echo(b"before");
    let (stop, served) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    adit.get("http://kept.localhost/1k");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..10 {
            let name = format!("round-{round}.localhost");
            adit.rewrite(&with(&format!("      {name}: {{namespace: adit-e2e, service: web, port: 80}}\n")));
            let url = format!("http://{name}/whoami");
            eventually(&format!("{name} is served"), Duration::from_secs(10), || {
                run(&mut adit.curl(&["-f", &url])).status.success()
            });
            echo(b"during");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(served.load(Ordering::Relaxed) > 20);
    echo(b"after");
}

#[test]
fn a_removed_route_is_no_longer_served() {
    let routes = "http:\n  listen: \"@HTTP@\"\n  k8s:\n    routes:\n      gone.localhost: {namespace: adit-e2e, service: web, port: 80}";
    let adit = Adit::start(routes);
    adit.get("http://gone.localhost/whoami");
    adit.rewrite("http:\n  listen: \"@HTTP@\"");
    eventually("the route is gone", Duration::from_secs(10), || {
        !run(&mut adit.curl(&["-f", "http://gone.localhost/whoami"])).status.success()
    });
}

#[test]
fn an_invalid_file_changes_nothing_and_is_told() {
    let routes = "http:\n  listen: \"@HTTP@\"\n  k8s:\n    routes:\n      kept.localhost: {namespace: adit-e2e, service: web, port: 80}";
    let adit = Adit::start(routes);
    adit.rewrite("http:\n  listen: \"@HTTP@\"\n  k8s:\n    routes:\n      kept.localhost: {namespace: adit-e2e, service: web, port: 70000}");
    eventually("the log says why", Duration::from_secs(10), || adit.log().contains("70000"));
    adit.get("http://kept.localhost/whoami");
    assert!(adit.status().to_string().contains("70000"), "{}", adit.status());
}
