//! adit's relay beside bore, in one run: `just bench-relay`. bore has to be in PATH (`cargo install bore-cli`).
//!
//! Each tool carries visitors to the same local echo server. adit runs with TLS, bore has none.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is what it is for")]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const SECRET: &str = "a-secret-for-the-benchmark";
const VISITORS: usize = 16;
const FOR: Duration = Duration::from_secs(4);
const IDLE: usize = 1000;
const TRANSFER: u64 = 256 << 20;

/// A relay and its client.
struct Pair {
    name: &'static str,
    server: Child,
    client: Child,
    public: SocketAddr,
}

impl Drop for Pair {
    fn drop(&mut self) {
        for process in [&mut self.client, &mut self.server] {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Whoever writes its log to a pipe that nobody reads stops.
fn spawn(command: &mut Command) -> Child {
    let spawned = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn();
    spawned.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn adit(local: u16) -> Pair {
    let program = env!("CARGO_BIN_EXE_adit");
    let mut server = Command::new(program);
    server.args([
        "server",
        "--listen",
        "127.0.0.1:27835",
        "--max-rate",
        "1000000",
        "--max-streams",
        "5000",
        "--max-pending",
        "5000",
    ]);
    let server = spawn(server.stdout(Stdio::null()).args(["--max-handshakes", "5000"]).env("ADIT_SECRET", SECRET));
    thread::sleep(Duration::from_millis(500));
    let mut client = Command::new(program);
    client.args(["local", &local.to_string(), "--to", "127.0.0.1:27835"]).env("ADIT_SECRET", SECRET);
    client.stdout(Stdio::piped());
    let mut client = spawn(&mut client);
    let mut line = String::new();
    BufReader::new(client.stdout.take().expect("it is piped")).read_line(&mut line).expect("a line");
    let public =
        line.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no address: {line}"));
    Pair { name: "adit (TLS)", server, client, public }
}

fn bore(local: u16) -> Pair {
    let mut server = Command::new("bore");
    server.stdout(Stdio::null());
    let server = spawn(server.args([
        "server",
        "--secret",
        SECRET,
        "--min-port",
        "28000",
        "--max-port",
        "28000",
        "--bind-addr",
        "127.0.0.1",
    ]));
    thread::sleep(Duration::from_millis(500));
    let mut client = Command::new("bore");
    client.stdout(Stdio::null());
    client.args(["local", &local.to_string(), "--to", "127.0.0.1", "--port", "28000", "--secret", SECRET]);
    let client = spawn(client.stdout(Stdio::null()));
    thread::sleep(Duration::from_millis(500));
    Pair { name: "bore", server, client, public: SocketAddr::from(([127, 0, 0, 1], 28_000)) }
}

/// A server that says how it is spoken to with the first byte: `e` echoes, `d` sends for ever.
fn service() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::Builder::new().stack_size(128 << 10).spawn(move || serve(stream)).expect("a thread");
        }
    });
    port
}

fn serve(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    let mut first = [0];
    if stream.read_exact(&mut first).is_err() {
        return;
    }
    if first[0] == b'd' {
        while stream.write_all(&buffer).is_ok() {}
        return;
    }
    if stream.write_all(&first).is_err() {
        return;
    }
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

fn connect(public: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(public).expect("a visitor connects");
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    stream
}

/// New connections, each with a byte there and back, per second.
fn connections(public: SocketAddr) -> f64 {
    let count = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let visitors: Vec<_> = (0..VISITORS)
        .map(|_| {
            let count = count.clone();
            thread::spawn(move || {
                while started.elapsed() < FOR {
                    let mut stream = connect(public);
                    let mut byte = [b'e'];
                    if stream.write_all(&byte).is_ok() && stream.read_exact(&mut byte).is_ok() {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    visitors.into_iter().for_each(|visitor| drop(visitor.join()));
    count.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
}

/// MB/s of one download.
fn download(public: SocketAddr) -> f64 {
    let mut stream = connect(public);
    stream.write_all(b"d").expect("it is open");
    let (mut buffer, mut count, started) = (vec![0; 256 << 10], 0u64, Instant::now());
    while count < TRANSFER {
        count += stream.read(&mut buffer).expect("bytes") as u64;
    }
    count as f64 / 1e6 / started.elapsed().as_secs_f64()
}

/// MiB of both ends with idle streams.
fn memory(pair: &Pair) -> f64 {
    let idle: Vec<_> = (0..IDLE)
        .map(|_| {
            let mut stream = connect(pair.public);
            let mut byte = [b'e'];
            stream.write_all(&byte).expect("it is open");
            stream.read_exact(&mut byte).expect("an echo");
            stream
        })
        .collect();
    thread::sleep(Duration::from_secs(1));
    let of = |process: &Child| {
        let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
    };
    let sum = of(&pair.server) + of(&pair.client);
    drop(idle);
    sum
}

fn main() {
    if env::args().any(|argument| argument == "--test") {
        return;
    }
    let local = service();
    let mut rows: Vec<(&str, [f64; 3])> = Vec::new();
    for round in 0..3 {
        let starts: [fn(u16) -> Pair; 2] = [bore, adit];
        for start in starts {
            let pair = start(local);
            eprintln!("round {}: {}", round + 1, pair.name);
            // The first ones wake the pair up.
            drop(connect(pair.public).write_all(b"e"));
            let measured = [connections(pair.public), download(pair.public), memory(&pair)];
            rows.push((pair.name, measured));
        }
    }
    let median = |name: &str, column: usize| {
        let mut all: Vec<f64> = rows.iter().filter(|(of, _)| *of == name).map(|(_, row)| row[column]).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    println!("\n{:34}{:>12}{:>14}", "", "bore", "adit (TLS)");
    let titles = ["connections/s, 16 visitors", "download, MB/s", "memory, 1000 idle streams, MiB"];
    for (column, title) in titles.iter().enumerate() {
        let (theirs, ours) = (median("bore", column), median("adit (TLS)", column));
        println!("{title:34}{theirs:>12.1}{ours:>14.1}   {:.2}x", ours / theirs);
    }
}
