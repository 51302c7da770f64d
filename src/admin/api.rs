//! The API of a running adit, version 1: JSON, and Server-Sent Events.
//!
//! | | |
//! |---|---|
//! | `GET /api/v1/status` | version, listeners, configuration, the last second, tunnels |
//! | `GET /api/v1/services` | routes, and the Services of a context; `?context=NAME&namespace=NAME`, `&pods=1`, `&signed_in=1` |
//! | `GET /api/v1/tunnels` | every tunnel |
//! | `GET /api/v1/tunnels/ID` | one, with its last events; also a closed one, until its events are evicted |
//! | `POST /api/v1/tunnels/ID/stop` | ends it and its streams: 204 |
//! | `POST /api/v1/tunnels/ID/reconnect` | opens another session for it; open streams keep theirs: 202 |
//! | `GET /api/v1/requests` | the last requests and connections, newest first |
//! | `GET /api/v1/requests/ID` | one of them, with its headers |
//! | `GET /api/v1/requests/ID/har`, `GET /api/v1/har` | one, or all in the journal, as an HTTP archive |
//! | `POST /api/v1/requests/ID/replay` | sends it again, unchanged or edited: see [`replay`] |
//! | `POST /api/v1/record` | records bodies of a route for a while: see [`replay`] |
//! | `GET /api/v1/config` | the configuration in use, secrets hidden |
//! | `GET /api/v1/log` | the last lines of the log, newest first |
//! | `POST /api/v1/open` | opens a target: see [`open`]; the Unix socket only |
//! | `POST /api/v1/contexts/NAME/unlock` | lifts the rules of a context for a while: see [`unlock`]; the Unix socket only |
//! | `POST /api/v1/ui` | a link that opens the dashboard once: see [`ui`]; the Unix socket only |
//! | `GET /api/v1/events` | a snapshot, then changes: see [`feed`] |
//!
//! An ID in a path is percent-encoded. Each answer has a `format` number, which increases with every incompatible change; a new
//! key is not one. `adit schema --api` prints the schemas.

pub mod answers;
pub mod attention;
pub mod exchange;
pub mod feed;
pub mod open;
pub mod replay;
pub mod schema;
pub mod services;
pub mod source;
pub mod ui;
pub mod unlock;
pub mod ways;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_DISPOSITION},
};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::Serialize;

use self::{
    answers::{ConfigAnswer, Failure, Log, Problem, RequestAnswer, Requests, Status, TunnelAnswer, Tunnels},
    source::Source,
};
use super::http::{Body, JSON, NO_CONTENT, empty, respond};
use crate::journal::recorder::LONGEST_BODY;

/// Version of the format of every answer.
pub const FORMAT: u32 = 1;

/// Maximum bytes of a request: a replayed body in base64, and the rest of the request.
pub const MOST_OF_A_CHANGE: usize = 2 * LONGEST_BODY;

/// Root path of the API.
pub const ROOT: &str = "/api/v1/";

/// Answers a request below `/api/` from the user of the process.
pub async fn answer_owner(source: &Source, request: Request<Incoming>) -> Response<Body> {
    if (request.method(), request.uri().path()) == (&Method::POST, "/api/v1/open") {
        return open::answer(source, request).await;
    }
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, MOST_OF_A_CHANGE).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return too_large(),
    };
    let request = Request::from_parts(head, body);
    let path = request.uri().path().to_owned();
    if let Some(name) = path.strip_prefix("/api/v1/contexts/").and_then(|rest| rest.strip_suffix("/unlock"))
        && *request.method() == Method::POST
    {
        let name = percent_decode_str(name).decode_utf8_lossy().into_owned();
        return unlock::answer(source, &name, request.body());
    }
    match (request.method(), path.as_str()) {
        (&Method::POST, "/api/v1/ui") => ui::answer(source),
        _ => answer(source, request).await,
    }
}

/// Answers a request below `/api/` from any client that is allowed to use the API.
pub async fn answer(source: &Source, request: Request<Bytes>) -> Response<Body> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    // An unknown path is named whole in the answer.
    let path = path.strip_prefix(ROOT).unwrap_or(&path);
    let words: Vec<&str> = path.split('/').collect();
    let unknown = || failure(StatusCode::NOT_FOUND, "not-found", format!("{path:?} is not part of the API"));
    let Some(allowed) = allowed(&words) else { return unknown() };
    if !allowed.split(", ").any(|allowed| allowed == method.as_str()) {
        let message = format!("{method} is not allowed for {path:?}, but {allowed}");
        let mut refused = failure(StatusCode::METHOD_NOT_ALLOWED, "method", message);
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        return refused;
    }
    let decoded = |word: &str| percent_decode_str(word).decode_utf8_lossy().into_owned();
    match words.as_slice() {
        ["requests", id, "replay"] => replay::answer(source, id, &request).await,
        ["record"] => replay::record(source, &request),
        ["status"] => json(&Status::of(source)),
        ["services"] => match services::Query::parse(request.uri().query().unwrap_or_default()) {
            Ok(query) => json(&services::list(&source.clusters, &source.router(), &query, source.facts().port()).await),
            Err(invalid) => failure(StatusCode::BAD_REQUEST, "malformed", invalid.to_string()),
        },
        ["tunnels"] => json(&Tunnels::of(source)),
        ["tunnels", id] => found(TunnelAnswer::of(source, &decoded(id)), "tunnel", &decoded(id)),
        ["tunnels", id, "stop"] => done(source.stop(&decoded(id)), NO_CONTENT, &decoded(id)),
        ["tunnels", id, "reconnect"] => done(source.reconnect(&decoded(id)), StatusCode::ACCEPTED, &decoded(id)),
        ["requests"] => json(&Requests::of(source)),
        ["requests", id] => {
            let entry = id.parse().ok().and_then(|id| source.journal().entry(id));
            found(entry.map(|entry| RequestAnswer::of(&entry, source.journal())), "request", id)
        }
        ["requests", id, "har"] => {
            let entry = id.parse().ok().and_then(|id| source.journal().entry(id));
            archive(entry.map(|entry| exchange::har(&[entry])), &format!("adit-{id}.har"), id)
        }
        ["har"] => {
            let mut entries = source.journal().since(0).0;
            entries.reverse();
            archive(Some(exchange::har(&entries)), "adit.har", "")
        }
        ["config"] => json(&ConfigAnswer::of(source)),
        ["log"] => json(&Log::of(source)),
        ["events"] => feed::answer(source, last_event(request.headers())),
        // These paths are on the Unix socket only.
        _ => unknown(),
    }
}

/// Returns the methods of a path of the API for the Allow header (RFC 9110, section 10.2.1). `None`: there is no such path.
fn allowed(words: &[&str]) -> Option<&'static str> {
    match words {
        ["status" | "services" | "tunnels" | "requests" | "har" | "config" | "log" | "events"]
        | ["tunnels" | "requests", _]
        | ["requests", _, "har"] => Some("GET, HEAD"),
        ["record" | "open" | "ui"]
        | ["tunnels", _, "stop" | "reconnect"]
        | ["requests", _, "replay"]
        | ["contexts", _, "unlock"] => Some("POST"),
        _ => None,
    }
}

/// Returns an HTTP archive as a file that a browser saves.
fn archive(archive: Option<serde_json::Value>, name: &str, id: &str) -> Response<Body> {
    let mut response = found(archive, "request", id);
    let name: String = name.chars().filter(|each| each.is_ascii_alphanumeric() || "-.".contains(*each)).collect();
    if let Ok(value) = HeaderValue::try_from(format!("attachment; filename=\"{name}\"")) {
        response.headers_mut().insert(CONTENT_DISPOSITION, value);
    }
    response
}

/// Returns the id of the last event that a resuming reader has received.
fn last_event(headers: &HeaderMap) -> Option<&str> {
    headers.get("last-event-id").and_then(|id| id.to_str().ok())
}

fn json(answer: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(answer) {
        Ok(body) => respond(StatusCode::OK, JSON, body),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string()),
    }
}

fn found(answer: Option<impl Serialize>, what: &str, id: &str) -> Response<Body> {
    match answer {
        Some(answer) => json(&answer),
        None => failure(StatusCode::NOT_FOUND, "not-found", format!("there is no {what} {id:?}")),
    }
}

fn done(is_done: bool, status: StatusCode, id: &str) -> Response<Body> {
    match is_done {
        true => empty(status),
        false => failure(StatusCode::NOT_FOUND, "not-found", format!("there is no tunnel {id:?}")),
    }
}

/// Returns the answer to a request with a body longer than [`MOST_OF_A_CHANGE`].
pub fn too_large() -> Response<Body> {
    failure(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the request is too large".to_owned())
}

/// Returns the answer to a request that failed.
fn failure(status: StatusCode, code: &str, message: String) -> Response<Body> {
    problem(status, Problem { code: Some(code.to_owned()), message, ..Problem::default() })
}

fn problem(status: StatusCode, error: Problem) -> Response<Body> {
    let body = serde_json::to_vec(&Failure { format: FORMAT, error }).unwrap_or_default();
    respond(status, JSON, body)
}
