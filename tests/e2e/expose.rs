//! Takeovers of Services with relays in the cluster: whatever happens, every object is as it was before.
//!
//! The relays run the binary of this build: its folder is mounted into pods of the suite's image, which has the same C library as
//! the machine that the suite runs on. Needs ClusterIPs (`cluster up --services`).

mod faults;
mod personal;
mod traces;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use adit::relay::expose::kube::PERMISSIONS;
use serde_json::{Value, json};

use crate::support::{NAMESPACE, eventually, kubectl, run, succeed, world};

const RELAYS: &str = "adit-e2e-relay";

/// What a takeover may touch.
const KINDS: &str = "services,endpointslices,endpoints,leases";

/// Returns every object of the suite's namespace that a takeover may touch, but for what the API server counts.
fn objects() -> BTreeMap<String, Value> {
    let list: Value = serde_json::from_str(&kubectl(&["-n", NAMESPACE, "get", KINDS, "-o", "json"])).unwrap();
    let items = list["items"].as_array().unwrap().iter().cloned();
    let named = items.map(|mut object| {
        let key = format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        let metadata = object["metadata"].as_object_mut().unwrap();
        for field in ["resourceVersion", "generation", "managedFields"] {
            metadata.remove(field);
        }
        // Its controller writes there when it last looked.
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("endpoints.kubernetes.io/last-change-trigger-time");
        }
        if metadata.get("annotations") == Some(&json!({})) {
            metadata.remove("annotations");
        }
        // The controller writes them in any order.
        for list in ["endpoints", "ports"] {
            if let Some(list) = object.get_mut(list).and_then(Value::as_array_mut) {
                list.sort_by_key(Value::to_string);
            }
        }
        (key, object)
    });
    named.collect()
}

fn are_again(before: &BTreeMap<String, Value>) {
    let deadline = std::time::Instant::now() + Duration::from_secs(90);
    loop {
        let now = objects();
        if now == *before {
            return;
        }
        if std::time::Instant::now() > deadline {
            let keys = now.keys().chain(before.keys()).filter(|key| now.get(*key) != before.get(*key));
            let differ: Vec<_> =
                keys.map(|key| format!("{key}\n is  {:?}\n was {:?}", now.get(key), before.get(key))).collect();
            panic!("not as before:\n{}", differ.join("\n"));
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// These tests take turns: each has the relays for itself.
static RELAYS_IN_USE: Mutex<()> = Mutex::new(());

/// Three relays in the cluster, until this is dropped.
struct Relays {
    _turn: MutexGuard<'static, ()>,
}

impl Relays {
    fn start() -> Self {
        let turn = RELAYS_IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        world();
        kubectl(&["delete", "namespace", RELAYS, "--ignore-not-found", "--timeout=120s"]);
        apply();
        kubectl(&["-n", RELAYS, "rollout", "status", "statefulset/relay", "--timeout=120s"]);
        Self { _turn: turn }
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        // A test that has failed says why itself.
        for objects in [["namespace", RELAYS], ["clusterrole,clusterrolebinding", RELAYS]] {
            let _ =
                run(Command::new("kubectl").arg("delete").args(objects).args(["--wait=false", "--ignore-not-found"]));
        }
    }
}

fn apply() {
    let image = std::env::var("ADIT_E2E_IMAGE").unwrap_or_else(|_| "localhost/servers:1".to_owned());
    let binary = Path::new(env!("CARGO_BIN_EXE_adit"));
    let rules: Vec<Value> = PERMISSIONS
        .iter()
        .map(|(group, resource, verbs)| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs}))
        .collect();
    let told = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let labels = json!({"app.kubernetes.io/name": "adit-relay"});
    let of = |kind: &str, name: &str| json!({"name": name, "kind": kind, "namespace": RELAYS});
    let objects = json!([
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": RELAYS}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "relay", "namespace": RELAYS}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys", "namespace": RELAYS},
         "stringData": {"keys": "a-secret-of-the-end-to-end-suite"}},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": RELAYS}, "rules": rules},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": RELAYS},
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": RELAYS},
         "subjects": [of("ServiceAccount", "relay")]},
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "relay", "namespace": RELAYS},
         "spec": {
            "serviceName": "relay", "replicas": 3, "podManagementPolicy": "Parallel", "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": {"adit/keys": "keys", "adit/exposes": "true"}},
                "spec": {
                    "serviceAccountName": "relay", "terminationGracePeriodSeconds": 15,
                    "containers": [{
                        "name": "relay", "image": image, "imagePullPolicy": "IfNotPresent",
                        "command": [format!("/build/{}", binary.file_name().unwrap().to_str().unwrap())],
                        "args": ["server", "--listen=[::]:7835", "--bind=::", "--ports=20000-20999", "--secret-file=/keys/keys", "--register",
                                 "--metrics-listen=[::]:9090"],
                        "env": [
                            told("POD_NAME", "metadata.name"), told("POD_NAMESPACE", "metadata.namespace"), told("POD_UID", "metadata.uid"),
                            told("POD_IPS", "status.podIPs"), told("NODE_NAME", "spec.nodeName")
                        ],
                        "ports": [{"name": "control", "containerPort": 7835}, {"name": "metrics", "containerPort": 9090}],
                        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "metrics"}, "periodSeconds": 1},
                        "volumeMounts": [
                            {"name": "build", "mountPath": "/build", "readOnly": true}, {"name": "keys", "mountPath": "/keys", "readOnly": true}
                        ]
                    }],
                    "volumes": [
                        {"name": "build", "hostPath": {"path": binary.parent().unwrap()}}, {"name": "keys", "secret": {"secretName": "keys"}}
                    ]
                }
            }
         }}
    ]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("relays.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    std::fs::write(&file, list.to_string()).unwrap();
    kubectl(&["apply", "-f", file.to_str().unwrap()]);
}

/// A local service by HTTP that says that it is the laptop. Returns its port.
fn laptop() -> u16 {
    laptop_of("laptop")
}

/// A local service by HTTP that says whose it is. Returns its port.
fn laptop_of(whose: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut stream = stream;
                let _ = stream.read(&mut [0; 4096]);
                let length = whose.len();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{whose}");
                let _ = stream.write_all(answer.as_bytes());
            });
        }
    });
    port
}

/// `adit expose`, killed on drop.
struct Expose {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Expose {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_adit"))
            .arg("expose")
            .args(arguments)
            .args(["--relay-namespace", RELAYS])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        for reader in [Box::new(out) as Box<dyn Read + Send>, Box::new(err)] {
            let log = log.clone();
            thread::spawn(move || {
                for line in BufReader::new(reader).lines().map_while(Result::ok) {
                    log.lock().unwrap().push_str(&format!("{line}\n"));
                }
            });
        }
        Self { child, log }
    }

    fn said(&self, text: &str) {
        let log = || self.log.lock().unwrap().clone();
        for _ in 0..600 {
            if log().contains(text) {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("it did not say {text:?}:\n{}", log());
    }

    fn ends(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().unwrap().code();
        thread::sleep(Duration::from_millis(100));
        (code, self.log.lock().unwrap().clone())
    }

    fn interrupt(&self) {
        succeed(Command::new("kill").args(["-INT", &self.child.id().to_string()]));
    }
}

impl Drop for Expose {
    fn drop(&mut self) {
        // SIGKILL: it says no goodbye.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns what a pod of the cluster gets from a Service.
fn visitor(url: &str) -> String {
    curl(&[url])
}

/// Runs curl in a pod of the cluster, and returns what it prints.
fn curl(arguments: &[&str]) -> String {
    let curl = ["-n", NAMESPACE, "exec", "echo", "--", "curl", "-s", "--max-time", "5"];
    let output = run(Command::new("kubectl").args(curl).args(arguments));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn gets(url: &str, is_laptop: bool) {
    eventually(url, Duration::from_secs(60), || {
        // Several in a row: no part of the traffic goes elsewhere.
        (0..5).all(|_| {
            let answer = visitor(url);
            !answer.is_empty() && (answer == "laptop") == is_laptop
        })
    });
}

/// Takes port 80 of the Service `web` over.
fn take_web(port: u16) -> Expose {
    let expose = Expose::start(&[&format!("{port}:80"), "--as", &format!("web.{NAMESPACE}"), "--replace"]);
    expose.said(&format!("web.{NAMESPACE}:80 in "));
    expose
}

#[test]
#[ignore = "it takes over Services that the other tests use: cargo test --features e2e --test e2e expose:: -- --ignored"]
fn services_are_taken_over_and_every_object_is_as_before_at_the_end() {
    let relays = Relays::start();
    let (port, web) = (laptop(), format!("http://web.{NAMESPACE}/whoami"));
    gets(&web, false);
    let before = objects();

    // Port 80 of three; the others go on being served by the pods.
    let as_web = format!("web.{NAMESPACE}");
    let expose = take_web(port);
    gets(&web, true);
    let https = run(Command::new("kubectl").args([
        "-n",
        NAMESPACE,
        "exec",
        "echo",
        "--",
        "curl",
        "-sk",
        "--max-time",
        "5",
        &format!("https://web.{NAMESPACE}/whoami"),
    ]));
    assert!(https.status.success() && https.stdout != b"laptop", "{https:?}");
    let listed = succeed(Command::new(env!("CARGO_BIN_EXE_adit")).args(["expose", "ls", "-n", NAMESPACE]));
    assert!(listed.contains(&format!("{NAMESPACE}/web")) && listed.contains("running"), "{listed}");
    let events = kubectl(&["-n", NAMESPACE, "get", "events", "-o", "jsonpath={.items[*].reason}"]);
    assert!(events.contains("TakenOver"), "{events}");
    // The laptop is killed.
    drop(expose);
    gets(&web, false);
    are_again(&before);

    // A Service that does not exist.
    let as_fresh = format!("fresh.{NAMESPACE}");
    let expose = Expose::start(&[&format!("{port}:80"), "--as", &as_fresh]);
    expose.said("fresh");
    gets(&format!("http://fresh.{NAMESPACE}/"), true);
    expose.interrupt();
    assert_eq!(expose.ends().0, Some(0));
    are_again(&before);

    // A headless one is refused.
    let (code, said) =
        Expose::start(&[&format!("{port}:5432"), "--as", &format!("postgres.{NAMESPACE}"), "--replace"]).ends();
    assert!(code == Some(1) && said.contains("is headless"), "{code:?} {said}");
    are_again(&before);

    // The relay is deleted without a word: the client is back through another one.
    let expose = take_web(port);
    let lease = kubectl(&["-n", NAMESPACE, "get", "lease", "adit-web", "-o", "jsonpath={.spec.holderIdentity}"]);
    let relay = lease.split('/').nth(1).expect("a pod").to_owned();
    kubectl(&["-n", RELAYS, "delete", "pod", &relay, "--force", "--grace-period=0"]);
    eventually("another relay has it", Duration::from_secs(90), || {
        let now = run(Command::new("kubectl").args([
            "-n",
            NAMESPACE,
            "get",
            "lease",
            "adit-web",
            "-o",
            "jsonpath={.spec.holderIdentity}",
        ]));
        !now.stdout.is_empty() && String::from_utf8_lossy(&now.stdout) != lease
    });
    gets(&web, true);
    expose.interrupt();
    assert_eq!(expose.ends().0, Some(0));
    gets(&web, false);
    are_again(&before);

    // All relays are gone while it is taken: it is restored by hand.
    let expose = take_web(port);
    kubectl(&["-n", RELAYS, "scale", "statefulset/relay", "--replicas=0"]);
    kubectl(&["-n", RELAYS, "delete", "pod", "--all", "--force", "--grace-period=0"]);
    drop(expose);
    let restored = || succeed(Command::new(env!("CARGO_BIN_EXE_adit")).args(["expose", "restore", &as_web]));
    // A relay that was told to end may have done it already.
    assert!(["restored", "nothing to restore"].iter().any(|said| restored().contains(said)));
    are_again(&before);
    drop(relays);
}
