//! Compares adit's relay with bore, rathole and frp in one run: `just bench-relay`. Tools that are not in PATH are left out.
//!
//! Each tool forwards visitors to the same local server. CPU time is that of both ends, relay and client, from /proc.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is what it is for")]

mod tools;

use std::{
    env, fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Child,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use self::tools::{ALL, Pair};

/// Numbers of concurrent visitors.
const VISITORS: [usize; 2] = [1, 16];

/// How long connections are counted.
const FOR: Duration = Duration::from_secs(4);

const IDLE: usize = 1000;

/// Bytes of a transfer, all visitors together.
const TRANSFER: u64 = 256 << 20;

const ROUNDS: usize = 3;

/// Starts a server whose mode is the first byte: `e` echoes, `d` sends forever, `u` receives and reports the number of bytes.
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
    match first[0] {
        b'd' => while stream.write_all(&buffer).is_ok() {},
        b'u' => {
            let mut length = [0; 8];
            if stream.read_exact(&mut length).is_err() {
                return;
            }
            let mut left = u64::from_be_bytes(length);
            while left > 0
                && let Ok(count @ 1..) = stream.read(&mut buffer)
            {
                left = left.saturating_sub(count as u64);
            }
            let _ = stream.write_all(b"!");
        }
        _ => {
            let mut count = 1;
            buffer[0] = first[0];
            while count > 0 && stream.write_all(&buffer[..count]).is_ok() {
                count = stream.read(&mut buffer).unwrap_or(0);
            }
        }
    }
}

fn connect(public: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(public).expect("a visitor connects");
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    stream
}

/// Runs this many visitors concurrently, and returns the time until all have ended.
fn together(visitors: usize, visit: impl Fn() + Send + Sync + Clone + 'static) -> Duration {
    let started = Instant::now();
    let all: Vec<_> = (0..visitors)
        .map(|_| {
            let visit = visit.clone();
            thread::spawn(visit)
        })
        .collect();
    all.into_iter().for_each(|visitor| visitor.join().expect("a visitor that is served"));
    started.elapsed()
}

/// Opens connections and exchanges a byte on each. Returns the connections per second, and their number.
fn connections(public: SocketAddr, visitors: usize) -> (f64, u64) {
    let (count, started) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let counted = count.clone();
    let took = together(visitors, move || {
        while started.elapsed() < FOR {
            let mut stream = connect(public);
            let mut byte = [b'e'];
            if stream.write_all(&byte).is_ok() && stream.read_exact(&mut byte).is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let count = count.load(Ordering::Relaxed);
    (count as f64 / took.as_secs_f64(), count)
}

/// Returns the MB/s of all downloads together.
fn download(public: SocketAddr, visitors: usize) -> f64 {
    let each = TRANSFER / visitors as u64;
    let took = together(visitors, move || {
        let mut stream = connect(public);
        stream.write_all(b"d").expect("it is open");
        let (mut buffer, mut count) = (vec![0; 256 << 10], 0u64);
        while count < each {
            count += stream.read(&mut buffer).expect("bytes") as u64;
        }
    });
    TRANSFER as f64 / 1e6 / took.as_secs_f64()
}

/// Returns the MB/s of all uploads together, until the server has all bytes.
fn upload(public: SocketAddr, visitors: usize) -> f64 {
    let each = TRANSFER / visitors as u64;
    let took = together(visitors, move || {
        let mut stream = connect(public);
        stream.write_all(b"u").expect("it is open");
        stream.write_all(&each.to_be_bytes()).expect("it is open");
        let (buffer, mut left) = (vec![0; 256 << 10], each);
        while left > 0 {
            let count = left.min(buffer.len() as u64);
            stream.write_all(&buffer[..count as usize]).expect("it is open");
            left -= count;
        }
        stream.read_exact(&mut [0]).expect("the server has all");
    });
    TRANSFER as f64 / 1e6 / took.as_secs_f64()
}

/// Returns the CPU seconds of both ends.
fn cpu(pair: &Pair) -> f64 {
    let of = |process: &Child| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap_or_default();
        // Behind the name in brackets, which may contain spaces, utime and stime are fields 12 and 13.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(f64::NAN);
        // USER_HZ is 100 on Linux.
        (ticks(11) + ticks(12)) / 100.0
    };
    of(&pair.server) + of(&pair.client)
}

/// Returns the MiB of both ends with idle streams.
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

/// Measures all rows of a tool.
fn measure(pair: &Pair) -> Vec<(String, f64)> {
    let mut rows = Vec::new();
    // Warm up both processes.
    for _ in 0..20 {
        drop(connect(pair.public).write_all(b"e"));
    }
    for visitors in VISITORS {
        let before = cpu(pair);
        let (rate, count) = connections(pair.public, visitors);
        let each = (cpu(pair) - before) / count.max(1) as f64 * 1e6;
        rows.push((format!("connections/s, {visitors} at a time"), rate));
        rows.push((format!("CPU for a connection, us, {visitors} at a time"), each));
    }
    for visitors in VISITORS {
        for (name, transfer) in [("download", download as fn(SocketAddr, usize) -> f64), ("upload", upload)] {
            let before = cpu(pair);
            let rate = transfer(pair.public, visitors);
            let each = (cpu(pair) - before) / (TRANSFER as f64 / 1e6) * 1e3;
            rows.push((format!("{name}, MB/s, {visitors} at a time"), rate));
            rows.push((format!("CPU for a MB, ms, {name}, {visitors} at a time"), each));
        }
    }
    rows.push((format!("memory, {IDLE} idle streams, MiB"), memory(pair)));
    rows
}

fn main() {
    if env::args().any(|argument| argument == "--test") {
        return;
    }
    let local = service();
    let there: Vec<_> = ALL.iter().filter(|tool| tool.is_there()).collect();
    let mut measured: Vec<Vec<Vec<(String, f64)>>> = there.iter().map(|_| Vec::new()).collect();
    for round in 0..ROUNDS {
        for (tool, measured) in there.iter().zip(&mut measured) {
            eprintln!("round {}: {}", round + 1, tool.name);
            let pair = (tool.start)(local);
            measured.push(measure(&pair));
        }
    }
    let names: Vec<&str> = there.iter().map(|tool| tool.name).collect();
    println!("\n| | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
    for row in 0..measured[0][0].len() {
        let cells = measured.iter().map(|rounds| {
            let mut all: Vec<f64> = rounds.iter().map(|rows| rows[row].1).collect();
            all.sort_by(f64::total_cmp);
            let median = all[all.len() / 2];
            if median < 10.0 { format!("{median:.2}") } else { format!("{median:.0}") }
        });
        println!("| {} | {} |", measured[0][0][row].0, cells.collect::<Vec<_>>().join(" | "));
    }
}
