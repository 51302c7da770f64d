//! Targets that a command connects to. adit starts the command for the first caller, shares and restarts it, and stops
//! it when idle.
//!
//! A command in listen mode gets a port from the pool, and is ready when it listens there. adit finds that out without
//! a connection, because to `cloudflared` and similar programs each connection is a session and may need a sign-in.
//! With `mode: stdio` there is no port, and one process for each connection.
//!
//! A [`supervisor`] process runs between adit and each command, so that no command outlives adit, even if adit crashes.

pub mod output;
pub mod ports;
pub mod process;
pub mod supervisor;
mod waits;

use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep, timeout},
};

use self::{
    ports::{Lent, PortPool},
    process::Process,
    waits::{Wait, Waits},
};
use super::{
    CloseReason, ConnectError, Endpoint, OpenError, Placement, ServicePort, Session, SessionGauges, SignInReport,
    StreamFault,
};
use crate::{
    config::{Command, CommandMode},
    io::{BoxedIo, held::Held},
    k8s::client::Clusters,
};

/// Startup timeout of a command that waits for a sign-in: the person may have to find a telephone.
const SIGN_IN: Duration = Duration::from_secs(5 * 60);

/// If a process refuses connections, it may be about to exit. Wait this long for its exit, which is a better error.
const DYING: Duration = Duration::from_millis(200);

/// Interval of the checks whether a command listens.
const LOOK_EVERY: Duration = Duration::from_millis(40);

/// A command that ended sooner than this after its start is restarted after a pause.
const SOON: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The backend of commands.
pub struct Commands {
    /// Source of the folders that adit searches for programs.
    clusters: Arc<Clusters>,
    supervisor: Option<PathBuf>,
    waits: Arc<Waits>,
    ports: Arc<PortPool>,
    started: Mutex<HashMap<Arc<Command>, Started>>,
}

/// Last start of a command, and how often in a row it ended soon after its start.
#[derive(Clone, Copy)]
struct Started {
    at: Instant,
    soon: u32,
}

impl Commands {
    /// `supervisor`: the program that runs [`supervisor::run`] on the words after `supervise --`. `None`: commands run
    /// without it.
    pub fn new(clusters: Arc<Clusters>, supervisor: Option<PathBuf>) -> Self {
        Self { clusters, supervisor, waits: Arc::default(), ports: Arc::default(), started: Mutex::default() }
    }

    /// Returns the prompt that a command waits at. `None`: it has printed none.
    pub fn wait(&self, command: &Command) -> Option<SignInReport> {
        self.waits.of(command)
    }

    /// Returns the prompts of all commands.
    pub fn waits(&self) -> Vec<SignInReport> {
        self.waits.all()
    }

    /// Starts to record the prompts of a command's process.
    fn watch(&self, command: &Arc<Command>) -> Arc<Wait> {
        let clusters = self.clusters.clone();
        self.waits.begin(command.clone(), Box::new(move || clusters.sign_ins().tell()))
    }

    /// Starts the command, and waits until it listens.
    ///
    /// # Errors
    /// The program does not exist, exits, or does not listen in time; or no port of the range is free.
    pub async fn open(&self, command: &Arc<Command>) -> Result<Box<dyn Session>, OpenError> {
        let exec_path = self.clusters.exec_path();
        let program = process::find(&command.run[0], &exec_path).ok_or_else(|| OpenError::Command {
            what: format!("{} cannot be started", command.run[0]),
            cause: "there is no such program in PATH, in exec_path, or where package managers install programs"
                .to_owned(),
            hint: Some("install it, add its folder to exec_path, or give its whole path".to_owned()),
        })?;
        let program = Program { file: program, path: exec_path.to_env(), supervisor: self.supervisor.clone() };
        let endpoint = |port| Endpoint {
            pod: command.run[0].clone(),
            container_port: port,
            port: ServicePort { number: port, name: None, app_protocol: None },
            protocol: match command.mode {
                CommandMode::Listen => "command",
                CommandMode::Stdio => "command over stdio",
            },
        };
        let (gauges, placement) = (Arc::<SessionGauges>::default(), Placement::new(&command.run[0]));
        if command.mode == CommandMode::Stdio {
            let (command, wait) = (command.clone(), self.watch(command));
            let endpoint = endpoint(0);
            return Ok(Box::new(StdioSession { command, program, wait, endpoint, placement, gauges }));
        }
        self.pause(command).await;
        // After the pause, in which another program could take the port.
        let port = self.ports.take(command.ports).ok_or_else(|| OpenError::Command {
            what: format!("{} cannot be started", command.run[0]),
            cause: format!("no port of {} is free", command.ports),
            hint: Some("widen sni.port_range".to_owned()),
        })?;
        let process = Process::start(command, &program, self.watch(command), Some(port.number()))?;
        let started = Instant::now();
        let addresses = loop {
            if let Some(end) = process.end() {
                return Err(process.failed(&end.to_string()));
            }
            let listening = ports::listening(port.number());
            if !listening.is_empty() {
                break listening;
            }
            let limit = match self.waits.of(command) {
                Some(_) => command.startup_timeout.max(SIGN_IN),
                None => command.startup_timeout,
            };
            if started.elapsed() >= limit {
                let seconds = limit.as_secs();
                return Err(process.failed(&format!("it does not listen on port {} after {seconds} s", port.number())));
            }
            sleep(LOOK_EVERY).await;
        };
        let endpoint = endpoint(port.number());
        let refuses = watch::Sender::new(None);
        Ok(Box::new(ListenSession { process, port, addresses, endpoint, placement, gauges, refuses }))
    }

    /// Waits before it restarts a command that keeps ending.
    async fn pause(&self, command: &Arc<Command>) {
        let now = Instant::now();
        let pause = {
            let mut started = self.started.lock().expect("no panic while the lock is held");
            // Forget commands that a reload has removed.
            started.retain(|_, last| now.duration_since(last.at) < LONGEST_PAUSE + SOON);
            let last = started.get(command).copied();
            let soon = last.filter(|last| now.duration_since(last.at) < SOON).map_or(0, |last| last.soon + 1);
            // Doubles with each early end, up to LONGEST_PAUSE.
            let pause = FIRST_PAUSE.saturating_mul(1 << soon.saturating_sub(1).min(10)).min(LONGEST_PAUSE);
            let pause = if soon == 0 { Duration::ZERO } else { pause };
            started.insert(command.clone(), Started { at: now + pause, soon });
            pause
        };
        sleep(pause).await;
    }
}

/// A running process that listens on a port.
struct ListenSession {
    process: Process,
    port: Lent,
    /// Address on which it listened when it was ready. A listener on another address of this port is another program.
    addresses: Vec<IpAddr>,
    endpoint: Endpoint,
    placement: Placement,
    gauges: Arc<SessionGauges>,
    /// Set when the port has refused a connection.
    refuses: watch::Sender<Option<CloseReason>>,
}

impl ListenSession {
    fn over(&self, how: String) -> CloseReason {
        CloseReason::Command { detail: format!("{}: {how}", self.endpoint.pod) }
    }
}

impl Session for ListenSession {
    fn connect(&self) -> BoxFuture<'_, Result<(BoxedIo, Placement), ConnectError>> {
        Box::pin(async move {
            let port = self.port.number();
            let addresses: Vec<_> = self.addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
            let stream = match TcpStream::connect(&addresses[..]).await {
                Ok(stream) => stream,
                // It may run on, but it does not listen any more: the tunnel starts another one. This process ends with
                // its last stream.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    let refuses = || self.process.with_last_words(&format!("it refuses connections on port {port}"));
                    let reason = timeout(DYING, self.process.ended()).await.unwrap_or_else(|_| refuses());
                    let reason = self.over(reason);
                    self.refuses.send_replace(Some(reason.clone()));
                    return Err(ConnectError::Over(reason));
                }
                Err(error) => {
                    return Err(StreamFault::Lost { detail: format!("port {port}: {error}") }.into());
                }
            };
            // Fails only on a socket that is already closed.
            let _ = stream.set_nodelay(true);
            let stream: BoxedIo = Box::new(Held::new(stream, self.gauges.count_stream()));
            Ok((stream, self.placement.clone()))
        })
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        let mut refuses = self.refuses.subscribe();
        Box::pin(async move {
            tokio::select! {
                how = self.process.ended() => self.over(how),
                Ok(reason) = refuses.wait_for(Option::is_some) => reason.clone().unwrap_or_else(|| self.over(String::new())),
            }
        })
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn gauges(&self) -> &SessionGauges {
        &self.gauges
    }
}

/// A program to start, with its arguments and environment.
pub struct Program {
    file: PathBuf,
    /// PATH of the program, so that it finds its own helpers in the same folders.
    path: OsString,
    supervisor: Option<PathBuf>,
}

/// Starts a process for each connection.
struct StdioSession {
    command: Arc<Command>,
    program: Program,
    wait: Arc<Wait>,
    endpoint: Endpoint,
    placement: Placement,
    gauges: Arc<SessionGauges>,
}

impl Session for StdioSession {
    fn connect(&self) -> BoxFuture<'_, Result<(BoxedIo, Placement), ConnectError>> {
        Box::pin(async move {
            let stream = process::stream(&self.command, &self.program, self.wait.clone()).map_err(|error| {
                let cause = error.cause().unwrap_or_default();
                StreamFault::Other { detail: format!("{error}: {cause}") }
            })?;
            let stream: BoxedIo = Box::new(Held::new(stream, self.gauges.count_stream()));
            Ok((stream, self.placement.clone()))
        })
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(std::future::pending())
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn gauges(&self) -> &SessionGauges {
        &self.gauges
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::atomic::Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn command(run: &[&str], mode: CommandMode) -> Arc<Command> {
        Arc::new(Command {
            run: run.iter().map(|word| (*word).to_owned()).collect(),
            mode,
            env: BTreeMap::new(),
            env_from: BTreeMap::new(),
            startup_timeout: Duration::from_millis(600),
            ports: "21800-21899".parse().unwrap(),
        })
    }

    fn commands() -> Commands {
        Commands::new(Clusters::new(&[]), None)
    }

    async fn error(run: &[&str]) -> (String, String) {
        error_within(Duration::from_secs(30), run).await
    }

    async fn error_within(startup_timeout: Duration, run: &[&str]) -> (String, String) {
        let command = Command { startup_timeout, ..(*command(run, CommandMode::Listen)).clone() };
        let error = commands().open(&Arc::new(command)).await.err().expect("it fails");
        (error.to_string(), error.cause().unwrap_or_default())
    }

    #[tokio::test]
    async fn why_a_command_does_not_lead_anywhere_is_told_with_what_it_said() {
        assert!(error(&["no-such-program-anywhere", "{port}"]).await.1.contains("no such program in PATH"));
        let (what, said) = error(&["sh", "-c", "echo to {port}; echo '\x1b[31mbad\x1b[0m token' >&2; exit 3"]).await;
        assert!(what.contains("exit code 3"), "{what}");
        assert!(said.contains("bad token") && !said.contains('\x1b'), "{said}");
        let soon = Duration::from_millis(300);
        let (what, _) = error_within(soon, &["sh", "-c", "sleep 100; : {port}"]).await;
        assert!(what.contains("does not listen on port 218"), "{what}");
    }

    #[tokio::test]
    async fn a_program_is_found_where_the_configuration_says() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("adit-test-program");
        std::fs::write(&file, "#!/bin/sh\necho \"$PATH\" >&2; exit 3\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let command = command(&["adit-test-program", "{port}"], CommandMode::Listen);
        let missing = commands().open(&command).await.err().expect("it is not there");
        assert!(missing.hint().unwrap().contains("exec_path"));
        let commands = Commands::new(Clusters::new(&[folder.path().to_owned()]), None);
        let said = commands.open(&command).await.err().expect("it ends").cause().unwrap();
        assert!(said.contains(&folder.path().display().to_string()), "it has the folder in its PATH: {said}");
    }

    #[tokio::test]
    async fn a_command_that_waits_for_a_person_is_seen_and_has_time() {
        let script =
            "echo 'Please open https://login.example.com/device?code=ABCD in your browser' >&2; sleep 2; exit 3";
        let (commands, command) = (commands(), command(&["sh", "-c", script], CommandMode::Listen));
        let mut changes = commands.clusters.sign_ins().changes();
        let opening = commands.open(&command);
        let looking = async {
            timeout(Duration::from_secs(10), changes.changed()).await.expect("it is told").unwrap();
            commands.wait(&command).expect("it waits")
        };
        let (opened, report) = tokio::join!(opening, looking);
        assert!(report.since.is_some() && report.said[0].contains("code=ABCD"), "{report:?}");
        // The command's own exit code, not the startup timeout, which is shorter.
        assert!(opened.err().expect("it ends").to_string().contains("exit code 3"));
        let forgotten = async {
            while commands.wait(&command).is_some() || !commands.waits().is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(5), forgotten).await.expect("what is over is not shown");
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_keeps_ending_is_restarted_after_longer_and_longer_pauses() {
        let (commands, command) = (commands(), command(&["true"], CommandMode::Listen));
        let pause = async || {
            let began = Instant::now();
            commands.pause(&command).await;
            // The clock of the timers is coarse.
            began.elapsed().as_millis() / 50 * 50
        };
        for wanted in [0, 250, 500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000] {
            assert_eq!(pause().await, wanted);
        }
        tokio::time::advance(SOON).await;
        assert_eq!(pause().await, 0, "it ran for a while");
    }

    #[tokio::test]
    async fn the_end_of_a_command_is_told_and_another_program_on_its_port_is_not_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let ends = folder.path().join("ends");
        assert!(std::process::Command::new("mkfifo").arg(&ends).status().unwrap().success());
        let script = format!("read line < {}; sleep 0.03; echo bad token >&2; exit 3", ends.display());
        let command = command(&["sh", "-c", &script], CommandMode::Listen);
        // Other tests must not take the other program for theirs.
        let command = Arc::new(Command { ports: "21950-21999".parse().unwrap(), ..(*command).clone() });
        let commands = commands();
        let mut told = String::new();
        // On a busy machine the end may take longer than adit waits for it.
        for _ in 0..5 {
            let program = Program { file: "/bin/sh".into(), path: "/bin:/usr/bin".into(), supervisor: None };
            let port = commands.ports.take(command.ports).unwrap();
            let number = port.number();
            let _other = std::net::TcpListener::bind(("::1", number));
            let process = Process::start(&command, &program, commands.watch(&command), Some(number)).unwrap();
            // Opens once the command reads.
            let end = std::fs::File::options().write(true).open(&ends).unwrap();
            let endpoint = Endpoint {
                pod: "sh".to_owned(),
                container_port: number,
                port: ServicePort { number, name: None, app_protocol: None },
                protocol: "command",
            };
            let (placement, refuses) = (Placement::new("sh"), watch::Sender::new(None));
            let addresses = vec![IpAddr::from([127, 0, 0, 1])];
            let session =
                ListenSession { process, port, addresses, endpoint, placement, gauges: Arc::default(), refuses };
            let (connected, ()) = tokio::join!(session.connect(), async { drop(end) });
            let Err(ConnectError::Over(reason)) = connected else { panic!("it does not listen") };
            told = reason.to_string();
            if told.contains("exit code 3: bad token") {
                return;
            }
        }
        panic!("{told}");
    }

    #[tokio::test]
    async fn a_process_for_each_connection_speaks_over_its_standard_streams() {
        let session = commands().open(&command(&["cat"], CommandMode::Stdio)).await.unwrap();
        let (mut one, _) = session.connect().await.unwrap();
        let (mut other, _) = session.connect().await.unwrap();
        one.write_all(b"one").await.unwrap();
        other.write_all(b"other").await.unwrap();
        one.shutdown().await.unwrap();
        let mut back = String::new();
        one.read_to_string(&mut back).await.unwrap();
        assert_eq!((back.as_str(), session.gauges().streams.load(Ordering::Relaxed)), ("one", 2));
        let failing = commands().open(&command(&["sh", "-c", "echo no >&2; exit 1"], CommandMode::Stdio)).await;
        let (mut stream, _) = failing.unwrap().connect().await.unwrap();
        assert!(stream.read_to_string(&mut back).await.unwrap_err().to_string().contains("no"));
    }
}
