//! Jump hosts: through socat in a pod to servers that the laptop has no way to.

use std::process::Command;

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
    assert!(!run(&mut redis(dead, &["ping"])).status.success());
    let error = adit.tunnels().iter().map(|tunnel| tunnel["last_error"].to_string()).collect::<String>();
    assert!(
        error.contains("Connection refused") && error.contains(&format!("{address}:1 cannot be reached from pod web-")),
        "{error}"
    );
}
