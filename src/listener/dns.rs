//! Answers DNS queries for the names that adit serves, for systems that `adit dns install` has set up: on the UDP port with the
//! number of the HTTP listener, and on that listener itself (TCP). Refuses other names, and answers only this machine.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::UdpSocket,
    time::{sleep, timeout},
};
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

/// How long a TCP client may say nothing, or not read its answer. RFC 7766, section 6.2.3 asks for some seconds.
const IDLE: Duration = Duration::from_secs(10);

/// Answers queries over TCP, each after its length (RFC 7766, section 8). Resolvers use TCP if UDP has lost a query
/// (systemd-resolved), or always (`use-vc`). `received`: the first bytes. Returns the number of answers when the client ends, or
/// sends something else.
pub async fn serve_stream(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    mut received: BytesMut,
    addresses: impl Fn(&str) -> Option<Vec<IpAddr>>,
) -> usize {
    let mut answered = 0;
    loop {
        while let Some(length) = received.first_chunk().map(|length| usize::from(u16::from_be_bytes(*length))) {
            let Some(message) = received.get(2..2 + length).filter(|_| length <= dns::LONGEST) else {
                if length > dns::LONGEST {
                    return answered;
                }
                break;
            };
            let Some(reply) = dns::answer(message, &addresses) else { return answered };
            let framed = [&(reply.len() as u16).to_be_bytes()[..], &reply].concat();
            if !matches!(timeout(IDLE, stream.write_all(&framed)).await, Ok(Ok(()))) {
                return answered;
            }
            answered += 1;
            received.advance(2 + length);
        }
        received.reserve(dns::LONGEST);
        if !matches!(timeout(IDLE, stream.read_buf(&mut received)).await, Ok(Ok(1..))) {
            return answered;
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

    #[tokio::test(start_paused = true)]
    async fn queries_over_tcp_are_answered_however_they_arrive() {
        let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01x\x00\x00\x01\x00\x01";
        let framed = [&[0, query.len() as u8][..], query].concat();
        let serving = |received: &[u8]| {
            let (near, far) = tokio::io::duplex(64);
            let serving = serve_stream(far, BytesMut::from(received), |_| Some(vec![[127, 0, 0, 1].into()]));
            (near, tokio::spawn(serving))
        };
        let whole = [&framed[..], &framed].concat();
        for first in 0..whole.len() {
            let (mut near, serving) = serving(&whole[..first]);
            let (mut read, mut write) = tokio::io::split(&mut near);
            let mut answers = vec![0; 2 * (framed.len() + 16)];
            let (sent, got) = tokio::join!(write.write_all(&whole[first..]), read.read_exact(&mut answers));
            sent.unwrap();
            got.unwrap();
            assert!(
                answers.starts_with(&[0, query.len() as u8 + 16, 0x12, 0x34]) && answers.ends_with(&[127, 0, 0, 1])
            );
            drop(near);
            assert_eq!(serving.await.unwrap(), 2);
        }
        // A response, a message that is too long, one that never comes whole.
        let response = [&framed[..4], &[0x81], &framed[5..]].concat();
        for wrong in [&response[..], &[2, 1], &framed[..9]] {
            let (_near, serving) = serving(wrong);
            assert_eq!(serving.await.unwrap(), 0, "{wrong:?}");
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
