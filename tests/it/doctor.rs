//! `adit doctor`: one fault at a time, and the check that finds it.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener as StdListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use adit::demo::{
    Demo,
    faults::{Era, Mishap},
};
use serde_json::{Value, json};
use tokio::{process::Command, time::timeout};

use crate::{
    run::{Home, Said},
    support::{PATIENCE, eventually, ports::free_port},
};

struct Patient {
    home: Home,
    port: u16,
}

impl Patient {
    async fn new() -> Self {
        Self { home: Home::new().await, port: free_port() }
    }

    async fn doctor(&self, arguments: &[&str]) -> Said {
        let mut command = self.command(&[&["-n", "shop", "doctor"], arguments].concat());
        Said::of(timeout(PATIENCE, command.output()).await.expect("it ends").unwrap())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let listen = format!("127.0.0.1:{}", self.port);
        let mut command = self.home.adit(&[&["--listen", &listen], arguments].concat());
        for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(proxy);
        }
        command
    }

    /// Writes a kubeconfig, and returns its path.
    fn write(&self, name: &str, text: &str) -> String {
        let path = self.home.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn kubeconfig(&self) -> String {
        fs::read_to_string(self.home.demo.kubeconfig()).unwrap()
    }

    /// Writes a script, and returns a kubeconfig with the script as its credential plugin.
    fn with_plugin(&self, name: &str, script: &str) -> String {
        let program = self.home.folder.path().join(name);
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        self.with_exec(&program.display().to_string())
    }

    fn with_exec(&self, command: &str) -> String {
        let exec = format!(
            "{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: {command:?}, interactiveMode: Never}}}}"
        );
        let text = self.kubeconfig();
        let user = text.lines().find(|line| line.starts_with("- {name: demo, user:")).unwrap();
        let text = text.replace(user, &format!("- {{name: demo, user: {exec}}}"));
        self.write(&format!("signs-in-with-{}", command.rsplit('/').next().unwrap()), &text)
    }

    /// Returns the report for another kubeconfig, and the ids of the failed checks.
    async fn report_of(&self, kubeconfig: &str, arguments: &[&str]) -> (Value, BTreeSet<String>) {
        let mut command =
            self.command(&[&["--kubeconfig", kubeconfig, "-n", "shop", "doctor", "-o", "json"], arguments].concat());
        let said = Said::of(timeout(PATIENCE, command.output()).await.expect("it ends").unwrap());
        report(&said)
    }

    /// Returns the report, and the ids of the failed checks.
    async fn report(&self, arguments: &[&str]) -> (Value, BTreeSet<String>) {
        let said = self.doctor(&[&["-o", "json"], arguments].concat()).await;
        report(&said)
    }
}

fn report(said: &Said) -> (Value, BTreeSet<String>) {
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
    // Each id is a heading of the manual.
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
        (&["get"][..], "services", "permission-services"),
        (&["get"], "pods", "permission-pods"),
        (&["create", "get"], "pods/portforward", "permission-portforward"),
    ] {
        verbs.iter().for_each(|verb| patient.home.demo.faults().forbid(verb, resource, true));
        let (report, failed) = patient.report(&[]).await;
        assert_eq!(failed, only(id), "{report:#}");
        let check = find(&report, id);
        let command = check["fix"]["command"].as_str().unwrap();
        assert!(command.starts_with("adit ") && command.contains("--kubeconfig "), "for any terminal: {check}");
        assert!(command.ends_with(" doctor --rbac -n shop") && !command.contains("--namespace"), "{check}");
        assert!(check["detail"].as_str().unwrap().contains("apiGroups"), "{check}");
        verbs.iter().for_each(|verb| patient.home.demo.faults().forbid(verb, resource, false));
    }
    // Without permission for WebSockets, raw SPDY still works; without both, nothing does.
    let forbid = |verb, on| patient.home.demo.faults().forbid(verb, "pods/portforward", on);
    forbid("get", true);
    let (report, failed) = patient.report(&[]).await;
    assert!(failed.is_empty() && find(&report, "permission-portforward")["status"] == "warn", "{report:#}");
    forbid("get", false);
    forbid("create", true);
    let (report, failed) = patient.report(&[]).await;
    assert_eq!(failed, only("permission-portforward"), "{report:#}");
    assert_eq!(find(&report, "pod-stream")["status"], "skip");
    forbid("create", false);
    patient.home.demo.faults().forbid("watch", "endpointslices", true);
    let (report, failed) = patient.report(&[]).await;
    assert!(failed.is_empty() && find(&report, "permission-endpointslices")["status"] == "warn", "{report:#}");
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
    // The suggested command uses the same configuration file; if that is missing, it is `init`.
    let config = patient.home.config("verbose: true\n");
    for (config, id, fix) in [
        (config.as_str(), "listen-port", format!("adit --config {config} --listen 127.0.0.1:")),
        ("/no/such.yaml", "configuration", "adit --config /no/such.yaml init".to_owned()),
    ] {
        let mut command = patient.command(&["--config", config, "-n", "shop", "doctor", "-o", "json"]);
        let (report, _) = self::report(&Said::of(command.output().await.unwrap()));
        let found = checks(&report).iter().find(|check| check["id"] == id && check["status"] == "fail").unwrap();
        assert!(found["fix"]["command"].as_str().unwrap().starts_with(&fix), "{found}");
    }
    drop(taken);
}

/// Returns the address of a server that answers everything with a page, like a proxy that requires a password.
fn login_page() -> std::net::SocketAddr {
    use std::io::{Read, Write};
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let page = "<html>sign in</html>";
            let _ = stream.read(&mut [0; 4096]);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", page.len());
            let _ = stream.write_all(format!("{head}{page}").as_bytes());
        }
    });
    address
}

#[tokio::test]
async fn what_keeps_the_cluster_away_is_found() {
    let patient = Patient::new().await;
    let good = patient.kubeconfig();
    let server = good.split("server: \"").nth(1).and_then(|rest| rest.split('"').next()).expect("a server").to_owned();
    let other = Demo::start().await.unwrap();
    let other = fs::read_to_string(other.kubeconfig()).unwrap();
    let authority = |text: &str| {
        let (_, rest) = text.split_once("certificate-authority-data: ").unwrap();
        rest.split('}').next().unwrap().to_owned()
    };
    let login_page = format!("http://{}", login_page());
    for (name, kubeconfig, id, command) in [
        ("broken", "contexts: [".to_owned(), "kubeconfig-files", "config view"),
        ("nowhere", good.replace(&server, "https://nothing.invalid:6443"), "api-dns", "getent hosts nothing.invalid"),
        ("closed", good.replace(&server, "https://127.0.0.1:1"), "api-tcp", "curl -vk https://127.0.0.1:1/version"),
        ("untrusted", good.replace(&authority(&good), &authority(&other)), "api-tls", "config set-cluster"),
        (
            "wrong-name",
            good.replace("server: \"", "tls-server-name: foo.example, server: \""),
            "api-tls",
            "--tls-server-name=",
        ),
        ("login-page", good.replace(&server, &login_page), "api-server", "/version"),
        (
            "none",
            good.lines().filter(|line| !line.starts_with("current-context")).collect::<Vec<_>>().join("\n"),
            "current-context",
            "config use-context demo",
        ),
        (
            "gone",
            good.replace("current-context: demo", "current-context: prod"),
            "current-context",
            "config use-context demo",
        ),
    ] {
        let kubeconfig = patient.write(name, &kubeconfig);
        let (report, mut failed) = patient.report_of(&kubeconfig, &[]).await;
        if name == "gone" {
            // The context cannot be used either.
            failed.remove("context");
        }
        assert_eq!(failed, only(id), "{name}: {report:#}");
        let check = checks(&report).iter().find(|check| check["status"] == "fail").unwrap();
        assert!(check["fix"]["command"].as_str().is_some_and(|fix| fix.contains(command)), "{check}");
    }
}

#[tokio::test]
async fn a_fix_repairs_when_it_is_pasted() {
    let patient = Patient::new().await;
    let good = patient.kubeconfig();
    let long = "arn:aws:eks:eu-central-1:123:cluster/Prod";
    for (name, kubeconfig, id) in [
        ("none", good.replace("current-context: demo\n", ""), "current-context"),
        ("long", good.replace("- {name: demo-nobody,", &format!("- {{name: {long:?},")), "context-names"),
    ] {
        let kubeconfig = patient.write(name, &kubeconfig);
        let (report, _) = patient.report_of(&kubeconfig, &[]).await;
        let check = find(&report, id);
        assert_ne!(check["status"], "ok", "{check}");
        let command = check["fix"]["command"].as_str().unwrap();
        // kubectl reads its default file unless the command sets another.
        let pasted = Command::new("sh").arg("-c").arg(command).env("KUBECONFIG", "/nowhere").output().await.unwrap();
        assert!(pasted.status.success(), "{command}: {pasted:?}");
        let (report, failed) = patient.report_of(&kubeconfig, &[]).await;
        assert_eq!((failed, find(&report, id)["status"].as_str()), (BTreeSet::new(), Some("ok")), "{report:#}");
    }
    // An underscore is no part of a label, but browsers and curl send it.
    let gke = patient.write("gke", &good.replace("- {name: demo-nobody,", "- {name: gke_project_europe-west1-b_shop,"));
    let (of_gke, _) = patient.report_of(&gke, &[]).await;
    assert_eq!(find(&of_gke, "context-names")["status"], "ok", "{of_gke:#}");
    // One of several files is missing.
    let missing = format!("{}:/no/such/file", patient.home.demo.kubeconfig().display());
    let mut command = patient.command(&["doctor", "-o", "json"]);
    let said = Said::of(command.env("KUBECONFIG", &missing).output().await.unwrap());
    let (report, _) = report(&said);
    let check = find(&report, "kubeconfig-files");
    let fix = check["fix"]["command"].as_str().unwrap();
    assert_eq!(
        (check["status"].as_str(), fix),
        (Some("warn"), format!("export KUBECONFIG={}", patient.home.demo.kubeconfig().display()).as_str())
    );
}

#[tokio::test]
async fn a_plugin_that_is_missing_fails_or_hangs_is_the_only_finding() {
    let patient = Patient::new().await;
    let expired = r#"echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"x","expirationTimestamp":"2020-01-01T00:00:00Z"}}'"#;
    for (kubeconfig, words) in [
        (patient.with_exec("no-such-plugin"), "no-such-plugin"),
        (patient.with_plugin("fails", "echo 'the session has ended' >&2; exit 3"), "the session has ended"),
        (patient.with_plugin("hangs", "sleep 60"), "within 5 s"),
        (patient.with_plugin("expired", expired), "expired"),
    ] {
        let started = Instant::now();
        let (report, failed) = patient.report_of(&kubeconfig, &["web.shop"]).await;
        assert_eq!(failed, only("credentials"), "{words}: {report:#}");
        assert!(find(&report, "credentials").to_string().contains(words), "{report:#}");
        assert_eq!(find(&report, "service")["status"], "skip", "{report:#}");
        assert!(started.elapsed() < Duration::from_secs(25), "it waits for nobody: {:?}", started.elapsed());
    }
    // A Role is printed even without a cluster.
    let hangs = patient.with_plugin("hangs", "sleep 60");
    let mut command = patient.command(&["--kubeconfig", &hangs, "-n", "shop", "doctor", "--rbac"]);
    let said = Said::of(timeout(PATIENCE, command.output()).await.expect("it ends").unwrap());
    assert!(said.code == Some(0) && said.out.contains("name: \"USER\""), "{said:?}");
}

#[tokio::test]
async fn a_server_that_refuses_or_hangs_is_the_only_finding() {
    let patient = Patient::new().await;
    let faults = patient.home.demo.faults();
    faults.refuse_tokens(true);
    let (report, failed) = patient.report(&["web.shop"]).await;
    assert_eq!(failed, only("authentication"), "{report:#}");
    assert!(find(&report, "authentication").to_string().contains("401"), "{report:#}");
    faults.refuse_tokens(false);
    faults.judge(Some(Box::new(|_, _| Some(Mishap::Hang))));
    let started = Instant::now();
    let (report, failed) = patient.report(&[]).await;
    assert_eq!(failed, only("api-server"), "{report:#}");
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
}

#[tokio::test]
async fn what_this_machine_lacks_is_told_with_what_repairs_it() {
    let patient = Patient::new().await;
    let listen = format!("127.0.0.1:{}", patient.port);
    // A shell into which a user pastes the fixes.
    let shell = async |script: &str| {
        let mut command = Command::new("sh");
        let words = [env!("CARGO_BIN_EXE_adit"), "--listen", &listen, "-n", "shop", "doctor", "-o", "json"];
        command.args(["-c", &format!("{script}\nexec \"$@\""), "sh"]).args(words);
        crate::process::environment(&mut command, &patient.home.folder)
            .env("KUBECONFIG", patient.home.demo.kubeconfig());
        for variable in ["http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"] {
            command.env_remove(variable);
        }
        let said = Said::of(timeout(PATIENCE, command.output()).await.expect("it ends").unwrap());
        report(&said).0
    };
    let catches = "export HTTP_PROXY=http://proxy.invalid:3128";
    let found = shell(catches).await;
    let check = find(&found, "proxy-variables");
    assert!(check["status"] == "warn" && check["says"].as_str().unwrap().contains("HTTP_PROXY"), "{check}");
    let fixed = shell(&format!("{catches}\n{}", check["fix"]["command"].as_str().unwrap())).await;
    assert_eq!(find(&fixed, "proxy-variables")["status"], "ok", "{fixed:#}");
    let few = shell("ulimit -n 300").await;
    let check = find(&few, "open-files");
    assert!(check["status"] == "warn" && check["fix"]["command"].as_str().unwrap().contains("prlimit"), "{check}");
}

#[tokio::test]
async fn a_route_beyond_the_ca_is_told_and_repaired() {
    let patient = Patient::new().await;
    let config = |host: &str| {
        patient.home.config(&format!("http: {{k8s: {{routes: {{{host}: {{namespace: shop, service: web}}}}}}}}\n"))
    };
    let adit = async |arguments: &[&str]| {
        let config = patient.home.folder.path().join("config.yaml").display().to_string();
        let arguments = [&["--config", &config], arguments].concat();
        let mut command = match arguments.contains(&"trust") {
            true => patient.home.adit(&arguments),
            false => patient.command(&arguments),
        };
        Said::of(timeout(PATIENCE, command.output()).await.expect("it ends").unwrap())
    };
    config("a.localhost");
    let installed = adit(&["trust", "install"]).await;
    assert!(installed.out.contains("local names only"), "{installed:?}");
    config("shop.example.test");
    let beyond = |report: &Value| {
        let warns = checks(report).iter().filter(|check| check["id"] == "local-ca" && check["status"] == "warn");
        let mut of_host = warns.filter(|check| check["says"].as_str().unwrap().contains("shop.example.test"));
        of_host.next().cloned()
    };
    let (found, _) = report(&adit(&["doctor", "-o", "json"]).await);
    let check = beyond(&found).unwrap_or_else(|| panic!("{found:#}"));
    let command = check["fix"]["command"].as_str().unwrap();
    assert!(command.starts_with("adit --config ") && command.ends_with(" trust install"), "{command}");
    adit(&["trust", "install"]).await;
    let (found, _) = report(&adit(&["doctor", "-o", "json"]).await);
    assert_eq!(beyond(&found), None, "{found:#}");
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_the_only_finding() {
    let patient = Patient::new().await;
    for (ahead, words) in [(600, " s behind "), (-600, " s ahead of ")] {
        patient.home.demo.faults().clock(ahead);
        let (report, failed) = patient.report(&[]).await;
        assert_eq!(failed, only("clock"), "{report:#}");
        let check = find(&report, "clock");
        let says = check["says"].as_str().unwrap();
        // The first seconds of the test count, too.
        let skew: i64 = says.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
        assert!(says.contains(words) && (skew - 600).abs() <= 20, "{check}");
        assert_eq!(check["fix"]["command"], "sudo timedatectl set-ntp true");
    }
}

#[tokio::test]
async fn what_a_gateway_does_to_upgrades_is_told() {
    let patient = Patient::new().await;
    let faults = patient.home.demo.faults();
    let ids = BTreeSet::from(["upgrade-spdy", "upgrade-websocket", "upgrade-channels"].map(str::to_owned));
    for status in [404, 405, 426, 502] {
        faults.answer("/portforward", Some(status));
        let (report, failed) = patient.report(&[]).await;
        assert_eq!(failed, ids, "{status}: {report:#}");
        for id in &ids {
            let check = find(&report, id);
            assert!(
                check["says"].as_str().unwrap().contains(&status.to_string()) && check["fix"].is_object(),
                "{check}"
            );
        }
        assert_eq!(find(&report, "pod-stream")["status"], "skip");
    }
    faults.answer("/portforward", None);
    faults.hang_up_on_upgrades(true);
    assert_eq!(patient.report(&[]).await.1, ids);
    faults.hang_up_on_upgrades(false);
    // One working transport is enough; the others are reported.
    faults.only_channels(true);
    let (report, failed) = patient.report(&[]).await;
    assert!(failed.is_empty() && find(&report, "pod-stream")["status"] == "ok", "{report:#}");
    assert!(find(&report, "upgrade-spdy")["says"].as_str().unwrap().contains("refused"), "{report:#}");
    faults.only_channels(false);
    faults.era(Era::V1_30);
    let (report, failed) = patient.report(&[]).await;
    assert!(
        failed.is_empty() && find(&report, "upgrade-spdy")["says"].as_str().unwrap().contains("pass"),
        "{report:#}"
    );
}

#[tokio::test]
async fn the_running_adit_is_looked_at() {
    let patient = Patient::new().await;
    let config = patient.home.config("http: {k8s: {routes: {}}}\n");
    let mut adit = patient.command(&["--config", &config, "up"]);
    let adit = adit.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let socket = patient.home.folder.path().join(format!("adit/{}.sock", patient.port));
    eventually("it runs", || async { socket.exists() }).await;
    let doctor = async |arguments: &[&str]| {
        let mut command = patient.command(&[arguments, &["doctor", "-o", "json"]].concat());
        report(&Said::of(timeout(PATIENCE, command.output()).await.expect("it ends").unwrap()))
    };
    let (report, failed) = doctor(&["--config", &config]).await;
    assert_eq!(failed, BTreeSet::new(), "{report:#}");
    for id in ["running-adit", "running-version", "rejected-configuration", "failed-tunnels", "memory"] {
        assert_eq!(find(&report, id)["status"], "ok", "{report:#}");
    }
    let (report, _) = doctor(&[]).await;
    assert!(find(&report, "running-adit")["says"].as_str().unwrap().contains("config.yaml"), "{report:#}");
    patient.home.config("http: {k8s: {routes: 5}}\n");
    eventually("it is rejected", || async {
        let (report, _) = doctor(&["--config", &config]).await;
        checks(&report).iter().any(|check| check["id"] == "rejected-configuration" && check["status"] == "warn")
    })
    .await;
    // The running adit may listen elsewhere than the current file says.
    let mut elsewhere = patient.home.adit(&["--config", &config, "doctor", "-o", "json"]);
    let (report, _) = self::report(&Said::of(timeout(PATIENCE, elsewhere.output()).await.expect("it ends").unwrap()));
    assert_eq!(find(&report, "rejected-configuration")["status"], "warn", "{report:#}");
    patient.home.config("http: {k8s: {routes: {}}}\n");
    let pid = adit.id().unwrap();
    let signal = |name: &'static str| Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(signal("-STOP").await.unwrap().success());
    let (report, failed) = doctor(&["--config", &config]).await;
    assert_eq!(failed, only("running-adit"), "{report:#}");
    let fix = find(&report, "running-adit")["fix"]["command"].as_str().unwrap();
    assert_eq!(fix, format!("kill -9 {pid} && adit --config {config}"));
    assert!(signal("-CONT").await.unwrap().success());
}

#[tokio::test]
async fn the_service_is_to_start_this_program_and_to_find_the_plugins() {
    let patient = Patient::new().await;
    let folder = patient.home.folder.path().join("plugins");
    fs::create_dir(&folder).unwrap();
    let token =
        patient.kubeconfig().split("token: \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap().to_owned();
    let program = folder.join("sign-in-here");
    let credential =
        json!({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": token}});
    fs::write(&program, format!("#!/bin/sh\necho '{credential}'\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let kubeconfig = patient.with_exec("sign-in-here");
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let adit = async |arguments: &[&str]| {
        let mut command = patient.command(&[&["--kubeconfig", &kubeconfig, "-n", "shop"], arguments].concat());
        command.env("PATH", &path);
        Said::of(timeout(PATIENCE, command.output()).await.expect("it ends").unwrap())
    };
    // The unit that the installation would write; no systemd has to start it.
    let shown = adit(&["service", "install", "--dry-run"]).await;
    let mut units = shown.out.split("# /").filter_map(|part| part.split_once('\n'));
    let (unit, text) = units.find(|(path, _)| path.ends_with("adit.service")).unwrap_or_else(|| panic!("{shown:?}"));
    let unit = PathBuf::from(format!("/{unit}"));
    assert!(unit.starts_with(patient.home.folder.path()), "{unit:?}");
    fs::create_dir_all(unit.parent().unwrap()).unwrap();
    fs::write(&unit, text).unwrap();
    let (found, failed) = report(&adit(&["doctor", "-o", "json"]).await);
    assert!(failed.is_empty(), "{found:#}");
    assert_eq!(
        (find(&found, "service-unit")["status"].as_str(), find(&found, "service-plugin")["status"].as_str()),
        (Some("ok"), Some("ok")),
        "{found:#}"
    );
    // An outdated PATH, and a program that was moved.
    fs::write(&unit, text.replace(&format!("{}:", folder.display()), "")).unwrap();
    let (found, failed) = report(&adit(&["doctor", "-o", "json"]).await);
    let check = find(&found, "service-plugin");
    assert!(
        failed.is_empty()
            && check["status"] == "warn"
            && check["fix"]["command"].as_str().unwrap().ends_with(" service install"),
        "{found:#}"
    );
    fs::write(&unit, text.replace(env!("CARGO_BIN_EXE_adit"), "/no/such/adit")).unwrap();
    assert_eq!(report(&adit(&["doctor", "-o", "json"]).await).1, only("service-unit"));
}

#[tokio::test]
async fn what_expose_needs_is_checked_where_there_is_a_relay() {
    let patient = Patient::new().await;
    let (report, _) = patient.report(&[]).await;
    assert_eq!(find(&report, "permission-expose")["status"], "skip", "{report:#}");
    let pods = patient.home.demo.world().list("pods", Some("shop")).0;
    let ready = pods.iter().find(|pod| pod["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("web-")));
    let mut relay = (**ready.unwrap()).clone();
    relay["metadata"] = json!({
        "name": "relay-0", "namespace": "relay", "labels": {"app.kubernetes.io/name": "adit-relay"},
        "annotations": {"adit/keys": "relay-keys", "adit/exposes": "true"}
    });
    patient.home.demo.world().put("pods", relay);
    let (report, failed) = patient.report(&[]).await;
    assert!(failed.is_empty(), "{report:#}");
    assert!(find(&report, "permission-expose")["says"].as_str().unwrap().contains("namespace relay"), "{report:#}");
    patient.home.demo.faults().forbid("get", "secrets", true);
    let (report, failed) = patient.report(&[]).await;
    let check = find(&report, "permission-expose");
    assert!(failed.is_empty() && check["status"] == "warn", "{report:#}");
    assert!(check["detail"].as_str().unwrap().contains("resourceNames: [\"relay-keys\"], verbs: [get]"), "{check}");
    assert!(check["fix"]["command"].as_str().unwrap().ends_with(" doctor --rbac -n relay"), "{check}");
    let mut command = patient.command(&["-n", "relay", "doctor", "--rbac"]);
    let role = Said::of(command.output().await.unwrap());
    assert!(role.out.contains("resources: [secrets], resourceNames: [\"relay-keys\"], verbs: [get]"), "{role:?}");
}

#[tokio::test]
async fn the_role_has_what_is_needed() {
    let patient = Patient::new().await;
    let role = patient.doctor(&["--rbac"]).await;
    assert!(
        role.code == Some(0) && role.out.contains("namespace: shop") && role.out.contains("pods/portforward"),
        "{role:?}"
    );
    assert!(!role.out.contains("pods/exec"), "{role:?}");
}

#[tokio::test]
async fn a_bundle_lists_what_it_has_and_has_no_secret() {
    let patient = Patient::new().await;
    let (secret, plugin_secret) = ("hunter2-of-the-configuration", "hunter2-of-the-plugin");
    let token =
        patient.kubeconfig().split("token: \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap().to_owned();
    let credential =
        json!({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": token}});
    let script = format!("echo \"signing in with $PASSWORD\" >&2; echo '{credential}'");
    let kubeconfig = patient.with_plugin("plugin", &script);
    let text = fs::read_to_string(&kubeconfig).unwrap();
    let env = format!("interactiveMode: Never, env: [{{name: PASSWORD, value: {plugin_secret}}}]");
    let proxied = text.replace("interactiveMode: Never", &env);
    fs::write(&kubeconfig, proxied).unwrap();
    let config = patient.home.config(&format!(
        "http:\n  k8s:\n    kubeconfig: {kubeconfig}\n    routes:\n      a.localhost:\n        namespace: shop\n        service: web\n        headers: {{set: {{authorization: Bearer {secret}}}}}\n"
    ));
    let checked = Said::of(patient.home.adit(&["--config", &config, "check"]).output().await.unwrap());
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let mut adit = patient.command(&["--config", &config, "-v", "up"]);
    let _adit = adit.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let socket = patient.home.folder.path().join(format!("adit/{}.sock", patient.port));
    eventually("it runs", || async { socket.exists() }).await;
    let url = format!("http://127.0.0.1:{}/", patient.port);
    eventually("its tunnel is used", || async {
        let got = Command::new("curl").args(["-sf", "-H", "Host: a.localhost", &url]).output().await.unwrap();
        got.status.success()
    })
    .await;
    let file = patient.home.folder.path().join("b.tar.gz");
    let mut command = patient.command(&["--config", &config, "doctor", "--bundle", &file.display().to_string()]);
    let said = Said::of(timeout(PATIENCE, command.output()).await.expect("it ends").unwrap());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let unpacked = patient.home.folder.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let tar = Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(&unpacked).status().await.unwrap();
    assert!(tar.success());
    let names = ["report.txt", "report.json", "configuration.json", "versions.txt", "status.json", "log.json"];
    for name in names {
        assert!(said.out.contains(name), "{name} is said before it is written: {said:?}");
        let text = fs::read_to_string(unpacked.join("adit-doctor").join(name)).unwrap();
        for secret in [secret, plugin_secret, &token] {
            assert!(!text.contains(secret), "{name} has {secret}");
        }
    }
    let log = fs::read_to_string(unpacked.join("adit-doctor/log.json")).unwrap();
    assert!(log.contains("signing in"), "the log is there, with what the plugin said: {log}");
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
