//! Opens connections to the pod.

use std::{io, pin::pin, time::Duration};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    RequestError, Upstreams, Way,
    admission::Admitted,
    heard::{Heard, Listening},
    pool::{H1, H2, Key, Sender},
};
use crate::{
    config::Scheme,
    frontend::http::{http2, trailers::Trailers},
    io::BoxedIo,
    tunnel::{Placement, StreamFault},
    wire::{
        http1::MOST_HEADERS,
        sniff::{Protocol, Sniff},
    },
};

const TLS_TIMEOUT: Duration = Duration::from_secs(10);

/// Timeout for the greeting of a backend with an unknown protocol, over TLS or HTTP/2. Servers of either send it at once.
const GREETING: Duration = Duration::from_secs(3);

/// A connection to send one request on.
pub struct Opened {
    pub sender: Sender,
    pub placement: Placement,
    /// The connection has served other requests before.
    pub was_used: bool,
    /// Idle connections were closed to make room for it.
    pub is_after_close: bool,
    pub admitted: Option<Admitted>,
}

/// Error of a connection that could not be used.
pub struct Unopened {
    pub error: RequestError,
    /// The backend's first bytes; [`Sniff::NeedMore`]: it sent none. `None`: there was no connection.
    pub said: Option<Sniff>,
}

impl Unopened {
    fn unreached(error: RequestError) -> Self {
        Self { error, said: None }
    }

    /// Returns the error of a connection on which adit has sent bytes.
    async fn spoken(heard: &Heard, error: RequestError) -> Self {
        match heard.fault() {
            Some(fault) if fault != StreamFault::Reset => Self::unreached(RequestError::Stream(fault)),
            _ => Self { error, said: Some(heard.sniff(Duration::ZERO).await) },
        }
    }
}

impl Upstreams {
    /// Connects to the backend. `is_known`: the backend speaks this protocol. Otherwise, returns the connection only if the
    /// backend speaks it, as far as that shows before a request.
    pub async fn connect(&self, key: &Key, way: &Way<'_>, is_known: bool) -> Result<Opened, Unopened> {
        let placed = way.lease.connect_to(None).await;
        let (stream, placement) = placed.map_err(|error| Unopened::unreached(RequestError::Open(error)))?;
        let heard = Heard::default();
        let stream = heard.on(stream);
        let sender = match &key.tls {
            // Upgrades need HTTP/1.1, also on a backend with h2c.
            None if key.scheme == Scheme::H2c && !way.is_upgrade() => {
                self.http2(key, Box::new(stream), heard, &placement, is_known).await?
            }
            None => self.http1(Box::new(stream), heard).await?,
            Some((name, tls)) => {
                let config = self.tls.config(tls, way.is_upgrade() || key.is_http1).await;
                let config = config.map_err(|error| Unopened::unreached(RequestError::TlsFile(error)))?;
                let connector = TlsConnector::from(config);
                let stream = match handshake(connector, name, stream, &heard, is_known).await {
                    Ok(stream) => stream,
                    Err(error) => return Err(Unopened::spoken(&heard, RequestError::Tls(error)).await),
                };
                heard.know();
                let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let within = Heard::default();
                let stream = Box::new(within.within_tls(Box::new(stream)));
                match is_h2 {
                    true => self.http2(key, stream, within, &placement, true).await?,
                    false => self.http1(stream, within).await?,
                }
            }
        };
        Ok(Opened { sender, placement, was_used: false, is_after_close: false, admitted: None })
    }

    async fn http1(&self, stream: BoxedIo, heard: Heard) -> Result<Sender, Unopened> {
        let trailers = Trailers::default();
        let shaken = lenient().handshake(TokioIo::new(trailers.on(stream))).await;
        let (sender, connection) =
            shaken.map_err(|error| Unopened::unreached(RequestError::Http1(error, Vec::new())))?;
        // `send_request` returns the errors of the connection, too.
        self.drain.spawn(async move { drop(connection.with_upgrades().await) });
        Ok(Sender::H1(H1 { sender, heard, trailers, kept: None, is_authenticated: false }))
    }

    async fn http2(
        &self,
        key: &Key,
        stream: BoxedIo,
        heard: Heard,
        placement: &Placement,
        is_known: bool,
    ) -> Result<Sender, Unopened> {
        let shaken = http2::client::handshake(stream).await;
        let (sender, connection) = shaken.map_err(|error| Unopened::unreached(RequestError::Http2(error)))?;
        self.drain.spawn(async move { drop(connection.await) });
        if !is_known && heard.sniff(GREETING).await != Sniff::Is(Protocol::Http2) {
            return Err(Unopened::spoken(&heard, RequestError::NotHttp2).await);
        }
        let h2 = H2::new(sender, heard);
        self.pool.share(key.clone(), &h2, placement.clone());
        Ok(Sender::H2(h2))
    }
}

/// Returns a client that is as lenient as browsers: it takes many headers, a space before the colon, and folded lines; it skips
/// invalid lines.
pub fn lenient() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .preserve_header_case(true)
        .max_headers(MOST_HEADERS)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .ignore_invalid_headers_in_responses(true);
    builder
}

async fn handshake(
    connector: TlsConnector,
    name: &str,
    stream: Listening,
    heard: &Heard,
    is_known: bool,
) -> io::Result<TlsStream<Listening>> {
    let name =
        ServerName::try_from(name.to_owned()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let mut connecting = pin!(timeout(TLS_TIMEOUT, connector.connect(name, stream)));
    let connected = tokio::select! {
        connected = connecting.as_mut() => connected,
        () = sleep(GREETING), if !is_known => match heard.anything() {
            true => connecting.await,
            false => return Err(io::ErrorKind::TimedOut.into()),
        },
    };
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
