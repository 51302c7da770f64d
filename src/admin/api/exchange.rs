//! One request for display: its heads and bodies, as a curl command, and as an HTTP archive (HAR 1.2).

use std::{string::FromUtf8Error, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::Version;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{answers::time, attention::quoted};
use crate::journal::{
    Entry, Journal, Kind,
    exchange::{Exchange, Head},
    hidden,
    recorder::KeptBody,
};

/// Details of a request that its row does not show.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExchangeRow {
    /// Path and query, with `(hidden, 32 bytes)` in the place of secrets.
    pub target: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// Names and values, with `(hidden, 32 bytes)` in the place of secrets.
    pub request_headers: Vec<(String, String)>,
    pub response_headers: Vec<(String, String)>,
    /// null: bodies of its route were not recorded.
    pub request_body: Option<BodyRow>,
    pub response_body: Option<BodyRow>,
    /// Its URL, with the hidden texts.
    #[serde(default)]
    pub url: String,
    /// The same request as a command of curl, with the hidden texts.
    pub curl: String,
    /// Why it cannot be sent again. null: it can.
    pub no_replay: Option<String>,
    /// For how many seconds bodies of its route are still recorded. null: they are not.
    pub recording_seconds: Option<u64>,
}

/// A body that was recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BodyRow {
    /// How long it was.
    pub bytes: u64,
    /// It has ended, and all of it is kept; 256 KiB of a longer one are.
    pub is_whole: bool,
    /// The recorded bytes as text. null: they are not UTF-8.
    pub text: Option<String>,
    /// The same where it is something else.
    pub base64: Option<String>,
}

impl BodyRow {
    fn of(kept: &KeptBody) -> Self {
        let (kept, bytes, is_whole) = kept.kept();
        match String::from_utf8(kept) {
            Ok(text) => Self { bytes, is_whole, text: Some(text), base64: None },
            Err(error) => Self { bytes, is_whole, text: None, base64: Some(BASE64_STANDARD.encode(error.as_bytes())) },
        }
    }
}

impl ExchangeRow {
    /// Returns `None` if the request was not recorded.
    pub fn of(entry: &Entry, journal: &Journal) -> Option<Self> {
        let exchange = entry.exchange.as_ref()?;
        let shown = |head: Option<&Head>| head.map(shown).unwrap_or_default();
        let body = |body: Option<&Arc<KeptBody>>| body.map(|body| BodyRow::of(body));
        let left = entry.route.as_ref().and_then(|route| journal.recorder().time_left(route));
        Some(Self {
            target: hidden::target(&exchange.target),
            version: version(exchange.version).to_owned(),
            request_headers: shown(exchange.request.as_ref()),
            response_headers: shown(exchange.response.get().and_then(Option::as_ref)),
            request_body: body(exchange.request_body.get()),
            response_body: body(exchange.response_body.get()),
            url: url(entry, exchange),
            curl: curl(entry, exchange),
            no_replay: no_replay(entry).map(str::to_owned),
            recording_seconds: left.map(|left| left.as_secs().max(1)),
        })
    }
}

fn shown(head: &Head) -> Vec<(String, String)> {
    head.iter().map(|(name, value)| (name.to_owned(), hidden::shown(name, value))).collect()
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

fn url(entry: &Entry, exchange: &Exchange) -> String {
    let scheme = if exchange.is_tls { "https" } else { "http" };
    format!("{scheme}://{}{}", entry.host, hidden::target(&exchange.target))
}

/// Returns why a request cannot be replayed unchanged. `None`: it can.
pub fn no_replay(entry: &Entry) -> Option<&'static str> {
    let Some(exchange) = entry.exchange.as_ref() else { return Some("its headers are not kept any more") };
    let Some(head) = exchange.request.as_ref() else { return Some("its headers are longer than adit keeps") };
    if !matches!(entry.kind, Kind::Http | Kind::Grpc | Kind::EventStream) || head.get("upgrade").is_some() {
        return Some("it is a connection, and no request");
    }
    if entry.tunnel.is_none() {
        return Some("it reached no pod");
    }
    let is_whole = exchange.request_body.get().is_some_and(|body| body.kept().2);
    (exchange.has_body && !is_whole)
        .then_some("its body was not recorded, or not all of it: record the bodies of its route, or edit the request")
}

fn curl(entry: &Entry, exchange: &Exchange) -> String {
    let method = entry.method.as_ref().map_or("GET", |method| method.as_str());
    let mut words = vec!["curl".to_owned()];
    let url = url(entry, exchange);
    match method {
        "GET" if !exchange.has_body => {}
        "HEAD" => words.push("--head".to_owned()),
        method => words.extend(["-X".to_owned(), quoted(method)]),
    }
    if url.contains(['[', ']', '{', '}']) {
        words.push("--globoff".to_owned());
    }
    words.push(quoted(&url));
    // curl sets the headers of its own connection.
    let is_its_own = |name: &str| matches!(name, "host" | "content-length" | "connection" | "transfer-encoding");
    for (name, value) in exchange.request.iter().flat_map(Head::iter).filter(|(name, _)| !is_its_own(name)) {
        // `-H 'name:'` would make curl remove a header; `-H 'name;'` sends it without a value.
        let header = match value.is_empty() {
            true => format!("{name};"),
            false => format!("{name}: {}", hidden::shown(name, value)),
        };
        words.extend(["-H".to_owned(), quoted(&header)]);
    }
    if !exchange.has_body {
        return words.join(" ");
    }
    if exchange.request.as_ref().is_none_or(|head| head.get("content-type").is_none()) {
        // Otherwise curl would send the Content-Type of a form.
        words.extend(["-H".to_owned(), quoted("content-type:")]);
    }
    match exchange.request_body.get().map(|body| body.kept()) {
        Some((bytes, _, true)) => match String::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => words.extend(["--data-raw".to_owned(), quoted(&text)]),
            bytes => {
                let bytes = bytes.map_or_else(FromUtf8Error::into_bytes, String::into_bytes);
                let decode = ["echo", &BASE64_STANDARD.encode(bytes), "|", "base64", "-d", "|"].map(str::to_owned);
                words.splice(0..0, decode);
                words.extend(["--data-binary", "@-"].map(str::to_owned));
            }
        },
        // adit does not have the body. curl fails without the file BODY, and sends nothing.
        _ => words.extend(["--data-binary", "@BODY"].map(str::to_owned)),
    }
    words.join(" ")
}

/// Returns requests as an HTTP archive. Connections that are not HTTP are left out.
pub fn har(entries: &[Entry]) -> Value {
    let entries: Vec<Value> =
        entries.iter().filter_map(|entry| har_entry(entry, entry.exchange.as_ref()?, entry.method.as_ref()?)).collect();
    json!({"log": {
        "version": "1.2",
        "creator": {"name": "adit", "version": env!("CARGO_PKG_VERSION")},
        "entries": entries,
    }})
}

/// Returns the text of a recorded body for an archive, with its encoding, and a comment if it is not the whole body.
fn recorded(body: &BodyRow) -> Value {
    let mut data = json!({"text": body.text.as_ref().or(body.base64.as_ref())});
    if body.text.is_none() {
        data["encoding"] = "base64".into();
    }
    if !body.is_whole {
        data["comment"] = format!("only a part of {} bytes was recorded", body.bytes).into();
    }
    data
}

fn har_entry(entry: &Entry, exchange: &Exchange, method: &http::Method) -> Option<Value> {
    let headers = |head: Option<&Head>| -> Vec<Value> {
        let pairs = head.map(shown).unwrap_or_default();
        pairs.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
    };
    let of_type = |head: Option<&Head>| {
        let kind = head.and_then(|head| head.get("content-type"));
        kind.map_or_else(String::new, |kind| String::from_utf8_lossy(kind).into_owned())
    };
    let response = exchange.response.get().and_then(Option::as_ref);
    let target = hidden::target(&exchange.target);
    let query: Vec<Value> = match target.split_once('?') {
        Some((_, query)) => query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect(),
        None => Vec::new(),
    };
    let version = version(exchange.version);
    let mut request = json!({
        "method": method.as_str(), "url": url(entry, exchange), "httpVersion": version, "cookies": [],
        "headers": headers(exchange.request.as_ref()), "queryString": query, "headersSize": -1, "bodySize": entry.bytes_up,
    });
    if let Some(body) = exchange.request_body.get().map(|body| BodyRow::of(body)).filter(|body| body.bytes > 0) {
        request["bodySize"] = body.bytes.into();
        let mut data = recorded(&body);
        data["mimeType"] = of_type(exchange.request.as_ref()).into();
        request["postData"] = data;
    }
    let mut content = json!({"size": entry.bytes_down, "mimeType": of_type(response)});
    if let Some(body) = exchange.response_body.get().map(|body| BodyRow::of(body)) {
        let (size, kind) = (content["size"].take(), content["mimeType"].take());
        content = recorded(&body);
        (content["size"], content["mimeType"]) = (size, kind);
    }
    let status = entry.status.unwrap_or_default();
    let phrase = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let millis = |time: Option<std::time::Duration>| time.map(|time| time.as_secs_f64() * 1e3);
    let (connected, first, took) =
        (millis(entry.connected_after.or(entry.tunnel_after)), millis(entry.first_byte), millis(entry.took));
    let total = took.or(first).unwrap_or_default();
    let connect = connected.unwrap_or_default().min(total);
    let wait = (first.unwrap_or(total) - connect).max(0.0);
    Some(json!({
        "startedDateTime": time(entry.at),
        "time": total,
        "request": request,
        "response": {
            "status": status, "statusText": phrase.unwrap_or_default(), "httpVersion": version, "cookies": [],
            "headers": headers(response), "content": content, "redirectURL": "", "headersSize": -1,
            "bodySize": entry.bytes_down,
        },
        "cache": {},
        "timings": {
            "blocked": -1, "dns": -1, "connect": connect, "ssl": -1, "send": 0, "wait": wait,
            "receive": (total - connect - wait).max(0.0),
        },
        "_pod": entry.pod.as_deref(),
    }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{Method, Request};
    use http_body_util::Full;

    use super::*;

    fn entry(method: Method, headers: &[(&str, &str)]) -> Entry {
        let mut request = Request::builder().method(method).uri("/a?q='&token=s3cret");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let has_body = headers.iter().any(|(name, value)| *name == "content-length" && *value != "0");
        let body = if has_body { Bytes::from_static(b"12") } else { Bytes::new() };
        let request = request.body(Full::new(body)).unwrap();
        let exchange = Some(Arc::new(Exchange::of(&request, false)).into());
        let entry = Entry::new(Kind::Http).with_method(request.method()).with_host("web.localhost:8989");
        Entry { exchange, tunnel: Some("demo/shop/web".into()), ..entry }
    }

    #[test]
    fn curl_gets_the_same_request_without_secrets() {
        let entry = entry(Method::POST, &[("authorization", "Bearer abc"), ("x-empty", ""), ("content-length", "2")]);
        let command = curl(&entry, entry.exchange.as_ref().unwrap());
        assert_eq!(
            command,
            r"curl -X POST 'http://web.localhost:8989/a?q='\''&token=(hidden, 6 bytes)' -H 'authorization: (hidden, 10 bytes)' -H 'x-empty;' -H content-type: --data-binary @BODY"
        );
    }

    #[test]
    fn curl_gets_the_bytes_of_a_body_or_says_that_it_lacks_them() {
        let entry = entry(Method::POST, &[("content-type", "a/b"), ("content-length", "2")]);
        let recorder = Arc::new(crate::journal::Recorder::default());
        recorder.record("web", std::time::Duration::from_secs(60));
        let body = recorder.body("web").unwrap();
        let exchange = entry.exchange.as_ref().unwrap();
        exchange.request_body.set(body.clone()).ok().unwrap();
        body.add(b"\xff'");
        assert!(curl(&entry, exchange).ends_with(" --data-binary @BODY"), "it goes on");
        body.end();
        let command = curl(&entry, exchange);
        assert!(command.starts_with("echo /yc= | base64 -d | curl -X POST '"), "{command}");
        assert!(command.ends_with(" --data-binary @-"), "{command}");
        assert_eq!(no_replay(&entry), None);
    }

    #[test]
    fn curl_takes_brackets_of_a_url_as_they_are() {
        let request = Request::get("/a?b[c]={1,2}").body(Full::<Bytes>::default()).unwrap();
        let exchange = Arc::new(Exchange::of(&request, false));
        let entry = Entry::new(Kind::Http).with_method(&Method::GET).with_host("web.localhost");
        assert_eq!(curl(&entry, &exchange), "curl --globoff 'http://web.localhost/a?b[c]={1,2}'");
    }

    #[test]
    fn a_body_that_is_not_kept_cannot_be_sent_again() {
        assert_eq!(no_replay(&entry(Method::GET, &[])), None);
        assert!(no_replay(&entry(Method::POST, &[("content-length", "2")])).unwrap().contains("not recorded"));
        assert_eq!(no_replay(&entry(Method::POST, &[("content-length", "0")])), None);
        assert!(no_replay(&entry(Method::GET, &[("upgrade", "websocket")])).is_some());
        let entry = entry(Method::GET, &[]);
        assert!(no_replay(&Entry { exchange: None, ..entry.clone() }).is_some());
        assert!(no_replay(&Entry { tunnel: None, ..entry }).is_some());
    }

    #[test]
    fn an_archive_has_what_readers_want_and_no_secret() {
        let har = har(&[entry(Method::GET, &[("cookie", "sid=s3cret")]), Entry::new(Kind::Tcp)]);
        let entries = har["log"]["entries"].as_array().unwrap();
        assert_eq!((har["log"]["version"].as_str(), entries.len()), (Some("1.2"), 1));
        assert_eq!(entries[0]["request"]["headers"][0]["value"], "(hidden, 10 bytes)");
        assert!(!har.to_string().contains("s3cret"), "{har}");
        for key in ["startedDateTime", "time", "request", "response", "cache", "timings"] {
            assert!(!entries[0][key].is_null(), "{key}");
        }
    }
}
