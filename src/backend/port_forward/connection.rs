//! One upgraded connection and its streams: a task that writes, a task that reads, and the state that they share.
//!
//! Each stream appends to its own buffer. The writer takes a frame from each buffer in turn, and sends them in one
//! write. The reader dispatches frames to the streams' queues. SPDY has no flow control here, so the queues are
//! bounded: see `wait_for_readers`.

mod ends;
mod liveness;
mod phase;
mod pings;
mod report;
mod state;
mod tasks;

use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    runtime::Handle,
    sync::Notify,
    task::JoinHandle,
    time::{Duration, Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

pub(super) use self::{
    report::classify,
    state::{LONGEST_REPORT, State, Stream},
};
use super::stream::MuxStream;
use crate::{
    backend::{SessionGauges, StreamFault},
    io::BoxedIo,
};

/// How long the FIN of a dropped stream waits for other bytes to share a write with: often the next client follows.
const SOON: Duration = Duration::from_millis(10);

/// Silence after which a connection to a pod without processes ends. The last bytes of such a pod are in the buffers of
/// its node and of the API server, and arrive at once. The end often gets lost: if the pod's network is removed before
/// its sockets are closed, the node notices only by TCP keep-alive, after 150 s (containerd).
pub(super) const LAST_BYTES: Duration = Duration::from_secs(5);

/// An upgraded connection. Dropping the last handle closes it.
pub struct Connection {
    shared: Arc<Shared>,
    started: Instant,
    tasks: [JoinHandle<()>; 2],
}

/// Whether a connection takes new streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    Open,
    /// No new streams for now: a worker of the node may hang and has been pinged, all lanes are slow, or readers have
    /// to catch up.
    Doubtful,
    /// No new streams any more. Open streams stay open.
    Retired,
}

/// Tells whether a pod is gone; its connections report that.
pub struct Fate {
    is_gone: AtomicBool,
    /// Cancelled once no process of the pod runs any more, by the word of the API server.
    over: CancellationToken,
    /// Asks the API server about a pod that takes no new streams.
    asking: Mutex<Option<JoinHandle<()>>>,
    gauges: Arc<SessionGauges>,
}

impl Fate {
    pub fn new(gauges: Arc<SessionGauges>) -> Self {
        Self { is_gone: AtomicBool::new(false), over: CancellationToken::new(), asking: Mutex::default(), gauges }
    }

    /// Waits until `over` resolves: no process of the pod runs any more. From then on, its connections end once nothing
    /// more arrives. The wait ends early with the pod's last stream.
    pub fn wait_for(&self, over: impl Future<Output = ()> + Send + 'static) {
        let mut asking = self.asking.lock().expect("no panic while the lock is held");
        if asking.is_none() {
            let token = self.over.clone();
            *asking = Some(tokio::spawn(async move {
                over.await;
                token.cancel();
            }));
        }
    }

    /// Waits until the pod is over, and then for `LAST_BYTES`.
    pub async fn silence_after_end(self: Arc<Self>) {
        self.over.cancelled().await;
        sleep(LAST_BYTES).await;
    }

    /// Returns whether the pod is over.
    pub fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Returns the fault of streams that a pod has left without an end.
    pub fn unended() -> StreamFault {
        StreamFault::Lost { detail: "the pod was deleted or has ended, and nothing more came from it".to_owned() }
    }

    /// Returns whether the node has reported that the pod is gone.
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::SeqCst)
    }

    pub fn pod_gone(&self) {
        self.is_gone.store(true, Ordering::SeqCst);
    }
}

pub(super) struct Shared {
    state: Mutex<State>,
    write: Notify,
    /// Wakes a paused reader when a queue has shrunk.
    read: Notify,
    /// Wakes the reader when its next liveness check may be due earlier.
    look: Notify,
    /// Wakes [`Silence::broken`] when the first bytes have arrived.
    first_bytes: Notify,
    fate: Arc<Fate>,
    pub(super) port: u16,
    is_paused: AtomicBool,
}

impl Drop for Fate {
    fn drop(&mut self) {
        if let Some(task) = self.asking.get_mut().expect("no panic while the lock is held").take() {
            task.abort();
        }
    }
}

impl Connection {
    /// Starts the tasks of an upgraded connection. They report to `fate` if the pod is gone.
    pub fn start(io: BoxedIo, port: u16, fate: Arc<Fate>) -> Arc<Self> {
        fate.gauges.connections.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            write: Notify::new(),
            read: Notify::new(),
            look: Notify::new(),
            first_bytes: Notify::new(),
            fate,
            port,
            is_paused: AtomicBool::new(false),
        });
        let (reader, writer) = tokio::io::split(io);
        let tasks =
            [tokio::spawn(tasks::write(shared.clone(), writer)), tokio::spawn(tasks::read(shared.clone(), reader))];
        Arc::new(Self { shared, started: Instant::now(), tasks })
    }

    /// Opens a stream, without waiting for the network.
    ///
    /// # Errors
    /// The connection takes no new streams.
    pub fn open(self: &Arc<Self>) -> Result<BoxedIo, Opening> {
        let number = {
            let mut state = self.shared.lock();
            if !state.phase.takes_streams() || state.session.is_exhausted() {
                return Err(Opening::Retired);
            }
            state.add_stream()
        };
        self.shared.fate.gauges.streams.fetch_add(1, Ordering::Relaxed);
        // Wake the writer now: a server that speaks first must not wait for the client's first byte.
        self.shared.write.notify_one();
        Ok(Box::new(MuxStream::new(self.clone(), self.shared.clone(), number)))
    }

    pub fn opening(&self) -> Opening {
        let mut state = self.shared.lock();
        if !state.phase.is_probing() && state.has_slept() {
            debug!("the clock has jumped: is the connection still there?");
            state.phase.suspect();
            state.ping(0);
            self.shared.write.notify_one();
        }
        if !state.phase.takes_streams() || state.session.is_exhausted() {
            Opening::Retired
        } else if state.phase.is_probing()
            || state.has_only_slow_lanes()
            || self.shared.is_paused.load(Ordering::Relaxed)
        {
            Opening::Doubtful
        } else {
            Opening::Open
        }
    }

    /// Returns a handle to wait for the connection's first bytes.
    pub fn silence(&self) -> Silence {
        Silence(self.shared.clone())
    }

    /// Returns the number of open streams.
    pub fn streams(&self) -> usize {
        self.shared.lock().streams.len()
    }

    /// Returns whether one of its streams moves much data.
    pub fn is_busy(&self) -> bool {
        self.shared.lock().transfers > 0
    }

    /// Returns since when the connection has no stream. `None`: it has some.
    pub fn idle_since(&self) -> Option<Instant> {
        let state = self.shared.lock();
        state.streams.is_empty().then_some(state.last_open.unwrap_or(self.started))
    }

    /// Returns whether the connection has failed, or takes no streams and has none with a client.
    pub fn is_finished(&self) -> bool {
        let state = self.shared.lock();
        let is_left = || state.streams.values().all(|stream| stream.dropped);
        state.fault().is_some() || (!state.phase.takes_streams() && is_left())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.shared.die(StreamFault::Lost { detail: "no longer needed".to_owned() });
    }
}

/// Handle of a connection that has received no bytes yet. Another transport may replace the connection.
pub struct Silence(Arc<Shared>);

impl Silence {
    /// Waits until bytes have arrived, or the connection has ended.
    pub async fn broken(&self) {
        let is_over = || {
            let state = self.0.lock();
            state.heard.is_some() || state.fault().is_some()
        };
        while !is_over() {
            self.0.first_bytes.notified().await;
        }
    }

    /// Pings the node, unless a stream makes it answer anyway.
    pub fn ping(&self) {
        let mut state = self.0.lock();
        if state.streams.is_empty() {
            state.ping(0);
            self.0.write.notify_one();
        }
    }

    /// Fails all streams. None of their bytes has passed the gateway.
    pub fn fail(&self, fault: StreamFault) {
        self.0.lock().phase.fail(fault);
        self.0.write.notify_one();
        self.0.read.notify_one();
        self.0.look.notify_one();
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }

    /// Lets the writer send the bytes and the FIN of a stream.
    pub(super) fn wake_writer(&self, state: &mut State, number: u64) {
        if self.queue(state, number) {
            self.write.notify_one();
        }
    }

    /// Adds a stream to the writer's queue. Returns `false` if it is in there, or if the node does not know the stream yet.
    fn queue(&self, state: &mut State, number: u64) -> bool {
        let Some(stream) = state.streams.get_mut(&number).filter(|stream| !stream.is_ready && stream.pair.is_some())
        else {
            return false;
        };
        stream.is_ready = true;
        state.ready.push_back(number);
        true
    }

    /// Records that a reader has taken `count` bytes from its queue.
    pub(super) fn taken(&self, state: &mut State, count: usize) {
        state.queued -= count;
        if self.is_paused.load(Ordering::Relaxed) {
            self.read.notify_one();
        }
    }

    /// Handles the drop of a stream's handle: our direction ends now, and later bytes of the pod are discarded.
    pub(super) fn dropped(self: &Arc<Self>, number: u64) {
        self.fate.gauges.streams.fetch_sub(1, Ordering::Relaxed);
        let mut state = self.lock();
        let state = &mut *state;
        state.last_open = Some(Instant::now());
        let is_over = state.streams.get(&number).is_none_or(|stream| stream.is_over() || stream.pair.is_none());
        if !is_over && state.is_on_its_way(number) {
            state.doubt_lanes();
            self.write.notify_one();
        }
        let Some(stream) = state.streams.get_mut(&number) else { return };
        stream.dropped = true;
        stream.reader = None;
        stream.writer = None;
        stream.outbox.clear();
        let discarded = std::mem::take(&mut stream.inbox_bytes);
        stream.inbox.clear();
        // An aborted download would go on for a second at full speed, so its connection is closed.
        if !is_over && !stream.remote.has_data_ended() && stream.is_download() && state.streams.len() == 1 {
            state.phase.fail(StreamFault::Lost { detail: "closed with its only transfer".to_owned() });
            self.write.notify_one();
            self.read.notify_one();
            self.look.notify_one();
        }
        self.taken(state, discarded);
        if is_over {
            state.remove_stream(number);
        } else if let Some(stream) = state.streams.get_mut(&number)
            && stream.local.is_open_for_node()
        {
            state.release(number);
            if self.queue(state, number) {
                self.wake_writer_soon(state);
            }
        }
    }

    /// Wakes the writer after [`SOON`], unless another stream wakes it earlier.
    fn wake_writer_soon(self: &Arc<Self>, state: &mut State) {
        let Ok(runtime) = Handle::try_current() else { return self.write.notify_one() };
        if !std::mem::replace(&mut state.is_soon_woken, true) {
            let this = self.clone();
            runtime.spawn(async move {
                sleep(SOON).await;
                this.lock().is_soon_woken = false;
                this.write.notify_one();
            });
        }
    }

    /// Discards the unread bytes of streams without an end: their readers get the connection's fault now.
    fn discard_unended(&self) {
        let mut state = self.lock();
        for stream in state.streams.values_mut().filter(|stream| !stream.is_over()) {
            stream.inbox.clear();
            stream.inbox_bytes = 0;
            stream.wake();
        }
    }

    /// Ends the connection and all its streams.
    fn die(&self, fault: StreamFault) {
        let mut state = self.lock();
        if !state.phase.end(fault) {
            return;
        }
        debug!(
            fault = state.fault().map(tracing::field::display),
            streams = state.streams.len(),
            "upgraded connection ended"
        );
        for stream in state.streams.values_mut() {
            stream.wake();
        }
        drop(state);
        self.write.notify_one();
        self.first_bytes.notify_one();
        self.fate.gauges.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
