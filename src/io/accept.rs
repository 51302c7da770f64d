//! Listening sockets, and accept loops that survive errors.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tracing::warn;

/// tokio's default of 1,024 drops SYNs when thousands connect at once; the client's retry comes a second later.
const BACKLOG: i32 = 4096;

/// After an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

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
/// No error ends it: a connection that was reset before it was accepted is passed over, and where the process is out of
/// descriptors or memory it waits for some to come free.
pub async fn accept(listener: &TcpListener, mut serve: impl FnMut(TcpStream, SocketAddr)) -> std::convert::Infallible {
    let mut pause = PAUSE;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                pause = PAUSE;
                // It fails only on a socket that is closed already.
                let _ = stream.set_nodelay(true);
                serve(stream, peer);
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                warn!(%error, "cannot accept connections: trying again");
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}
