//! `adit doctor`: one fault at a time, and the check that finds it.

use std::{collections::BTreeSet, fs, net::TcpListener as StdListener, path::Path, time::Instant};

use serde_json::Value;
use tokio::time::timeout;

use crate::{
    process::free_port,
    run::{Home, Said},
    support::PATIENCE,
};

struct Patient {
    home: Home,
    port: u16,
}

impl Patient {
    async fn new() -> Self {
        Self { home: Home::new().await, port: free_port().await }
    }

    async fn doctor(&self, arguments: &[&str]) -> Said {
        let listen = format!("127.0.0.1:{}", self.port);
        let mut command = self.home.adit(&[&["--listen", &listen, "-n", "shop", "doctor"], arguments].concat());
        for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(proxy);
        }
        Said::of(timeout(PATIENCE, command.output()).await.expect("it ends").unwrap())
    }

    /// Returns the report and the ids of the checks that have failed.
    async fn report(&self, arguments: &[&str]) -> (Value, BTreeSet<String>) {
        let said = self.doctor(&[&["-o", "json"], arguments].concat()).await;
        let report: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("no JSON: {said:?}"));
        let failed: BTreeSet<String> = checks(&report)
            .iter()
            .filter(|check| check["status"] == "fail")
            .map(|check| check["id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(said.code, Some(i32::from(!failed.is_empty())), "{said:?}");
        assert_eq!(report["ok"], failed.is_empty());
        (report, failed)
    }
}

fn checks(report: &Value) -> &[Value] {
    report["checks"].as_array().unwrap()
}

fn find<'r>(report: &'r Value, id: &str) -> &'r Value {
    checks(report).iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("no {id} in {report:#}"))
}

fn only(id: &str) -> BTreeSet<String> {
    BTreeSet::from([id.to_owned()])
}

#[tokio::test]
async fn on_a_healthy_cluster_nothing_fails() {
    let patient = Patient::new().await;
    let started = Instant::now();
    let (report, failed) = patient.report(&["web.shop"]).await;
    assert_eq!(failed, BTreeSet::new(), "{report:#}");
    assert!(started.elapsed().as_secs() < 40);
    for id in ["api-server", "authentication", "credentials", "permissions", "pod-stream", "pod-port", "endpoints"] {
        assert_eq!(find(&report, id)["status"], "ok", "{report:#}");
    }
    assert!(find(&report, "protocol")["says"].as_str().unwrap().contains("HTTP, which answers 200"), "{report:#}");
    let text = patient.doctor(&[]).await;
    let last = text.out.lines().last().unwrap();
    assert!(
        text.code == Some(0) && (last == "Everything adit needs is there." || last.contains("adit works")),
        "{text:?}"
    );
    // Each id is a heading.
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/troubleshooting.md");
    let manual = fs::read_to_string(manual).unwrap();
    for check in checks(&report) {
        let heading = format!("\n### {}\n", check["id"].as_str().unwrap());
        assert!(manual.contains(&heading), "docs/troubleshooting.md lacks {heading:?}");
    }
}

#[tokio::test]
async fn each_missing_permission_is_named_with_the_role_that_grants_it() {
    let patient = Patient::new().await;
    for (verbs, resource, id) in [
        (&["get"][..], "services", "right-services"),
        (&["get"], "pods", "right-pods"),
        (&["create", "get"], "pods/portforward", "right-portforward"),
    ] {
        verbs.iter().for_each(|verb| patient.home.demo.faults().forbid(verb, resource, true));
        let (report, failed) = patient.report(&[]).await;
        assert_eq!(failed, only(id), "{report:#}");
        let check = find(&report, id);
        assert_eq!(check["fix"]["command"], "adit doctor --rbac -n shop");
        assert!(check["detail"].as_str().unwrap().contains("apiGroups"), "{check}");
        verbs.iter().for_each(|verb| patient.home.demo.faults().forbid(verb, resource, false));
    }
    patient.home.demo.faults().forbid("watch", "endpointslices", true);
    let (report, failed) = patient.report(&[]).await;
    assert!(failed.is_empty() && find(&report, "right-endpointslices")["status"] == "warn", "{report:#}");
    assert_eq!(patient.doctor(&["--strict"]).await.code, Some(1));
}

#[tokio::test]
async fn the_way_to_a_target_is_checked_to_its_end() {
    let patient = Patient::new().await;
    for (target, id, words) in [
        ("nothing.shop", "service", "shop/nothing"),
        ("queue.shop", "service", "several ports"),
        ("broken.shop", "endpoints", "no ready pod"),
    ] {
        let (report, failed) = patient.report(&[target]).await;
        assert_eq!(failed, only(id), "{target}: {report:#}");
        assert!(find(&report, id)["says"].as_str().unwrap().contains(words), "{target}: {report:#}");
    }
    patient.home.demo.faults().refuse(5432, true);
    let (report, failed) = patient.report(&["postgres.data"]).await;
    assert_eq!(failed, only("pod-port"), "{report:#}");
    assert_eq!(patient.doctor(&["a b"]).await.code, Some(2));
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_its_owner() {
    let patient = Patient::new().await;
    let taken = StdListener::bind(("127.0.0.1", patient.port)).unwrap();
    let (report, failed) = patient.report(&[]).await;
    assert_eq!(failed, only("listen-port"), "{report:#}");
    let check = checks(&report).iter().find(|check| check["status"] == "fail").unwrap();
    assert!(check["says"].as_str().unwrap().contains(&format!("(pid {})", std::process::id())), "{check}");
    assert!(check["fix"]["command"].as_str().unwrap().starts_with("adit --listen 127.0.0.1:"), "{check}");
    drop(taken);
}

#[tokio::test]
async fn what_keeps_the_cluster_away_is_found() {
    let patient = Patient::new().await;
    let good = fs::read_to_string(patient.home.demo.kubeconfig()).unwrap();
    let folder = patient.home.folder.path();
    let with = async |name: &str, kubeconfig: String| {
        let path = folder.join(name);
        fs::write(&path, kubeconfig).unwrap();
        let said = patient.doctor(&["-o", "json", "--kubeconfig", &path.display().to_string()]).await;
        let report: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("no JSON: {said:?}"));
        let failed: Vec<String> = checks(&report)
            .iter()
            .filter(|check| check["status"] == "fail")
            .map(|check| check["id"].as_str().unwrap().to_owned())
            .collect();
        (report, failed)
    };
    let server = good.split("server: \"").nth(1).and_then(|rest| rest.split('"').next()).expect("a server").to_owned();
    for (name, kubeconfig, id) in [
        ("broken", "contexts: [".to_owned(), "kubeconfig-files"),
        ("nowhere", good.replace(&server, "https://nothing.invalid:6443"), "api-dns"),
        ("closed", good.replace(&server, "https://127.0.0.1:1"), "api-tcp"),
        (
            "none",
            good.lines().filter(|line| !line.starts_with("current-context")).collect::<Vec<_>>().join("\n"),
            "current-context",
        ),
    ] {
        let (report, failed) = with(name, kubeconfig).await;
        assert_eq!(failed, [id], "{name}: {report:#}");
        let check = checks(&report).iter().find(|check| check["status"] == "fail").unwrap();
        assert!(check["fix"].is_object(), "{check}");
    }
}

#[tokio::test]
async fn the_role_and_the_bundle_have_what_is_needed_and_no_secret() {
    let patient = Patient::new().await;
    let role = patient.doctor(&["--rbac"]).await;
    assert!(
        role.code == Some(0) && role.out.contains("namespace: shop") && role.out.contains("pods/portforward"),
        "{role:?}"
    );
    assert!(!role.out.contains("pods/exec"), "{role:?}");
    let file = patient.home.folder.path().join("b.tar.gz");
    let said = patient.doctor(&["--bundle", &file.display().to_string()]).await;
    assert!(said.out.contains("report.json") && said.out.contains("configuration.json"), "{said:?}");
    let listed = std::process::Command::new("tar").args(["-tzf"]).arg(&file).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("adit-doctor/report.txt") && listed.contains("versions.txt"), "{listed}");
}

#[tokio::test]
async fn the_json_is_what_the_schema_says() {
    let patient = Patient::new().await;
    let schema: Value = serde_json::from_str(&patient.doctor(&["-o", "schema"]).await.out).unwrap();
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/doctor.schema.json");
    let committed: Value = serde_json::from_str(&fs::read_to_string(committed).unwrap()).unwrap();
    assert!(committed == schema, "write it anew: adit doctor -o schema > docs/doctor.schema.json");
    let (report, _) = patient.report(&["web.shop"]).await;
    let document = serde_json::json!({"$defs": schema["$defs"].as_object().map(|defs| {
        let mut defs = defs.clone();
        defs.insert("report".to_owned(), schema.clone());
        defs
    })});
    crate::support::schema::assert_valid(&document, "report", &report);
}
