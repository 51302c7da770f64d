//! An embedded Kubernetes API server: as much of it as adit and kubectl need.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::{Node, objects::type_of, streams, table::table};
use crate::wire::websocket::accept_key;

type Body = UnsyncBoxBody<Bytes, Infallible>;

const PORT_FORWARD: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, tls: Arc<rustls::ServerConfig>, node: Arc<Node>, token: String) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        while connections.try_join_next().is_some() {}
        let (acceptor, node, token) = (TlsAcceptor::from(tls.clone()), node.clone(), token.clone());
        connections.spawn(async move {
            let Ok(Ok(stream)) = timeout(Duration::from_secs(10), acceptor.accept(stream)).await else { return };
            let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let service = service_fn(move |request| {
                let (node, token) = (node.clone(), token.clone());
                async move { Ok::<_, Infallible>(answer(request, node, &token).await) }
            });
            // The client went away.
            let _ = match is_h2 {
                true => http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await,
                false => http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await,
            };
        });
    }
}

async fn answer(request: Request<Incoming>, node: Arc<Node>, token: &str) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let authorization =
        request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let user = match authorization.strip_prefix("Bearer ") {
        Some(given) if given == token => "demo",
        Some("nobody") => "nobody",
        _ => return status(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized"),
    };
    if let Some(code) = node.faults.status_for(&path).and_then(|code| StatusCode::from_u16(code).ok()) {
        return status(code, code.canonical_reason().unwrap_or("Unknown"), "the demo was told to answer so");
    }
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["version"] => {
            return ok(&json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2", "platform": "linux/amd64"}));
        }
        ["api"] => return ok(&json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["apis"] => return ok(&groups()),
        ["api", "v1"] => return ok(&resources("v1")),
        ["apis", "discovery.k8s.io", "v1"] => return ok(&resources("discovery.k8s.io/v1")),
        ["readyz" | "healthz" | "livez"] => return ok(&json!("ok")),
        _ => {}
    }
    let Some(resource) = Resource::of(&parts) else {
        return status(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource");
    };
    if user == "nobody" {
        return status(
            StatusCode::FORBIDDEN,
            "Forbidden",
            &resource.forbidden(request.method(), user, request.uri().query()),
        );
    }
    match (request.method(), resource.name, resource.sub) {
        (&Method::GET, None, None) if query(&request, "watch").is_some_and(|value| value == "true" || value == "1") => {
            watch(&resource, &request, &node)
        }
        (&Method::GET, None, None) => list(&resource, &request, &node),
        (&Method::GET, Some(name), None) => match node.world.get(resource.kind, resource.namespace.unwrap_or(""), name)
        {
            Some(object) if wants_table(request.headers()) => ok(&table(resource.kind, &[object])),
            Some(object) => ok(&object),
            None => status(StatusCode::NOT_FOUND, "NotFound", &format!("{} \"{name}\" not found", resource.kind)),
        },
        (&Method::DELETE, Some(name), None) if resource.kind == "pods" => {
            let namespace = resource.namespace.unwrap_or("");
            match node.world.get("pods", namespace, name) {
                Some(pod) => {
                    node.world.delete_pod(namespace, name, Some(&format!("{name}r")));
                    ok(&pod)
                }
                None => status(StatusCode::NOT_FOUND, "NotFound", &format!("pods \"{name}\" not found")),
            }
        }
        (&Method::GET, Some(name), Some("log")) => text(format!("{name}: there is nothing to log in a demo\n")),
        (_, Some(name), Some("portforward")) => {
            port_forward(name.to_owned(), resource.namespace.unwrap_or("").to_owned(), request, node)
        }
        (_, Some(name), Some("exec")) => exec(name.to_owned(), request),
        _ => status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "the demo does not do that"),
    }
}

/// What a path of the API names.
struct Resource<'a> {
    kind: &'static str,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    sub: Option<&'a str>,
}

impl<'a> Resource<'a> {
    fn of(parts: &[&'a str]) -> Option<Self> {
        let rest = match parts {
            ["api", "v1", rest @ ..] | ["apis", "discovery.k8s.io", "v1", rest @ ..] => rest,
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            rest => (None, rest),
        };
        let kind =
            ["namespaces", "services", "pods", "endpointslices"].into_iter().find(|kind| Some(kind) == rest.first())?;
        Some(Self { kind, namespace, name: rest.get(1).copied(), sub: rest.get(2).copied() })
    }

    fn forbidden(&self, method: &Method, user: &str, query: Option<&str>) -> String {
        let verb = match (method, self.name) {
            (&Method::POST, _) => "create",
            (&Method::DELETE, _) => "delete",
            (_, Some(_)) => "get",
            _ if query.is_some_and(|query| query.contains("watch=")) => "watch",
            _ => "list",
        };
        let resource = self.sub.map_or(self.kind.to_owned(), |sub| format!("{}/{sub}", self.kind));
        let group = if self.kind == "endpointslices" { "discovery.k8s.io" } else { "" };
        let place = self
            .namespace
            .map_or("at the cluster scope".to_owned(), |namespace| format!("in the namespace \"{namespace}\""));
        let name = self.name.map_or(String::new(), |name| format!(" \"{name}\""));
        format!(
            "{}{name} is forbidden: User \"{user}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {place}",
            self.kind
        )
    }
}

fn list(resource: &Resource<'_>, request: &Request<Incoming>, node: &Node) -> Response<Body> {
    let objects: Vec<Value> = node
        .world
        .list(resource.kind, resource.namespace)
        .into_iter()
        .filter(|object| selected(object, request))
        .collect();
    if wants_table(request.headers()) {
        return ok(&table(resource.kind, &objects));
    }
    let (kind, api) = type_of(resource.kind);
    ok(
        &json!({"kind": format!("{kind}List"), "apiVersion": api, "metadata": {"resourceVersion": node.world.version().to_string()}, "items": objects}),
    )
}

fn watch(resource: &Resource<'_>, request: &Request<Incoming>, node: &Node) -> Response<Body> {
    let (kind, namespace) = (resource.kind, resource.namespace.map(str::to_owned));
    let labels = query(request, "labelSelector");
    // Without a version to start from, a watch begins with what there is.
    let first: Vec<(&'static str, Value)> = match query(request, "resourceVersion").as_deref() {
        None | Some("" | "0") => {
            node.world.list(kind, namespace.as_deref()).into_iter().map(|object| ("ADDED", object)).collect()
        }
        Some(_) => Vec::new(),
    };
    let news = node.world.watch();
    let later = futures::stream::unfold(news, |mut news| async move {
        news.recv().await.ok().map(|(kind, event, object)| ((kind, event, object), news))
    });
    let events =
        futures::stream::iter(first.into_iter().map(move |(event, object)| (kind, event, object))).chain(later);
    let lines = events.filter_map(move |(of, event, object)| {
        let is_ours = of == kind
            && namespace.as_ref().is_none_or(|namespace| object["metadata"]["namespace"] == namespace.as_str())
            && labels.as_ref().is_none_or(|labels| has_labels(&object, labels));
        let line =
            is_ours.then(|| Ok(Frame::data(Bytes::from(format!("{}\n", json!({"type": event, "object": object}))))));
        async move { line }
    });
    respond(StatusCode::OK, "application/json", StreamBody::new(lines).boxed_unsync())
}

fn selected(object: &Value, request: &Request<Incoming>) -> bool {
    let fields = query(request, "fieldSelector");
    let has_fields = fields.as_ref().is_none_or(|fields| {
        fields.split(',').all(|term| match term.split_once('=') {
            Some((path, value)) => {
                let found = path.split('.').fold(object, |object, key| &object[key]);
                found.as_str().unwrap_or_default() == value.trim_start_matches('=')
            }
            None => true,
        })
    });
    has_fields && query(request, "labelSelector").is_none_or(|labels| has_labels(object, &labels))
}

fn has_labels(object: &Value, selector: &str) -> bool {
    selector.split(',').filter(|term| !term.is_empty()).all(|term| match term.split_once('=') {
        Some((key, value)) => object["metadata"]["labels"][key] == value.trim_start_matches('='),
        None => !object["metadata"]["labels"][term].is_null(),
    })
}

fn query<B>(request: &Request<B>, name: &str) -> Option<String> {
    queries(request, name).into_iter().next()
}

fn queries<B>(request: &Request<B>, name: &str) -> Vec<String> {
    let decode =
        |text: &str| percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| decode(value)).collect()
}

fn wants_table(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("as=Table"))
}

/// Upgrades to SPDY, raw or in a WebSocket, and serves port-forwards.
fn port_forward(pod: String, namespace: String, mut request: Request<Incoming>, node: Arc<Node>) -> Response<Body> {
    if node.world.get("pods", &namespace, &pod).is_none() {
        return status(StatusCode::NOT_FOUND, "NotFound", &format!("pods \"{pod}\" not found"));
    }
    let header_value = |request: &Request<Incoming>, name: &str| {
        request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let protocol = header_value(&request, "upgrade").unwrap_or_default().to_ascii_lowercase();
    let mut response = Response::new(Full::default().boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    let is_tunnel = match protocol.as_str() {
        "spdy/3.1" if request.method() == Method::POST || request.method() == Method::GET => {
            headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            headers.insert("x-stream-protocol-version", HeaderValue::from_static(PORT_FORWARD));
            false
        }
        "websocket" if request.method() != Method::GET => {
            return status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "a WebSocket is opened by GET");
        }
        "websocket" => {
            let offered = header_value(&request, "sec-websocket-protocol").unwrap_or_default();
            let is_offered = offered.split(',').any(|protocol| protocol.trim() == TUNNEL);
            let accept = header_value(&request, "sec-websocket-key")
                .map(|key| accept_key(&key))
                .and_then(|accept| HeaderValue::from_str(&accept).ok());
            let Some(accept) = accept.filter(|_| is_offered && node.faults.has_tunnel()) else {
                return status(StatusCode::BAD_REQUEST, "BadRequest", "you must specify at least 1 port");
            };
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert("sec-websocket-accept", accept);
            headers.insert("sec-websocket-protocol", HeaderValue::from_static(TUNNEL));
            true
        }
        _ => return status(StatusCode::BAD_REQUEST, "BadRequest", "Upgrade request required"),
    };
    node.faults.count_upgrade();
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrading.await else { return };
        let upgraded = TokioIo::new(upgraded);
        if is_tunnel {
            let (near, far) = tokio::io::duplex(64 * 1024);
            tokio::join!(streams::unwrap_websocket(upgraded, near), streams::port_forward(far, node, namespace, pod));
        } else {
            streams::port_forward(upgraded, node, namespace, pod).await;
        }
    });
    response
}

fn exec(pod: String, mut request: Request<Incoming>) -> Response<Body> {
    let header_value =
        |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let offered = header_value("sec-websocket-protocol").unwrap_or_default();
    let chosen = ["v5.channel.k8s.io", "v4.channel.k8s.io"]
        .into_iter()
        .find(|known| offered.split(',').any(|protocol| protocol.trim() == *known));
    let accept = header_value("sec-websocket-key")
        .map(|key| accept_key(&key))
        .and_then(|accept| HeaderValue::from_str(&accept).ok());
    let (Some(chosen), Some(accept)) = (chosen, accept) else {
        return status(StatusCode::BAD_REQUEST, "BadRequest", "the demo serves exec over WebSocket only");
    };
    let command = queries(&request, "command");
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrading.await {
            streams::exec(TokioIo::new(upgraded), command, pod).await;
        }
    });
    let mut response = Response::new(Full::default().boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert("sec-websocket-accept", accept);
    headers.insert("sec-websocket-protocol", HeaderValue::from_static(chosen));
    response
}

fn groups() -> Value {
    let version = json!({"groupVersion": "discovery.k8s.io/v1", "version": "v1"});
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [{"name": "discovery.k8s.io", "versions": [version], "preferredVersion": version}]})
}

fn resources(group: &str) -> Value {
    let resource = |name: &str, kind: &str, short: &[&str], namespaced: bool| json!({"name": name, "singularName": name.trim_end_matches('s'), "namespaced": namespaced, "kind": kind, "verbs": ["get", "list", "watch", "delete"], "shortNames": short});
    let list = match group {
        "v1" => vec![
            resource("namespaces", "Namespace", &["ns"], false),
            resource("services", "Service", &["svc"], true),
            resource("pods", "Pod", &["po"], true),
            json!({"name": "pods/exec", "singularName": "", "namespaced": true, "kind": "PodExecOptions", "verbs": ["create", "get"]}),
            json!({"name": "pods/log", "singularName": "", "namespaced": true, "kind": "Pod", "verbs": ["get"]}),
            json!({"name": "pods/portforward", "singularName": "", "namespaced": true, "kind": "PodPortForwardOptions", "verbs": ["create", "get"]}),
        ],
        _ => vec![resource("endpointslices", "EndpointSlice", &[], true)],
    };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": list})
}

fn status(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code.as_u16()});
    respond(code, "application/json", Full::new(Bytes::from(body.to_string())).boxed_unsync())
}

fn ok(value: &Value) -> Response<Body> {
    respond(StatusCode::OK, "application/json", Full::new(Bytes::from(value.to_string())).boxed_unsync())
}

fn text(text: String) -> Response<Body> {
    respond(StatusCode::OK, "text/plain", Full::new(Bytes::from(text)).boxed_unsync())
}

fn respond(code: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
