//! Requests that upgrade their connection: port-forward and exec.

use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use super::{
    Node,
    answer::{Body, queries, query, respond, status},
    faults::Era,
    process::Sandbox,
    streams::{channels, exec, port_forward, tunnel},
    tasks::Tasks,
};
use crate::wire::websocket::accept_key;

const PORT_FORWARD: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNELS_V4: &str = "v4.channel.k8s.io";
const CHANNELS_V5: &str = "v5.channel.k8s.io";

/// The upgrade that a client requests.
enum Upgrade {
    Spdy(String),
    /// Offered subprotocols, and the answer to the key.
    WebSocket(Vec<String>, HeaderValue),
}

impl Upgrade {
    fn of(request: &Request<Incoming>, node: &Node) -> Result<Self, Box<Response<Body>>> {
        let value = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let bad = |message: &str| Err(Box::new(status(StatusCode::BAD_REQUEST, "BadRequest", message)));
        match value("upgrade").unwrap_or_default().to_ascii_lowercase().as_str() {
            "spdy/3.1" if node.faults.takes_only_channels() => bad("a gateway that knows WebSocket and not SPDY"),
            "websocket" if node.faults.takes_no_websocket() => bad("a gateway that knows SPDY and not WebSocket"),
            "spdy/3.1" => match value("x-stream-protocol-version") {
                Some(version) => Ok(Self::Spdy(version)),
                None => {
                    let message = "unable to upgrade: unable to negotiate protocol: client supports []";
                    Err(Box::new(status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)))
                }
            },
            "websocket" if request.method() != Method::GET => Err(Box::new(status(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                "a WebSocket is opened by GET",
            ))),
            "websocket" => {
                let accept = value("sec-websocket-key").and_then(|key| HeaderValue::from_str(&accept_key(&key)).ok());
                let offered = value("sec-websocket-protocol").unwrap_or_default();
                let offered = offered.split(',').map(|protocol| protocol.trim().to_owned()).collect();
                accept.map_or_else(|| bad("a WebSocket needs a key"), |accept| Ok(Self::WebSocket(offered, accept)))
            }
            _ => bad("Upgrade request required"),
        }
    }
}

fn switching(upgrade: &'static str) -> Response<Body> {
    let mut response = Response::new(Full::default().boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(upgrade));
    response
}

fn spdy(version: &str) -> Response<Body> {
    let mut response = switching("SPDY/3.1");
    if let Ok(version) = HeaderValue::from_str(version) {
        response.headers_mut().insert("x-stream-protocol-version", version);
    }
    response
}

fn websocket(protocol: &'static str, accept: HeaderValue) -> Response<Body> {
    let mut response = switching("websocket");
    response.headers_mut().insert("sec-websocket-accept", accept);
    response.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(protocol));
    response
}

/// Upgrades to SPDY (raw or in a WebSocket) or to channels, and serves port-forwards.
pub fn port_forwards(sandbox: Sandbox, mut request: Request<Incoming>, node: Arc<Node>) -> Response<Body> {
    let upgrade = match Upgrade::of(&request, &node) {
        Ok(upgrade) => upgrade,
        Err(response) => return *response,
    };
    let has_tunnel = node.faults.current_era() > Era::V1_30 && !node.faults.takes_only_channels();
    let (response, ports) = match upgrade {
        Upgrade::Spdy(version) if version == PORT_FORWARD => (spdy(PORT_FORWARD), None),
        Upgrade::Spdy(_) => return status(StatusCode::FORBIDDEN, "Forbidden", "unable to negotiate protocol"),
        Upgrade::WebSocket(offered, accept) if has_tunnel && offered.iter().any(|protocol| protocol == TUNNEL) => {
            (websocket(TUNNEL, accept), None)
        }
        Upgrade::WebSocket(offered, accept) => {
            let ports: Vec<u16> = queries(&request, "ports")
                .iter()
                .flat_map(|ports| ports.split(','))
                .filter_map(|port| port.parse().ok())
                .collect();
            if ports.is_empty() {
                return status(StatusCode::BAD_REQUEST, "BadRequest", "query parameter \"port\" is required");
            }
            if !offered.iter().any(|protocol| protocol == CHANNELS_V4) {
                return respond(StatusCode::FORBIDDEN, "text/plain", Full::default().boxed_unsync());
            }
            (websocket(CHANNELS_V4, accept), Some(ports))
        }
    };
    let is_tunnel = response.headers().get("sec-websocket-protocol").is_some_and(|protocol| protocol == TUNNEL);
    node.faults.count_upgrade();
    let upgrading = hyper::upgrade::on(&mut request);
    let tasks: Tasks = node.tasks.clone();
    tasks.spawn(async move {
        let Ok(upgraded) = upgrading.await else { return };
        let upgraded = TokioIo::new(upgraded);
        match ports {
            Some(ports) => channels::port_forward(upgraded, node, sandbox, ports).await,
            None if is_tunnel => {
                let (near, far) = tokio::io::duplex(64 * 1024);
                tokio::join!(tunnel::unwrap(upgraded, near), port_forward::serve(far, node, sandbox));
            }
            None => port_forward::serve(upgraded, node, sandbox).await,
        }
    });
    response
}

/// Upgrades to channels or to SPDY, and runs a command.
pub fn execs(sandbox: Sandbox, mut request: Request<Incoming>, node: Arc<Node>) -> Response<Body> {
    let upgrade = match Upgrade::of(&request, &node) {
        Ok(upgrade) => upgrade,
        Err(response) => return *response,
    };
    let is_set = |name: &str| query(&request, name).is_some_and(|value| value == "true" || value == "1");
    let asked = exec::Request {
        command: queries(&request, "command"),
        stdin: is_set("stdin"),
        stdout: is_set("stdout"),
        stderr: is_set("stderr"),
    };
    if asked.command.is_empty() {
        return status(
            StatusCode::BAD_REQUEST,
            "BadRequest",
            "you must specify at least one command for the container",
        );
    }
    if !(asked.stdin || asked.stdout || asked.stderr) {
        let message = "you must specify at least 1 of stdin, stdout, stderr";
        return status(StatusCode::BAD_REQUEST, "BadRequest", message);
    }
    let is_spdy = matches!(upgrade, Upgrade::Spdy(_));
    let response = match upgrade {
        Upgrade::Spdy(version) => spdy(&version),
        Upgrade::WebSocket(offered, accept) => {
            let chosen =
                [CHANNELS_V5, CHANNELS_V4].into_iter().find(|known| offered.iter().any(|protocol| protocol == known));
            match chosen.filter(|_| node.faults.current_era() >= Era::V1_30) {
                Some(chosen) => websocket(chosen, accept),
                None => return respond(StatusCode::FORBIDDEN, "text/plain", Full::default().boxed_unsync()),
            }
        }
    };
    let upgrading = hyper::upgrade::on(&mut request);
    let tasks: Tasks = node.tasks.clone();
    tasks.spawn(async move {
        let Ok(upgraded) = upgrading.await else { return };
        let served = async {
            match is_spdy {
                true => exec::over_spdy(TokioIo::new(upgraded), node.clone(), sandbox, asked).await,
                false => exec::over_channels(TokioIo::new(upgraded), node.clone(), sandbox, asked).await,
            }
        };
        tokio::select! {
            () = served => {}
            () = node.faults.upgrades_are_dropped() => {}
        }
    });
    response
}
