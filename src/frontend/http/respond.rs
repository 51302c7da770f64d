//! The last stage: turns the pod's answer into the client's.

use http::{HeaderValue, Response, StatusCode, header::STRICT_TRANSPORT_SECURITY, uri::PathAndQuery};
use http_body_util::BodyExt;

use super::{
    HttpFrontend,
    admit::Admitted,
    body::{Body, body_of},
    error_page::{NOT_READY, Page},
    exchange::Exchange,
    headers,
    rewrite::{Names, Redirects},
    upgrade::Asked,
    upstream::Answered,
};
use crate::{config::Scheme, error_code::ErrorCode, tunnel::Lease};

/// A request that was sent to its pod.
pub struct Forwarded {
    pub admitted: Admitted,
    pub lease: Lease,
    /// Protocol that the client has asked to switch to. `None`: a plain request.
    pub asked: Option<Asked>,
    /// Names of the backend, for redirects and cookies.
    pub names: Option<Names>,
    /// Path and query of the request.
    pub target: PathAndQuery,
}

impl HttpFrontend {
    /// Returns the client's response to the pod's answer.
    pub(super) fn respond(
        &self,
        Answered { mut response, returning, scheme, pod, retries, connected }: Answered,
        forwarded: Forwarded,
        exchange: &mut Exchange,
    ) -> Result<Response<Body>, Page> {
        exchange.access.sent(&pod, retries, connected);
        exchange.access.answered(response.status(), response.headers());
        let switched = (response.status() == StatusCode::SWITCHING_PROTOCOLS)
            .then(|| (headers::upgrade(response.headers()), hyper::upgrade::on(&mut response)));
        let (mut parts, body) = response.into_parts();
        headers::of_answer(&mut parts);
        self.lead_back(&mut parts.headers, scheme, &forwarded, exchange);
        if self.sites.is_local(&forwarded.admitted.host) {
            // HSTS would apply to all names below (RFC 6797, section 6.1.2), also to those without TLS.
            parts.headers.remove(STRICT_TRANSPORT_SECURITY);
        }
        let Forwarded { admitted, lease, asked, .. } = forwarded;
        let route = admitted.route;
        if let Some(reason) = lease.not_ready().and_then(|reason| HeaderValue::try_from(reason).ok()) {
            parts.headers.insert(NOT_READY, reason);
        }
        headers::apply(&route.options.response_headers, &mut parts.headers);
        match (asked, switched) {
            (Some(asked), Some((Some(chosen), backend))) => {
                asked.tell(&mut parts.headers, chosen);
                if asked.is_extended() {
                    // HTTP/2 answers 200 where HTTP/1.1 answers 101 (RFC 8441, section 5).
                    parts.status = StatusCode::OK;
                }
                let arrival = &exchange.arrival;
                let held = (lease, self.unlocked(&route));
                asked.join(backend, held, exchange.access.take(), arrival.connection.socket, &arrival.drain);
                return Ok(Response::from_parts(parts, body_of("")));
            }
            (_, Some(_)) => {
                let cause = Some("it answered 101 without being asked to switch, or does not say to what".to_owned());
                let title = format!("no answer from {}", route.target);
                return Err(Page { cause, ..Page::new(StatusCode::BAD_GATEWAY, ErrorCode::Switched, title) });
            }
            // Any 2xx would tell the client that the tunnel is open.
            (Some(asked), None) if asked.is_extended() && parts.status.is_success() => {
                let cause = Some(format!("it answered {} to a request to switch the protocol", parts.status));
                let title = format!("{} does not switch", route.target);
                return Err(Page { cause, ..Page::new(StatusCode::BAD_GATEWAY, ErrorCode::NoSwitch, title) });
            }
            _ => {}
        }
        let body = exchange.track(body).holding(lease, returning);
        Ok(Response::from_parts(parts, body.boxed_unsync()))
    }

    /// Rewrites redirects and cookies to the name that the client used, as the route says.
    fn lead_back(&self, headers: &mut http::HeaderMap, scheme: Scheme, forwarded: &Forwarded, exchange: &Exchange) {
        let Admitted { route, authority, .. } = &forwarded.admitted;
        if route.options.rewrite_location == Some(false) {
            return;
        }
        let local_port = exchange.arrival.connection.local.port();
        let redirects = Redirects {
            authority,
            tls: exchange.arrival.tls,
            target: &forwarded.target,
            https_port: self.sites.https_port(authority, local_port),
            backend_tls: scheme == Scheme::Https,
            own: forwarded.names.as_ref().filter(|_| route.options.rewrite_location == Some(true)),
        };
        redirects.lead_back(headers);
    }
}
