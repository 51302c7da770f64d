//! Removes empty DATA frames before h2 counts them: it ends a connection, with all its streams, at the 101st of its life
//! (`MAX_RECV_EMPTY_DATA_FRAMES`). Servers of streams of events send some each day. For clients, [`flood`](super::flood) limits
//! their number.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::io::through::write_through;

/// Length of a frame's head (RFC 9113, section 4.1).
const HEAD: usize = 9;

/// Size of a read.
const CHUNK: usize = 16 * 1024;

/// Length, type and flags of the frames that are removed: an END_STREAM means something, and padding counts in windows.
const EMPTY_DATA: [u8; 5] = [0; 5];

/// A peer's connection without its empty DATA frames.
pub struct WithoutEmptyData<T> {
    inner: T,
    /// Bytes that were read and not passed on yet.
    read: BytesMut,
    /// Bytes to pass on before the next head.
    left: usize,
}

impl<T> WithoutEmptyData<T> {
    /// `preface`: number of bytes before the first frame.
    pub fn new(inner: T, preface: usize) -> Self {
        Self { inner, read: BytesMut::new(), left: preface }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WithoutEmptyData<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        loop {
            while this.left == 0 && this.read.len() >= HEAD {
                match this.read.starts_with(&EMPTY_DATA) {
                    true => this.read.advance(HEAD),
                    false => {
                        this.left = HEAD + u32::from_be_bytes([0, this.read[0], this.read[1], this.read[2]]) as usize;
                    }
                }
            }
            let count = this.left.min(this.read.len()).min(buf.remaining());
            buf.put_slice(&this.read[..count]);
            this.read.advance(count);
            this.left -= count;
            match count {
                0 if buf.filled().len() > before || buf.remaining() == 0 => return Poll::Ready(Ok(())),
                0 => {}
                _ => continue,
            }
            this.read.reserve(CHUNK);
            let polled = poll_read_buf(Pin::new(&mut this.inner), cx, &mut this.read);
            if polled.is_pending() && this.read.is_empty() {
                // A waiting connection holds no buffer.
                this.read = BytesMut::new();
            }
            if ready!(polled)? == 0 {
                // A part of a head, which h2 reports as a broken connection.
                let rest = this.read.split_to(this.read.len().min(buf.remaining()));
                buf.put_slice(&rest);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for WithoutEmptyData<T> {
    write_through!();
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn frames_arrive_without_the_empty_ones_in_pieces_of_any_size() {
        let empty = [0, 0, 0, 0, 0, 0, 0, 0, 1];
        let last = [0, 0, 0, 0, 1, 0, 0, 0, 1];
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        // Its payload looks like an empty frame.
        let data = [&[0, 0, 9, 0, 0, 0, 0, 0, 1][..], &empty].concat();
        let kept = [&b"preface"[..], &settings, &data, &data, &last, &[0, 0, 0, 0]].concat();
        let sent = [&b"preface"[..], &empty, &settings, &empty, &empty, &data, &data, &empty, &last, &[0, 0, 0, 0]];
        let sent = sent.concat();
        for piece in 1..=sent.len() {
            for room in [1, 8, 9, 64] {
                let (mut peer, inner) = duplex(1024);
                let mut stream = WithoutEmptyData::new(inner, b"preface".len());
                let mut arrived = Vec::new();
                for bytes in sent.chunks(piece) {
                    peer.write_all(bytes).await.unwrap();
                    let mut buf = vec![0; room];
                    while let Ok(count) = tokio::time::timeout(std::time::Duration::ZERO, stream.read(&mut buf)).await {
                        arrived.extend_from_slice(&buf[..count.unwrap()]);
                    }
                }
                drop(peer);
                stream.read_to_end(&mut arrived).await.unwrap();
                assert_eq!(arrived, kept, "pieces of {piece}, room for {room}");
            }
        }
    }
}
