//! The PROXY header of a connection: read only if the listener requires it, and accepted only from trusted proxies.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use super::Connection;
use crate::{config::ProxyProtocol, wire::proxy_protocol};

/// Why a connection is refused.
#[derive(Debug, thiserror::Error)]
pub enum ProxiedError {
    #[error("{0} is not one of trusted_proxies")]
    NotTrusted(IpAddr),
    #[error("PROXY header: {0}")]
    Malformed(#[from] proxy_protocol::Malformed),
    #[error("no PROXY header within {0:?}")]
    TimedOut(Duration),
    #[error("the connection ended within its PROXY header")]
    Ended,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Returns the connection with the addresses from its PROXY header, and the bytes behind the header.
///
/// # Errors
/// The header is missing, malformed, or does not arrive in time.
pub async fn accept(
    stream: &mut TcpStream,
    policy: &ProxyProtocol,
    connection: &Arc<Connection>,
) -> Result<(Arc<Connection>, BytesMut), ProxiedError> {
    let ProxyProtocol::Require(trusted) = policy else { return Ok((connection.clone(), BytesMut::new())) };
    let peer = connection.peer.ip().to_canonical();
    if !trusted.iter().any(|network| network.contains(&peer)) {
        return Err(ProxiedError::NotTrusted(peer));
    }
    let limit = connection.place.limits().first_byte;
    let reading = async {
        let mut received = BytesMut::with_capacity(1024);
        loop {
            if let Some(header) = proxy_protocol::parse(&received)? {
                drop(received.split_to(header.length));
                return Ok((header.addresses, received));
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Err(ProxiedError::Ended);
            }
        }
    };
    let (addresses, rest) = timeout(limit, reading).await.map_err(|_| ProxiedError::TimedOut(limit))??;
    let (peer, dialled) = addresses.unwrap_or((connection.peer, connection.local));
    Ok((Arc::new(Connection { peer, dialled, ..Connection::clone(connection) }), rest))
}
