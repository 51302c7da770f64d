//! Sends requests again, through the HTTP front itself.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Weak,
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::Request;
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::{
    admin::api::replay::Replayer,
    drain::Drain,
    frontend::http::{HttpFrontend, body::body_of},
    journal::exchange::ReplayOf,
    routing::SharedRouter,
};

/// The longest time to read the answer of a replay. A longer answer is cut; its row shows the bytes that arrived.
const PATIENCE: Duration = Duration::from_secs(20);

/// See [`Replayer`].
pub struct Replaying {
    /// The front has the dashboard, which has this: an owner would be a circle.
    pub front: Weak<HttpFrontend>,
    pub router: SharedRouter,
    pub drain: Drain,
}

impl Replayer for Replaying {
    fn replay(&self, request: Request<Bytes>, replay: ReplayOf, is_tls: bool) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(front) = self.front.upgrade() else { return };
            let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let local = self.router.load().config.http.listen.first().copied().unwrap_or(any);
            let reading = async {
                let response = front.replay(request.map(body_of), replay, is_tls, local, self.drain.clone()).await;
                let mut body = response.into_body();
                while let Some(Ok(_)) = body.frame().await {}
            };
            // The row of one that takes longer is written when it is dropped here.
            let _ = timeout(PATIENCE, reading).await;
        })
    }
}
