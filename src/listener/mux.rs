//! One listener for all protocols: it detects them by the first bytes, which it replays to the frontend.

use std::{
    io,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tracing::{debug, info};

use super::dns;
use crate::{
    drain::Drain,
    error_code::ErrorCode,
    frontend::{
        Connection,
        door::Door,
        greeting::end_with,
        http::{HttpFrontend, HttpVersion, proxy_connect::ConnectFrontend},
        proxied,
        socks::SocksFrontend,
        tls::TlsFrontend,
    },
    io::{BoxedIo, accept::Full, prefixed::Prefixed},
    metrics::Metrics,
    routing::{SharedRouter, table},
    wire::{
        self, connect,
        database::{is_resp, redis_error},
        sniff::{Protocol, Sniff, sniff},
    },
};

/// Error for a Redis client without TLS.
const NAMELESS_REDIS: &str =
    "adit: Redis without TLS sends no host name to route by (hint: connect through a route of tcp.k8s.routes)";

/// Frontends of the forward proxy.
pub struct ForwardFrontends {
    pub socks: SocksFrontend,
    pub connect: ConnectFrontend,
}

/// Passes each connection to the frontend of its protocol.
pub struct Mux {
    http: Arc<HttpFrontend>,
    tls: Arc<TlsFrontend>,
    forward: ForwardFrontends,
    router: SharedRouter,
    metrics: Arc<Metrics>,
}

impl Mux {
    /// Returns the addresses of a served name on this machine. `None`: adit does not serve the name.
    pub fn addresses(&self, host: &str) -> Option<Vec<IpAddr>> {
        let router = self.router.load();
        let is_local = host == "localhost" || host.ends_with(".localhost");
        // adit also serves a route whose context is gone: its error page tells the reason.
        let has_route = table::find(&router.config.http.routes, host).is_some();
        (is_local || has_route || router.http(host).is_ok()).then(|| dns::addresses(&router.config))
    }

    pub fn new(
        http: Arc<HttpFrontend>,
        tls: Arc<TlsFrontend>,
        forward: ForwardFrontends,
        router: SharedRouter,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { http, tls, forward, router, metrics }
    }

    /// Returns whether a listener is a forward proxy. `is_own`: the listener has no other purpose.
    pub fn door(&self, is_own: bool) -> Door {
        let router = self.router.load();
        match &router.config.proxy {
            Some(proxy) if is_own || proxy.listen.is_empty() => Door::Open,
            _ => Door::Closed,
        }
    }

    /// Refuses a client. An HTTP/1 client gets an answer with the reason.
    pub async fn refuse(&self, stream: TcpStream, full: Full) {
        self.metrics.refused_connections.fetch_add(1, Ordering::Relaxed);
        refuse_http(stream, full).await;
    }

    /// Serves one accepted connection.
    pub async fn serve(&self, mut stream: TcpStream, connection: Arc<Connection>, drain: Drain) {
        let router = self.router.load_full();
        let (connection, received) =
            match proxied::accept(&mut stream, &router.config.http.proxy_protocol, &connection).await {
                Ok(proxied) => proxied,
                Err(error) => return info!(connection = connection.id, peer = %connection.peer, %error, "closed"),
            };
        drop(router);
        let limit = connection.place.limits().first_byte;
        let first = tokio::select! {
            biased;
            first = timeout(limit, first_bytes(&mut stream, received)) => first,
            // A silent connection has nothing in progress.
            () = drain.started() => return,
        };
        let (received, sniffed) = match first {
            Ok(Ok(first)) => first,
            Ok(Err(error)) => {
                return debug!(connection = connection.id, peer = %connection.peer, %error, "client closed the connection without sending anything");
            }
            Err(_) => {
                self.metrics.unknown_connections.fetch_add(1, Ordering::Relaxed);
                return debug!(connection = connection.id, peer = %connection.peer, "closed: silent for {limit:?}");
            }
        };
        let forwards = !connection.door.is_closed();
        let is_local = connection.peer.ip().to_canonical().is_loopback();
        if sniffed.is_none() && is_local && wire::dns::may_be_framed(&received) {
            let answered = tokio::select! {
                answered = dns::serve_stream(&mut stream, received.clone(), |host| self.addresses(host)) => answered,
                () = drain.started() => return,
            };
            if answered > 0 {
                return;
            }
        }
        let Some(protocol) = sniffed.filter(|protocol| *protocol != Protocol::Socks5 || forwards) else {
            self.metrics.unknown_connections.fetch_add(1, Ordering::Relaxed);
            let first = received.escape_ascii().to_string();
            if is_resp(&received) {
                let error = redis_error(NAMELESS_REDIS);
                tokio::select! {
                    () = end_with(&mut stream, &error) => {}
                    () = drain.started() => {}
                }
            }
            return info!(connection = connection.id, peer = %connection.peer, first = &first[..first.len().min(60)], "closed: neither HTTP nor TLS");
        };
        let is_locked = connection.door.is_private() && matches!(protocol, Protocol::Tls | Protocol::Postgres);
        if is_locked {
            return info!(connection = connection.id, peer = %connection.peer, "closed: a private port serves SOCKS5 and HTTP");
        }
        // On the heap, so that a silent client does not hold the memory that other protocols need.
        match protocol {
            Protocol::Tls => {
                let serving = self.tls.clone().serve(Box::new(stream), received, connection, drain);
                return Box::pin(serving).await;
            }
            Protocol::Postgres => {
                return Box::pin(self.tls.postgres().serve(Box::new(stream), received, connection)).await;
            }
            Protocol::Socks5 => {
                return Box::pin(self.forward.socks.serve(Box::new(stream), received, connection)).await;
            }
            Protocol::Http1 if forwards && connect::is_connect(&received) => {
                return Box::pin(self.forward.connect.serve(Box::new(stream), received, connection)).await;
            }
            Protocol::Http1 | Protocol::Http2 => {}
        }
        let version = if protocol == Protocol::Http2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
        let stream: BoxedIo = Box::new(Prefixed::new(received.freeze(), stream));
        Box::pin(self.http.clone().serve(stream, version, connection, false, drain)).await;
    }
}

/// Answers an HTTP/1 client that a limit is reached, and closes its connection.
pub async fn refuse_http(mut stream: TcpStream, full: Full) {
    let mut request = [0; 1024];
    let Ok(count) = stream.read(&mut request).await else { return };
    if matches!(sniff(&request[..count]), Sniff::Is(Protocol::Http1)) && stream.write_all(&refusal(full)).await.is_ok()
    {
        // A close with unread bytes would be a reset, which can overtake the answer.
        let _ = stream.shutdown().await;
        while stream.read(&mut request).await.is_ok_and(|count| count > 0) {}
    }
}

fn refusal(full: Full) -> Vec<u8> {
    let (code, text) = match full {
        Full::OpenFiles => (
            ErrorCode::OpenFileLimit,
            "adit has reached its open-file limit: close connections, or raise it with 'ulimit -n'.\n",
        ),
        Full::Connections => {
            (ErrorCode::TooManyConnections, "All connections of this server are in use: try again later.\n")
        }
        Full::Address => {
            (ErrorCode::TooManyConnections, "Your address has as many connections as one may have: close some.\n")
        }
    };
    let length = text.len();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Retry-After: 1\r\nConnection: close\r\nX-Adit-Error: {code}\r\n\r\n{text}"
    )
    .into_bytes()
}

/// Reads until the protocol is known. `received`: bytes already read. `None`: the protocol is unknown.
///
/// # Errors
/// The client ends its connection before that, or it breaks.
pub async fn first_bytes(stream: &mut TcpStream, mut received: BytesMut) -> io::Result<(BytesMut, Option<Protocol>)> {
    loop {
        if received.is_empty() || sniff(&received) == Sniff::NeedMore {
            // A silent client holds no buffer.
            stream.readable().await?;
            received.reserve(1024);
            if stream.read_buf(&mut received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        match sniff(&received) {
            Sniff::Is(protocol) => return Ok((received, Some(protocol))),
            Sniff::Unknown => return Ok((received, None)),
            Sniff::NeedMore => {}
        }
    }
}
