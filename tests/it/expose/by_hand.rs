//! `adit expose ls`, `restore` and `clean`: what a person sees and does without a relay.

use std::{
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use adit::{
    demo::faults::Mishap,
    wire::relay::{Frame, Kind},
};
use http::Method;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, process::Command, time::timeout};

use super::support::{Laptop, Objects, Place};
use crate::support::PATIENCE;

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn command(home: &std::path::Path, kubeconfig: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    for variable in ["KUBECONFIG", "ADIT_CONFIG", "XDG_CONFIG_HOME", "RUST_LOG", "KUBERNETES_SERVICE_HOST"] {
        command.env_remove(variable);
    }
    command.args(arguments).arg("--kubeconfig").arg(kubeconfig).env("HOME", home).env("XDG_RUNTIME_DIR", home);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn adit(place: &Place, arguments: &[&str]) -> Ran {
    let home = tempfile::tempdir().unwrap();
    let output = timeout(PATIENCE, command(home.path(), &place.demo.kubeconfig(), arguments).output()).await;
    let output = output.expect("it ends").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Kills a relay, and deletes its pod.
fn gone(place: &Place, relay: super::support::InPod) {
    place.kill(relay);
    place.demo.world().delete_pod("relay", "one", None);
}

/// Returns a cluster in which a relay that is gone has taken over Service web, and the objects before that.
async fn left_behind() -> (Place, Objects, Laptop) {
    let place = Place::new().await;
    let before = place.objects();
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    laptop.take("web.shop:80").await.unwrap();
    gone(&place, relay);
    (place, before, laptop)
}

#[tokio::test]
async fn takeovers_are_listed_and_restored_by_hand() {
    let place = Place::new().await;
    place.put_outside();
    let before = place.objects();
    let none = adit(&place, &["expose", "ls", "-n", "shop"]).await;
    assert_eq!(
        (none.code, none.stdout.as_str()),
        (Some(0), "no Service is taken over in namespace shop of context demo; -A lists all\n")
    );
    let relay = place.relay("one", "a").await;
    let mut laptop = Laptop::connect(&relay).await;
    laptop.take("web.shop:80").await.unwrap();
    laptop.resume = [0; 16];
    laptop.take("outside.shop:81").await.unwrap();
    laptop.resume = [0; 16];
    laptop.open(Kind::Service, "fresh.shop:80").await.unwrap();

    let listed = adit(&place, &["expose", "ls", "-A"]).await;
    let rows: Vec<Vec<&str>> = listed.stdout.lines().map(|line| line.split("   ").map(str::trim).collect()).collect();
    let rows: Vec<Vec<&str>> =
        rows.iter().map(|row| row.iter().filter(|cell| !cell.is_empty()).copied().collect()).collect();
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    assert_eq!(rows[0], ["SERVICE", "PORT", "REQUESTS", "OWNER", "SINCE", "RELAY", "STATE"]);
    let of_web = rows.iter().find(|row| row[0] == "shop/web").unwrap_or_else(|| panic!("{}", listed.stdout));
    assert_eq!((of_web[1], of_web[2], of_web[3]), ("80", "all", "default (127.0.0.1)"));
    assert_eq!((of_web[5], of_web[6]), ("relay/one", "running"));
    assert!(of_web[4].ends_with('Z') && of_web[4].contains('T'), "{of_web:?}");
    assert_eq!(rows.len(), 4);

    // A running relay keeps its Services, unless the command names one.
    let spared = adit(&place, &["expose", "restore", "-n", "shop"]).await;
    assert!(spared.stdout.contains("left alone: shop/web, whose relay relay/one runs"), "{}", spared.stdout);
    assert!(
        spared.stdout.ends_with("nothing to restore in namespace shop; -A for all namespaces\n")
            && place.lease("web").is_some()
    );
    let forced = adit(&place, &["expose", "restore", "web.shop"]).await;
    assert_eq!((forced.code, forced.stdout.as_str()), (Some(0), "restored shop/web\n"), "{}", forced.stderr);
    let Frame::Refused { reason, .. } = laptop.frame().await else { panic!("nothing was told") };
    assert!(reason.contains("Service shop/web was "), "{reason}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(place.lease("web").is_none() && place.served_by_us("web").is_empty(), "and it stays restored");

    // The relay is gone for good.
    gone(&place, relay);
    let listed = adit(&place, &["expose", "ls", "-n", "shop", "-o", "json"]).await;
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!((&listed[0]["service"], &listed[0]["state"]), (&json!("fresh"), &json!("gone")));
    assert_eq!((&listed[0]["created"], &listed[0]["ports"][0]["port"]), (&json!(true), &json!(80)));
    let restored = adit(&place, &["expose", "restore", "-n", "shop"]).await;
    assert_eq!(restored.stdout, "deleted shop/fresh, which a relay had created\nrestored shop/outside\n");
    place.is_again(&before).await;
    let again = adit(&place, &["expose", "restore", "web.shop"]).await;
    assert_eq!(
        (again.code, again.stdout.as_str()),
        (Some(0), "nothing to restore: Service shop/web is not taken over\n")
    );
}

#[tokio::test]
async fn a_restore_by_hand_succeeds_though_somebody_deletes_what_it_has_read() {
    let (place, before, _laptop) = left_behind().await;
    // As if a relay that gives the Service back had just deleted the Lease.
    let deleted = AtomicBool::new(false);
    place.demo.faults().judge(Some(Box::new(move |method, path| {
        let is_first = method == Method::PATCH && path.contains("/leases/") && !deleted.swap(true, Ordering::Relaxed);
        is_first.then_some(Mishap::Answer(404))
    })));
    let restored = adit(&place, &["expose", "restore", "web.shop"]).await;
    assert_eq!(restored.code, Some(0), "{}", restored.stderr);
    place.is_again(&before).await;
}

#[tokio::test]
async fn a_service_whose_original_is_lost_is_named() {
    let (place, before, _laptop) = left_behind().await;
    let mut web = place.service("web");
    web["metadata"]["annotations"].as_object_mut().unwrap().remove("adit/takeover");
    place.demo.world().put("services", web.clone());
    place.delete("leases", "adit-web").await;
    let words = "port 80 of Service shop/web has targetPort adit-80, and the record of its original is gone";
    let listed = adit(&place, &["expose", "ls", "-n", "shop"]).await;
    assert!(listed.stderr.contains(&format!("warning: {words}")), "{}", listed.stderr);
    let refused = adit(&place, &["expose", "restore", "web.shop"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains(words), "{}", refused.stderr);
    // Nobody can take it over in this state, and the annotation with the original stays.
    let relay = place.relay("two", "a").await;
    let refused = Laptop::connect(&relay).await.take("web.shop:80").await.unwrap_err();
    assert!(refused.contains(words), "{refused}");
    place.kill(relay);
    web["spec"]["ports"][0]["targetPort"] = json!("http");
    place.demo.world().put("services", web);
    let restored = adit(&place, &["expose", "restore", "web.shop"]).await;
    assert_eq!(restored.stdout, "restored shop/web\n", "{}", restored.stderr);
    place.is_again(&before).await;
}

#[tokio::test]
async fn a_person_needs_no_leases_and_is_told_what_is_missing() {
    let (place, before, _laptop) = left_behind().await;
    let faults = place.demo.faults();
    faults.forbid("patch", "services", true);
    let refused = adit(&place, &["expose", "restore", "web.shop"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("cannot restore Service shop/web in context \"demo\""), "{}", refused.stderr);
    assert!(refused.stderr.contains("no permission to patch services in namespace shop"), "{}", refused.stderr);
    faults.forbid("patch", "services", false);
    for verb in ["get", "patch", "create", "delete"] {
        faults.forbid(verb, "leases", true);
    }
    let restored = adit(&place, &["expose", "restore", "web.shop"]).await;
    assert_eq!(restored.stdout, "restored shop/web\n", "{}", restored.stderr);
    for kind in ["services", "endpointslices"] {
        place.is_as_before(kind, &before).await;
    }
    faults.forbid("list", "services", true);
    let refused = adit(&place, &["expose", "ls", "-A"]).await;
    assert!(refused.stderr.contains("no permission to list services\n"), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: choose a namespace that you may list: -n NAMESPACE"), "{}", refused.stderr);
}

#[tokio::test]
async fn a_lease_that_a_person_may_not_delete_stays() {
    let (place, before, _laptop) = left_behind().await;
    place.demo.faults().forbid("delete", "leases", true);
    let restored = adit(&place, &["expose", "restore", "web.shop"]).await;
    assert_eq!(restored.stdout, "restored shop/web\n", "{}", restored.stderr);
    place.is_as_before("services", &before).await;
}

#[tokio::test]
async fn a_cluster_that_does_not_answer_can_be_interrupted() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let (kubeconfig, server) = (home.path().join("config"), silent.local_addr().unwrap());
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: 'http://{server}'}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
    );
    std::fs::write(&kubeconfig, text).unwrap();
    for arguments in [&["expose", "3000:80", "--as", "web.shop"][..], &["expose", "ls"], &["expose", "restore", "web"]]
    {
        let mut child = command(home.path(), &kubeconfig, arguments).stderr(Stdio::piped()).spawn().unwrap();
        let (mut asked, _) = timeout(PATIENCE, silent.accept()).await.expect("it asks the cluster").unwrap();
        assert!(asked.read_u8().await.is_ok(), "it has asked");
        let pid = rustix::process::Pid::from_raw(child.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let ended = timeout(Duration::from_secs(5), child.wait()).await.expect("it ends at once").unwrap();
        assert_eq!(ended.code(), Some(130), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_relay_that_is_missing_is_said_with_its_cure() {
    let place = Place::new().await;
    let ran = adit(&place, &["expose", "3000:80", "--as", "web.shop"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("no ready relay that takes over Services in context \"demo\""), "{}", ran.stderr);
    assert!(ran.stderr.contains("helm install relay"), "{}", ran.stderr);
    place.demo.faults().forbid("list", "pods", true);
    let ran = adit(&place, &["expose", "3000:80", "--as", "web.shop"]).await;
    assert!(ran.stderr.contains("--relay-namespace NAME"), "{}", ran.stderr);
    place.demo.faults().forbid("list", "pods", false);
}

#[tokio::test]
async fn clean_deletes_a_relay_that_adit_has_created_and_restores_what_it_has_left() {
    let (place, before, _laptop) = left_behind().await;
    let pod = |namespace: &str, by: &str| {
        let labels = json!({"app.kubernetes.io/name": "adit-relay", "app.kubernetes.io/managed-by": by});
        json!({"metadata": {"namespace": namespace, "name": "adit-relay", "labels": labels}, "spec": {}})
    };
    place.demo.world().put("pods", pod("shop", "adit"));
    place.demo.world().put("pods", pod("data", "Helm"));
    let cleaned = adit(&place, &["expose", "clean", "-n", "shop"]).await;
    assert_eq!(cleaned.stdout, "deleted Pod shop/adit-relay\nrestored shop/web\n", "{}", cleaned.stderr);
    place.is_again(&before).await;
    let spared = adit(&place, &["expose", "clean", "-n", "data"]).await;
    assert_eq!(spared.stdout, "there is no relay of adit's in namespace data\n", "{}", spared.stderr);
    assert!(place.demo.world().get("pods", "data", "adit-relay").is_some());
}

/// Adds a ready pod that says that it is a relay, and its Secret.
fn put_relay(place: &Place, namespace: &str, authorize: &str) {
    let world = place.demo.world();
    world.put("namespaces", json!({"metadata": {"name": namespace}}));
    let metadata = json!({
        "namespace": namespace, "name": "relay-0", "uid": format!("uid-{namespace}"),
        "labels": {"app.kubernetes.io/name": "adit-relay"},
        "annotations": {"adit/keys": "keys", "adit/exposes": "true", "adit/authorize": authorize}
    });
    let spec = json!({"serviceAccountName": "relay", "containers": [{"name": "adit"}]});
    let status = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    world.put("pods", json!({"metadata": metadata, "spec": spec, "status": status}));
}

#[tokio::test]
async fn a_pod_that_poses_as_the_relay_gets_no_token() {
    let place = Place::new().await;
    put_relay(&place, "rogue", "kubernetes");
    let ran = adit(&place, &["expose", "3000:80", "--as", "web.shop"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("relay rogue/relay-0 asks for your API token"), "{}", ran.stderr);
    assert!(ran.stderr.contains("its ServiceAccount rogue/relay may not review tokens"), "{}", ran.stderr);
    assert!(ran.stderr.contains("--relay-namespace rogue"), "{}", ran.stderr);
    // The next step is to read its Secret, which does not exist.
    let chosen = adit(&place, &["expose", "3000:80", "--as", "web.shop", "--relay-namespace", "rogue"]).await;
    assert!(chosen.stderr.contains("cannot read Secret rogue/keys"), "{}", chosen.stderr);
    // Without --authorize the relay gets no token.
    put_relay(&place, "rogue", "keys");
    let keys = adit(&place, &["expose", "3000:80", "--as", "web.shop"]).await;
    assert!(keys.stderr.contains("cannot read Secret rogue/keys"), "{}", keys.stderr);
}

#[tokio::test]
async fn relays_of_several_namespaces_are_listed_and_none_is_chosen() {
    let place = Place::new().await;
    put_relay(&place, "rogue", "keys");
    put_relay(&place, "relay", "keys");
    let ran = adit(&place, &["expose", "3000:80", "--as", "web.shop"]).await;
    assert_eq!(ran.code, Some(1));
    let words = "relays for Service shop/web run in several namespaces: relay, rogue";
    assert!(ran.stderr.contains(words) && ran.stderr.contains("--relay-namespace NAMESPACE"), "{}", ran.stderr);
    let chosen = adit(&place, &["expose", "3000:80", "--as", "web.shop", "--relay-namespace", "relay"]).await;
    assert!(chosen.stderr.contains("cannot read Secret relay/keys"), "{}", chosen.stderr);
    // One of the Service's own namespace is the one.
    put_relay(&place, "shop", "keys");
    let own = adit(&place, &["expose", "3000:80", "--as", "web.shop"]).await;
    assert!(own.stderr.contains("cannot read Secret shop/keys"), "{}", own.stderr);
}
