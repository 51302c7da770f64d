//! The tools to compare: how to start each, and its public address.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

const SECRET: &str = "a-secret-for-the-benchmark";

/// A relay and its client.
pub struct Pair {
    pub server: Child,
    pub client: Child,
    pub public: SocketAddr,
    /// Folder of its configuration.
    _folder: Option<TempDir>,
}

impl Drop for Pair {
    fn drop(&mut self) {
        for process in [&mut self.client, &mut self.server] {
            // The process may have ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A tool, with its encryption between relay and client in its name.
pub struct Tool {
    pub name: &'static str,
    program: &'static str,
    pub start: fn(u16) -> Pair,
}

pub const ALL: [Tool; 5] = [
    Tool { name: "bore, plain", program: "bore", start: bore },
    Tool { name: "rathole, plain", program: "rathole", start: |local| rathole(local, Transport::Plain) },
    Tool { name: "rathole, noise", program: "rathole", start: |local| rathole(local, Transport::Noise) },
    Tool { name: "frp, TLS", program: "frps", start: frp },
    Tool { name: "adit, TLS", program: "", start: adit },
];

impl Tool {
    /// Returns whether its program is in PATH.
    pub fn is_there(&self) -> bool {
        let path = env::var_os("PATH").unwrap_or_default();
        self.program.is_empty() || env::split_paths(&path).any(|folder| folder.join(self.program).is_file())
    }
}

/// Starts a process without pipes: one that writes its log to an unread pipe would block.
fn spawn(command: &mut Command) -> Child {
    let spawned = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn();
    spawned.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Waits until the public port accepts connections.
fn ready(server: Child, client: Child, port: u16, folder: Option<TempDir>) -> Pair {
    let public = SocketAddr::from(([127, 0, 0, 1], port));
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(public).is_err() {
        assert!(Instant::now() < deadline, "nothing listens on {public}");
        thread::sleep(Duration::from_millis(50));
    }
    Pair { server, client, public, _folder: folder }
}

fn write(folder: &TempDir, name: &str, text: String) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).expect("a file");
    path
}

fn adit(local: u16) -> Pair {
    let program = env!("CARGO_BIN_EXE_adit");
    let mut server = Command::new(program);
    server.args(["server", "--listen", "127.0.0.1:27835", "--max-rate", "1000000", "--max-streams", "5000"]);
    server.args(["--max-pending", "5000", "--max-handshakes", "5000"]);
    let server = spawn(server.stdout(Stdio::null()).env("ADIT_SECRET", SECRET));
    thread::sleep(Duration::from_millis(500));
    let mut client = Command::new(program);
    client.args(["local", &local.to_string(), "--to", "127.0.0.1:27835"]).env("ADIT_SECRET", SECRET);
    let mut client = spawn(client.stdout(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(client.stdout.take().expect("it is piped")).read_line(&mut line).expect("a line");
    let address = line.split(' ').next().and_then(|word| word.parse::<SocketAddr>().ok());
    ready(server, client, address.unwrap_or_else(|| panic!("no address: {line}")).port(), None)
}

fn bore(local: u16) -> Pair {
    let mut server = Command::new("bore");
    server.args(["server", "--secret", SECRET, "--min-port", "28000", "--max-port", "28000"]);
    let server = spawn(server.args(["--bind-addr", "127.0.0.1"]).stdout(Stdio::null()));
    thread::sleep(Duration::from_millis(500));
    let mut client = Command::new("bore");
    client.args(["local", &local.to_string(), "--to", "127.0.0.1", "--port", "28000", "--secret", SECRET]);
    let client = spawn(client.stdout(Stdio::null()));
    ready(server, client, 28_000, None)
}

#[derive(Clone, Copy)]
enum Transport {
    Plain,
    Noise,
}

fn rathole(local: u16, transport: Transport) -> Pair {
    let folder = tempfile::tempdir().expect("a folder");
    let kind = |side: &str| match transport {
        Transport::Plain => String::new(),
        // Noise's default pattern: the client knows the server's key.
        Transport::Noise => {
            let (private, public) = rathole_keys();
            let key = if side == "server" { ("local_private_key", private) } else { ("remote_public_key", public) };
            format!("[{side}.transport]\ntype = \"noise\"\n[{side}.transport.noise]\n{} = \"{}\"\n", key.0, key.1)
        }
    };
    let server = write(
        &folder,
        "server.toml",
        format!(
            "[server]\nbind_addr = \"127.0.0.1:28002\"\ndefault_token = \"{SECRET}\"\n[server.services.echo]\n\
             bind_addr = \"127.0.0.1:28003\"\n{}",
            kind("server")
        ),
    );
    let client = write(
        &folder,
        "client.toml",
        format!(
            "[client]\nremote_addr = \"127.0.0.1:28002\"\ndefault_token = \"{SECRET}\"\n[client.services.echo]\n\
             local_addr = \"127.0.0.1:{local}\"\n{}",
            kind("client")
        ),
    );
    let run = |file| spawn(Command::new("rathole").arg(file).env("RUST_LOG", "error").stdout(Stdio::null()));
    let server = run(server);
    thread::sleep(Duration::from_millis(500));
    let client = run(client);
    ready(server, client, 28_003, Some(folder))
}

/// Returns a private key and its public key, as `rathole --genkey` prints them.
fn rathole_keys() -> (String, String) {
    use std::sync::OnceLock;
    static KEYS: OnceLock<(String, String)> = OnceLock::new();
    let keys = KEYS.get_or_init(|| {
        let output = Command::new("rathole").arg("--genkey").output().expect("rathole --genkey");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<&str> = printed.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let after = |title: &str| {
            let at = lines.iter().position(|line| line.to_ascii_lowercase().starts_with(title));
            at.and_then(|at| lines.get(at + 1)).unwrap_or_else(|| panic!("no keys: {printed}")).to_string()
        };
        (after("private"), after("public"))
    });
    keys.clone()
}

fn frp(local: u16) -> Pair {
    let folder = tempfile::tempdir().expect("a folder");
    let common = format!("auth.token = \"{SECRET}\"\nlog.level = \"error\"\n");
    let server = write(&folder, "frps.toml", format!("bindAddr = \"127.0.0.1\"\nbindPort = 28004\n{common}"));
    let client = write(
        &folder,
        "frpc.toml",
        format!(
            "serverAddr = \"127.0.0.1\"\nserverPort = 28004\n{common}[[proxies]]\nname = \"echo\"\ntype = \"tcp\"\n\
             localIP = \"127.0.0.1\"\nlocalPort = {local}\nremotePort = 28005\n"
        ),
    );
    let server = spawn(Command::new("frps").arg("-c").arg(server).stdout(Stdio::null()));
    thread::sleep(Duration::from_millis(500));
    let client = spawn(Command::new("frpc").arg("-c").arg(client).stdout(Stdio::null()));
    ready(server, client, 28_005, Some(folder))
}
