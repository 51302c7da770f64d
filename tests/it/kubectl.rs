//! The demo API server with kubectl, which adit's authors have not written: adit's client and the demo cannot share a mistake.

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

/// Runs kubectl in a blocking thread, because the demo is in this process.
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
            // Keep the pipe open: kubectl prints more with each connection, and a closed pipe would end it.
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
                    // kubectl may reset a connection after its last byte.
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

#[tokio::test]
async fn objects_are_created_patched_replaced_and_deleted() {
    let demo = Demo::start().await.unwrap();
    let file = demo.kubeconfig().with_file_name("service.yaml");
    let done = async |arguments: &[&str]| {
        let output = run(kubectl(&demo, arguments)).await;
        (output.status.success(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: mine}\nspec: {ports: [{port: 80}]}\n";
    std::fs::write(&file, service).unwrap();
    let path = file.to_str().unwrap();
    let create = ["create", "--validate=false", "-f", path];
    assert_eq!(done(&create).await, (true, "service/mine created\n".into()));
    let (created, again) = done(&create).await;
    assert!(!created && again.contains("AlreadyExists"), "{again}");
    let (_, before) = done(&["get", "svc", "mine", "-o", "json"]).await;
    std::fs::write(file.with_file_name("before.json"), &before).unwrap();
    let patch = r#"{"metadata":{"labels":{"a":"b"}}}"#;
    assert_eq!(done(&["patch", "svc", "mine", "--type", "merge", "-p", patch]).await.1, "service/mine patched\n");
    let (replaced, stale) =
        done(&["replace", "--validate=false", "-f", file.with_file_name("before.json").to_str().unwrap()]).await;
    assert!(!replaced && stale.contains("the object has been modified"), "{stale}");
    let (_, labels) =
        done(&["get", "svc", "mine", "-o", "jsonpath={.metadata.labels.a} {.spec.ports[0].targetPort}"]).await;
    assert_eq!(labels, "b 80");
    // Deleting a Service deletes the EndpointSlice that it owns.
    let uid = demo.world().get("services", "shop", "mine").unwrap()["metadata"]["uid"].clone();
    let owner = serde_json::json!([{"apiVersion": "v1", "kind": "Service", "name": "mine", "uid": uid}]);
    let metadata = serde_json::json!({"namespace": "shop", "name": "mine-1", "ownerReferences": owner});
    demo.world()
        .put("endpointslices", serde_json::json!({"metadata": metadata, "addressType": "IPv4", "endpoints": []}));
    assert!(done(&["delete", "svc", "mine"]).await.0);
    crate::support::eventually("the slice is gone", || async {
        demo.world().get("endpointslices", "shop", "mine-1").is_none()
    })
    .await;
}
