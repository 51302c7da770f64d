//! Exec: a WebSocket with channels, or SPDY if no WebSocket works.

use std::time::Duration;

use http::HeaderMap;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;

pub use crate::k8s::transports::ExecTransport;

use super::{
    Act, CHANNELS_PROTOCOL, UpgradeError, choice, probation,
    request::{Answer, Asked},
};
use crate::{
    config::{Namespace, Subdomain},
    io::BoxedIo,
    k8s::client::Cluster,
};

/// v5 can close stdin alone.
const V5_PROTOCOL: &str = "v5.channel.k8s.io";
const PROTOCOLS: &str = "v5.channel.k8s.io, v4.channel.k8s.io";

impl choice::Transport for ExecTransport {
    const ALL: &[Self] = &[Self::WebSocket, Self::Spdy];

    fn verb(self) -> &'static str {
        if self == Self::Spdy { "create" } else { "get" }
    }

    fn name(self) -> &'static str {
        if self == Self::Spdy { "spdy" } else { "websocket channels" }
    }
}

impl ExecTransport {
    /// Returns the other transport.
    pub fn other(self) -> Self {
        if self == Self::Spdy { Self::WebSocket } else { Self::Spdy }
    }
}

/// Protocol of an exec's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecProtocol {
    /// WebSocket with `v5.channel.k8s.io`: channels can be closed separately.
    V5,
    /// WebSocket with `v4.channel.k8s.io`.
    V4,
    /// One SPDY stream per channel.
    Spdy,
}

impl ExecProtocol {
    /// Returns the protocol that a server has chosen. `named`: its `X-Stream-Protocol-Version` over SPDY, else its
    /// `Sec-WebSocket-Protocol`.
    fn chosen(transport: ExecTransport, named: &str) -> Option<Self> {
        match (transport, named) {
            (ExecTransport::Spdy, CHANNELS_PROTOCOL) => Some(Self::Spdy),
            (ExecTransport::WebSocket, V5_PROTOCOL) => Some(Self::V5),
            (ExecTransport::WebSocket, CHANNELS_PROTOCOL) => Some(Self::V4),
            _ => None,
        }
    }
}

/// A running program, and the connection to it.
pub struct Executed {
    pub io: BoxedIo,
    pub transport: ExecTransport,
    pub protocol: ExecProtocol,
    /// Duration of the upgrade.
    pub took: Duration,
}

/// Runs a command in a container of a pod, without a terminal. Container `None`: the pod's default container.
///
/// # Errors
/// Fails if the server refuses, is unreachable, or takes too long.
pub async fn exec(
    cluster: &Cluster,
    namespace: &Namespace,
    pod: &Subdomain,
    container: Option<&str>,
    command: &[String],
) -> Result<Executed, UpgradeError> {
    let started = Instant::now();
    let path = path(cluster, namespace, pod, container, command);
    let act = Act { cluster, namespace, pod, what: "exec", doing: "running a command in" };
    let ask = |transport: ExecTransport, headers: &HeaderMap| asked(cluster, &path, transport, headers);
    let takes = |transport: ExecTransport, protocol: &str| ExecProtocol::chosen(transport, protocol).is_some();
    let switched = act.upgrade(&cluster.execs, ExecTransport::WebSocket, None, ask, takes).await?;
    let protocol = ExecProtocol::chosen(switched.transport, &switched.protocol).unwrap_or(ExecProtocol::V4);
    Ok(Executed { io: switched.io, transport: switched.transport, protocol, took: started.elapsed() })
}

/// Runs a command with the given transport, not the remembered one. `None`: it is refused, or there is no answer.
pub async fn exec_by(
    transport: ExecTransport,
    cluster: &Cluster,
    namespace: &Namespace,
    pod: &Subdomain,
    container: Option<&str>,
    command: &[String],
) -> Option<Executed> {
    let started = Instant::now();
    let path = path(cluster, namespace, pod, container, command);
    match probation::ask_alone(cluster, |headers| asked(cluster, &path, transport, headers)).await? {
        Answer::Switched { protocol, io } => {
            let protocol = ExecProtocol::chosen(transport, &protocol)?;
            Some(Executed { io, transport, protocol, took: started.elapsed() })
        }
        Answer::Refused(_) => None,
    }
}

/// Remembers that `silent` does not carry bytes and the other transport does. Returns the log message.
pub fn outdone(cluster: &Cluster, silent: ExecTransport) -> String {
    probation::outdone(cluster, &cluster.execs, silent, silent.other())
}

fn path(cluster: &Cluster, namespace: &Namespace, pod: &str, container: Option<&str>, command: &[String]) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let mut query = "stdin=true&stdout=true&stderr=true".to_owned();
    for word in command {
        query += &format!("&command={}", encode(word));
    }
    if let Some(container) = container {
        query += &format!("&container={}", encode(container));
    }
    let prefix = cluster.server.path().trim_end_matches('/');
    format!("{prefix}/api/v1/namespaces/{namespace}/pods/{pod}/exec?{query}")
}

fn asked(cluster: &Cluster, path: &str, transport: ExecTransport, headers: &HeaderMap) -> Asked {
    match transport {
        ExecTransport::WebSocket => Asked::websocket(cluster, path, PROTOCOLS, headers),
        ExecTransport::Spdy => Asked::spdy(cluster, path, CHANNELS_PROTOCOL, headers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subprotocol_is_one_that_was_offered_to_the_letter() {
        let of_websocket = |named| ExecProtocol::chosen(ExecTransport::WebSocket, named);
        assert_eq!(of_websocket("v5.channel.k8s.io"), Some(ExecProtocol::V5));
        assert_eq!(of_websocket("v4.channel.k8s.io"), Some(ExecProtocol::V4));
        for other in ["", "v", "v5", "v5.channel.k8s.io, v4.channel.k8s.io", "V5.CHANNEL.K8S.IO", "v3.channel.k8s.io"] {
            assert_eq!(of_websocket(other), None, "{other:?}");
        }
        assert_eq!(ExecProtocol::chosen(ExecTransport::Spdy, "v4.channel.k8s.io"), Some(ExecProtocol::Spdy));
        assert_eq!(
            ExecProtocol::chosen(ExecTransport::Spdy, "v5.channel.k8s.io"),
            None,
            "over SPDY it was not offered"
        );
    }
}
