//! Answers questions of DNS about the names that adit serves, at the UDP port of the same number as the listener of HTTP: for systems that
//! lead such questions there (`adit dns install`). Other names are refused, and nobody but this machine is answered.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::UdpSocket, time::sleep};
use tracing::{debug, info, warn};

use super::bind::reason;
use crate::{config::Config, wire::dns};

/// After an error: one that stays is not asked for again and again.
const PAUSE: Duration = Duration::from_millis(50);

/// Pauses between two attempts to bind a UDP port: the first, and the longest. Another program may free the port at any time, and an
/// attempt costs nothing.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Answers at this address until it is dropped. `addresses`: those of a name that is served.
pub async fn serve(at: SocketAddr, addresses: impl Fn(&str) -> Option<Vec<IpAddr>>) -> Infallible {
    let socket = bind(at).await;
    let mut message = [0; dns::LONGEST];
    loop {
        let (length, peer) = match socket.recv_from(&mut message).await {
            Ok(received) => received,
            // An ICMP message about an answer is one too.
            Err(_) => {
                sleep(PAUSE).await;
                continue;
            }
        };
        let reply =
            peer.ip().to_canonical().is_loopback().then(|| dns::answer(&message[..length], &addresses)).flatten();
        if let Some(reply) = reply {
            // A client that is gone needs none.
            let _ = socket.send_to(&reply, peer).await;
        }
    }
}

/// Binds the port, and tries until it is free.
async fn bind(at: SocketAddr) -> UdpSocket {
    let (mut pause, longest) = RETRY;
    let mut has_failed = false;
    loop {
        match try_bind(at) {
            Ok(socket) => {
                if has_failed {
                    info!(%at, "DNS queries are answered");
                }
                return socket;
            }
            Err(error) if has_failed => debug!(%at, %error, "the UDP port is not free yet"),
            Err(error) => {
                warn!(%at, error = reason(&error), "DNS queries are not answered: trying again until the UDP port can be bound");
                has_failed = true;
            }
        }
        sleep(pause).await;
        pause = longest.min(2 * pause);
    }
}

/// Like a listener's socket: an IPv6 address takes IPv6 only, so that `0.0.0.0` and `[::]` can stand beside each other.
fn try_bind(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    UdpSocket::from_std(socket.into())
}

/// Returns where programs of this machine reach the listeners of HTTP.
pub fn addresses(config: &Config) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = Vec::new();
    for listener in &config.http.listen {
        let address = match listener.ip() {
            IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            address => address,
        };
        if address.is_loopback() && !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_families_have_all_their_addresses_at_one_port() {
        let v4 = try_bind("0.0.0.0:0".parse().unwrap()).unwrap();
        let v6 = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), v4.local_addr().unwrap().port());
        match try_bind(v6) {
            Ok(v6) => assert!(v6.local_addr().unwrap().is_ipv6()),
            // A machine without IPv6.
            Err(error) => assert_ne!(error.kind(), io::ErrorKind::AddrInUse),
        }
    }
}
