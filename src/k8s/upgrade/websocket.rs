//! A WebSocket as a stream of bytes: what is written goes out in binary messages, one for each write.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::wire::websocket::{Event, Opcode, Parser, Role, put_frame};

/// How much is read from the connection at a time.
const READ: usize = 64 * 1024;

/// A write waits while more than this is on its way out.
const MOST_UNSENT: usize = 256 * 1024;

/// The client's end of a WebSocket, after the upgrade.
pub struct WebSocketIo<T> {
    inner: T,
    parser: Parser,
    received: BytesMut,
    /// The rest of a piece of payload that did not fit into the reader's buffer.
    payload: Bytes,
    unsent: BytesMut,
    masks: Masks,
    ended: bool,
    close_sent: bool,
}

impl<T> WebSocketIo<T> {
    pub fn client(inner: T) -> Self {
        Self {
            inner,
            parser: Parser::new(Role::Client),
            received: BytesMut::new(),
            payload: Bytes::new(),
            unsent: BytesMut::new(),
            masks: Masks::new(),
            ended: false,
            close_sent: false,
        }
    }
}

impl<T: AsyncWrite + Unpin> WebSocketIo<T> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let count = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.unsent))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketIo<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.payload.is_empty() {
                let count = this.payload.len().min(buf.remaining());
                buf.put_slice(&this.payload.split_to(count));
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            match this.parser.next(&mut this.received) {
                Ok(Some(Event::Data { payload, .. })) => this.payload = payload,
                Ok(Some(Event::Ping(payload))) => {
                    let mask = this.masks.next();
                    put_frame(&mut this.unsent, Opcode::Pong, &payload, Some(mask));
                    // The answer leaves now or with the next write; an error shows there as well.
                    let _ = this.poll_send(cx);
                }
                Ok(Some(Event::Pong)) => {}
                Ok(Some(Event::Close(_))) => this.ended = true,
                Ok(None) => {
                    this.received.reserve(READ);
                    if ready!(poll_read_buf(Pin::new(&mut this.inner), cx, &mut this.received))? == 0 {
                        this.ended = true;
                    }
                }
                Err(error) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error))),
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.unsent.len() > MOST_UNSENT {
            ready!(self.poll_send(cx))?;
        }
        let mask = self.masks.next();
        put_frame(&mut self.unsent, Opcode::Binary, buf, Some(mask));
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.close_sent {
            let mask = self.masks.next();
            // 1000: a normal closure (RFC 6455, section 7.4.1).
            put_frame(&mut self.unsent, Opcode::Close, &1000u16.to_be_bytes(), Some(mask));
            self.close_sent = true;
        }
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Masking keys. They keep a client's bytes from looking like requests to a proxy that does not know WebSocket (RFC
/// 6455, section 10.3); within TLS nobody sees them, so that a mixer with a random seed is enough.
pub struct Masks([u8; 8]);

impl Default for Masks {
    fn default() -> Self {
        Self::new()
    }
}

impl Masks {
    pub fn new() -> Self {
        Self(super::rand_bytes::<8>())
    }

    /// Returns the next key.
    #[expect(clippy::should_implement_trait, reason = "keys do not end")]
    pub fn next(&mut self) -> [u8; 4] {
        // SplitMix64 (Steele, Lea, Flood 2014).
        let state = u64::from_ne_bytes(self.0).wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0 = state.to_ne_bytes();
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bytes = (mixed ^ (mixed >> 31)).to_ne_bytes();
        [bytes[0], bytes[1], bytes[2], bytes[3]]
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn server_reads(stream: &mut tokio::io::DuplexStream, parser: &mut Parser, input: &mut BytesMut) -> Event {
        loop {
            if let Some(event) = parser.next(input).unwrap() {
                return event;
            }
            stream.read_buf(input).await.unwrap();
        }
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_pings_are_answered() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut client = WebSocketIo::client(near);
        let (mut parser, mut input) = (Parser::new(Role::Server), BytesMut::new());
        client.write_all(b"hello").await.unwrap();
        client.flush().await.unwrap();
        let event = server_reads(&mut far, &mut parser, &mut input).await;
        assert_eq!(event, Event::Data { payload: Bytes::from_static(b"hello"), last: true });

        // A first fragment, a ping in between, and an empty last one: what an API server makes of a chunk.
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
