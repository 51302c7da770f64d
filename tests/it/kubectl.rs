//! A kubectl that we did not write, against the demo API server: our client and our server cannot share a mistake.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Output, Stdio},
    time::Duration,
};

use adit::demo::Demo;

fn kubectl(demo: &Demo, arguments: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    command
        .arg("--kubeconfig")
        .arg(demo.kubeconfig())
        .args(arguments)
        .env_remove("KUBECONFIG")
        .env("HOME", demo.kubeconfig().parent().unwrap());
    command
}

/// Runs kubectl beside the demo, which lives in this process.
async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || {
        command.stdin(Stdio::null()).output().expect("kubectl is on PATH: the suite needs it")
    })
    .await
    .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn pods_and_services_are_listed() {
    let demo = Demo::start().await.unwrap();
    let output = run(kubectl(&demo, &["get", "pods,svc", "-A"])).await;
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        shown.contains("pod/web-6d5f-a1") && shown.contains("CrashLoopBackOff") && shown.contains("service/payments"),
        "{shown}"
    );
    let output = run(kubectl(&demo, &["get", "pods", "--context", "demo-nobody"])).await;
    assert!(text(&output.stderr).contains("User \"nobody\" cannot list resource \"pods\""), "{}", text(&output.stderr));
}

#[tokio::test]
async fn exec_passes_output_input_and_exit_codes() {
    let demo = Demo::start().await.unwrap();
    let output = run(kubectl(&demo, &["exec", "tools-0", "--", "echo", "hello"])).await;
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "hello\n"), "{}", text(&output.stderr));
    let output = run(kubectl(&demo, &["exec", "tools-0", "--", "sh", "-c", "exit 3"])).await;
    assert_eq!(output.status.code(), Some(3));
    for websockets in ["true", "false"] {
        let mut command = kubectl(&demo, &["exec", "-i", "tools-0", "--", "cat"]);
        command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
        let echoed = tokio::task::spawn_blocking(move || {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(&vec![b'x'; 300_000]).unwrap();
            child.wait_with_output().unwrap()
        });
        assert_eq!(echoed.await.unwrap().stdout.len(), 300_000, "websockets {websockets}");
    }
}

#[tokio::test]
async fn pods_are_scaled_deleted_and_waited_for() {
    let demo = Demo::start().await.unwrap();
    for (arguments, wanted) in [
        (&["scale", "deployment/web", "--replicas=3"][..], "scaled"),
        (&["rollout", "status", "deployment/web", "--timeout=20s"], "successfully rolled out"),
        (&["delete", "pod", "web-6d5f-a1", "--timeout=20s"], "deleted"),
        (&["wait", "--for=condition=Ready", "pod", "-l", "app=web", "--timeout=20s"], "condition met"),
        (&["auth", "can-i", "create", "pods/portforward"], "yes"),
        (&["logs", "tools-0"], "listening on port 8080"),
    ] {
        let output = run(kubectl(&demo, arguments)).await;
        let shown = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success() && shown.contains(wanted), "{arguments:?}: {shown}");
    }
    let output =
        run(kubectl(&demo, &["--context", "demo-nobody", "auth", "can-i", "create", "pods/portforward"])).await;
    assert_eq!(text(&output.stdout), "no\n");
}

#[tokio::test]
async fn port_forward_works_by_both_transports() {
    for websockets in ["true", "false"] {
        let demo = Demo::start().await.unwrap();
        let mut command = kubectl(&demo, &["port-forward", "service/web", ":80", "--address", "127.0.0.1"]);
        let mut child = command
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("kubectl is on PATH: the suite needs it");
        let stdout = child.stdout.take().unwrap();
        let answers = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            // Kept open: kubectl says more with each connection, and would die of a closed pipe.
            let mut stdout = BufReader::new(stdout);
            stdout.read_line(&mut line).unwrap();
            let port: u16 = line
                .split("127.0.0.1:")
                .nth(1)
                .and_then(|rest| rest.split(' ').next())
                .and_then(|port| port.parse().ok())
                .expect(&line);
            (0..3)
                .map(|_| {
                    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    stream.write_all(b"GET /whoami HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").unwrap();
                    let mut answer = Vec::new();
                    // kubectl may reset a connection behind its last byte.
                    let _ = stream.read_to_end(&mut answer);
                    text(&answer)
                })
                .collect::<Vec<_>>()
        })
        .await
        .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        for answer in answers {
            assert!(answer.contains("web-6d5f-"), "websockets {websockets}: {answer}");
        }
        assert!(demo.faults().streams_seen() >= 3);
    }
}
