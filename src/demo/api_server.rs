//! An embedded Kubernetes API server, with the parts that adit and kubectl need.

mod collections;
mod writes;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use self::collections::{list, wants_table, watch};
use super::{
    Node, VERSION,
    access::{Tokens, User},
    answer::{Body, json_body, ok, plain, query, respond, status},
    faults::{Era, Mishap},
    kinds::{self, Kind},
    process::Process,
    table::table,
    upgrades::{execs, port_forwards},
};

/// Maximum bytes of a request body: a scale, a review, the options of a deletion.
const LONGEST_REQUEST: usize = 1 << 20;

/// Serves until the future is dropped.
pub async fn serve(listener: TcpListener, tls: Arc<rustls::ServerConfig>, node: Arc<Node>, tokens: Tokens) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (acceptor, node, tokens) = (TlsAcceptor::from(tls.clone()), node.clone(), tokens.clone());
        let tasks = node.tasks.child();
        let of_connection = tasks.clone();
        tasks.spawn(async move {
            let Ok(Ok(stream)) = timeout(Duration::from_secs(10), acceptor.accept(stream)).await else { return };
            let _open = Open::new(&node);
            let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let service = service_fn(move |request| {
                let (node, tokens) = (node.clone(), tokens.clone());
                async move {
                    let mut answer = answer(request, node.clone(), &tokens).await?;
                    if let Some(date) = node.faults.date().and_then(|date| HeaderValue::try_from(date).ok()) {
                        answer.headers_mut().insert(header::DATE, date);
                    }
                    Ok::<_, HangUp>(answer)
                }
            });
            // An error means that the client has gone.
            let _ = match is_h2 {
                true => http2::Builder::new(of_connection).serve_connection(TokioIo::new(stream), service).await,
                false => http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await,
            };
        });
    }
}

/// Guard that counts a connection until it ends or is upgraded.
struct Open(Arc<Node>);

impl Open {
    fn new(node: &Arc<Node>) -> Self {
        node.faults.count_connection();
        Self(node.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.faults.connection_ended();
    }
}

/// Error that makes hyper close the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the demo was told to hang up")]
struct HangUp;

async fn answer(request: Request<Incoming>, node: Arc<Node>, tokens: &Tokens) -> Result<Response<Body>, HangUp> {
    let path = request.uri().path().to_owned();
    node.faults.count_request(&path);
    let authorization =
        request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let user = tokens.user(authorization).or_else(|| node.faults.accepts(authorization).then_some(User::Demo));
    let Some(user) = user.filter(|_| !node.faults.refuses_tokens()) else {
        return Ok(status(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized"));
    };
    if let Some(delay) = node.faults.delay_for(&path) {
        sleep(delay).await;
    }
    if let Some(code) = node.faults.status_for(&path).and_then(|code| StatusCode::from_u16(code).ok()) {
        return Ok(status(code, code.canonical_reason().unwrap_or("Unknown"), "the demo was told to answer so"));
    }
    if request.headers().contains_key(header::UPGRADE) && node.faults.hangs_up() {
        return Err(HangUp);
    }
    match node.faults.mishap(request.method(), &path) {
        None => Ok(dispatch(&path, request, node, tokens, user).await),
        Some(Mishap::Answer(code)) => {
            let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Ok(status(code, code.canonical_reason().unwrap_or("Unknown"), "the demo was told to answer so"))
        }
        Some(Mishap::Hang) => std::future::pending().await,
        Some(Mishap::Lose) => {
            drop(dispatch(&path, request, node, tokens, user).await);
            Err(HangUp)
        }
        Some(Mishap::Late(delay)) => {
            // The client has sent the whole request, so it is performed even if the client leaves.
            let (head, sent) = whole(request).await;
            let tasks = node.tasks.clone();
            tasks.spawn(async move {
                sleep(delay).await;
                if let Some(resource) = Resource::of(&path_parts(&path)) {
                    drop(written(resource.verb_of(&head.method, false), &resource, &head, sent, &node, user));
                }
            });
            std::future::pending().await
        }
    }
}

async fn dispatch(
    path: &str,
    request: Request<Incoming>,
    node: Arc<Node>,
    tokens: &Tokens,
    user: User,
) -> Response<Body> {
    let parts = path_parts(path);
    if let Some(answer) = discovery(&parts) {
        return answer;
    }
    match parts.as_slice() {
        ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"] => may(request, &node, Some(user)).await,
        ["apis", "authorization.k8s.io", "v1", "subjectaccessreviews"] => may(request, &node, None).await,
        ["apis", "authentication.k8s.io", "v1", "tokenreviews"] => {
            let mut review = body(request).await;
            review["status"] = match tokens.user(&format!("Bearer {}", text(&review["spec"]["token"]))) {
                Some(user) => {
                    json!({"authenticated": true, "user": {"username": user.name(), "groups": ["system:authenticated"]}})
                }
                None => json!({"authenticated": false, "error": "the token is not known"}),
            };
            json_body(StatusCode::CREATED, &review)
        }
        ["apis", "authentication.k8s.io", "v1", "selfsubjectreviews"] => {
            let groups = ["system:authenticated"];
            json_body(
                StatusCode::CREATED,
                &json!({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1", "status": {"userInfo": {"username": user.name(), "groups": groups}}}),
            )
        }
        _ => match Resource::of(&parts) {
            Some(resource) => of_resource(&resource, request, node, user).await,
            None => status(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource"),
        },
    }
}

fn path_parts(path: &str) -> Vec<&str> {
    path.trim_matches('/').split('/').collect()
}

/// Performs a write, if the user may.
fn written(verb: &str, resource: &Resource<'_>, head: &Parts, sent: Value, node: &Node, user: User) -> Response<Body> {
    match user == User::Nobody || node.faults.forbids(verb, resource.kind.plural) {
        true => status(StatusCode::FORBIDDEN, "Forbidden", &resource.forbidden(verb, user)),
        false => writes::write(verb, resource, head, sent, node),
    }
}

async fn of_resource(
    resource: &Resource<'_>,
    request: Request<Incoming>,
    node: Arc<Node>,
    user: User,
) -> Response<Body> {
    let verb = resource.verb(&request);
    let name_with_sub = resource.name_with_sub();
    let is_forbidden = |verb: &str| user == User::Nobody || node.faults.forbids(verb, &name_with_sub);
    // Since Kubernetes 1.35, a WebSocket needs the verb `create` too (KEP-4006).
    let needs_create = resource.is_upgraded() && verb == "get" && node.faults.current_era() >= Era::V1_36;
    if is_forbidden(verb) || (needs_create && is_forbidden("create")) {
        let verb = if is_forbidden(verb) { verb } else { "create" };
        return status(StatusCode::FORBIDDEN, "Forbidden", &resource.forbidden(verb, user));
    }
    let namespace = resource.namespace.unwrap_or("");
    let found = resource.name.and_then(|name| node.world.get(resource.kind.plural, namespace, name));
    if let (Some(name), None) = (resource.name, &found) {
        let message = format!("{} \"{name}\" not found", resource.kind.qualified());
        return status(StatusCode::NOT_FOUND, "NotFound", &message);
    }
    match (verb, found, resource.sub) {
        ("watch", None, None) => watch(resource, &request, &node),
        ("list", None, None) => list(resource, &request, &node),
        ("get", Some(object), None) if wants_table(request.headers()) => ok(&table(resource.kind, [&*object], "")),
        ("get", Some(object), None) => ok(&object),
        ("delete", Some(pod), None) if resource.kind.plural == "pods" => delete_pod(&pod, request, &node).await,
        ("get", Some(pod), Some("log")) => log(&pod, &request, &node),
        (_, Some(pod), Some("portforward")) => match node.sandbox(namespace, text(&pod["metadata"]["name"])) {
            Some(sandbox) => port_forwards(sandbox, request, node),
            None => status(StatusCode::NOT_FOUND, "NotFound", "pods not found"),
        },
        (_, Some(pod), Some("exec")) => match node.sandbox(namespace, text(&pod["metadata"]["name"])) {
            Some(sandbox) => execs(sandbox, request, node),
            None => status(StatusCode::NOT_FOUND, "NotFound", "pods not found"),
        },
        (_, Some(object), Some("scale")) => scale(resource, &object, request, &node).await,
        ("patch" | "update", Some(object), None) if resource.kind.is_scaled() => {
            scale(resource, &object, request, &node).await
        }
        ("create" | "patch" | "update" | "delete", _, None) => {
            let (head, sent) = whole(request).await;
            written(verb, resource, &head, sent, &node, user)
        }
        _ => status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "the demo does not do that"),
    }
}

/// The resource that an API path names.
struct Resource<'a> {
    kind: &'static Kind,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    sub: Option<&'a str>,
}

impl<'a> Resource<'a> {
    fn of(parts: &[&'a str]) -> Option<Self> {
        let (group, rest) = match parts {
            ["api", "v1", rest @ ..] => ("", rest),
            ["apis", group, "v1", rest @ ..] => (*group, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            // `/api/v1/namespaces/NAME` is the namespace as an object.
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            rest => (None, rest),
        };
        let kind = kinds::find(group, rest.first()?)?;
        Some(Self { kind, namespace, name: rest.get(1).copied(), sub: rest.get(2).copied() })
    }

    fn verb(&self, request: &Request<Incoming>) -> &'static str {
        self.verb_of(request.method(), query(request, "watch").is_some_and(|value| value == "true" || value == "1"))
    }

    fn verb_of(&self, method: &Method, is_watch: bool) -> &'static str {
        match (method, self.name) {
            (&Method::POST, _) => "create",
            (&Method::DELETE, _) => "delete",
            (&Method::PATCH, _) => "patch",
            (&Method::PUT, _) => "update",
            (_, Some(_)) => "get",
            _ if is_watch => "watch",
            _ => "list",
        }
    }

    fn is_upgraded(&self) -> bool {
        matches!(self.sub, Some("portforward" | "exec"))
    }

    fn name_with_sub(&self) -> String {
        self.sub.map_or(self.kind.plural.to_owned(), |sub| format!("{}/{sub}", self.kind.plural))
    }

    fn forbidden(&self, verb: &str, user: User) -> String {
        let place = self
            .namespace
            .map_or("at the cluster scope".to_owned(), |namespace| format!("in the namespace \"{namespace}\""));
        let name = self.name.map_or(String::new(), |name| format!(" \"{name}\""));
        format!(
            "{}{name} is forbidden: User \"{}\" cannot {verb} resource \"{}\" in API group \"{}\" {place}",
            self.kind.qualified(),
            user.name(),
            self.name_with_sub(),
            self.kind.group
        )
    }
}

fn discovery(parts: &[&str]) -> Option<Response<Body>> {
    Some(match parts {
        ["version"] => ok(&json!({"major": "1", "minor": "36", "gitVersion": VERSION, "platform": "linux/amd64"})),
        ["api"] => ok(&json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["apis"] => {
            let group = |name: &&str| {
                let version = json!({"groupVersion": kinds::group_version(name), "version": "v1"});
                json!({"name": name, "versions": [version], "preferredVersion": version})
            };
            let groups: Vec<Value> = kinds::GROUPS.iter().map(group).collect();
            ok(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["api", "v1"] => ok(&resources("")),
        ["apis", group, "v1"] if kinds::GROUPS.contains(group) => ok(&resources(group)),
        ["readyz" | "healthz" | "livez"] => plain("ok".to_owned()),
        _ => return None,
    })
}

fn resources(group: &str) -> Value {
    let mut all = Vec::new();
    for kind in kinds::ALL.iter().filter(|kind| kind.group == group) {
        all.push(json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.is_namespaced, "kind": kind.name,
            "verbs": ["get", "list", "watch", "create", "delete", "patch", "update"], "shortNames": kind.short
        }));
        for (sub, sent) in kind.subresources {
            let name = format!("{}/{sub}", kind.plural);
            all.push(
                json!({"name": name, "singularName": "", "namespaced": true, "kind": sent, "verbs": ["create", "get"]}),
            );
        }
    }
    let question = |name: &str, kind: &str| json!({"name": name, "singularName": "", "namespaced": false, "kind": kind, "verbs": ["create"]});
    match group {
        "authorization.k8s.io" => all.push(question("selfsubjectaccessreviews", "SelfSubjectAccessReview")),
        "authentication.k8s.io" => all.push(question("selfsubjectreviews", "SelfSubjectReview")),
        _ => {}
    }
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": kinds::group_version(group), "resources": all})
}

/// Answers whether a user may do something (`kubectl auth can-i`). `None`: the user that the request names.
async fn may(request: Request<Incoming>, node: &Node, user: Option<User>) -> Response<Body> {
    let asked = body(request).await;
    let is_nobody = match user {
        Some(user) => user == User::Nobody,
        None => asked["spec"]["user"] != User::Demo.name(),
    };
    let attributes = &asked["spec"]["resourceAttributes"];
    let (resource, sub) = (text(&attributes["resource"]), text(&attributes["subresource"]));
    let name = if sub.is_empty() { resource.to_owned() } else { format!("{resource}/{sub}") };
    let allowed = !is_nobody && !node.faults.forbids(text(&attributes["verb"]), &name);
    let mut answer = asked;
    answer["status"] = json!({"allowed": allowed});
    json_body(StatusCode::CREATED, &answer)
}

async fn delete_pod(pod: &Value, request: Request<Incoming>, node: &Node) -> Response<Body> {
    let (namespace, name) = (text(&pod["metadata"]["namespace"]).to_owned(), text(&pod["metadata"]["name"]).to_owned());
    let from_query = query(&request, "gracePeriodSeconds").and_then(|seconds| seconds.parse::<u64>().ok());
    let seconds = body(request).await["gracePeriodSeconds"].as_u64().or(from_query);
    match node.world.terminate_pod(&namespace, &name, seconds.map(Duration::from_secs)) {
        Some(pod) => ok(&pod),
        None => status(StatusCode::NOT_FOUND, "NotFound", &format!("pods \"{name}\" not found")),
    }
}

/// Answers `kubectl scale`: returns or patches the number of replicas.
async fn scale(resource: &Resource<'_>, object: &Value, request: Request<Incoming>, node: &Node) -> Response<Body> {
    let (namespace, name) = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
    let is_scale = resource.sub.is_some();
    let mut object = object.clone();
    if request.method() != Method::GET {
        let wanted = body(request).await["spec"]["replicas"].as_u64();
        let Some(replicas) = wanted.filter(|replicas| *replicas <= 100) else {
            return status(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", "the demo changes spec.replicas, up to 100");
        };
        if let Some(changed) = node.world.scale(resource.kind.plural, namespace, name, replicas) {
            object = (*changed).clone();
        }
    }
    if !is_scale {
        return ok(&object);
    }
    let selector = object["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten();
    let selector: Vec<String> = selector.map(|(key, value)| format!("{key}={}", text(value))).collect();
    ok(&json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": object["metadata"],
        "spec": {"replicas": object["spec"]["replicas"]},
        "status": {"replicas": object["status"]["replicas"], "selector": selector.join(",")}
    }))
}

/// Returns the log of a container; with `follow=true`, later lines too.
fn log(pod: &Value, request: &Request<Incoming>, node: &Node) -> Response<Body> {
    let Some(process) = node.world.process(text(&pod["metadata"]["uid"])) else {
        return status(StatusCode::BAD_REQUEST, "BadRequest", "the container is waiting to start");
    };
    let (before, next) = process.lines(0);
    if query(request, "follow").as_deref() != Some("true") {
        return plain(before);
    }
    let later = futures::stream::unfold((process, next), |(process, next): (Process, usize)| async move {
        if !process.has_said_more(next).await {
            return None;
        }
        let (lines, next) = process.lines(next);
        Some((lines, (process, next)))
    });
    let lines = futures::stream::iter([before]).chain(later).map(|lines| Ok(Frame::data(Bytes::from(lines))));
    respond(StatusCode::OK, "text/plain", StreamBody::new(lines).boxed_unsync())
}

/// Returns the JSON body of a request. Null: it is not JSON.
async fn body(request: Request<Incoming>) -> Value {
    whole(request).await.1
}

/// Reads a request until its end. A body that is not JSON is null.
async fn whole(request: Request<Incoming>) -> (Parts, Value) {
    let (head, body) = request.into_parts();
    match Limited::new(body, LONGEST_REQUEST).collect().await {
        Ok(whole) => (head, serde_json::from_slice(&whole.to_bytes()).unwrap_or_default()),
        Err(_) => (head, Value::Null),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
