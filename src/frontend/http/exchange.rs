//! One request and its answer, through all stages: [`admit`](super::admit), [`forward`](super::forward),
//! [`respond`](super::respond).

use std::{pin::pin, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, UPGRADE},
};
use http_body_util::BodyExt;

use super::{
    HttpFrontend,
    access::{Access, Tracked},
    body::{Body, body_of},
    error_page::{Form, Page},
    http2, pages, sites,
    upstream::Owner,
};
use crate::{
    drain::Drain,
    error_code::ErrorCode,
    frontend::{Connection, client},
    guard::normaliser::{Busy, Gate, REFUSED, Refused},
    journal::{Journal, entry::Client, exchange::Exchange as Kept},
    metrics::Metrics,
    routing::table,
    wire::http1::Refusal,
};

/// Connection that a request arrived on.
#[derive(Clone)]
pub struct Arrival {
    pub connection: Arc<Connection>,
    /// The client's TLS ends here.
    pub tls: bool,
    pub drain: Drain,
    /// Gate in front of the HTTP/1 server. `None`: HTTP/2.
    pub gate: Option<Arc<Gate>>,
    /// `None`: there is no audit log, or no client has sent the request.
    pub client: Option<Client>,
    /// Owner of the connections to backends that the client authenticates. `None`: an HTTP/2 client, or a replay.
    pub owner: Option<Arc<Owner>>,
}

impl Arrival {
    /// Returns whether a request to the forward proxy is for another port of this machine, and not for adit.
    pub fn is_for_another_port<B>(&self, request: &Request<B>) -> bool {
        let Connection { local, door, .. } = &*self.connection;
        let uri = request.uri();
        let is_whole = uri.scheme().is_some() && request.version() < Version::HTTP_2 && !door.is_closed();
        let is_here = || uri.host().is_some_and(|host| table::is_here(&table::normalise(host)));
        is_whole && uri.port_u16().unwrap_or(80) != local.port() && is_here()
    }
}

/// State of a request until its answer begins.
pub struct Exchange {
    pub arrival: Arrival,
    pub version: Version,
    pub access: Access,
    /// Form of an error page for this client.
    form: Form,
    /// The request has an Upgrade header.
    is_upgrade: bool,
    is_head: bool,
    /// A page may send the request again: GET and HEAD.
    may_reload: bool,
    /// The request replaces one that the guard has refused.
    is_refused: bool,
    /// Marks the client's connection as busy.
    busy: Option<Busy>,
}

impl HttpFrontend {
    /// Answers a request.
    pub(super) async fn answer(&self, request: Request<Body>, arrival: Arrival) -> Response<Body> {
        let is_locked = locked(&arrival, &request).is_some();
        let own = if is_locked { Err(request) } else { self.answer_own(request, &arrival).await };
        let request = match own {
            Ok(response) => return response,
            Err(request) => request,
        };
        let keeps = self.own.get().filter(|site| site.shows_requests()).is_some();
        if let Some(client) = &arrival.client {
            client::wait_for(client, arrival.connection.socket).await;
        }
        let mut exchange =
            Exchange::begin(&request, arrival, self.metrics.clone(), self.tunnels.journal().clone(), keeps);
        let refusal = exchange.refusal(&request).or_else(|| locked(&exchange.arrival, &request));
        if refusal.is_none()
            && let Some(response) = self.own(&request, &mut exchange)
        {
            return exchange.end(Ok(response));
        }
        let admitted = match refusal {
            Some(page) => Err(page),
            None => self.admit(&request, &mut exchange),
        };
        if let Some(asked) = self.elsewhere(&request, &exchange)
            && self.is_elsewhere(&asked, &admitted, &request, &exchange).await
        {
            exchange.access.elsewhere();
            let waiting = exchange.access.waiting();
            let answered = waiting.answer(pin!(self.direct(request, &asked, &mut exchange))).await;
            return exchange.end(answered);
        }
        let answered = match admitted {
            Ok(admitted) => {
                let request = exchange.access.record(request);
                let waiting = exchange.access.waiting();
                waiting.answer(pin!(self.forward(request, admitted, &mut exchange))).await
            }
            Err(page) => {
                if exchange.version == Version::HTTP_2 {
                    http2::glance_at(request.into_body()).await;
                }
                Err(page)
            }
        };
        exchange.end(answered.map_err(|page| self.sites.shown(page)))
    }
}

impl Exchange {
    fn begin(
        request: &Request<Body>,
        arrival: Arrival,
        metrics: Arc<Metrics>,
        journal: Arc<Journal>,
        keeps: bool,
    ) -> Self {
        let is_refused = request.method().as_str() == REFUSED;
        if !is_refused {
            arrival.connection.place.settle();
        }
        Self {
            busy: arrival.gate.as_ref().map(|gate| gate.progress.begin()),
            version: request.version(),
            access: Access::start(
                request,
                arrival.connection.id,
                metrics,
                journal,
                keeps.then(|| Arc::new(Kept::of(request, arrival.tls))),
            )
            .by(arrival.client.clone()),
            form: Form::of(request.headers()),
            is_upgrade: request.headers().contains_key(UPGRADE),
            is_head: request.method() == Method::HEAD,
            may_reload: matches!(*request.method(), Method::GET | Method::HEAD),
            is_refused,
            arrival,
        }
    }

    /// Returns the page if the guard has refused the request, or would have refused it over HTTP/1.1.
    fn refusal(&self, request: &Request<Body>) -> Option<Page> {
        let is_fit = request.uri().path_and_query().is_none_or(|target| match target.as_str() {
            "*" => *request.method() == Method::OPTIONS,
            target => target.is_ascii(),
        });
        if self.version == Version::HTTP_2 && !is_fit {
            return Some(pages::refused(Some(Refused::Ambiguous(Refusal::Target))));
        }
        let gate = self.arrival.gate.as_ref().filter(|_| self.is_refused)?;
        Some(pages::refused(gate.refused()))
    }

    /// Returns a body that keeps the client's connection busy until it has ended, and then writes the log line.
    pub fn track(&mut self, body: Body) -> Tracked {
        let gate = self.arrival.gate.clone().filter(|_| self.version < Version::HTTP_11);
        Tracked::new(body, self.access.take()).keeping(self.busy.as_ref().map(Busy::another)).cutting(gate)
    }

    /// Returns the final response: the answer, or the page instead of it.
    fn end(mut self, answered: Result<Response<Body>, Page>) -> Response<Body> {
        let response = answered.unwrap_or_else(|page| self.page(page));
        if let Some(gate) = self.arrival.gate.filter(|_| self.is_upgrade) {
            gate.upgrade.answered(response.status() == StatusCode::SWITCHING_PROTOCOLS);
        }
        response
    }

    fn page(&mut self, mut page: Page) -> Response<Body> {
        // Exchanges are kept only if there is a dashboard to show them.
        if !self.access.is_kept() {
            page = page.without_dashboard();
        }
        if !self.may_reload {
            page = page.without_reload();
        }
        let code = page.code;
        self.access.error = Some(code.as_str());
        let port = self.arrival.connection.local.port();
        let (mut parts, body) = page.into_response(self.form, port, self.arrival.tls).into_parts();
        self.access.status = parts.status;
        if (self.is_refused || code == ErrorCode::Ambiguous) && self.version < Version::HTTP_2 {
            // Two parsers may disagree on the end of such a request: the connection must not serve another one.
            parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let body = if self.is_head { Bytes::new() } else { body };
        Response::from_parts(parts, self.track(body_of(body)).boxed_unsync())
    }
}

/// Returns the page if the listener needs a password and the request does not give it.
fn locked(arrival: &Arrival, request: &Request<Body>) -> Option<Page> {
    let door = &arrival.connection.door;
    door.context(sites::credentials(request).as_ref()).err().map(pages::not_admitted)
}
