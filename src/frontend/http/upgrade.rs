//! WebSocket and other upgrades: after the backend's 101, bytes are copied both ways.

use base64::{Engine, prelude::BASE64_STANDARD};
use futures::TryFutureExt;
use h2::ext::Protocol;
use http::{
    HeaderMap, HeaderValue, Method, Request,
    header::{CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE},
};
use tokio::sync::oneshot;
use tower::BoxError;
use tracing::debug;

use super::{
    access::Access,
    headers,
    http2::{Tunnel, server::Switching},
    websocket::WebSocketBackend,
};
use crate::{
    drain::Drain,
    frontend::{
        client_socket::ClientSocket,
        join::{carry_while, join_while},
        read_only::Unlocked,
    },
    guard::normaliser::Normaliser,
    io::{BoxedIo, upgraded::connection_of},
    tunnel::Lease,
};

/// A request to switch to another protocol.
pub struct Asked {
    protocol: HeaderValue,
    /// The request is an extended CONNECT of HTTP/2 (RFC 8441).
    is_extended: bool,
    client: Client,
}

/// The client's connection, available once the request is answered.
enum Client {
    Http1(hyper::upgrade::OnUpgrade),
    Http2(oneshot::Receiver<Tunnel>),
}

impl Client {
    async fn switched(self) -> Result<BoxedIo, BoxError> {
        Ok(match self {
            Self::Http1(upgrading) => connection_of::<Normaliser<BoxedIo>>(upgrading.await?),
            Self::Http2(opening) => Box::new(opening.await?),
        })
    }
}

impl Asked {
    /// Returns the protocol switch that a request asks for. `None`: it is a plain request.
    pub fn of<B>(request: &mut Request<B>) -> Option<Self> {
        let (protocol, is_extended) = asked_protocol(request)?;
        let client = match request.extensions_mut().remove::<Switching>() {
            Some(switching) => Client::Http2(switching.take()?),
            None => Client::Http1(hyper::upgrade::on(request)),
        };
        Some(Self { protocol, is_extended, client })
    }

    /// Rewrites the request for an HTTP/1.1 backend. The client's hop-by-hop headers must be removed before.
    pub fn into_http1<B>(&self, request: &mut Request<B>) {
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, self.protocol.clone());
        if self.is_extended {
            // The key only proves that the answer belongs to this request; it need not be secret.
            let nonce = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8).to_be_bytes();
            let key = BASE64_STANDARD.encode([nonce, nonce].concat());
            if let Ok(key) = HeaderValue::from_str(&key) {
                headers.insert(SEC_WEBSOCKET_KEY, key);
            }
            // The bytes that follow belong to the other protocol, not to a body.
            headers.remove(CONTENT_LENGTH);
            *request.method_mut() = Method::GET;
            request.extensions_mut().remove::<Protocol>();
        }
    }

    pub fn is_extended(&self) -> bool {
        self.is_extended
    }

    /// Sets the headers of the answer for the switch. `chosen`: the protocol that the backend has accepted.
    pub fn tell(&self, headers: &mut HeaderMap, chosen: HeaderValue) {
        if self.is_extended {
            headers.remove(SEC_WEBSOCKET_ACCEPT);
        } else {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, chosen);
        }
    }

    /// Joins the two connections once both are upgraded, and holds the lease until they end.
    pub fn join(
        self,
        backend: hyper::upgrade::OnUpgrade,
        (lease, unlocked): (Lease, Unlocked),
        mut access: Access,
        socket: ClientSocket,
        drain: &Drain,
    ) {
        let is_websocket = self.protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
        let ended = drain.clone();
        drain.spawn(async move {
            let (mut client, backend) = match tokio::try_join!(self.client.switched(), backend.map_err(BoxError::from))
            {
                Ok(both) => both,
                Err(error) => return debug!(error, "upgrade not completed"),
            };
            let mut backend = connection_of::<BoxedIo>(backend);
            let end = if is_websocket {
                let mut backend = WebSocketBackend::new(backend, ended);
                let end = carry_while(&unlocked, &mut client, &mut backend, &lease, socket).await;
                drop(client);
                let (up, down) = backend.messages();
                access.messages(up, down);
                backend.finish().await;
                end
            } else {
                join_while(&unlocked, &mut client, &mut backend, &lease, socket).await
            };
            access.moved(end.up, end.down);
            debug!(up = end.up, down = end.down, broken = end.why(), "upgraded connection ended");
            drop(lease);
        });
    }
}

/// Returns the protocol that a request asks to switch to, and whether it is an extended CONNECT.
pub fn asked_protocol<B>(request: &Request<B>) -> Option<(HeaderValue, bool)> {
    match request.extensions().get::<Protocol>() {
        Some(protocol) if *request.method() == Method::CONNECT => {
            Some((HeaderValue::from_str(protocol.as_str()).ok()?, true))
        }
        _ if request.version() == http::Version::HTTP_11 => Some((headers::upgrade(request.headers())?, false)),
        _ => None,
    }
}
