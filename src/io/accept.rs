//! Listening sockets, and accept loops that survive errors.

use std::{
    collections::VecDeque,
    fs::File,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, Timeout, sleep, sleep_until, timeout},
};
use tracing::warn;

/// tokio's default of 1,024 drops SYNs when thousands connect at once; the client's retry comes a second later.
const BACKLOG: i32 = 4096;

/// After an accept that failed for want of open files or memory. Twenty attempts a second cost nothing, and whoever comes next is
/// answered within 100 ms.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a refused client may take for its request, and to read the answer.
const REFUSAL: Duration = Duration::from_millis(50);

/// How much of that a refused client has when others wait. A client sends its request at once, and one that has waited to be
/// accepted has sent it already: a queue of 100 silent clients passes in a few milliseconds.
const LEAST_REFUSAL: Duration = Duration::from_millis(1);

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
/// No error ends it: a connection that was reset before it was accepted is passed over. Where the process has reached its
/// open-file limit, connections go to `refuse` on the `spare` files that are kept for this, until others are closed.
pub async fn accept<F: Future<Output = ()>>(
    listener: &TcpListener,
    spare: usize,
    mut serve: impl FnMut(TcpStream, SocketAddr),
    mut refuse: impl FnMut(TcpStream) -> F,
) -> std::convert::Infallible {
    let mut reserve: Vec<File> = Vec::new();
    let mut refused = Refused::default();
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
            () = refused.one_ended() => continue,
        };
        let error = match accepted {
            Ok((stream, peer)) => {
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
        if !is_about_open_files(&error) || (reserve.is_empty() && refused.len() == 0) {
            sleep(PAUSE).await;
        } else if reserve.pop().is_none() {
            refused.make_room().await;
        } else if let Some(Ok((stream, _))) = listener.accept().now_or_never() {
            refused.push(refuse(stream));
        }
    }
}

/// Clients that are being refused, the oldest first.
struct Refused<F>(VecDeque<(Instant, Pin<Box<Timeout<F>>>)>);

impl<F> Default for Refused<F> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<F: Future<Output = ()>> Refused<F> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn push(&mut self, refusing: F) {
        self.0.push_back((Instant::now(), Box::pin(timeout(REFUSAL, refusing))));
    }

    /// Waits until one has ended. Never: there is none.
    async fn one_ended(&mut self) {
        poll_fn(|cx| self.poll_one_ended(cx)).await;
    }

    fn poll_one_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let before = self.0.len();
        self.0.retain_mut(|(_, refusing)| refusing.as_mut().poll(cx).is_pending());
        if self.0.len() < before { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Waits until one has ended, or closes the oldest once it has had its least time.
    async fn make_room(&mut self) {
        let Some(since) = self.0.front().map(|(since, _)| *since) else { return };
        tokio::select! {
            () = self.one_ended() => return,
            () = sleep_until(since + LEAST_REFUSAL) => {}
        }
        self.0.pop_front();
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// EMFILE or ENFILE.
fn is_about_open_files(error: &io::Error) -> bool {
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

    #[tokio::test(start_paused = true)]
    async fn refused_clients_that_say_nothing_keep_no_other_waiting() {
        let (mut refused, began) = (Refused::default(), Instant::now());
        for _ in 0..100 {
            while refused.len() >= 8 {
                refused.make_room().await;
            }
            refused.push(std::future::pending());
        }
        assert!(began.elapsed() < Duration::from_millis(50), "{:?}", began.elapsed());
        // Where nobody else waits they have their time.
        refused.one_ended().await;
        assert!(began.elapsed() >= REFUSAL, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_client_that_has_its_answer_makes_room_at_once() {
        let (mut refused, began) = (Refused::default(), Instant::now());
        refused.push(std::future::pending().boxed());
        refused.push(std::future::ready(()).boxed());
        refused.make_room().await;
        assert_eq!((refused.len(), began.elapsed()), (1, Duration::ZERO));
    }
}
