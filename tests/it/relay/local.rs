//! `local:` in the configuration: the client of `adit local` in a running adit.

use adit::relay::auth::parse_keys;

use super::*;
use crate::process::Process;

/// Returns an entry of `local:` for a relay.
fn entry(relay: &Relay, port: u16, more: &str) -> String {
    format!("{{port: {port}, to: \"{}\"{more}}}", relay.address)
}

/// Returns a relay, and an entry of `local:` for it with its secret in a file of the folder.
async fn relay_for(port: u16) -> (Relay, String, tempfile::TempDir) {
    let relay = Relay::start(|_| {}).await;
    relay.server.set_keys(parse_keys(&SECRET.replace(' ', "-")).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, SECRET.replace(' ', "-")).unwrap();
    let local = entry(&relay, port, &format!(", secret_file: {}", secret.display()));
    (relay, local, folder)
}

#[tokio::test]
async fn what_time_can_heal_is_tried_again_and_the_status_says_what_it_waits_for() {
    let only = ports(1);
    let public = *only.start();
    let relay = Relay::start(|options| options.ports = only.clone()).await;
    let (port, _) = echo().await;
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    let local = entry(&relay, port, &format!(", secret_file: {}", secret.display()));
    let adit = Process::start(&format!("local: [{local}]\n"), &[]).await;
    let waits = async |reason: &str| {
        eventually(reason, || async { adit.status().await.contains(reason) }).await;
        let (_, json, _) = adit.command(&["status", "-o", "json"]).await;
        let status: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&status["local"][0]["state"], &status["local"][0]["port"]), (&"waiting".into(), &port.into()));
        assert!(status["local"][0]["reason"].as_str().unwrap().contains(reason), "{json}");
        assert!(adit.log().contains(reason), "{}", adit.log());
    };
    // First the file is missing, then it has another secret, then the port is in use.
    waits("No such file").await;
    std::fs::write(&secret, "another-secret-of-theirs").unwrap();
    waits("the secret is not the one of this relay").await;
    let taken = TcpListener::bind(("127.0.0.1", public)).await.unwrap();
    std::fs::write(&secret, SECRET.replace(' ', "-")).unwrap();
    relay.server.set_keys(parse_keys(&SECRET.replace(' ', "-")).unwrap());
    waits(&format!("no port from {public} to {public} is free")).await;
    drop(taken);
    let reachable = format!("reachable at 127.0.0.1:{public}");
    eventually("it is open", || async { adit.status().await.contains(&reachable) }).await;
    let mut visitor = TcpStream::connect(("127.0.0.1", public)).await.unwrap();
    visitor.write_all(b"x").await.unwrap();
    assert_eq!(timeout(PATIENCE, visitor.read_u8()).await.unwrap().unwrap(), b'x');
    // The status omits a deleted entry.
    std::fs::write(adit.config(), "local: []\n").unwrap();
    eventually("it is gone", || async { !adit.status().await.contains("local port") }).await;
    eventually("the relay knows", || async { relay.server.snapshot().is_empty() }).await;
}

#[tokio::test]
async fn each_local_port_has_its_own_status_and_a_late_reload_brings_its_local_ports() {
    let (one, two) = (echo().await.0, echo().await.0);
    let ((_first, of_one, _folder), (_second, of_two, _other)) = (relay_for(one).await, relay_for(one).await);
    let of_three = of_one.replacen(&one.to_string(), &two.to_string(), 1);
    let adit = Process::start(&format!("local: [{of_one}, {of_two}, {of_three}]\n"), &[]).await;
    let are_open = async |count: usize| {
        let (_, json, _) = adit.command(&["status", "-o", "json"]).await;
        let status: serde_json::Value = serde_json::from_str(&json).unwrap();
        let states: Vec<_> = status["local"].as_array().unwrap().iter().map(|local| local["state"].clone()).collect();
        states == vec!["open"; count]
    };
    eventually("three are open", || are_open(3)).await;
    // A configuration that waits for a port is applied as a whole once the port is free.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let route = format!("{port}: {{namespace: shop, service: web, port: 80, listen: 127.0.0.1}}");
    let config = format!("local: [{of_two}, {of_three}]\ntcp: {{k8s: {{routes: {{{route}}}}}}}\n");
    std::fs::write(adit.config(), config).unwrap();
    adit.logs("config not reloaded").await;
    assert!(are_open(3).await);
    drop(taken);
    eventually("two are left", || are_open(2)).await;
}

#[tokio::test]
async fn the_former_name_goes_on_working_with_a_note() {
    let (port, _) = echo().await;
    let (_relay, local, _folder) = relay_for(port).await;
    let adit = Process::start(&format!("expose: [{local}]\n"), &[]).await;
    eventually("it is open", || async { adit.status().await.contains("reachable at 127.0.0.1:") }).await;
    let note = "the key 'expose' is called 'local' now: rename it";
    // A reload repeats a note only if it is new.
    std::fs::write(adit.config(), format!("verbose: true\nexpose: [{local}]\n")).unwrap();
    adit.logs("config reloaded").await;
    assert_eq!(adit.log().matches(note).count(), 1, "{}", adit.log());
    let (valid, said, _) = adit.command(&["check", adit.config().to_str().unwrap()]).await;
    assert!(valid && said.contains("is valid: 1 local port\n") && said.contains(&format!("note: {note}\n")), "{said}");
}

#[tokio::test]
async fn the_status_says_that_a_dev_server_refuses_its_public_name_and_what_to_write() {
    let dev_server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = dev_server.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = dev_server.accept().await {
            let answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 26\r\n\r\nBlocked request. This host";
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let (_relay, local, _folder) = relay_for(port).await;
    let adit = Process::start(&format!("local: [{local}]\n"), &[]).await;
    eventually("it is open", || async { adit.status().await.contains("reachable at 127.0.0.1:") }).await;
    let status = adit.status().await;
    assert!(!status.contains("hint:"), "{status}");
    let public = status.split("reachable at ").nth(1).unwrap().split_whitespace().next().unwrap();
    let mut visitor = TcpStream::connect(public).await.unwrap();
    visitor.write_all(b"GET / HTTP/1.1\r\nHost: mine.example.test\r\n\r\n").await.unwrap();
    let line = "'name: NAME' and 'host: rewrite'";
    eventually("the hint comes", || async { adit.status().await.contains(line) }).await;
    assert!(adit.status().await.contains("reachable at 127.0.0.1:"), "the port stays open");
    let (_, json, _) = adit.command(&["status", "-o", "json"]).await;
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    for hint in [&status["local"][0]["hint"], &status["attention"][0]["hint"]] {
        assert!(hint.as_str().is_some_and(|hint| hint.contains(line)), "{json}");
    }
    // Another visitor is not another warning.
    let again = TcpStream::connect(public).await.unwrap();
    again.readable().await.unwrap();
    assert_eq!(adit.log().matches("refuses the Host header").count(), 1, "{}", adit.log());
}

#[tokio::test]
async fn two_entries_of_one_port_have_a_status_each() {
    let only = ports(2);
    let (relay, (port, _)) = (Relay::start(|options| options.ports = only.clone()).await, echo().await);
    relay.server.set_keys(parse_keys(&SECRET.replace(' ', "-")).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, SECRET.replace(' ', "-")).unwrap();
    let wanted = [*only.start(), *only.end()];
    let entries = wanted
        .map(|public| entry(&relay, port, &format!(", secret_file: {}, public_port: {public}", secret.display())));
    let adit = Process::start(&format!("local: [{}]\n", entries.join(", ")), &[]).await;
    let status = async || {
        let (_, json, _) = adit.command(&["status", "-o", "json"]).await;
        let status: serde_json::Value = serde_json::from_str(&json).unwrap();
        let mut local = status["local"].as_array().unwrap().clone();
        local.sort_by_key(|local| local["public_port"].as_u64());
        local
    };
    eventually("both are open", || async {
        let local = status().await;
        local.len() == 2 && local.iter().all(|local| local["state"] == "open")
    })
    .await;
    for (local, public) in status().await.iter().zip(wanted) {
        assert_eq!(local["public"], format!("127.0.0.1:{public}"), "{local}");
        assert_eq!((&local["public_port"], &local["name"]), (&public.into(), &serde_json::Value::Null), "{local}");
    }
    // One is deleted: the other keeps its own status.
    std::fs::write(adit.config(), format!("local: [{}]\n", entries[1])).unwrap();
    eventually("one is gone", || async { status().await.len() == 1 }).await;
    assert_eq!(status().await[0]["public_port"], wanted[1]);
}

#[tokio::test]
async fn a_hang_up_ends_a_client_whose_errors_go_to_a_file_unless_nohup_runs_it() {
    let (port, _) = echo().await;
    let (relay, _, folder) = relay_for(port).await;
    for (script, survives) in [("exec \"$@\"", false), ("trap '' HUP; exec \"$@\"", true)] {
        let errors = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_adit"), "local", &port.to_string()]);
        command.args(["--to", &relay.address.to_string(), "--secret-file"]).arg(folder.path().join("secret"));
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(errors);
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        eventually("it is open", || async { relay.server.snapshot().len() == 1 }).await;
        let id = child.id().unwrap().to_string();
        let signal = |name: &'static str| tokio::process::Command::new("kill").args([name, &id]).status();
        assert!(signal("-HUP").await.unwrap().success());
        if survives {
            assert!(timeout(Duration::from_millis(700), child.wait()).await.is_err(), "nohup keeps it");
            assert!(signal("-TERM").await.unwrap().success());
        }
        assert!(timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap().success());
        eventually("the port is free", || async { relay.server.snapshot().is_empty() }).await;
    }
}

#[tokio::test]
async fn a_secret_that_can_be_read_only_once_is_used_again() {
    let (port, _) = echo().await;
    let (relay, _, _folder) = relay_for(port).await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_adit"));
    command.args(["local", &port.to_string(), "--to", &relay.address.to_string(), "--secret-file", "/dev/stdin"]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    child.stdin.take().unwrap().write_all(SECRET.replace(' ', "-").as_bytes()).await.unwrap();
    eventually("it is open", || async { relay.server.snapshot().len() == 1 }).await;
}
