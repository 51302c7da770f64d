//! Whether an upgrade carries anything after its switch: some gateways answer 101 and pass nothing on.
//!
//! Nobody waits for the proof: a new connection is used at once, and its node answers the first frames. Where nothing comes for
//! [`patience`], the other transports are tried beside it. The connection is given up only if one of them carries bytes
//! first: a node that is slow is slow by all of them.

use std::time::Duration;

use bytes::BytesMut;
use futures::future::{Either, select};
use http::HeaderMap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{Answer, Asked, Memory, Transport, asked, choice, dial_as, path};
use crate::{
    config::{Namespace, Subdomain},
    io::BoxedIo,
    k8s::{client::Cluster, websocket::byte_stream::WebSocketIo},
    wire::spdy::frame,
};

/// How long one transport may take until it carries a byte.
pub const TRY: Duration = Duration::from_secs(8);

/// How long the next transport is kept waiting for the one before it.
const STAGGER: Duration = Duration::from_millis(800);

/// Returns how long a node may be silent before other transports are tried. `took`: how long the upgrade has taken, which is at least a round trip.
pub fn patience(took: Duration) -> Duration {
    took.max(Duration::from_secs(1))
}

/// Tries the other transports until one carries bytes from the node of a pod, which is remembered instead of `silent`. Returns
/// the sentence for people. None: none does.
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

/// Remembers that `works` carries bytes and `silent` does not. Returns the sentence for people.
pub(super) fn outdone<T: choice::Transport>(cluster: &Cluster, memory: &Memory<T>, silent: T, works: T) -> String {
    memory.replace(silent, works);
    let (silent, works) = (silent.name(), works.name());
    warn!(
        context = %cluster.context,
        "something between adit and the API server takes upgrades to {silent} and passes nothing on: adit goes on with {works}"
    );
    format!("upgrades to {silent} are answered and nothing follows; {works} works")
}

/// Asks for an upgrade by one transport, whatever is remembered. None: nobody answers.
pub(super) async fn ask_alone(cluster: &Cluster, ask: impl FnOnce(&HeaderMap) -> Asked) -> Option<Answer> {
    let credential = cluster.credential().await.ok()?;
    let headers = cluster.user().headers(&credential);
    let dialled = dial_as(cluster, &credential).await.ok()?;
    ask(&headers).send(dialled.io).await.ok()
}

/// Waits until the node has sent a byte by a transport. None: it is refused, or ends.
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

/// Waits for the first byte behind a switch: the answer to a PING, or what a node says first for each channel.
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
