//! The programs that are compared, each in a process of its own.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener as StdListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::sleep_until,
};

use super::load::{Load, Result};

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

/// The way to the API server: a kubeconfig, and what makes the way longer.
pub struct Way {
    kubeconfig: PathBuf,
    _folder: TempDir,
}

impl Way {
    pub async fn make(round_trip: Duration) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let text = succeed(Command::new("kubectl").args(["config", "view", "--raw", "--minify", "--flatten"]))?;
        let server =
            text.lines().find_map(|line| line.trim().strip_prefix("server: ")).ok_or("a kubeconfig has a server")?;
        let mut changed = text.clone();
        if round_trip > Duration::ZERO {
            let target: SocketAddr = server.trim_start_matches("https://").parse()?;
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            changed = text.replace(server, &format!("https://{}", listener.local_addr()?));
            tokio::spawn(async move {
                while let Ok((near, _)) = listener.accept().await {
                    tokio::spawn(lengthen(near, target, round_trip / 2));
                }
            });
        }
        let kubeconfig = folder.path().join("kubeconfig");
        fs::write(&kubeconfig, changed)?;
        Ok(Self { kubeconfig, _folder: folder })
    }
}

/// Carries a connection, with a delay in each direction.
async fn lengthen(near: TcpStream, target: SocketAddr, delay: Duration) -> std::io::Result<()> {
    let far = TcpStream::connect(target).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let direction = |mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf| async move {
        let (queue_tx, mut queue) = mpsc::channel::<(tokio::time::Instant, Vec<u8>)>(1024);
        let reading = async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count) = from.read(&mut buffer).await {
                let due = tokio::time::Instant::now() + delay;
                if count == 0 || queue_tx.send((due, buffer[..count].to_vec())).await.is_err() {
                    return;
                }
            }
        };
        let writing = async move {
            while let Some((due, bytes)) = queue.recv().await {
                sleep_until(due).await;
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(reading, writing);
    };
    tokio::join!(direction(near_read, far_write), direction(far_read, near_write));
    Ok(())
}

/// A peer that is ready to be measured. Dropping it ends its process.
pub struct Peer {
    child: Option<Child>,
    _folder: TempDir,
    pub http: SocketAddr,
    pub host: String,
    /// A port that accepts and never reads.
    pub stalled: Option<SocketAddr>,
    /// From asking for a Service that was never used to its first byte; for kubectl that begins with its start.
    pub cold: Option<Duration>,
    /// In MiB.
    pub memory_at_start: Option<f64>,
}

impl Peer {
    pub async fn start(kind: Kind, way: &Way) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (http, stalled) = (free_port()?, free_port()?);
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let started = Instant::now();
        let (child, http, stalled) = match kind {
            Kind::Direct => {
                let path = "jsonpath={.items[0].status.podIP}";
                let ip = succeed(
                    Command::new("kubectl").args(["-n", NAMESPACE, "get", "pods", "-l", "app=web", "-o", path]),
                )?;
                let ip = ip.trim().parse()?;
                (None, SocketAddr::new(ip, 80), Some(SocketAddr::new(ip, 9000)))
            }
            Kind::KubectlTunnel | Kind::KubectlRaw => {
                let mut command = Command::new("kubectl");
                command.args(["-n", NAMESPACE, "port-forward", "service/web"]);
                command.args([format!("{http}:80"), format!("{stalled}:9000")]);
                command
                    .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", if kind == Kind::KubectlTunnel { "true" } else { "false" });
                (Some(spawn(&mut command, way)?), local(http), Some(local(stalled)))
            }
            Kind::AditTcp | Kind::AditHttp => {
                let config = format!(
                    "apiVersion: adit/v1\nhttp: {{listen: '127.0.0.1:{}'}}\ntcp:\n  k8s:\n    routes:\n      {}: {{namespace: {NAMESPACE}, service: web, port: 80}}\n      \
                     {stalled}: {{namespace: {NAMESPACE}, service: web, port: 9000}}\n",
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
        let mut peer = Self { child, _folder: folder, http, host, stalled, cold: None, memory_at_start: None };
        if matches!(kind, Kind::AditTcp | Kind::AditHttp) {
            peer.memory_at_start = peer.memory();
        }
        let load = Load { address: peer.http, host: peer.host.clone() };
        let first = load.first_byte().await?;
        peer.cold = match kind {
            Kind::Direct => None,
            Kind::AditTcp | Kind::AditHttp => Some(first),
            Kind::KubectlTunnel | Kind::KubectlRaw => Some(started.elapsed()),
        };
        if peer.memory_at_start.is_none() {
            peer.memory_at_start = peer.memory();
        }
        Ok(peer)
    }

    /// Resident memory in MiB.
    pub fn memory(&self) -> Option<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.as_ref()?.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1024.0)
    }

    /// The time that it has had of the processors.
    pub fn cpu(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.as_ref()?.id())).ok()?;
        // Fields 14 and 15, in hundredths of a second; the name in front may have spaces.
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at - 3)?.parse::<u64>().ok();
        Some(Duration::from_millis(10 * (ticks(14)? + ticks(15)?)))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It is ours, and may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts a peer and waits until it has said where it listens.
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
    // It says more, and would end by a closed pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Ok(child)
}

fn free_port() -> Result<u16> {
    Ok(StdListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Runs a command and returns what it prints.
pub fn succeed(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
