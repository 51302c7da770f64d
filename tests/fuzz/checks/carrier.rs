use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use adit::relay::carrier::Carrier;
use tokio::io::{AsyncRead, ReadBuf};

/// Panics where the bytes of a stream, or how it ends, depend on how its chunks came and were read.
pub fn check(data: &[u8]) {
    let whole = read(data, data.len(), 64 * 1024);
    for (step, room) in [(1, 64 * 1024), (data.len(), 1), (3, 5)] {
        assert_eq!(read(data, step, room), whole, "{step} bytes at a time into {room}");
    }
}

/// Gives `step` bytes at a time.
struct Dribble<'a> {
    rest: &'a [u8],
    step: usize,
}

impl AsyncRead for Dribble<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = self.step.min(self.rest.len()).min(buf.remaining());
        let (some, rest) = self.rest.split_at(count);
        buf.put_slice(some);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

/// Returns the bytes of the stream, and how it ends.
fn read(data: &[u8], step: usize, room: usize) -> (Vec<u8>, Result<(), io::ErrorKind>) {
    let mut carrier = Carrier::new(Dribble { rest: data, step });
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; room]);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        let mut buf = ReadBuf::new(&mut buffer);
        match Pin::new(&mut carrier).poll_read(&mut cx, &mut buf) {
            Poll::Pending => unreachable!("there is always something"),
            Poll::Ready(Err(error)) => return (bytes, Err(error.kind())),
            Poll::Ready(Ok(())) if buf.filled().is_empty() => return (bytes, Ok(())),
            Poll::Ready(Ok(())) => bytes.extend_from_slice(buf.filled()),
        }
    }
}
