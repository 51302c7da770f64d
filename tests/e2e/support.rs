//! The world in the cluster, and a running adit beside it.

use std::{
    fmt::Write as _,
    fs,
    io::Read,
    iter,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

pub const NAMESPACE: &str = "adit-e2e";

/// Services that no other test uses: each lookup, session and stream of theirs is a first one.
pub const COLD_SERVICES: usize = 50;

static WORLD: LazyLock<()> = LazyLock::new(|| {
    let image = std::env::var("ADIT_E2E_IMAGE").unwrap_or_else(|_| "localhost/servers:1".to_owned());
    let mut manifests = include_str!("world.yaml").replace("@IMAGE@", &image);
    for number in 0..COLD_SERVICES {
        write!(
            manifests,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: cold-{number}, namespace: {NAMESPACE}}}\n\
             spec: {{selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: http}}]}}\n"
        )
        .expect("a String takes everything");
    }
    let folder = TempDir::new().expect("a temporary folder");
    let file = folder.path().join("world.yaml");
    fs::write(&file, manifests).expect("the manifests are written");
    kubectl(&["apply", "-f", file.to_str().expect("a path in UTF-8")]);
    for what in ["deployment/web", "deployment/victim", "deployment/busy", "statefulset/postgres", "statefulset/only"] {
        kubectl(&["-n", NAMESPACE, "rollout", "status", what, "--timeout=120s"]);
    }
    kubectl(&["-n", NAMESPACE, "wait", "--for=condition=Ready", "pod/data", "pod/echo", "pod/ssh", "--timeout=120s"]);
});

/// Puts the world into the cluster, where it is not there.
pub fn world() {
    LazyLock::force(&WORLD);
}

/// Runs kubectl and returns what it prints; a failure is the test's.
pub fn kubectl(arguments: &[&str]) -> String {
    succeed(Command::new("kubectl").args(arguments))
}

/// Returns the names of the ready, not terminating pods of an app.
pub fn ready_pods(app: &str) -> Vec<String> {
    let selector = format!("app={app}");
    let list: Value = serde_json::from_str(&kubectl(&["-n", NAMESPACE, "get", "pods", "-l", &selector, "-o", "json"]))
        .expect("kubectl prints JSON");
    let is_ready = |pod: &&Value| {
        pod["metadata"]["deletionTimestamp"].is_null()
            && pod["status"]["conditions"]
                .as_array()
                .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
    };
    let pods = list["items"].as_array().expect("a list has items");
    pods.iter()
        .filter(is_ready)
        .map(|pod| pod["metadata"]["name"].as_str().expect("a pod has a name").to_owned())
        .collect()
}

/// Waits until an app has this many ready pods.
pub fn await_ready_pods(app: &str, count: usize) {
    eventually(&format!("{count} ready pods of {app}"), Duration::from_secs(60), || ready_pods(app).len() == count);
}

/// Runs a command and returns its standard output; a failure is the test's, with what it printed.
pub fn succeed(command: &mut Command) -> String {
    let output = run(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("output in UTF-8")
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Returns a port of 127.0.0.1 on which nothing listens. It is below the ephemeral range, so that no connection takes it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = iter::repeat_with(|| 16_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 3_000);
    ports.find(is_free).expect("a free port")
}

/// A running adit with a configuration of its own. Stopped on drop; [`Adit::finish`] also checks how it ended.
pub struct Adit {
    child: Child,
    folder: TempDir,
    pub http: u16,
}

impl Adit {
    /// Starts adit with `http.listen` on a free port and the rest of the configuration given, and waits until it listens.
    pub fn start(rest: &str) -> Self {
        LazyLock::force(&WORLD);
        let folder = TempDir::new().expect("a temporary folder");
        let http = free_port();
        let config = folder.path().join("config.yaml");
        fs::write(&config, Self::text(http, rest)).expect("the configuration is written");
        let log = fs::File::create(folder.path().join("log")).expect("a log file");
        let child = Command::new(env!("CARGO_BIN_EXE_adit"))
            .args(["-v", "--config"])
            .arg(&config)
            .env("XDG_RUNTIME_DIR", folder.path())
            .env("XDG_STATE_HOME", folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("adit starts");
        let mut adit = Self { child, folder, http };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !adit.log().contains("services  http://") {
            assert!(adit.child.try_wait().expect("a child to wait for").is_none(), "adit ended:\n{}", adit.log());
            assert!(Instant::now() < deadline, "adit does not listen:\n{}", adit.log());
            thread::sleep(Duration::from_millis(10));
        }
        adit
    }

    fn text(http: u16, rest: &str) -> String {
        format!("apiVersion: adit/v1\n{}\n", rest.replace("@HTTP@", &format!("127.0.0.1:{http}")))
    }

    /// Starts adit with nothing but its listener.
    pub fn plain() -> Self {
        Self::start("http: {listen: \"@HTTP@\"}")
    }

    /// Starts adit with one TCP route; returns it with the local port.
    pub fn with_tcp(service: &str, port: u16) -> (Self, u16) {
        let local = free_port();
        let adit = Self::start(&format!(
            "http: {{listen: \"@HTTP@\"}}\ntcp:\n  k8s:\n    routes:\n      {local}: {{namespace: {NAMESPACE}, service: {service}, port: {port}}}"
        ));
        (adit, local)
    }

    /// Replaces the configuration as an editor does: a new file renamed over the old one.
    pub fn rewrite(&self, rest: &str) {
        let new = self.folder.path().join("config.yaml.new");
        fs::write(&new, Self::text(self.http, rest)).expect("the new configuration is written");
        fs::rename(new, self.config()).expect("the configuration is replaced");
    }

    pub fn config(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.http))
    }

    /// Returns the host of a Service of the suite's namespace, as a short dynamic name.
    pub fn host(&self, service: &str) -> String {
        format!("{service}.{NAMESPACE}.localhost")
    }

    /// Returns what a GET of a Service answers, through a curl that resolves every name to adit.
    pub fn curl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("curl");
        command
            .args(["-sS", "--noproxy", "*", "--max-time", "60", "--connect-to"])
            .arg(format!("::127.0.0.1:{}", self.http))
            .args(arguments);
        command
    }

    pub fn get(&self, url: &str) -> String {
        let output = run(&mut self.curl(&["-f", url]));
        assert!(output.status.success(), "GET {url}: {}\n{}", String::from_utf8_lossy(&output.stderr), self.log());
        String::from_utf8(output.stdout).expect("an answer in UTF-8")
    }

    /// Returns `adit status -o json`.
    pub fn status(&self) -> Value {
        let output = succeed(
            Command::new(env!("CARGO_BIN_EXE_adit"))
                .args(["status", "-o", "json"])
                .env("XDG_RUNTIME_DIR", self.folder.path())
                .env("XDG_STATE_HOME", self.folder.path()),
        );
        serde_json::from_str(&output).expect("status prints JSON")
    }

    /// Returns the tunnels of `adit status`.
    pub fn tunnels(&self) -> Vec<Value> {
        self.status()["tunnels"].as_array().expect("a list of tunnels").clone()
    }

    /// Returns what adit has logged so far.
    pub fn log(&self) -> String {
        let mut text = String::new();
        fs::File::open(self.folder.path().join("log"))
            .and_then(|mut file| file.read_to_string(&mut text))
            .expect("a log");
        text
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        succeed(Command::new("kill").arg(self.child.id().to_string()));
    }

    /// Sends SIGTERM, waits for the end and returns how it ended, with the log.
    pub fn finish(mut self) -> (ExitStatus, String) {
        self.terminate();
        let status = self.child.wait().expect("adit ends");
        (status, self.log())
    }
}

impl Drop for Adit {
    fn drop(&mut self) {
        // A finished child is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), self.log().as_bytes());
        }
    }
}
