//! `local:` in the configuration: the client of `adit local` in a running adit.

use adit::relay::auth::parse_keys;

use super::*;
use crate::process::Process;

/// Returns an entry of `local:` for a relay.
fn entry(relay: &Relay, port: u16, more: &str) -> String {
    format!("{{port: {port}, to: \"{}\"{more}}}", relay.address)
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
async fn the_former_name_goes_on_working_with_a_note() {
    let relay = Relay::start(|_| {}).await;
    relay.server.set_keys(parse_keys(&SECRET.replace(' ', "-")).unwrap());
    let (port, _) = echo().await;
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, SECRET.replace(' ', "-")).unwrap();
    let local = entry(&relay, port, &format!(", secret_file: {}", secret.display()));
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
