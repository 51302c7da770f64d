//! The cost of more connections, tunnels and routes, and the benefit of more cores.
//!
//! ```text
//! cargo bench --bench scale -- growth [--most 10000]
//! cargo bench --bench scale -- cores [--seconds 4]
//! ```
//!
//! `growth` measures memory and CPU of adit with 1, 10, ... connections, tunnels, routes, TCP routes and Services, in front of
//! the demo cluster. `cores` measures the proxy and the relay with one, two and four threads, each pinned to as many cores. The
//! system places the load and the cluster, so on a small machine they compete with adit.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is what it is for")]

mod cores;
mod growth;
mod process;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

fn main() -> Result<()> {
    // Cargo adds this option.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let number = |option: &str, default: u64| match arguments.as_slice() {
        [_, name, value] if name == option => value.parse().unwrap_or_else(|_| usage()),
        [_] => default,
        _ => usage(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match arguments.first().map(String::as_str) {
        Some("growth") => runtime.block_on(growth::measure(number("--most", 10_000) as usize)),
        Some("cores") => runtime.block_on(cores::measure(std::time::Duration::from_secs(number("--seconds", 4)))),
        // cargo test --all-targets
        Some("--test") => Ok(()),
        _ => usage(),
    }
}

fn usage() -> ! {
    eprintln!("usage: scale growth [--most N] | scale cores [--seconds N]");
    std::process::exit(2)
}
