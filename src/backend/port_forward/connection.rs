//! One upgraded connection and the streams on it: a task that writes, a task that reads, and what they share.
//!
//! Streams append to their own buffers; the writer takes a frame of each in turn and sends the lot in one write. The
//! reader hands on what comes, and queues it only where a stream's own reader is slow. There is no flow control on
//! the wire, so the queues are bounded: see `wait_for_readers`.

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

/// The end of a stream that nobody uses any more waits this long for something to go with: often the next client follows.
const SOON: Duration = Duration::from_millis(10);

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
    /// A worker of the node may hang, which is being asked; or too much waits to be read.
    Doubtful,
    /// Never again. Streams that are open live on.
    Retired,
}

/// Fate of a pod, as its connections report it.
pub struct Fate {
    is_gone: AtomicBool,
    gauges: Arc<SessionGauges>,
}

impl Fate {
    pub fn new(gauges: Arc<SessionGauges>) -> Self {
        Self { is_gone: AtomicBool::new(false), gauges }
    }

    /// Returns whether the node has said that the pod is no more.
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
    /// Tells the reader that a queue has been emptied.
    read: Notify,
    /// Tells the reader that its next look at the connection's life may be due earlier.
    look: Notify,
    /// Tells who waits for it that the first bytes have come.
    first_bytes: Notify,
    fate: Arc<Fate>,
    pub(super) port: u16,
    is_paused: AtomicBool,
}

impl Connection {
    /// Starts the tasks of an upgraded connection. They report to `fate` when the pod is gone.
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

    /// Opens a stream, without waiting for the network. `client`: for whom.
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
        // A server that speaks first is not kept waiting for our first byte.
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

    /// Returns what waits for the first bytes that come.
    pub fn silence(&self) -> Silence {
        Silence(self.shared.clone())
    }

    /// Returns how many streams are open.
    pub fn streams(&self) -> usize {
        self.shared.lock().streams.len()
    }

    /// Returns whether a stream on it moves much data.
    pub fn is_busy(&self) -> bool {
        self.shared.lock().transfers > 0
    }

    /// Returns since when it has had no stream. None: it has some.
    pub fn idle_since(&self) -> Option<Instant> {
        let state = self.shared.lock();
        state.streams.is_empty().then_some(state.last_open.unwrap_or(self.started))
    }

    /// Returns whether it takes no streams and has none.
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

/// A connection on which nothing has come yet. Another one may take its place.
pub struct Silence(Arc<Shared>);

impl Silence {
    /// Waits until bytes have come, or the connection has ended.
    pub async fn broken(&self) {
        let is_over = || {
            let state = self.0.lock();
            state.heard.is_some() || state.fault().is_some()
        };
        while !is_over() {
            self.0.first_bytes.notified().await;
        }
    }

    /// Asks the node for a sign of life, where no stream has done so.
    pub fn ping(&self) {
        let mut state = self.0.lock();
        if state.streams.is_empty() {
            state.ping(0);
            self.0.write.notify_one();
        }
    }

    /// Fails all streams, of which nothing has left the gateway.
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

    /// Has the writer send what a stream has to say.
    pub(super) fn wake_writer(&self, state: &mut State, number: u64) {
        if self.queue(state, number) {
            self.write.notify_one();
        }
    }

    /// Puts a stream into the writer's queue. False: it is there, as one is that the node is not told of yet.
    fn queue(&self, state: &mut State, number: u64) -> bool {
        let Some(stream) = state.streams.get_mut(&number).filter(|stream| !stream.is_ready && stream.pair.is_some())
        else {
            return false;
        };
        stream.is_ready = true;
        state.ready.push_back(number);
        true
    }

    /// Takes note that a reader has taken `count` bytes of its queue.
    pub(super) fn taken(&self, state: &mut State, count: usize) {
        state.queued -= count;
        if self.is_paused.load(Ordering::Relaxed) {
            self.read.notify_one();
        }
    }

    /// Takes note that a stream's handle is gone: our direction ends now, and what still comes is discarded.
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
        // A download that is cut off would go on for a second at full speed: its connection ends with it.
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

    /// Wakes the writer, unless others have woken it within a moment.
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

    /// Ends everything on the connection.
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
