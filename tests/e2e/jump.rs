//! Jump hosts: through socat in a pod to servers that the laptop has no way to.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::support::{Adit, NAMESPACE, free_port, kubectl, run, succeed};

#[test]
fn redis_is_reached_through_another_pod() {
    // The world has to be there before the pod's address is known.
    let _world = Adit::plain();
    let address = kubectl(&["-n", NAMESPACE, "get", "pod", "data", "-o", "jsonpath={.status.podIP}"]);
    let (local, dead) = (free_port(), free_port());
    let adit = Adit::start(&format!(
        "http: {{listen: \"@HTTP@\"}}\ntcp:\n  k8s:\n    jump:\n      {local}: {{namespace: {NAMESPACE}, via: {{service: web}}, target: {{host: {address}, port: 6379}}}}\n      \
         {dead}: {{namespace: {NAMESPACE}, via: {{service: web}}, target: {{host: {address}, port: 1}}}}"
    ));
    let value = "x".repeat(100_000);
    let redis = |port: u16, words: &[&str]| {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &port.to_string()]).args(words);
        command
    };
    assert_eq!(succeed(&mut redis(local, &["set", "through-a-jump", &value])).trim(), "OK");
    assert_eq!(succeed(&mut redis(local, &["get", "through-a-jump"])).trim(), value);
    // redis-cli prints the error that adit gives it in Redis' own protocol, and exits with 0.
    let refused = run(&mut redis(dead, &["ping"]));
    let said = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
    assert!(!said.contains("PONG") && !said.is_empty(), "{said}");
    let error = adit.tunnels().iter().map(|tunnel| tunnel["last_error"].to_string()).collect::<String>();
    assert!(
        error.contains("Connection refused") && error.contains(&format!("{address}:1 cannot be reached from pod web-")),
        "{error}"
    );
}

/// Returns the address of a pod that only the cluster reaches.
fn address(pod: &str) -> String {
    kubectl(&["-n", NAMESPACE, "get", "pod", pod, "-o", "jsonpath={.status.podIP}"])
}

/// Sends bytes to an echo, ends, and returns what came back.
fn echoed(port: u16, sent: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a socket");
    let mut back = Vec::new();
    thread::scope(|scope| {
        let mut write = stream.try_clone().expect("a second handle");
        scope.spawn(move || {
            write.write_all(sent).expect("it takes all");
            write.shutdown(Shutdown::Write).expect("it takes the end");
        });
        stream.read_to_end(&mut back).expect("an end");
    });
    back
}

#[test]
fn sixty_four_mib_and_a_hundred_connections_come_back_unchanged() {
    let _world = Adit::plain();
    let (local, by_nc, echo) = (free_port(), free_port(), address("echo"));
    let _adit = Adit::start(&format!(
        "http: {{listen: \"@HTTP@\"}}\ntcp:\n  k8s:\n    jump:\n      {local}: {{namespace: {NAMESPACE}, via: {{service: web}}, target: {{host: {echo}, port: 7000}}}}\n      \
         {by_nc}: {{namespace: {NAMESPACE}, via: {{service: web}}, target: {{host: {echo}, port: 7000}}, method: nc}}"
    ));
    let sent: Vec<u8> = (0..16u32 << 20).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    assert!(echoed(local, &sent) == sent, "64 MiB");
    assert!(echoed(by_nc, &sent[..8 << 20]) == sent[..8 << 20], "8 MiB by nc, and the end after it");
    thread::scope(|scope| {
        for number in 0..100usize {
            let piece = &sent[number * 1000..number * 1000 + 50_000];
            scope.spawn(move || {
                let back = echoed(local, piece);
                assert!(back == piece, "connection {number}: {} of {} bytes", back.len(), piece.len());
            });
        }
    });
}

#[test]
fn databases_and_pages_behind_the_cluster_are_reached() {
    let _world = Adit::plain();
    let (postgres, mysql) = (free_port(), free_port());
    let web = kubectl(&["-n", NAMESPACE, "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].status.podIP}"]);
    let adit = Adit::start(&format!(
        "http:\n  listen: \"@HTTP@\"\n  k8s:\n    routes:\n      wiki.localhost: {{namespace: {NAMESPACE}, via: {{service: web}}, target: {{host: {web}, port: 80}}}}\n\
         tcp:\n  k8s:\n    jump:\n      {postgres}: {{namespace: {NAMESPACE}, via: {{service: web}}, target: {{host: {}, port: 5432}}}}\n      \
         {mysql}: {{namespace: {NAMESPACE}, via: {{pod: data, container: mariadb}}, target: {{host: 127.0.0.1, port: 3306}}, method: nc}}",
        address("postgres-0")
    ));
    let rows = succeed(Command::new("psql").args([
        &format!("host=127.0.0.1 port={postgres} user=postgres password=postgres dbname=postgres sslmode=require connect_timeout=20"),
        "-Atc",
        "select count(*) from generate_series(1, 100000)",
    ]));
    assert_eq!(rows.trim(), "100000");
    let port = mysql.to_string();
    let words = ["--protocol=tcp", "-h127.0.0.1", "-P", &port, "-uroot", "-pmariadb", "-Ne", "select 6 * 7"];
    assert_eq!(succeed(Command::new("mariadb").args(words)).trim(), "42");
    assert!(adit.get("http://wiki.localhost/whoami").starts_with("web-"));
}

#[test]
fn a_pod_is_created_where_it_is_asked_for_and_cleaned_up() {
    let _world = Adit::plain();
    let echo = address("echo");
    let ports: Vec<u16> = (0..4).map(|_| free_port()).collect();
    let via = |port: u16, pod: &str, image: &str| {
        format!(
            "      {port}: {{namespace: {NAMESPACE}, via: {{pod: {pod}, create: {{image: \"{image}\", timeout: 20s}}}}, target: {{host: {echo}, port: 7000}}}}\n"
        )
    };
    let adit = Adit::start(&format!(
        "http: {{listen: \"@HTTP@\"}}\ntcp:\n  k8s:\n    jump:\n{}{}{}{}",
        via(ports[0], "jump-socat", "localhost/socat:1"),
        via(ports[1], "jump-nc", "localhost/busybox:1"),
        via(ports[2], "jump-neither", "localhost/pause:1"),
        via(ports[3], "jump-nowhere", "localhost/no-such-image:1"),
    ));
    // Whoever comes first creates it; the others wait for the same pod.
    thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| assert_eq!(echoed(ports[0], b"through socat"), b"through socat"));
        }
    });
    assert_eq!(echoed(ports[1], b"through nc"), b"through nc");
    for port in &ports[2..] {
        let mut stream = TcpStream::connect(("127.0.0.1", *port)).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        assert!(!matches!(stream.read(&mut [0]), Ok(1..)));
    }
    let log = adit.log();
    assert!(
        log.contains("ErrImageNeverPull") || log.contains("ImagePullBackOff") || log.contains("ErrImagePull"),
        "{log}"
    );
    let jump =
        |words: &[&str]| succeed(Command::new(env!("CARGO_BIN_EXE_adit")).args(["-n", NAMESPACE, "jump"]).args(words));
    let listed = jump(&["ls"]);
    assert!(listed.contains("adit-e2e/jump-socat") && listed.contains("ready") && listed.contains('@'), "{listed}");
    let labels = kubectl(&[
        "-n",
        NAMESPACE,
        "get",
        "pod",
        "jump-socat",
        "-o",
        "jsonpath={.metadata.labels}{.spec.automountServiceAccountToken}",
    ]);
    assert!(labels.contains("adit-jump") && labels.contains("false"), "{labels}");
    let cleaned = jump(&["clean"]);
    assert!(cleaned.contains("deleted adit-e2e/jump-nc"), "{cleaned}");
    assert!(kubectl(&["-n", NAMESPACE, "get", "pod", "data", "-o", "name"]).contains("data"));
}

#[test]
fn a_pod_that_has_ended_is_made_again_where_it_is_ours() {
    // Where no other test cleans up.
    const ELSEWHERE: &str = "default";
    let _world = Adit::plain();
    for (name, manager) in [("jump-ended", "adit"), ("jump-of-others", "somebody")] {
        kubectl(&["-n", ELSEWHERE, "delete", "pod", name, "--ignore-not-found", "--now"]);
        let labels = format!("app.kubernetes.io/name=adit-jump,app.kubernetes.io/managed-by={manager}");
        let image = ["--image", "localhost/socat:1", "--image-pull-policy", "IfNotPresent"];
        let rest = ["--restart", "Never", "--labels", &labels, "--command", "--", "sh", "-c", "true"];
        kubectl(&[&["-n", ELSEWHERE, "run", name], &image[..], &rest[..]].concat());
        let pod = format!("pod/{name}");
        kubectl(&["-n", ELSEWHERE, "wait", "--for", "jsonpath={.status.phase}=Succeeded", "--timeout", "30s", &pod]);
    }
    let (ours, others, echo) = (free_port(), free_port(), address("echo"));
    let via = |port: u16, pod: &str| {
        format!(
            "      {port}: {{namespace: {ELSEWHERE}, via: {{pod: {pod}, create: {{image: \"localhost/socat:1\", timeout: 8s}}}}, target: {{host: {echo}, port: 7000}}}}\n"
        )
    };
    let _adit = Adit::start(&format!(
        "http: {{listen: \"@HTTP@\"}}\ntcp:\n  k8s:\n    jump:\n{}{}",
        via(ours, "jump-ended"),
        via(others, "jump-of-others")
    ));
    assert_eq!(echoed(ours, b"through a new one"), b"through a new one");
    let mut refused = TcpStream::connect(("127.0.0.1", others)).expect("a connection");
    refused.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    assert!(!matches!(refused.read(&mut [0]), Ok(1..)));
    let phase = kubectl(&["-n", ELSEWHERE, "get", "pod", "jump-of-others", "-o", "jsonpath={.status.phase}"]);
    assert_eq!(phase, "Succeeded", "what others have made is left alone");
    kubectl(&["-n", ELSEWHERE, "delete", "pod", "jump-ended", "jump-of-others", "--wait=false"]);
}

/// Returns how many programs that lead to this address run in a container.
fn socats(pod: &str, container: &str, address: &str) -> usize {
    let list = "for at in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $at; echo; done 2> /dev/null";
    let listed = kubectl(&["-n", NAMESPACE, "exec", pod, "-c", container, "--", "sh", "-c", list]);
    listed.lines().filter(|line| line.starts_with("socat") && line.contains(address)).count()
}

#[test]
fn a_connect_that_a_signal_ends_leaves_nothing_in_the_pod() {
    let _world = Adit::plain();
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("config.yaml");
    let port = free_port();
    // An address of its own: other tests use the pod too.
    let target = "127.0.0.41:6379";
    std::fs::write(
        &config,
        format!("tcp:\n  k8s:\n    jump:\n      {port}: {{namespace: {NAMESPACE}, via: {{pod: data, container: redis}}, target: {{host: 127.0.0.41, port: 6379}}}}\n"),
    )
    .expect("a file");
    for signal in ["-HUP", "-TERM", "-INT"] {
        // nohup, and shells without job control, have programs ignore signals.
        let mut connect = Command::new("env")
            .args(["--default-signal=HUP,INT", env!("CARGO_BIN_EXE_adit"), "--config"])
            .arg(&config)
            .args(["connect", &format!("127.0.0.1:{port}")])
            .env("XDG_RUNTIME_DIR", folder.path())
            .env("XDG_STATE_HOME", folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("adit");
        let mut input = connect.stdin.take().expect("a pipe");
        input.write_all(b"PING\r\n").expect("it reads");
        let mut pong = [0; 7];
        connect.stdout.as_mut().expect("a pipe").read_exact(&mut pong).expect("an answer");
        assert_eq!((&pong, socats("data", "redis", target)), (b"+PONG\r\n", 1));
        succeed(Command::new("kill").args([signal, &connect.id().to_string()]));
        let code = connect.wait().expect("an end").code();
        assert!(code > Some(128), "{signal}: {code:?}");
        assert_eq!(socats("data", "redis", target), 0, "{signal}");
    }
}
