//! `POST /api/v1/requests/ID/replay` sends a request again, unchanged or edited. `POST /api/v1/record` records the bodies of a
//! route.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    answers::{Problem, RequestAnswer},
    exchange::no_replay,
    failure, json, problem,
};
use crate::{
    admin::{
        api::source::Source,
        http::{Body, NO_CONTENT, empty},
    },
    journal::{Entry, exchange::ReplayOf, hidden},
};

/// Maximum duration of a recording.
const LONGEST_RECORD_MINUTES: u64 = 60;

/// Edits of a request. An absent key keeps the original value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReplayRequest {
    pub method: Option<String>,
    /// Path and query.
    pub target: Option<String>,
    /// All headers but Host. A value that is as it was shown stands for the real one.
    pub headers: Option<Vec<(String, String)>>,
    pub text: Option<String>,
    /// A body that is not text; instead of `text`.
    pub base64: Option<String>,
}

/// Route and duration of a recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RecordRequest {
    /// The name of a route, as in a row.
    pub route: String,
    /// For how long, at most 60. 0: not any more.
    pub minutes: u64,
}

/// Replays requests for the API; the application implements it.
pub trait Replayer: Send + Sync {
    /// Sends a request as a client would, over https if `is_tls`, and waits for the end of the answer.
    fn replay(&self, request: Request<Bytes>, replay: ReplayOf, is_tls: bool) -> BoxFuture<'_, ()>;
}

/// Answers a request for a replay.
pub async fn answer(source: &Source, id: &str, request: &Request<Bytes>) -> Response<Body> {
    let edits: ReplayRequest = match read(request) {
        Ok(edits) => edits,
        Err(response) => return *response,
    };
    let journal = source.journal();
    let Some(entry) = id.parse().ok().and_then(|id| journal.entry(id)) else {
        return failure(StatusCode::NOT_FOUND, "not-found", format!("there is no request {id:?}"));
    };
    let Some(replayer) = source.replayer() else {
        return failure(StatusCode::NOT_FOUND, "not-found", "this adit sends nothing again".to_owned());
    };
    let (again, replay, is_tls) = match again(&entry, edits) {
        Ok(again) => again,
        Err(message) => return failure(StatusCode::CONFLICT, "no-replay", message),
    };
    let (_, before) = journal.since(u64::MAX);
    replayer.replay(again, replay, is_tls).await;
    let (entries, _) = journal.since(before);
    match entries.iter().find(|found| found.replay_of == Some(entry.id)) {
        Some(found) => json(&RequestAnswer::of(found, journal)),
        None => problem(
            StatusCode::GATEWAY_TIMEOUT,
            Problem {
                code: Some("timeout".to_owned()),
                message: "the request was sent again and has no answer yet".to_owned(),
                ..Problem::default()
            },
        ),
    }
}

/// Answers a request for a recording.
pub fn record(source: &Source, request: &Request<Bytes>) -> Response<Body> {
    let RecordRequest { route, minutes } = match read(request) {
        Ok(wanted) => wanted,
        Err(response) => return *response,
    };
    let minutes = minutes.min(LONGEST_RECORD_MINUTES);
    source.journal().recorder().record(&route, Duration::from_secs(60 * minutes));
    empty(NO_CONTENT)
}

/// Parses the body of a request; an empty one counts as `{}`.
fn read<T: DeserializeOwned>(request: &Request<Bytes>) -> Result<T, Box<Response<Body>>> {
    let body: &[u8] = if request.body().is_empty() { b"{}" } else { request.body() };
    serde_json::from_slice(body).map_err(|error| {
        let message = format!("the body is not the expected JSON: {error}");
        Box::new(failure(StatusCode::BAD_REQUEST, "malformed", message))
    })
}

/// Returns the request to send, its mark as a replay, and whether it is sent over https.
fn again(entry: &Entry, edits: ReplayRequest) -> Result<(Request<Bytes>, ReplayOf, bool), String> {
    let has_new_body = edits.text.is_some() || edits.base64.is_some();
    if let Some(reason) = no_replay(entry).filter(|reason| !(has_new_body && reason.contains("body"))) {
        return Err(reason.to_owned());
    }
    let kept = entry.exchange.as_ref().and_then(|exchange| Some((exchange, exchange.leads_to.get()?.clone())));
    let Some((exchange, target_of_route)) = kept else { return Err("nothing is kept of it".to_owned()) };
    let replay = ReplayOf { id: entry.id, target: target_of_route };
    let mut headers = exchange.request.as_ref().map(|head| head.headers()).unwrap_or_default();
    if let Some(edited) = edits.headers {
        headers = edit(&headers, &edited)?;
    }
    let body = match (edits.text, edits.base64) {
        (Some(text), _) => Bytes::from(text),
        (None, Some(base64)) => {
            BASE64_STANDARD.decode(base64).map_err(|error| format!("the body is not base64: {error}"))?.into()
        }
        (None, None) => exchange.request_body.get().map(|body| body.kept().0).unwrap_or_default().into(),
    };
    let had_length = headers.remove(header::CONTENT_LENGTH).is_some();
    headers.remove(header::TRANSFER_ENCODING);
    if had_length || !body.is_empty() {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    let target = edits.target.map(|edited| hidden::restored(&exchange.target, &edited));
    let target = target.unwrap_or_else(|| exchange.target.to_string());
    if !target.starts_with('/') && target != "*" {
        return Err(format!("{target:?} is not a path: it does not begin with /"));
    }
    let method = match &edits.method {
        Some(method) => Method::from_bytes(method.as_bytes()).map_err(|_| format!("{method:?} is not a method"))?,
        None => entry.method.clone().unwrap_or_default(),
    };
    if method == Method::CONNECT {
        return Err("CONNECT cannot be replayed: it opens a connection".to_owned());
    }
    let mut request = Request::new(body);
    *request.uri_mut() = target.parse().map_err(|_| format!("{target:?} is not the path of a URL"))?;
    *request.method_mut() = method;
    *request.version_mut() = exchange.version;
    if !headers.contains_key(header::HOST) {
        let host = HeaderValue::from_str(&entry.host).map_err(|_| "its host cannot be sent as a header".to_owned())?;
        headers.insert(header::HOST, host);
    }
    *request.headers_mut() = headers;
    Ok((request, replay, exchange.is_tls))
}

/// Returns the edited headers. A hidden text stands for the original value; if several headers have the same hidden text, they keep
/// their order. Host is the original one, because it selects the route.
fn edit(first: &HeaderMap, edited: &[(String, String)]) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let mut left: Vec<(&HeaderName, &HeaderValue)> = first.iter().collect();
    for (name, value) in edited {
        let wrong = || format!("{name:?} cannot be sent as a header with this value");
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        if name == header::HOST {
            continue;
        }
        if matches!(name, header::UPGRADE | header::CONNECTION) {
            return Err(format!("{name} is about a connection, and cannot be sent again"));
        }
        let is_meant = |first: &HeaderValue| *value == hidden::shown(name.as_str(), first.as_bytes());
        let next = left.iter().position(|(other, first)| **other == name && is_meant(first));
        let secret = match next {
            Some(at) => Some(left.remove(at).1),
            None => first.get_all(&name).iter().find(|first| is_meant(first)),
        };
        let value = secret.cloned().map_or_else(|| HeaderValue::from_str(value).map_err(|_| wrong()), Ok)?;
        headers.append(name, value);
    }
    for host in first.get_all(header::HOST) {
        headers.append(header::HOST, host.clone());
    }
    Ok(headers)
}
