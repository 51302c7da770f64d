//! HTTP tunnels of a relay as a backend of the HTTP front.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::server::{Server, tunnels::Tunnel};
use crate::{
    backend::{Backend, CloseReason, Endpoint, OpenError, Placement, ServicePort, Session, SessionGauges, StreamFault},
    io::{BoxedIo, abandoned::Ends},
    routing::Target,
};

/// Reaches [`Target::Relayed`].
pub struct Relayed(pub Arc<Server>);

impl Backend for Relayed {
    fn open<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Box<dyn Session>, OpenError>> {
        Box::pin(async move {
            let Target::Relayed(name) = target else { return Err(OpenError::Stopped) };
            let tunnel = self.0.tunnel(name).ok_or(OpenError::Stopped)?;
            let endpoint = Endpoint {
                pod: name.to_string(),
                container_port: 0,
                port: ServicePort { number: 80, name: None, app_protocol: None },
                protocol: "relay",
            };
            let (server, placement) = (self.0.clone(), Placement::new(name));
            Ok(Box::new(RelayedSession { server, tunnel, endpoint, placement, gauges: Arc::default() })
                as Box<dyn Session>)
        })
    }
}

/// A stream that fails at once, with what the client said.
struct Refusing(String);

impl Refusing {
    fn error(&self) -> io::Error {
        StreamFault::Other { detail: self.0.clone() }.into()
    }
}

impl AsyncRead for Refusing {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(self.error()))
    }
}

impl AsyncWrite for Refusing {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(self.error()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct RelayedSession {
    server: Arc<Server>,
    tunnel: Arc<Tunnel>,
    endpoint: Endpoint,
    placement: Placement,
    gauges: Arc<SessionGauges>,
}

impl Session for RelayedSession {
    fn connect(&self, _: Option<Ends>) -> BoxFuture<'_, Result<(BoxedIo, Placement), StreamFault>> {
        Box::pin(async move {
            let stream = self.server.stream(&self.tunnel, self.tunnel.client()).await;
            // The tunnel is there, and says that there is nothing behind it: that is the answer, not a reason to try again.
            let stream = stream.unwrap_or_else(|detail| Box::new(Refusing(detail)));
            Ok((stream, self.placement.clone()))
        })
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(async move {
            self.tunnel.gone().await;
            CloseReason::Lost { detail: "the client is gone".to_owned() }
        })
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn gauges(&self) -> &SessionGauges {
        &self.gauges
    }
}
