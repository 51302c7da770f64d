//! A WebSocket as a byte stream, the transport of SPDY. Each write is one binary message.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Frames;
use crate::{
    io::{BoxedIo, Io, prefixed},
    k8s::framed::{Codec, Framed, Incoming, PIECE},
    wire::websocket::Opcode,
};

/// Client end of the WebSocket after the upgrade.
pub struct WebSocketIo {
    framed: Framed<Messages>,
    /// Rest of a payload that did not fit into the reader's buffer.
    payload: Bytes,
}

struct Messages(Frames);

impl Codec for Messages {
    type Item = Bytes;

    fn next(&mut self, input: &mut BytesMut) -> io::Result<Option<Incoming<Bytes>>> {
        Ok(self.0.next(input)?.map(|incoming| match incoming {
            Incoming::Item((payload, _)) => Incoming::Item(payload),
            Incoming::Ping(payload) => Incoming::Ping(payload),
            Incoming::Pong => Incoming::Pong,
            Incoming::Close(end) => Incoming::Close(end),
        }))
    }

    fn put_ping(&mut self, number: u32, out: &mut BytesMut) {
        self.0.put_ping(number, out);
    }

    fn put_pong(&mut self, payload: &[u8], out: &mut BytesMut) {
        self.0.put(Opcode::Pong, payload, out);
    }

    fn put_close(&mut self, out: &mut BytesMut) {
        self.0.put_close(out);
    }
}

impl WebSocketIo {
    pub fn new(io: BoxedIo) -> Self {
        Self { framed: Framed::new(io, Messages(Frames::new())), payload: Bytes::new() }
    }
}

impl AsyncRead for WebSocketIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.payload.is_empty() {
            match ready!(self.framed.poll_next(cx))? {
                Some(payload) => self.payload = payload,
                None => return Poll::Ready(Ok(())),
            }
        }
        prefixed::take(&mut self.payload, buf);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WebSocketIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.framed.poll_ready(cx))?;
        let piece = &buf[..buf.len().min(PIECE)];
        self.framed.put(|messages, out| messages.0.put(Opcode::Binary, piece, out));
        if let Poll::Ready(Err(error)) = self.framed.poll_flush(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.framed.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.framed.poll_shutdown(cx)
    }
}

impl Io for WebSocketIo {}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::wire::websocket::{Event, Parser, Role, put_frame};

    async fn server_reads(stream: &mut DuplexStream, parser: &mut Parser, input: &mut BytesMut) -> Event {
        loop {
            if let Some(event) = parser.next(input).unwrap() {
                return event;
            }
            stream.read_buf(input).await.unwrap();
        }
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_pings_are_answered() {
        let (near, mut far) = duplex(1 << 20);
        let mut client = WebSocketIo::new(Box::new(near));
        let (mut parser, mut input) = (Parser::new(Role::Server), BytesMut::new());
        client.write_all(b"hello").await.unwrap();
        client.flush().await.unwrap();
        let event = server_reads(&mut far, &mut parser, &mut input).await;
        assert_eq!(event, Event::Data { payload: Bytes::from_static(b"hello"), last: true });

        // An API server sends a chunk as a first fragment and an empty last one. Here a ping comes between them.
        let mut out = BytesMut::from(&b"\x02\x03abc\x89\x01?"[..]);
        out.extend_from_slice(b"\x80\x00");
        put_frame(&mut out, Opcode::Binary, &[9; 100_000], None);
        far.write_all(&out).await.unwrap();
        let mut back = vec![0; 100_003];
        client.read_exact(&mut back).await.unwrap();
        assert_eq!((&back[..3], &back[3..]), (&b"abc"[..], &[9u8; 100_000][..]));
        assert_eq!(server_reads(&mut far, &mut parser, &mut input).await, Event::Pong);

        client.shutdown().await.unwrap();
        assert_eq!(server_reads(&mut far, &mut parser, &mut input).await, Event::Close(Some(1000)));
        far.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
