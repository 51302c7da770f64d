//! Traffic of a tunnel, and refused clients, for the relay's page.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Instant, SystemTime},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::tunnels::Tunnel;
use crate::io::{
    Io,
    through::{flush_through, said_through},
};

/// Maximum number of recorded refusals.
const MOST: usize = 100;

/// Maximum length of a recorded reason, in characters.
const LONGEST: usize = 200;

/// Traffic of a tunnel.
pub struct Usage {
    pub visitors: AtomicU64,
    pub refused: AtomicU64,
    pub up: AtomicU64,
    pub down: AtomicU64,
    pub since: Instant,
}

impl Default for Usage {
    fn default() -> Self {
        let none = || AtomicU64::new(0);
        Self { visitors: none(), refused: none(), up: none(), down: none(), since: Instant::now() }
    }
}

/// A client or visitor that the relay refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub at: SystemTime,
    pub peer: SocketAddr,
    /// The tunnel, or the name of the key.
    pub what: String,
    pub reason: String,
}

/// The latest refusals.
#[derive(Default)]
pub struct Refusals(Mutex<VecDeque<Refusal>>);

impl Refusals {
    pub fn add(&self, peer: SocketAddr, what: &str, reason: &str) {
        let text = |text: &str| text.chars().take(LONGEST).collect();
        let refusal = Refusal { at: SystemTime::now(), peer, what: text(what), reason: text(reason) };
        let mut kept = self.0.lock().expect("no panic while the lock is held");
        if kept.len() >= MOST {
            kept.pop_front();
        }
        kept.push_back(refusal);
    }

    /// Returns all recorded refusals, newest first.
    pub fn all(&self) -> Vec<Refusal> {
        self.0.lock().expect("no panic while the lock is held").iter().rev().cloned().collect()
    }
}

/// Stream of a visitor that counts the bytes for its tunnel.
pub struct Counting<T> {
    inner: T,
    tunnel: Arc<Tunnel>,
}

impl<T> Counting<T> {
    pub fn new(inner: T, tunnel: Arc<Tunnel>) -> Self {
        Self { inner, tunnel }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counting<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.tunnel.usage.down.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counting<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        self.tunnel.usage.up.fetch_add(count as u64, Ordering::Relaxed);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs))?;
        self.tunnel.usage.up.fetch_add(count as u64, Ordering::Relaxed);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    flush_through!();
}

impl<T: Io> Io for Counting<T> {
    said_through!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_refusals_are_kept_and_cut() {
        let refusals = Refusals::default();
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        (0..2 * MOST).for_each(|at| refusals.add(peer, &at.to_string(), &"x".repeat(10_000)));
        let all = refusals.all();
        assert_eq!((all.len(), all[0].what.as_str(), all[0].reason.len()), (MOST, "199", LONGEST));
    }
}
