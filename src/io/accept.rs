//! Listening sockets, and accept loops that survive errors.

use std::{fs::File, future::Future, io, net::SocketAddr, time::Duration};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tracing::warn;

/// tokio's default of 1,024 drops SYNs when thousands connect at once; the client's retry comes a second later.
const BACKLOG: i32 = 4096;

/// After an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// TCP keep-alive of accepted connections: a client that vanished behind a NAT or with its VPN is noticed after
/// 20 s + 3 * 10 s, and holds its stream no longer.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(20)).with_interval(Duration::from_secs(10)).with_retries(3);

const WARN_EVERY: Duration = Duration::from_secs(1);

/// Binds and listens. An IPv6 address takes IPv6 only, so that 127.0.0.1 and [::1] can be two listeners.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A port whose last connections are in TIME_WAIT is free.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Hands every accepted connection to `serve`, for as long as it is polled.
///
/// No error ends it: a connection that was reset before it was accepted is passed over. Where the process is out of
/// descriptors, connections go to `refuse` on the `spare` ones that are kept for this, until some come free.
pub async fn accept<F: Future<Output = ()>>(
    listener: &TcpListener,
    spare: usize,
    mut serve: impl FnMut(TcpStream, SocketAddr),
    mut refuse: impl FnMut(TcpStream) -> F,
) -> std::convert::Infallible {
    let mut reserve: Vec<File> = Vec::new();
    let mut refused = FuturesUnordered::new();
    let mut pause = PAUSE;
    let mut warned: Option<Instant> = None;
    loop {
        while reserve.len() + refused.len() < spare {
            match File::open("/dev/null") {
                Ok(file) => reserve.push(file),
                Err(_) => break,
            }
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = refused.next() => continue,
        };
        let error = match accepted {
            Ok((stream, peer)) => {
                pause = PAUSE;
                // They fail only on a socket that is closed already.
                let _ = stream.set_nodelay(true);
                let _ = SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE);
                serve(stream, peer);
                continue;
            }
            Err(error) if is_about_one_connection(&error) => continue,
            Err(error) => error,
        };
        if warned.is_none_or(|at| at.elapsed() > WARN_EVERY) {
            warned = Some(Instant::now());
            warn!(%error, "cannot accept connections: trying again");
        }
        if is_about_descriptors(&error) && reserve.pop().is_some() {
            if let Some(Ok((stream, _))) = listener.accept().now_or_never() {
                // One that says nothing cannot hold up the others.
                refused.push(timeout(PAUSE, refuse(stream)));
            }
            continue;
        }
        tokio::select! {
            Some(_) = refused.next() => {}
            () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// EMFILE or ENFILE.
fn is_about_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_connections_have_keepalive() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted_tx, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        let serve = |stream, _| accepted_tx.send(stream).unwrap();
        let stream = tokio::select! {
            never = accept(&listener, 0, serve, |_| async {}) => match never {},
            stream = accepted.recv() => stream.unwrap(),
        };
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(20));
        drop(client);
    }
}
