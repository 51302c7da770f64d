//! The programs to compare, each in a process of its own.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener as StdListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    link::{Link, Shared},
    load::{Load, Result},
};
use tempfile::TempDir;

pub const NAMESPACE: &str = "adit-bench";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Direct,
    KubectlTunnel,
    KubectlRaw,
    AditTcp,
    AditHttp,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Direct, Self::KubectlTunnel, Self::KubectlRaw, Self::AditTcp, Self::AditHttp];

    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::KubectlTunnel => "kubectl (default)",
            Self::KubectlRaw => "kubectl (spdy)",
            Self::AditTcp => "adit (tcp)",
            Self::AditHttp => "adit (http)",
        }
    }
}

/// The path to the cluster: a kubeconfig, with a link in between.
pub struct Way {
    kubeconfig: PathBuf,
    link: Link,
    shared: Arc<Shared>,
    _folder: TempDir,
}

impl Way {
    pub fn make(link: Link) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let shared = Arc::new(Shared::default());
        let text = succeed(Command::new("kubectl").args(["config", "view", "--raw", "--minify", "--flatten"]))?;
        let server =
            text.lines().find_map(|line| line.trim().strip_prefix("server: ")).ok_or("a kubeconfig has a server")?;
        let mut changed = text.clone();
        if link.is_there() {
            let target: SocketAddr = server.trim_start_matches("https://").parse()?;
            changed = text.replace(server, &format!("https://{}", link.to(target, &shared)?));
        }
        let kubeconfig = folder.path().join("kubeconfig");
        fs::write(&kubeconfig, changed)?;
        Ok(Self { kubeconfig, link, shared, _folder: folder })
    }

    /// Returns an address of the pod over the same distance as the API server.
    fn as_far(&self, pod: SocketAddr) -> Result<SocketAddr> {
        Ok(if self.link.is_there() { self.link.to(pod, &self.shared)? } else { pod })
    }
}

/// A peer that is ready to be measured. Dropping it ends its process.
pub struct Peer {
    child: Option<Child>,
    _folder: TempDir,
    pub http: SocketAddr,
    pub host: String,
    /// Port that accepts, and never reads.
    pub stalled: Option<SocketAddr>,
    /// Port that echoes.
    pub echo: SocketAddr,
    started: Instant,
    /// Time from the first request for an unused Service to its first byte; for kubectl, from its start.
    pub cold: Option<Duration>,
    /// MiB.
    pub memory_at_start: Option<f64>,
}

impl Peer {
    /// Starts it, without a request.
    pub fn launch(kind: Kind, way: &Way) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (http, stalled, echo) = (free_port()?, free_port()?, free_port()?);
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let started = Instant::now();
        let mut direct = None;
        let (child, http, stalled) = match kind {
            Kind::Direct => {
                let path = "jsonpath={.items[0].status.podIP}";
                let ip = succeed(
                    Command::new("kubectl").args(["-n", NAMESPACE, "get", "pods", "-l", "app=web", "-o", path]),
                )?;
                let ip = ip.trim().parse()?;
                direct = Some(way.as_far(SocketAddr::new(ip, 7000))?);
                (None, way.as_far(SocketAddr::new(ip, 80))?, Some(SocketAddr::new(ip, 9000)))
            }
            Kind::KubectlTunnel | Kind::KubectlRaw => {
                let mut command = Command::new("kubectl");
                command.args(["-n", NAMESPACE, "port-forward", "service/web"]);
                command.args([format!("{http}:80"), format!("{stalled}:9000"), format!("{echo}:7000")]);
                command
                    .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", if kind == Kind::KubectlTunnel { "true" } else { "false" });
                (Some(spawn(&mut command, way)?), local(http), Some(local(stalled)))
            }
            Kind::AditTcp | Kind::AditHttp => {
                let config = format!(
                    "apiVersion: adit/v1\nhttp: {{listen: '127.0.0.1:{}'}}\ntcp:\n  k8s:\n    routes:\n      {}: {{namespace: {NAMESPACE}, service: web, port: 80}}\n      \
                     {stalled}: {{namespace: {NAMESPACE}, service: web, port: 9000}}\n      {echo}: {{namespace: {NAMESPACE}, service: web, port: 7000}}\n",
                    if kind == Kind::AditHttp { http } else { free_port()? },
                    if kind == Kind::AditTcp { http } else { free_port()? },
                );
                let file = folder.path().join("config.yaml");
                fs::write(&file, config)?;
                let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
                command.arg("--config").arg(&file).env("XDG_RUNTIME_DIR", folder.path());
                (Some(spawn(&mut command, way)?), local(http), Some(local(stalled)))
            }
        };
        let host = format!("web.{NAMESPACE}.localhost");
        let echo = direct.unwrap_or(local(echo));
        Ok(Self { child, _folder: folder, http, host, stalled, echo, started, cold: None, memory_at_start: None })
    }

    /// Starts it, and makes a first request.
    pub async fn start(kind: Kind, way: &Way) -> Result<Self> {
        let mut peer = Self::launch(kind, way)?;
        if matches!(kind, Kind::AditTcp | Kind::AditHttp) {
            peer.memory_at_start = peer.memory();
        }
        let first = peer.load().first_byte().await?;
        peer.cold = match kind {
            Kind::Direct => None,
            Kind::AditTcp | Kind::AditHttp => Some(first),
            Kind::KubectlTunnel | Kind::KubectlRaw => Some(peer.age()),
        };
        if peer.memory_at_start.is_none() {
            peer.memory_at_start = peer.memory();
        }
        Ok(peer)
    }

    /// Returns an HTTP client for it.
    pub fn load(&self) -> Load {
        Load { address: self.http, host: self.host.clone() }
    }

    /// Returns the time since its start.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns its resident memory in MiB.
    pub fn memory(&self) -> Option<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.as_ref()?.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1024.0)
    }

    /// Returns its CPU time.
    pub fn cpu(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.as_ref()?.id())).ok()?;
        // Fields 14 and 15, in hundredths of a second. The name before them may contain spaces.
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at - 3)?.parse::<u64>().ok();
        Some(Duration::from_millis(10 * (ticks(14)? + ticks(15)?)))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // The process may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts a peer, and waits for its first line, which says where it listens.
fn spawn(command: &mut Command, way: &Way) -> Result<Child> {
    let mut child = command
        .env("KUBECONFIG", &way.kubeconfig)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("a pipe")?).lines();
    if lines.next().is_none() {
        return Err(format!("{command:?} ended at once").into());
    }
    // Keep reading: the peer prints more, and a closed pipe would end it.
    std::thread::spawn(move || lines.for_each(drop));
    Ok(child)
}

fn free_port() -> Result<u16> {
    Ok(StdListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Runs a command, and returns its output.
pub fn succeed(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
