//! Several signals as one source.

use std::{fs, io, task::Poll};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that a command is meant by when adit gets them.
pub const PASSED_ON: &[fn() -> SignalKind] = &[
    SignalKind::interrupt,
    SignalKind::terminate,
    SignalKind::hangup,
    SignalKind::quit,
    SignalKind::user_defined1,
    SignalKind::user_defined2,
    SignalKind::window_change,
    continued,
];

/// After a stop of adit alone, the command is to go on with it.
fn continued() -> SignalKind {
    SignalKind::from_raw(rustix::process::Signal::CONT.as_raw())
}

/// Returns the signals that this process ignores, a bit for each (proc(5), SigIgn). Elsewhere than on Linux it is not known: 0.
fn ignored() -> u64 {
    parse_ignored(&fs::read_to_string("/proc/self/status").unwrap_or_default()).unwrap_or_default()
}

fn parse_ignored(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

fn bit(number: i32) -> u64 {
    1 << (number - 1)
}

/// Signals that do nothing but to be told here.
pub struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// Those that this process was started to ignore stay ignored, here and in its command: `nohup` ignores SIGHUP, and a
    /// shell without job control SIGINT for what it starts in the background.
    pub fn new(kinds: &[fn() -> SignalKind]) -> io::Result<Self> {
        let ignored = ignored();
        let kinds = kinds.iter().map(|kind| kind()).filter(|kind| ignored & bit(kind.as_raw_value()) == 0);
        kinds.map(|kind| Ok((kind.as_raw_value(), signal(kind)?))).collect::<io::Result<_>>().map(Self)
    }

    /// Returns the number of the next one.
    pub async fn next(&mut self) -> i32 {
        std::future::poll_fn(|cx| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(cx).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ignored_signals_are_read() {
        let mask = parse_ignored("Name:\tadit\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n").unwrap();
        assert_eq!([1, 2, 13].map(|number| mask & bit(number) != 0), [true, false, true]);
        assert_eq!((parse_ignored(""), parse_ignored("SigIgn:\tx\n")), (None, None));
    }
}
