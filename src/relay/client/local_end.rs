//! Local end of a reverse tunnel: the service on this machine, or on a host near it.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{net::TcpStream, time::timeout};

/// How long the local service may take to accept a connection.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(5);

const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Local end of one tunnel.
#[derive(Debug)]
pub struct LocalEnd {
    /// `None`: both loopback addresses. Many dev servers listen only on the first address of `localhost`, often `[::1]`.
    host: Option<String>,
    port: u16,
    /// Whether `[::1]` answered last. It is then tried first.
    is_ipv6_first: AtomicBool,
    /// Whether a refused Host header was reported already.
    pub has_refused_host: Arc<AtomicBool>,
}

/// A local service that does not answer.
#[derive(Debug, thiserror::Error)]
#[error("nothing answers on {addresses}: {}", reason(source))]
pub struct Unreached {
    addresses: String,
    source: io::Error,
}

impl LocalEnd {
    /// Returns a local end. `host`: a name or an address, with or without brackets. `None` and `localhost` (RFC 6761):
    /// 127.0.0.1 and `[::1]`.
    pub fn new(host: Option<&str>, port: u16) -> Self {
        let host = host.filter(|host| !host.eq_ignore_ascii_case("localhost"));
        let host = host.map(|host| host.trim_start_matches('[').trim_end_matches(']').to_owned());
        Self { host, port, is_ipv6_first: AtomicBool::new(false), has_refused_host: Arc::default() }
    }

    /// Connects to the given host. Without one, connects to the loopback address that answered last, or else to the other
    /// one.
    ///
    /// # Errors
    /// Fails if no address accepts the connection within 5 s.
    pub async fn connect(&self) -> Result<TcpStream, Unreached> {
        let connecting = async {
            match &self.host {
                Some(host) => TcpStream::connect((host.as_str(), self.port)).await,
                None => self.connect_to_loopback().await,
            }
        };
        let connected =
            timeout(LOCAL_TIMEOUT, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(|source| Unreached { addresses: self.addresses(), source })
    }

    async fn connect_to_loopback(&self) -> io::Result<TcpStream> {
        let is_ipv6_first = self.is_ipv6_first.load(Ordering::Relaxed);
        let [first, second] = [is_ipv6_first, !is_ipv6_first].map(|is_ipv6| LOOPBACKS[usize::from(is_ipv6)]);
        // Not a race: if the service is busy, a different service on the other address must not get its visitors.
        let refused = match TcpStream::connect((first, self.port)).await {
            Err(error) => error,
            connected => return connected,
        };
        match TcpStream::connect((second, self.port)).await {
            Ok(stream) => {
                self.is_ipv6_first.store(!is_ipv6_first, Ordering::Relaxed);
                Ok(stream)
            }
            // Without IPv6, the second error only says so. The refusal of the first address is more useful.
            Err(_) if refused.kind() == io::ErrorKind::ConnectionRefused => Err(refused),
            Err(error) => Err(error),
        }
    }

    fn addresses(&self) -> String {
        match &self.host {
            Some(_) => self.to_string(),
            None => format!("127.0.0.1:{port} and [::1]:{port}", port = self.port),
        }
    }
}

impl fmt::Display for LocalEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.as_deref().unwrap_or("localhost") {
            host if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::TimedOut => format!("no connection within {} s", LOCAL_TIMEOUT.as_secs()),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => "no route to that host".to_owned(),
        // Resolver errors have no OS code, and their text depends on the system.
        _ if error.raw_os_error().is_none() => "no such host".to_owned(),
        _ => error.kind().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpListener};

    use super::*;

    /// Answers each connection on `ip` and `port` (0: any) with one byte, until the task is aborted.
    async fn server(ip: IpAddr, port: u16, byte: u8) -> (u16, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind((ip, port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let running = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_u8(byte).await;
            }
        });
        (port, running)
    }

    async fn stop(server: tokio::task::JoinHandle<()>) {
        server.abort();
        assert!(server.await.is_err());
    }

    async fn answer(end: &LocalEnd) -> u8 {
        end.connect().await.unwrap().read_u8().await.unwrap()
    }

    #[tokio::test]
    async fn the_loopback_that_answered_last_is_tried_first() {
        let [v4, v6] = LOOPBACKS;
        let (port, first) = server(v6, 0, b'6').await;
        let end = LocalEnd::new(None, port);
        assert_eq!(answer(&end).await, b'6', "a server on [::1] alone");
        let (_, second) = server(v4, port, b'4').await;
        assert_eq!(answer(&end).await, b'6');
        stop(first).await;
        assert_eq!(answer(&end).await, b'4');
        let (_, first) = server(v6, port, b'6').await;
        assert_eq!(answer(&end).await, b'4');
        stop(first).await;
        stop(second).await;
        let error = end.connect().await.unwrap_err().to_string();
        assert_eq!(error, format!("nothing answers on 127.0.0.1:{port} and [::1]:{port}: connection refused"));
    }

    #[tokio::test]
    async fn a_host_that_is_given_is_the_only_one() {
        let (port, _server) = server(LOOPBACKS[1], 0, b'6').await;
        for host in ["::1", "[::1]", "localhost"] {
            assert_eq!(answer(&LocalEnd::new(Some(host), port)).await, b'6', "{host}");
        }
        let given = LocalEnd::new(Some("127.0.0.1"), port);
        let error = given.connect().await.unwrap_err().to_string();
        assert_eq!(error, format!("nothing answers on 127.0.0.1:{port}: connection refused"));
        let missing = LocalEnd::new(Some("missing.invalid"), port).connect().await.unwrap_err().to_string();
        assert_eq!(missing, format!("nothing answers on missing.invalid:{port}: no such host"));
    }

    #[test]
    fn it_is_shown_as_it_can_be_typed() {
        let shown = |host| LocalEnd::new(host, 3000).to_string();
        assert_eq!(shown(None), "localhost:3000");
        assert_eq!(shown(Some("::1")), "[::1]:3000");
        assert_eq!(shown(Some("127.0.0.1")), "127.0.0.1:3000");
    }
}
