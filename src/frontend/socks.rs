//! SOCKS5 on the HTTP listener: programs and browsers reach Services by their names in the cluster.
//!
//! The user name is the context. The reply waits until the pod has accepted the connection, or the attempt has failed.

use std::{io, sync::Arc, time::Instant};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tracing::{debug, info, warn};

use super::{
    Connection,
    door::{Door, NotAdmitted},
    forward::{Asked, Forward, ForwardError},
};
use crate::{
    io::{BoxedIo, prefixed::Prefixed},
    journal::Kind,
    metrics::Metrics,
    routing::RouteError,
    tunnel::{ClusterError, OpenError, StreamFault},
    wire::socks5::{self, Command, Malformed, Reply},
};

/// Serves the clients of SOCKS5.
pub struct SocksFrontend {
    forward: Arc<Forward>,
    metrics: Arc<Metrics>,
}

/// Why a client was not served.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("no SOCKS5: {0}")]
    Malformed(#[from] Malformed),
    #[error("it offers no way to sign in that this port has")]
    NoMethod,
    #[error(transparent)]
    NotAdmitted(#[from] NotAdmitted),
    #[error("it ended in the middle of its request")]
    Ended,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl SocksFrontend {
    pub fn new(forward: Arc<Forward>, metrics: Arc<Metrics>) -> Self {
        Self { forward, metrics }
    }

    /// Serves one connection until both sides have ended.
    pub async fn serve(&self, mut stream: BoxedIo, mut received: BytesMut, connection: Arc<Connection>) {
        let _open = self.metrics.socks_connections.open();
        let (id, started) = (connection.id, Instant::now());
        let limit = connection.place.limits().first_byte;
        let asked = match timeout(limit, handshake(&mut stream, &mut received, &connection.door)).await {
            Ok(Ok(asked)) => asked,
            Ok(Err(error)) => return info!(connection = id, peer = %connection.peer, %error, "socks: closed"),
            Err(_) => {
                return debug!(connection = id, peer = %connection.peer, "socks: closed: no request within {limit:?}");
            }
        };
        connection.place.settle();
        let (host, port) = (&asked.host, asked.port);
        let (reached, noted) = match self.forward.reach(Kind::Socks, &asked, &connection).await {
            Ok(reached) => reached,
            Err(error) => {
                let reply = reply(&error);
                warn!(connection = id, host, port, code = %error.code(), %error, hint = error.hint(), "socks: refused");
                // The client may be gone already.
                let _ = stream.write_all(&reply.bytes()).await;
                let _ = stream.shutdown().await;
                return;
            }
        };
        if let Err(error) = stream.write_all(&Reply::Succeeded.bytes()).await {
            return debug!(connection = id, %error, "socks: client gone");
        }
        let route = reached.name();
        // The client may have sent bytes behind its request, before the reply.
        let mut client: BoxedIo = Box::new(Prefixed::new(received.freeze(), stream));
        let end = reached.join(&mut client, connection.socket, noted).await;
        info!(target: "adit::access", connection = id, peer = %connection.peer, host, port, route, up = end.up, down = end.down, broken = end.why(), took = format_args!("{:.1?}", started.elapsed()), "socks connection");
    }
}

/// Negotiates the method, checks the credentials, and returns the client's request.
async fn handshake(stream: &mut BoxedIo, received: &mut BytesMut, door: &Door) -> Result<Asked, HandshakeError> {
    let ours: &[u8] =
        if door.is_private() { &[socks5::USER_PASSWORD] } else { &[socks5::USER_PASSWORD, socks5::NO_AUTH] };
    let method = loop {
        if let Some((methods, length)) = socks5::greeting(received)? {
            let has = |method: u8| methods.contains(&method);
            let method = ours.iter().copied().find(|method| has(*method));
            received.advance(length);
            break method;
        }
        more(stream, received).await?;
    };
    stream.write_all(&[socks5::VERSION, method.unwrap_or(socks5::NO_METHOD)]).await?;
    let mut context = None;
    match method {
        None => return Err(HandshakeError::NoMethod),
        Some(socks5::USER_PASSWORD) => loop {
            if let Some((credentials, length)) = socks5::user(received)? {
                received.advance(length);
                let admitted = door.context(Some(&credentials));
                stream.write_all(&socks5::user_answer(admitted.is_ok())).await?;
                context = admitted?;
                break;
            }
            more(stream, received).await?;
        },
        Some(_) => {}
    }
    loop {
        match socks5::request(received) {
            Ok(None) => more(stream, received).await?,
            Ok(Some((request, length))) => {
                received.advance(length);
                if let Command::Other(_) = request.command {
                    stream.write_all(&Reply::CommandNotSupported.bytes()).await?;
                    return Err(io::Error::other("the SOCKS5 command is not CONNECT").into());
                }
                return Ok(Asked { context, host: request.host, port: request.port });
            }
            Err(error) => {
                let reply = match error {
                    Malformed::AddressType => Reply::AddressNotSupported,
                    _ => Reply::Failure,
                };
                stream.write_all(&reply.bytes()).await?;
                return Err(error.into());
            }
        }
    }
}

async fn more(stream: &mut BoxedIo, received: &mut BytesMut) -> Result<(), HandshakeError> {
    received.reserve(socks5::LONGEST);
    match stream.read_buf(received).await? {
        0 => Err(HandshakeError::Ended),
        _ => Ok(()),
    }
}

/// Returns the reply code for a client that is not connected.
fn reply(error: &ForwardError) -> Reply {
    let error = match error {
        ForwardError::ReadOnly(_) => return Reply::NotAllowed,
        ForwardError::Route(RouteError::DynamicDenied { .. } | RouteError::Elsewhere { .. }) => {
            return Reply::NotAllowed;
        }
        ForwardError::Route(RouteError::NoContext { .. } | RouteError::NoNamespace { .. }) => {
            return Reply::NetworkUnreachable;
        }
        ForwardError::Route(_) => return Reply::HostUnreachable,
        ForwardError::Direct { is_timeout: true, .. } => return Reply::TimedOut,
        ForwardError::Direct { .. } => return Reply::HostUnreachable,
        ForwardError::Open(_, error) => error,
    };
    match error {
        OpenError::TimedOut { .. } => Reply::TimedOut,
        OpenError::Stream(StreamFault::Refused { .. }) => Reply::Refused,
        OpenError::Stream(StreamFault::Jump { .. }) => Reply::HostUnreachable,
        OpenError::Cluster(error) => match error {
            ClusterError::Forbidden { .. } | ClusterError::Policy { .. } => Reply::NotAllowed,
            ClusterError::Kubeconfig { .. }
            | ClusterError::Credentials { .. }
            | ClusterError::Unreachable { .. }
            | ClusterError::Unavailable { .. }
            | ClusterError::Protocol { .. } => Reply::NetworkUnreachable,
            // The Service exists, but none of its pods was ready in time.
            ClusterError::TimedOut { .. } | ClusterError::NotReady { .. } | ClusterError::NoPod { .. } => {
                Reply::TimedOut
            }
            ClusterError::UnknownContext { .. }
            | ClusterError::NotFound { .. }
            | ClusterError::NoSuchPort { .. }
            | ClusterError::ChoosePort { .. }
            | ClusterError::PortAsPod { .. }
            | ClusterError::Unsupported { .. }
            | ClusterError::NotServed { .. } => Reply::HostUnreachable,
        },
        _ => Reply::Failure,
    }
}
