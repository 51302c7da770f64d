//! The upgraded connection to a pod: two envelopes, and the choice between them.
//!
//! | | request | answer |
//! |---|---|---|
//! | raw | `POST`, `Upgrade: SPDY/3.1`, `X-Stream-Protocol-Version: portforward.k8s.io` | 101, then SPDY frames |
//! | tunnel (KEP-4006) | `GET`, a WebSocket with the subprotocol `SPDY/3.1+portforward.k8s.io` | 101, then SPDY frames in binary messages |
//! | channels | `GET ...?ports=N`, a WebSocket with the subprotocol `v4.channel.k8s.io` | 101, then messages; one connection into the pod |
//!
//! Every server takes the raw one, with the verb `create`; from Kubernetes 1.31 on also the tunnel, with the verb `get`.
//! Proxies and gateways often know WebSocket and not SPDY. So the raw one, which costs 5-12 % less for large
//! transfers, is asked for first on a direct way, the tunnel on a way through a proxy. Whatever is refused, the
//! other one is tried, once, and what worked is remembered for the context. Channels are the last resort: behind a
//! gateway that lets nothing else through, or with servers up to 1.30 behind one that knows no SPDY.

pub mod exec;
pub mod websocket;

use std::{io, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use http::HeaderMap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use self::websocket::WebSocketIo;
use crate::{
    config::Namespace,
    io::{BoxedIo, prefixed::Prefixed, read_ahead::ReadAhead},
    k8s::{
        ClusterError,
        client::{Cluster, printable},
        dial::CONNECT_TIMEOUT,
    },
    wire::websocket::accept_key,
};

/// What SPDY frames travel in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// Nothing: they follow the 101 as they are.
    Spdy,
    /// Binary WebSocket messages.
    WebSocket,
    /// No SPDY: a WebSocket for each connection into the pod.
    Channels,
}

impl Envelope {
    /// The name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spdy => "spdy",
            Self::WebSocket => "spdy over websocket",
            Self::Channels => "websocket channels",
        }
    }

    fn websocket_protocol(self) -> &'static str {
        if self == Self::Channels { CHANNELS_PROTOCOL } else { TUNNEL_PROTOCOL }
    }

    /// Returns what is tried after this one was refused, in order.
    fn others(self) -> [Self; 2] {
        match self {
            Self::Spdy => [Self::WebSocket, Self::Channels],
            Self::WebSocket => [Self::Spdy, Self::Channels],
            Self::Channels => [Self::Spdy, Self::WebSocket],
        }
    }
}

/// A connection that carries SPDY frames to and from the node of a pod.
pub struct Upgraded {
    pub io: BoxedIo,
    pub envelope: Envelope,
}

/// Why a connection was not upgraded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpgradeError {
    Cluster(ClusterError),
    /// 404: the API server, or the node, does not know the pod.
    PodGone(String),
}

/// The API server dials the node, and the node asks its container runtime: 4-7 ms on a healthy node.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// More than any API server puts into the headers of its answer.
const LONGEST_HEAD: usize = 16 * 1024;

/// The part of a refusal's body that is read for its message.
const LONGEST_REFUSAL: usize = 16 * 1024;

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNELS_PROTOCOL: &str = "v4.channel.k8s.io";

/// Opens TCP and TLS to the API server: the part of an upgrade that can be done before the pod is known.
pub async fn dial(cluster: &Cluster) -> Result<BoxedIo, ClusterError> {
    let connect = async {
        let tcp = cluster.dialer.connect(cluster.server.clone()).await.map_err(|error| cluster.unreachable(&*error))?;
        match (&cluster.tls, &cluster.tls_server_name) {
            (Some(tls), Some(name)) => {
                let tls = TlsConnector::from(tls.clone()).connect(name.clone(), ReadAhead::new(tcp)).await;
                Ok(Box::new(tls.map_err(|error| cluster.unreachable(&error))?) as BoxedIo)
            }
            _ => Ok(tcp),
        }
    };
    match timeout(CONNECT_TIMEOUT, connect).await {
        Ok(connected) => connected,
        Err(_) => Err(ClusterError::TimedOut {
            context: cluster.context.clone(),
            doing: "connecting".into(),
            after: CONNECT_TIMEOUT,
        }),
    }
}

/// Upgrades a connection to the port-forward of a pod. `dialled` is one from [`dial`] where there is one already. The
/// port is part of the request only with [`Envelope::Channels`].
pub async fn port_forward(
    cluster: &Cluster,
    namespace: &Namespace,
    pod: &str,
    port: u16,
    dialled: Option<BoxedIo>,
) -> Result<Upgraded, UpgradeError> {
    let remembered = *cluster.envelope.lock().expect("no panic while the lock is held");
    let first = remembered.unwrap_or(if cluster.proxy.is_some() { Envelope::WebSocket } else { Envelope::Spdy });
    let path =
        format!("{}/api/v1/namespaces/{namespace}/pods/{pod}/portforward", cluster.server.path().trim_end_matches('/'));
    let upgrade = async {
        let headers = cluster.auth_headers().await.map_err(UpgradeError::Cluster)?;
        let refusal = match attempt(cluster, &path, port, first, &headers, dialled).await? {
            Ok(io) => return Ok(Upgraded { io, envelope: first }),
            Err(refusal) => refusal,
        };
        for other in first.others() {
            if refusal.is_final(other) {
                break;
            }
            if let Ok(io) = attempt(cluster, &path, port, other, &headers, None).await? {
                return Ok(Upgraded { io, envelope: other });
            }
        }
        Err(refusal.into_error(cluster, namespace, first.name()))
    };
    match timeout(UPGRADE_TIMEOUT, upgrade).await {
        Ok(Ok(upgraded)) => {
            *cluster.envelope.lock().expect("no panic while the lock is held") = Some(upgraded.envelope);
            Ok(upgraded)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(UpgradeError::Cluster(ClusterError::TimedOut {
            context: cluster.context.clone(),
            doing: format!("opening a port-forward to pod {namespace}/{pod}"),
            after: UPGRADE_TIMEOUT,
        })),
    }
}

/// An answer that is not the upgrade that was asked for.
struct Refusal {
    status: u16,
    message: String,
}

impl Refusal {
    /// Returns whether another envelope would get the same answer: it is about the user (the tunnel needs another verb,
    /// channels the same as the tunnel) or the pod.
    fn is_final(&self, next: Envelope) -> bool {
        matches!(self.status, 401 | 404) || (self.is_denial() && next == Envelope::Channels)
    }

    /// Returns whether the user lacks a right.
    fn is_denial(&self) -> bool {
        self.status == 403 && self.message.contains("User \"")
    }

    fn into_error(self, cluster: &Cluster, namespace: &Namespace, way: &str) -> UpgradeError {
        match self.status {
            404 => UpgradeError::PodGone(self.message),
            403 if !self.is_denial() => UpgradeError::Cluster(ClusterError::Protocol {
                context: cluster.context.clone(),
                reason: format!("the upgrade to {way} was refused (403): {}", self.message),
            }),
            status => UpgradeError::Cluster(cluster.refusal(status, &self.message, namespace)),
        }
    }
}

async fn attempt(
    cluster: &Cluster,
    path: &str,
    port: u16,
    envelope: Envelope,
    headers: &HeaderMap,
    dialled: Option<BoxedIo>,
) -> Result<Result<BoxedIo, Refusal>, UpgradeError> {
    let key = STANDARD.encode(rand_bytes::<16>());
    let request = request(cluster, path, port, envelope, headers, &key);
    let (answer, mut io, received) = exchange(cluster, &request, dialled).await?;
    let accepted = answer.status == 101
        && match envelope {
            Envelope::Spdy => answer.stream_protocol.as_deref() == Some(PROTOCOL),
            Envelope::WebSocket | Envelope::Channels => {
                answer.websocket_protocol.as_deref() == Some(envelope.websocket_protocol())
                    && answer.accept.as_deref() == Some(&accept_key(&key))
            }
        };
    if !accepted {
        let message = read_refusal(&mut io, received, answer.length).await;
        return Ok(Err(Refusal { status: answer.status, message }));
    }
    let io = Prefixed::new(received.freeze(), io);
    Ok(Ok(match envelope {
        Envelope::Spdy | Envelope::Channels => Box::new(io),
        Envelope::WebSocket => Box::new(WebSocketIo::client(io)),
    }))
}

/// Sends a request for an upgrade, and returns the head of the answer with what came behind it.
async fn exchange(
    cluster: &Cluster,
    request: &[u8],
    dialled: Option<BoxedIo>,
) -> Result<(Answer, BoxedIo, BytesMut), UpgradeError> {
    let mut io = match dialled {
        Some(io) => io,
        None => dial(cluster).await.map_err(UpgradeError::Cluster)?,
    };
    let broken = |error: io::Error| UpgradeError::Cluster(cluster.unreachable(&error));
    io.write_all(request).await.map_err(broken)?;
    io.flush().await.map_err(broken)?;
    let mut received = BytesMut::with_capacity(4 * 1024);
    loop {
        if io.read_buf(&mut received).await.map_err(broken)? == 0 {
            return Err(broken(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the connection ended before the answer to the upgrade",
            )));
        }
        match Answer::parse(&mut received) {
            Ok(Some(answer)) => return Ok((answer, io, received)),
            Ok(None) if received.len() <= LONGEST_HEAD => {}
            _ => {
                let reason = "the answer to the upgrade is not HTTP".to_owned();
                return Err(UpgradeError::Cluster(ClusterError::Protocol { context: cluster.context.clone(), reason }));
            }
        }
    }
}

fn request(cluster: &Cluster, path: &str, port: u16, envelope: Envelope, headers: &HeaderMap, key: &str) -> Vec<u8> {
    match envelope {
        Envelope::Spdy => spdy_request(cluster, path, PROTOCOL, headers),
        Envelope::WebSocket => websocket_request(cluster, path, TUNNEL_PROTOCOL, headers, key),
        Envelope::Channels => {
            websocket_request(cluster, &format!("{path}?ports={port}"), CHANNELS_PROTOCOL, headers, key)
        }
    }
}

fn spdy_request(cluster: &Cluster, path: &str, protocol: &str, headers: &HeaderMap) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n",
        host(cluster)
    );
    with_headers(head, headers)
}

fn websocket_request(cluster: &Cluster, path: &str, protocols: &str, headers: &HeaderMap, key: &str) -> Vec<u8> {
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {protocols}\r\n",
        host(cluster)
    );
    with_headers(head, headers)
}

fn host(cluster: &Cluster) -> &str {
    let host = cluster.server.authority().map(|authority| authority.as_str()).unwrap_or_default();
    host.rsplit_once('@').map_or(host, |(_, host)| host)
}

fn with_headers(head: String, headers: &HeaderMap) -> Vec<u8> {
    let mut request = head.into_bytes();
    request.extend_from_slice(concat!("User-Agent: adit/", env!("CARGO_PKG_VERSION"), "\r\n").as_bytes());
    for (name, value) in headers {
        request.extend_from_slice(name.as_str().as_bytes());
        request.extend_from_slice(b": ");
        request.extend_from_slice(value.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    request
}

/// What matters of the answer's head.
struct Answer {
    status: u16,
    stream_protocol: Option<String>,
    websocket_protocol: Option<String>,
    accept: Option<String>,
    length: Option<usize>,
}

impl Answer {
    /// Parses and takes the head. None: more bytes are needed.
    fn parse(received: &mut BytesMut) -> Result<Option<Self>, httparse::Error> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(length) = response.parse(received)? else { return Ok(None) };
        let header = |name: &str| {
            let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(found.value).ok().map(|value| value.trim().to_owned())
        };
        let answer = Self {
            status: response.code.unwrap_or(0),
            stream_protocol: header("x-stream-protocol-version"),
            websocket_protocol: header("sec-websocket-protocol"),
            accept: header("sec-websocket-accept"),
            length: header("content-length").and_then(|length| length.parse().ok()),
        };
        let _head = received.split_to(length);
        Ok(Some(answer))
    }
}

/// Reads the body of a refusal, and returns its message: that of a Status object, or the text as it is.
async fn read_refusal(io: &mut BoxedIo, mut body: BytesMut, length: Option<usize>) -> String {
    let wanted = length.unwrap_or(LONGEST_REFUSAL).min(LONGEST_REFUSAL);
    // Without a length the body ends with the connection, or when nothing more comes.
    while body.len() < wanted {
        match timeout(Duration::from_millis(500), io.read_buf(&mut body)).await {
            Ok(Ok(count)) if count > 0 => {}
            _ => break,
        }
    }
    let status: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    match status.as_ref().and_then(|status| status["message"].as_str()) {
        Some(message) => printable(message),
        None => printable(&String::from_utf8_lossy(&body)).chars().take(300).collect(),
    }
}

/// Returns bytes that no one can foresee, as the nonces and masks of RFC 6455 have to be.
fn rand_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The only failure is a system without a random source, on which TLS did not come up either.
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .expect("TLS has used the same source before");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_an_answer_is_taken_and_what_follows_is_kept() {
        let whole = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nx-stream-protocol-version: portforward.k8s.io\r\n\r\n\x80\x03";
        for cut in 0..whole.len() - 2 {
            assert!(Answer::parse(&mut BytesMut::from(&whole[..cut])).unwrap().is_none(), "byte {cut}");
        }
        let mut received = BytesMut::from(&whole[..]);
        let answer = Answer::parse(&mut received).unwrap().unwrap();
        assert_eq!((answer.status, answer.stream_protocol.as_deref()), (101, Some(PROTOCOL)));
        assert_eq!(&received[..], b"\x80\x03");
    }

    #[tokio::test]
    async fn the_message_of_a_status_object_is_what_a_refusal_says() {
        let body = br#"{"kind":"Status","message":"pods \"a\" not found","code":404}"#;
        let (mut near, far) = tokio::io::duplex(1024);
        near.write_all(&body[5..]).await.unwrap();
        let mut io: BoxedIo = Box::new(far);
        assert_eq!(read_refusal(&mut io, BytesMut::from(&body[..5]), Some(body.len())).await, "pods \"a\" not found");
    }
}
