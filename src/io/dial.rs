//! Connects to a host that has several addresses.

use std::{io, net::SocketAddr, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{net::TcpStream, time::sleep};

/// Time before the next address is tried in parallel (RFC 8305, section 8).
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to the first address that answers.
///
/// # Errors
/// No address answers. A refusal takes precedence over other errors, such as the lack of a route to another address.
pub async fn connect(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts: FuturesUnordered<_> = addresses
        .zip(0u32..)
        .map(|(address, at)| async move {
            sleep(HEAD_START * at).await;
            TcpStream::connect(address).await
        })
        .collect();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    while let Some(attempt) = attempts.next().await {
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(error) if failed.kind() != io::ErrorKind::ConnectionRefused => failed = error,
            Err(_) => {}
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use tokio::{
        net::TcpListener,
        time::{Instant, timeout},
    };

    use super::*;

    #[tokio::test]
    async fn an_address_that_does_not_answer_does_not_keep_the_others_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        // The accept queue is full: the socket neither accepts nor refuses.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = socket.listen(1).unwrap();
        let silent = full.local_addr().unwrap();
        let mut held = Vec::new();
        while let Ok(Ok(stream)) = timeout(Duration::from_millis(200), TcpStream::connect(silent)).await {
            held.push(stream);
        }
        let began = Instant::now();
        let stream = connect([silent, good].into_iter()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert!(connect(std::iter::empty()).await.is_err());
    }
}
