//! The two tasks of an upgraded connection: one writes the frames of all streams, one reads and dispatches frames.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    select,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tracing::debug;

use super::{Fate, LAST_BYTES, LONGEST_REPORT, Shared, State, liveness::Verdict};
use crate::{
    backend::StreamFault,
    io::BoxedIo,
    k8s::reach::of_io,
    wire::spdy::frame::{self, Frame, Parser},
};

const READ: usize = 64 * 1024;

/// Maximum bytes buffered for a stream that is alone on its connection. Then adit stops reading the connection.
const STREAM_QUEUE: usize = 1024 * 1024;

/// Maximum bytes buffered for all streams of a shared connection. Then all streams wait for the slowest reader. If
/// another stream waits for an answer, the limit is twice as high, because bytes of the slow one may be ahead of that
/// answer.
const CONNECTION_QUEUE: usize = 32 * 1024 * 1024;
const CONNECTION_QUEUE_IN_NEED: usize = 2 * CONNECTION_QUEUE;

/// A reader that takes nothing while other streams wait is reset: after 1 s if one of them waits for an answer, else
/// after 30 s. A slow reader takes bytes again and again.
const STALLED: Duration = Duration::from_secs(1);
const STALLED_UNNOTICED: Duration = Duration::from_secs(30);

pub async fn write(shared: Arc<Shared>, mut io: WriteHalf<BoxedIo>) {
    let mut batch = BytesMut::new();
    loop {
        let is_dead = {
            let mut state = shared.lock();
            state.fill(&mut batch, shared.port);
            state.fault().is_some()
        };
        if is_dead {
            break;
        }
        if batch.is_empty() {
            batch = BytesMut::new();
            shared.write.notified().await;
            // Let other tasks append their bytes first: one write instead of many.
            tokio::task::yield_now().await;
            continue;
        }
        if let Err(error) = write_batch(&shared, &mut io, &batch).await {
            shared.die(StreamFault::Lost { detail: of_io(&error) });
            break;
        }
        batch.clear();
        let has_pings = shared.lock().pings.written(Instant::now());
        if has_pings {
            shared.look.notify_one();
        }
    }
    // The reader ends with the connection. An error means that it has already ended.
    let _ = io.shutdown().await;
}

/// Writes a batch, and records each wait for the socket.
async fn write_batch(shared: &Shared, io: &mut WriteHalf<BoxedIo>, batch: &[u8]) -> io::Result<()> {
    let mut rest = batch;
    while !rest.is_empty() {
        let count = noting_waits(shared, |cx| Pin::new(&mut *io).poll_write(cx, rest)).await?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        rest = &rest[count..];
    }
    noting_waits(shared, |cx| Pin::new(&mut *io).poll_flush(cx)).await
}

async fn noting_waits<T>(shared: &Shared, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    let mut has_waited = false;
    let done = poll_fn(|cx| {
        let polled = poll(cx);
        if polled.is_pending() && !std::mem::replace(&mut has_waited, true) {
            shared.lock().write_waits(true);
            shared.look.notify_one();
        }
        polled
    })
    .await;
    if has_waited {
        shared.lock().write_waits(false);
    }
    done
}

pub async fn read(shared: Arc<Shared>, mut io: ReadHalf<BoxedIo>) {
    let mut parser = Parser::default();
    let mut input = BytesMut::new();
    let mut last_inbound = Instant::now();
    // Since when nothing has come from a pod that is over. PINGs do not count: the node answers them.
    let mut silent_since = None;
    let fate = shared.fate.clone();
    let mut over = std::pin::pin!(fate.over.cancelled());
    let fault = loop {
        let deadline = {
            let mut state = shared.lock();
            if let Some(fault) = state.fault() {
                break fault.clone();
            }
            let deadline = match look(&mut state, last_inbound) {
                Ok(deadline) => deadline,
                Err(fault) => break fault,
            };
            let deadline = match silent_since.map(|since| since + LAST_BYTES) {
                Some(end) if end <= Instant::now() => break Fate::unended(),
                end => end.map_or(deadline, |end: Instant| end.min(deadline)),
            };
            if !state.control.is_empty() {
                shared.write.notify_one();
            }
            deadline
        };
        if input.is_empty() {
            // The buffer is freed while the connection is idle, and shared with the queues otherwise.
            input.reserve(READ);
        }
        // All arms are cancel-safe: dropping the read loses no byte.
        select! {
            // Reads first, so that bytes that have arrived count before a deadline that has passed.
            biased;
            read = io.read_buf(&mut input) => match read {
                Ok(0) => break StreamFault::Lost { detail: "the API server or the node closed it".to_owned() },
                Err(error) => break StreamFault::Lost { detail: of_io(&error) },
                Ok(_) => last_inbound = Instant::now(),
            },
            () = &mut over, if silent_since.is_none() => {
                silent_since = Some(Instant::now());
                continue;
            }
            () = shared.look.notified() => continue,
            () = sleep_until(deadline) => continue,
        }
        let has_data = match dispatch(&shared, &mut parser, &mut input) {
            Ok(has_data) => has_data,
            Err(error) => break StreamFault::Lost { detail: error.to_string() },
        };
        let has_waited = wait_for_readers(&shared).await;
        if has_waited {
            // The silence was adit's pause, not the node's: frames that arrived meanwhile are still unread.
            last_inbound = Instant::now();
        }
        if has_data || has_waited {
            silent_since = silent_since.map(|_| Instant::now());
        }
    };
    let is_unended = fault == Fate::unended();
    shared.die(fault);
    if is_unended {
        // Their readers get an error anyway. A slow one should not learn it minutes later.
        sleep(LAST_BYTES).await;
        shared.discard_unended();
    }
}

/// Acts on the signs of life of the connection. Returns when to look again.
fn look(state: &mut State, last_inbound: Instant) -> Result<Instant, StreamFault> {
    loop {
        match state.signs(last_inbound).judge(Instant::now()) {
            Verdict::Fine(again) => return Ok(again),
            Verdict::Ping => state.ping(0),
            Verdict::Retire => {
                // A pod that does not read blocks it, or bytes for a closed stream block it for good.
                debug!("a worker of the node hangs: the upgraded connection takes no new streams");
                state.phase.retire();
            }
            Verdict::Dead => {
                return Err(StreamFault::Lost {
                    detail: "for 15 s the connection made no progress and no PING was answered".to_owned(),
                });
            }
        }
    }
}

/// Dispatches received frames, and wakes the streams that wait for them. Returns whether a pod has sent bytes or an end.
fn dispatch(shared: &Shared, parser: &mut Parser, input: &mut BytesMut) -> Result<bool, frame::FrameError> {
    let mut has_data = false;
    let now = Instant::now();
    let mut state = shared.lock();
    let state = &mut *state;
    if state.heard.is_none() {
        shared.first_bytes.notify_one();
    }
    state.heard = Some((now, SystemTime::now()));
    while let Some(frame) = parser.next(input)? {
        let id = match frame {
            Frame::Data { id, .. } | Frame::RstStream { id, .. } => id,
            Frame::Ping { id } => {
                if state.on_ping(id, now) {
                    shared.write.notify_one();
                }
                continue;
            }
            Frame::GoAway { .. } => {
                state.phase.retire();
                continue;
            }
            Frame::SynStream { .. } | Frame::SynReply { .. } => continue,
        };
        has_data = true;
        let Some((number, is_data)) = state.stream_of(id) else { continue };
        let Some(stream) = state.streams.get_mut(&number) else { continue };
        match frame {
            Frame::Data { payload, fin, .. } if is_data => {
                if !payload.is_empty() {
                    stream.unanswered = false;
                    stream.last_received = Some(now);
                    stream.count(payload.len(), &mut state.transfers);
                    // After a reset, frames are still on their way, behind bytes that are missing.
                    if !stream.dropped && !stream.is_over() {
                        stream.inbox_bytes += payload.len();
                        state.queued += payload.len();
                        stream.inbox.push_back(payload);
                    }
                }
                if fin {
                    stream.remote.end_data();
                }
            }
            Frame::Data { payload, fin, .. } => {
                let room = LONGEST_REPORT - stream.report.len();
                stream.report.extend_from_slice(&payload[..payload.len().min(room)]);
                if fin {
                    stream.remote.end_report();
                }
            }
            _ if is_data => stream.remote.reset(),
            _ => stream.remote.end_report(),
        }
        stream.wake();
        if stream.is_over() {
            on_end(shared, state, number);
        }
    }
    Ok(has_data)
}

/// Handles the end of a stream: a pod that is gone, and uploads that the pod may not have read.
fn on_end(shared: &Shared, state: &mut State, number: u64) {
    let Some(stream) = state.streams.get_mut(&number) else { return };
    let end = stream.end(shared.port);
    let is_unread = stream.unanswered || !stream.outbox.is_empty();
    let is_dropped = stream.dropped;
    if let Some(Err(StreamFault::PodGone { .. })) = end {
        state.phase.retire();
        shared.fate.pod_gone();
    }
    if is_unread || state.is_on_its_way(number) {
        state.doubt_lanes();
    }
    if is_dropped {
        state.remove_stream(number);
    }
}

/// Waits while the queues are full. Returns whether it has waited.
async fn wait_for_readers(shared: &Shared) -> bool {
    let since = Instant::now();
    let mut has_waited = false;
    loop {
        {
            let mut state = shared.lock();
            let has_room = state.fault().is_some() || has_room(&mut state, since, shared.fate.over.is_cancelled());
            shared.is_paused.store(!has_room, Ordering::Relaxed);
            if has_room {
                return has_waited;
            }
        }
        has_waited = true;
        // Look again after a while: another stream may begin to wait for an answer.
        let _ = timeout_at(Instant::now() + STALLED, shared.read.notified()).await;
    }
}

/// Returns whether more may be read. Resets a reader that has blocked the others for too long. `since`: when reading stopped.
/// `is_over`: the pod is over, and adit reads ahead of a slow reader to find out how the stream ended.
fn has_room(state: &mut State, since: Instant, is_over: bool) -> bool {
    if state.queued <= STREAM_QUEUE {
        return true;
    }
    let Some((fullest, _)) = state.streams.iter().max_by_key(|(_, stream)| stream.inbox_bytes) else { return true };
    let fullest = *fullest;
    let others = state.streams.iter().filter(|(number, other)| **number != fullest && other.has_client());
    let (mut has_others, mut is_waited_for) = (false, false);
    for (_, other) in others {
        has_others = true;
        is_waited_for |= other.unanswered;
    }
    let Some(stream) = state.streams.get_mut(&fullest) else { return true };
    if !has_others {
        return stream.inbox_bytes <= if is_over { CONNECTION_QUEUE } else { STREAM_QUEUE };
    }
    // New streams use another connection.
    if stream.inbox_bytes > STREAM_QUEUE {
        state.phase.retire();
    }
    if state.queued <= if is_waited_for { CONNECTION_QUEUE_IN_NEED } else { CONNECTION_QUEUE } {
        return true;
    }
    let stopped = stream.last_taken.map_or(since, |at| at.max(since)).elapsed();
    if stopped < if is_waited_for { STALLED } else { STALLED_UNNOTICED } {
        return false;
    }
    debug!("a reader that takes nothing is reset: others on its connection wait");
    // Its reader gets an error, because bytes at the end are missing.
    stream.remote.reset();
    stream.wake();
    if let Some(pair) = stream.pair {
        frame::put_rst_stream(&mut state.control, pair.data, frame::reset::CANCEL);
    }
    state.queued -= std::mem::take(&mut stream.inbox_bytes);
    stream.inbox.clear();
    true
}
