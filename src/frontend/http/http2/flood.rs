//! Ends connections on which a client keeps the server busy without a request: floods of PING, SETTINGS, PRIORITY,
//! RST_STREAM or empty DATA frames (CVE-2019-9512, 9515, 9513, 9514, 9518; CVE-2023-44487).
//!
//! Each such frame costs one credit. Time earns credit, and so do the frames that the server sends: gRPC clients send about one
//! PING for each message received. The h2 crate itself limits endless heads (CVE-2024-27316).

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::keepalive::Activity;
use crate::io::through::flush_through;

/// Maximum and initial credit of a connection, and the credit that it earns per second.
const CREDIT: u64 = 4_000;
const EARNED: u64 = 100;

/// Frame types and flags of RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;

/// Length of a client's preface (RFC 9113, section 3.4).
pub const PREFACE: usize = 24;
const HEAD: usize = 9;

/// A client's connection that fails when its credit is used up.
pub struct Patient<T> {
    inner: T,
    received: Frames,
    sent: Frames,
    credit: u64,
    credited: Instant,
    activity: Activity,
}

impl<T> Patient<T> {
    /// `inner`: starts with the connection preface.
    pub fn new(inner: T) -> Self {
        let received = Frames { left: PREFACE, ..Frames::default() };
        let (credited, activity) = (Instant::now(), Activity::new());
        Self { inner, received, sent: Frames::default(), credit: CREDIT, credited, activity }
    }

    /// Returns the times of the last reads and answers.
    pub fn activity(&self) -> Activity {
        self.activity.clone()
    }

    fn charge(&mut self, frames: u64) -> io::Result<()> {
        if frames == 0 {
            return Ok(());
        }
        let earned = self.credited.elapsed().as_millis() as u64 * EARNED / 1000;
        if earned > 0 {
            (self.credit, self.credited) = ((self.credit + earned).min(CREDIT), Instant::now());
        }
        match self.credit.checked_sub(frames) {
            Some(left) => self.credit = left,
            None => return Err(io::Error::other("the client floods the connection with frames that ask for nothing")),
        }
        Ok(())
    }

    fn earn(&mut self, sent: &[u8]) {
        let mut answers = 0;
        self.sent.pass(sent, |kind, _, _| answers += u64::from(matches!(kind, DATA | HEADERS)));
        if answers > 0 {
            self.credit = (self.credit + answers).min(CREDIT);
            self.activity.note_answer();
        }
        self.activity.note_written();
    }
}

/// Finds the frame boundaries of one direction.
#[derive(Default)]
struct Frames {
    head: Vec<u8>,
    /// Bytes before the next head.
    left: usize,
}

impl Frames {
    /// Calls `look` with type, flags and length of each frame head.
    fn pass(&mut self, mut bytes: &[u8], mut look: impl FnMut(u8, u8, usize)) {
        while !bytes.is_empty() {
            let passed = self.left.min(bytes.len());
            (self.left, bytes) = (self.left - passed, &bytes[passed..]);
            let wanted = (HEAD - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..wanted]);
            bytes = &bytes[wanted..];
            if let [high, middle, low, kind, flags, ..] = self.head[..]
                && self.head.len() == HEAD
            {
                self.left = u32::from_be_bytes([0, high, middle, low]) as usize;
                look(kind, flags, self.left);
                self.head.clear();
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        this.activity.note_read();
        let mut idle = 0;
        this.received.pass(&buf.filled()[before..], |kind, flags, length| {
            idle += u64::from(match kind {
                PING | SETTINGS => flags & ACK == 0,
                DATA => length == 0 && flags & END_STREAM == 0,
                PRIORITY | RST_STREAM => true,
                _ => false,
            });
        });
        Poll::Ready(this.charge(idle))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        self.earn(&buf[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs))?;
        let mut left = count;
        for buf in bufs {
            let part = left.min(buf.len());
            self.earn(&buf[..part]);
            left -= part;
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    flush_through!();
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const PING_FRAME: [u8; 17] = [0, 0, 8, PING, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const EMPTY_ANSWER: [u8; 9] = [0, 0, 0, HEADERS, 5, 0, 0, 0, 1];

    async fn begun() -> (DuplexStream, Patient<DuplexStream>) {
        let (mut client, inner) = duplex(1 << 20);
        client.write_all(&[b'x'; PREFACE]).await.unwrap();
        let mut patient = Patient::new(inner);
        patient.read_exact(&mut [0; PREFACE]).await.unwrap();
        (client, patient)
    }

    /// Sends PINGs a byte at a time, and returns how many were accepted.
    async fn pings(client: &mut DuplexStream, patient: &mut Patient<DuplexStream>, most: usize) -> usize {
        for taken in 0..most {
            client.write_all(&PING_FRAME).await.unwrap();
            for _ in PING_FRAME {
                if patient.read_u8().await.is_err() {
                    return taken;
                }
            }
        }
        most
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_ends_and_a_ping_now_and_then_does_not() {
        let (mut client, mut patient) = begun().await;
        for _ in 0..50 {
            assert_eq!(pings(&mut client, &mut patient, 100).await, 100);
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
        }
        assert_eq!(pings(&mut client, &mut patient, 2 * CREDIT as usize).await, CREDIT as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_answered_may_ask_as_often() {
        let (mut client, mut patient) = begun().await;
        for _ in 0..3 * CREDIT {
            patient.write_all(&EMPTY_ANSWER).await.unwrap();
            client.read_exact(&mut [0; EMPTY_ANSWER.len()]).await.unwrap();
            assert_eq!(pings(&mut client, &mut patient, 1).await, 1);
        }
    }
}
