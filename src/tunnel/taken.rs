//! Streams for clients that learn when they are connected: the pod has accepted those, as far as adit can know.
//!
//! A node says that a port refuses, and never that it does not. So a stream counts as taken once the pod has said
//! something, or has not refused it for a while.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::BytesMut;
use tokio::{io::AsyncReadExt, time::timeout};

use super::{
    lease::{Lease, connect},
    stream::TunnelStream,
};
use crate::{
    backend::{OpenError, Placement, StreamFault},
    io::{BoxedIo, prefixed::Prefixed},
};

/// A refusal takes the round trip to the node and 5 to 30 ms there.
const WAIT: Duration = Duration::from_millis(200);

impl Lease {
    /// Opens a stream as [`connect`](Self::connect) does, and returns once the pod has taken it. Where an earlier stream of
    /// this tunnel was answered, and none refused since, that is at once.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect); the pod refuses for 3 s, or is gone and no other takes its place.
    pub async fn connect_taken(&self) -> Result<(BoxedIo, Placement), OpenError> {
        let tunnel = self.tunnel();
        let (inner, placement, running) = connect(tunnel, None, None, tunnel.stream_deadline()).await?;
        let mut stream = TunnelStream::new(tunnel.clone(), inner, running);
        let mut first = BytesMut::new();
        while !tunnel.answers.load(Ordering::Relaxed) {
            let left = WAIT.saturating_sub(stream.taken_for());
            if left.is_zero() {
                break;
            }
            match timeout(left, stream.read_buf(&mut first)).await {
                // It may have been moved meanwhile.
                Err(_) => {}
                Ok(Ok(_)) => return Ok((Box::new(Prefixed::new(first.freeze(), stream)), placement)),
                Ok(Err(error)) => {
                    let fault = StreamFault::of(&error).cloned();
                    return Err(fault.unwrap_or(StreamFault::Other { detail: error.to_string() }).into());
                }
            }
        }
        Ok((Box::new(stream), placement))
    }
}
