//! Streams for clients that get a reply once they are connected (SOCKS5, CONNECT): adit first makes sure, as far as it
//! can, that the pod has accepted the connection.
//!
//! A node reports that a port refuses, but not that it accepts. So a stream counts as accepted once the pod has sent a
//! byte, or has not refused for a while.

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

/// How long a pod may take to refuse: the round trip to the node and 5 to 30 ms there.
const WAIT: Duration = Duration::from_millis(200);

impl Lease {
    /// Opens a stream as [`connect`](Self::connect) does, and returns once the pod has accepted it. Returns at once if
    /// the pods of this tunnel have answered a stream and none has failed since.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect); or the pod refuses for 3 s; or it is gone and no other replaces it.
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
                // The stream may have moved to another pod meanwhile, which starts its time again.
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
