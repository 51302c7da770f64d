//! TCP connections to an API server, with or without a proxy, for requests and upgrades; and TLS for upgrades.

mod proxied;

use std::{
    future::Future,
    io,
    net::{Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Uri;
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector, dns::Name},
    rt::TokioIo,
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::lookup_host,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tower::{BoxError, Service, ServiceExt};

use self::proxied::Destination;
pub use self::proxied::ProxyError;
use super::proxy::credentials;
use crate::io::{BoxedIo, read_ahead::ReadAhead, through::write_through};

/// Timeout of a connection. A cold one takes 1-2 round trips; a VPN that wakes up takes seconds.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens connections to the host and port of a URI.
#[derive(Clone)]
pub struct Dialer {
    tcp: HttpConnector<Resolver>,
    proxy: Option<Arc<Proxy>>,
}

struct Proxy {
    url: Uri,
    /// User and password of the proxy's URL.
    user: Option<(String, String)>,
    speaks: Speaks,
}

enum Speaks {
    Http,
    Https(TlsConnector, ServerName<'static>),
    Socks5,
}

impl Dialer {
    /// Returns a dialler. `proxy`: `http://`, `https://` (verified with the roots of `tls`) or `socks5://`, optionally
    /// with credentials.
    ///
    /// # Errors
    /// Fails if the proxy has another scheme.
    pub fn new(proxy: Option<&Uri>, tls: &ClientConfig) -> Result<Self, String> {
        let mut tcp = HttpConnector::new_with_resolver(Resolver);
        tcp.enforce_http(false);
        // Without it, a request in two segments waits 40 ms for a delayed ACK.
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_keepalive(Some(Duration::from_secs(15)));
        // Ends a connection whose bytes get no ACK for 20 s, after a laptop's sleep or the loss of a VPN.
        #[cfg(target_os = "linux")]
        tcp.set_tcp_user_timeout(Some(Duration::from_secs(20)));
        let Some(url) = proxy else { return Ok(Self { tcp, proxy: None }) };
        let speaks = match url.scheme_str() {
            Some("http") => Speaks::Http,
            Some("https") => {
                let mut tls = tls.clone();
                tls.alpn_protocols = vec![b"http/1.1".to_vec()];
                let name = ServerName::try_from(host(url).to_owned());
                let name = name.map_err(|_| format!("the proxy {} has no host name", host(url)))?;
                Speaks::Https(TlsConnector::from(Arc::new(tls)), name)
            }
            Some("socks5" | "socks5h") => Speaks::Socks5,
            other => {
                return Err(format!("a proxy has to be http, https or socks5, not {:?}", other.unwrap_or_default()));
            }
        };
        let proxy = Proxy { url: url.clone(), user: credentials(url), speaks };
        Ok(Self { tcp, proxy: Some(Arc::new(proxy)) })
    }

    /// Connects to the server of `uri`, without TLS.
    ///
    /// # Errors
    /// The server or its proxy cannot be reached, or the proxy refuses.
    pub async fn connect(&self, uri: Uri) -> Result<BoxedIo, BoxError> {
        let Some(proxy) = &self.proxy else { return Ok(Box::new(self.tcp.clone().oneshot(uri).await?.into_inner())) };
        let io = self.connect_to(proxy).await?;
        let default = if uri.scheme_str() == Some("http") { 80 } else { 443 };
        let to = Destination { host: host(&uri), port: uri.port_u16().unwrap_or(default) };
        let asking = async {
            match proxy.speaks {
                Speaks::Http | Speaks::Https(..) => proxied::connect(io, to, proxy.authorization().as_deref()).await,
                Speaks::Socks5 => proxied::socks5(io, to, proxy.user.as_ref()).await,
            }
        };
        Ok(timeout(CONNECT_TIMEOUT, asking).await.unwrap_or(Err(ProxyError::Silent))?)
    }

    /// Connects to the proxy.
    async fn connect_to(&self, proxy: &Proxy) -> Result<BoxedIo, ProxyError> {
        let unreached = |error: BoxError| ProxyError::Unreached(error);
        let tcp = self.tcp.clone().oneshot(proxy.url.clone()).await.map_err(|error| unreached(error.into()))?;
        match &proxy.speaks {
            Speaks::Https(tls, name) => {
                let connecting = timeout(CONNECT_TIMEOUT, tls.connect(name.clone(), tcp.into_inner()));
                let connected = connecting.await.map_err(|_| ProxyError::Silent)?;
                Ok(Box::new(connected.map_err(|error| unreached(error.into()))?))
            }
            Speaks::Http | Speaks::Socks5 => Ok(Box::new(tcp.into_inner())),
        }
    }

    /// Returns the Proxy-Authorization for an HTTP proxy that forwards whole requests to `server`. As in Go, requests to
    /// `http://` servers are forwarded, and only upgrades use CONNECT. `None`: there is no such proxy, or `server` is
    /// `https://`.
    pub fn forwards(&self, server: &Uri) -> Option<Option<String>> {
        let proxy = self.proxy.as_ref().filter(|proxy| !matches!(proxy.speaks, Speaks::Socks5))?;
        (server.scheme_str() == Some("http")).then(|| proxy.authorization())
    }
}

impl Proxy {
    /// Returns the value of Proxy-Authorization.
    fn authorization(&self) -> Option<String> {
        let (user, password) = self.user.as_ref()?;
        Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
    }
}

/// Returns the host of a URL, without the brackets of an IPv6 address.
fn host(url: &Uri) -> &str {
    url.host().unwrap_or_default().trim_matches(['[', ']'])
}

/// Resolver of the system. It also accepts an IPv6 address with a zone, which a URL has as `fe80::1%25eth0` (RFC 6874).
#[derive(Clone)]
struct Resolver;

fn is_of_link(address: &str) -> bool {
    address.parse::<Ipv6Addr>().is_ok_and(|address| address.is_unicast_link_local())
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let name = match name.as_str().split_once("%25") {
            Some((address, zone)) if is_of_link(address) => format!("{address}%{zone}"),
            // Other addresses have no zone, and the system would refuse it.
            Some((address, _)) => address.to_owned(),
            None => name.to_string(),
        };
        Box::pin(async move { Ok(lookup_host((name, 0)).await?.collect::<Vec<_>>().into_iter()) })
    }
}

/// Opens connections to one API server, ready for a request.
#[derive(Clone)]
pub struct Connector {
    pub dialer: Dialer,
    pub server: Uri,
    /// Name to verify the server's certificate against. `None`: `http://`.
    pub server_name: Option<ServerName<'static>>,
}

/// Reasons why a connection failed.
#[derive(Debug)]
pub enum ConnectError {
    Tcp(BoxError),
    Tls(io::Error),
    TimedOut,
}

impl Connector {
    /// Connects with these TLS settings.
    ///
    /// # Errors
    /// Fails if the server is unreachable, refuses, or takes longer than [`CONNECT_TIMEOUT`].
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

impl Service<Uri> for Dialer {
    type Response = TokioIo<Dialed>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            let is_proxy = dialer.forwards(&uri).is_some();
            let inner = match &dialer.proxy {
                Some(proxy) if is_proxy => dialer.connect_to(proxy).await?,
                _ => dialer.connect(uri).await?,
            };
            Ok(TokioIo::new(Dialed { inner, is_proxy }))
        })
    }
}

/// Connection wrapper for hyper's client.
pub struct Dialed {
    inner: BoxedIo,
    /// Whether requests must contain the server's whole URL, for a proxy.
    is_proxy: bool,
}

impl Connection for Dialed {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.is_proxy)
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

    fn dialer(proxy: Option<&str>) -> Dialer {
        let tls = ClientConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        Dialer::new(proxy.map(|proxy| proxy.parse().unwrap()).as_ref(), &tls).unwrap()
    }

    #[tokio::test]
    async fn a_request_to_an_http_server_is_sent_to_the_proxy_and_an_upgrade_asks_for_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialer = dialer(Some(&format!("http://ana:b@{}", listener.local_addr().unwrap())));
        let server = Uri::from_static("http://api.test/k8s");
        assert_eq!(dialer.forwards(&server).unwrap().unwrap(), "Basic YW5hOmI=");
        assert!(dialer.forwards(&Uri::from_static("https://api.test")).is_none());
        let request = tokio::spawn(dialer.clone().oneshot(server.clone()));
        let (mut plain, _) = listener.accept().await.unwrap();
        assert!(request.await.unwrap().unwrap().inner().connected().is_proxied());
        assert_eq!(plain.read(&mut [0; 16]).await.unwrap(), 0, "nothing is asked");
        let upgrade = tokio::spawn(async move { dialer.connect(server).await.map(drop) });
        let (mut asked, _) = listener.accept().await.unwrap();
        let mut read = [0; 28];
        asked.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"CONNECT api.test:80 HTTP/1.1");
        asked.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        upgrade.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_address_with_a_zone_is_connected_to() {
        let Ok(listener) = TcpListener::bind("[::1]:0").await else { return };
        let url = format!("https://[::1%25lo]:{}", listener.local_addr().unwrap().port());
        dialer(None).connect(url.parse().unwrap()).await.unwrap();
    }
}
