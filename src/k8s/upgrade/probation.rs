//! Checks whether an upgraded connection carries bytes: some gateways answer 101 and then pass nothing on.
//!
//! A new connection is used at once, without a wait for this check, and its node answers the first frames. If no byte
//! comes within [`patience`], the other transports are tried in parallel. The connection is closed only if another one
//! carries bytes first: a slow node is slow with all transports.

use std::time::Duration;

use bytes::BytesMut;
use futures::future::{Either, select};
use http::HeaderMap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{Answer, Asked, Transport, asked, choice, dial_as, path};
use crate::{
    config::{Namespace, Subdomain},
    io::BoxedIo,
    k8s::{client::Cluster, transports::Memory, websocket::byte_stream::WebSocketIo},
    wire::spdy::frame,
};

/// Timeout for the first byte with one transport.
pub const TRY: Duration = Duration::from_secs(8);

/// Delay between the starts of two transports.
const STAGGER: Duration = Duration::from_millis(800);

/// Returns how long a node may be silent before other transports are tried. `took`: duration of the upgrade, which is at
/// least one round trip.
pub fn patience(took: Duration) -> Duration {
    took.max(Duration::from_secs(1))
}

/// Tries the other transports until one carries bytes from the pod's node, and remembers it instead of `silent`. Returns
/// the log message. `None`: none works.
pub async fn outdo(
    cluster: &Cluster,
    namespace: &Namespace,
    pod: &Subdomain,
    port: u16,
    silent: Transport,
) -> Option<String> {
    let attempt = |transport: Transport| async move {
        let carries = timeout(TRY, carries(cluster, namespace, pod, port, transport)).await;
        debug!(transport = transport.name(), ?carries, "tried beside a transport that is silent");
        matches!(carries, Ok(Some(()))).then_some(transport)
    };
    let mut others = choice::order(silent).into_iter().filter(|other| *other != silent);
    let (first, second) = (others.next()?, others.next()?);
    let later = async {
        sleep(STAGGER).await;
        attempt(second).await
    };
    let found = match select(std::pin::pin!(attempt(first)), std::pin::pin!(later)).await {
        Either::Left((Some(found), _)) | Either::Right((Some(found), _)) => Some(found),
        Either::Left((None, later)) => later.await,
        Either::Right((None, earlier)) => earlier.await,
    }?;
    Some(outdone(cluster, &cluster.port_forwards, silent, found))
}

/// Remembers that `works` carries bytes and `silent` does not. Returns the log message.
pub(super) fn outdone<T: choice::Transport>(cluster: &Cluster, memory: &Memory<T>, silent: T, works: T) -> String {
    memory.replace(silent, works);
    let (silent, works) = (silent.name(), works.name());
    warn!(
        context = %cluster.context,
        "a gateway accepts upgrades to {silent} but passes no data: using {works}"
    );
    format!("upgrades to {silent} are answered and nothing follows; {works} works")
}

/// Requests an upgrade with one transport, not the remembered one. `None`: there is no answer.
pub(super) async fn ask_alone(cluster: &Cluster, ask: impl FnOnce(&HeaderMap) -> Asked) -> Option<Answer> {
    let credential = cluster.credential().await.ok()?;
    let headers = cluster.user().headers(&credential);
    let dialled = dial_as(cluster, &credential).await.ok()?;
    ask(&headers).send(dialled.io).await.ok()
}

/// Waits for a byte from the node on a transport. `None`: the transport is refused, or the connection ends.
async fn carries(
    cluster: &Cluster,
    namespace: &Namespace,
    pod: &Subdomain,
    port: u16,
    transport: Transport,
) -> Option<()> {
    let path = path(cluster, namespace, pod);
    match ask_alone(cluster, |headers| asked(cluster, &path, port, transport, headers)).await? {
        Answer::Switched { protocol, io } if protocol == transport.protocol() => is_answered(io, transport).await,
        Answer::Switched { .. } | Answer::Refused(_) => None,
    }
}

/// Waits for the first byte after an upgrade: the answer to a PING, or the node's first message of each channel.
pub(super) async fn is_answered(io: BoxedIo, transport: Transport) -> Option<()> {
    let mut io = match transport {
        Transport::Spdy | Transport::Channels => io,
        Transport::WebSocket => Box::new(WebSocketIo::new(io)),
    };
    if transport != Transport::Channels {
        let mut ping = BytesMut::new();
        frame::put_ping(&mut ping, 1);
        io.write_all(&ping).await.ok()?;
        io.flush().await.ok()?;
    }
    io.read_u8().await.ok().map(drop)
}
