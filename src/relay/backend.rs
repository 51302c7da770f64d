//! HTTP tunnels of a relay as a backend of the HTTP front.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::time::timeout;

use super::server::{Server, tunnels::Tunnel};
use crate::{
    backend::{
        Backend, CloseReason, ConnectError, Endpoint, OpenError, Placement, ServicePort, Session, SessionGauges,
        StreamFault,
    },
    io::BoxedIo,
    routing::Target,
    tunnel::BUDGET,
};

/// Peer address of a stream that carries requests of several visitors. X-Forwarded-For has the address of each.
pub(super) const MANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// How long a request waits for the return of a lost client. It is less than the budget for opening a tunnel, so that the
/// answer names the cause.
const RETURN: Duration = BUDGET.saturating_sub(Duration::from_secs(1));

/// Backend for [`Target::Named`]: it reaches the tunnel with that name.
pub struct Tunnels(pub Arc<Server>);

impl Backend for Tunnels {
    fn open<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Box<dyn Session>, OpenError>> {
        Box::pin(async move {
            let no_client = || OpenError::NoClient { name: target.to_string() };
            let Target::Named(name) = target else { return Err(no_client()) };
            let tunnel = match self.0.tunnel(name) {
                Some(tunnel) => tunnel,
                None => timeout(RETURN, self.0.returning(name)).await.ok().flatten().ok_or_else(no_client)?,
            };
            Ok(Box::new(TunnelSession::new(self.0.clone(), tunnel, name)) as Box<dyn Session>)
        })
    }
}

/// Session to the client of a tunnel.
pub struct TunnelSession {
    server: Arc<Server>,
    tunnel: Arc<Tunnel>,
    endpoint: Endpoint,
    placement: Placement,
    gauges: Arc<SessionGauges>,
}

impl TunnelSession {
    /// Returns a session. `name`: the name of the tunnel.
    pub fn new(server: Arc<Server>, tunnel: Arc<Tunnel>, name: &str) -> Self {
        let endpoint = Endpoint {
            pod: name.to_owned(),
            container_port: 0,
            port: ServicePort { number: 80, name: None, app_protocol: None },
            protocol: "relay",
        };
        Self { server, tunnel, endpoint, placement: Placement::new(name), gauges: Arc::default() }
    }
}

impl Session for TunnelSession {
    fn connect(&self) -> BoxFuture<'_, Result<(BoxedIo, Placement), ConnectError>> {
        Box::pin(async move {
            let stream = self.server.stream(&self.tunnel, MANY).await;
            // The tunnel exists, but its client has no service behind it. A retry would not help.
            let stream = stream.map_err(|error| StreamFault::Other { detail: error.to_string() })?;
            Ok((stream, self.placement.clone()))
        })
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(async move {
            self.tunnel.gone().await;
            CloseReason::ClientGone
        })
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn gauges(&self) -> &SessionGauges {
        &self.gauges
    }
}
