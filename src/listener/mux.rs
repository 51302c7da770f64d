//! One listener for every protocol: told apart by the first bytes, which are kept and replayed.

use std::{io, sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};
use tracing::{debug, info};

use crate::{
    drain::Drain,
    frontend::{
        Connection,
        http::{HttpFrontend, HttpVersion},
        tls::TlsFrontend,
    },
    io::{BoxedIo, prefixed::Prefixed},
    wire::sniff::{Protocol, Sniff, sniff},
};

/// How long a client may stay silent at first. Browsers open connections that they may never use.
const SILENCE: Duration = Duration::from_secs(10);

/// Hands connections to the frontend of what they speak.
pub struct Mux {
    http: Arc<HttpFrontend>,
    tls: Arc<TlsFrontend>,
}

impl Mux {
    pub fn new(http: Arc<HttpFrontend>, tls: Arc<TlsFrontend>) -> Self {
        Self { http, tls }
    }

    /// Serves one accepted connection.
    pub async fn serve(&self, mut stream: TcpStream, connection: Connection, drain: Drain) {
        let first = tokio::select! {
            first = timeout(SILENCE, first_bytes(&mut stream)) => first,
            // One that has not spoken has nothing in progress.
            () = drain.started() => return,
        };
        let (received, sniffed) = match first {
            Ok(Ok(first)) => first,
            Ok(Err(error)) => {
                return debug!(connection = connection.id, peer = %connection.peer, %error, "closed before it spoke");
            }
            Err(_) => {
                return debug!(connection = connection.id, peer = %connection.peer, "closed: silent for {} s", SILENCE.as_secs());
            }
        };
        let Some(protocol) = sniffed else {
            let first = received.escape_ascii().to_string();
            return info!(connection = connection.id, peer = %connection.peer, first = &first[..first.len().min(60)], "closed: neither HTTP nor TLS");
        };
        let stream: BoxedIo = Box::new(Prefixed::new(received.freeze(), stream));
        match protocol {
            Protocol::Tls => self.tls.clone().serve(stream, connection, drain).await,
            Protocol::Http1 => self.http.clone().serve(stream, HttpVersion::Http1, connection, false, drain).await,
            Protocol::Http2 => self.http.clone().serve(stream, HttpVersion::Http2, connection, false, drain).await,
        }
    }
}

/// Reads until the protocol is known. None: it is not one of ours.
async fn first_bytes(stream: &mut TcpStream) -> io::Result<(BytesMut, Option<Protocol>)> {
    // No buffer is held for a client that says nothing.
    stream.readable().await?;
    let mut received = BytesMut::with_capacity(1024);
    loop {
        if stream.read_buf(&mut received).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match sniff(&received) {
            Sniff::Is(protocol) => return Ok((received, Some(protocol))),
            Sniff::Unknown => return Ok((received, None)),
            Sniff::NeedMore => {}
        }
    }
}
