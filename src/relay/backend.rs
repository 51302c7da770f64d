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

/// The peer of a stream that carries the requests of several visitors: X-Forwarded-For says whose each is.
const MANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// How long a request waits for a client that was lost: a moment less than a tunnel may take to open, so that the answer says why.
const RETURN: Duration = BUDGET.saturating_sub(Duration::from_secs(1));

/// Reaches [`Target::Named`]: the tunnel of that name.
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

/// Streams to the client of a tunnel.
pub struct TunnelSession {
    server: Arc<Server>,
    tunnel: Arc<Tunnel>,
    endpoint: Endpoint,
    placement: Placement,
    gauges: Arc<SessionGauges>,
}

impl TunnelSession {
    /// `name`: what the tunnel is called.
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
            // The tunnel is there, and says that there is nothing behind it: that is the answer, not a reason to try again.
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
