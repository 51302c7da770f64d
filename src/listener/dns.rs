//! Answers DNS queries for the names that adit serves, on the UDP port with the number of the HTTP listener, for
//! systems that `adit dns install` has set up. Refuses other names, and answers only this machine.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::UdpSocket, time::sleep};
use tracing::{debug, info, warn};

use super::bind::reason;
use crate::{
    config::{Config, listen::of_this_machine},
    wire::dns,
};

/// Pause after an error, so that a permanent error does not cause a busy loop.
const PAUSE: Duration = Duration::from_millis(50);

/// Pauses between two attempts to bind a UDP port: the first, and the longest. Another program may free the port at any
/// time, and an attempt costs nothing.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Answers queries until it is dropped. `listener`: address of the HTTP listener. If it is on all addresses, DNS uses
/// loopback: only this machine gets answers, and clients ignore answers from another address than the one they asked.
/// `addresses`: returns the addresses of a served name.
pub async fn serve(listener: SocketAddr, addresses: impl Fn(&str) -> Option<Vec<IpAddr>>) -> Infallible {
    let socket = bind(of_this_machine(listener)).await;
    let mut message = [0; dns::LONGEST];
    loop {
        let (length, peer) = match socket.recv_from(&mut message).await {
            Ok(received) => received,
            // An ICMP message about an earlier answer is reported as an error, too.
            Err(_) => {
                sleep(PAUSE).await;
                continue;
            }
        };
        let reply =
            peer.ip().to_canonical().is_loopback().then(|| dns::answer(&message[..length], &addresses)).flatten();
        if let Some(reply) = reply {
            // Fails if the client is gone, which does not matter.
            let _ = socket.send_to(&reply, peer).await;
        }
    }
}

/// Binds the port. Retries until it is free.
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

/// Binds like a listener: an IPv6 address takes IPv6 only, so that `0.0.0.0` and `[::]` can be bound together.
fn try_bind(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    UdpSocket::from_std(socket.into())
}

/// Returns the addresses at which programs of this machine reach the HTTP listeners.
pub fn addresses(config: &Config) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = Vec::new();
    for listener in &config.http.listen {
        let address = of_this_machine(*listener).ip();
        if address.is_loopback() && !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[tokio::test]
    async fn a_listener_on_all_addresses_answers_on_the_loopback_alone() {
        let free = try_bind("127.0.0.1:0".parse().unwrap()).unwrap().local_addr().unwrap();
        let serving = serve(SocketAddr::new([0, 0, 0, 0].into(), free.port()), |_| None);
        let asking = async {
            // Other addresses of this machine stay free for other servers.
            let other = SocketAddr::new([127, 0, 0, 2].into(), free.port());
            let client = try_bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01x\x00\x00\x01\x00\x01";
            let mut answer = [0; 64];
            client.connect(free).await.unwrap();
            while client.send(question).await.is_err() || client.recv(&mut answer).await.is_err() {
                sleep(PAUSE).await;
            }
            assert_eq!(&answer[..2], b"\x12\x34");
            assert!(cfg!(target_os = "macos") || try_bind(other).is_ok());
        };
        tokio::select! {
            never = serving => match never {},
            () = asking => {}
        }
    }

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
