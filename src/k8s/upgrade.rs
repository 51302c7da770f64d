//! Upgraded connections to a pod: three transports, and the choice between them.
//!
//! | | request | answer |
//! |---|---|---|
//! | raw | `POST`, `Upgrade: SPDY/3.1`, `X-Stream-Protocol-Version: portforward.k8s.io` | 101, then SPDY frames |
//! | tunnel (KEP-4006) | `GET`, a WebSocket with the subprotocol `SPDY/3.1+portforward.k8s.io` | 101, then SPDY frames in binary messages |
//! | channels | `GET ...?ports=N`, a WebSocket with the subprotocol `v4.channel.k8s.io` | 101, then messages; one connection into the pod |
//!
//! Every server supports the raw transport, with the verb `create`; from Kubernetes 1.31 on also the tunnel, with the
//! verb `get`. Proxies and gateways often support WebSocket but not SPDY. So a direct connection tries the raw transport
//! first, which costs 5-12 % less for large transfers, and a connection through a proxy tries the tunnel first. Channels
//! are the last resort: behind a gateway that passes nothing else, or with servers up to 1.30 behind a gateway without
//! SPDY. The rules are in `choice`. The context remembers the transport that worked.

pub mod attempts;
mod choice;
pub mod exec;
pub mod probation;
mod request;

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use tokio::time::{Instant, timeout};

use self::{
    attempts::{Failure, Switched},
    choice::Verdict,
    request::{Answer, Asked, Refusal},
};
pub use super::transports::Transport;
use crate::{
    config::{Namespace, Subdomain},
    io::BoxedIo,
    k8s::{
        ClusterError,
        client::Cluster,
        credential::Credential,
        credentials::Renewal,
        dial::{CONNECT_TIMEOUT, ConnectError},
        transports::Memory,
        websocket::byte_stream::WebSocketIo,
    },
};

impl choice::Transport for Transport {
    const ALL: &[Self] = &[Self::Spdy, Self::WebSocket, Self::Channels];

    fn verb(self) -> &'static str {
        if self == Self::Spdy { "create" } else { "get" }
    }

    fn name(self) -> &'static str {
        Transport::name(self)
    }
}

impl Transport {
    /// Returns the name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spdy => "spdy",
            Self::WebSocket => "spdy over websocket",
            Self::Channels => "websocket channels",
        }
    }

    fn protocol(self) -> &'static str {
        match self {
            Self::Spdy => "portforward.k8s.io",
            Self::WebSocket => "SPDY/3.1+portforward.k8s.io",
            Self::Channels => CHANNELS_PROTOCOL,
        }
    }
}

/// A connection to the node of a pod.
pub struct Upgraded {
    pub io: BoxedIo,
    pub transport: Transport,
    /// Duration of the upgrade.
    pub took: Duration,
}

/// Reasons why a connection was not upgraded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpgradeError {
    Cluster(ClusterError),
    /// 404: the API server, or the node, does not know the pod.
    PodGone(String),
}

/// Timeout of an upgrade. The API server dials the node, and the node calls its container runtime: 4-7 ms on a healthy
/// node. Slow gateways take 12 s. If a gateway swallows a transport, the next one is tried long before.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(30);

const CHANNELS_PROTOCOL: &str = "v4.channel.k8s.io";

/// A connection that is ready for an upgrade request.
pub struct Dialled {
    io: BoxedIo,
    /// Whether it was opened some time ago, so that the server or a middlebox may have dropped it.
    is_spare: bool,
}

/// Opens TCP and TLS to the API server, or takes the spare connection: the part of an upgrade before the pod is known.
///
/// # Errors
/// The user cannot be signed in, or the API server cannot be reached.
pub async fn dial(cluster: &Cluster) -> Result<Dialled, ClusterError> {
    // TLS may need a client certificate from a sign-in.
    let credential = cluster.credential().await?;
    match spare(cluster, &credential) {
        Some(spare) => Ok(spare),
        None => dial_as(cluster, &credential).await,
    }
}

/// Returns the spare connection of this user.
fn spare(cluster: &Cluster, credential: &Credential) -> Option<Dialled> {
    let transport = cluster.transport(credential);
    let io = cluster.spare.take(|by| Arc::ptr_eq(by, &transport))?;
    Some(Dialled { io, is_spare: true })
}

async fn dial_as(cluster: &Cluster, credential: &Credential) -> Result<Dialled, ClusterError> {
    let connected = cluster.connector.connect(cluster.transport(credential).upgrades.clone()).await;
    cluster.contact.note(connected.is_ok());
    match connected {
        Ok(io) => Ok(Dialled { io, is_spare: false }),
        Err(ConnectError::Tcp(error)) => Err(cluster.unreachable(&*error)),
        Err(ConnectError::Tls(error)) => Err(cluster.broken(&error, credential)),
        Err(ConnectError::TimedOut) => Err(cluster.timed_out("connecting".to_owned(), CONNECT_TIMEOUT)),
    }
}

/// Upgrades a connection to a port-forward of a pod. `dialled`: a connection from [`dial`], if there is one. The port is
/// part of the request only with [`Transport::Channels`].
///
/// # Errors
/// The pod is gone, or no transport works: the API server or a gateway refuses, or does not answer in time.
pub async fn port_forward(
    cluster: &Cluster,
    namespace: &Namespace,
    pod: &Subdomain,
    port: u16,
    dialled: Option<Dialled>,
) -> Result<Upgraded, UpgradeError> {
    let started = Instant::now();
    let default = if cluster.proxy.is_some() { Transport::WebSocket } else { Transport::Spdy };
    let path = path(cluster, namespace, pod);
    let act = Act { cluster, namespace, pod, what: "port-forwards", doing: "opening a port-forward to" };
    let ask = |transport: Transport, headers: &HeaderMap| asked(cluster, &path, port, transport, headers);
    let takes = |transport: Transport, protocol: &str| protocol == transport.protocol();
    let switched = act.upgrade(&cluster.port_forwards, default, dialled, ask, takes).await?;
    let io = match switched.transport {
        Transport::Spdy | Transport::Channels => switched.io,
        Transport::WebSocket => Box::new(WebSocketIo::new(switched.io)),
    };
    Ok(Upgraded { io, transport: switched.transport, took: started.elapsed() })
}

fn path(cluster: &Cluster, namespace: &Namespace, pod: &Subdomain) -> String {
    format!("{}/api/v1/namespaces/{namespace}/pods/{pod}/portforward", cluster.server.path().trim_end_matches('/'))
}

fn asked(cluster: &Cluster, path: &str, port: u16, transport: Transport, headers: &HeaderMap) -> Asked {
    match transport {
        Transport::Spdy => Asked::spdy(cluster, path, transport.protocol(), headers),
        Transport::WebSocket => Asked::websocket(cluster, path, transport.protocol(), headers),
        Transport::Channels => {
            Asked::websocket(cluster, &format!("{path}?ports={port}"), transport.protocol(), headers)
        }
    }
}

/// Reasons why a transport does not work.
#[derive(Clone, Debug)]
pub enum TryError {
    Cluster(ClusterError),
    /// Status and message of the answer, and the server program.
    Refused {
        text: String,
        server: Option<String>,
    },
    /// No answer, or the connection was closed.
    Silent,
}

/// Timeout per transport if each is tried separately.
const TRY_TIMEOUT: Duration = Duration::from_secs(4);

/// Tests a port-forward with one transport, and closes it.
///
/// # Errors
/// Fails if the transport does not work.
pub async fn try_transport(
    cluster: &Cluster,
    namespace: &Namespace,
    pod: &Subdomain,
    port: u16,
    transport: Transport,
) -> Result<(), TryError> {
    let credential = cluster.credential().await.map_err(TryError::Cluster)?;
    let headers = cluster.user().headers(&credential);
    let dialled = dial_as(cluster, &credential).await.map_err(TryError::Cluster)?;
    let request = asked(cluster, &path(cluster, namespace, pod), port, transport, &headers);
    match timeout(TRY_TIMEOUT, request.send(dialled.io)).await {
        Ok(Ok(Answer::Switched { protocol, io })) if protocol == transport.protocol() => {
            // An upgrade without any bytes after it is useless.
            let answered = timeout(TRY_TIMEOUT, probation::is_answered(io, transport)).await;
            answered.ok().flatten().ok_or(TryError::Silent)
        }
        Ok(Ok(Answer::Switched { protocol, .. })) => {
            Err(TryError::Refused { text: Refusal::odd_switch(&protocol).text(), server: None })
        }
        Ok(Ok(Answer::Refused(refusal))) => {
            Err(TryError::Refused { text: refusal.text(), server: refusal.server.clone() })
        }
        Ok(Err(_)) | Err(_) => Err(TryError::Silent),
    }
}

/// Returns the issuer of the certificate shown for an API server, trusted or not. `None`: no certificate is shown.
pub async fn shown_issuer(cluster: &Cluster) -> Option<String> {
    let name = cluster.tls_server_name.clone()?;
    let tcp = cluster.dialer.connect(cluster.server.clone()).await.ok()?;
    let (shown, _) = crate::tls::shown_certificate(tcp, name, &[]).await.ok()?;
    crate::tls::certificate::Certificate::parse(&shown)?.issuer_name()
}

/// An upgrade, with its names in errors.
struct Act<'a> {
    cluster: &'a Cluster,
    namespace: &'a Namespace,
    pod: &'a str,
    /// `port-forwards` or `exec`.
    what: &'static str,
    /// For example `opening a port-forward to`.
    doing: &'static str,
}

impl Act<'_> {
    /// Upgrades a connection. Retries with a new credential if the server refuses the first one.
    async fn upgrade<T: choice::Transport>(
        &self,
        memory: &Memory<T>,
        default: T,
        mut dialled: Option<Dialled>,
        ask: impl Fn(T, &HeaderMap) -> Asked,
        takes: impl Fn(T, &str) -> bool,
    ) -> Result<Switched<T>, UpgradeError> {
        let cluster = self.cluster;
        let upgrade = async {
            let mut renewal = Renewal::new(cluster.user());
            loop {
                let credential = cluster.credential().await.map_err(UpgradeError::Cluster)?;
                let headers = cluster.user().headers(&credential);
                let ask = |transport: T| ask(transport, &headers);
                match memory.upgrade(cluster, &credential, default, dialled.take(), ask, &takes).await {
                    Ok(switched) => {
                        cluster.user().accepted(&credential);
                        cluster.spare.used();
                        return Ok(switched);
                    }
                    Err(failure) => match self.error(failure, &credential) {
                        UpgradeError::Cluster(ClusterError::Credentials { .. }) if renewal.again(&credential).await => {
                        }
                        error => return Err(error),
                    },
                }
            }
        };
        let upgraded = cluster.within(UPGRADE_TIMEOUT, upgrade).await;
        upgraded.unwrap_or_else(|| Err(UpgradeError::Cluster(self.timed_out())))
    }

    fn timed_out(&self) -> ClusterError {
        let doing = format!("{} pod {}/{}", self.doing, self.namespace, self.pod);
        self.cluster.timed_out(doing, UPGRADE_TIMEOUT)
    }

    fn error<T: choice::Transport>(&self, failure: Failure<T>, credential: &Credential) -> UpgradeError {
        let context = self.cluster.context.clone();
        let pod = format!("{}/{}", self.namespace, self.pod);
        UpgradeError::Cluster(match failure {
            Failure::Cluster(error) => error,
            Failure::Refused(_, refusal) if refusal.is_of_policy() => self.cluster.policy(&refusal.message),
            Failure::Refused(_, refusal) if refusal.status == 404 && refusal.is_of_kubernetes() => {
                return UpgradeError::PodGone(refusal.message);
            }
            Failure::Refused(_, refusal) if matches!(refusal.status, 404 | 501) => {
                ClusterError::NotServed { act: self.what, pod, context, reason: refusal.text() }
            }
            Failure::Refused(transport, refusal)
                if refusal.verdict() == Verdict::Refused && !matches!(refusal.status, 401 | 429 | 500..=599) =>
            {
                ClusterError::Protocol {
                    reason: format!(
                        "no upgrade to {} ({}); does a gateway in front of it pass upgrades on?",
                        transport.name(),
                        refusal.text()
                    ),
                    context,
                }
            }
            Failure::Refused(_, refusal) if refusal.status == 403 => {
                self.cluster.forbidden(&refusal.message, self.namespace)
            }
            Failure::Refused(_, Refusal { status, message, retry_after, .. }) => {
                match self.cluster.refusal(status, &message, self.namespace) {
                    ClusterError::Unavailable { context, reason, hint, .. } => {
                        ClusterError::Unavailable { context, reason, retry_after, hint }
                    }
                    error => error,
                }
            }
            Failure::Broken(error) if error.is_parse() => {
                ClusterError::Protocol { reason: "its answer to an upgrade is not HTTP".to_owned(), context }
            }
            Failure::Broken(error) => self.cluster.broken(&error, credential),
            Failure::Silent => self.timed_out(),
        })
    }
}
