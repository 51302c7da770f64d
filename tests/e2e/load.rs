//! What happens to a cluster while it is used: no GET fails where another pod is ready, no POST arrives twice, and
//! sessions of other pods are not cut.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::support::{Adit, NAMESPACE, await_ready_pods, free_port, kubectl, ready_pods, succeed};

/// How long pods are deleted one after another: minutes in `ADIT_E2E_MINUTES`, else a quarter of one.
fn time() -> Duration {
    let minutes = std::env::var("ADIT_E2E_MINUTES").ok().and_then(|minutes| minutes.parse().ok());
    minutes.map_or(Duration::from_secs(15), |minutes: u64| Duration::from_secs(60 * minutes))
}

/// These tests take turns: each needs both pods.
static BUSY: Mutex<()> = Mutex::new(());

/// Stops the load when it is dropped: where a change fails, too.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Sends one request on a connection of its own.
fn request(port: u16, request: &str) -> Result<String, String> {
    let exchange = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(40)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    match exchange() {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => Ok(answer),
        Ok(answer) => Err(answer),
        Err(error) => Err(error.to_string()),
    }
}

/// Sends GETs to a host until `stop`; counts them, and keeps the reasons of those that fail.
fn get_until(stop: &AtomicBool, adit: &Adit, host: &str, count: &AtomicUsize, failed: &Mutex<Vec<String>>) {
    while !stop.load(Ordering::SeqCst) {
        count.fetch_add(1, Ordering::SeqCst);
        let get = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        if let Err(reason) = request(adit.http, &get) {
            failed.lock().unwrap().push(reason);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs `change` under load and checks what has to hold.
fn under_load(name: &str, change: impl FnOnce()) {
    let _turn = BUSY.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let sql = free_port();
    let adit = Adit::start(&format!(
        "http: {{listen: \"@HTTP@\"}}\ntcp: {{k8s: {{routes: {{{sql}: {{namespace: {NAMESPACE}, service: postgres, port: 5432}}}}}}}}"
    ));
    await_ready_pods("busy", 2);
    let host = adit.host("busy");
    let (stop, gets, posts) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = Mutex::new(Vec::new());
    let run = format!("{name}-{}", std::process::id());
    let mut psql = Command::new("psql")
        .arg(format!("host=127.0.0.1 port={sql} user=postgres password=postgres dbname=postgres connect_timeout=20"))
        .args(["-At"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql starts");
    let mut session = psql.stdin.take().expect("a pipe");
    session.write_all(b"select 'before';\n").expect("psql reads");
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| get_until(&stop, &adit, &host, &gets, &failed));
        }
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let id = format!("{run}-{}", posts.fetch_add(1, Ordering::SeqCst));
                let length = id.len();
                let post = format!(
                    "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{id}"
                );
                // It may fail: its pod may have gone with it. It must not be sent again.
                let _ = request(adit.http, &post);
                thread::sleep(Duration::from_millis(20));
            }
        });
        let stopping = Stopping(&stop);
        thread::sleep(Duration::from_secs(1));
        change();
        thread::sleep(Duration::from_secs(2));
        drop(stopping);
    });
    session.write_all(b"select 'after';\n").expect("psql lives");
    drop(session);
    let output = psql.wait_with_output().expect("psql ends");
    let (gets, posts, failed) = (gets.into_inner(), posts.into_inner(), failed.into_inner().unwrap());
    assert!(
        failed.is_empty(),
        "{name}: {} of {gets} GETs failed, the first with {}\n{}",
        failed.len(),
        failed[0],
        adit.log()
    );
    assert!(gets > 50 && posts > 20, "{name}: there was load: {gets} GETs, {posts} POSTs");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "before\nafter\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let script = "local n = 0 for _, k in ipairs(redis.call('keys', ARGV[1])) do if redis.call('get', k) ~= '1' then n = n + 1 end end return n";
    let twice = kubectl(&[
        "-n",
        NAMESPACE,
        "exec",
        "data",
        "-c",
        "redis",
        "--",
        "redis-cli",
        "eval",
        script,
        "0",
        &format!("post-{run}-*"),
    ]);
    assert_eq!(twice.trim(), "0", "{name}: POSTs that arrived twice, of {posts}");
}

#[test]
fn pods_that_are_deleted_one_after_another() {
    under_load("deleted", || {
        let until = Instant::now() + time();
        while Instant::now() < until {
            await_ready_pods("busy", 2);
            kubectl(&["-n", NAMESPACE, "delete", "pod", &ready_pods("busy")[0], "--wait=false"]);
            thread::sleep(Duration::from_millis(500));
        }
        await_ready_pods("busy", 2);
    });
}

#[test]
fn a_deployment_that_is_rolled_out() {
    under_load("rolled", || {
        kubectl(&["-n", NAMESPACE, "rollout", "restart", "deployment/busy"]);
        kubectl(&["-n", NAMESPACE, "rollout", "status", "deployment/busy", "--timeout=120s"]);
    });
}

#[test]
fn a_container_that_is_killed() {
    under_load("killed", || {
        let pod = &ready_pods("busy")[0];
        kubectl(&["-n", NAMESPACE, "exec", pod, "--", "python3", "-c", "import os; os.kill(1, 15)"]);
        thread::sleep(Duration::from_secs(3));
        await_ready_pods("busy", 2);
    });
}

#[test]
fn a_pod_of_a_stateful_set_that_is_replaced() {
    let uid = || kubectl(&["-n", NAMESPACE, "get", "pod", "only-0", "-o", "jsonpath={.metadata.uid}"]);
    // There is no other: who comes meanwhile waits for it.
    gets_under_load("replaced", ("only", 1), || {
        let before = uid();
        kubectl(&["-n", NAMESPACE, "delete", "pod", "only-0"]);
        await_ready_pods("only", 1);
        assert_ne!(uid(), before);
    });
}

/// Runs the program that restarts the parts of the cluster.
pub fn cluster(arguments: &[&str]) {
    let program = std::env::var("ADIT_E2E_CLUSTER").expect("ADIT_E2E_CLUSTER names the cluster's program");
    succeed(Command::new(program).args(arguments));
}

#[test]
#[ignore = "breaks the cluster for all others"]
fn a_kubelet_that_restarts() {
    // psql's session ends with it: it is not asked here.
    gets_under_load("kubelet", ("busy", 2), || cluster(&["restart", "kubelet"]));
}

#[test]
#[ignore = "breaks the cluster for all others"]
fn a_container_runtime_that_restarts() {
    gets_under_load("containerd", ("busy", 2), || cluster(&["restart", "containerd"]));
}

#[test]
#[ignore = "breaks the cluster for all others"]
fn an_api_server_that_restarts() {
    gets_under_load("api", ("busy", 2), || cluster(&["restart", "kube-apiserver"]));
}

#[test]
#[ignore = "breaks the cluster for all others"]
fn an_api_server_that_hangs_for_ten_seconds() {
    gets_under_load("hangs", ("busy", 2), || {
        cluster(&["signal", "STOP", "kube-apiserver"]);
        thread::sleep(Duration::from_secs(10));
        cluster(&["signal", "CONT", "kube-apiserver"]);
    });
}

/// Runs `change` while GETs are sent to an app with so many pods.
fn gets_under_load(name: &str, (app, pods): (&str, usize), change: impl FnOnce()) {
    let adit = Adit::plain();
    await_ready_pods(app, pods);
    let host = adit.host(app);
    let (stop, count, failed) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| get_until(&stop, &adit, &host, &count, &failed));
        }
        let stopping = Stopping(&stop);
        thread::sleep(Duration::from_secs(1));
        change();
        thread::sleep(Duration::from_secs(6));
        drop(stopping);
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{name}: {} of {} GETs failed, the first with {}\n{}",
        failed.len(),
        count.into_inner(),
        failed[0],
        adit.log()
    );
}
