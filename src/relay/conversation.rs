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

/// Time for the relay to read a client's goodbye and to close the connection, at either end.
pub const FAREWELL: Duration = Duration::from_millis(500);

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
    ///
    /// # Errors
    /// The connection ended, or the frame is malformed.
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
///
/// # Errors
/// The connection ended, or the frame is malformed.
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
///
/// # Errors
/// The connection ended, the frame is malformed, or the peer takes too long.
pub async fn step(from: &mut (impl AsyncRead + Unpin)) -> Result<Frame, Over> {
    timeout(STEP, receive(from)).await.map_err(|_| Over::Silent(STEP))?
}

/// Writes the frames with one write.
///
/// # Errors
/// The connection ended.
pub async fn send(to: &mut (impl AsyncWrite + Unpin), frames: &[Frame]) -> Result<(), Over> {
    let mut bytes = BytesMut::new();
    frames.iter().for_each(|frame| frame.put(&mut bytes));
    let writing = async {
        to.write_all(&bytes).await?;
        to.flush().await
    };
    Ok(timeout(STEP, writing).await.map_err(|_| Over::Silent(STEP))??)
}

/// Begins an Identity that is no token: a space cannot occur in a token (RFC 6750, section 2.1).
const CLAIM: &str = "claim ";

/// Maximum length of a claimed name in characters.
const LONGEST_CLAIM: usize = 64;

/// Returns the frame with which a client says who it is. It proves nothing.
pub fn claimed_name(user: &str) -> Frame {
    Frame::Identity { token: format!("{CLAIM}{user}") }
}

/// Returns the name in the frame of [`claimed_name`], without the characters that could make it look like another message.
/// `None`: it is a token.
pub fn claimed(identity: &str) -> Option<String> {
    let is_plain = |character: &char| character.is_alphanumeric() || "@._-+:/\\".contains(*character);
    Some(identity.strip_prefix(CLAIM)?.chars().filter(is_plain).take(LONGEST_CLAIM).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_name_is_short_and_plain_and_no_token() {
        let of = |user: &str| {
            let Frame::Identity { token } = claimed_name(user) else { panic!("another frame") };
            claimed(&token)
        };
        for (said, shown) in [
            ("anna@laptop", "anna@laptop"),
            ("Änne.O@büro-1", "Änne.O@büro-1"),
            ("bo), default (10.0.0.1\n\u{202e}", "bodefault10.0.0.1"),
            ("", ""),
        ] {
            assert_eq!(of(said).unwrap(), shown);
        }
        assert_eq!(of(&"a".repeat(1000)).unwrap().len(), LONGEST_CLAIM);
        assert_eq!(claimed("eyJhbGciOi.J9.x"), None);
    }
}
