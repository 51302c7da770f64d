//! Memory and CPU by the number of connections, tunnels, routes or Services.

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path, time::Duration};

use adit::demo::Demo;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{
    Result,
    process::{Process, free_port},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// How long adit is observed at rest.
const REST: Duration = Duration::from_secs(3);

/// Beyond the first 200, tunnels are created at 20 per second, so more of them would take minutes.
const MOST_TUNNELS: usize = 1000;

/// A listener needs two open files, and many shells have a limit of 4,096 or less.
const MOST_LISTENERS: usize = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Connections,
    Tunnels,
    Routes,
    TcpRoutes,
    Services,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Connections, Self::Tunnels, Self::Routes, Self::TcpRoutes, Self::Services];

    fn name(self) -> &'static str {
        match self {
            Self::Connections => "idle connections through one tunnel",
            Self::Tunnels => "open tunnels",
            Self::Routes => "routes by HTTP",
            Self::TcpRoutes => "TCP routes",
            Self::Services => "Services in the cluster, one in use",
        }
    }
}

pub async fn measure(most: usize) -> Result<()> {
    println!(
        "{:38}{:>8}{:>12}{:>14}{:>16}{:>14}",
        "", "count", "MiB", "KiB for each", "CPU to get there", "CPU at rest"
    );
    for kind in Kind::ALL {
        let mut alone = None;
        let counts = std::iter::successors(Some(1), |count| Some(count * 10));
        for count in counts.take_while(|count| *count <= most) {
            let is_too_many = match kind {
                Kind::Tunnels => count > MOST_TUNNELS,
                Kind::TcpRoutes => count > MOST_LISTENERS,
                _ => false,
            };
            if is_too_many {
                continue;
            }
            let found = grow(kind, count).await?;
            let first = *alone.get_or_insert(found.memory);
            let each = if count > 1 { (found.memory - first) * 1024.0 / (count - 1) as f64 } else { f64::NAN };
            println!(
                "{:38}{count:>8}{:>12.1}{each:>14.1}{:>13.0} ms{:>12.2} %",
                if count == 1 { kind.name() } else { "" },
                found.memory,
                found.cpu.as_secs_f64() * 1e3,
                found.at_rest * 100.0
            );
        }
    }
    Ok(())
}

struct Found {
    memory: f64,
    cpu: Duration,
    /// Share of one core.
    at_rest: f64,
}

async fn grow(kind: Kind, count: usize) -> Result<Found> {
    let demo = Demo::start().await?;
    if matches!(kind, Kind::Tunnels | Kind::Services) {
        for number in 0..count {
            let service = json!({
                "metadata": {"namespace": "shop", "name": format!("web-{number}")},
                "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
            });
            demo.world().put("services", service);
        }
    }
    let folder = tempfile::tempdir()?;
    let (http, echo) = (free_port()?, free_port()?);
    let config = folder.path().join("config.yaml");
    fs::write(&config, configuration(kind, count, http, echo)?)?;
    let process = start(&config, &demo, folder.path())?;
    let before = process.cpu()?;
    let mut open = Vec::new();
    get(http, "web.shop.localhost").await?;
    match kind {
        Kind::Connections => {
            for _ in 0..count {
                let mut stream = TcpStream::connect(echo).await?;
                stream.write_all(b"a").await?;
                timeout(PATIENCE, stream.read_u8()).await??;
                open.push(stream);
            }
        }
        Kind::Tunnels => {
            for number in 0..count {
                get(http, &format!("web-{number}.shop.localhost")).await?;
            }
        }
        Kind::Routes => get(http, &format!("route-{}.localhost", count - 1)).await?,
        Kind::TcpRoutes | Kind::Services => {}
    }
    sleep(Duration::from_secs(1)).await;
    let cpu = process.cpu()?;
    sleep(REST).await;
    let at_rest = (process.cpu()? - cpu).as_secs_f64() / REST.as_secs_f64();
    let memory = process.memory()?;
    drop(open);
    Ok(Found { memory, cpu: cpu - before, at_rest })
}

fn start(config: &Path, demo: &Demo, folder: &Path) -> Result<Process> {
    let (config, kubeconfig) = (config.display().to_string(), demo.kubeconfig().display().to_string());
    let folder = folder.display().to_string();
    Process::start(None, &["--config", &config], &[("KUBECONFIG", &kubeconfig), ("XDG_RUNTIME_DIR", &folder)])
}

fn configuration(kind: Kind, count: usize, http: SocketAddr, echo: SocketAddr) -> Result<String> {
    let mut text = format!("apiVersion: adit/v1\nhttp:\n  listen: '{http}'\n");
    if kind == Kind::Routes {
        text += "  k8s:\n    routes:\n";
        for number in 0..count {
            writeln!(text, "      route-{number}.localhost: {{namespace: shop, service: web}}")?;
        }
    }
    text += "tcp:\n  k8s:\n    routes:\n";
    writeln!(text, "      {}: {{namespace: shop, service: tools, port: 7000}}", echo.port())?;
    if kind == Kind::TcpRoutes {
        // Each route has two listeners: 127.0.0.1 and [::1].
        for number in 0..count {
            writeln!(text, "      {}: {{namespace: shop, service: tools, port: 7000}}", 20_000 + number)?;
        }
    }
    Ok(text)
}

async fn get(address: SocketAddr, host: &str) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(format!("GET /whoami HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await??;
        if answer.starts_with(b"HTTP/1.1 200") {
            return Ok(());
        }
        // New names are rate-limited.
        if Instant::now() > until {
            return Err(String::from_utf8_lossy(&answer).into_owned().into());
        }
        sleep(Duration::from_millis(100)).await;
    }
}
