//! Several signals as one source.

use std::{fs, io, task::Poll};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Shells report a program that a signal ended with this exit code plus the signal's number.
pub const KILLED: u8 = 128;

/// Returns the exit code of a program that this signal ended.
pub fn code_of(signal: i32) -> u8 {
    KILLED.saturating_add(u8::try_from(signal).unwrap_or_default())
}

/// Signals to adit that are meant for the command.
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

/// Signals that end a command of adit.
pub const ENDS: &[fn() -> SignalKind] =
    &[SignalKind::interrupt, SignalKind::terminate, SignalKind::hangup, SignalKind::quit];

/// After adit alone was stopped, SIGCONT must continue the command too.
fn continued() -> SignalKind {
    SignalKind::from_raw(rustix::process::Signal::CONT.as_raw())
}

/// Returns the signals that this process ignores, one bit each (proc(5), SigIgn). On systems other than Linux: 0, unknown.
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

/// Signals that have no default effect any more; this process receives them here.
pub struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// Registers handlers. Signals that this process ignores since its start stay ignored, also in its command: `nohup` ignores
    /// SIGHUP, and a shell without job control ignores SIGINT for background processes.
    ///
    /// # Errors
    /// A handler cannot be registered.
    pub fn new(kinds: &[fn() -> SignalKind]) -> io::Result<Self> {
        let ignored = ignored();
        let kinds = kinds.iter().map(|kind| kind()).filter(|kind| ignored & bit(kind.as_raw_value()) == 0);
        kinds.map(|kind| Ok((kind.as_raw_value(), signal(kind)?))).collect::<io::Result<_>>().map(Self)
    }

    /// Waits for the next signal, and returns its number.
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

    /// Waits for the next signal that ends a command of adit, and returns its number. Ignores signals
    /// that end nothing by default, such as a resize of the terminal: there is no child process yet to pass them on to.
    pub async fn next_end(&mut self) -> i32 {
        let has_no_effect = [SignalKind::window_change(), continued()];
        loop {
            let number = self.next().await;
            if !has_no_effect.contains(&SignalKind::from_raw(number)) {
                return number;
            }
        }
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
