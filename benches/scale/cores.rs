//! The proxy and the relay by the number of cores.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use adit::demo::Demo;
use futures::future::try_join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{
    Error, Result,
    process::{Process, free_port},
};

const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: &str = "a-secret-for-the-benchmark";
const CONTROL: &str = "127.0.0.1:27836";

struct Row {
    name: &'static str,
    rate: f64,
    p99: Duration,
    /// Share of all cores that it may use.
    busy: f64,
    /// CPU time of one core per step.
    cpu: Duration,
}

pub async fn measure(time: Duration) -> Result<()> {
    let most = std::thread::available_parallelism()?.get();
    println!("{:40}{:>8}{:>12}{:>12}{:>8}{:>12}", "", "threads", "per second", "p99, ms", "busy", "CPU, us");
    let mut tables: Vec<Vec<Row>> = Vec::new();
    let counts: Vec<usize> = [1, 2, 4].into_iter().filter(|count| *count <= most).collect();
    for workers in &counts {
        let mut rows = proxy(*workers, time).await?;
        rows.extend(relay(*workers, time).await?);
        tables.push(rows);
    }
    for at in 0..tables[0].len() {
        for (workers, rows) in counts.iter().zip(&tables) {
            let row = &rows[at];
            println!(
                "{:40}{workers:>8}{:>12.0}{:>12.2}{:>7.0} %{:>12.1}   {:.2}x",
                if *workers == 1 { row.name } else { "" },
                row.rate,
                row.p99.as_secs_f64() * 1e3,
                row.busy * 100.0,
                row.cpu.as_secs_f64() * 1e6,
                row.rate / tables[0][at].rate
            );
        }
    }
    Ok(())
}

async fn proxy(workers: usize, time: Duration) -> Result<Vec<Row>> {
    let demo = Demo::start().await?;
    let folder = tempfile::tempdir()?;
    let (http, echo) = (free_port()?, free_port()?);
    let config = folder.path().join("config.yaml");
    let routes = format!("{}: {{namespace: shop, service: tools, port: 7000}}", echo.port());
    fs::write(&config, format!("http: {{listen: '{http}'}}\ntcp: {{k8s: {{routes: {{{routes}}}}}}}\n"))?;
    let (config, kubeconfig) = (config.display().to_string(), demo.kubeconfig().display().to_string());
    let runtime = folder.path().display().to_string();
    let count = workers.to_string();
    let process = Process::start(
        Some(workers),
        &["--config", &config, "--workers", &count],
        &[("KUBECONFIG", &kubeconfig), ("XDG_RUNTIME_DIR", &runtime)],
    )?;
    let request = b"GET /whoami HTTP/1.1\r\nHost: web.shop.localhost\r\n\r\n";
    // Warm up.
    run(http, 1, Duration::from_millis(200), request).await?;
    let mut rows = Vec::new();
    for (name, address, clients, bytes) in [
        ("proxy: requests, 1 client", http, 1, request.as_slice()),
        ("proxy: requests, 64 clients", http, 64, request),
        ("proxy: steps by TCP, 64 clients", echo, 64, &[7; 64]),
    ] {
        rows.push(measured(name, &process, workers, run(address, clients, time, bytes)).await?);
    }
    Ok(rows)
}

async fn relay(workers: usize, time: Duration) -> Result<Vec<Row>> {
    let local = echo_server().await?;
    let count = workers.to_string();
    let server = Process::start(
        Some(workers),
        &["server", "--listen", CONTROL, "--max-rate", "1000000", "--max-handshakes", "5000", "--workers", &count],
        &[("ADIT_SECRET", SECRET)],
    )?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let client =
        Process::start(None, &["local", &local.port().to_string(), "--to", CONTROL], &[("ADIT_SECRET", SECRET)])?;
    let public = client.first.split(' ').next().unwrap_or_default().parse()?;
    run(public, 1, Duration::from_millis(200), &[7; 64]).await?;
    let mut rows = Vec::new();
    for (name, clients, bytes) in [
        ("relay: steps, 1 visitor", 1, [7; 64].as_slice()),
        ("relay: steps, 64 visitors", 64, &[7; 64]),
        ("relay: steps of 64 KiB, 16 visitors", 16, &[7; 64 << 10]),
    ] {
        rows.push(measured(name, &server, workers, run(public, clients, time, bytes)).await?);
    }
    drop(client);
    Ok(rows)
}

async fn measured(
    name: &'static str,
    process: &Process,
    workers: usize,
    run: impl Future<Output = Result<Vec<Duration>>>,
) -> Result<Row> {
    let (started, before) = (Instant::now(), process.cpu()?);
    let mut times = run.await?;
    let (within, cpu) = (started.elapsed(), process.cpu()? - before);
    times.sort_unstable();
    Ok(Row {
        name,
        rate: times.len() as f64 / within.as_secs_f64(),
        p99: times[times.len() * 99 / 100],
        busy: cpu.as_secs_f64() / within.as_secs_f64() / workers as f64,
        cpu: cpu / u32::try_from(times.len())?,
    })
}

/// Sends the same bytes again and again on one connection per client, each time after the answer to the previous ones.
async fn run(address: SocketAddr, clients: usize, time: Duration, bytes: &[u8]) -> Result<Vec<Duration>> {
    let until = Instant::now() + time;
    let is_http = bytes.starts_with(b"GET ");
    let clients = (0..clients).map(|_| {
        let bytes = bytes.to_vec();
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (mut times, mut answer) = (Vec::new(), vec![0; bytes.len().max(4096)]);
            while Instant::now() < until {
                let started = Instant::now();
                let exchange = async {
                    stream.write_all(&bytes).await?;
                    match is_http {
                        // The response is one segment.
                        true => stream.read(&mut answer).await,
                        false => stream.read_exact(&mut answer[..bytes.len()]).await,
                    }
                };
                if timeout(PATIENCE, exchange).await?? == 0 {
                    return Err("the connection ended".into());
                }
                times.push(started.elapsed());
            }
            Ok::<_, Error>(times)
        })
    });
    let mut all = Vec::new();
    for times in try_join_all(clients).await? {
        all.extend(times?);
    }
    Ok(all)
}

async fn echo_server() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}
