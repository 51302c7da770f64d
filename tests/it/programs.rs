//! `adit connect`, `wait` and `env`, each with a running adit and without one.

use std::{collections::BTreeMap, fs, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::timeout,
};

use crate::{
    run::{Home, Said},
    support::{PATIENCE, eventually, ports::free_port, start_demo},
};

/// A home folder, with or without a running adit.
struct World {
    home: Home,
    port: u16,
    adit: Option<Child>,
}

impl World {
    async fn new(config: &str, is_running: bool) -> Self {
        let (home, port) = (Home::new().await, free_port());
        home.config(config);
        let mut world = Self { home, port, adit: None };
        if is_running {
            world.adit = Some(world.command(&["up"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
            let socket = world.home.folder.path().join(format!("adit/{port}.sock"));
            eventually("it runs", || async { socket.exists() }).await;
        }
        world
    }

    /// Returns adit with these arguments, and with the options of all adits in this home folder.
    fn command(&self, arguments: &[&str]) -> Command {
        let config = self.home.folder.path().join("config.yaml").display().to_string();
        let listen = format!("127.0.0.1:{}", self.port);
        self.home.adit(&[&["--config", &config, "--listen", &listen], arguments].concat())
    }

    async fn output(&self, arguments: &[&str]) -> Said {
        Said::of(timeout(PATIENCE, self.command(arguments).output()).await.expect("it ends").unwrap())
    }

    /// Writes `input` to a command, closes stdin, and returns the exit code and the output.
    async fn pipe(&self, arguments: &[&str], input: &[u8]) -> (Option<i32>, Vec<u8>, String) {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut output = Vec::new();
        let sending = async {
            let _ = stdin.write_all(input).await;
            drop(stdin);
        };
        let receiving = async { stdout.read_to_end(&mut output).await.unwrap() };
        timeout(PATIENCE, async { tokio::join!(sending, receiving) }).await.expect("it answers");
        let ended = timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap();
        (ended.status.code(), output, String::from_utf8(ended.stderr).unwrap())
    }
}

#[tokio::test]
async fn connect_moves_bytes_both_ways_with_their_ends() {
    for is_running in [false, true] {
        let world = World::new("", is_running).await;
        let sent: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let (code, back, said) = world.pipe(&["connect", "tools.shop:echo"], &sent).await;
        assert!(code == Some(0) && back == sent, "{is_running} {code:?} {} bytes {said}", back.len());
        // The pod ends its direction first, while the input is still open.
        let mut child = world.command(&["connect", "web.shop"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"GET /whoami HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, child.stdout.take().unwrap().read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.contains("web-6d5f-"), "{is_running} {answer}");
        drop(stdin);
        assert!(timeout(PATIENCE, child.wait()).await.unwrap().unwrap().code().is_some());
    }
}

#[tokio::test]
async fn connect_says_at_once_what_cannot_be_reached() {
    for is_running in [false, true] {
        let world = World::new("", is_running).await;
        for (target, code, words) in [
            ("nothing.shop:80", 125, "service shop/nothing"),
            ("broken.shop", 125, "CrashLoopBackOff"),
            ("a b", 2, "names no target"),
        ] {
            let (found, back, said) = world.pipe(&["connect", "--wait", "1s", target], b"").await;
            assert!(said.contains(words) && back.is_empty(), "{is_running} {target}: {said}");
            assert_eq!(found, Some(code), "{is_running} {target}: {said}");
        }
        let (code, _, said) = world.pipe(&["connect", "-q", "nothing.shop:80"], b"").await;
        assert!(code == Some(125) && said.is_empty(), "{said}");
    }
}

#[tokio::test]
async fn connect_to_a_port_that_refuses_is_no_empty_answer() {
    for is_running in [false, true] {
        let world = World::new("", is_running).await;
        world.home.demo.faults().refuse(7000, true);
        for wait in ["3s", "6s"] {
            let (code, back, said) = world.pipe(&["connect", "--wait", wait, "tools.shop:echo"], b"").await;
            assert_eq!((code, back.len()), (Some(125), 0), "{is_running} {wait}: {said}");
            assert!(said.contains("refused"), "{is_running} {wait}: {said}");
        }
    }
}

#[tokio::test]
async fn connect_fails_where_its_output_or_input_does() {
    for is_running in [false, true] {
        let world = World::new("", is_running).await;
        let mut command = world.command(&["connect", "tools.shop:echo"]);
        if cfg!(target_os = "linux") {
            let full = fs::File::options().write(true).open("/dev/full").unwrap();
            let input = world.home.folder.path().join("input");
            fs::write(&input, "# more than nothing\n").unwrap();
            command.stdin(fs::File::open(input).unwrap()).stdout(full);
            // `output` would replace this standard output.
            let ending = command.spawn().unwrap().wait_with_output();
            let said = Said::of(timeout(PATIENCE, ending).await.expect("it ends").unwrap());
            assert!(said.code == Some(1) && said.err.contains("standard output"), "{is_running} {said:?}");
        }
        let mut command = world.command(&["connect", "tools.shop:echo"]);
        command.stdin(fs::File::open(world.home.folder.path()).unwrap());
        let said = Said::of(timeout(PATIENCE, command.output()).await.expect("it ends").unwrap());
        assert!(said.code == Some(1) && said.err.contains("standard input"), "{is_running} {said:?}");
    }
}

#[tokio::test]
async fn connect_fails_where_the_connection_breaks() {
    for is_running in [false, true] {
        let world = World::new("", is_running).await;
        let mut child = world.command(&["connect", "tools.shop:echo"]).stdin(Stdio::piped()).spawn().unwrap();
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        stdin.write_all(b"word").await.unwrap();
        timeout(PATIENCE, stdout.read_exact(&mut [0; 4])).await.expect("an answer").unwrap();
        world.home.demo.faults().drop_upgraded_connections();
        drop(stdin);
        let ended = timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(1) && said.contains("broke"), "{is_running} {said}");
    }
}

#[tokio::test]
async fn connect_uses_the_tunnels_of_the_running_adit() {
    let world = World::new("", true).await;
    let (code, ..) = world.pipe(&["connect", "tools.shop:echo"], b"hello").await;
    assert_eq!(code, Some(0));
    let status = world.output(&["status"]).await.out;
    assert!(status.contains("shop/tools:"), "{status}");
}

#[tokio::test]
async fn run_without_targets_has_the_ports_of_the_running_adit() {
    let port = free_port();
    let config = format!("tcp: {{k8s: {{routes: {{{port}: {{namespace: data, service: postgres}}}}}}}}\n");
    let world = World::new(&config, true).await;
    for wait in [&["--wait", "20s"][..], &["--no-wait"]] {
        let said = world.output(&[&["run"], wait, &["--env", "X={postgres}", "--", "env"]].concat()).await;
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
        for line in [format!("POSTGRES_SERVICE_PORT={port}"), format!("X=127.0.0.1:{port}")] {
            assert!(said.out.lines().any(|other| other == line), "{line}: {said:?}");
        }
    }
    assert!(world.output(&["status"]).await.out.contains("data/postgres"), "its tunnel is used");
    // A target with a name gets its own port.
    let said = world.output(&["run", "--to", &format!("db={port}"), "--", "sh", "-c", "echo $DB_PORT"]).await;
    assert!(said.code == Some(0) && said.out.trim() != port.to_string(), "{said:?}");
    world.home.demo.faults().refuse(5432, true);
    let said = world.output(&["run", "--wait", "1s", "--", "true"]).await;
    assert!(said.code == Some(125) && said.err.contains("refused"), "{said:?}");
}

#[tokio::test]
async fn an_adit_that_does_not_answer_keeps_nobody_waiting() {
    let world = World::new("", true).await;
    let pid = world.adit.as_ref().unwrap().id().unwrap().to_string();
    let stop = |signal: &'static str| Command::new("kill").args([signal, &pid]).status();
    assert!(stop("-STOP").await.unwrap().success());
    let said = world.output(&["wait", "web.shop"]).await;
    assert_eq!(said.code, Some(0), "tunnels of its own: {said:?}");
    for command in [&["status"][..], &["stop", "a/b/c"], &["ui", "--print"], &["env"]] {
        let (started, said) = (std::time::Instant::now(), world.output(command).await);
        let words = format!("does not answer (pid {pid})");
        assert!(said.code == Some(1) && said.err.contains(&words), "{command:?}: {said:?}");
        assert!(started.elapsed() < Duration::from_secs(25), "{command:?} took {:?}", started.elapsed());
    }
    assert!(stop("-CONT").await.unwrap().success());
}

#[tokio::test]
async fn wait_ends_when_all_can_be_reached_or_says_which_cannot() {
    for is_running in [false, true] {
        let world = World::new("", is_running).await;
        let said = world.output(&["wait", "web.shop", "postgres.data:5432"]).await;
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(0), "", ""), "{is_running} {said:?}");
        let said = world.output(&["wait", "--timeout", "1s", "web.shop", "broken.shop", "nothing.shop"]).await;
        assert_eq!(said.code, Some(1), "{is_running} {said:?}");
        assert!(said.err.contains("CrashLoopBackOff") && said.err.contains("shop/nothing"), "{is_running} {said:?}");
        assert!(!said.err.contains("shop/web"), "{said:?}");
        assert_eq!(world.output(&["wait"]).await.code, Some(2));
        world.home.demo.faults().refuse(8080, true);
        let said = world.output(&["wait", "--timeout", "1s", "web.shop"]).await;
        assert!(said.code == Some(1) && said.err.contains("refused"), "{is_running} {said:?}");
        let late = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            world.home.demo.faults().refuse(8080, false);
        };
        let (said, ()) = tokio::join!(world.output(&["wait", "web.shop"]), late);
        assert_eq!(said.code, Some(0), "{is_running} {said:?}");
    }
}

#[tokio::test]
async fn env_prints_what_a_shell_evaluates() {
    let port = free_port();
    let config = format!("tcp: {{k8s: {{routes: {{{port}: {{namespace: data, service: postgres}}}}}}}}\n");
    let world = World::new(&config, true).await;
    let said = world.output(&["env", "--to", "web=web.shop", "--env", "URL=it's {web.url}/x"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let script = format!("{}\necho \"$POSTGRES_SERVICE_PORT\"; echo \"$URL\"; curl -s \"$WEB_URL/whoami\"", said.out);
    let output = Command::new("bash").arg("-c").arg(script).output().await.unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines[0], port.to_string());
    assert!(lines[1].starts_with("it's http://127.0.0.1:") && lines[2].starts_with("web-6d5f-"), "{lines:?}");
    // The same target has the same port.
    assert_eq!(world.output(&["env", "--to", "web=web.shop", "--env", "URL=it's {web.url}/x"]).await.out, said.out);
    // A shell that enters a folder must not wait for a pod.
    world.home.demo.faults().refuse(5432, true);
    let json = world.output(&["env", "-o", "json"]).await.out;
    let json: BTreeMap<String, String> = serde_json::from_str(&json).unwrap();
    assert_eq!(json["POSTGRES_SERVICE_HOST"], "127.0.0.1");
    let wrong = world.output(&["env", "--env", "X={nobody}"]).await;
    assert!(wrong.code == Some(2) && wrong.err.contains("{postgres}"), "{wrong:?}");
    let alone = World::new(&config, false).await.output(&["env"]).await;
    assert!(alone.code == Some(1) && alone.err.contains("start it with 'adit'"), "{alone:?}");
}

#[tokio::test]
async fn a_file_of_variables_is_kept_until_adit_ends() {
    let ports = [free_port(), free_port()];
    let route =
        |port: u16, service: &str, namespace: &str| format!("{port}: {{namespace: {namespace}, service: {service}}}");
    let config = |routes: &[String]| format!("tcp: {{k8s: {{routes: {{{}}}}}}}\n", routes.join(", "));
    let first = route(ports[0], "postgres", "data");
    for signal in ["TERM", "KILL"] {
        let mut world = World::new(&config(std::slice::from_ref(&first)), true).await;
        let file = world.home.folder.path().join(".env");
        let said = world.output(&["env", "--write", &file.display().to_string()]).await;
        assert_eq!((said.code, said.out.as_str()), (Some(0), ""), "{said:?}");
        let has = |words: &str| fs::read_to_string(&file).unwrap().contains(words);
        assert!(has(&format!("POSTGRES_SERVICE_PORT=\"{}\"\n", ports[0])));
        assert_eq!(mode(&file), 0o600);
        world.home.config(&config(&[first.clone(), route(ports[1], "web", "shop")]));
        eventually("the new route is in it", || async { has(&format!("WEB_SERVICE_PORT=\"{}\"", ports[1])) }).await;
        assert!(!has("stale"));
        let mut adit = world.adit.take().unwrap();
        let pid = adit.id().unwrap().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().await.unwrap().success());
        let _ = timeout(PATIENCE, adit.wait()).await;
        eventually("it is marked", || async { has("# stale") }).await;
        assert!(has("POSTGRES_SERVICE_PORT"), "{signal}");
    }
}

#[tokio::test]
async fn a_file_of_variables_is_not_stale_while_adit_has_no_more_event_streams() {
    let mut world = World::new("", true).await;
    let socket = world.home.folder.path().join(format!("adit/{}.sock", world.port));
    let mut readers = Vec::new();
    for _ in 0..32 {
        let mut reader = tokio::net::UnixStream::connect(&socket).await.unwrap();
        reader.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: adit\r\n\r\n").await.unwrap();
        reader.read_u8().await.unwrap();
        readers.push(reader);
    }
    let mut refused = tokio::net::UnixStream::connect(&socket).await.unwrap();
    refused.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: adit\r\n\r\n").await.unwrap();
    let mut status = [0; 12];
    refused.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 503");
    let file = world.home.folder.path().join(".env");
    let said = world.output(&["env", "--write", &file.display().to_string()]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let has = |words: &str| fs::read_to_string(&file).unwrap().contains(words);
    // Longer than a keeper needs for its first answer.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!has("stale"));
    drop(readers);
    let port = free_port();
    world.home.config(&format!("tcp: {{k8s: {{routes: {{{port}: {{namespace: data, service: postgres}}}}}}}}\n"));
    eventually("the new route is in it", || async { has(&format!("POSTGRES_SERVICE_PORT=\"{port}\"")) }).await;
    world.adit.take().unwrap().kill().await.unwrap();
    eventually("it is marked", || async { has("# stale") }).await;
}

#[tokio::test]
async fn a_file_of_variables_has_one_process_that_keeps_it() {
    let port = free_port();
    let config = format!("tcp: {{k8s: {{routes: {{{port}: {{namespace: data, service: postgres}}}}}}}}\n");
    let world = World::new(&config, true).await;
    let file = world.home.folder.path().join(".env").display().to_string();
    let keepers = || {
        let command = |process: fs::DirEntry| fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        let processes = fs::read_dir("/proc").unwrap().flatten().map(command);
        processes
            .filter(|command| command.contains(&format!("--write\0{file}\0")) && command.contains("--keep"))
            .count()
    };
    // direnv runs it each time that a shell enters the folder. Another target gives the file other content.
    for target in ["web=web.shop", "web=web.shop", "echo=tools.shop:echo", "web=web.shop", "web=web.shop"] {
        let said = world.output(&["env", "--write", &file, "--to", target]).await;
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    eventually("one is left", || async { keepers() == 1 }).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(keepers(), 1, "and it stays");
}

#[tokio::test]
async fn a_file_of_variables_is_kept_with_the_options_of_its_command_line() {
    let world = World::new("", false).await;
    let kubeconfig = world.home.demo.kubeconfig().display().to_string();
    let command = |arguments: &[&str]| {
        let mut command = world.command(&[&["--kubeconfig", &kubeconfig], arguments].concat());
        command.env("KUBECONFIG", "/nonexistent");
        command
    };
    let _adit = command(&["up"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let socket = world.home.folder.path().join(format!("adit/{}.sock", world.port));
    eventually("it runs", || async { socket.exists() }).await;
    let file = world.home.folder.path().join(".env");
    let said = Said::of(command(&["env", "--write", &file.display().to_string()]).output().await.unwrap());
    assert_eq!(said.code, Some(0), "{said:?}");
    let port = free_port();
    world.home.config(&format!("tcp: {{k8s: {{routes: {{{port}: {{namespace: data, service: postgres}}}}}}}}\n"));
    let line = format!("POSTGRES_SERVICE_PORT=\"{port}\"\n");
    eventually("the new route is in it", || async { fs::read_to_string(&file).unwrap().contains(&line) }).await;
}

#[tokio::test]
async fn a_browser_never_reaches_another_context_than_that_of_the_command_line() {
    let world = World::new("", false).await;
    let kubeconfig = world.home.demo.kubeconfig();
    let text = fs::read_to_string(&kubeconfig).unwrap();
    let other = "contexts:\n- {name: other, context: {cluster: demo, user: demo}}\n";
    fs::write(&kubeconfig, text.replacen("contexts:\n", other, 1)).unwrap();
    let browser = async |context: &str| {
        let said = world.output(&["--context", context, "browser", "--browser", "/bin/true", "web.shop"]).await;
        let lines = world.output(&["--context", context, "proxy"]).await.out;
        assert_eq!(said.code == Some(0), lines.contains("/proxy.pac"), "{said:?} {lines}");
        assert!(said.code == Some(0) || said.err.contains(&format!("would not reach context {context}")), "{said:?}");
        said.code
    };
    assert_eq!((browser("demo").await, browser("other").await), (Some(0), Some(1)));
    let mut adit = world.command(&["up", "--context", "other"]);
    let _adit = adit.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let socket = world.home.folder.path().join(format!("adit/{}.sock", world.port));
    eventually("it runs", || async { socket.exists() }).await;
    assert_eq!((browser("demo").await, browser("other").await), (Some(1), Some(0)));
}

#[tokio::test]
async fn bash_completes_the_names_that_exist_now() {
    for is_running in [true, false] {
        let world = World::new("contexts: {production: {name: demo-nobody}}\n", is_running).await;
        let program = Path::new(env!("CARGO_BIN_EXE_adit"));
        let of = async |line: &str| {
            // bash gives the function the words of the line, split at = and : too.
            let config = world.home.folder.path().join("config.yaml");
            let script = format!(
                "source <({} completion bash); PATH={}:$PATH; COMP_WORDS=(adit --config {} --listen {} {line}); \
                 COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _adit; echo ${{COMPREPLY[*]}}",
                program.display(),
                program.parent().unwrap().display(),
                config.display(),
                world.port
            );
            let mut bash =
                world.home.adit(&[]).as_std().get_envs().fold(Command::new("bash"), |mut bash, (name, value)| {
                    match value {
                        Some(value) => bash.env(name, value),
                        None => bash.env_remove(name),
                    };
                    bash
                });
            let said = Said::of(timeout(PATIENCE, bash.args(["-c", &script]).output()).await.unwrap().unwrap());
            assert_eq!(said.err, "", "{line}");
            said.out.trim().to_owned()
        };
        assert_eq!(of("run --to db = pos").await, "postgres.data", "{is_running}");
        assert_eq!(of("run --to = db = pos").await, "postgres.data", "{is_running}");
        assert_eq!(of("wait web.s").await, "web.shop");
        assert_eq!(of("-n shop connect br").await, "broken.shop");
        assert_eq!(of("--context pro").await, "production");
        assert_eq!(of("--context = demo-").await, "demo-nobody");
        assert!(of("routes -n ''").await.contains("shop"));
        assert_eq!(of("stat").await, "status");
        assert_eq!(of("--kubeconfig /nonexistent run --to x").await, "");
        if is_running {
            let said = world.output(&["wait", "web.shop"]).await;
            assert_eq!(said.code, Some(0), "{said:?}");
            assert_eq!(of("stop d").await, "demo/shop/web:80");
        }
        let folder = world.home.folder.path();
        // The shell has not expanded the words of the line yet.
        let file = folder.join("a b");
        fs::copy(world.home.demo.kubeconfig(), &file).unwrap();
        for word in ["'~/a\\ b'", "'\"$HOME/a b\"'", "'${HOME}/a\\ b'"] {
            assert_eq!(of(&format!("--kubeconfig {word} wait web.s")).await, "web.shop", "{word}");
        }
        // A prompt waits for no file.
        let fifo = folder.join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().await.unwrap().success());
        for line in ["wait web.s", "--context pro"] {
            assert_eq!(of(&format!("--kubeconfig {} {line}", fifo.display())).await, "", "{line}");
        }
        // Nobody expects a browser to open because of a Tab.
        let touched = folder.join("touched");
        let exec = format!(
            "- {{name: demo, user: {{exec: {{apiVersion: client.authentication.k8s.io/v1, command: touch, args: [{touched:?}], \
             interactiveMode: Never}}}}}}"
        );
        let text = fs::read_to_string(world.home.demo.kubeconfig()).unwrap();
        let user = text.lines().find(|line| line.starts_with("- {name: demo, user:")).unwrap();
        fs::write(world.home.demo.kubeconfig(), text.replace(user, &exec)).unwrap();
        assert_eq!(of("wait web.s").await, "", "{is_running}");
        assert!(!touched.exists(), "{is_running}");
    }
}

fn mode(file: &Path) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&fs::metadata(file).unwrap().permissions()) & 0o777
}

/// Returns the value of a variable in the output of `adit env -o json`.
fn address(said: &Said, variable: &str) -> String {
    let variables: BTreeMap<String, String> =
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    variables[variable].clone()
}

#[tokio::test]
async fn a_port_of_env_leads_to_the_context_of_now() {
    let (world, second) = (World::new("", false).await, start_demo().await);
    let kubeconfig = world.home.demo.kubeconfig();
    let mut both = fs::read_to_string(&kubeconfig).unwrap();
    for line in
        fs::read_to_string(second.kubeconfig()).unwrap().lines().filter(|line| line.starts_with("- {name: demo,"))
    {
        let is = |part: &str| line.contains(part);
        let list = if is("cluster: {") {
            "clusters"
        } else if is("user: {") {
            "users"
        } else {
            "contexts"
        };
        let other = line.replace("name: demo", "name: other").replace("cluster: demo", "cluster: other");
        both = both.replacen(
            &format!("{list}:\n"),
            &format!("{list}:\n{}\n", other.replace("user: demo", "user: other")),
            1,
        );
    }
    fs::write(&kubeconfig, &both).unwrap();
    let mut adit = world.command(&["up"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let socket = world.home.folder.path().join(format!("adit/{}.sock", world.port));
    eventually("it runs", || async { socket.exists() }).await;
    let port = free_port();
    let fixed = format!("fixed=web.shop@{port}");
    let env = ["env", "-o", "json", "--to", "web=web.shop", "--to", &fixed];
    let get = async |address: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /whoami HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("in time").unwrap();
        assert!(answer.contains("200 OK"), "{answer}");
    };
    let before = world.output(&env).await;
    get(&address(&before, "WEB_ADDR")).await;
    assert_eq!(second.faults().streams_seen(), 0);
    fs::write(&kubeconfig, both.replace("current-context: demo\n", "current-context: other\n")).unwrap();
    eventually("adit follows", || async {
        world.output(&["status", "-o", "json"]).await.out.contains("\"context\": \"other\"")
    })
    .await;
    let after = world.output(&env).await;
    assert_ne!(address(&before, "WEB_ADDR"), address(&after, "WEB_ADDR"));
    get(&address(&after, "WEB_ADDR")).await;
    assert!(second.faults().streams_seen() > 0);
    let seen = second.faults().streams_seen();
    assert_eq!(address(&after, "FIXED_PORT"), port.to_string(), "a port that was asked for stays");
    get(&address(&after, "FIXED_ADDR")).await;
    assert!(second.faults().streams_seen() > seen, "it leads to the other cluster");
    assert_eq!(address(&world.output(&env).await, "WEB_ADDR"), address(&after, "WEB_ADDR"));
    adit.kill().await.unwrap();
}

#[tokio::test]
async fn a_namespace_of_the_command_line_is_not_that_of_the_running_adit() {
    let port = free_port();
    let world = World::new(&format!("tcp: {{k8s: {{routes: {{{port}: {{service: web, port: 80}}}}}}}}\n"), true).await;
    let number = port.to_string();
    // The demo's own namespace has a Service web, and `data` has none.
    let wait = ["wait", "--timeout", "2s"];
    for command in [&[&wait[..], &[&number]].concat()[..], &wait, &["connect", &number]] {
        let said = world.output(command).await;
        assert_eq!(said.code, Some(0), "{command:?}: {said:?}");
        let said = world.output(&[&["-n", "data"], command].concat()).await;
        assert!(said.code != Some(0) && said.err.contains("data/web"), "{command:?}: {said:?}");
    }
    let own = world.output(&["run", "--", "true"]).await;
    assert_eq!(own.code, Some(0), "{own:?}");
    for command in [&["-n", "data", "run", "--", "true"][..], &["-n", "data", "env"]] {
        let said = world.output(command).await;
        assert!(said.code != Some(0) && said.err.contains("another namespace"), "{said:?}");
        assert!(said.err.contains("hint: ") && said.err.contains("--to NAME=TARGET"), "{said:?}");
    }
    // A Service that is named has its own tunnel in either.
    let said = world.output(&["-n", "data", "wait", "postgres"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[tokio::test]
async fn two_targets_with_one_name_are_refused_by_env_too() {
    let world = World::new("", true).await;
    for (first, second) in [("db=web.shop", "db=tools.shop"), ("my-db=web.shop", "my_db=tools.shop")] {
        for command in [&["env", "--to", first, "--to", second][..], &["run", "--to", first, "--to", second, "true"]] {
            let said = world.output(command).await;
            assert!(said.code == Some(2) && said.err.contains("two targets have the name"), "{command:?}: {said:?}");
        }
    }
}

#[tokio::test]
async fn quiet_is_quiet_for_every_error() {
    let world = World::new("", false).await;
    for command in [&["wait", "--quiet", "a b"][..], &["wait", "-q"], &["connect", "--quiet", "a b"]] {
        let said = world.output(command).await;
        assert_eq!((said.code.is_some_and(|code| code > 0), said.err.as_str()), (true, ""), "{command:?}: {said:?}");
    }
}
