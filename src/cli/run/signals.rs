//! Several signals as one source.

use std::{io, task::Poll};

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

/// Signals that do nothing but to be told here.
pub struct Signals(Vec<(i32, Signal)>);

impl Signals {
    pub fn new(kinds: &[fn() -> SignalKind]) -> io::Result<Self> {
        let kinds = kinds.iter().map(|kind| kind());
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
