//! Flow-control windows of a connection to a pod: small, so that a stalled reader holds little memory, and wider on a long path
//! if a reader is so fast that the window limits it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::task::AtomicWaker;
use h2::client::Connection;
use tokio::time::Instant;

use super::{STREAM_WINDOW, empty_data::WithoutEmptyData};
use crate::io::BoxedIo;

/// A window that is the limit is filled once per round trip. A peer that fills four windows in eight round trips is limited by
/// it.
const PROOF: u64 = 4 * STREAM_WINDOW as u64;
const ROUND_TRIPS: u32 = 8;

/// Bytes of window per millisecond of round trip: 1 Gbit/s needs 125 kB, and a quarter more while the peer waits for updates.
const PER_MILLISECOND: u32 = 160 * 1024;

/// Maximum window of a stream in bytes.
const WIDEST: u32 = 16 * STREAM_WINDOW;

/// Window of a connection to a pod: the maximum of RFC 9113, section 6.9.1. A connection's window that is smaller than those of
/// its streams together would let stalled readers block all others.
pub const OF_CONNECTION: u32 = (1 << 31) - 1;

/// Bytes of all streams of a connection that may wait, if its streams were opened with the present window. Further streams get
/// another connection.
const MOST_WAITING: u32 = 128 * STREAM_WINDOW;

/// Window that the readers of a connection want, shared with the task that drives it.
#[derive(Debug, Default)]
pub struct Windows {
    /// Less than [`STREAM_WINDOW`]: none has asked for more.
    wanted: AtomicU32,
    driver: AtomicWaker,
}

/// Measures how fast one answer is read.
#[derive(Debug)]
pub struct Pace {
    windows: Arc<Windows>,
    /// Time from the request to the head of its answer: a round trip, and the pod's own time.
    answered_in: Duration,
    since: Instant,
    taken: u64,
}

impl Pace {
    pub fn new(windows: Arc<Windows>, answered_in: Duration) -> Self {
        Self { windows, answered_in, since: Instant::now(), taken: 0 }
    }

    /// Records data that went to the reader.
    pub fn took(&mut self, bytes: usize) {
        let before = self.taken;
        self.taken += bytes as u64;
        if before < PROOF && self.taken >= PROOF && self.since.elapsed() <= self.answered_in * ROUND_TRIPS {
            self.windows.want(needed(self.answered_in));
        }
    }
}

/// Returns the window that carries 1 Gbit/s over this round trip, up to [`WIDEST`].
fn needed(round_trip: Duration) -> u32 {
    let millis = u32::try_from(round_trip.as_millis()).unwrap_or(u32::MAX);
    PER_MILLISECOND.saturating_mul(millis).clamp(STREAM_WINDOW, WIDEST)
}

impl Windows {
    /// Returns how many streams may wait for their readers.
    pub fn streams(&self) -> usize {
        (MOST_WAITING / self.wanted.load(Ordering::Relaxed).max(STREAM_WINDOW)) as usize
    }

    fn want(&self, window: u32) {
        if self.wanted.fetch_max(window, Ordering::SeqCst) < window {
            self.driver.wake();
        }
    }
}

/// Drives a connection to its end, and widens its windows.
pub struct Driver {
    connection: Connection<WithoutEmptyData<BoxedIo>, Bytes>,
    windows: Arc<Windows>,
    present: u32,
}

impl Driver {
    pub fn new(connection: Connection<WithoutEmptyData<BoxedIo>, Bytes>, windows: Arc<Windows>) -> Self {
        Self { connection, windows, present: STREAM_WINDOW }
    }
}

impl Future for Driver {
    type Output = Result<(), h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.windows.driver.register(cx.waker());
        let wanted = this.windows.wanted.load(Ordering::SeqCst);
        // h2 refuses this until the previous SETTINGS are acknowledged: the acknowledgement polls again.
        if wanted > this.present && this.connection.set_initial_window_size(wanted).is_ok() {
            this.present = wanted;
        }
        Pin::new(&mut this.connection).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_as_wide_as_a_gigabit_needs_or_memory_allows() {
        let millis = |time| needed(Duration::from_millis(time)) / 1024;
        assert_eq!([millis(0), millis(5), millis(20), millis(50), millis(200)], [1024, 1024, 3200, 8000, 16 * 1024]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_reader_that_the_window_limits_widens_it() {
        for (pieces, pause, is_wider) in [(8, 20, true), (8, 500, false), (3, 20, false)] {
            let windows = Arc::new(Windows::default());
            let mut pace = Pace::new(windows.clone(), Duration::from_millis(50));
            for _ in 0..pieces {
                tokio::time::advance(Duration::from_millis(pause)).await;
                pace.took(STREAM_WINDOW as usize);
            }
            assert_eq!(windows.wanted.load(Ordering::SeqCst) > STREAM_WINDOW, is_wider, "{pieces} each {pause} ms");
        }
    }
}
