//! An error as an HTML page, as text, or as JSON: what happened, where, and what to do.

use std::fmt::Write as _;

use bytes::Bytes;
use h2::Reason;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, PROXY_AUTHENTICATE, RETRY_AFTER},
};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    config::shell::is_command,
    error_code::ErrorCode,
    html::escape,
    routing::RouteError,
    tunnel::{Blame, ClusterError, OpenError, StreamFault},
};

/// Header with the stable code of an error.
pub const ERROR_CODE: HeaderName = HeaderName::from_static("x-adit-error");

/// Header of the answer of a named pod that is not ready: the reason.
pub const NOT_READY: HeaderName = HeaderName::from_static("x-adit-not-ready");

/// Content-Security-Policy of the page: it has inline style, and loads nothing.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Interval of reloads in seconds, and Retry-After if the cluster names no time.
const RELOAD_AFTER: u16 = 2;

/// Host and path of a tunnel's view in the dashboard.
const TUNNEL_VIEW: &str = "adit.localhost/tunnel/";

/// The dashboard's colours, light and dark.
const STYLE: &str = ":root{color-scheme:light dark;--back:#fbfbfa;--card:#fff;--text:#1d2226;--dim:#5c656d;--line:#dfe2e4;--soft:#f0f2f3;--link:#0b5a8f}\
    @media(prefers-color-scheme:dark){:root{--back:#14171a;--card:#1b1f23;--text:#e4e7e9;--dim:#a0a9b0;--line:#31373c;--soft:#22272b;--link:#7dbdea}}\
    html{font:15px/1.5 system-ui,sans-serif;background:var(--back);color:var(--text)}body{box-sizing:border-box;width:min(44rem,100% - 2rem);margin:8vh auto;padding:1.25rem 1.5rem;background:var(--card);border:1px solid var(--line);border-radius:6px}\
    h1{font-size:1.3rem;line-height:1.3;margin:0 0 .75rem;overflow-wrap:anywhere}p{margin:.5rem 0;overflow-wrap:anywhere}a{color:var(--link)}\
    code{display:block;font:.9em ui-monospace,monospace;background:var(--soft);padding:.4em .6em;border-radius:4px;overflow-wrap:anywhere}\
    ul{padding-left:1.2rem}footer{margin-top:1.25rem;padding-top:.6rem;border-top:1px solid var(--line);color:var(--dim);font-size:.87em}";

/// The backend has reset a gRPC call: an extension of the page's response. A client of HTTP/2 gets the reset itself, because it
/// may know more about it: a CANCEL after its deadline means DEADLINE_EXCEEDED.
#[derive(Clone, Copy, Debug)]
pub struct BackendReset(pub Reason);

/// Error page that replaces a backend's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub status: StatusCode,
    pub code: ErrorCode,
    pub title: String,
    pub cause: Option<String>,
    pub hint: Option<String>,
    /// Links: text, and host with an optional path.
    pub links: Vec<(String, String)>,
    /// The page reloads by itself: a pod may become ready.
    pub reloads: bool,
    /// Seconds until the cluster accepts requests again. `None`: the cluster names no time.
    pub retry_after: Option<u16>,
    /// HTTP/2 error code with which the backend has reset the request.
    pub reset: Option<Reason>,
}

/// Form of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Html,
    Json,
    Text,
    /// Trailers alone, for gRPC calls of this content type.
    Grpc(&'static str),
}

impl Form {
    /// Returns the form that a client accepts.
    pub fn of(request: &HeaderMap) -> Self {
        let accepts = |kind: &str| {
            request.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|value| value.contains(kind))
        };
        match request.get(CONTENT_TYPE).map(HeaderValue::as_bytes) {
            Some(kind) if kind.starts_with(b"application/grpc-web-text") => {
                Self::Grpc("application/grpc-web-text+proto")
            }
            Some(kind) if kind.starts_with(b"application/grpc-web") => Self::Grpc("application/grpc-web+proto"),
            Some(kind) if kind.starts_with(b"application/grpc") => Self::Grpc("application/grpc"),
            _ if accepts("text/html") => Self::Html,
            _ if accepts("application/json") => Self::Json,
            _ => Self::Text,
        }
    }
}

impl Page {
    pub fn new(status: StatusCode, code: ErrorCode, title: impl Into<String>) -> Self {
        let title = title.into();
        Self {
            status,
            code,
            title,
            cause: None,
            hint: None,
            links: Vec::new(),
            reloads: false,
            retry_after: None,
            reset: None,
        }
    }

    /// Adds a link to the view of a tunnel in the dashboard.
    pub fn with_tunnel(mut self, id: &str) -> Self {
        let id = utf8_percent_encode(id, NON_ALPHANUMERIC);
        self.links.push(("its tunnel in the dashboard".to_owned(), format!("{TUNNEL_VIEW}{id}")));
        self
    }

    /// Removes the links to the dashboard.
    pub fn without_dashboard(mut self) -> Self {
        self.links.retain(|(_, host)| !host.starts_with(TUNNEL_VIEW));
        self
    }

    /// Removes the reload, which is a GET and would replace a form that was sent. Retry-After stays.
    pub fn without_reload(mut self) -> Self {
        if std::mem::take(&mut self.reloads) {
            self.retry_after.get_or_insert(RELOAD_AFTER);
        }
        self
    }

    /// Adds lines to the hint.
    pub fn with_hints(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.hint = self.hint.into_iter().chain(lines).reduce(|all, line| format!("{all}\n{line}"));
        self
    }

    /// Returns the page for a name without a target.
    pub fn of_route(error: &RouteError) -> Self {
        let status = match error {
            RouteError::Unknown { .. } => StatusCode::NOT_FOUND,
            RouteError::Malformed { .. } => StatusCode::NOT_FOUND,
            RouteError::DynamicDenied { .. } | RouteError::Elsewhere { .. } => StatusCode::FORBIDDEN,
            RouteError::NoContext { .. } | RouteError::NoNamespace { .. } => StatusCode::BAD_GATEWAY,
        };
        let links = match error {
            RouteError::Unknown { near, .. } => near.iter().map(|host| (host.clone(), host.clone())).collect(),
            _ => Vec::new(),
        };
        Self { hint: error.hint(), links, ..Self::new(status, error.code(), error.to_string()) }
    }

    /// Returns the page for a target that cannot be reached. `host`: the requested name, without port.
    pub fn of_open(error: &OpenError, host: &str) -> Self {
        let status = match (error.blame(), error) {
            (Blame::Asked, _) => StatusCode::NOT_FOUND,
            (_, OpenError::TimedOut { .. }) => StatusCode::GATEWAY_TIMEOUT,
            (_, OpenError::TooManyNew) => StatusCode::TOO_MANY_REQUESTS,
            (_, OpenError::Stopped | OpenError::SigningIn { .. }) => StatusCode::SERVICE_UNAVAILABLE,
            _ if error.code() == ErrorCode::NotReady => StatusCode::SERVICE_UNAVAILABLE,
            _ if error.code() == ErrorCode::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        // The links replace the port in the requested name, if it has one.
        let base =
            host.split_once('.').filter(|(first, _)| first.parse::<u16>().is_ok()).map_or(host, |(_, rest)| rest);
        // A port's name in the place of a pod's goes too.
        let base = match error {
            OpenError::Cluster(ClusterError::PortAsPod { name, .. }) => {
                base.strip_prefix(&**name).and_then(|rest| rest.strip_prefix('.')).unwrap_or(base)
            }
            _ => base,
        };
        let links = error.ports().iter().map(|port| (port.to_string(), format!("{}.{base}", port.number))).collect();
        Self {
            cause: error.cause(),
            hint: error.hint(),
            links,
            // The pod is still starting, or there is none yet.
            reloads: matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT),
            retry_after: error.retry_after().map(|after| u16::try_from(after.as_secs()).unwrap_or(u16::MAX)),
            ..Self::new(status, error.code(), error.to_string())
        }
    }

    /// Returns the page for a stream that broke before the pod had answered.
    pub fn of_stream(fault: &StreamFault, target: &str) -> Self {
        let code = match fault {
            StreamFault::Refused { .. } => ErrorCode::Refused,
            StreamFault::PodGone { .. } => ErrorCode::PodGone,
            StreamFault::Reset => ErrorCode::Reset,
            StreamFault::Lost { .. } => ErrorCode::Lost,
            StreamFault::Unavailable { .. } => ErrorCode::Unavailable,
            StreamFault::Jump { .. } | StreamFault::JumpBroke { .. } => ErrorCode::Jump,
            StreamFault::Other { .. } => ErrorCode::PortForward,
        };
        Self {
            cause: Some(fault.to_string()),
            hint: fault.hint(),
            ..Self::new(StatusCode::BAD_GATEWAY, code, format!("no answer from {target}"))
        }
    }

    /// Returns the response. `port`: of the listener, for links.
    pub fn into_response(self, form: Form, port: u16, tls: bool) -> Response<Bytes> {
        let (kind, body) = match form {
            Form::Grpc(kind) => return self.grpc(kind, port, tls),
            Form::Html => ("text/html; charset=utf-8", self.html(port, tls)),
            Form::Json => ("application/json", self.json(port, tls)),
            Form::Text => ("text/plain; charset=utf-8", self.text(port, tls)),
        };
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
        if self.status != StatusCode::OK {
            headers.insert(ERROR_CODE, HeaderValue::from_static(self.code.as_str()));
        }
        if self.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            headers.insert(PROXY_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"adit\""));
        }
        if let Some(after) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(after));
        } else if self.reloads || matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
        {
            headers.insert(RETRY_AFTER, HeaderValue::from(RELOAD_AFTER));
        }
        response
    }

    /// Returns trailers alone, as gRPC over HTTP/2 and gRPC-Web do for calls that fail at once.
    fn grpc(&self, kind: &'static str, port: u16, tls: bool) -> Response<Bytes> {
        // gRPC's mappings of HTTP/2 error codes and of HTTP statuses, with more specific ones where they exist.
        let status = match (self.reset, self.status) {
            (Some(Reason::REFUSED_STREAM), _) => "14",
            (Some(Reason::CANCEL), _) => "1",
            (Some(Reason::ENHANCE_YOUR_CALM), _) => "8",
            (Some(Reason::INADEQUATE_SECURITY), _) => "7",
            (Some(_), _) | (_, StatusCode::BAD_REQUEST) => "13",
            (_, StatusCode::FORBIDDEN) => "7",
            (_, StatusCode::NOT_FOUND) => "12",
            (_, StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT) => "4",
            (_, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE) => "8",
            _ => "14",
        };
        let message = self.text(port, tls);
        let message = utf8_percent_encode(message.trim_end(), NOT_IN_GRPC_MESSAGE).to_string();
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from_static(status));
        headers.insert(ERROR_CODE, HeaderValue::from_static(self.code.as_str()));
        if let Ok(message) = HeaderValue::from_str(&message) {
            headers.insert(HeaderName::from_static("grpc-message"), message);
        }
        if let Some(reason) = self.reset {
            response.extensions_mut().insert(BackendReset(reason));
        }
        response
    }

    /// Returns the error as the command line prints it.
    fn text(&self, port: u16, tls: bool) -> String {
        let mut text = format!("{}\n", self.title);
        for (label, line) in [("caused by", &self.cause), ("hint", &self.hint)] {
            if let Some(line) = line {
                let _ = writeln!(text, "{label}: {line}");
            }
        }
        for (name, host) in &self.links {
            let _ = writeln!(text, "  {name}: {}", link(host, port, tls));
        }
        text
    }

    fn json(&self, port: u16, tls: bool) -> String {
        let link = |(name, host): &(String, String)| serde_json::json!({"name": name, "host": host, "url": link(host, port, tls)});
        let links: Vec<_> = self.links.iter().map(link).collect();
        let value = serde_json::json!({"error": self.code.as_str(), "status": self.status.as_u16(), "message": self.title, "cause": self.cause, "hint": self.hint, "links": links});
        format!("{value}\n")
    }

    fn html(&self, port: u16, tls: bool) -> String {
        let mut body = format!("<h1>{}</h1>", escape(&self.title));
        if let Some(cause) = &self.cause {
            let _ = write!(body, "<p>{}</p>", escape(cause));
        }
        if !self.links.is_empty() {
            body.push_str("<ul>");
            for (name, host) in &self.links {
                let (url, name) = (escape(&link(host, port, tls)), escape(name));
                let _ = write!(body, "<li><a href=\"{url}\">{name}</a></li>");
            }
            body.push_str("</ul>");
        }
        for line in self.hint.iter().flat_map(|hint| hint.lines()) {
            let _ = if is_command(line) {
                write!(body, "<p><code>{}</code></p>", escape(line))
            } else {
                write!(body, "<p>{}</p>", with_link(line))
            };
        }
        let footer = match (self.status, self.reloads) {
            (StatusCode::OK, _) => "adit".to_owned(),
            (_, true) => "adit looks again by itself".to_owned(),
            (status, false) => format!("adit &middot; {} {}", status.as_u16(), self.code),
        };
        let refresh = match self.reloads {
            true => format!("<meta http-equiv=\"refresh\" content=\"{RELOAD_AFTER}\">"),
            false => String::new(),
        };
        format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">{refresh}\
             <title>{}</title><style>{STYLE}</style></head><body>{body}<footer>{footer}</footer></body></html>\n",
            escape(&self.title)
        )
    }
}

/// Returns the URL of a host with an optional path, on the listener.
fn link(host: &str, port: u16, tls: bool) -> String {
    let (host, path) = host.split_once('/').unwrap_or((host, ""));
    format!("{}://{host}:{port}/{path}", if tls { "https" } else { "http" })
}

/// Bytes to percent-encode in grpc-message: all but printable ASCII, and the percent sign.
const NOT_IN_GRPC_MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

/// Returns a line of HTML whose first URL is a link.
fn with_link(line: &str) -> String {
    let Some(start) = ["https://", "http://"].iter().filter_map(|scheme| line.find(scheme)).min() else {
        return escape(line);
    };
    let (before, from) = line.split_at(start);
    let end = from.find(|char: char| char.is_whitespace() || "\"'<>`".contains(char)).unwrap_or(from.len());
    let url = from[..end].trim_end_matches(['.', ',', ';', ')', ':', '!', '?']);
    let (before, behind, url) = (escape(before), escape(&from[url.len()..]), escape(url));
    format!("{before}<a href=\"{url}\" target=\"_blank\" rel=\"noreferrer\">{url}</a>{behind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Page {
        let error = RouteError::Unknown { host: "<b>.localhost".into(), near: vec!["argocd.localhost".into()] };
        Page::of_route(&error)
    }

    fn body(accept: &'static str) -> (String, HeaderMap) {
        let request = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
        let response = page().into_response(Form::of(&request), 8989, false);
        (String::from_utf8(response.body().to_vec()).unwrap(), response.headers().clone())
    }

    #[test]
    fn a_page_that_must_not_reload_still_says_when_to_retry() {
        for (retry_after, said) in [(None, "2"), (Some(30), "30")] {
            let page =
                Page { reloads: true, retry_after, ..Page::new(StatusCode::GATEWAY_TIMEOUT, ErrorCode::TimedOut, "t") };
            let html = |page: Page| {
                let response = page.into_response(Form::Html, 8989, false);
                assert_eq!(response.headers()[RETRY_AFTER], said);
                String::from_utf8(response.body().to_vec()).unwrap()
            };
            assert!(html(page.clone()).contains("http-equiv=\"refresh\" content=\"2\""));
            let html = html(page.without_reload());
            assert!(!html.contains("refresh") && !html.contains("looks again"), "{html}");
        }
    }

    #[test]
    fn each_client_gets_what_it_accepts() {
        let (html, headers) = body("text/html,application/xhtml+xml");
        assert!(html.contains("&lt;b&gt;.localhost") && !html.contains("<b>."), "{html}");
        assert!(html.contains("href=\"http://argocd.localhost:8989/\""), "{html}");
        assert_eq!(headers[ERROR_CODE], "unknown-host");
        let (json, _) = body("application/json");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (&json["error"], &json["links"][0]["url"]),
            (&"unknown-host".into(), &"http://argocd.localhost:8989/".into())
        );
        let call = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"))]);
        let call = page().into_response(Form::of(&call), 8989, false);
        assert_eq!((call.status(), &call.headers()["grpc-status"]), (StatusCode::OK, &HeaderValue::from_static("12")));
        assert!(call.headers()["grpc-message"].to_str().unwrap().starts_with("no route for <b>.localhost%0A"));
        for (kind, answered) in [
            ("application/grpc-web+proto", "application/grpc-web+proto"),
            ("application/grpc-web", "application/grpc-web+proto"),
            ("application/grpc-web-text", "application/grpc-web-text+proto"),
        ] {
            let call = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
            let call = page().into_response(Form::of(&call), 8989, false);
            assert_eq!(
                (&call.headers()["grpc-status"], &call.headers()[CONTENT_TYPE]),
                (&"12".parse().unwrap(), &answered.parse().unwrap())
            );
        }
        let text = body("*/*").0;
        assert!(text.starts_with("no route for <b>.localhost\nhint: did you mean argocd.localhost?"), "{text}");
        assert!(text.ends_with("\n  argocd.localhost: http://argocd.localhost:8989/\n"), "{text}");
        let tunnel = page().with_tunnel("a/b").into_response(Form::Text, 443, true);
        assert!(tunnel.body().ends_with(b": https://adit.localhost:443/tunnel/a%2Fb\n"), "{tunnel:?}");
    }
}
