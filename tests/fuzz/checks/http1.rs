use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use adit::{
    guard::normaliser::{MOST_HELD, Normaliser},
    io::Io,
    wire::bare_lf::BareLf,
    wire::http1::{Piece, check_head, chunk, empty_lines, head_end},
};
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Panics where `data` makes the reader of heads or chunks break what it promises: what it finds lies within the bytes, and does not
/// depend on how they were split. Nor may a client have more held than a head and one read.
pub fn check(data: &[u8]) {
    check_heads(&data[2 * empty_lines(data)..]);
    if let Ok(Piece::Last(length)) = chunk(data) {
        assert!(length <= data.len());
    }
    if let Some((step, sent)) = data.split_first() {
        check_bare_lf(sent, usize::from(*step).max(1));
        check_held(sent, usize::from(*step) * 64 + 1);
    }
}

/// The repaired body does not depend on how it was split, and is at most twice as long.
fn check_bare_lf(data: &[u8], step: usize) {
    let repaired = |step: usize| {
        let (mut lines, mut out) = (BareLf::new(), BytesMut::new());
        data.chunks(step).for_each(|piece| lines.pass(piece, &mut out));
        out
    };
    let whole = repaired(data.len().max(1));
    assert!(whole.len() <= 2 * data.len());
    assert_eq!(whole, repaired(step));
    assert_eq!(whole, repaired(1));
}

fn check_heads(data: &[u8]) {
    let at_once = head_end(data, 0);
    if let Ok(Some(length)) = at_once {
        assert!(length <= data.len());
        // A strict head has no line that a lenient reader would end elsewhere.
        if check_head(&data[..length]).is_ok() {
            let head = &data[..length];
            assert!(head.windows(2).all(|pair| (pair[0] == b'\r') == (pair[1] == b'\n')));
        }
    }
    let split = (0..=data.len().min(512))
        .map(|end| head_end(&data[..end], end.saturating_sub(1)))
        .find(|found| found != &Ok(None));
    if let (Ok(Some(whole)), Some(Ok(Some(part)))) = (at_once, split) {
        assert_eq!(whole, part);
    }
}

/// A client that sends `step` bytes at a time, and takes all that it is sent.
struct Steps {
    sent: Vec<u8>,
    at: usize,
    step: usize,
}

impl AsyncRead for Steps {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let left = &self.sent[self.at..];
        let count = self.step.min(buf.remaining()).min(left.len());
        buf.put_slice(&left[..count]);
        self.at += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Steps {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Io for Steps {}

fn check_held(sent: &[u8], step: usize) {
    // Its clock is asked, and nothing waits.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime without sockets");
    let _entered = runtime.enter();
    let mut server = Normaliser::new(Steps { sent: sent.to_vec(), at: 0, step }, Arc::default());
    let (mut room, mut cx) = ([0; 512], Context::from_waker(Waker::noop()));
    loop {
        let mut buf = ReadBuf::new(&mut room);
        let read = Pin::new(&mut server).poll_read(&mut cx, &mut buf);
        assert!(server.held() <= MOST_HELD, "{} bytes are held", server.held());
        match read {
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
            _ => return,
        }
    }
}
