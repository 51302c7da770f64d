//! The PROXY header of a connection: read only where it is configured, and believed only from proxies that are trusted.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use super::Connection;
use crate::{config::ProxyProtocol, wire::proxy_protocol};

/// Why a connection is not taken.
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

/// Returns who the client of a connection is, and the bytes that came behind the header.
pub async fn accept(
    stream: &mut TcpStream,
    policy: &ProxyProtocol,
    connection: &Arc<Connection>,
) -> Result<(Arc<Connection>, BytesMut), ProxiedError> {
    let ProxyProtocol::Require(trusted) = policy else { return Ok((connection.clone(), BytesMut::new())) };
    let peer = connection.peer.ip().to_canonical();
    if !trusted.iter().any(|network| contains(*network, peer)) {
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
    let peer = addresses.map_or(connection.peer, |(source, _): (SocketAddr, SocketAddr)| source);
    Ok((Arc::new(Connection { peer, ..Connection::clone(connection) }), rest))
}

fn contains((network, prefix): (IpAddr, u8), ip: IpAddr) -> bool {
    let same = |a: u128, b: u128, bits: u32| {
        let shift = bits.saturating_sub(u32::from(prefix));
        shift >= 128 || a >> shift == b >> shift
    };
    match (network.to_canonical(), ip) {
        (IpAddr::V4(network), IpAddr::V4(ip)) => same(network.to_bits().into(), ip.to_bits().into(), 32) || prefix == 0,
        (IpAddr::V6(network), IpAddr::V6(ip)) => same(network.to_bits(), ip.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_what_is_in_them() {
        let holds = |network: &str, prefix, ip: &str| contains((network.parse().unwrap(), prefix), ip.parse().unwrap());
        assert!(holds("10.0.0.0", 8, "10.255.0.1") && !holds("10.0.0.0", 8, "11.0.0.1"));
        assert!(holds("127.0.0.1", 32, "127.0.0.1") && !holds("127.0.0.1", 32, "127.0.0.2"));
        assert!(holds("0.0.0.0", 0, "8.8.8.8") && !holds("0.0.0.0", 0, "::1"));
        assert!(holds("fd00::", 8, "fd12::1") && !holds("fd00::", 8, "fe80::1") && holds("::", 0, "fe80::1"));
    }
}
