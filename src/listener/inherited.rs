//! Sockets that a service manager has bound and passed on (sd_listen_fds(3)). They stay open while adit restarts.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
};

use listenfd::ListenFd;
use tokio::net::TcpListener;
use tracing::warn;

/// Listening sockets that this process has inherited.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(SocketAddr, StdListener)>);

impl Inherited {
    /// Takes the sockets that the environment names. It names none unless a service manager has started the process.
    pub fn take() -> Self {
        let mut passed = ListenFd::from_env();
        let mut taken = Vec::new();
        for at in 0..passed.len() {
            match passed.take_tcp_listener(at) {
                Ok(Some(listener)) => {
                    if let Ok(address) = listener.local_addr() {
                        taken.push((address, listener));
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    warn!(number = at, %error, "the service manager passed a socket that is not a TCP listener")
                }
            }
        }
        Self(taken)
    }

    /// Returns a listener on the socket for `address`. Keeps the socket itself, because a reload may ask for it again.
    ///
    /// # Errors
    /// The socket cannot be duplicated.
    pub fn listener(&self, address: SocketAddr) -> Option<io::Result<TcpListener>> {
        let (_, listener) = self.0.iter().find(|(of, _)| *of == address)?;
        Some(listener.try_clone().and_then(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        }))
    }

    /// Returns the addresses of inherited sockets that are not in `used`.
    pub fn unused(&self, used: &[SocketAddr]) -> Vec<SocketAddr> {
        self.0.iter().map(|(address, _)| *address).filter(|address| !used.contains(address)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_was_passed_is_used_again_and_again() {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inherited = Inherited(vec![(address, listener)]);
        for _ in 0..2 {
            let listener = inherited.listener(address).unwrap().unwrap();
            let connecting = tokio::net::TcpStream::connect(address);
            let (accepted, connected) = tokio::join!(listener.accept(), connecting);
            assert!(accepted.is_ok() && connected.is_ok());
        }
        let other = "127.0.0.1:1".parse().unwrap();
        assert!(inherited.listener(other).is_none());
        assert_eq!((inherited.unused(&[other]), inherited.unused(&[address])), (vec![address], vec![]));
    }
}
