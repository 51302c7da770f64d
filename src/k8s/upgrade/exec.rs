//! Exec: a WebSocket with channels, and SPDY where nothing lets a WebSocket through.

use std::sync::atomic::Ordering;

use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::timeout;

use super::{
    CHANNELS_PROTOCOL, Refusal, UPGRADE_TIMEOUT, UpgradeError, exchange, rand_bytes, read_refusal, spdy_request,
    websocket_request,
};
use crate::{
    config::Namespace,
    io::{BoxedIo, prefixed::Prefixed},
    k8s::{ClusterError, client::Cluster},
    wire::websocket::accept_key,
};

/// Can close stdin alone.
const V5_PROTOCOL: &str = "v5.channel.k8s.io";
const PROTOCOLS: &str = "v5.channel.k8s.io, v4.channel.k8s.io";

/// What the streams of an exec travel in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecProtocol {
    /// A WebSocket, `v5.channel.k8s.io`: channels can be closed alone.
    V5,
    /// A WebSocket, `v4.channel.k8s.io`.
    V4,
    /// A SPDY stream for each.
    Spdy,
}

impl ExecProtocol {
    /// Returns what a server has chosen of what was offered. `named`: its `X-Stream-Protocol-Version` over SPDY, else
    /// its `Sec-WebSocket-Protocol`.
    fn chosen(spdy: bool, named: &str) -> Option<Self> {
        match (spdy, named) {
            (true, CHANNELS_PROTOCOL) => Some(Self::Spdy),
            (false, V5_PROTOCOL) => Some(Self::V5),
            (false, CHANNELS_PROTOCOL) => Some(Self::V4),
            _ => None,
        }
    }
}

/// A program that runs, and the connection to it.
pub struct Executed {
    pub io: BoxedIo,
    pub protocol: ExecProtocol,
}

/// Runs a command in a container of a pod, without a terminal. None: the pod's default container.
///
/// # Errors
/// The server refuses, is not reached, or takes too long.
pub async fn exec(
    cluster: &Cluster,
    namespace: &Namespace,
    pod: &str,
    container: Option<&str>,
    command: &[String],
) -> Result<Executed, UpgradeError> {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let mut query = "stdin=true&stdout=true&stderr=true".to_owned();
    for word in command {
        query += &format!("&command={}", encode(word));
    }
    if let Some(container) = container {
        query += &format!("&container={}", encode(container));
    }
    let prefix = cluster.server.path().trim_end_matches('/');
    let path = format!("{prefix}/api/v1/namespaces/{namespace}/pods/{pod}/exec?{query}");
    let upgrade = async {
        let spdy_first = cluster.exec_over_spdy.load(Ordering::Relaxed);
        let refusal = match attempt(cluster, &path, spdy_first).await? {
            Ok(executed) => return Ok(executed),
            Err(refusal) => refusal,
        };
        // It is about the user or the pod, and not about the way.
        if !matches!(refusal.status, 401 | 404)
            && let Ok(executed) = attempt(cluster, &path, !spdy_first).await?
        {
            cluster.exec_over_spdy.store(!spdy_first, Ordering::Relaxed);
            return Ok(executed);
        }
        Err(refusal.into_error(cluster, namespace, if spdy_first { "spdy" } else { "websocket channels" }))
    };
    match timeout(UPGRADE_TIMEOUT, upgrade).await {
        Ok(executed) => executed,
        Err(_) => Err(UpgradeError::Cluster(ClusterError::TimedOut {
            context: cluster.context.clone(),
            doing: format!("running a command in pod {namespace}/{pod}"),
            after: UPGRADE_TIMEOUT,
        })),
    }
}

async fn attempt(cluster: &Cluster, path: &str, spdy: bool) -> Result<Result<Executed, Refusal>, UpgradeError> {
    let headers = cluster.auth_headers().await.map_err(UpgradeError::Cluster)?;
    let key = STANDARD.encode(rand_bytes::<16>());
    let request = match spdy {
        true => spdy_request(cluster, path, CHANNELS_PROTOCOL, &headers),
        false => websocket_request(cluster, path, PROTOCOLS, &headers, &key),
    };
    let (answer, mut io, received) = exchange(cluster, &request, None).await?;
    let is_switched = answer.status == 101 && (spdy || answer.accept.as_deref() == Some(&accept_key(&key)));
    let named = if spdy { answer.stream_protocol.as_deref() } else { answer.websocket_protocol.as_deref() };
    let protocol = named.filter(|_| is_switched).and_then(|named| ExecProtocol::chosen(spdy, named));
    let Some(protocol) = protocol else {
        let message = read_refusal(&mut io, received, answer.length).await;
        return Ok(Err(Refusal { status: answer.status, message }));
    };
    Ok(Ok(Executed { io: Box::new(Prefixed::new(received.freeze(), io)), protocol }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subprotocol_is_one_that_was_offered_to_the_letter() {
        let of_websocket = |named| ExecProtocol::chosen(false, named);
        assert_eq!(of_websocket("v5.channel.k8s.io"), Some(ExecProtocol::V5));
        assert_eq!(of_websocket("v4.channel.k8s.io"), Some(ExecProtocol::V4));
        for other in ["", "v", "v5", "v5.channel.k8s.io, v4.channel.k8s.io", "V5.CHANNEL.K8S.IO", "v3.channel.k8s.io"] {
            assert_eq!(of_websocket(other), None, "{other:?}");
        }
        assert_eq!(ExecProtocol::chosen(true, "v4.channel.k8s.io"), Some(ExecProtocol::Spdy));
        assert_eq!(ExecProtocol::chosen(true, "v5.channel.k8s.io"), None, "over SPDY it was not offered");
    }
}
