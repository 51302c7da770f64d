//! Frames over a connection.

use std::{io, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use crate::wire::relay::{Frame, RelayError};

/// How long either end may take for each step of a handshake.
pub const STEP: Duration = Duration::from_secs(10);

/// Between two pings, and how long without a word the other end counts as gone.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
pub const DEAD: Duration = Duration::from_secs(45);

/// Why a conversation is over.
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
    /// It says why.
    #[error("{0}")]
    Rejected(String),
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for Over {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // TLS says more, for programmers: the end came without a close_notify.
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

/// Returns the next frame, and reads nothing behind it. Not cancel-safe.
pub async fn receive(from: &mut (impl AsyncRead + Unpin)) -> Result<Frame, Over> {
    let mut received = BytesMut::new();
    loop {
        if let Some(frame) = Frame::take(&mut received)? {
            return Ok(frame);
        }
        let missing = Frame::length(&received)? - received.len();
        // Its sender may not have said who he is: there is no more room than he has filled.
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

/// Writes frames in one go.
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
