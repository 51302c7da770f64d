//! Page of a relay: the shell of the dashboard with its own views. It is for browsers and programs on the relay's
//! machine.

use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;

use super::server::{Server, tunnels::TunnelSnapshot};
use crate::{
    admin::{
        api::answers::time,
        http::{Body, HTML, JSON, respond},
    },
    dashboard::{
        assets::{Assets, Mode},
        policy,
    },
    html::Html,
};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Data of the page.
#[derive(Serialize)]
struct RelayAnswer {
    format: u32,
    version: &'static str,
    tunnels: Vec<TunnelSnapshot>,
    refused: Vec<RefusedRow>,
}

/// A client or visitor that the relay refused.
#[derive(Serialize)]
struct RefusedRow {
    time: String,
    client: String,
    what: String,
    reason: String,
}

impl RelayAnswer {
    fn of(server: &Server) -> Self {
        let refused = server.refusals.all().into_iter().map(|refusal| RefusedRow {
            time: time(refusal.at),
            client: refusal.peer.to_string(),
            what: refusal.what,
            reason: refusal.reason,
        });
        Self { format: 1, version: env!("CARGO_PKG_VERSION"), tunnels: server.snapshot(), refused: refused.collect() }
    }
}

/// Answers a request that reads. `None`: the path is not part of the page.
pub fn answer(server: &Server, request: &Request<Incoming>) -> Option<Response<Body>> {
    let assets = Assets::default();
    let mut response = match request.uri().path() {
        "/" => respond(StatusCode::OK, HTML, assets.page(Mode::Relay, "Relay", first(server), false)),
        "/api/v1/relay" if is_of_the_page(request.headers()) => {
            let answer = serde_json::to_vec(&RelayAnswer::of(server)).unwrap_or_default();
            respond(StatusCode::OK, JSON, answer)
        }
        path => {
            let (parts, bytes) = assets.file(path, request.headers())?.into_parts();
            let mut response = respond(parts.status, HTML, bytes);
            *response.headers_mut() = parts.headers;
            return Some(response);
        }
    };
    policy::apply(&mut response);
    Some(response)
}

/// Returns whether a request comes from the page itself, or not from a browser.
fn is_of_the_page(headers: &HeaderMap) -> bool {
    headers.get(SEC_FETCH_SITE).is_none_or(|site| site == "same-origin" || site == "none")
}

/// Renders the first state, so that the page is readable without the script.
fn first(server: &Server) -> Html {
    let mut html = Html::default();
    html.raw("<h1>Relay</h1><h2>Tunnels</h2><table><caption>Tunnels</caption><thead><tr>");
    for name in ["Public", "Kind", "Key", "Client", "Streams", "Visitors"] {
        html.raw("<th scope=\"col\">").text(name).raw("</th>");
    }
    html.raw("</tr></thead><tbody>");
    for tunnel in server.snapshot() {
        html.raw("<tr><th scope=\"row\">").text(&tunnel.public).raw("</th>");
        html.element("td", tunnel.kind).element("td", &tunnel.key).element("td", tunnel.client);
        html.element("td", tunnel.streams).element("td", tunnel.visitors).raw("</tr>");
    }
    html.raw("</tbody></table><h2>Refused</h2><table><caption>Refused</caption><thead><tr>");
    for name in ["Client", "What", "Why"] {
        html.raw("<th scope=\"col\">").text(name).raw("</th>");
    }
    html.raw("</tr></thead><tbody>");
    for refusal in server.refusals.all() {
        html.raw("<tr><th scope=\"row\">").text(refusal.peer).raw("</th>");
        html.element("td", refusal.what).element("td", refusal.reason).raw("</tr>");
    }
    html.raw("</tbody></table>");
    html
}
