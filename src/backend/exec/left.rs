//! Stream of a jump that also ends socat in the pod when its client is gone.
//!
//! Container runtimes do not end a program whose exec a living client closes; if its connection is cut, they did in every case
//! tried (Kubernetes 1.30 and 1.36). If socat writes to an output that nobody reads, it waits for ever, and keeps its connection
//! to the server. So adit discards the output while socat delivers the client's bytes, and then
//! sends a signal. The signal cannot hit another process: socat holds its process ID until the exec ends.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    runtime::Handle,
    time::timeout,
};
use tracing::debug;

use super::stream::ExecStream;
use crate::{drain::Drain, io::Io};

/// Timeout for socat to deliver the bytes of a client that is gone.
const DELIVERY: Duration = Duration::from_secs(20);

/// How long the server may take to close after its client's FIN, before socat gets a signal.
const GOODBYE: Duration = Duration::from_secs(1);

/// Timeout for the exec that sends the signal, and for socat's end.
const ENDING: Duration = Duration::from_secs(5);

/// Ends the process with this ID in the pod.
pub type End = Box<dyn FnOnce(u32) -> BoxFuture<'static, ()> + Send + Sync>;

/// Stream of an exec of socat; its drop ends socat.
pub struct Leavable {
    /// `None` only in the drop.
    stream: Option<ExecStream>,
    end: Option<End>,
    drain: Drain,
    is_over: bool,
    is_abandoned: bool,
}

impl Leavable {
    /// `drain` waits until socat has ended.
    pub fn new(stream: ExecStream, end: End, drain: Drain) -> Self {
        Self { stream: Some(stream), end: Some(end), drain, is_over: false, is_abandoned: false }
    }

    fn stream(&mut self) -> Pin<&mut ExecStream> {
        Pin::new(self.stream.as_mut().expect("it is there until the drop"))
    }
}

impl AsyncRead for Leavable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_abandoned {
            return Poll::Ready(Ok(()));
        }
        let before = buf.remaining();
        let polled = self.stream().poll_read(cx, buf);
        self.is_over |= match &polled {
            Poll::Ready(Ok(())) => before > 0 && buf.remaining() == before,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        polled
    }
}

impl AsyncWrite for Leavable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}

impl Io for Leavable {
    fn abandon(&mut self) {
        self.is_abandoned = true;
    }
}

impl Drop for Leavable {
    fn drop(&mut self) {
        if let (Some(stream), Some(end), false, Ok(_)) =
            (self.stream.take(), self.end.take(), self.is_over, Handle::try_current())
        {
            // A last task: the cut may be the reason for this drop.
            self.drain.spawn_last(leave(stream, end, self.drain.clone()));
        }
    }
}

async fn leave(mut stream: ExecStream, end: End, drain: Drain) {
    let needs_signal = tokio::select! {
        needs_signal = stays(&mut stream) => needs_signal,
        () = drain.was_cut() => true,
    };
    let Some(pid) = stream.reports().pid.filter(|_| needs_signal) else { return };
    debug!(pid, "the client is gone: ending socat");
    let (_, ended) = tokio::join!(timeout(ENDING, end(pid)), timeout(ENDING, read_until(&mut stream, |_| false)));
    debug!(pid, is_ended = ended.is_ok(), "socat was told to end");
}

/// Waits until socat has delivered the client's bytes, and returns whether it then stays.
async fn stays(stream: &mut ExecStream) -> bool {
    // After a client's RST nothing need be delivered. After a FIN, the server must get everything that the client sent.
    let has_broken = !stream.is_shut_down();
    let delivering = async {
        stream.shutdown().await?;
        read_until(stream, |stream| stream.reports().input_ended).await
    };
    match timeout(DELIVERY, delivering).await {
        Ok(Ok(false)) => timeout(GOODBYE, read_until(stream, |_| false)).await.is_err(),
        // socat did not deliver in time, and may still do so.
        Err(_) => has_broken,
        // socat or its exec has ended.
        Ok(_) => false,
    }
}

/// Reads and discards output until the stream ends (`true`) or `is_enough` holds (`false`).
async fn read_until(stream: &mut ExecStream, is_enough: fn(&ExecStream) -> bool) -> io::Result<bool> {
    let mut unwanted = vec![0; 16 * 1024];
    poll_fn(|cx| {
        loop {
            let mut unwanted = ReadBuf::new(&mut unwanted);
            let polled = Pin::new(&mut *stream).poll_read(cx, &mut unwanted);
            // socat's reports are no output: a poll for output handles them, and stays pending.
            if is_enough(stream) {
                return Poll::Ready(Ok(false));
            }
            ready!(polled)?;
            if unwanted.filled().is_empty() {
                return Poll::Ready(Ok(true));
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use bytes::BytesMut;
    use tokio::{
        io::{AsyncReadExt, DuplexStream, duplex},
        time::{Instant, sleep},
    };

    use super::*;
    use crate::{
        k8s::upgrade::exec::{ExecProtocol, ExecTransport, Executed},
        wire::websocket::{Opcode, put_frame},
    };

    const START: &[u8] = b"\x022026/11/30 03:11:49 socat[55] N starting data transfer loop with FDs [0,1] and [5,5]\n";
    const INPUT_ENDED: &[u8] = b"\x022026/11/30 03:11:49 socat[55] N socket 1 (fd 0) is at EOF\n";

    /// Returns a stream, the node's end of it, and the ID of the process that got a signal; 0: none.
    fn socat() -> (Leavable, DuplexStream, Arc<AtomicU32>) {
        socat_of(Drain::new())
    }

    fn socat_of(drain: Drain) -> (Leavable, DuplexStream, Arc<AtomicU32>) {
        let (near, far) = duplex(1 << 16);
        let (transport, protocol) = (ExecTransport::WebSocket, ExecProtocol::V5);
        let executed = Executed { io: Box::new(near), transport, protocol, took: Duration::ZERO };
        let mut stream = ExecStream::new(executed, "db:5432".to_owned(), "jump".to_owned());
        stream.expect_report();
        let ended = Arc::new(AtomicU32::new(0));
        let noted = ended.clone();
        let end: End = Box::new(move |pid| {
            Box::pin(async move {
                sleep(Duration::from_millis(100)).await;
                noted.store(pid, Ordering::Relaxed);
            })
        });
        (Leavable::new(stream, end, drain), far, ended)
    }

    async fn say(node: &mut DuplexStream, messages: &[&[u8]]) {
        let mut said = BytesMut::new();
        for message in messages {
            put_frame(&mut said, Opcode::Binary, message, None);
        }
        node.write_all(&said).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn socat_is_ended_once_its_client_is_gone_and_it_has_delivered() {
        for has_broken in [true, false] {
            let (mut stream, mut node, ended) = socat();
            say(&mut node, &[START, b"\x01out"]).await;
            stream.read_exact(&mut [0; 3]).await.unwrap();
            if !has_broken {
                stream.shutdown().await.unwrap();
                stream.abandon();
                assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "nobody waits for more");
            }
            drop(stream);
            tokio::time::sleep(DELIVERY / 2).await;
            assert_eq!(ended.load(Ordering::Relaxed), 0, "it may not have delivered everything");
            say(&mut node, &[&[&b"\x01"[..], &[b'x'; 10_000]].concat(), INPUT_ENDED]).await;
            tokio::time::sleep(GOODBYE * 2).await;
            assert_eq!(ended.load(Ordering::Relaxed), 55);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_cuts_a_download_off_ends_socat() {
        let drain = Drain::new();
        let (mut stream, mut node, ended) = socat_of(drain.clone());
        say(&mut node, &[START, b"\x01out"]).await;
        drain.spawn(async move {
            // The end of the exec, or an error, would end this.
            while stream.read(&mut [0; 8]).await.is_ok_and(|count| count > 0) {}
        });
        let (download, grace) = (
            async {
                loop {
                    say(&mut node, &[b"\x01out"]).await;
                    sleep(GOODBYE).await
                }
            },
            DELIVERY / 2,
        );
        tokio::select! {
            cut = drain.finish(grace) => assert_eq!(cut, 1),
            () = download => {}
        }
        assert_eq!(ended.load(Ordering::Relaxed), 55);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_until_socat_has_delivered() {
        let drain = Drain::new();
        let (mut stream, mut node, ended) = socat_of(drain.clone());
        say(&mut node, &[START]).await;
        stream.write_all(b"in").await.unwrap();
        stream.shutdown().await.unwrap();
        drop(stream);
        let (began, grace) = (Instant::now(), DELIVERY / 2);
        let deliver = async {
            sleep(GOODBYE).await;
            say(&mut node, &[INPUT_ENDED]).await;
        };
        let (cut, ()) = tokio::join!(drain.finish(grace), deliver);
        assert_eq!((cut, ended.load(Ordering::Relaxed)), (0, 55));
        assert!(began.elapsed() < grace, "no longer than it takes");
    }

    #[tokio::test(start_paused = true)]
    async fn socat_that_ends_by_itself_gets_no_signal() {
        let (mut stream, mut node, ended) = socat();
        say(&mut node, &[START]).await;
        stream.shutdown().await.unwrap();
        drop(stream);
        say(&mut node, &[INPUT_ENDED, b"\x03{\"status\":\"Success\"}"]).await;
        tokio::time::sleep(DELIVERY * 2).await;
        assert_eq!(ended.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn socat_that_does_not_deliver_is_ended_only_where_its_client_broke() {
        for has_broken in [true, false] {
            let (mut stream, mut node, ended) = socat();
            say(&mut node, &[START, b"\x01out"]).await;
            stream.read_exact(&mut [0; 3]).await.unwrap();
            if !has_broken {
                stream.shutdown().await.unwrap();
            }
            drop(stream);
            tokio::time::sleep(DELIVERY / 2).await;
            // A connection that is silent for longer counts as dead.
            say(&mut node, &[b"\x01out"]).await;
            tokio::time::sleep(DELIVERY / 2 + ENDING).await;
            assert_eq!(ended.load(Ordering::Relaxed), if has_broken { 55 } else { 0 });
        }
    }
}
