//! TCP to an API server, through a proxy where one is configured, for requests and upgrades alike; and TLS for upgrades.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderValue, Uri};
use hyper_util::{
    client::legacy::connect::{
        Connected, Connection, HttpConnector,
        proxy::{SocksV5, Tunnel},
    },
    rt::TokioIo,
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tower::{BoxError, Service, ServiceExt};

use super::proxy::credentials;
use crate::io::{BoxedIo, read_ahead::ReadAhead, through::write_through};

/// A cold connection takes 1-2 round trips; a VPN that wakes up takes seconds.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// hyper's message if a SOCKS proxy selects a method that was not offered.
const CHOSE_NO_USER: &str = "server implements authentication incorrectly";

/// Opens connections to the host and port of a URI.
#[derive(Clone)]
pub struct Dialer {
    way: Way,
}

#[derive(Clone)]
enum Way {
    Direct(HttpConnector),
    HttpProxy(Tunnel<HttpConnector>),
    HttpsProxy(Tunnel<hyper_rustls::HttpsConnector<HttpConnector>>),
    Socks5 { with_user: Option<SocksV5<HttpConnector>>, without: SocksV5<HttpConnector> },
}

impl Dialer {
    /// `proxy`: `http://`, `https://` (verified with the roots of `tls`) or `socks5://`, with credentials where it wants them.
    ///
    /// # Errors
    /// The proxy's scheme is none of these.
    pub fn new(proxy: Option<&Uri>, tls: &rustls::ClientConfig) -> Result<Self, String> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        // Without it a request in two segments waits 40 ms for a delayed acknowledgement.
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_keepalive(Some(Duration::from_secs(15)));
        // Bytes that nobody acknowledges for 20 s: the laptop slept, or the VPN is gone.
        #[cfg(target_os = "linux")]
        tcp.set_tcp_user_timeout(Some(Duration::from_secs(20)));
        let Some(proxy) = proxy else { return Ok(Self { way: Way::Direct(tcp) }) };
        let way = match proxy.scheme_str() {
            Some("http") => Way::HttpProxy(with_credentials(Tunnel::new(proxy.clone(), tcp), proxy)),
            Some("https") => {
                let tls = hyper_rustls::HttpsConnectorBuilder::new()
                    .with_tls_config(tls.clone())
                    .https_or_http()
                    .enable_http1();
                Way::HttpsProxy(with_credentials(Tunnel::new(proxy.clone(), tls.wrap_connector(tcp)), proxy))
            }
            Some("socks5" | "socks5h") => {
                let without = SocksV5::new(proxy.clone(), tcp);
                let with_user = credentials(proxy).map(|(user, password)| without.clone().with_auth(user, password));
                Way::Socks5 { with_user, without }
            }
            _ => {
                return Err(format!(
                    "a proxy has to be http, https or socks5, not {:?}",
                    proxy.scheme_str().unwrap_or("")
                ));
            }
        };
        Ok(Self { way })
    }

    /// Connects to the server of `uri`; TLS is the caller's.
    pub async fn connect(&self, uri: Uri) -> Result<BoxedIo, BoxError> {
        Ok(match self.way.clone() {
            Way::Direct(tcp) => Box::new(tcp.oneshot(uri).await?.into_inner()),
            Way::HttpProxy(proxy) => Box::new(proxy.oneshot(uri).await?.into_inner()),
            Way::HttpsProxy(proxy) => Box::new(TokioIo::new(proxy.oneshot(uri).await?)),
            Way::Socks5 { with_user, without } => {
                let connected = match with_user {
                    Some(proxy) => proxy.oneshot(uri.clone()).await,
                    None => without.clone().oneshot(uri.clone()).await,
                };
                let io = match connected {
                    // Go offers both methods at once. hyper offers one, and takes the choice of the other for a mistake.
                    Err(error) if error.to_string().ends_with(CHOSE_NO_USER) => without.oneshot(uri).await?,
                    connected => connected?,
                };
                Box::new(io.into_inner())
            }
        })
    }
}

/// Opens connections to one API server that are ready for a request.
#[derive(Clone)]
pub struct Connector {
    pub dialer: Dialer,
    pub server: Uri,
    /// The name that the server's certificate is verified against. None: `http://`.
    pub server_name: Option<ServerName<'static>>,
}

/// Why a connection did not come up.
#[derive(Debug)]
pub enum ConnectError {
    Tcp(BoxError),
    Tls(io::Error),
    TimedOut,
}

impl Connector {
    /// Connects, with these settings of TLS.
    ///
    /// # Errors
    /// The server is not reached, refuses, or takes longer than [`CONNECT_TIMEOUT`].
    pub async fn connect(&self, tls: Arc<ClientConfig>) -> Result<BoxedIo, ConnectError> {
        let connect = async {
            let tcp = self.dialer.connect(self.server.clone()).await.map_err(ConnectError::Tcp)?;
            let Some(name) = self.server_name.clone() else { return Ok(tcp) };
            let tls = TlsConnector::from(tls).connect(name, ReadAhead::new(tcp)).await;
            tls.map(|tls| Box::new(tls) as BoxedIo).map_err(ConnectError::Tls)
        };
        timeout(CONNECT_TIMEOUT, connect).await.unwrap_or(Err(ConnectError::TimedOut))
    }
}

fn with_credentials<C>(tunnel: Tunnel<C>, proxy: &Uri) -> Tunnel<C> {
    match credentials(proxy) {
        Some((user, password)) => {
            match HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))) {
                Ok(value) => tunnel.with_auth(value),
                Err(_) => tunnel,
            }
        }
        None => tunnel,
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Dialed>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move { Ok(TokioIo::new(Dialed { inner: dialer.connect(uri).await? })) })
    }
}

/// A connection as hyper's client wants it.
pub struct Dialed {
    inner: BoxedIo,
}

impl Connection for Dialed {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Dialed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Dialed {
    write_through!();
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn a_socks_proxy_without_users_is_used_whatever_its_url_says() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy: Uri = format!("socks5://ana@{}", listener.local_addr().unwrap()).parse().unwrap();
        let serving = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut offered = [0; 3];
                client.read_exact(&mut offered).await.unwrap();
                client.write_all(&[5, 0]).await.unwrap();
                let mut asked = [0; 10];
                if client.read_exact(&mut asked).await.is_ok() {
                    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
                    // Later than the reply, which hyper reads to the end of what has come.
                    assert_eq!(client.read_u8().await.unwrap(), b'x');
                    client.write_all(b"hello").await.unwrap();
                    return;
                }
            }
        });
        let tls = rustls::ClientConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let dialer = Dialer::new(Some(&proxy), &tls).unwrap();
        let mut io = dialer.connect(Uri::from_static("https://10.0.0.1:6443")).await.unwrap();
        io.write_all(b"x").await.unwrap();
        let mut said = [0; 5];
        io.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"hello");
        serving.await.unwrap();
    }
}
