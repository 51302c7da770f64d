//! Requests for adit's own names, which go to no pod.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, header::UPGRADE};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tower::BoxError;

use super::{HttpFrontend, admit::authority, body::Body, exchange::Arrival};
use crate::guard::normaliser::{Busy, REFUSED};

/// A site of adit itself.
pub trait OwnSite: Send + Sync + 'static {
    /// Returns whether the site answers requests for an authority, as the client wrote it, and a path.
    fn is_for(&self, authority: &str, path: &str) -> bool;

    /// Returns whether the site shows the requests of clients, so that their heads must be kept.
    fn shows_requests(&self) -> bool;

    /// Answers a request that [`is_for`](Self::is_for) has accepted. `tls`: the client's TLS ends here.
    fn answer(&self, request: Request<Body>, authority: String, tls: bool) -> BoxFuture<'_, Response<Body>>;
}

impl HttpFrontend {
    /// Sends all further requests for adit's own names to a site. A second call changes nothing.
    pub fn set_own_site(&self, site: std::sync::Arc<dyn OwnSite>) {
        // Only `app` calls this, once.
        let _ = self.own.set(site);
    }

    /// Answers a request for one of adit's own names; returns any other request as `Err`.
    pub(super) async fn answer_own(
        &self,
        request: Request<Body>,
        arrival: &Arrival,
    ) -> Result<Response<Body>, Request<Body>> {
        let Some(site) = self.own.get().filter(|_| request.method().as_str() != REFUSED) else { return Err(request) };
        let authority = match authority(&request) {
            Ok(authority)
                if site.is_for(&authority, request.uri().path()) && !arrival.is_for_another_port(&request) =>
            {
                authority
            }
            _ => return Err(request),
        };
        arrival.connection.place.settle();
        let busy = arrival.gate.as_ref().map(|gate| gate.progress.begin());
        let wants_upgrade = request.headers().contains_key(UPGRADE);
        let response = site.answer(request, authority, arrival.tls).await;
        if let Some(gate) = arrival.gate.as_ref().filter(|_| wants_upgrade) {
            gate.upgrade.answered(false);
        }
        Ok(response.map(|inner| Keeping { inner, _busy: busy }.boxed_unsync()))
    }
}

/// A body that keeps the client's connection busy until it has ended.
struct Keeping {
    inner: Body,
    _busy: Option<Busy>,
}

impl HttpBody for Keeping {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
