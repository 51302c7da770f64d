//! Objects that are not written the usual way: what a takeover leaves of them, for those who write them later.

use std::{
    io::Write,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::{Expose, NAMESPACE, Relays, are_again, gets, laptop, objects, run};
use crate::support::kubectl;

/// Runs `kubectl apply` with an object, and returns what it says, and whether it succeeds.
fn apply(object: &Value, options: &[&str]) -> (bool, String) {
    let mut apply = Command::new("kubectl");
    apply.args(["-n", NAMESPACE, "apply", "-f", "-"]).args(options);
    let mut child =
        apply.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl runs");
    child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// Objects that the test has created, until this is dropped.
struct Created(&'static str, &'static str);

impl Drop for Created {
    fn drop(&mut self) {
        drop(run(Command::new("kubectl").args(["-n", NAMESPACE, "delete", self.0, self.1, "--ignore-not-found"])));
    }
}

fn take(port: u16, service: &str) -> Expose {
    let expose = Expose::start(&[&format!("{port}:80"), "--as", &format!("{service}.{NAMESPACE}"), "--replace"]);
    expose.said(&format!("{service}.{NAMESPACE}:80 in "));
    expose
}

fn ends(expose: Expose) {
    expose.interrupt();
    assert_eq!(expose.ends().0, Some(0));
}

/// The address of a pod that answers at port 80.
fn pod() -> String {
    let pods = ["-n", NAMESPACE, "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].status.podIP}"];
    kubectl(&pods)
}

#[test]
#[ignore = "it starts relays: cargo test --features e2e --test e2e expose:: -- --ignored"]
fn endpoints_by_hand_with_one_port_are_as_before_at_the_end() {
    let _relays = Relays::start();
    let (port, pod) = (laptop(), pod());
    let _created = [
        Created("service", "by-slice"),
        Created("endpointslice", "by-slice-1"),
        Created("service", "by-endpoints"),
        Created("endpoints", "by-endpoints"),
    ];
    let service = |name: &str| {
        let spec = json!({"ports": [{"name": "http", "port": 80}]});
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
    };
    let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
    let labels = json!({"kubernetes.io/service-name": "by-slice"});
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "by-slice-1", "labels": labels},
        "addressType": "IPv4", "ports": ports, "endpoints": [{"addresses": [pod]}]
    });
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "by-endpoints"},
        "subsets": [{"addresses": [{"ip": pod}], "ports": ports}]
    });
    for object in [service("by-slice"), slice, service("by-endpoints"), endpoints] {
        let (is_done, said) = apply(&object, &[]);
        assert!(is_done, "{said}");
    }
    for name in ["by-slice", "by-endpoints"] {
        let url = format!("http://{name}.{NAMESPACE}/whoami");
        gets(&url, false);
        let before = objects();
        let expose = take(port, name);
        gets(&url, true);
        ends(expose);
        gets(&url, false);
        are_again(&before);
    }
}

#[test]
#[ignore = "it starts relays: cargo test --features e2e --test e2e expose:: -- --ignored"]
fn a_server_side_apply_has_no_conflict_with_adit_afterwards() {
    let _relays = Relays::start();
    let port = laptop();
    let _created = [Created("service", "applied")];
    let service = |target_port: &str| {
        let ports = json!([{"name": "http", "port": 80, "targetPort": target_port, "protocol": "TCP"}]);
        let spec = json!({"selector": {"app": "web"}, "ports": ports});
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "applied"}, "spec": spec})
    };
    let helm = ["--server-side", "--field-manager=helm"];
    assert!(apply(&service("http"), &helm).0);
    let before = objects();
    let expose = take(port, "applied");
    let (is_done, said) = apply(&service("http"), &helm);
    assert!(!is_done && said.contains("conflict with \"adit\""), "while it is taken over: {said}");
    ends(expose);
    are_again(&before);
    let (is_done, said) = apply(&service("h2c"), &helm);
    assert!(is_done, "{said}");
}

#[test]
#[ignore = "it starts relays: cargo test --features e2e --test e2e expose:: -- --ignored"]
fn visitors_are_served_while_a_service_is_taken_over_and_given_back() {
    let _relays = Relays::start();
    let port = laptop();
    let (web, seconds) = (format!("http://web.{NAMESPACE}/whoami"), 25);
    gets(&web, false);
    let before = objects();
    let asks = format!(
        "end=$(($(date +%s) + {seconds})); while [ $(date +%s) -lt $end ]; do curl -s -o /dev/null --max-time 5 {web} || echo failed; \
         sleep 0.02; done > asked 2>&1; touch asked.done"
    );
    let visitor = ["-n", NAMESPACE, "exec", "echo", "--", "sh", "-c"];
    kubectl(&[&visitor[..], &[&format!("rm -f asked asked.done; ({asks}) > /dev/null 2>&1 &")]].concat());
    for _ in 0..2 {
        let expose = take(port, "web");
        gets(&web, true);
        ends(expose);
        gets(&web, false);
        thread::sleep(Duration::from_secs(1));
    }
    crate::support::eventually("the visitor has asked", Duration::from_secs(120), || {
        run(Command::new("kubectl").args(visitor).arg("rm asked.done")).status.success()
    });
    let failed = kubectl(&[&visitor[..], &["cat asked"]].concat()).lines().count();
    // A request that the laptop was answering when it left is lost.
    assert!(failed <= 2, "{failed} requests failed");
    are_again(&before);
}
