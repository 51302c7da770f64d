//! Replays requests, through the HTTP frontend itself.

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

/// Time limit for the response of a replay. A longer response is cut; its entry has the bytes that arrived.
const PATIENCE: Duration = Duration::from_secs(20);

/// See [`Replayer`].
pub struct Replaying {
    /// The frontend owns the dashboard, which owns this; a strong reference would be a cycle.
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
            // A timeout drops the response, which completes its entry in the journal.
            let _ = timeout(PATIENCE, reading).await;
        })
    }
}
