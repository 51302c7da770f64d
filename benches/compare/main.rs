//! Compares adit with kubectl and a direct connection, on the cluster of KUBECONFIG.
//!
//! ```text
//! cargo bench --features e2e --bench compare -- [far] [--rounds 3] [--seconds 2] [--round-trip MILLIS] [--rate MBIT] [--loss
//! PERCENT]
//! ```
//!
//! `far` measures how long people wait for a distant cluster (by default 50 ms); otherwise, the resources that the programs use.
//! The peers take turns in each round, so that other load on the machine affects all of them. The table has the medians, and
//! their ratios to kubectl's default. `--round-trip`, `--rate` and `--loss` put a link in front of the API server.
//! `ADIT_E2E_IMAGE` is the image of the servers. For the direct column, pods must be reachable from here.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is what it is for")]

mod far;
mod link;
mod load;
mod peers;

use std::{collections::BTreeMap, process::Command, time::Duration};

use self::{
    link::Link,
    load::Result,
    peers::{Kind, Peer, Way},
};

/// Rows of the table, in order.
const ROWS: &[(&str, &str)] = &[
    ("keep-alive, 1 client", "req/s"),
    ("  p50", "us"),
    ("  p99", "us"),
    ("keep-alive, 16 clients", "req/s"),
    ("  CPU of the client", "us/req"),
    ("new connections, 1 client", "conn/s"),
    ("new connections, 16 clients", "conn/s"),
    ("  CPU of the client", "us/conn"),
    ("download", "MB/s"),
    ("upload", "MB/s"),
    ("first byte, cold", "ms"),
    ("first byte, warm", "ms"),
    ("memory at start", "MiB"),
    ("memory, 500 idle connections", "MiB"),
    ("probes beside 20 stalled ones", "of 10"),
];

/// Transfers per direction and round: a single one takes half a second, and says little.
const TRANSFERS: usize = 3;

type Column = BTreeMap<usize, Vec<f64>>;

struct Options {
    far: bool,
    rounds: usize,
    seconds: Duration,
    link: Link,
}

fn options() -> Options {
    let mut options = Options { far: false, rounds: 3, seconds: Duration::from_secs(2), link: Link::default() };
    let mut round_trip = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<f64>().ok()).unwrap_or_else(|| usage());
        match argument.as_str() {
            "far" => options.far = true,
            "--rounds" => options.rounds = number() as usize,
            "--seconds" => options.seconds = Duration::from_secs_f64(number()),
            "--round-trip" => round_trip = Some(number()),
            "--rate" => options.link.rate = Some(number() * 1e6 / 8.0),
            "--loss" => options.link.loss = number() / 100.0,
            // Cargo adds this option.
            "--bench" => {}
            _ => usage(),
        }
    }
    let round_trip = round_trip.unwrap_or(if options.far { 50.0 } else { 0.0 });
    options.link.round_trip = Duration::from_secs_f64(round_trip / 1e3);
    options
}

fn usage() -> ! {
    eprintln!(
        "usage: compare [far] [--rounds N] [--seconds N] [--round-trip MILLISECONDS] [--rate MBIT_PER_SECOND] \
         [--loss PERCENT]"
    );
    std::process::exit(2)
}

fn main() -> Result<()> {
    let options = options();
    apply_world()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let way = Way::make(options.link)?;
        let kinds = if options.far { far::KINDS.as_slice() } else { Kind::ALL.as_slice() };
        let mut table: BTreeMap<Kind, Column> = BTreeMap::new();
        for round in 0..options.rounds {
            for kind in kinds {
                eprintln!("round {} of {}: {}", round + 1, options.rounds, kind.name());
                let column = table.entry(*kind).or_default();
                match options.far {
                    true => far::measure(*kind, &way, column).await?,
                    false => measure(*kind, &way, options.seconds, column).await?,
                }
            }
        }
        if options.far {
            far::print(&table)
        } else {
            print(&table)
        }
        Ok(())
    })
}

fn apply_world() -> Result<()> {
    let image = std::env::var("ADIT_E2E_IMAGE").unwrap_or_else(|_| "localhost/servers:1".to_owned());
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("world.yaml");
    std::fs::write(&file, include_str!("world.yaml").replace("@IMAGE@", &image))?;
    peers::succeed(Command::new("kubectl").args(["apply", "-f"]).arg(&file))?;
    peers::succeed(Command::new("kubectl").args([
        "-n",
        peers::NAMESPACE,
        "rollout",
        "status",
        "deployment/web",
        "--timeout=120s",
    ]))?;
    Ok(())
}

/// Measures everything about one peer, in a new process.
async fn measure(kind: Kind, way: &Way, seconds: Duration, column: &mut Column) -> Result<()> {
    let mut note = |row: usize, value: f64| column.entry(row).or_default().push(value);
    let peer = Peer::start(kind, way).await?;
    if let Some(cold) = peer.cold {
        note(10, cold.as_secs_f64() * 1e3);
    }
    if let Some(memory) = peer.memory_at_start {
        note(12, memory);
    }
    let load = peer.load();
    load.first_byte().await?;
    let mut warm: Vec<f64> = Vec::new();
    for _ in 0..20 {
        warm.push(load.first_byte().await?.as_secs_f64() * 1e3);
    }
    note(11, median(&warm));
    let one = load.keep_alive(1, seconds).await?;
    note(0, one.rate());
    note(1, one.percentile(50));
    note(2, one.percentile(99));
    let before = peer.cpu();
    let many = load.keep_alive(16, seconds).await?;
    note(3, many.rate());
    if let (Some(before), Some(after)) = (before, peer.cpu()) {
        note(4, (after - before).as_secs_f64() * 1e6 / many.count() as f64);
    }
    note(5, load.connections(1, seconds).await?.rate());
    let before = peer.cpu();
    let many = load.connections(16, seconds).await?;
    note(6, many.rate());
    if let (Some(before), Some(after)) = (before, peer.cpu()) {
        note(7, (after - before).as_secs_f64() * 1e6 / many.count() as f64);
    }
    for _ in 0..TRANSFERS {
        note(8, load.download().await?);
        note(9, load.upload().await?);
    }
    drop(peer);

    // Idle and stalled connections, in a process that has done nothing else.
    let peer = Peer::start(kind, way).await?;
    let load = peer.load();
    let idle = load.idle(500).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    if let Some(memory) = peer.memory() {
        note(13, memory);
    }
    drop(idle);
    if let Some(stalled) = peer.stalled {
        let held = load.stall(stalled, 10).await?;
        note(14, load.probes(10).await);
        drop(held);
    }
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print(table: &BTreeMap<Kind, Column>) {
    let value = |kind: Kind, row: usize| Some(median(table.get(&kind)?.get(&row)?));
    print!("\n{:32}{:>8}", "", "");
    for kind in table.keys() {
        print!("{:>20}", kind.name());
    }
    println!();
    for (row, (name, unit)) in ROWS.iter().enumerate() {
        print!("{name:32}{unit:>8}");
        for kind in table.keys() {
            let text = match (value(*kind, row), value(Kind::KubectlTunnel, row)) {
                (Some(found), Some(base)) if *kind != Kind::KubectlTunnel && base > 0.0 => {
                    format!("{} {:>6.2}x", short(found), found / base)
                }
                (Some(found), _) => format!("{}        ", short(found)),
                (None, _) => "-        ".to_owned(),
            };
            print!("{text:>20}");
        }
        println!();
    }
}

fn short(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}
