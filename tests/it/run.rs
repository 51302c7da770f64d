//! `adit run`: a command with the demo cluster at local ports.

mod proxy;
mod terminal;

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener as StdListener},
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use adit::demo::Demo;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::{
    process::environment,
    support::{PATIENCE, eventually, ports::free_port, start_demo},
};

/// A demo cluster, and a home folder for its user.
pub struct Home {
    pub demo: Demo,
    pub folder: TempDir,
}

impl Home {
    pub async fn new() -> Self {
        Self { demo: start_demo().await, folder: tempfile::tempdir().unwrap() }
    }

    /// Returns adit with these arguments and this home folder.
    pub fn adit(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
        environment(&mut command, &self.folder).env("KUBECONFIG", self.demo.kubeconfig());
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    pub fn config(&self, text: &str) -> String {
        let path = self.folder.path().join("config.yaml");
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    pub async fn output(&self, arguments: &[&str]) -> Said {
        Said::of(timeout(PATIENCE, self.adit(arguments).output()).await.expect("it ends").unwrap())
    }
}

/// Exit code and output of a process.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Returns the variables in the output of `env`.
    fn variables(&self) -> BTreeMap<String, String> {
        let pairs = self.out.lines().filter_map(|line| line.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

/// Returns the first line that a process prints.
async fn first_line(child: &mut Child) -> String {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(PATIENCE, lines.next_line()).await.expect("it says something").unwrap().unwrap_or_default();
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    line
}

async fn send(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().await.unwrap().success());
}

fn is_alive(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_command_that_was_stopped_with_its_keeper_goes_on_with_it() {
    let home = Home::new().await;
    let mut adit = home.adit(&["run", "--", "sh", "-c", "echo $$ $PPID; exec sleep 60"]).spawn().unwrap();
    let pids = first_line(&mut adit).await;
    let [command, keeper] = pids.split(' ').map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>()[..] else {
        panic!("{pids}")
    };
    for round in 0..12 {
        // The keeper sees that the command has stopped, and is stopped before it tells adit.
        send("STOP", command).await;
        sleep(Duration::from_millis(30)).await;
        send("STOP", keeper).await;
        sleep(Duration::from_millis(150)).await;
        send("CONT", command).await;
        send("CONT", keeper).await;
        sleep(Duration::from_millis(150)).await;
        let state = fs::read_to_string(format!("/proc/{}/stat", adit.id().unwrap())).unwrap();
        assert!(!state.contains(") T "), "round {round}: adit has stopped itself: {state}");
    }
}

#[tokio::test]
async fn a_command_finds_its_targets_in_its_environment() {
    let home = Home::new().await;
    let said = home.output(&["run", "--to", "my-web=web.shop", "--to", "db=postgres.data:5432", "--", "env"]).await;
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    let set = said.variables();
    let port = |name: &str| set[name].parse::<u16>().unwrap();
    assert_eq!(set["MY_WEB_HOST"], "127.0.0.1");
    assert_eq!(set["MY_WEB_ADDR"], format!("127.0.0.1:{}", port("MY_WEB_PORT")));
    assert_eq!(set["MY_WEB_URL"], format!("http://{}", set["MY_WEB_ADDR"]));
    assert_eq!(set["WEB_SERVICE_HOST"], "127.0.0.1");
    assert_eq!(
        [port("WEB_SERVICE_PORT"), port("WEB_SERVICE_PORT_HTTP"), port("POSTGRES_SERVICE_PORT_POSTGRES")],
        [port("MY_WEB_PORT"), port("MY_WEB_PORT"), port("DB_PORT")]
    );
    assert!(!set.contains_key("DB_URL"), "a database has no URL of HTTP");
    let gone = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port("DB_PORT")))).await;
    assert!(gone.is_err(), "its ports end with it");
}

#[tokio::test]
async fn every_port_of_a_service_is_there_as_in_a_pod() {
    let home = Home::new().await;
    let script = "env; exec 3<>/dev/tcp/127.0.0.1/$TOOLS_SERVICE_PORT_GREETING; head -1 <&3 >&2";
    let said = home.output(&["run", "--to", "t=tools.shop:echo", "--", "bash", "-c", script]).await;
    assert!(said.err.contains("tools-0"), "{said:?}");
    let set = said.variables();
    let names: Vec<&str> = set.keys().map(String::as_str).filter(|name| name.starts_with("TOOLS_")).collect();
    assert_eq!(
        names,
        [
            "TOOLS_SERVICE_HOST",
            "TOOLS_SERVICE_PORT",
            "TOOLS_SERVICE_PORT_ECHO",
            "TOOLS_SERVICE_PORT_GREETING",
            "TOOLS_SERVICE_PORT_H2C",
            "TOOLS_SERVICE_PORT_HTTPS",
            "TOOLS_SERVICE_PORT_WEB",
        ]
    );
    assert_eq!(set["TOOLS_SERVICE_PORT_ECHO"], set["T_PORT"]);
    assert_eq!(set["TOOLS_SERVICE_PORT"], set["TOOLS_SERVICE_PORT_WEB"], "it is the first one, as in a pod");
}

#[tokio::test]
async fn bytes_come_from_the_pod_and_streams_are_the_commands_own() {
    let home = Home::new().await;
    let script = "read line; printf 'GET /whoami HTTP/1.0\\r\\n\\r\\n' >/dev/null; curl -s \"$WEB_URL/whoami\"; echo \"$line\" >&2";
    let mut child = home.adit(&["run", "--to", "web=web.shop", "--", "sh", "-c", script]);
    child.stdin(Stdio::piped());
    let mut child = child.spawn().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut child.stdin.take().unwrap(), b"from stdin\n").await.unwrap();
    let said = Said::of(timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap());
    assert!(said.out.starts_with("web-6d5f-"), "{said:?}");
    assert_eq!((said.err.as_str(), said.code), ("from stdin\n", Some(0)));
}

#[tokio::test]
async fn the_exit_code_is_the_commands_or_says_why_it_did_not_start() {
    let home = Home::new().await;
    let plain = home.folder.path().join("plain");
    fs::write(&plain, "#!/bin/sh\n").unwrap();
    let plain = plain.display().to_string();
    let run = async |arguments: &[&str]| home.output(&[&["run"], arguments].concat()).await;
    for (script, code) in
        [("true", 0), ("exit 3", 3), ("kill -INT $$", 130), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
    {
        let said = run(&["--", "sh", "-c", script]).await;
        assert_eq!((said.code, said.err.as_str()), (Some(code), ""), "{script}");
    }
    let taken = StdListener::bind("127.0.0.1:0").unwrap();
    let fixed = format!("x=web.shop@{}", taken.local_addr().unwrap().port());
    for (arguments, code, part) in [
        (&["--", "no-such-program"][..], 127, "\"no-such-program\" was not found in PATH"),
        (&["--", "/no/such/program"], 127, "does not exist"),
        (&["--", &plain], 126, "is not executable"),
        (&["--", "/"], 126, "is a folder"),
        (&["--to", "x=nothing.shop", "--", "true"], 125, "no service shop/nothing in context demo"),
        (&["--to", "x=web.shop:99", "--", "true"], 125, "has no port 99"),
        (&["--to", "x=queue.shop", "--", "true"], 125, "several ports: which one?"),
        (&["--to", "x=payments.shop", "--", "true"], 125, "ExternalName"),
        (&["--to", "x=broken.shop", "--wait", "1s", "--", "true"], 125, "CrashLoopBackOff"),
        (&["--to", &fixed, "--", "true"], 125, "already in use"),
        (&["--secret", "X=data/nothing:x", "--", "true"], 125, "no secret data/nothing"),
        (&["--to", "web.shop", "--", "true"], 2, "is not NAME=TARGET"),
        (&["--to", "x=Web", "--", "true"], 2, "names no target"),
        (&["--to", "a-b=web.shop", "--to", "a_b=web.shop", "--", "true"], 2, "two targets have the name"),
        (&["--to", "x=web.shop", "--env", "A={y}", "--", "true"], 2, "the names are {x}, {x.host}"),
        (&["--env", "1=2", "--", "true"], 2, "is not NAME=VALUE"),
        (&["--secret", "X=y", "--", "true"], 2, "SECRET:KEY"),
        (&["--for", "psql", "--", "true"], 2, "it is not clear which target is meant"),
        (&["--for", "oracle", "--", "true"], 2, "psql, mysql, redis and mongo"),
    ] {
        let started = Instant::now();
        let said = run(arguments).await;
        assert!(said.code == Some(code) && said.err.contains(part), "{arguments:?}: {said:?}");
        assert!(started.elapsed() < Duration::from_secs(25), "{arguments:?} took {:?}", started.elapsed());
    }
    for arguments in [&["-q", "--", "no-such-program"][..], &["-q", "--to", "x=nothing.shop", "--", "true"]] {
        let said = run(arguments).await;
        assert_eq!((said.out.as_str(), said.err.as_str()), ("", ""));
        assert!(matches!(said.code, Some(125 | 127)));
    }
}

#[tokio::test]
async fn a_command_starts_once_its_pod_takes_connections() {
    let home = Home::new().await;
    home.demo.faults().refuse(5432, true);
    let run = async |arguments: &[&str]| {
        home.output(&[&["run", "--to", "db=postgres.data"], arguments, &["--", "echo", "started"]].concat()).await
    };
    let said = run(&["--wait", "1s"]).await;
    assert_eq!((said.code, said.out.as_str()), (Some(125), ""));
    assert!(said.err.contains("refused the connection on port 5432"), "{said:?}");
    assert_eq!(run(&["--no-wait"]).await.out, "started\n");
    let child = home.adit(&["run", "--to", "db=postgres.data", "--", "echo", "started"]).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    home.demo.faults().refuse(5432, false);
    let said = Said::of(timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap());
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(0), "started\n", ""));
}

#[tokio::test]
async fn the_environment_is_as_it_was_asked_for() {
    let home = Home::new().await;
    let run = async |arguments: &[&str]| {
        let said =
            home.output(&[&["run", "--to", "db=postgres.data", "--to", "web=web.shop"], arguments].concat()).await;
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(!said.err.contains("sesame"), "{said:?}");
        said
    };
    let set = run(&[
        "--env",
        "DATABASE_URL=postgres://app@{db}/shop?x={{1}}",
        "--env",
        "WEB_PORT=mine",
        "--for",
        "psql=db",
        "--for",
        "redis=web",
        "--secret",
        "PGPASSWORD=data/postgres:password",
        "--",
        "env",
    ])
    .await
    .variables();
    assert_eq!(set["DATABASE_URL"], format!("postgres://app@{}/shop?x={{1}}", set["DB_ADDR"]));
    assert_eq!(
        (&set["WEB_PORT"], &set["PGHOST"], &set["PGPORT"]),
        (&"mine".into(), &"127.0.0.1".into(), &set["DB_PORT"])
    );
    assert_eq!(set["REDIS_URL"], format!("redis://{}", set["WEB_ADDR"]));
    assert_eq!(set["PGPASSWORD"], "open sesame");

    let said = run(&["--secret", "PGPASSWORD=data/postgres:password", "--env", "A={db.port}", "--dry-run"]).await;
    let listed = said.variables();
    assert_eq!(listed["A"], listed["DB_PORT"]);
    assert_eq!(listed["PGPASSWORD"], "(key password of Secret data/postgres)");
    assert!(!said.out.contains("PGHOST"), "{said:?}");

    let mut kept = home.adit(&[
        "run",
        "--keep-env",
        "--to",
        "db=postgres.data",
        "--secret",
        "MINE=data/postgres:user",
        "--",
        "env",
    ]);
    kept.env("DB_HOST", "already").env("MINE", "too");
    let said = Said::of(timeout(PATIENCE, kept.output()).await.unwrap().unwrap());
    let set = said.variables();
    assert_eq!((set["DB_HOST"].as_str(), set["MINE"].as_str()), ("already", "too"));
    assert!(set.contains_key("DB_PORT"));
}

#[tokio::test]
async fn clients_of_databases_need_no_options() {
    let home = Home::new().await;
    let psql = home.folder.path().join("psql");
    fs::write(&psql, "#!/bin/sh\necho \"$PGHOST $PGPORT\"\n").unwrap();
    fs::set_permissions(&psql, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let psql = psql.display().to_string();
    let port = free_port();
    let target = format!("db=postgres.data@{port}");
    let said = home.output(&["run", "--to", &target, "--to", "web=web.shop", "--", &psql]).await;
    assert_eq!(said.out, format!("127.0.0.1 {port}\n"), "{said:?}");
}

#[tokio::test]
async fn without_targets_it_opens_the_routes_on_their_own_ports() {
    let home = Home::new().await;
    let port = free_port();
    let config =
        home.config(&format!("tcp: {{k8s: {{routes: {{{port}: {{namespace: data, service: postgres}}}}}}}}\n"));
    let said = home.output(&["--config", &config, "run", "--env", "X={postgres}", "--", "env"]).await;
    let set = said.variables();
    assert_eq!(set["POSTGRES_SERVICE_PORT"], port.to_string(), "{said:?}");
    assert_eq!(set["X"], format!("127.0.0.1:{port}"));
    let taken = StdListener::bind(("127.0.0.1", port)).unwrap();
    let said = home.output(&["--config", &config, "run", "--", "true"]).await;
    assert!(said.code == Some(125) && said.err.contains("--to NAME=TARGET"), "{said:?}");
    drop(taken);
    let named = home.output(&["--config", &config, "run", "--to", &format!("db={port}"), "--", "env"]).await;
    assert_ne!(named.variables()["DB_PORT"], port.to_string(), "a route that is named has a free port");
}

#[tokio::test]
async fn signals_reach_the_command_once() {
    let home = Home::new().await;
    for (signal, code) in [("TERM", 40), ("HUP", 41), ("QUIT", 42), ("USR1", 43), ("USR2", 44), ("INT", 45)] {
        let script = format!(
            "n=0; trap 'n=$((n+1))' {signal}; echo ready; while [ $n = 0 ]; do sleep 0.05; done; sleep 0.4; exit $(({code} + n - 1))"
        );
        let mut child = home.adit(&["run", "--", "bash", "-c", &script]).spawn().unwrap();
        assert_eq!(first_line(&mut child).await, "ready");
        send(signal, child.id().unwrap()).await;
        let status = timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
        assert_eq!(status.code(), Some(code), "{signal}");
    }
}

/// nohup ignores SIGHUP, and a shell ignores SIGINT for background processes of scripts.
#[tokio::test]
#[cfg(target_os = "linux")]
async fn a_signal_that_is_ignored_stays_ignored() {
    let home = Home::new().await;
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP INT; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_adit"), "run", "--", "sh", "-c"]);
    command.arg("grep SigIgn /proc/self/status; read wait; exit 7").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = environment(&mut command, &home.folder).kill_on_drop(true).spawn().unwrap();
    let stdin = child.stdin.take();
    let line = first_line(&mut child).await;
    let mask = u64::from_str_radix(line.rsplit_once('\t').unwrap().1, 16).unwrap();
    assert_eq!(mask & 0b11, 0b11, "{line}");
    for signal in ["HUP", "INT"] {
        send(signal, child.id().unwrap()).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(is_alive(&child.id().unwrap().to_string()));
    drop(stdin);
    let status = timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(7));
}

#[tokio::test]
async fn a_temporary_folder_that_is_of_no_use_is_not_needed() {
    let home = Home::new().await;
    let long = home.folder.path().join("x".repeat(120));
    fs::create_dir(&long).unwrap();
    for folder in [Path::new("/no/such"), &long] {
        let said = Said::of(home.adit(&["run", "--", "echo", "ok"]).env("TMPDIR", folder).output().await.unwrap());
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(0), "ok\n", ""), "{folder:?}");
    }
}

#[tokio::test]
async fn a_signal_to_the_whole_group_reaches_the_command_once() {
    let home = Home::new().await;
    let script = "n=0; trap 'n=$((n+1))' TERM; echo ready; while [ $n = 0 ]; do sleep 0.05; done; sleep 0.5; exit $n";
    let mut command = home.adit(&["run", "--", "bash", "-c", script]);
    command.process_group(0);
    let mut child = command.spawn().unwrap();
    assert_eq!(first_line(&mut child).await, "ready");
    let group = format!("-{}", child.id().unwrap());
    assert!(Command::new("kill").args(["-TERM", "--", &group]).status().await.unwrap().success());
    let status = timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(1), "it was sent once");
}

#[tokio::test]
async fn a_kill_of_adit_leaves_no_child_and_no_port() {
    let home = Home::new().await;
    let script = "sleep 300 & a=$!; (sleep 300 & echo $a $! $$ $DB_PORT; exec sleep 300); wait";
    let run = |script| home.adit(&["run", "--to", "db=postgres.data", "--", "bash", "-c", script]).spawn().unwrap();
    let mut child = run(script);
    let line = first_line(&mut child).await;
    let words: Vec<&str> = line.split(' ').collect();
    let (port, pids) = words.split_last().unwrap();
    assert!(pids.len() == 3 && pids.iter().all(|pid| is_alive(pid)), "{line}");
    send("KILL", child.id().unwrap()).await;
    eventually("all are gone", || async { !pids.iter().any(|pid| is_alive(pid)) }).await;
    assert!(TcpStream::connect(format!("127.0.0.1:{port}")).await.is_err());

    // A command that ignores SIGTERM.
    let mut child = run("trap '' TERM; echo $$; while :; do sleep 0.1; done");
    let pid = first_line(&mut child).await;
    send("KILL", child.id().unwrap()).await;
    eventually("it is killed", || async { !is_alive(&pid) }).await;
}

#[tokio::test]
async fn a_kill_of_every_adit_ends_the_command_too() {
    let home = Home::new().await;
    let mut child = home.adit(&["run", "--", "sh", "-c", "echo $$ $PPID; exec sleep 300"]).spawn().unwrap();
    let line = first_line(&mut child).await;
    let (pid, keeper) = line.split_once(' ').unwrap();
    send("KILL", keeper.parse().unwrap()).await;
    let status = timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(137));
    eventually("it is gone", || async { !is_alive(pid) }).await;
}

#[tokio::test]
async fn what_a_command_leaves_behind_lives_on() {
    let home = Home::new().await;
    let said = home.output(&["run", "--", "sh", "-c", "sleep 30 >/dev/null 2>&1 & echo $!"]).await;
    let pid = said.out.trim();
    assert!(is_alive(pid), "{said:?}");
    send("KILL", pid.parse().unwrap()).await;
}

#[tokio::test]
async fn runs_side_by_side_do_not_mix_their_ports() {
    let home = Home::new().await;
    let runs = (0..20).map(|_| async {
        let script = "sleep 1; curl -s $WEB_URL/whoami; echo $WEB_PORT";
        let said = home.output(&["run", "--wait", "20s", "--to", "web=web.shop", "--", "sh", "-c", script]).await;
        assert!(said.code == Some(0) && said.out.starts_with("web-6d5f-"), "{said:?}");
        said.out.lines().last().unwrap().to_owned()
    });
    let mut ports = futures::future::join_all(runs).await;
    ports.sort();
    ports.dedup();
    assert_eq!(ports.len(), 20);
}

#[tokio::test]
async fn the_command_has_the_limit_of_open_files_that_adit_was_given() {
    let home = Home::new().await;
    let count = async |arguments: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -Sn 200; exec \"$@\"", "sh"]).args(arguments);
        command.args(["sh", "-c", "ulimit -Sn; ls /proc/self/fd | wc -l"]);
        environment(&mut command, &home.folder).env("KUBECONFIG", home.demo.kubeconfig());
        Said::of(command.output().await.unwrap()).out
    };
    let plain = count(&[]).await;
    assert!(plain.starts_with("200\n"), "{plain}");
    assert_eq!(count(&[env!("CARGO_BIN_EXE_adit"), "run", "--"]).await, plain, "limit, and what is open");
}

#[tokio::test]
async fn the_temporary_folder_is_left_as_it_was() {
    let home = Home::new().await;
    let temporary = tempfile::tempdir().unwrap();
    let mut command = home.adit(&["run", "--", "true"]);
    command.env("TMPDIR", temporary.path());
    assert!(command.status().await.unwrap().success());
    assert!(is_empty(temporary.path()));
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}
