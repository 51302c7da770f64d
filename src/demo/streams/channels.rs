//! WebSocket messages with a channel number in the first byte (`v4.channel.k8s.io`, `v5.channel.k8s.io`), and port-forwards over
//! them. Channel 2n carries the data of port n, and 2n + 1 its error; each begins with the port (16 bits, little endian).

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

use super::{GRACE, port_forward};
use crate::{
    demo::{Node, process::Sandbox},
    wire::websocket::{Event, Opcode, Parser, Role, put_frame},
};

/// Sender of messages to the client.
#[derive(Clone)]
pub struct Messages(mpsc::Sender<BytesMut>);

impl Messages {
    /// Sends bytes on a channel. False: the connection has ended.
    pub async fn send(&self, channel: u8, bytes: &[u8]) -> bool {
        let mut out = BytesMut::new();
        put_frame(&mut out, Opcode::Binary, &[&[channel][..], bytes].concat(), None);
        self.0.send(out).await.is_ok()
    }

    async fn close(&self) {
        let mut out = BytesMut::new();
        put_frame(&mut out, Opcode::Close, &1000u16.to_be_bytes(), None);
        let _ = self.0.send(out).await;
    }
}

/// Reads messages, and sends them to the channels by number. `[255, n]` closes channel n (v5).
async fn read<R: AsyncRead + Unpin>(
    mut reader: R,
    mut channels: Vec<Option<mpsc::Sender<Bytes>>>,
    pongs: mpsc::Sender<BytesMut>,
) {
    let (mut parser, mut input, mut message) = (Parser::new(Role::Server), BytesMut::new(), BytesMut::new());
    loop {
        match parser.next(&mut input) {
            Ok(Some(Event::Data { payload, last })) => {
                message.extend_from_slice(&payload);
                if !last {
                    continue;
                }
                let mut message = message.split().freeze();
                if message.is_empty() {
                    continue;
                }
                match message.split_to(1)[0] {
                    255 => {
                        if let Some(closed) = message.first().and_then(|number| channels.get_mut(usize::from(*number)))
                        {
                            *closed = None;
                        }
                    }
                    number => {
                        if let Some(Some(channel)) = channels.get(usize::from(number))
                            && !message.is_empty()
                        {
                            // An error means that the channel's reader has ended.
                            let _ = channel.send(message).await;
                        }
                    }
                }
            }
            Ok(Some(Event::Ping(payload))) => {
                let mut out = BytesMut::new();
                put_frame(&mut out, Opcode::Pong, &payload, None);
                let _ = pongs.send(out).await;
            }
            Ok(Some(Event::Pong)) => {}
            Ok(Some(Event::Close(_))) | Err(_) => return,
            Ok(None) => match reader.read_buf(&mut input).await {
                Ok(count) if count > 0 => {}
                _ => return,
            },
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(mut writer: W, mut messages: mpsc::Receiver<BytesMut>) {
    while let Some(message) = messages.recv().await {
        if writer.write_all(&message).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
}

/// Runs `work` on a WebSocket: it gets receivers of `count` channels, and a sender of messages. When it has ended, closes the
/// WebSocket.
pub async fn serve<S, F>(stream: S, count: usize, work: impl FnOnce(Vec<mpsc::Receiver<Bytes>>, Messages) -> F)
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
{
    let (reader, writer): (ReadHalf<S>, WriteHalf<S>) = tokio::io::split(stream);
    let (messages_tx, messages) = mpsc::channel(16);
    let (channels, receivers): (Vec<_>, Vec<_>) =
        (0..count).map(|_| mpsc::channel(1)).map(|(tx, rx)| (Some(tx), rx)).unzip();
    let reading = read(reader, channels, messages_tx.clone());
    let writing = write(writer, messages);
    let messages = Messages(messages_tx);
    let working = async {
        work(receivers, messages.clone()).await;
        messages.close().await;
    };
    tokio::pin!(reading, writing);
    tokio::select! {
        () = &mut reading => return,
        () = &mut writing => return,
        () = working => {}
    }
    // Wait for the writer: a close that overtakes sent messages would lose them.
    let _ = timeout(GRACE, async { tokio::join!(reading, writing) }).await;
}

/// Serves port-forwards over channels. The connection to each port is made at once.
pub async fn port_forward<S>(stream: S, node: Arc<Node>, sandbox: Sandbox, ports: Vec<u16>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    serve(stream, 2 * ports.len(), |receivers, messages| async move {
        let mut forwards = JoinSet::new();
        let data = receivers.into_iter().step_by(2);
        for ((number, port), mut incoming) in ports.into_iter().enumerate().zip(data) {
            let (node, sandbox, messages) = (node.clone(), sandbox.clone(), messages.clone());
            let channel = u8::try_from(2 * number).unwrap_or(u8::MAX);
            forwards.spawn(async move {
                messages.send(channel, &port.to_le_bytes()).await;
                messages.send(channel + 1, &port.to_le_bytes()).await;
                node.faults.count_stream();
                let back = messages.clone();
                let problem = port_forward::connect(&node, &sandbox, port, &mut incoming, |bytes| {
                    let back = back.clone();
                    async move { back.send(channel, &bytes).await }
                })
                .await;
                if let Some(text) = problem {
                    messages.send(channel + 1, text.as_bytes()).await;
                }
            });
        }
        while forwards.join_next().await.is_some() {}
    })
    .await;
}
