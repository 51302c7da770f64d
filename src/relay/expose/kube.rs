//! API calls of a takeover. Every call has a deadline, and every change a precondition.

use std::{fmt, time::Duration};

use futures::{Stream, StreamExt, future};
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::printable::printable;

/// Deadline of one call, including its answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// Time for the answer to a [`Pulse`], and its interval.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
const BEAT: Duration = Duration::from_secs(1);

/// Maximum number of objects per answer.
const PAGE: u32 = 500;

/// Duration of one watch, in seconds.
const WATCH: u32 = 290;

/// Kind of an object that a takeover reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Service,
    EndpointSlice,
    Endpoints,
    Lease,
    Event,
    Pod,
    TokenReview,
    SubjectAccessReview,
}

impl Kind {
    fn group(self) -> &'static str {
        match self {
            Self::Service | Self::Endpoints | Self::Event | Self::Pod => "/api/v1",
            Self::EndpointSlice => "/apis/discovery.k8s.io/v1",
            Self::Lease => "/apis/coordination.k8s.io/v1",
            Self::TokenReview => "/apis/authentication.k8s.io/v1",
            Self::SubjectAccessReview => "/apis/authorization.k8s.io/v1",
        }
    }

    /// Returns the plural as in paths and Roles.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::Endpoints => "endpoints",
            Self::Lease => "leases",
            Self::Event => "events",
            Self::Pod => "pods",
            Self::TokenReview => "tokenreviews",
            Self::SubjectAccessReview => "subjectaccessreviews",
        }
    }

    fn path(self, namespace: Option<&str>, name: Option<&str>) -> String {
        // Reviews are not namespaced.
        let namespace = namespace.filter(|namespace| !namespace.is_empty());
        let namespace = namespace.map_or(String::new(), |namespace| format!("/namespaces/{namespace}"));
        let name = name.map_or(String::new(), |name| format!("/{name}"));
        format!("{}{namespace}/{}{name}", self.group(), self.plural())
    }
}

/// Permissions for the calls below: API group, resource, verbs. Events, watches and pods are optional. Without them there
/// are no Events, changes are noticed later, and a dead relay is replaced only after its Lease has expired.
pub const PERMISSIONS: [(&str, &str, &[&str]); 6] = [
    ("", "services", &["get", "list", "watch", "create", "patch", "delete"]),
    ("discovery.k8s.io", "endpointslices", &["list", "watch", "create", "patch", "delete"]),
    ("", "endpoints", &["get", "patch"]),
    ("coordination.k8s.io", "leases", &["get", "list", "create", "patch", "delete"]),
    ("", "events", &["create"]),
    ("", "pods", &["get"]),
];

/// An API call: `patch services shop/web`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    verb: &'static str,
    kind: Kind,
    /// Empty: all.
    namespace: String,
    /// Empty: all.
    name: String,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.kind.plural())?;
        match (self.namespace.as_str(), self.name.as_str()) {
            ("", _) => Ok(()),
            (namespace, "") => write!(f, " in namespace {namespace}"),
            (namespace, name) => write!(f, " {namespace}/{name}"),
        }
    }
}

/// Reasons why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KubeError {
    /// The object has changed since it was read, or already exists.
    #[error("{0}: the object was changed by somebody else at the same time")]
    Conflict(Call),
    /// A `create` in a namespace that does not exist, or a `patch` of a deleted object.
    #[error("{0}: not found")]
    NotFound(Call),
    #[error("no permission to {} {}{}", .0.verb, .0.kind.plural(), within(.0))]
    Forbidden(Call),
    #[error("the API server refused to {call} ({code}): {message}")]
    Refused { call: Call, code: u16, message: String },
    /// Status 429 or 5xx.
    #[error("the API server answered {code} to {call}")]
    Unavailable { call: Call, code: u16 },
    #[error("the API server did not answer within {seconds} s to {0}", seconds = DEADLINE.as_secs())]
    Silent(Call),
    #[error("the connection to the API server broke during {0}")]
    Lost(Call),
}

fn within(call: &Call) -> String {
    if call.namespace.is_empty() { String::new() } else { format!(" in namespace {}", call.namespace) }
}

impl KubeError {
    /// Returns whether a retry of the call may succeed.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Conflict(_) | Self::Unavailable { .. } | Self::Silent(_) | Self::Lost(_))
    }

    /// Returns whether the change may have been made, or may still be made.
    pub fn is_in_doubt(&self) -> bool {
        match self {
            Self::Unavailable { call, code } => call.is_write() && *code >= 500,
            Self::Silent(call) | Self::Lost(call) => call.is_write(),
            _ => false,
        }
    }
}

impl Call {
    fn is_write(&self) -> bool {
        !matches!(self.verb, "get" | "list" | "watch")
    }
}

/// Whether the API server answers, for callers that ask often: it is asked once a second.
#[derive(Default)]
pub struct Pulse(tokio::sync::Mutex<Beats>);

#[derive(Default)]
struct Beats {
    asked: Option<Instant>,
    /// When it last did not answer.
    missed: Option<Instant>,
}

impl Pulse {
    /// Returns whether the API server answers, and has done so for `long`, as far as anybody has asked.
    pub async fn is_steady(&self, kube: &Kube, long: Duration) -> bool {
        // Callers that come meanwhile wait for the same answer.
        let mut beats = self.0.lock().await;
        if beats.asked.is_none_or(|asked| asked.elapsed() >= BEAT) {
            let answers = kube.answers().await;
            let now = Instant::now();
            beats.asked = Some(now);
            beats.missed = if answers { beats.missed } else { Some(now) };
        }
        beats.missed.is_none_or(|missed| missed.elapsed() >= long)
    }
}

/// Client of the API server.
#[derive(Clone)]
pub struct Kube {
    client: Client,
}

impl Kube {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Returns whether the API server answers in time, whatever the answer.
    async fn answers(&self) -> bool {
        let asked = timeout(ANSWERS_WITHIN, self.client.apiserver_version()).await;
        matches!(asked, Ok(Ok(_) | Err(kube::Error::Api(_))))
    }

    /// Returns an object. `None`: it does not exist.
    ///
    /// # Errors
    /// The API server refuses, or cannot be reached.
    pub async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Value>, KubeError> {
        let call = Call { verb: "get", kind, namespace: namespace.to_owned(), name: name.to_owned() };
        match self.ask(call, Method::GET, &kind.path(Some(namespace), Some(name)), None).await {
            Err(KubeError::NotFound(_)) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Lists the objects with these labels, in one namespace or in all.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn list(&self, kind: Kind, namespace: Option<&str>, labels: &str) -> Result<Vec<Value>, KubeError> {
        let (mut objects, mut token) = (Vec::new(), String::new());
        loop {
            let call =
                Call { verb: "list", kind, namespace: namespace.unwrap_or_default().to_owned(), name: String::new() };
            let path = format!(
                "{}?labelSelector={}&limit={PAGE}&continue={}",
                kind.path(namespace, None),
                encoded(labels),
                encoded(&token)
            );
            let mut page = self.ask(call, Method::GET, &path, None).await?;
            if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
                objects.extend(items);
            }
            token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
            if token.is_empty() {
                return Ok(objects);
            }
        }
    }

    pub async fn create(&self, kind: Kind, namespace: &str, object: &Value) -> Result<Value, KubeError> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let call = Call { verb: "create", kind, namespace: namespace.to_owned(), name };
        let path = format!("{}?fieldManager=adit", kind.path(Some(namespace), None));
        self.ask(call, Method::POST, &path, Some(("application/json", object))).await
    }

    /// Applies a merge patch (RFC 7386) to an object, if it has not changed since it was read.
    ///
    /// # Errors
    /// The object has changed or is gone, or as [`get`](Self::get).
    pub async fn patch(&self, kind: Kind, read: &Value, mut patch: Value) -> Result<Value, KubeError> {
        let (namespace, name) = (text(&read["metadata"]["namespace"]), text(&read["metadata"]["name"]));
        patch["metadata"]["resourceVersion"] = read["metadata"]["resourceVersion"].clone();
        patch["metadata"]["uid"] = read["metadata"]["uid"].clone();
        let call = Call { verb: "patch", kind, namespace: namespace.to_owned(), name: name.to_owned() };
        let path = format!("{}?fieldManager=adit", kind.path(Some(namespace), Some(name)));
        self.ask(call, Method::PATCH, &path, Some(("application/merge-patch+json", &patch))).await
    }

    /// Deletes an object, if it has not changed since it was read. Succeeds if it does not exist any more.
    ///
    /// # Errors
    /// The object has changed, or as [`get`](Self::get).
    pub async fn delete(&self, kind: Kind, read: &Value) -> Result<(), KubeError> {
        let (namespace, name) = (text(&read["metadata"]["namespace"]), text(&read["metadata"]["name"]));
        let call = Call { verb: "delete", kind, namespace: namespace.to_owned(), name: name.to_owned() };
        let preconditions =
            json!({"uid": read["metadata"]["uid"], "resourceVersion": read["metadata"]["resourceVersion"]});
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions});
        let path = kind.path(Some(namespace), Some(name));
        match self.ask(call, Method::DELETE, &path, Some(("application/json", &options))).await {
            Ok(_) | Err(KubeError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Yields an item for each change of a selected object, until the watch ends: the API server ends it, or its network is gone.
    ///
    /// # Errors
    /// The watch does not begin.
    pub async fn changes(
        &self,
        kind: Kind,
        namespace: &str,
        selector: &str,
    ) -> Result<impl Stream<Item = ()> + Send + Unpin + use<>, KubeError> {
        let call = Call { verb: "watch", kind, namespace: namespace.to_owned(), name: String::new() };
        let path = format!("{}?watch=true&timeoutSeconds={WATCH}&{selector}", kind.path(Some(namespace), None));
        let request = Request::get(path).body(Body::empty()).map_err(|_| KubeError::Lost(call.clone()))?;
        let opened = timeout(DEADLINE, self.client.send(request)).await;
        let answer = opened.map_err(|_| KubeError::Silent(call.clone()))?.map_err(|error| why(call.clone(), error))?;
        match answer.status() {
            StatusCode::FORBIDDEN => Err(KubeError::Forbidden(call)),
            status if !status.is_success() => Err(KubeError::Unavailable { call, code: status.as_u16() }),
            _ => {
                let chunks = answer.into_body().into_data_stream();
                let over = sleep(Duration::from_secs(u64::from(WATCH)) + 2 * DEADLINE);
                Ok(chunks.take_while(|chunk| future::ready(chunk.is_ok())).map(|_| ()).take_until(over).boxed())
            }
        }
    }

    async fn ask(
        &self,
        call: Call,
        method: Method,
        path: &str,
        body: Option<(&'static str, &Value)>,
    ) -> Result<Value, KubeError> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some((kind, _)) = body {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let body = body.map_or_else(Vec::new, |(_, body)| body.to_string().into_bytes());
        let request = request.body(body).map_err(|_| KubeError::Lost(call.clone()))?;
        match timeout(DEADLINE, self.client.request::<Value>(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(why(call, error)),
            Err(_) => Err(KubeError::Silent(call)),
        }
    }
}

fn why(call: Call, error: kube::Error) -> KubeError {
    let kube::Error::Api(status) = error else {
        tracing::debug!(%call, error = crate::telemetry::reasons(&error), "relay: no answer of the API server");
        return KubeError::Lost(call);
    };
    match StatusCode::from_u16(status.code) {
        Ok(StatusCode::NOT_FOUND) => KubeError::NotFound(call),
        Ok(StatusCode::CONFLICT) => KubeError::Conflict(call),
        Ok(StatusCode::FORBIDDEN) => KubeError::Forbidden(call),
        Ok(code) if code == StatusCode::TOO_MANY_REQUESTS || code.is_server_error() => {
            KubeError::Unavailable { call, code: status.code }
        }
        _ => {
            let message = printable(&status.message);
            KubeError::Refused { call, code: status.code, message }
        }
    }
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_named_as_roles_name_it() {
        let call = Call { verb: "patch", kind: Kind::Service, namespace: "shop".into(), name: "web".into() };
        assert_eq!(call.to_string(), "patch services shop/web");
        let forbidden = KubeError::Forbidden(call.clone());
        assert_eq!(forbidden.to_string(), "no permission to patch services in namespace shop");
        assert!(!forbidden.is_temporary() && !forbidden.is_in_doubt());
        let read = Call { verb: "get", ..call.clone() };
        for (error, is_in_doubt) in [
            (KubeError::Silent(call.clone()), true),
            (KubeError::Lost(call.clone()), true),
            (KubeError::Unavailable { call: call.clone(), code: 500 }, true),
            (KubeError::Unavailable { call: call.clone(), code: 429 }, false),
            (KubeError::Conflict(call), false),
            (KubeError::Silent(read), false),
        ] {
            assert!(error.is_temporary(), "{error}");
            assert_eq!(error.is_in_doubt(), is_in_doubt, "{error}");
        }
    }

    #[tokio::test]
    async fn a_change_names_what_was_read_and_a_list_is_read_to_its_end() {
        use std::sync::{Arc, Mutex};
        let sent = Arc::<Mutex<Vec<Value>>>::default();
        let seen = sent.clone();
        let server = tower::service_fn(move |request: Request<Body>| {
            let seen = seen.clone();
            async move {
                let is_first = request.uri().query().is_some_and(|query| query.ends_with("&continue="));
                let body = request.into_body().collect().await.unwrap().to_bytes();
                seen.lock().unwrap().extend(serde_json::from_slice::<Value>(&body));
                let answer = json!({"metadata": {"continue": if is_first { "more" } else { "" }}, "items": [1]});
                Ok::<_, std::convert::Infallible>(http::Response::new(Body::from(answer.to_string().into_bytes())))
            }
        });
        let kube = Kube::new(Client::new(server, "shop"));
        assert_eq!(kube.list(Kind::Service, None, "adit/exposed").await.unwrap(), [1, 1]);
        let read = json!({"metadata": {"namespace": "shop", "name": "web", "uid": "u", "resourceVersion": "7"}});
        kube.patch(Kind::Service, &read, json!({})).await.unwrap();
        kube.delete(Kind::Service, &read).await.unwrap();
        let wanted = json!({"uid": "u", "resourceVersion": "7"});
        let sent = sent.lock().unwrap();
        assert_eq!((&sent[0]["metadata"], &sent[1]["preconditions"]), (&wanted, &wanted));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_without_a_network_ends_after_its_time() {
        let server = tower::service_fn(|_: Request<Body>| async {
            let silent = futures::stream::pending::<Result<hyper::body::Frame<bytes::Bytes>, std::io::Error>>();
            Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::StreamBody::new(silent)))
        });
        let kube = Kube::new(Client::new(server, "shop"));
        let mut changes = kube.changes(Kind::Service, "shop", "").await.unwrap();
        let over = timeout(Duration::from_secs(u64::from(WATCH) + 20), changes.next()).await;
        assert_eq!(over.expect("it ends"), None);
    }

    #[test]
    fn the_chart_gives_these_permissions() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/adit/templates/serviceaccount.yaml");
        let template = std::fs::read_to_string(path).unwrap();
        let of = |(group, resource, verbs): &(&str, &str, &[&str])| {
            let group = if group.is_empty() { "\"\"" } else { group };
            format!("  - apiGroups: [{group}]\n    resources: [{resource}]\n    verbs: [{}]\n", verbs.join(", "))
        };
        let rules: String = PERMISSIONS.iter().map(of).collect();
        assert!(template.contains(&format!("rules:\n{rules}")), "{path} does not have\n{rules}");
    }

    #[test]
    fn paths_are_those_of_the_api() {
        assert_eq!(Kind::Service.path(Some("shop"), Some("web")), "/api/v1/namespaces/shop/services/web");
        assert_eq!(Kind::Lease.path(None, None), "/apis/coordination.k8s.io/v1/leases");
    }
}
