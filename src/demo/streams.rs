//! Port-forward and exec, as a node serves them: slow pods hold up their lane, half-closes do not pass, and ends come
//! with the delays of the real chain.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    sync::{broadcast::error::RecvError, mpsc},
    task::JoinSet,
    time::timeout,
};

use super::{Node, exec};
use crate::wire::{
    spdy::{
        frame::{self, Frame, Parser},
        headers::{Decoder, Encoder, Headers},
    },
    websocket::{Event, Opcode, Parser as WebSocketParser, Role, put_frame},
};

/// A node reads frames into five workers, chosen by stream id, each with a queue of 50 (spdystream).
const LANES: usize = 5;
const LANE_QUEUE: usize = 50;

/// When one direction of a forwarded connection ends, the other has this long (containerd, CRI-O).
const GRACE: Duration = Duration::from_secs(1);

/// A stream as the client opened it.
struct Opened {
    id: u32,
    headers: Headers,
    incoming: mpsc::Receiver<Bytes>,
}

impl Opened {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(other, _)| other == name).map_or("", |(_, value)| value)
    }
}

/// What a worker does next.
enum Work {
    Data(u32, Bytes, bool),
    Reset(u32),
    Ping(u32),
}

/// Serves the port-forwards of one upgraded SPDY connection to a pod.
pub async fn port_forward<S>(stream: S, node: Arc<Node>, namespace: String, pod: String)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    let (frames_tx, frames) = mpsc::channel::<BytesMut>(64);
    let (opened_tx, mut opened) = mpsc::channel::<Opened>(16);
    let mut tasks = JoinSet::new();
    tasks.spawn(write(writer, frames));
    let reading = read(reader, frames_tx.clone(), opened_tx);
    let forwarding = async {
        let mut waiting: HashMap<String, Opened> = HashMap::new();
        let mut forwards = JoinSet::new();
        while let Some(stream) = opened.recv().await {
            let request = stream.header("requestid").to_owned();
            let Ok(port) = stream.header("port").parse::<u16>() else {
                let mut out = BytesMut::new();
                frame::put_rst_stream(&mut out, stream.id, frame::reset::CANCEL);
                let _ = frames_tx.send(out).await;
                continue;
            };
            let Some(other) = waiting.remove(&request) else {
                waiting.insert(request, stream);
                continue;
            };
            let (error, data) = if stream.header("streamtype") == "data" { (other, stream) } else { (stream, other) };
            node.faults.count_stream();
            forwards.spawn(forward(
                node.clone(),
                namespace.clone(),
                pod.clone(),
                port,
                error.id,
                data,
                frames_tx.clone(),
            ));
        }
        while forwards.join_next().await.is_some() {}
    };
    tokio::select! {
        () = async { tokio::join!(reading, forwarding); } => {}
        () = node.faults.drop_upgrades.notified() => {}
    }
}

/// Every DATA frame is three writes, as spdystream makes them.
async fn write<W: AsyncWrite + Unpin>(mut writer: W, mut frames: mpsc::Receiver<BytesMut>) {
    while let Some(frame) = frames.recv().await {
        let is_data = frame.first().is_some_and(|first| first & 0x80 == 0);
        let pieces: Vec<&[u8]> =
            if is_data && frame.len() > 8 { vec![&frame[..4], &frame[4..8], &frame[8..]] } else { vec![&frame] };
        for piece in pieces {
            if writer.write_all(piece).await.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
    }
    let _ = writer.shutdown().await;
}

async fn read<R: AsyncRead + Unpin>(mut reader: R, frames: mpsc::Sender<BytesMut>, opened: mpsc::Sender<Opened>) {
    let (mut parser, mut headers, mut reply_headers, mut input) =
        (Parser::default(), Decoder::default(), Encoder::default(), BytesMut::new());
    let mut workers = JoinSet::new();
    let (mut lanes, mut new_streams) = (Vec::new(), Vec::new());
    for _ in 0..LANES {
        let (work_tx, work) = mpsc::channel(LANE_QUEUE);
        let (stream_tx, streams) = mpsc::unbounded_channel();
        workers.spawn(worker(work, streams, frames.clone()));
        lanes.push(work_tx);
        new_streams.push(stream_tx);
    }
    let mut pings = 0;
    loop {
        loop {
            let (lane, work) = match parser.next(&mut input) {
                Ok(None) => break,
                Err(_) => return,
                Ok(Some(Frame::SynStream { id, headers: block, .. })) => {
                    let Ok(headers) = headers.decode(&block) else { return };
                    let (incoming_tx, incoming) = mpsc::channel(1);
                    let mut reply = BytesMut::new();
                    let mut none = BytesMut::new();
                    reply_headers.encode(&[], &mut none);
                    frame::put_syn_reply(&mut reply, id, &none);
                    let _ = new_streams[id as usize % LANES].send((id, incoming_tx));
                    if frames.send(reply).await.is_err() || opened.send(Opened { id, headers, incoming }).await.is_err()
                    {
                        return;
                    }
                    continue;
                }
                Ok(Some(Frame::Data { id, payload, fin })) => (id as usize % LANES, Work::Data(id, payload, fin)),
                Ok(Some(Frame::RstStream { id, .. })) => (id as usize % LANES, Work::Reset(id)),
                Ok(Some(Frame::Ping { id })) => {
                    pings += 1;
                    (pings % LANES, Work::Ping(id))
                }
                Ok(Some(_)) => continue,
            };
            // A full lane stops the whole connection, as it does on a node.
            if lanes[lane].send(work).await.is_err() {
                return;
            }
        }
        match reader.read_buf(&mut input).await {
            Ok(count) if count > 0 => {}
            _ => return,
        }
    }
}

/// One of the five: a stream that cannot take its bytes holds up all behind it.
async fn worker(
    mut work: mpsc::Receiver<Work>,
    mut new: mpsc::UnboundedReceiver<(u32, mpsc::Sender<Bytes>)>,
    frames: mpsc::Sender<BytesMut>,
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
                {
                    // A handler that has gone takes nothing: newer nodes discard what comes for it.
                    let _ = stream.send(payload).await;
                }
                if fin {
                    streams.remove(&id);
                }
            }
            Work::Reset(id) => drop(streams.remove(&id)),
            Work::Ping(id) => {
                let mut out = BytesMut::new();
                frame::put_ping(&mut out, id);
                if frames.send(out).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn forward(
    node: Arc<Node>,
    namespace: String,
    pod: String,
    port: u16,
    error: u32,
    mut data: Opened,
    frames: mpsc::Sender<BytesMut>,
) {
    let gone = gone(&node, &namespace, &pod);
    let problem = match node.connect(&namespace, &pod, port) {
        // The end of a pod is no error: its connections just end.
        Ok(stream) => tokio::select! {
            problem = copy(stream, &mut data, &frames) => problem,
            () = gone => None,
        },
        Err(text) => Some(text),
    };
    // The data stream's end comes first, then the text, then the end of the error stream.
    let mut out = BytesMut::new();
    frame::put_data_header(&mut out, data.id, 0, true);
    let _ = frames.send(out.split()).await;
    if let Some(text) = problem {
        frame::put_data_header(&mut out, error, text.len(), false);
        out.extend_from_slice(text.as_bytes());
        let _ = frames.send(out.split()).await;
    }
    frame::put_data_header(&mut out, error, 0, true);
    let _ = frames.send(out).await;
}

/// Resolves when the pod is deleted. What is missed while nobody polls is made up for.
fn gone(node: &Node, namespace: &str, pod: &str) -> impl Future<Output = ()> + use<> {
    let mut news = node.world.watch();
    let (namespace, pod) = (namespace.to_owned(), pod.to_owned());
    async move {
        loop {
            match news.recv().await {
                Ok(("pods", "DELETED", object))
                    if object["metadata"]["name"] == pod.as_str()
                        && object["metadata"]["namespace"] == namespace.as_str() =>
                {
                    return;
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }
}

/// Copies both ways until one ends, and the other for the grace. Returns what goes to the error stream.
async fn copy(stream: DuplexStream, data: &mut Opened, frames: &mpsc::Sender<BytesMut>) -> Option<String> {
    let (mut from_pod, mut to_pod) = tokio::io::split(stream);
    let id = data.id;
    let incoming = &mut data.incoming;
    let up = async {
        while let Some(bytes) = incoming.recv().await {
            if to_pod.write_all(&bytes).await.is_err() {
                return Some("write: broken pipe".to_owned());
            }
        }
        None
    };
    let down = async {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let count = match from_pod.read(&mut buffer).await {
                Ok(0) => return None,
                Ok(count) => count,
                Err(error) => return Some(format!("read: {error}")),
            };
            let mut out = BytesMut::with_capacity(8 + count);
            frame::put_data_header(&mut out, id, count, false);
            out.extend_from_slice(&buffer[..count]);
            if frames.send(out).await.is_err() {
                return None;
            }
        }
    };
    tokio::pin!(up, down);
    tokio::select! {
        problem = &mut up => timeout(GRACE, down).await.ok().flatten().or(problem),
        problem = &mut down => {
            let _ = timeout(GRACE, up).await;
            problem
        }
    }
}

/// Carries the bytes of a WebSocket's messages to and from `inner`, as an API server does that unwraps the tunnel.
pub async fn unwrap_websocket<S>(stream: S, inner: DuplexStream)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (mut from_inner, mut to_inner) = tokio::io::split(inner);
    let (pongs_tx, mut pongs) = mpsc::channel::<Bytes>(8);
    let up = async {
        let (mut parser, mut input) = (WebSocketParser::new(Role::Server), BytesMut::new());
        loop {
            match parser.next(&mut input) {
                Ok(Some(Event::Data { payload, .. })) => {
                    if to_inner.write_all(&payload).await.is_err() {
                        return;
                    }
                }
                Ok(Some(Event::Ping(payload))) => drop(pongs_tx.send(payload).await),
                Ok(Some(Event::Pong)) => {}
                Ok(Some(Event::Close(_))) | Err(_) => return,
                Ok(None) => match reader.read_buf(&mut input).await {
                    Ok(count) if count > 0 => {}
                    _ => return,
                },
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let mut out = BytesMut::new();
            tokio::select! {
                read = from_inner.read(&mut buffer) => match read {
                    Ok(count) if count > 0 => {
                        // A non-final frame and an empty last one: what an API server makes of a chunk.
                        put_frame(&mut out, Opcode::Binary, &buffer[..count], None);
                        out[0] &= 0x7f;
                        put_frame(&mut out, Opcode::Continuation, &[], None);
                    }
                    _ => return,
                },
                Some(payload) = pongs.recv() => put_frame(&mut out, Opcode::Pong, &payload, None),
            }
            if writer.write_all(&out).await.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = up => {} () = down => {} }
}

/// Serves an exec over the channels of `v5.channel.k8s.io` or `v4`: 0 stdin, 1 stdout, 2 stderr, 3 status.
pub async fn exec<S>(mut stream: S, command: Vec<String>, pod: String)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut parser, mut input, mut stdin, mut message) =
        (WebSocketParser::new(Role::Server), BytesMut::new(), Vec::new(), BytesMut::new());
    if exec::reads_stdin(&command) {
        // Until the client closes the channel (v5), or says nothing for a while (v4 has no way to).
        'stdin: loop {
            match parser.next(&mut input) {
                Ok(Some(Event::Data { payload, last })) => {
                    message.extend_from_slice(&payload);
                    if last {
                        match message.split().split_first() {
                            Some((255, [0])) => break 'stdin,
                            Some((0, bytes)) => stdin.extend_from_slice(bytes),
                            _ => {}
                        }
                    }
                }
                Ok(Some(Event::Close(_))) | Err(_) => break,
                Ok(Some(_)) => {}
                Ok(None) => match timeout(Duration::from_secs(2), stream.read_buf(&mut input)).await {
                    Ok(Ok(count)) if count > 0 => {}
                    _ => break,
                },
            }
        }
    }
    let result = exec::run(&command, &stdin, &pod);
    let status = match result.code {
        0 => serde_json::json!({"metadata": {}, "status": "Success"}),
        code => serde_json::json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}
        }),
    };
    let mut out = BytesMut::new();
    for (channel, bytes) in
        [(1u8, result.stdout.into_bytes()), (2, result.stderr.into_bytes()), (3, status.to_string().into_bytes())]
    {
        if !bytes.is_empty() {
            put_frame(&mut out, Opcode::Binary, &[&[channel][..], &bytes].concat(), None);
        }
    }
    put_frame(&mut out, Opcode::Close, &1000u16.to_be_bytes(), None);
    // The client went away.
    let _ = stream.write_all(&out).await;
    let _ = stream.flush().await;
    // A close that overtakes the status would lose it.
    let _ = timeout(Duration::from_secs(1), async {
        while stream.read_buf(&mut input).await.is_ok_and(|count| count > 0) {}
    })
    .await;
}
