//! A forwarded connection in a WebSocket of its own, with the channels of `v4.channel.k8s.io`, for gateways that block
//! the other transports. Channel 0 carries data, channel 1 the error text. Each begins with the port (16 bits, little
//! endian). There is no half-close.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{
    connection::{Fate, LONGEST_REPORT, classify},
    stream::{HOLD_ANSWERED, HOLD_UNANSWERED, HOLD_UNUSED},
};
use crate::{
    backend::StreamFault,
    io::{BoxedIo, Io, prefixed},
    k8s::{
        framed::{Framed, PIECE},
        websocket::channels::{Channels, Piece},
    },
};

const DATA: u8 = 0;
const ERROR: u8 = 1;

pub struct ChannelStream {
    framed: Framed<Channels>,
    port: u16,
    /// Bytes of the port that each channel has yet to receive.
    port_left: [usize; 2],
    /// The part of the last message that did not fit into the reader's buffer.
    payload: Bytes,
    report: Vec<u8>,
    ended: bool,
    shut_down: Option<Instant>,
    last_read: Option<Instant>,
    last_written: Option<Instant>,
    hold: Option<Pin<Box<Sleep>>>,
    close_sent: bool,
    fate: Arc<Fate>,
    /// Wait for the silence of a pod that is over.
    silence: BoxFuture<'static, ()>,
    _count: Arc<()>,
}

impl ChannelStream {
    /// `inner`: the upgraded connection, which forwards `port` of the pod with this fate. The stream holds `count` until it is
    /// dropped.
    pub fn new(inner: BoxedIo, port: u16, fate: Arc<Fate>, count: Arc<()>) -> Self {
        Self {
            framed: Framed::new(inner, Channels::new()),
            port,
            port_left: [2; 2],
            payload: Bytes::new(),
            report: Vec::new(),
            ended: false,
            shut_down: None,
            last_read: None,
            last_written: None,
            hold: None,
            close_sent: false,
            silence: Box::pin(fate.clone().silence_after_end()),
            fate,
            _count: count,
        }
    }

    /// Handles a piece of a message.
    fn take(&mut self, Piece { channel, mut payload, .. }: Piece) {
        if let Some(left) = self.port_left.get_mut(usize::from(channel)) {
            let skipped = payload.len().min(*left);
            payload.advance(skipped);
            *left -= skipped;
        }
        match channel {
            DATA => self.payload = payload,
            ERROR => {
                let room = LONGEST_REPORT - self.report.len();
                self.report.extend_from_slice(&payload[..payload.len().min(room)]);
            }
            _ => {}
        }
    }

    /// Closes the WebSocket once the client has sent its FIN and the pod has been silent for long enough.
    fn poll_hold(&mut self, cx: &mut Context<'_>) {
        let Some(shut_down) = self.shut_down.filter(|_| !self.close_sent) else { return };
        let quiet = match (self.last_written, self.last_read) {
            (None, _) => HOLD_UNUSED,
            (Some(written), Some(read)) if read >= written => HOLD_ANSWERED,
            (Some(_), _) => HOLD_UNANSWERED,
        };
        let deadline = self.last_read.map_or(shut_down, |at| at.max(shut_down)) + quiet;
        let hold = self.hold.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if hold.deadline() != deadline {
            hold.as_mut().reset(deadline);
        }
        if hold.as_mut().poll(cx).is_ready() {
            self.close_sent = true;
            self.framed.close();
            // The next read reports an error.
            let _ = self.framed.poll_flush(cx);
        }
    }
}

impl AsyncRead for ChannelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.payload.is_empty() {
                prefixed::take(&mut this.payload, buf);
                this.last_read = Some(Instant::now());
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                return Poll::Ready(match this.report.is_empty() {
                    true => Ok(()),
                    false => Err(classify(&String::from_utf8_lossy(&this.report), this.port).into()),
                });
            }
            match this.framed.poll_next(cx) {
                Poll::Ready(Ok(Some(piece))) => {
                    this.take(piece);
                    if this.fate.is_over() {
                        this.silence = Box::pin(this.fate.clone().silence_after_end());
                    }
                }
                Poll::Ready(Ok(None)) => this.ended = true,
                // The node's error text is the better error.
                Poll::Ready(Err(_)) if !this.report.is_empty() => this.ended = true,
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(StreamFault::Lost { detail: error.to_string() }.into()));
                }
                Poll::Pending => {
                    this.poll_hold(cx);
                    return this.silence.as_mut().poll(cx).map(|()| Err(Fate::unended().into()));
                }
            }
        }
    }
}

impl AsyncWrite for ChannelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.shut_down.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(self.framed.poll_ready(cx))?;
        let piece = &buf[..buf.len().min(PIECE)];
        self.framed.put(|channels, out| channels.put(DATA, piece, out));
        self.last_written = Some(Instant::now());
        if let Poll::Ready(Err(error)) = self.framed.poll_flush(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.framed.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.framed.poll_flush(cx))?;
        self.shut_down.get_or_insert_with(Instant::now);
        // A waiting reader has to set the timer, in this task or in another.
        self.poll_hold(cx);
        Poll::Ready(Ok(()))
    }
}

impl Io for ChannelStream {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::BytesMut;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::timeout,
    };

    use super::*;
    use crate::wire::websocket::{Opcode, put_frame};

    const CLOSE_1000: &[u8] = &[3, 232];

    /// Returns a stream to port 80, and the node's end of it.
    fn stream(fate: &Arc<Fate>) -> (ChannelStream, DuplexStream) {
        let (near, far) = duplex(1 << 16);
        (ChannelStream::new(Box::new(near), 80, fate.clone(), Arc::default()), far)
    }

    async fn say(node: &mut DuplexStream, messages: &[(Opcode, &[u8])]) {
        let mut said = BytesMut::new();
        for (opcode, message) in messages {
            put_frame(&mut said, *opcode, message, None);
        }
        node.write_all(&said).await.unwrap();
    }

    fn fate() -> Arc<Fate> {
        Arc::new(Fate::new(Arc::default()))
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_close_without_an_error_text_is_a_clean_end() {
        let (data, more) = ((Opcode::Binary, &b"\0\x50\0an"[..]), (Opcode::Binary, &b"\0swer"[..]));
        let report = (Opcode::Binary, &b"\x01\x50\0read: connection reset by peer"[..]);
        let close = (Opcode::Close, CLOSE_1000);
        for (messages, wanted) in [
            (&[data, more, close][..], "clean"),
            (&[data, more, report, close], "the pod reset the connection"),
            (&[data, more, report], "the pod reset the connection"),
            (&[data, more], "lost the connection to the cluster"),
        ] {
            let (mut stream, mut node) = stream(&fate());
            say(&mut node, messages).await;
            drop(node);
            let mut answer = Vec::new();
            let end = stream.read_to_end(&mut answer).await;
            assert_eq!(answer, b"answer", "every byte before the end");
            let end = end.map_or_else(|error| error.to_string(), |_| "clean".to_owned());
            assert!(end.starts_with(wanted), "{end}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_clients_fin_it_closes_when_the_pod_has_been_silent() {
        let second = Duration::from_secs(1);
        for (asks, answered_after, wanted) in [
            (false, None, HOLD_UNUSED),
            (true, None, HOLD_UNANSWERED),
            (true, Some(Duration::ZERO), HOLD_ANSWERED),
            // Each answer starts the time again.
            (true, Some(second), second + HOLD_ANSWERED),
        ] {
            let (mut stream, mut node) = stream(&fate());
            if asks {
                stream.write_all(b"ask").await.unwrap();
                let _ = node.read(&mut [0; 64]).await.unwrap();
            }
            stream.shutdown().await.unwrap();
            let began = Instant::now();
            let node = async {
                if let Some(after) = answered_after {
                    tokio::time::sleep(after).await;
                    say(&mut node, &[(Opcode::Binary, b"\0\x50\0answer")]).await;
                }
                let mut frame = [0; 6];
                // Its pings come first: a header and a mask of 6 bytes, and the payload.
                while frame[0] != 0x88 {
                    node.read_exact(&mut frame).await.unwrap();
                    let mut payload = vec![0; usize::from(frame[1] & 0x7f)];
                    node.read_exact(&mut payload).await.unwrap();
                    if frame[0] == 0x89 {
                        say(&mut node, &[(Opcode::Pong, &payload)]).await;
                    }
                }
                let took = began.elapsed();
                say(&mut node, &[(Opcode::Close, CLOSE_1000)]).await;
                took
            };
            let mut answer = Vec::new();
            let closing = futures::future::join(node, stream.read_to_end(&mut answer));
            let (took, end) = timeout(Duration::from_secs(60), closing).await.expect("it closes");
            end.unwrap();
            assert_eq!(took.as_millis() / 10, wanted.as_millis() / 10);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_waits_for_a_node_that_does_not_read() {
        let (mut stream, _node) = stream(&fate());
        let writing = timeout(Duration::from_secs(5), stream.write_all(&[7; 4 << 20]));
        assert!(writing.await.is_err(), "adit would hold all of it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_has_ended_breaks_it_after_the_last_bytes() {
        let fate = fate();
        let (mut stream, mut node) = stream(&fate);
        fate.wait_for(std::future::ready(()));
        let mut answer = Vec::new();
        let speak = async {
            say(&mut node, &[(Opcode::Binary, b"\0\x50\0an")]).await;
            for message in [b"\0s", b"\0w", b"\0e", b"\0r"] {
                tokio::time::sleep(Duration::from_secs(3)).await;
                say(&mut node, &[(Opcode::Binary, message)]).await;
            }
            std::future::pending().await
        };
        let error = tokio::select! {
            () = speak => unreachable!(),
            read = stream.read_to_end(&mut answer) => read.unwrap_err(),
        };
        assert_eq!(answer, b"answer");
        assert_eq!(StreamFault::of(&error), Some(&Fate::unended()));
    }
}
