//! Transports of upgrades, and the memory of the one that works in a context.

use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;

/// Transport of a port-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Plain SPDY frames after the 101.
    Spdy,
    /// SPDY frames in binary WebSocket messages.
    WebSocket,
    /// No SPDY: one WebSocket per connection into the pod.
    Channels,
}

/// Transport of an exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecTransport {
    WebSocket,
    Spdy,
}

/// Transport that works in a context, learned from upgrades.
pub struct Memory<T> {
    pub(super) worked: Arc<Mutex<Option<T>>>,
    /// Attempts without an answer yet. A late answer means that the server was slow, and that no gateway swallows the
    /// transport.
    pub(super) late: Mutex<JoinSet<()>>,
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self { worked: Arc::default(), late: Mutex::default() }
    }
}
