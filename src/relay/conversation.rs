//! Sends and receives frames of the relay protocol on a connection.

use std::{io, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use crate::wire::relay::{Frame, RelayError};

/// Time for each step of a handshake, at either end.
pub const STEP: Duration = Duration::from_secs(10);

/// Interval between two pings, and the time without a frame after which the other end counts as dead.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
pub const DEAD: Duration = Duration::from_secs(45);

/// Errors that end a connection.
#[derive(Debug, thiserror::Error)]
pub enum Over {
    #[error("the connection was closed")]
    Closed,
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the other end does not speak this protocol: {0}")]
    Frame(#[from] RelayError),
    #[error("the other end sent {0} where it does not belong")]
    Unexpected(&'static str),
    /// Reason from the other end.
    #[error("{0}")]
    Rejected(String),
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for Over {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // The text of the TLS error, a missing close_notify, does not help users.
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// Reads the frames of a control connection.
pub struct Reader<R> {
    inner: R,
    received: BytesMut,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, received: BytesMut::new() }
    }

    /// Returns the next frame. Cancel-safe.
    pub async fn next(&mut self) -> Result<Frame, Over> {
        loop {
            if let Some(frame) = Frame::take(&mut self.received)? {
                return Ok(frame);
            }
            self.received.reserve(1024);
            if self.inner.read_buf(&mut self.received).await? == 0 {
                return Err(Over::Closed);
            }
        }
    }
}

/// Returns the next frame, and reads no byte after it. Not cancel-safe.
pub async fn receive(from: &mut (impl AsyncRead + Unpin)) -> Result<Frame, Over> {
    let mut received = BytesMut::new();
    loop {
        if let Some(frame) = Frame::take(&mut received)? {
            return Ok(frame);
        }
        let missing = Frame::length(&received)? - received.len();
        // The sender may not be authenticated yet: the buffer grows only as its bytes arrive.
        received.reserve(missing.min(1024));
        if (&mut *from).take(missing as u64).read_buf(&mut received).await? == 0 {
            return Err(Over::Closed);
        }
    }
}

/// Returns the next frame of a handshake.
pub async fn step(from: &mut (impl AsyncRead + Unpin)) -> Result<Frame, Over> {
    timeout(STEP, receive(from)).await.map_err(|_| Over::Silent(STEP))?
}

/// Writes the frames with one write.
pub async fn send(to: &mut (impl AsyncWrite + Unpin), frames: &[Frame]) -> Result<(), Over> {
    let mut bytes = BytesMut::new();
    frames.iter().for_each(|frame| frame.put(&mut bytes));
    let writing = async {
        to.write_all(&bytes).await?;
        to.flush().await
    };
    Ok(timeout(STEP, writing).await.map_err(|_| Over::Silent(STEP))??)
}

/// Returns the name of a frame, for errors.
pub fn name(frame: &Frame) -> &'static str {
    match frame {
        Frame::Handshake { .. } => "Handshake",
        Frame::Accept { .. } => "Accept",
        Frame::Reject { .. } => "Reject",
        Frame::Connect { .. } => "Connect",
        Frame::StreamHandshake { .. } => "StreamHandshake",
        Frame::StreamAccept => "StreamAccept",
        Frame::StreamReject { .. } => "StreamReject",
        Frame::Hello { .. } => "Hello",
        Frame::Challenge { .. } => "Challenge",
        Frame::Proof { .. } => "Proof",
        Frame::Welcome { .. } => "Welcome",
        Frame::Open { .. } => "Open",
        Frame::Opened { .. } => "Opened",
        Frame::Refused { .. } => "Refused",
        Frame::Close { .. } => "Close",
        Frame::Incoming { .. } => "Incoming",
        Frame::Decline { .. } => "Decline",
        Frame::Claim { .. } => "Claim",
        Frame::Start { .. } => "Start",
        Frame::Identity { .. } => "Identity",
        Frame::Prepare { .. } => "Prepare",
        Frame::Ping { .. } => "Ping",
        Frame::Pong { .. } => "Pong",
        Frame::Goodbye { .. } => "Goodbye",
    }
}
