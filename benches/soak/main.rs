//! adit under mixed load for a while, in front of the demo cluster. What remains at the end that was not there at the beginning?
//!
//! ```text
//! cargo bench --bench soak -- 10m
//! ```
//!
//! Prints open files, memory, streams and tunnels of the process: before, at intervals, and after.

#![allow(clippy::print_stdout, reason = "this is what it is for")]

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use adit::demo::Demo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const PATIENCE: Duration = Duration::from_secs(30);

/// Idle timeout of tunnels; what remains after it is a leak.
const IDLE: &str = "5s";

struct Soak {
    child: Child,
    http: SocketAddr,
    echo: SocketAddr,
    folder: tempfile::TempDir,
}

impl Drop for Soak {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Soak {
    fn start(demo: &Demo) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = || std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let (http, echo) = (port()?, port()?);
        let config = folder.path().join("config.yaml");
        fs::write(
            &config,
            format!(
                "http: {{listen: '{http}', idle_timeout: {IDLE}}}\ntcp: {{idle_timeout: {IDLE}, k8s: {{routes: {{{}: {{namespace: shop, service: tools, port: 7000}}}}}}}}\n",
                echo.port()
            ),
        )?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_adit"))
            .arg("--config")
            .arg(&config)
            .env("KUBECONFIG", demo.kubeconfig())
            .env("XDG_RUNTIME_DIR", folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("a pipe")?).lines();
        lines.next().ok_or("it ended at once")??;
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, http, echo, folder })
    }

    /// Prints a line of numbers, and returns the open files and the memory in KiB.
    fn look(&self, when: &str, done: u64, failed: u64) -> Result<(usize, u64)> {
        let id = self.child.id();
        let descriptors = fs::read_dir(format!("/proc/{id}/fd"))?.count();
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("VmRSS")?;
        let memory: u64 = memory.trim().trim_end_matches(" kB").parse()?;
        let output = Command::new(env!("CARGO_BIN_EXE_adit"))
            .args(["status", "-o", "json"])
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .output()?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let tunnels = status["tunnels"].as_array().ok_or("a list")?;
        let sum = |key: &str| tunnels.iter().filter_map(|tunnel| tunnel[key].as_u64()).sum::<u64>();
        println!(
            "{when:>10}  {descriptors:>5} descriptors  {:>6.1} MiB  {:>3} tunnels  {:>3} connections  {:>4} streams  {done:>9} done  {failed:>4} failed",
            memory as f64 / 1024.0,
            tunnels.len(),
            sum("connections"),
            sum("streams"),
        );
        Ok((descriptors, memory))
    }
}

/// Performs an action of a client; `number` chooses it.
async fn client(number: u64, http: SocketAddr, echo: SocketAddr) -> Result<()> {
    let host = ["web.shop.localhost", "tools.shop.localhost", "80.web.shop.localhost"][(number / 8) as usize % 3];
    match number % 8 {
        // One or several requests on a connection.
        0..=3 => {
            let mut stream = TcpStream::connect(http).await?;
            for _ in 0..1 + number % 4 {
                stream.write_all(format!("GET /whoami HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
                let mut answer = [0; 1024];
                if stream.read(&mut answer).await? == 0 || &answer[9..12] != b"200" {
                    return Err("no answer".into());
                }
            }
        }
        // A client that leaves during a download.
        4 => {
            let mut stream = TcpStream::connect(http).await?;
            stream
                .write_all(format!("GET /download?bytes=5000000 HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
                .await?;
            stream.read_exact(&mut [0; 20_000]).await?;
        }
        // A client that resets.
        5 => {
            let mut stream = TcpStream::connect(echo).await?;
            stream.write_all(&[7; 10_000]).await?;
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        // A client that sends, and reads everything back.
        6 => {
            let mut stream = TcpStream::connect(echo).await?;
            let (mut read, mut write) = stream.split();
            let mut back = vec![0; 200_000];
            let (written, read) = tokio::join!(write.write_all(&[7; 200_000]), read.read_exact(&mut back));
            written?;
            read?;
        }
        // A name without a route or a Service.
        _ => {
            let mut stream = TcpStream::connect(http).await?;
            stream
                .write_all(
                    format!("GET / HTTP/1.1\r\nHost: n{}.localhost\r\nConnection: close\r\n\r\n", number % 97)
                        .as_bytes(),
                )
                .await?;
            stream.read_to_end(&mut Vec::new()).await?;
        }
    }
    Ok(())
}

fn duration() -> Result<Duration> {
    let text = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_else(|| "1m".to_owned());
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("usage: soak 30s, 10m or 8h".into()),
    };
    Ok(Duration::from_secs(number.parse::<u64>()? * seconds))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let time = duration()?;
    let demo = Arc::new(Demo::start().await?);
    let soak = Soak::start(&demo)?;
    let (done, failed, stop) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    // Memory that the first use of everything allocates is not a leak.
    for number in 0..64 {
        client(number, soak.http, soak.echo).await?;
    }
    sleep(Duration::from_secs(12)).await;
    let before = soak.look("before", 0, 0)?;
    let mut clients = Vec::new();
    for lane in 0..8 {
        let (done, failed, stop, http, echo) = (done.clone(), failed.clone(), stop.clone(), soak.http, soak.echo);
        clients.push(tokio::spawn(async move {
            let mut number = lane;
            while !stop.load(Ordering::SeqCst) {
                if !timeout(PATIENCE, client(number, http, echo)).await.is_ok_and(|end| end.is_ok()) {
                    failed.fetch_add(1, Ordering::SeqCst);
                }
                done.fetch_add(1, Ordering::SeqCst);
                number += 9;
            }
        }));
    }
    let (started, mut round) = (Instant::now(), 0);
    while started.elapsed() < time {
        sleep((time / 10).min(time.saturating_sub(started.elapsed())).max(Duration::from_millis(100))).await;
        round += 1;
        // Restarted pods, cut connections and ended watches each leave something to clean up.
        match round % 3 {
            0 => demo.faults().drop_upgraded_connections(),
            1 => demo.faults().end_watches(),
            _ => drop(demo.world().restart_container("shop", "tools-0")),
        }
        soak.look(
            &format!("{} s", started.elapsed().as_secs()),
            done.load(Ordering::SeqCst),
            failed.load(Ordering::SeqCst),
        )?;
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await?;
    }
    sleep(Duration::from_secs(15)).await;
    let after = soak.look("after", done.load(Ordering::SeqCst), failed.load(Ordering::SeqCst))?;
    println!("left: {:+} descriptors, {:+} KiB", after.0 as i64 - before.0 as i64, after.1 as i64 - before.1 as i64);
    Ok(())
}
