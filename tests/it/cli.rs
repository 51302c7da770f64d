//! The binary as a user runs it: output, exit codes, errors.

use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
};

use adit::demo::Demo;

/// Runs adit with its own home folder.
fn adit(home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    for variable in ["KUBECONFIG", "ADIT_CONFIG", "XDG_CONFIG_HOME", "RUST_LOG", "KUBERNETES_SERVICE_HOST"] {
        command.env_remove(variable);
    }
    command
        .args(arguments)
        .env("HOME", home)
        .env("XDG_RUNTIME_DIR", home)
        .stdin(Stdio::null())
        .output()
        .expect("adit runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_has_examples_and_a_wrong_flag_is_exit_code_2() {
    let home = tempfile::tempdir().unwrap();
    let help = adit(home.path(), &["--help"]);
    assert!(help.status.success() && text(&help.stdout).contains("adit demo"));
    assert_eq!(adit(home.path(), &["--no-such-flag"]).status.code(), Some(2));
    assert_eq!(text(&adit(home.path(), &["version"]).stdout), concat!("adit ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_name_that_cannot_be_one_reaches_no_path() {
    let home = tempfile::tempdir().unwrap();
    for arguments in [
        &["url", "web.x/y"][..],
        &["url", "web/../x.shop"],
        &["url", "..shop"],
        &["url", "web.shop:a/b"],
        &["url", "web.shop:0"],
        &["url", "web.Shop"],
        &["url", "web?x.shop"],
        &["url", "web.shop", "-n", "x/y"],
        &["routes", "-n", "../x"],
        &["connect", "web.x/y:80"],
        &["connect", "pod/../x.shop:80"],
        &["wait", "web.shop", "-n", "a%2fb"],
        &["expose", "3000", "web.x/y"],
        &["expose", "3000", "web", "--relay-namespace", "x/y"],
        &["expose", "restore", "web.x/y"],
        &["doctor", "web.x/y"],
    ] {
        let output = adit(home.path(), arguments);
        let shown = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {shown}");
        assert!(shown.starts_with("error: "), "{arguments:?}: {shown}");
    }
    let shown = text(&adit(home.path(), &["url", "web.x/y"]).stderr);
    assert!(shown.contains("\"web.x/y\" names no target") && shown.contains("hint: write SERVICE"), "{shown}");
}

#[test]
fn an_empty_option_is_an_unset_one_as_for_kubectl() {
    let home = tempfile::tempdir().unwrap();
    let unset = text(&adit(home.path(), &["routes"]).stderr);
    assert!(unset.contains("kube/config does not exist"), "{unset}");
    for option in ["--context", "--namespace", "--kubeconfig"] {
        assert_eq!(text(&adit(home.path(), &["routes", option, ""]).stderr), unset, "{option}");
    }
}

#[test]
fn a_command_that_asks_no_cluster_refuses_a_context_that_does_not_exist() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("config"), "contexts: [{name: dev, context: {cluster: c}}]\n").unwrap();
    let kubeconfig = home.path().join("config").display().to_string();
    for command in [&["proxy"][..], &["browser", "web.shop"], &["service", "install", "--dry-run"]] {
        let refused = adit(home.path(), &[&["--kubeconfig", &kubeconfig, "--context", "nope"], command].concat());
        let said = text(&refused.stderr);
        assert!(said.starts_with("error: context nope is not in ") && said.contains("the contexts are dev"), "{said}");
    }
    assert!(adit(home.path(), &["--kubeconfig", &kubeconfig, "--context", "dev", "proxy"]).status.success());
    let unused = adit(home.path(), &["--context", "dev", "version"]);
    assert_eq!(unused.status.code(), Some(2));
    assert!(text(&unused.stderr).starts_with("error: 'adit version' does not use --context\n"));
}

#[test]
fn what_init_writes_is_valid_and_not_overwritten() {
    let home = tempfile::tempdir().unwrap();
    assert!(adit(home.path(), &["init"]).status.success());
    assert!(home.path().join(".config/adit/adit.schema.json").exists());
    let check = adit(home.path(), &["check"]);
    assert!(check.status.success(), "{}", text(&check.stderr));
    let again = adit(home.path(), &["init"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("hint: 'adit init --force' replaces it"));
}

#[test]
fn a_wrong_file_is_exit_code_2_with_every_problem() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("wrong.yaml");
    std::fs::write(&file, "http:\n  listn: 1\n  k8s:\n    routes:\n      a.localhost: {service: a, port: 70000}\n")
        .unwrap();
    let output = adit(home.path(), &["check", file.to_str().unwrap()]);
    let shown = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    for words in [
        "did you mean listen?",
        "http.k8s.routes.\"a.localhost\".port: expected 1-65535, found \"70000\"",
        "use the Service port",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    assert!(!shown.contains("adit check"), "{shown}");
    assert!(text(&adit(home.path(), &["--config", file.to_str().unwrap()]).stderr).contains("hint: adit check "));
    let missing = adit(home.path(), &["check", "nofile.yaml"]);
    assert_eq!(missing.status.code(), Some(2));
    assert_eq!(
        text(&missing.stderr),
        "error: cannot load nofile.yaml\ncaused by: the file does not exist\nhint: adit init --config nofile.yaml\n"
    );
}

#[test]
fn a_port_in_use_is_exit_code_1_with_the_option_or_key_to_change() {
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = adit(home.path(), &["--listen", &address]);
    let shown = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(shown.contains(&format!("error: cannot listen on {address}: the port is already in use")), "{shown}");
    assert!(
        shown.contains("hint: is another adit running? try 'adit status', or set --listen to another port"),
        "{shown}"
    );
}

#[test]
fn a_tcp_route_whose_port_is_in_use_is_named() {
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let file = home.path().join("config.yaml");
    std::fs::write(&file, format!("tcp: {{k8s: {{routes: {{{port}: {{service: a}}}}}}}}\n")).unwrap();
    let output = adit(home.path(), &["--listen", "127.0.0.1:0", "--config", file.to_str().unwrap()]);
    let shown = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(shown.contains(&format!("hint: rename tcp.k8s.routes.{port} to a free port")), "{shown}");
}

#[test]
fn the_schema_is_json_and_completion_a_script() {
    let home = tempfile::tempdir().unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&adit(home.path(), &["schema"]).stdout).unwrap();
    assert_eq!(schema["title"], "adit");
    assert!(text(&adit(home.path(), &["completion", "bash"]).stdout).contains("_adit"));
}

#[test]
fn without_a_running_adit_status_says_so() {
    let home = tempfile::tempdir().unwrap();
    let output = adit(home.path(), &["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no adit is running"));
}

#[test]
fn a_missing_kubeconfig_is_told_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let output = adit(home.path(), &["routes"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot read the kubeconfig"), "{}", text(&output.stderr));
}

#[test]
fn routes_of_the_configuration_are_listed_also_where_no_service_can_be() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("config.yaml");
    std::fs::write(
        &config,
        "http: {k8s: {routes: {shop.localhost: {context: prod, namespace: shop, service: web}}}}\n",
    )
    .unwrap();
    let kubeconfig = home.path().join("kubeconfig");
    let text_of = "current-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\n\
                   clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n";
    std::fs::write(&kubeconfig, text_of).unwrap();
    for (kubeconfig, reason) in
        [(Path::new("/nonexistent"), "cannot read the kubeconfig"), (&kubeconfig, "127.0.0.1:1")]
    {
        let options = ["--config", config.to_str().unwrap(), "--kubeconfig", kubeconfig.to_str().unwrap()];
        let output = adit(home.path(), &[&options[..], &["routes"]].concat());
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.code() == Some(1) && err.contains(reason), "{err}");
        assert!(out.contains("http://shop.localhost:8989/"), "{out}{err}");
    }
}

#[tokio::test]
async fn routes_and_urls_lead_to_services() {
    let demo = Demo::start().await.unwrap();
    let (home, kubeconfig) = (tempfile::tempdir().unwrap(), demo.kubeconfig());
    let kubeconfig = kubeconfig.to_str().unwrap().to_owned();
    tokio::task::spawn_blocking(move || {
        let routes = adit(home.path(), &["--kubeconfig", &kubeconfig, "routes", "-A"]);
        let shown = text(&routes.stdout);
        assert!(
            shown.contains("http://web.shop.localhost:8989/")
                && shown.contains(" 7000.tools.shop.localhost:8989\n"),
            "{shown}{}",
            text(&routes.stderr)
        );
        let url = adit(home.path(), &["--kubeconfig", &kubeconfig, "url", "tools:echo"]);
        assert_eq!(text(&url.stdout), "http://7000.tools.shop.localhost:8989/\n", "{}", text(&url.stderr));
        for (target, wanted) in [
            ("web.shop.svc", "http://web.shop.localhost:8989/\n"),
            ("web.shop.demo.cx", "http://web.shop.localhost:8989/\n"),
            ("pod/tools-0.shop:7000", "http://tools-0-7000.pod.shop.ns.demo.cx.k8s.localhost:8989/\n"),
        ] {
            let url = adit(home.path(), &["--kubeconfig", &kubeconfig, "url", target]);
            assert_eq!(text(&url.stdout), wanted, "{target}: {}", text(&url.stderr));
        }
        // An adit without --context may serve these URLs, so they name their context.
        let arn = "arn:aws:eks:eu-west-1:1:cluster/prod";
        let other = "contexts: [{name: staging, context: {cluster: demo, user: demo}}, {name: 'arn:aws:eks:eu-west-1:1:cluster/prod', context: {cluster: demo, user: demo}}]";
        std::fs::write(home.path().join("other"), other).unwrap();
        let both = format!("{kubeconfig}:{}", home.path().join("other").display());
        let of = |context: &str, command: &[&str]| {
            adit(home.path(), &[&["--kubeconfig", &both, "--context", context], command].concat())
        };
        let url = of("staging", &["url", "web.shop"]);
        assert_eq!(text(&url.stdout), "http://web.shop.staging.cx.localhost:8989/\n", "{}", text(&url.stderr));
        assert_eq!(text(&of("demo", &["url", "web.shop"]).stdout), "http://web.shop.localhost:8989/\n");
        let routes = text(&of("staging", &["routes", "-n", "shop", "web"]).stdout);
        assert!(routes.contains("http://web.shop.staging.cx.localhost:8989/"), "{routes}");
        let url = of(arn, &["url", "web.shop"]);
        assert_eq!(text(&url.stdout), "http://web.shop.localhost:8989/\n");
        let alias = format!("contexts: {{prod: {{name: {arn:?}}}}}");
        assert!(text(&url.stderr).contains(&alias), "{}", text(&url.stderr));
        let url = of(arn, &["url", "pod/tools-0.shop:7000"]);
        assert!(url.stdout.is_empty() && text(&url.stderr).contains(&alias), "{}", text(&url.stderr));
        let some = text(&adit(home.path(), &["--kubeconfig", &kubeconfig, "routes", "-A", "TOOLS"]).stdout);
        assert!(some.contains("7000.tools.shop") && !some.contains("web.shop"), "{some}");
        let none = text(&adit(home.path(), &["--kubeconfig", &kubeconfig, "routes", "-n", "shpo"]).stdout);
        assert!(none.starts_with("namespace shpo does not exist in context demo"), "{none}");
        // A reader that closes stdout at once ends the command quietly.
        let mut child = Command::new(env!("CARGO_BIN_EXE_adit"))
            .args(["--kubeconfig", &kubeconfig, "routes", "-A"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
    })
    .await
    .unwrap();
}

#[test]
fn every_example_passes_check_and_a_plugin_of_kubectl_is_called_so() {
    let home = tempfile::tempdir().unwrap();
    // The files that the examples refer to.
    for folder in [".config/adit", ".local/state/adit", ".kube", "certs"] {
        std::fs::create_dir_all(home.path().join(folder)).unwrap();
    }
    let pem = concat!(include_str!("keys/version-1.crt"), include_str!("keys/version-1.pem"));
    for file in [
        ".config/adit/secret",
        ".kube/config",
        "certs/argocd-ca.pem",
        "certs/me.pem",
        "certs/me.key",
        "certs/relay-ca.pem",
    ] {
        std::fs::write(home.path().join(file), pem).unwrap();
    }
    let mut count = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "yaml") {
            let check = adit(home.path(), &["check", path.to_str().unwrap()]);
            assert!(check.status.success(), "{}: {}", path.display(), text(&check.stderr));
            count += 1;
        }
    }
    assert!(count >= 3, "{count}");
    let plugin = home.path().join("kubectl-adit");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_adit"), &plugin).unwrap();
    let help = Command::new(plugin).args(["status", "--help"]).output().unwrap();
    assert!(text(&help.stdout).contains("Usage: kubectl adit status"), "{}", text(&help.stdout));
}

#[test]
fn a_service_is_shown_before_it_is_installed_and_nothing_is_written() {
    let home = tempfile::tempdir().unwrap();
    let shown = adit(home.path(), &["service", "install", "--dry-run", "--listen", "127.0.0.1:18989", "--env", "HOME"]);
    let text = text(&shown.stdout);
    assert!(shown.status.success(), "{text}");
    assert!(
        text.contains("\"--listen\" \"127.0.0.1:18989\"") || text.contains("<string>127.0.0.1:18989</string>"),
        "{text}"
    );
    assert!(text.contains(&format!("HOME={}", home.path().display())) || text.contains("<key>HOME</key>"), "{text}");
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    let colon = home.path().join("a:b.yaml").display().to_string();
    std::fs::write(&colon, "").unwrap();
    let shown = adit(home.path(), &["service", "install", "--dry-run", "--kubeconfig", &colon]).stdout;
    let shown = String::from_utf8_lossy(&shown);
    assert!(
        shown.contains(&format!("\"--kubeconfig\" \"{colon}\""))
            || shown.contains(&format!("<string>{colon}</string>")),
        "{shown}"
    );
    assert_eq!(adit(home.path(), &["service", "status"]).status.code(), Some(3));
    assert!(adit(home.path(), &["service", "uninstall"]).status.success());
    let missing = adit(home.path(), &["service", "install", "--dry-run", "--env", "NO_SUCH_VARIABLE"]);
    assert_eq!(missing.status.code(), Some(2));
}

#[test]
fn the_page_of_a_relays_clients_is_for_its_machine_alone() {
    let home = tempfile::tempdir().unwrap();
    let key = home.path().join("key");
    std::fs::write(&key, "0123456789abcdef0123456789abcdef\n").unwrap();
    let output =
        adit(home.path(), &["server", "--secret-file", &key.display().to_string(), "--admin-listen", "0.0.0.0:1"]);
    let shown = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{shown}");
    assert!(shown.contains("--admin-listen") && shown.contains("127.0.0.1:9090"), "{shown}");
}

#[test]
fn a_condition_that_no_request_can_meet_is_refused_at_once() {
    let home = tempfile::tempdir().unwrap();
    for (options, words) in [
        (&["--personal", "x-user"][..], "\"x-user\" is not HEADER=VALUE"),
        (&["--personal", "x user=anna"], "\"x user\" is not the name of a header"),
        (&["--personal", "x-user="], "the header \"x-user\" cannot have the value \"\""),
        (&["--personal", "Host=web"], "--personal-host HOST"),
        (&["--personal", "cookie=a"], "the header \"cookie\" is a secret"),
        (&["--personal", "x-user=a", "--personal", "X-User=b"], "the header \"x-user\" is named twice"),
        (&["--personal-host", "web:80"], "--personal-host: \"web:80\" is not a host"),
        (&["--personal-path", "api"], "--personal-path: \"api\" is not the start of a path"),
        (&["--personal-path", "/"], "--replace takes over the whole port"),
        (&["--personal", "x-user=anna", "--replace"], "cannot be used with '--replace'"),
    ] {
        let refused = adit(home.path(), &[&["expose", "3000:80", "--as", "web.shop"], options].concat());
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{options:?}: {said}");
        assert!(said.contains(words), "{options:?}: {said}");
    }
}

/// Runs adit in a home folder with a program of its own in `PATH`.
fn with_program(home: &Path, program: &str, script: &str, arguments: &[&str]) -> Output {
    use std::os::unix::fs::PermissionsExt;
    let bin = home.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::write(bin.join(program), script).unwrap();
    std::fs::set_permissions(bin.join(program), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    let path = format!("{}:/usr/bin:/bin", bin.display());
    command.args(arguments).env_clear().env("HOME", home).env("PATH", path).output().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn a_service_whose_port_is_taken_is_not_installed() {
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let install =
        |script: &str| with_program(home.path(), "systemctl", script, &["service", "install", "--listen", &address]);
    let refused = install("#!/bin/sh\nexit 3\n");
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("cannot listen on {address}: the port is already in use")), "{said}");
    let units = home.path().join(".config/systemd/user");
    assert!(!units.exists());
    // The user's systemd has it, because the service was installed before.
    std::fs::create_dir_all(&units).unwrap();
    std::fs::write(units.join("adit.socket"), format!("[Socket]\nListenStream={address}\n")).unwrap();
    let installed = install("#!/bin/sh\n");
    assert!(installed.status.success(), "{}", text(&installed.stderr));
}

#[cfg(target_os = "linux")]
#[test]
fn a_service_finds_the_folders_of_its_shell() {
    let home = tempfile::tempdir().unwrap();
    let of = |name: &str| home.path().join(name).display().to_string();
    let (config, data) = (of("config"), of("data"));
    let output = Command::new(env!("CARGO_BIN_EXE_adit"))
        .args(["service", "install", "--dry-run", "--listen", "127.0.0.1:18989"])
        .env_clear()
        .envs([("HOME", of("")), ("XDG_CONFIG_HOME", config.clone()), ("XDG_DATA_HOME", data.clone())])
        .output()
        .unwrap();
    let shown = text(&output.stdout);
    for line in [
        format!("Environment=\"XDG_CONFIG_HOME={config}\"\n"),
        format!("Environment=\"XDG_DATA_HOME={data}\"\n"),
        format!("# {config}/systemd/user/adit.service\n"),
    ] {
        assert!(shown.contains(&line), "{line} {shown}");
    }
}

#[test]
fn the_files_of_a_service_are_private_and_replace_a_link() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let units = home.path().join(".config/systemd/user");
    let bin = home.path().join("bin");
    std::fs::create_dir_all(&units).unwrap();
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("systemctl"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(bin.join("systemctl"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (linked, file) = (home.path().join("mine"), units.join("adit.service"));
    std::fs::write(&linked, "mine\n").unwrap();
    std::fs::set_permissions(&linked, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::symlink(&linked, &file).unwrap();
    let (first, second) = (home.path().join("a:b.yaml"), home.path().join("c.yaml"));
    std::fs::write(&first, "").unwrap();
    std::fs::write(&second, "").unwrap();
    let installed = Command::new(env!("CARGO_BIN_EXE_adit"))
        .args(["service", "install", "--listen", "127.0.0.1:18989"])
        .env_clear()
        .env("HOME", home.path())
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("ADIT_CONFIG", "a:b.yaml")
        .env("KUBECONFIG", "c.yaml:/d.yaml")
        .env("https_proxy", "http://user:hunter2@proxy.test")
        .current_dir(home.path())
        .output()
        .unwrap();
    if cfg!(target_os = "macos") {
        return;
    }
    assert!(installed.status.success(), "{}", text(&installed.stderr));
    let metadata = std::fs::symlink_metadata(&file).unwrap();
    assert!(metadata.is_file() && metadata.permissions().mode() & 0o777 == 0o600, "{metadata:?}");
    assert_eq!(std::fs::read_to_string(&linked).unwrap(), "mine\n");
    assert_eq!(
        std::fs::read_dir(&units).unwrap().filter(|entry| entry.as_ref().unwrap().file_name() != "adit.socket").count(),
        1 + usize::from(units.join("default.target.wants").exists())
    );
    let unit = std::fs::read_to_string(&file).unwrap();
    assert!(unit.contains(&format!("ADIT_CONFIG={}", first.display())), "{unit}");
    assert!(unit.contains(&format!("KUBECONFIG={}:/d.yaml", second.display())), "{unit}");
}
