//! A connection to a shared port. The relay reads only as many bytes as it needs to detect HTTP.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::debug;

use super::Split;
use crate::{
    drain::Drain,
    frontend::{
        Connection,
        http::{HttpFrontend, HttpVersion},
    },
    io::{Io, prefixed::Prefixed, splice::splice},
    relay::{expose::PodAddress, server::Server},
    wire::sniff::{Protocol, Sniff, sniff},
};

/// How long a visitor may be silent before the relay checks whether a pod speaks first, as MySQL and SMTP servers do.
/// HTTP clients send a request at once, or keep the connection for later.
const SILENCE: Duration = Duration::from_secs(1);

/// How long a pod may take to accept before the relay tries another.
const ACCEPTS_WITHIN: Duration = Duration::from_secs(3);

/// Maximum number of pods to try for one connection.
const TRIES: usize = 3;

/// Reasons why no pod accepted a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPod {
    #[error("no pod behind {0} is ready")]
    NoneReady(String),
    #[error("pod {pod} at {address} does not accept: {reason}", pod = .pod.pod, address = .pod.address)]
    Refused { pod: PodAddress, reason: String },
}

/// Connects to the first pod that accepts.
///
/// # Errors
/// No pod is ready, or none accepts.
pub async fn dial(split: &Split) -> Result<(TcpStream, PodAddress), NoPod> {
    let mut failed = NoPod::NoneReady(split.name.clone());
    for pod in split.pods_in_turn().into_iter().take(TRIES) {
        let reason = match timeout(ACCEPTS_WITHIN, TcpStream::connect(pod.address)).await {
            Ok(Ok(stream)) => {
                // Fails only on a socket that is already closed.
                let _ = stream.set_nodelay(true);
                return Ok((stream, pod));
            }
            Ok(Err(error)) => error.kind().to_string(),
            Err(_) => format!("no answer within {} s", ACCEPTS_WITHIN.as_secs()),
        };
        failed = NoPod::Refused { pod, reason };
    }
    Err(failed)
}

/// Protocol of a visitor, detected from its first bytes.
enum Said {
    Http(HttpVersion),
    /// Not HTTP.
    Other,
    /// Too few bytes arrived in time.
    TooLittle,
    /// The server spoke first.
    Server,
    /// The visitor is gone, or was evicted.
    Nothing,
    /// The port has been given back, or the relay ends, and the visitor has sent too little or nothing.
    TooLate,
}

/// Serves a visitor until its connection ends.
pub async fn visit(
    server: Arc<Server>,
    split: Arc<Split>,
    front: Arc<HttpFrontend>,
    mut visitor: TcpStream,
    connection: Arc<Connection>,
    drain: Drain,
) {
    let (mut received, mut pod) = (BytesMut::new(), None);
    // The request of a visitor that has just connected is on its way.
    let too_late = async {
        drain.started().await;
        sleep(SILENCE).await;
    };
    let said = tokio::select! {
        biased;
        said = listen(&split, &mut visitor, &mut pod, &mut received, &connection) => said,
        () = too_late => Said::TooLate,
    };
    match said {
        // No request is a laptop's any more.
        Said::Http(_) if drain.is_draining() => {
            connection.place.settle();
            pass(&server, &split, visitor, pod, &received, &connection).await;
        }
        Said::Http(version) => {
            drop(pod);
            let stream = Box::new(Prefixed::new(received.freeze(), visitor));
            front.serve(stream, version, connection, false, drain).await;
        }
        Said::Other | Said::Server => {
            connection.place.settle();
            pass(&server, &split, visitor, pod, &received, &connection).await;
        }
        Said::TooLittle => pass(&server, &split, visitor, pod, &received, &connection).await,
        // In a relay that ends, a visitor that has sent nothing has nothing in progress.
        Said::TooLate if received.is_empty() && server.drain().is_draining() => {}
        Said::TooLate => pass(&server, &split, visitor, pod, &received, &connection).await,
        Said::Nothing => {}
    }
}

/// Reads until the visitor's protocol is known. `pod`: gets the pod connection on which the relay waited for the server's
/// first byte.
async fn listen(
    split: &Split,
    visitor: &mut TcpStream,
    pod: &mut Option<TcpStream>,
    received: &mut BytesMut,
    connection: &Connection,
) -> Said {
    // Readiness may be spurious: only a peek at the first byte is reliable.
    let (mut of_visitor, mut of_pod) = ([0], [0]);
    if timeout(SILENCE, visitor.peek(&mut of_visitor)).await.is_err() {
        // If no pod accepts, the visitor may still send a request for a laptop.
        *pod = dial(split).await.ok().map(|(stream, _)| stream);
        if let Some(pod) = pod {
            // Without a relay both could stay silent as long. Meanwhile the visitor counts as one that has sent nothing.
            tokio::select! {
                biased;
                _ = visitor.peek(&mut of_visitor) => {}
                _ = pod.peek(&mut of_pod) => return Said::Server,
            }
        }
    }
    let mut until = None;
    loop {
        match sniff(received) {
            Sniff::Is(Protocol::Http1) => return Said::Http(HttpVersion::Http1),
            Sniff::Is(Protocol::Http2) => return Said::Http(HttpVersion::Http2),
            Sniff::NeedMore => {}
            Sniff::Is(_) | Sniff::Unknown => return Said::Other,
        }
        received.reserve(1024);
        let limit = connection.place.limits().first_byte;
        let until = *until.get_or_insert_with(|| Instant::now() + limit);
        match timeout_at(until, visitor.read_buf(received)).await {
            Ok(Ok(0) | Err(_)) if received.is_empty() => return Said::Nothing,
            // The visitor ended its direction after a few bytes. The pod may still have an answer.
            Ok(Ok(0)) => return Said::Other,
            Ok(Err(_)) => return Said::Nothing,
            Ok(Ok(_)) => {}
            Err(_) if received.is_empty() => return Said::Nothing,
            // The pod decides what to do with an incomplete start.
            Err(_) => return Said::TooLittle,
        }
    }
}

/// Joins a visitor with a pod, byte by byte. If the visitor has not settled yet, it does when either side sends more
/// bytes.
pub async fn pass(
    server: &Server,
    split: &Split,
    mut visitor: TcpStream,
    pod: Option<TcpStream>,
    received: &[u8],
    connection: &Connection,
) {
    let peer = connection.peer;
    let dialled = match pod {
        Some(pod) => Ok(pod),
        None => dial(split).await.map(|(stream, _)| stream),
    };
    let mut pod = match dialled {
        Ok(pod) => pod,
        Err(error) => {
            debug!(%peer, %error, "relay: visitor refused");
            server.refused(peer, &split.name, &error.to_string());
            return visitor.reset();
        }
    };
    split.parted.passed.fetch_add(1, Ordering::Relaxed);
    // With TCP keep-alive, a vanished pod is noticed.
    let _ = SockRef::from(&pod).set_tcp_keepalive(&connection.place.limits().tcp_keepalive());
    if pod.write_all(received).await.is_err() {
        return visitor.reset();
    }
    let (mut of_visitor, mut of_pod) = ([0], [0]);
    tokio::select! {
        _ = visitor.peek(&mut of_visitor) => {}
        _ = pod.peek(&mut of_pod) => {}
    }
    connection.place.settle();
    splice(&mut visitor, &mut pod).await;
}
