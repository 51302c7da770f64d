//! One upgrade request over HTTP/1.1 on its own connection, and the answer to it.

use std::time::{Duration, SystemTime};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{self, HeaderName},
};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{select, time::timeout};

use super::choice::{self, Verdict};
use crate::{
    io::{BoxedIo, upgraded::connection_of},
    k8s::{
        client::{self, Cluster},
        websocket::random_bytes,
    },
    printable::printable,
    wire::{http1::MOST_HEADERS, websocket::accept_key},
};

/// Maximum length of a refusal's body to read for its message, and the timeout for each piece of it.
const LONGEST_REFUSAL: usize = 16 * 1024;
const REFUSAL_PAUSE: Duration = Duration::from_millis(500);

/// Maximum Retry-After. After that, the next request tries again.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

pub(super) const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// An upgrade request, and the expected answer.
pub(super) struct Asked {
    request: Request<Empty<Bytes>>,
    protocol: HeaderName,
    /// Expected `Sec-WebSocket-Accept`.
    accept: Option<String>,
}

/// Answer to an upgrade request.
pub(super) enum Answer {
    Switched {
        /// Protocol that the server has chosen.
        protocol: String,
        io: BoxedIo,
    },
    Refused(Refusal),
}

/// An answer other than the requested upgrade.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: u16,
    pub message: String,
    /// Pause that the server asks for.
    pub retry_after: Option<Duration>,
    /// Whether the body is a Status object.
    is_status: bool,
    /// Whether there is an audit id. API servers give each request one.
    has_audit_id: bool,
    /// Program in the header Server. API servers send no such header.
    pub server: Option<String>,
}

impl Asked {
    /// Returns a request for SPDY/3.1 with a stream protocol.
    pub fn spdy(cluster: &Cluster, path: &str, protocol: &'static str, headers: &HeaderMap) -> Self {
        let mut request = Self::request(cluster, Method::POST, path, headers);
        let sent = request.headers_mut();
        sent.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        sent.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
        Self { request, protocol: STREAM_PROTOCOL, accept: None }
    }

    /// Returns a request for a WebSocket with one of these subprotocols.
    pub fn websocket(cluster: &Cluster, path: &str, protocols: &'static str, headers: &HeaderMap) -> Self {
        let mut request = Self::request(cluster, Method::GET, path, headers);
        let sent = request.headers_mut();
        let key = STANDARD.encode(random_bytes::<16>());
        sent.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        sent.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        sent.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols));
        sent.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::try_from(&key).expect("base64 is ASCII"));
        Self { request, protocol: header::SEC_WEBSOCKET_PROTOCOL, accept: Some(accept_key(&key)) }
    }

    fn request(cluster: &Cluster, method: Method, path: &str, headers: &HeaderMap) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap_or_default();
        *request.headers_mut() = headers.clone();
        let authority = cluster.server.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let sent = request.headers_mut();
        sent.insert(header::HOST, HeaderValue::from_str(host).unwrap_or(HeaderValue::from_static("")));
        sent.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        sent.insert(header::USER_AGENT, HeaderValue::from_static(concat!("adit/", env!("CARGO_PKG_VERSION"))));
        request
    }

    /// Returns the protocol that an answer switches to. `None`: the answer is not the requested upgrade.
    fn switched(&self, response: &Response<Incoming>) -> Option<String> {
        let value = |name: &HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
        let accepted = self.accept.is_none() || value(&header::SEC_WEBSOCKET_ACCEPT) == self.accept.as_deref();
        let is_switched = response.status() == StatusCode::SWITCHING_PROTOCOLS && accepted;
        value(&self.protocol).filter(|_| is_switched).map(|protocol| protocol.trim().to_owned())
    }

    /// Sends the request and waits for the answer. Skips interim answers.
    ///
    /// # Errors
    /// Fails if the connection ends before an answer, or if the answer is not HTTP.
    pub async fn send(self, io: BoxedIo) -> hyper::Result<Answer> {
        let mut builder = http1::Builder::new();
        let builder = builder.title_case_headers(true).max_headers(MOST_HEADERS);
        let (mut sender, connection) = builder.handshake(TokioIo::new(io)).await?;
        // The connection must be polled for bytes to arrive, and may end before its answer is processed.
        let connection = connection.with_upgrades().fuse();
        tokio::pin!(connection);
        let request = self.request.clone();
        let sending = sender.send_request(request);
        tokio::pin!(sending);
        let mut response = loop {
            select! {
                response = &mut sending => break response?,
                ended = &mut connection => ended?,
            }
        };
        let Some(protocol) = self.switched(&response) else {
            let reading = Refusal::read(response);
            tokio::pin!(reading);
            loop {
                select! {
                    refusal = &mut reading => return Ok(Answer::Refused(refusal)),
                    _ = &mut connection => {}
                }
            }
        };
        let upgrading = hyper::upgrade::on(&mut response);
        tokio::pin!(upgrading);
        let upgraded = loop {
            select! {
                upgraded = &mut upgrading => break upgraded?,
                ended = &mut connection => ended?,
            }
        };
        Ok(Answer::Switched { protocol, io: connection_of::<BoxedIo>(upgraded) })
    }
}

impl Refusal {
    /// Reads the body and its message: that of a Status object, or the plain text.
    async fn read(response: Response<Incoming>) -> Self {
        let (head, mut body) = response.into_parts();
        let mut received = BytesMut::new();
        // A body without a length ends with the connection, or after a pause.
        while received.len() < LONGEST_REFUSAL
            && let Ok(Some(Ok(frame))) = timeout(REFUSAL_PAUSE, body.frame()).await
        {
            received.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
        Self::of(head.status, &head.headers, &received, SystemTime::now())
    }

    fn of(status: StatusCode, headers: &HeaderMap, body: &[u8], now: SystemTime) -> Self {
        let object: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let message = match object["message"].as_str() {
            Some(message) => printable(message),
            None => printable(&String::from_utf8_lossy(body)).chars().take(300).collect(),
        };
        let retry_after = headers.get(header::RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?, now));
        let server = headers.get(header::SERVER).map(|server| printable(&String::from_utf8_lossy(server.as_bytes())));
        let (is_status, has_audit_id) = (object["kind"] == "Status", headers.contains_key("audit-id"));
        Self { status: status.as_u16(), message, retry_after, is_status, has_audit_id, server }
    }

    /// Returns the refusal for an upgrade that was not requested.
    pub fn odd_switch(protocol: &str) -> Self {
        let message = format!("switched to {:?}, which was not asked for", printable(protocol));
        Self { status: StatusCode::SWITCHING_PROTOCOLS.as_u16(), message, ..Self::default() }
    }

    /// Returns whether the user lacks a permission.
    pub fn is_denial(&self) -> bool {
        self.status == 403 && !self.is_page() && self.message.contains("User \"")
    }

    /// Returns whether an admission policy denies the request.
    pub fn is_of_policy(&self) -> bool {
        self.is_status && client::is_of_policy(&self.message)
    }

    /// Returns whether the answer is from an API server or a kubelet, about a pod or a container. A virtual node without
    /// such a path sends the 404 of its web server, and the page of a gateway may have any word in it.
    pub fn is_of_kubernetes(&self) -> bool {
        let knows = !self.is_page() && ["pod", "container"].iter().any(|word| self.message.contains(word));
        knows || (self.is_status && !self.message.contains("could not find the requested resource"))
    }

    /// Returns whether the answer is a web page.
    fn is_page(&self) -> bool {
        self.message.starts_with('<')
    }

    /// Returns the answer as text: the status and its message.
    pub fn text(&self) -> String {
        match self.message.is_empty() {
            true => self.status.to_string(),
            false => format!("{}: {}", self.status, self.message),
        }
    }

    pub fn verdict(&self) -> Verdict {
        if self.is_of_policy() {
            return Verdict::Final;
        }
        let is_of_server = self.is_status || self.has_audit_id;
        let is_of_kubernetes = match self.status {
            // For an exec in a pod with several containers.
            400 => self.is_status && self.message.contains("a container name must be specified"),
            403 => is_of_server,
            404 => self.is_of_kubernetes(),
            // A Retry-After is a deliberate answer to this request.
            401 | 429 => is_of_server || self.retry_after.is_some(),
            // The plain text of a kubelet or a container runtime passes through the API server.
            _ => is_of_server || self.is_of_kubernetes() || self.retry_after.is_some(),
        };
        choice::verdict(self.status, is_of_kubernetes, self.is_denial())
    }
}

/// Parses a Retry-After header: seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let after = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(after.min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, body: &str) -> Refusal {
        let status = StatusCode::from_u16(status).unwrap();
        Refusal::of(status, &HeaderMap::new(), body.as_bytes(), SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn the_message_of_a_status_object_is_what_a_refusal_says() {
        let status = refusal(404, r#"{"kind":"Status","message":"pods \"a\" not found","code":404}"#);
        assert_eq!(status.message, "pods \"a\" not found");
        assert_eq!(refusal(502, "<b>bad\r\n\x1b[1mgateway").message, "<b>bad   [1mgateway");
        assert_eq!(refusal(502, &"x".repeat(1000)).message.len(), 300);
    }

    #[test]
    fn a_pod_that_is_gone_is_told_from_a_node_without_port_forwards() {
        for body in [
            "pod does not exist",
            "container not found (\"web\")",
            r#"{"kind":"Status","message":"pods \"web-1\" not found","reason":"NotFound","code":404}"#,
        ] {
            assert_eq!(refusal(404, body).verdict(), Verdict::Final, "{body}");
        }
        for body in [
            "404 request not found",
            "404 page not found",
            "Not Found",
            "",
            "<html><h1>404 Not Found</h1><hr>nginx</html>",
            r#"{"kind":"Status","message":"the server could not find the requested resource","code":404}"#,
        ] {
            assert_eq!(refusal(404, body).verdict(), Verdict::Refused, "{body}");
        }
    }

    #[test]
    fn only_kubernetes_speaks_for_every_transport() {
        let status = r#"{"kind":"Status","message":"Unauthorized","code":401}"#;
        for code in [401, 429, 500, 502, 503] {
            assert_eq!(refusal(code, status).verdict(), Verdict::Final, "{code}");
            assert_eq!(refusal(code, "<html>Bad Gateway</html>").verdict(), Verdict::Refused, "{code}");
            let busy = HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static("1"))]);
            let busy = Refusal::of(StatusCode::from_u16(code).unwrap(), &busy, b"", SystemTime::UNIX_EPOCH);
            assert_eq!(busy.verdict(), Verdict::Final, "{code}");
        }
    }

    #[test]
    fn a_policy_forbids_every_transport_and_a_gateway_only_one() {
        let denied = r#"{"kind": "Status", "message": "admission webhook \"no.test\" denied the request: not here"}"#;
        assert_eq!(refusal(403, denied).verdict(), Verdict::Final);
        assert_eq!(refusal(403, "<html>Forbidden for this pod</html>").verdict(), Verdict::Refused);
        let rbac = r#"{"kind": "Status", "message": "pods \"a\" is forbidden: User \"ana\" cannot get resource"}"#;
        assert_eq!(refusal(403, rbac).verdict(), Verdict::Denied);
    }

    #[test]
    fn a_policy_denies_with_any_status() {
        for (code, message) in [
            (400, "admission webhook \"no.test\" denied the request: not here"),
            (400, "admission webhook \"no.test\" denied the request without explanation"),
            (422, "pods \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: not here"),
            (403, "admission webhook \"no.test\" denied the request: User \"ana\" has no ticket"),
            (400, "a container name must be specified for pod a, choose one of: [b c]"),
        ] {
            let status = serde_json::json!({"kind": "Status", "message": message}).to_string();
            assert_eq!(refusal(code, &status).verdict(), Verdict::Final, "{message}");
            assert_eq!(refusal(code, &format!("<p>{message}")).verdict(), Verdict::Refused, "the page of a gateway");
        }
        let other = r#"{"kind": "Status", "message": "Upgrade request required"}"#;
        assert_eq!(refusal(400, other).verdict(), Verdict::Refused);
    }

    #[test]
    fn a_page_of_a_gateway_that_names_pods_and_containers_is_not_of_kubernetes() {
        for code in [401, 404, 429, 500, 502, 503] {
            let page = "<html><div class=\"container\">No pod is ready</div></html>";
            assert_eq!(refusal(code, page).verdict(), Verdict::Refused, "{code}");
        }
        assert_eq!(refusal(401, "a portal in front of these pods").verdict(), Verdict::Refused);
        assert_eq!(refusal(500, "container not found (\"web\")").verdict(), Verdict::Final, "a kubelet");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (value, wanted) in [
            ("1", Some(1)),
            (" 30 ", Some(30)),
            ("0", Some(0)),
            ("86400", Some(300)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(value, now).map(|after| after.as_secs()), wanted, "{value:?}");
        }
    }
}
