//! Answers questions of DNS about the names that adit serves, at the UDP port of the same number as the listener of HTTP: for systems that
//! lead such questions there (`adit dns install`). Other names are refused, and nobody but this machine is answered.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{net::UdpSocket, time::sleep};
use tracing::debug;

use crate::{config::Config, wire::dns};

/// After an error: one that stays is not asked for again and again.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers at this address until it is dropped. `addresses`: those of a name that is served.
pub async fn serve(at: SocketAddr, addresses: impl Fn(&str) -> Option<Vec<IpAddr>>) {
    let socket = match UdpSocket::bind(at).await {
        Ok(socket) => socket,
        // Clients of HTTP do without it.
        Err(error) => return debug!(%at, %error, "no questions of DNS are answered"),
    };
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
