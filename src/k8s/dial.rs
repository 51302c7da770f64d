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

use crate::io::{BoxedIo, read_ahead::ReadAhead, through::write_through};

/// A cold connection takes 1-2 round trips; a VPN that wakes up takes seconds.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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
    Socks5(SocksV5<HttpConnector>),
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
            Some("socks5" | "socks5h") => Way::Socks5(match credentials(proxy) {
                Some((user, password)) => SocksV5::new(proxy.clone(), tcp).with_auth(user, password),
                None => SocksV5::new(proxy.clone(), tcp),
            }),
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
            Way::Socks5(proxy) => Box::new(proxy.oneshot(uri).await?.into_inner()),
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

/// Returns user and password of a URI, percent-decoded.
fn credentials(uri: &Uri) -> Option<(String, String)> {
    let (userinfo, _) = uri.authority()?.as_str().rsplit_once('@')?;
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    Some((decode(user), decode(password)))
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
    use super::*;

    #[test]
    fn credentials_of_a_proxy_are_percent_decoded() {
        let of = |uri: &'static str| credentials(&Uri::from_static(uri));
        assert_eq!(of("http://ana:p%40ss@proxy:3128"), Some(("ana".into(), "p@ss".into())));
        assert_eq!(of("http://proxy:3128"), None);
    }
}
