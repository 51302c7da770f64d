//! Replays: a request that a person sends again, through the same stages and to the same target.

use std::{net::SocketAddr, sync::Arc};

use http::{Request, Response};

use super::{HttpFrontend, body::Body, exchange::Arrival};
use crate::{drain::Drain, frontend::Connection, io::accept::Place, journal::exchange::ReplayOf};

impl HttpFrontend {
    /// Answers a request that no client has sent. `local`: the address of a listener, for the headers that name it.
    pub async fn replay(
        &self,
        request: Request<Body>,
        replay: ReplayOf,
        tls: bool,
        local: SocketAddr,
        drain: Drain,
    ) -> Response<Body> {
        let mut request = request;
        request.extensions_mut().insert(replay);
        let peer = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0));
        let connection = Arc::new(Connection::remote(0, peer, local, Place::uncounted()));
        Box::pin(self.answer(request, Arrival { connection, tls, drain, gate: None, client: None, owner: None })).await
    }
}
