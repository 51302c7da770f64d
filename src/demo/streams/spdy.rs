//! SPDY/3.1 as a node serves it: five workers, no flow control, three writes per frame (spdystream).

use std::{collections::HashMap, sync::Arc};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    task::JoinSet,
};

use crate::{
    demo::Node,
    wire::spdy::{
        frame::{self, Frame, Parser},
        headers::{Decoder, Encoder, Headers},
    },
};

/// Number of workers of a node. A stream's id determines its worker. Each worker has a queue of 50 frames.
const LANES: usize = 5;
const LANE_QUEUE: usize = 50;

/// A stream that the client has opened.
pub struct Opened {
    pub id: u32,
    pub headers: Headers,
    /// Bytes from the client; the channel closes at their end.
    pub incoming: mpsc::Receiver<Bytes>,
}

impl Opened {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(other, _)| other == name).map_or("", |(_, value)| value)
    }
}

/// Sender of frames to the client.
#[derive(Clone)]
pub struct Frames(mpsc::Sender<BytesMut>);

impl Frames {
    /// Sends bytes on a stream. False: the connection has ended.
    pub async fn data(&self, id: u32, bytes: &[u8]) -> bool {
        let mut out = BytesMut::with_capacity(frame::HEADER + bytes.len());
        frame::put_data_header(&mut out, id, bytes.len(), false);
        out.extend_from_slice(bytes);
        self.0.send(out).await.is_ok()
    }

    /// Sends the end of a stream.
    pub async fn end(&self, id: u32) {
        let mut out = BytesMut::new();
        frame::put_data_header(&mut out, id, 0, true);
        // An error means that the client has gone.
        let _ = self.0.send(out).await;
    }
}

/// A job of a worker.
enum Work {
    Data(u32, Bytes, bool),
    Reset(u32),
    Ping(u32),
}

/// A stream that its worker must know before the first data.
type NewStream = (u32, mpsc::Sender<Bytes>);

/// Serves a connection until it ends. Sends each stream to `opened` if `accepts` returns true for its headers, and resets the
/// others, as a node does with an invalid port.
pub async fn serve<S>(
    stream: S,
    node: Arc<Node>,
    accepts: impl Fn(&Headers) -> bool,
    opened: mpsc::Sender<Opened>,
    frames: (Frames, mpsc::Receiver<BytesMut>),
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    let (frames, queue) = frames;
    let mut tasks = JoinSet::new();
    tasks.spawn(write(writer, queue, node.clone()));
    tokio::select! {
        () = read(reader, &node, accepts, frames, opened) => {}
        () = node.faults.upgrades_are_dropped() => {}
    }
}

/// Returns the sender of frames and its queue, before the connection is served.
pub fn frames() -> (Frames, mpsc::Receiver<BytesMut>) {
    let (frames_tx, frames) = mpsc::channel(64);
    (Frames(frames_tx), frames)
}

/// Writes frames; each DATA frame takes three writes, as in spdystream.
async fn write<W: AsyncWrite + Unpin>(mut writer: W, mut frames: mpsc::Receiver<BytesMut>, node: Arc<Node>) {
    while let Some(frame) = frames.recv().await {
        node.faults.thaws().await;
        let is_data = frame.first().is_some_and(|first| first & 0x80 == 0);
        let pieces: Vec<&[u8]> = match is_data && frame.len() > frame::HEADER {
            true => vec![&frame[..4], &frame[4..frame::HEADER], &frame[frame::HEADER..]],
            false => vec![&frame],
        };
        for piece in pieces {
            if writer.write_all(piece).await.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
    }
    let _ = writer.shutdown().await;
}

async fn read<R: AsyncRead + Unpin>(
    mut reader: R,
    node: &Arc<Node>,
    accepts: impl Fn(&Headers) -> bool,
    frames: Frames,
    opened: mpsc::Sender<Opened>,
) {
    let (mut parser, mut headers, mut reply_headers, mut input) =
        (Parser::default(), Decoder::default(), Encoder::default(), BytesMut::new());
    let mut workers = JoinSet::new();
    let (mut lanes, mut new_streams) = (Vec::new(), Vec::new());
    for _ in 0..LANES {
        let (work_tx, work) = mpsc::channel(LANE_QUEUE);
        let (stream_tx, streams) = mpsc::unbounded_channel();
        workers.spawn(worker(work, streams, frames.clone(), node.clone()));
        lanes.push(work_tx);
        new_streams.push(stream_tx);
    }
    // Parts of incomplete frames; workers get whole ones.
    let mut partial: HashMap<u32, BytesMut> = HashMap::new();
    let mut pings = 0;
    loop {
        loop {
            let (lane, work) = match parser.next(&mut input) {
                Ok(None) => break,
                Err(_) => return,
                Ok(Some(Frame::SynStream { id, headers: block, .. })) => {
                    let Ok(headers) = headers.decode(&block) else { return };
                    let mut reply = BytesMut::new();
                    if !accepts(&headers) {
                        frame::put_rst_stream(&mut reply, id, frame::reset::CANCEL);
                        if frames.0.send(reply).await.is_err() {
                            return;
                        }
                        continue;
                    }
                    let mut none = BytesMut::new();
                    reply_headers.encode(&[], &mut none);
                    frame::put_syn_reply(&mut reply, id, &none);
                    let (incoming_tx, incoming) = mpsc::channel(1);
                    let _ = new_streams[id as usize % LANES].send((id, incoming_tx));
                    if frames.0.send(reply).await.is_err()
                        || opened.send(Opened { id, headers, incoming }).await.is_err()
                    {
                        return;
                    }
                    continue;
                }
                Ok(Some(Frame::Data { id, payload, fin })) => {
                    let whole = partial.entry(id).or_default();
                    whole.extend_from_slice(&payload);
                    if parser.is_within_data() {
                        continue;
                    }
                    let whole = partial.remove(&id).unwrap_or_default().freeze();
                    (id as usize % LANES, Work::Data(id, whole, fin))
                }
                Ok(Some(Frame::RstStream { id, .. })) => (id as usize % LANES, Work::Reset(id)),
                Ok(Some(Frame::Ping { id })) => {
                    let lane = pings % LANES;
                    pings += 1;
                    (lane, Work::Ping(id))
                }
                Ok(Some(_)) => continue,
            };
            // A full queue stops the whole connection, as on a node.
            if lanes[lane].send(work).await.is_err() {
                return;
            }
        }
        node.faults.thaws().await;
        match reader.read_buf(&mut input).await {
            Ok(count) if count > 0 => {}
            _ => return,
        }
    }
}

/// Runs one worker. A stream that does not read its bytes blocks all streams behind it.
async fn worker(
    mut work: mpsc::Receiver<Work>,
    mut new: mpsc::UnboundedReceiver<NewStream>,
    frames: Frames,
    node: Arc<Node>,
) {
    let mut streams: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    while let Some(next) = work.recv().await {
        while let Ok((id, incoming)) = new.try_recv() {
            streams.insert(id, incoming);
        }
        match next {
            Work::Data(id, payload, fin) => {
                if let Some(stream) = streams.get(&id)
                    && !payload.is_empty()
                    && stream.send(payload).await.is_err()
                    && node.faults.wedges()
                {
                    // The stream's handler has gone. Newer nodes discard its frames; this one waits forever.
                    std::future::pending::<()>().await;
                }
                if fin {
                    streams.remove(&id);
                }
            }
            Work::Reset(id) => drop(streams.remove(&id)),
            Work::Ping(id) => {
                let mut out = BytesMut::new();
                frame::put_ping(&mut out, id);
                if frames.0.send(out).await.is_err() {
                    return;
                }
            }
        }
    }
}
