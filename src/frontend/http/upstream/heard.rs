//! The backend's first bytes on a connection, seen before the HTTP client reads them.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use futures::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};

use crate::{
    io::{
        BoxedIo, Io,
        through::{said_through, write_through},
    },
    tunnel::StreamFault,
    wire::{
        bare_lf::BareLf,
        sniff::{Sniff, sniff_server},
    },
};

/// Maximum number of first bytes that are kept: a whole page like nginx's "The plain HTTP request was sent to HTTPS port".
const MOST_KEPT: usize = 1024;

/// First bytes from a backend on one connection.
#[derive(Clone, Default)]
pub struct Heard(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// A byte has arrived since [`Heard::forget`].
    is_answered: AtomicBool,
    /// The protocol is known: no more bytes are kept.
    is_known: AtomicBool,
    first: Mutex<First>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct First {
    bytes: Vec<u8>,
    is_over: bool,
    /// How the stream broke.
    fault: Option<StreamFault>,
}

impl Heard {
    /// Wraps a stream, and records what is read from it.
    pub fn on(&self, inner: BoxedIo) -> Listening {
        Listening { inner, heard: self.clone(), lines: BareLf::default(), rest: BytesMut::new(), is_tls: false }
    }

    /// Wraps the decrypted stream of a TLS backend. Some servers close without a close_notify. This is an ordinary end: an answer that
    /// has a length, chunks or frames is then incomplete, and one that lasts until the end is as complete as without TLS.
    pub fn within_tls(&self, inner: BoxedIo) -> Listening {
        Listening { is_tls: true, ..self.on(inner) }
    }

    /// Resets [`Heard::anything`] for the next request.
    pub fn forget(&self) {
        self.0.is_answered.store(false, Ordering::Release);
    }

    /// Returns whether a byte has arrived since [`Heard::forget`].
    pub fn anything(&self) -> bool {
        self.0.is_answered.load(Ordering::Acquire)
    }

    /// Returns the backend's first bytes on the connection, up to 1 KiB.
    pub fn first(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// Returns how the stream broke, if the tunnel knows.
    pub fn fault(&self) -> Option<StreamFault> {
        self.lock().fault.clone()
    }

    /// Records that the protocol is known, and drops the kept bytes.
    pub fn know(&self) {
        self.0.is_known.store(true, Ordering::Release);
        self.lock().bytes = Vec::new();
    }

    /// Waits up to `limit` until the first bytes identify the protocol, or cannot.
    pub async fn sniff(&self, limit: Duration) -> Sniff {
        let told = poll_fn(|cx| {
            self.0.waker.register(cx.waker());
            let first = self.lock();
            match sniff_server(&first.bytes) {
                Sniff::NeedMore if !first.is_over => Poll::Pending,
                Sniff::NeedMore if !first.bytes.is_empty() => Poll::Ready(Sniff::Unknown),
                sniff => Poll::Ready(sniff),
            }
        });
        timeout(limit, told).await.unwrap_or(Sniff::NeedMore)
    }

    fn note(&self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.0.is_answered.store(true, Ordering::Release);
        }
        if self.0.is_known.load(Ordering::Acquire) {
            return;
        }
        let mut first = self.lock();
        let room = MOST_KEPT - first.bytes.len();
        first.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        first.is_over |= bytes.is_empty();
        drop(first);
        self.0.waker.wake();
    }

    fn note_error(&self, error: &io::Error) {
        let mut first = self.lock();
        first.is_over = true;
        first.fault = first.fault.take().or_else(|| StreamFault::of(error).cloned());
        drop(first);
        self.0.waker.wake();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, First> {
        self.0.first.lock().expect("no panic while the lock is held")
    }
}

/// Returns where the chunks of an answer begin. `start`: its first bytes. `None`: it has none, or its head is not complete.
///
/// Turns an answer of HTTP/1.0 with chunks, which that version does not have, into HTTP/1.1: curl accepts both, hyper does not.
fn admit_chunks(start: &mut [u8]) -> Option<usize> {
    if !start.starts_with(b"HTTP/1.") {
        return None;
    }
    let (mut at, mut is_chunked) = (0, false);
    let is_complete = loop {
        let Some(length) = start[at..].iter().position(|byte| *byte == b'\n') else { break false };
        let line = start[at..at + length].trim_ascii();
        at += length + 1;
        if line.is_empty() {
            break true;
        }
        is_chunked |= line.get(..18).is_some_and(|name| name.eq_ignore_ascii_case(b"transfer-encoding:"))
            && line.last_chunk::<7>().is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
    };
    if is_chunked && start.get(7) == Some(&b'0') {
        start[7] = b'1';
    }
    (is_complete && is_chunked).then_some(at)
}

/// Returns whether an error of TLS is the end of its transport, without a close_notify. If the tunnel broke, the error has the
/// cause.
fn is_end(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof && StreamFault::of(error).is_none()
}

/// A stream that records what is read from it, and repairs the chunks of old servers.
pub struct Listening {
    inner: BoxedIo,
    heard: Heard,
    /// Lines of the body that is being read.
    lines: BareLf,
    /// Repaired bytes that did not fit into the last read.
    rest: BytesMut,
    is_tls: bool,
}

impl Listening {
    /// Repairs the bytes of a body, from `start` on.
    fn repair(&mut self, buf: &mut ReadBuf<'_>, start: usize) {
        let mut repaired = BytesMut::new();
        self.lines.pass(&buf.filled()[start..], &mut repaired);
        buf.set_filled(start);
        let room = buf.remaining().min(repaired.len());
        self.rest = repaired.split_off(room);
        buf.put_slice(&repaired);
    }
}

impl AsyncRead for Listening {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.rest.is_empty() {
            let room = buf.remaining().min(self.rest.len());
            buf.put_slice(&self.rest[..room]);
            self.rest.advance(room);
            return Poll::Ready(Ok(()));
        }
        let mut start = buf.filled().len();
        let before = start;
        let had_room = buf.remaining() > 0;
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        match &polled {
            Poll::Ready(Ok(())) if had_room => {
                if !self.heard.anything() {
                    let chunks = admit_chunks(&mut buf.filled_mut()[before..]);
                    self.lines = chunks.map_or_else(BareLf::default, |_| BareLf::new());
                    start += chunks.unwrap_or_default();
                }
                self.heard.note(&buf.filled()[before..]);
                if !self.lines.is_over() {
                    self.repair(buf, start);
                }
            }
            Poll::Ready(Err(error)) if self.is_tls && is_end(error) => {
                self.heard.note(&[]);
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Err(error)) => self.heard.note_error(error),
            _ => {}
        }
        polled
    }
}

impl AsyncWrite for Listening {
    write_through!();
}

impl Io for Listening {
    said_through!();
}
