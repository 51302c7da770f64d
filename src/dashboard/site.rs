//! Routes requests for the dashboard to their answers.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, ALLOW, CONTENT_TYPE, LOCATION, SET_COOKIE},
};
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;
use tokio::time::timeout;

use super::{
    Dashboard,
    assets::Mode,
    first, policy,
    visitor::{Refused, Visitor},
};
use crate::{
    admin::{api, keys::Keys},
    config::DASHBOARD_HOST,
    frontend::http::{
        body::{Body, body_of},
        own::OwnSite,
    },
    html::Html,
};

/// Time limit of an answer of the API. A list of Services waits for an API server.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The PAC file. Browsers fetch it from the same hostname, without a cookie.
const PROXY_FILE: &str = "/proxy.pac";

const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

impl OwnSite for Dashboard {
    fn is_for(&self, authority: &str, path: &str) -> bool {
        let router = self.source.router();
        router.config.dashboard
            && path != PROXY_FILE
            && match host_of(authority) {
                Some(DASHBOARD_HOST) => true,
                Some("localhost") => !router.config.http.routes.contains_key("localhost"),
                _ => false,
            }
    }

    fn shows_requests(&self) -> bool {
        self.source.router().config.dashboard
    }

    fn answer(&self, request: Request<Body>, authority: String, tls: bool) -> BoxFuture<'_, Response<Body>> {
        Box::pin(async move {
            let is_head = *request.method() == Method::HEAD;
            let response = self.respond(request, &authority, tls).await;
            if is_head { response.map(|_| body_of("")) } else { response }
        })
    }
}

/// Returns the host of an authority, as written. `None`: the port is invalid.
fn host_of(authority: &str) -> Option<&str> {
    match authority.split_once(':') {
        Some((host, port)) => port.parse::<u16>().is_ok().then_some(host),
        None => Some(authority),
    }
}

impl Dashboard {
    async fn respond(&self, request: Request<Body>, authority: &str, tls: bool) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let port = self.source.facts().port();
        let visitor = Visitor { headers: request.headers(), authority, tls, port };
        let Some(keys) = self.source.keys() else { return text(StatusCode::NOT_FOUND, "there is no dashboard\n") };
        if path.starts_with("/api/") {
            return match visitor.check(request.method(), keys) {
                Ok(()) => self.data(request).await,
                Err(refused) => refusal(refused),
            };
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "pages are read with GET\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        if let Some(file) = self.assets.file(&path, request.headers()) {
            return file.map(body_of);
        }
        if path == "/in" {
            return self.sign_in(&request, &visitor, keys);
        }
        match visitor.is_signed_in(keys) {
            true => self.view(&path).await,
            false => self.signed_out(&visitor),
        }
    }

    async fn data(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let Some(body) = collect(body).await else {
            return text(StatusCode::PAYLOAD_TOO_LARGE, "the request is too large, or not complete\n");
        };
        let request = Request::from_parts(head, body);
        let Ok(response) = timeout(ANSWER_WITHIN, api::answer(&self.source, request)).await else {
            return text(StatusCode::GATEWAY_TIMEOUT, "no answer in 30 s\n");
        };
        let mut response = response.map(|body| body.map_err(|never| match never {}).boxed_unsync());
        policy::apply(&mut response);
        response
    }

    /// Exchanges a code for the cookie. Only GET invalidates the code: link scanners send HEAD before the person opens the link.
    fn sign_in(&self, request: &Request<Body>, visitor: &Visitor<'_>, keys: &Keys) -> Response<Body> {
        let query = request.uri().query().unwrap_or_default();
        let code = query.split('&').find_map(|pair| pair.strip_prefix("code=")).unwrap_or_default();
        let code = percent_decode_str(code).decode_utf8_lossy();
        if *request.method() != Method::GET || !keys.redeem(&code) {
            let mut main = Html::default();
            main.raw("<section class=\"sign-in\"><h1>This link is used up</h1><p>A link is good once, for one minute. Run</p>")
                .raw("<pre>adit ui</pre><p>for another one.</p></section>");
            return self.page(StatusCode::FORBIDDEN, Mode::SignedOut, "Sign in", main, false);
        }
        let mut response = text(StatusCode::SEE_OTHER, "signed in\n");
        response.headers_mut().insert(LOCATION, HeaderValue::from_static("/"));
        response.headers_mut().insert(SET_COOKIE, visitor.cookie(keys));
        response
    }

    fn signed_out(&self, visitor: &Visitor<'_>) -> Response<Body> {
        if !accepts_html(visitor.headers) {
            let said = "adit is running: 'adit ui' opens its dashboard, 'adit routes' lists what can be reached\n";
            return text(StatusCode::OK, said);
        }
        let mut main = Html::default();
        main.raw("<section class=\"sign-in\"><h1>adit is running</h1><p>The dashboard is for the person who started it. Run</p>")
            .raw("<pre>adit ui</pre><p>in a terminal: it opens this page, signed in.</p></section>");
        // A browser withholds the cookie after a link on another origin; reloading from this page sends it.
        let again = visitor.comes_from_elsewhere();
        self.page(StatusCode::OK, Mode::SignedOut, "Sign in", main, again)
    }

    async fn view(&self, path: &str) -> Response<Body> {
        let (title, main) = match path {
            "/" => ("Now", first::now(&self.source)),
            "/services" => ("Services", first::services(&self.source).await),
            "/requests" => ("Requests", first::needs_script()),
            "/log" => ("Log", first::needs_script()),
            path if path.strip_prefix("/tunnel/").is_some_and(|id| !id.is_empty()) => ("Tunnel", first::needs_script()),
            _ => {
                let mut main = Html::default();
                main.raw("<h1>There is no such page</h1><p>").link("/", "Now").raw("</p>");
                return self.page(StatusCode::NOT_FOUND, Mode::SignedOut, "Not found", main, false);
            }
        };
        self.page(StatusCode::OK, Mode::SignedIn, title, main, false)
    }

    fn page(&self, status: StatusCode, mode: Mode, title: &str, main: Html, refreshes: bool) -> Response<Body> {
        answer(status, HTML, self.assets.page(mode, title, main, refreshes))
    }
}

/// Returns the body of a request. `None`: it is too large, or incomplete.
async fn collect(mut body: Body) -> Option<Bytes> {
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            collected.extend_from_slice(&data);
        }
        if collected.len() > api::MOST_OF_A_CHANGE {
            return None;
        }
    }
    Some(collected.freeze())
}

fn accepts_html(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|value| value.contains("text/html"))
}

fn refusal(refused: Refused) -> Response<Body> {
    let code = match refused {
        Refused::NotSignedIn => "not-signed-in",
        Refused::OtherPage => "other-page",
        Refused::NoChange => "no-change",
    };
    let error = serde_json::json!({"format": api::FORMAT, "error": {"code": code, "message": refused.to_string()}});
    answer(StatusCode::FORBIDDEN, JSON, error.to_string())
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    answer(status, TEXT, text.to_owned())
}

fn answer(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(body_of(body));
    *response.status_mut() = status;
    policy::apply(&mut response);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_port() {
        assert_eq!(host_of("adit.localhost:8989"), Some("adit.localhost"));
        assert_eq!(host_of("adit.localhost"), Some("adit.localhost"));
        for authority in ["adit.localhost:", "adit.localhost:x", "adit.localhost:1:2", "adit.localhost:99999"] {
            assert_eq!(host_of(authority), None, "{authority}");
        }
        for authority in ["adit.localhost.", "ADIT.localhost", "evil.localhost", "xadit.localhost", "[::1]:80"] {
            assert_ne!(host_of(authority), Some(DASHBOARD_HOST), "{authority}");
        }
    }
}
