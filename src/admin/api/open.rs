//! `POST /api/v1/open`: opens a target at a local port or as a stream, or only checks that it can be reached.

use std::{net::SocketAddr, time::Duration};

use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FORMAT, answers::Problem, failure, json, problem};
use crate::{
    admin::{
        api::source::Source,
        http::{Body, empty, endless},
    },
    io::{
        BoxedIo,
        splice::{Side, splice},
    },
    journal::{Entry, Kind},
};

/// Protocol of the upgrade: after it, the connection carries the bytes of the connection to the pod.
pub const PROTOCOL: &str = "adit-stream";

/// Header of the 101 response: the id of the connection below `/api/v1/requests`. There the client reads after the end whether
/// the connection broke (`error`), because a Unix socket has no reset to signal that.
pub const CONNECTION_ID: HeaderName = HeaderName::from_static("x-adit-request");

/// Error code of an invalid target.
pub const MALFORMED: &str = "malformed";

/// Maximum bytes of a request.
const MOST: usize = 64 * 1024;

/// Default and maximum time to wait for a target, in milliseconds. The admin socket ends an exchange after 30 s.
const WAIT_MS: u64 = 10_000;
const LONGEST_WAIT_MS: u64 = 25_000;

/// Parameters of the request.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenRequest {
    /// `postgres.shop:5432`, `pod/web-1.shop:80`, `via api.shop HOST:PORT`, or a route's name; `@PORT` asks for a local port.
    pub target: String,
    #[serde(default, rename = "as")]
    pub kind: OpenKind,
    /// Of targets that name none.
    #[serde(default)]
    pub namespace: Option<String>,
    /// How long to wait until it can be reached, in milliseconds. Default: 10,000. At most 25,000: ask again to wait for longer.
    #[serde(default)]
    #[schemars(range(max = 25_000))]
    pub wait_ms: Option<u64>,
}

/// How a target is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OpenKind {
    /// At a local port, until adit ends.
    #[default]
    Port,
    /// As the bytes that follow, after a switch to the protocol `adit-stream`.
    Stream,
    /// Not at all: whether it can be reached.
    Check,
}

/// A target that can be reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OpenAnswer {
    #[schemars(range(min = 1, max = 1))]
    pub format: u32,
    pub target: String,
    /// Local address. null: the request only asked for a check.
    #[schemars(with = "Option<String>")]
    pub address: Option<SocketAddr>,
    /// URL, if the port speaks HTTP.
    pub url: Option<String>,
    /// Its port in the cluster, where that is known.
    pub port: Option<PortRow>,
    /// The Service, where it is one: all its ports can be reached.
    pub service: Option<ServicePorts>,
}

/// A port of a Service or a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PortRow {
    pub number: u16,
    pub name: Option<String>,
}

/// A Service on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServicePorts {
    pub name: String,
    pub ports: Vec<LocalPort>,
}

/// Local address of a Service's port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LocalPort {
    #[serde(flatten)]
    pub port: PortRow,
    #[schemars(with = "String")]
    pub address: SocketAddr,
}

/// Opens targets for the API; the application implements it.
pub trait Opener: Send + Sync {
    /// Waits until a target can be reached, and serves it at a local port if the request wants one.
    fn open(&self, request: OpenRequest) -> BoxFuture<'_, Result<OpenAnswer, Problem>>;

    /// Opens a connection to a target. The second value holds the tunnel open.
    fn stream(&self, request: OpenRequest) -> BoxFuture<'_, Result<(BoxedIo, Held), Problem>>;
}

/// Resources that a stream holds until it ends.
pub struct Held {
    /// Id of the tunnel.
    pub tunnel: std::sync::Arc<str>,
    pub lease: Box<dyn Send + Sync>,
}

impl OpenRequest {
    pub fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms.unwrap_or(WAIT_MS))
    }
}

/// Answers the request.
pub async fn answer(source: &Source, mut request: Request<Incoming>) -> Response<Body> {
    let Some(opener) = source.opener() else {
        return failure(StatusCode::NOT_FOUND, "not-found", "this adit opens nothing".to_owned());
    };
    let upgrade = request.headers().get(header::UPGRADE).is_some_and(|protocol| protocol == PROTOCOL);
    let upgrading = upgrade.then(|| hyper::upgrade::on(&mut request));
    let body = match Limited::new(request.into_body(), MOST).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return failure(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the request is too large".to_owned()),
    };
    let wanted: OpenRequest = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(error) => {
            return failure(
                StatusCode::BAD_REQUEST,
                "malformed",
                format!("the body is not the expected JSON: {error}"),
            );
        }
    };
    if wanted.wait_ms.is_some_and(|wait| wait > LONGEST_WAIT_MS) {
        let message = format!("wait_ms is at most {LONGEST_WAIT_MS}: ask again to wait for longer");
        return failure(StatusCode::BAD_REQUEST, MALFORMED, message);
    }
    match (wanted.kind, upgrading) {
        (OpenKind::Stream, None) => failure(
            StatusCode::UPGRADE_REQUIRED,
            "upgrade",
            format!("a stream needs the headers Connection: Upgrade and Upgrade: {PROTOCOL}"),
        ),
        (OpenKind::Stream, Some(upgrading)) => stream(source, &*opener, wanted, upgrading).await,
        (OpenKind::Port | OpenKind::Check, _) => match opener.open(wanted).await {
            Ok(answer) => json(&answer),
            Err(found) => failed(found),
        },
    }
}

fn failed(found: Problem) -> Response<Body> {
    let status = match found.code.as_deref() {
        Some(MALFORMED) => StatusCode::BAD_REQUEST,
        _ => StatusCode::BAD_GATEWAY,
    };
    problem(status, found)
}

async fn stream(
    source: &Source,
    opener: &dyn Opener,
    wanted: OpenRequest,
    upgrading: hyper::upgrade::OnUpgrade,
) -> Response<Body> {
    let entry = Entry::new(Kind::Tcp).with_host(&wanted.target);
    let (mut backend, held) = match opener.stream(wanted).await {
        Ok(opened) => opened,
        Err(found) => return failed(found),
    };
    let mut noted = source.journal().begin(Entry { tunnel: Some(held.tunnel.clone()), ..entry });
    let id = noted.entry.id;
    source.drain().spawn(async move {
        let _held = held;
        let Ok(client) = upgrading.await else { return };
        let mut client = TokioIo::new(client);
        let end = splice(&mut client, &mut backend).await;
        (noted.entry.bytes_up, noted.entry.bytes_down) = (end.up, end.down);
        if let Some((Side::Backend, error)) = &end.broken {
            noted.error(&error.to_string());
        }
        // Before the client sees the end: it reads the result then.
        drop(noted);
        drop(client);
    });
    let mut response = empty(StatusCode::SWITCHING_PROTOCOLS);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    response.headers_mut().insert(CONNECTION_ID, id.into());
    endless(response)
}

/// Returns an answer with the target and its address.
pub fn opened(target: String, address: Option<SocketAddr>) -> OpenAnswer {
    OpenAnswer { format: FORMAT, target, address, url: None, port: None, service: None }
}
