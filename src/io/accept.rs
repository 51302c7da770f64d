//! Listening sockets, and accept loops that survive errors.

mod admission;
mod limits;
mod notice;
mod refused;

use std::{fs::File, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use futures::FutureExt;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tracing::warn;

use self::refused::Refused;
pub use self::{
    admission::{Admission, Full, Names, Place},
    limits::Limits,
    notice::Notice,
};

/// Length of the accept queue. tokio's default of 1,024 drops SYNs when thousands connect at once, and the client's
/// retry comes a second later.
const BACKLOG: i32 = 4096;

/// Pause after an accept that failed for lack of open files or memory. Twenty attempts per second cost nothing, and the
/// next client gets an answer within 100 ms.
const PAUSE: Duration = Duration::from_millis(50);

/// Unsent bytes that the kernel holds for a client. Its own limit (4 MiB on Linux) would hide for minutes that a slow
/// client still reads, and keep the end of a stream from it for as long. On loopback, less is not slower.
#[cfg(any(target_os = "linux", target_vendor = "apple"))]
const UNSENT: u32 = 128 * 1024;

/// Maximum number of clients that are being refused at a time, if the open-file limit is not reached.
const MOST_REFUSED: usize = 8;

/// Binds a socket and listens. An IPv6 address takes IPv6 only, so that 127.0.0.1 and `[::1]` can be two listeners.
///
/// # Errors
/// The address is in use, or the user may not listen there.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    bind(address, true)
}

/// Does the same, but `[::]` takes IPv4 clients, too (RFC 3493, section 5.3).
///
/// # Errors
/// As [`listen`].
pub fn listen_dual(address: SocketAddr) -> io::Result<TcpListener> {
    bind(address, false)
}

fn bind(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // Allow a port whose last connections are in TIME_WAIT.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts connections while it is polled, and passes them to `serve`.
///
/// No error ends it: a connection that was reset before the accept is skipped. If `admission` has no place for a
/// client, it goes to `refuse`. At the open-file limit of the process, every client goes to `refuse`, on the `spare`
/// files reserved for this, until other files are closed.
pub async fn accept<F: Future<Output = ()>>(
    listener: &TcpListener,
    admission: &Arc<Admission>,
    spare: usize,
    mut serve: impl FnMut(TcpStream, SocketAddr, Place),
    mut refuse: impl FnMut(TcpStream, Full) -> F,
) -> std::convert::Infallible {
    let mut reserve: Vec<File> = Vec::new();
    let mut refused = Refused::default();
    let warned = Notice::default();
    let keepalive = admission.limits().tcp_keepalive();
    loop {
        while reserve.len() + refused.len() < spare {
            match File::open("/dev/null") {
                Ok(file) => reserve.push(file),
                Err(_) => break,
            }
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = refused.one_ended() => continue,
        };
        let error = match accepted {
            Ok((stream, peer)) => {
                // All fail only on a socket that is already closed.
                let _ = stream.set_nodelay(true);
                let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
                #[cfg(any(target_os = "linux", target_vendor = "apple"))]
                let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
                match admission.admit(peer) {
                    Ok(place) => serve(stream, peer, place),
                    Err(full) => {
                        if refused.len() >= MOST_REFUSED {
                            refused.make_room().await;
                        }
                        refused.push(refuse(stream, full));
                    }
                }
                continue;
            }
            Err(error) if is_about_one_connection(&error) => continue,
            Err(error) => error,
        };
        if let Some(times) = warned.due() {
            warn!(times, %error, "cannot accept connections: trying again");
        }
        if !is_about_open_files(&error) || (reserve.is_empty() && refused.len() == 0) {
            sleep(PAUSE).await;
        } else if reserve.pop().is_none() {
            refused.make_room().await;
        } else if let Some(Ok((stream, _))) = listener.accept().now_or_never() {
            refused.push(refuse(stream, Full::OpenFiles));
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// Returns whether the error is EMFILE or ENFILE.
fn is_about_open_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, sync::mpsc, time::timeout};

    use super::*;

    fn admission(connections: Option<usize>) -> Arc<Admission> {
        Admission::new(Limits { connections, keepalive: Duration::from_secs(9), ..Limits::default() }, Names::default())
    }

    async fn accepted() -> (TcpStream, TcpStream) {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted_tx, mut accepted) = mpsc::unbounded_channel();
        let (admission, serve) = (admission(None), |stream, _, _| accepted_tx.send(stream).unwrap());
        let stream = tokio::select! {
            never = accept(&listener, &admission, 0, serve, |_, _| async {}) => match never {},
            stream = accepted.recv() => stream.unwrap(),
        };
        (client, stream)
    }

    #[tokio::test]
    async fn accepted_connections_have_keepalive() {
        let (_client, stream) = accepted().await;
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(9));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_kernel_holds_few_bytes_for_a_client_that_does_not_read() {
        let (_client, stream) = accepted().await;
        let mut held = 0;
        while timeout(Duration::from_millis(50), stream.writable()).await.is_ok() {
            held += stream.try_write(&[0; 16 * 1024]).unwrap_or_default();
        }
        assert!(held < 1 << 20, "{held}");
    }

    #[tokio::test]
    async fn clients_without_a_place_are_refused_until_there_is_one() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted_tx, mut accepted) = mpsc::unbounded_channel();
        let admission = admission(Some(1));
        let serve = |stream: TcpStream, _, place: Place| {
            place.settle();
            accepted_tx.send((stream, place)).unwrap();
        };
        let clients = async {
            let first = TcpStream::connect(address).await.unwrap();
            let held = accepted.recv().await.unwrap();
            for _ in 0..20 {
                let mut refused = TcpStream::connect(address).await.unwrap();
                assert_eq!(refused.read(&mut [0]).await.unwrap(), 0);
            }
            drop((first, held));
            let next = TcpStream::connect(address).await.unwrap();
            let served = accepted.recv().await.unwrap();
            drop((next, served));
        };
        tokio::select! {
            never = accept(&listener, &admission, 0, serve, |stream, full| async move {
                assert_eq!(full, Full::Connections);
                drop(stream);
            }) => match never {},
            () = clients => {}
        }
    }
}
