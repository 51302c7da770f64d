//! Queries of requests to the demo's API server, and its answers.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use serde_json::{Value, json};

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

pub fn query<B>(request: &Request<B>, name: &str) -> Option<String> {
    queries(request, name).into_iter().next()
}

pub fn queries<B>(request: &Request<B>, name: &str) -> Vec<String> {
    let decode =
        |text: &str| percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| decode(value)).collect()
}

pub fn status(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    json_body(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code.as_u16()}),
    )
}

pub fn ok(value: &Value) -> Response<Body> {
    json_body(StatusCode::OK, value)
}

pub fn json_body(code: StatusCode, value: &Value) -> Response<Body> {
    respond(code, "application/json", Full::new(Bytes::from(value.to_string())).boxed_unsync())
}

pub fn plain(text: String) -> Response<Body> {
    respond(StatusCode::OK, "text/plain", Full::new(Bytes::from(text)).boxed_unsync())
}

pub fn respond(code: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
