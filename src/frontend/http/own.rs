//! Requests for adit's own names, which go to no pod.

use futures::future::BoxFuture;
use http::{Request, Response, StatusCode, header::UPGRADE};

use super::{
    HttpFrontend,
    admit::authority,
    body::{Body, body_of, holding},
    exchange::Arrival,
};
use crate::guard::normaliser::REFUSED;

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
        if !arrival.connection.socket.is_of_this_user() {
            let mut refused = Response::new(body_of(
                "this connection is of another user than the one who runs adit, and the dashboard is only for that user: run adit as yourself\n",
            ));
            *refused.status_mut() = StatusCode::FORBIDDEN;
            return Ok(refused);
        }
        let busy = arrival.gate.as_ref().map(|gate| gate.progress.begin());
        let wants_upgrade = request.headers().contains_key(UPGRADE);
        let response = site.answer(request, authority, arrival.tls).await;
        if let Some(gate) = arrival.gate.as_ref().filter(|_| wants_upgrade) {
            gate.upgrade.answered(false);
        }
        // The connection is busy until the answer has ended.
        Ok(response.map(|body| holding(body, busy)))
    }
}
