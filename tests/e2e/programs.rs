//! `adit run`, `env`, `wait`, `connect` and `doctor` on a real cluster.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Adit, NAMESPACE, eventually, kubectl, run, succeed, world};

/// The login of the image's PostgreSQL.
const LOGIN: [(&str, &str); 3] = [("PGUSER", "postgres"), ("PGPASSWORD", "postgres"), ("PGDATABASE", "postgres")];

/// Returns adit with these arguments and no adit beside it.
fn adit(folder: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.args(["-n", NAMESPACE]).args(arguments);
    command.env("XDG_RUNTIME_DIR", folder.path()).env("XDG_STATE_HOME", folder.path());
    command.env("XDG_CONFIG_HOME", folder.path()).envs(LOGIN);
    command
}

/// Returns adit as a client of one that runs.
fn beside(running: &Adit, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.arg("--config").arg(running.config()).args(["-n", NAMESPACE]).args(arguments);
    command.env("XDG_RUNTIME_DIR", running.folder()).env("XDG_STATE_HOME", running.folder()).envs(LOGIN);
    command
}

fn folder() -> TempDir {
    world();
    TempDir::new().expect("a temporary folder")
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("output in UTF-8")
}

#[test]
fn psql_needs_no_options_and_gets_its_exit_code_back() {
    let folder = folder();
    let target = format!("db=postgres.{NAMESPACE}");
    let said = succeed(&mut adit(&folder, &["run", "--to", &target, "--", "psql", "-Atc", "select 40 + 2"]));
    assert_eq!(said, "42\n");
    for (script, code) in [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("kill -INT $$", 130)] {
        let ended = run(&mut adit(&folder, &["run", "--to", &target, "--", "sh", "-c", script]));
        assert_eq!(ended.status.code(), Some(code), "{script}: {ended:?}");
    }
    let missing = format!("db=nothing.{NAMESPACE}:1");
    for (arguments, code) in [
        (["run", "--to", &missing, "--", "true"], 125),
        (["run", "--to", &target, "--", "/etc/passwd"], 126),
        (["run", "--to", &target, "--", "no-such-program"], 127),
    ] {
        assert_eq!(run(&mut adit(&folder, &arguments)).status.code(), Some(code), "{arguments:?}");
    }
}

/// The names of variables that Kubernetes gives, for Services of the suite.
fn names(variables: &str, services: &[&str]) -> BTreeSet<String> {
    let of_services = |name: &&str| services.iter().any(|service| name.starts_with(&format!("{service}_SERVICE_")));
    let names = variables.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
    names.filter(of_services).map(str::to_owned).collect()
}

#[test]
fn the_variables_of_services_have_the_names_that_pods_see() {
    let folder = folder();
    let in_pod = kubectl(&["-n", NAMESPACE, "exec", "data", "-c", "redis", "--", "env"]);
    let (web, data) = (format!("a=web.{NAMESPACE}:http"), format!("b=data.{NAMESPACE}:mysql"));
    let here = succeed(&mut adit(&folder, &["run", "--to", &web, "--to", &data, "--", "env"]));
    let services = ["WEB", "DATA"];
    let wanted = names(&in_pod, &services);
    assert!(wanted.contains("WEB_SERVICE_PORT_H2C") && wanted.contains("DATA_SERVICE_HOST"), "{in_pod}");
    assert_eq!(names(&here, &services), wanted);
}

#[test]
fn twenty_runs_side_by_side_keep_to_their_own_ports() {
    let folder = folder();
    let target = format!("db=postgres.{NAMESPACE}");
    let script = "echo $DB_PORT; psql -Atc \"select '$1'\"";
    let runs: Vec<_> = (0..20)
        .map(|number: i32| {
            let number = number.to_string();
            let arguments = ["run", "--wait", "60s", "--to", &target, "--for", "psql", "--", "sh", "-c", script, "sh"];
            let mut command = adit(&folder, &arguments);
            let child = command.arg(&number).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
            (number, child.expect("adit starts"))
        })
        .collect();
    let mut ports = BTreeSet::new();
    for (number, child) in runs {
        let said = child.wait_with_output().expect("it ends");
        let lines = text(said.stdout.clone());
        let (port, answer) = lines.split_once('\n').unwrap_or_else(|| panic!("{said:?}"));
        assert_eq!(answer.trim(), number, "{said:?}");
        ports.insert(port.to_owned());
    }
    assert_eq!(ports.len(), 20);
}

#[test]
fn env_and_run_share_the_ports_of_the_running_adit() {
    let (running, port) = Adit::with_tcp("postgres", 5432);
    let variables = succeed(&mut beside(&running, &["env", "-o", "dotenv"]));
    assert!(variables.contains(&format!("POSTGRES_SERVICE_PORT=\"{port}\"")), "{variables}");
    let script =
        "echo $POSTGRES_SERVICE_PORT; psql -h $POSTGRES_SERVICE_HOST -p $POSTGRES_SERVICE_PORT -Atc 'select 1'";
    assert_eq!(succeed(&mut beside(&running, &["run", "--", "sh", "-c", script])), format!("{port}\n1\n"));
    succeed(&mut beside(&running, &["wait", "postgres", "web:http"]));
    let unreached = run(&mut beside(&running, &["wait", "--timeout", "1s", "web:http", "nothing:80"]));
    assert!(unreached.status.code() == Some(1) && text(unreached.stderr).contains("nothing"));
}

/// Asks each of three servers ten times, all at the same time, at the addresses of the variables, and prints what they said once.
const THREE_TARGETS: &str = r#"
const net = require('node:net'), http = require('node:http'), { env } = process;

function ask(host, port, sent, enough) {
  return new Promise((resolve, reject) => {
    const socket = net.connect(Number(port), host, () => socket.write(sent));
    let said = Buffer.alloc(0);
    socket.on('data', data => {
      said = Buffer.concat([said, data]);
      if (said.length >= enough) { socket.destroy(); resolve(said); }
    });
    socket.on('error', reject);
    socket.on('end', () => reject(new Error(`${host}:${port} ended after ${said.length} bytes`)));
  });
}

async function database() {
  const words = Buffer.from('user\0postgres\0database\0postgres\0\0');
  const head = Buffer.alloc(8);
  head.writeInt32BE(8 + words.length, 0);
  head.writeInt32BE(196608, 4);
  // Authentication: the server wants to know who it is, or says that it does not.
  return String.fromCharCode((await ask(env.DB_HOST, env.DB_PORT, Buffer.concat([head, words]), 9))[0]);
}

async function cache() {
  const { hostname, port } = new URL(env.CACHE);
  return (await ask(hostname, port, 'PING\r\n', 7)).toString().trim();
}

function web() {
  return new Promise((resolve, reject) => http.get(`${env.SITE_URL}/whoami`, answer => {
    answer.resume().on('end', () => resolve(`${answer.statusCode} ${answer.headers.server.split('/')[0]}`));
  }).on('error', reject));
}

const all = Array.from({ length: 10 }, () => [database(), cache(), web()]).flat();
Promise.all(all).then(said => console.log([...new Set(said)].join('\n')), error => { console.error(error); process.exit(1); });
"#;

#[test]
fn a_node_program_has_three_targets() {
    if Command::new("node").arg("--version").output().is_err() {
        return;
    }
    let folder = folder();
    let running = Adit::plain();
    let targets = ["db=postgres", "cache=data:redis", "site=web:http"].map(|target| match target.split_once(':') {
        Some((service, port)) => format!("{service}.{NAMESPACE}:{port}"),
        None => format!("{target}.{NAMESPACE}"),
    });
    let [db, cache, site] = &targets;
    let arguments = [
        "run",
        "--to",
        db,
        "--to",
        cache,
        "--to",
        site,
        "--env",
        "CACHE=redis://{cache}/0",
        "--",
        "node",
        "-e",
        THREE_TARGETS,
    ];
    // Alone, and beside an adit that runs.
    for mut command in [adit(&folder, &arguments), beside(&running, &arguments)] {
        let said = succeed(&mut command);
        assert_eq!(said.lines().collect::<Vec<_>>(), ["R", "+PONG", "200 nginx"], "{said}");
    }
}

/// Sends bytes to a command while it reads what comes back.
fn piped(mut command: Command, sent: Vec<u8>) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut input = child.stdin.take().expect("its input");
    let sending = thread::spawn(move || input.write_all(&sent));
    let mut back = Vec::new();
    child.stdout.take().expect("its output").read_to_end(&mut back).expect("it can be read");
    sending.join().expect("no panic").expect("it takes everything");
    let ended = child.wait_with_output().expect("it ends");
    Output { stdout: back, ..ended }
}

#[test]
fn connect_moves_everything_both_ways_with_its_ends() {
    let folder = folder();
    let running = Adit::plain();
    let target = format!("echo.{NAMESPACE}:7000");
    let sent: Vec<u8> = (0..4_000_000u32).flat_map(u32::to_le_bytes).collect();
    for command in [adit(&folder, &["connect", &target]), beside(&running, &["connect", &target])] {
        let ended = piped(command, sent.clone());
        assert!(ended.status.success() && ended.stdout == sent, "{} bytes, {:?}", ended.stdout.len(), ended.stderr);
    }
    assert_eq!(running.tunnels().len(), 1, "the second one used its tunnel");
}

/// Returns how ssh is run by rsync: through `adit connect`, with a key of its own that the pod takes.
fn ssh(folder: &TempDir) -> String {
    let key = folder.path().join("key").display().to_string();
    succeed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &key]));
    let public = fs::read_to_string(format!("{key}.pub")).expect("a public key");
    let script = format!("mkdir -p ~/.ssh && chmod 700 ~/.ssh && echo '{}' >> ~/.ssh/authorized_keys", public.trim());
    kubectl(&["-n", NAMESPACE, "exec", "ssh", "--", "sh", "-c", &script]);
    let adit = env!("CARGO_BIN_EXE_adit");
    format!(
        "ssh -i {key} -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
         -o 'ProxyCommand={adit} connect %h:%p'"
    )
}

#[test]
fn ssh_and_rsync_go_through_connect() {
    let folder = folder();
    let (ssh, host) = (ssh(&folder), format!("root@ssh.{NAMESPACE}"));
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("XDG_RUNTIME_DIR", folder.path()).env("XDG_STATE_HOME", folder.path());
        command.env("XDG_CONFIG_HOME", folder.path());
        command
    };
    assert_eq!(succeed(&mut shell(&format!("{ssh} {host} 'echo in $(hostname)'"))), "in ssh\n");
    let exit = run(&mut shell(&format!("{ssh} {host} 'exit 7'")));
    assert_eq!(exit.status.code(), Some(7));
    // Compression would make it less.
    let sent: Vec<u8> = (0..8_000_000u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let (there, back) = (folder.path().join("there"), folder.path().join("back"));
    fs::write(&there, &sent).expect("the file is written");
    let rsync = |from: &str, to: &str| succeed(&mut shell(&format!("rsync -e \"{ssh}\" {from} {to}")));
    rsync(&there.display().to_string(), &format!("{host}:file"));
    rsync(&format!("{host}:file"), &back.display().to_string());
    assert!(fs::read(&back).expect("it came back") == sent);
}

#[test]
fn ctrl_c_stops_the_query_and_not_psql() {
    let folder = folder();
    let adit = env!("CARGO_BIN_EXE_adit");
    // Without exec, a dash that waits for adit ends itself by the terminal's SIGINT.
    let line = format!("exec {adit} run --to db=postgres.{NAMESPACE} -- psql -X -P pager=off");
    let mut terminal = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("XDG_RUNTIME_DIR", folder.path())
        .env("XDG_STATE_HOME", folder.path())
        .env("XDG_CONFIG_HOME", folder.path())
        .envs(LOGIN)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a terminal");
    let (mut types, mut screen) =
        (terminal.stdin.take().expect("a keyboard"), terminal.stdout.take().expect("a screen"));
    let shown = Arc::new(Mutex::new(String::new()));
    let show = shown.clone();
    let reading = thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut piece) {
            show.lock().expect("no panic while the lock is held").push_str(&String::from_utf8_lossy(&piece[..count]));
        }
    });
    let shows = |words: &str| {
        eventually(words, Duration::from_secs(30), || shown.lock().expect("no panic").contains(words));
    };
    shows("postgres=#");
    types.write_all(b"select pg_sleep(600);\r").expect("it is typed");
    let sleeps = "select count(*) from pg_stat_activity where query like 'select pg_sleep(600)%'";
    let target = format!("db=postgres.{NAMESPACE}");
    eventually("the query runs", Duration::from_secs(30), || {
        succeed(&mut self::adit(&folder, &["run", "--to", &target, "--", "psql", "-Atc", sleeps])) == "1\n"
    });
    types.write_all(b"\x03").expect("it is typed");
    shows("canceling statement due to user request");
    types.write_all(b"select 'still ' || 'there';\r").expect("it is typed");
    shows("still there");
    types.write_all(b"\\q\r").expect("it is typed");
    let status = terminal.wait().expect("it ends");
    reading.join().expect("no panic");
    assert!(status.success(), "{status}: {}", shown.lock().expect("no panic"));
}

#[test]
fn the_printed_role_alone_is_enough() {
    let folder = folder();
    let account = "only-the-role";
    let all = |arguments: &[&str]| kubectl(&[&["-n", NAMESPACE], arguments].concat());
    let _ = run(Command::new("kubectl").args(["-n", NAMESPACE, "create", "serviceaccount", account]));
    let token = all(&["create", "token", account]);
    let admin: Value =
        serde_json::from_str(&kubectl(&["config", "view", "--minify", "--raw", "--flatten", "-o", "json"]))
            .expect("kubectl prints JSON");
    let mut theirs = admin.clone();
    theirs["users"][0]["user"] = serde_json::json!({"token": token.trim()});
    let kubeconfig = folder.path().join("theirs");
    fs::write(&kubeconfig, theirs.to_string()).expect("the kubeconfig is written");
    let theirs = |arguments: &[&str]| {
        let mut command = adit(&folder, arguments);
        command.env("KUBECONFIG", &kubeconfig);
        command
    };
    // As in another run of the suite: nothing is granted yet.
    let _ = run(Command::new("kubectl").args(["-n", NAMESPACE, "delete", "role/adit", "rolebinding/adit"]));
    let target = format!("postgres.{NAMESPACE}");
    let before = run(&mut theirs(&["doctor", "-o", "json"]));
    let report: Value = serde_json::from_slice(&before.stdout).expect("a report");
    let failed = |report: &Value| -> Vec<String> {
        let checks = report["checks"].as_array().expect("checks").iter();
        let failed = checks.filter(|check| check["status"] == "fail");
        failed.map(|check| check["id"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(failed(&report), ["permission-services", "permission-pods", "permission-portforward"], "{report:#}");
    // Whoever is to be granted it prints it; an administrator applies it.
    let role = succeed(&mut theirs(&["doctor", "--rbac"]));
    let file = folder.path().join("role.yaml");
    fs::write(&file, &role).expect("the Role is written");
    kubectl(&["apply", "-f", &file.display().to_string()]);
    let after = run(&mut theirs(&["doctor", "-o", "json", &target]));
    let report: Value = serde_json::from_slice(&after.stdout).expect("a report");
    assert!(after.status.success(), "{report:#}");
    let warns = report["checks"].as_array().expect("checks").iter().filter(|check| check["group"] == "rights");
    let warns: Vec<_> = warns.filter(|check| check["status"] == "warn").collect();
    assert!(warns.is_empty(), "{warns:#?}");
    let to = format!("db={target}");
    assert_eq!(succeed(&mut theirs(&["run", "--to", &to, "--", "psql", "-Atc", "select 1"])), "1\n");
    let listed = succeed(&mut theirs(&["routes"]));
    assert!(listed.contains("postgres"), "{listed}");
    all(&["delete", "role/adit", "rolebinding/adit", &format!("serviceaccount/{account}")]);
}
