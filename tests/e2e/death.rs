//! Pods that go away between requests.

use std::{sync::Mutex, time::Duration};

use crate::support::{Adit, NAMESPACE, await_ready_pods, eventually, kubectl};

/// These tests take turns: each needs both victims ready.
static VICTIMS: Mutex<()> = Mutex::new(());

fn victims() -> std::sync::MutexGuard<'static, ()> {
    VICTIMS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[test]
fn a_deleted_pod_is_replaced_without_a_failed_request() {
    let _turn = victims();
    let adit = Adit::plain();
    await_ready_pods("victim", 2);
    let url = format!("http://80.{}/whoami", adit.host("victim"));
    let first = adit.get(&url).trim().to_owned();
    kubectl(&["-n", NAMESPACE, "delete", "pod", &first, "--grace-period=1", "--wait=true"]);
    let second = adit.get(&url).trim().to_owned();
    assert_ne!(first, second);
    for _ in 0..20 {
        adit.get(&url);
    }
}

#[test]
fn requests_during_a_deletion_do_not_fail() {
    let _turn = victims();
    let adit = Adit::plain();
    await_ready_pods("victim", 2);
    let url = format!("http://80.{}/whoami", adit.host("victim"));
    let first = adit.get(&url).trim().to_owned();
    kubectl(&["-n", NAMESPACE, "delete", "pod", &first, "--wait=false"]);
    eventually("requests reach another pod", Duration::from_secs(30), || adit.get(&url).trim() != first);
}

#[test]
fn a_killed_container_is_waited_for() {
    let _turn = victims();
    let adit = Adit::plain();
    await_ready_pods("victim", 2);
    let url = format!("http://80.{}/whoami", adit.host("victim"));
    let first = adit.get(&url).trim().to_owned();
    kubectl(&["-n", NAMESPACE, "exec", &first, "--", "sh", "-c", "kill 1"]);
    for _ in 0..20 {
        adit.get(&url);
    }
    await_ready_pods("victim", 2);
}

#[test]
fn an_unready_pod_is_named_until_the_service_has_one_again() {
    let _turn = victims();
    let adit = Adit::plain();
    await_ready_pods("victim", 2);
    let url = format!("http://80.{}/whoami", adit.host("victim"));
    kubectl(&["-n", NAMESPACE, "scale", "deployment/victim", "--replicas=0"]);
    // A pod that ends may still answer, until its endpoint is gone.
    eventually("it is said that no pod is ready", Duration::from_secs(60), || {
        let answer = crate::support::succeed(&mut adit.curl(&["-w", "%{http_code}", &url]));
        answer.contains("no ready pod behind service adit-e2e/victim") && answer.ends_with("503")
    });
    kubectl(&["-n", NAMESPACE, "scale", "deployment/victim", "--replicas=2"]);
    await_ready_pods("victim", 2);
    eventually("the Service is reached again", Duration::from_secs(30), || {
        crate::support::run(&mut adit.curl(&["-f", &url])).status.success()
    });
}
