//! A request in the form of HTTP/1 or HTTP/2, and one attempt to send it.

use http::{
    HeaderValue, Request, Response, Uri, Version,
    header::{CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING},
    uri::PathAndQuery,
};
use http_body_util::BodyExt;
use hyper::{body::Body as _, ext::on_informational};
use tower::BoxError;

use super::{
    RequestError,
    pool::{H1, H2, Sender},
    retry::Outcome,
};
use crate::{
    config::Scheme,
    frontend::http::{body::Body, interim::Listener},
    wire::sniff::{Sniff, sniff_server},
};

/// An attempt that failed.
pub struct Failed {
    pub error: RequestError,
    pub outcome: Outcome,
    /// The backend's first bytes on the connection; [`Sniff::NeedMore`]: it sent none.
    pub said: Sniff,
    /// Only the stream failed; the connection goes on.
    pub is_of_stream: bool,
}

pub async fn send_on(
    sender: &mut Sender,
    scheme: Scheme,
    mut request: Request<Body>,
) -> Result<Response<Body>, Box<Failed>> {
    match sender {
        Sender::H1(H1 { sender, heard, trailers, .. }) => {
            to_http1(&mut request);
            if request.headers().contains_key(TRANSFER_ENCODING) {
                request = request.map(|body| trailers.of(body));
            }
            if let Some(listener) = request.extensions_mut().remove::<Listener>() {
                on_informational(&mut request, move |response| listener.tell(response.status(), response.headers()));
            }
            heard.forget();
            let sent = sender.try_send_request(request).await.map_err(|mut error| {
                let outcome = match (error.take_message(), heard.anything()) {
                    (Some(_), _) => Outcome::NotSent,
                    (None, false) => Outcome::Unanswered,
                    (None, true) => Outcome::Answered,
                };
                let first = heard.first();
                let said = sniff_server(&first);
                Box::new(Failed {
                    error: RequestError::Http1(error.into_error(), first),
                    outcome,
                    said,
                    is_of_stream: false,
                })
            })?;
            Ok(sent.map(|body| body.map_err(BoxError::from).boxed_unsync()))
        }
        Sender::H2(H2 { sender, heard, .. }) => {
            to_http2(&mut request, scheme);
            sender.send(request).await.map_err(|(error, unsent)| {
                let outcome = if unsent.is_some() { Outcome::NotSent } else { Outcome::of_http2(&error) };
                let is_of_stream = error.is_reset();
                let error = match heard.fault() {
                    Some(fault) if !is_of_stream => RequestError::Stream(fault),
                    _ => RequestError::Http2(error),
                };
                Box::new(Failed { error, outcome, said: sniff_server(&heard.first()), is_of_stream })
            })
        }
    }
}

/// Rewrites a request for HTTP/1: origin-form, with the authority in Host (RFC 9112, section 3.2), and one Cookie field. Browsers
/// split Cookie over HTTP/2 (RFC 9113, section 8.2.3), and HTTP/1.1 servers read only the first one.
pub fn to_http1(request: &mut Request<Body>) {
    if !request.headers().contains_key(HOST)
        && let Some(authority) = request.uri().authority()
        && let Ok(value) = authority.as_str().parse()
    {
        request.headers_mut().insert(HOST, value);
    }
    if request.headers().get_all(COOKIE).iter().nth(1).is_some() {
        let pairs: Vec<&[u8]> = request.headers().get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&pairs.join(&b"; "[..])) {
            request.headers_mut().insert(COOKIE, joined);
        }
    }
    let has_length = request.headers().contains_key(CONTENT_LENGTH) || request.body().size_hint().exact().is_some();
    if !request.body().is_end_stream() && !has_length {
        // Without this, hyper assumes that a GET or HEAD of unknown length has no body.
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    *request.version_mut() = Version::HTTP_11;
    *request.uri_mut() = origin_form(request.uri());
}

/// Rewrites a request for HTTP/2: with scheme and authority, without Host (RFC 9113, section 8.3.1).
fn to_http2(request: &mut Request<Body>, scheme: Scheme) {
    *request.version_mut() = Version::HTTP_2;
    let host = request.headers_mut().remove(HOST);
    let authority = host
        .and_then(|host| host.to_str().ok().map(str::to_owned))
        .or_else(|| request.uri().authority().map(|a| a.to_string()));
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(if scheme == Scheme::Https { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
    parts.authority = authority.and_then(|authority| authority.parse().ok());
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from)
}
