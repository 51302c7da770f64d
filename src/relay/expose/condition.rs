//! Conditions of a personal takeover: certain headers, a host, or a path.
//!
//! Everyone who may read the Service can see a condition: it is in annotations, Events and logs.

use std::{collections::BTreeMap, fmt};

use http::{HeaderName, Request};
use serde::{Deserialize, Serialize};

use crate::config::Host;

/// Maximum length of a condition as JSON, in bytes. All conditions of a Service are in one annotation, and an object may
/// have 256 KiB of annotations.
const LONGEST: usize = 1024;

/// Maximum number of headers in a condition.
const MOST_HEADERS: usize = 8;

/// Maximum length of a header's name and value, in bytes.
const LONGEST_NAME: usize = 64;
const LONGEST_VALUE: usize = 256;

/// Maximum length of a path, in bytes.
const LONGEST_PATH: usize = 512;

/// Headers whose values are secrets, which a condition would disclose.
const SECRET: [&str; 4] = ["authorization", "cookie", "proxy-authorization", "set-cookie"];

/// Headers of one connection or of a body's length (RFC 9110, section 7.6.1), and headers that proxies change.
const OF_CONNECTION: [&str; 12] = [
    "cdn-loop",
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-forwarded-for",
];

/// Headers, host and path that a request must match, all of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written")]
pub struct Condition {
    /// Lower-case names, each with the exact value of one of its lines.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    /// In lower case, without a port.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    /// Exact path, or its start up to a slash.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

/// A condition as JSON, before validation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    headers: BTreeMap<String, String>,
    host: Option<String>,
    path: Option<String>,
}

impl TryFrom<Written> for Condition {
    type Error = ConditionError;

    fn try_from(written: Written) -> Result<Self, ConditionError> {
        Self::new(written.headers, written.host, written.path)
    }
}

/// Reasons why a condition is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    #[error("a personal takeover needs a header, a host or a path")]
    Empty,
    #[error("{0:?} is not the name of a header")]
    HeaderName(String),
    #[error("the header {name:?} cannot have the value {value:?}: use 1 to {LONGEST_VALUE} visible ASCII characters")]
    HeaderValue { name: String, value: String },
    #[error("the header {0:?} is named twice: a condition has one value for each header")]
    Twice(String),
    #[error("the header \"host\" is not matched as a header: name the host as such")]
    HostHeader,
    #[error(
        "the header {0:?} is a secret, and everybody who may read the Service would see its value: use a header of your own"
    )]
    Secret(String),
    #[error("the header {0:?} is about a connection, not about a request: use a header of your own")]
    OfConnection(String),
    #[error("more than {MOST_HEADERS} headers")]
    ManyHeaders,
    #[error("{0:?} is not a host: write web.example.com, without a scheme, a port or a path")]
    Host(String),
    #[error(
        "{0:?} is not the start of a path: begin with '/', and use visible ASCII characters without '?' and '#', {LONGEST_PATH} at most"
    )]
    Path(String),
    #[error("the path \"/\" is that of every request: take over the whole port, or name a header or a host too")]
    EveryPath,
    #[error("the condition is longer than {LONGEST} bytes")]
    TooLong,
    /// The text is not the JSON of a condition.
    #[error("the condition is not understood")]
    Malformed,
}

impl Condition {
    /// # Errors
    /// Fails if the condition is empty, or if no request can match it.
    pub fn new(
        headers: impl IntoIterator<Item = (String, String)>,
        host: Option<String>,
        path: Option<String>,
    ) -> Result<Self, ConditionError> {
        let mut checked = BTreeMap::new();
        for (name, value) in headers {
            let name = header_name(&name)?;
            if !is_value(&value) {
                return Err(ConditionError::HeaderValue { name, value: shown(&value) });
            }
            if checked.insert(name.clone(), value).is_some() {
                return Err(ConditionError::Twice(name));
            }
        }
        if checked.len() > MOST_HEADERS {
            return Err(ConditionError::ManyHeaders);
        }
        let host = host.map(|host| {
            let plain = host.to_ascii_lowercase();
            let plain = plain.strip_suffix('.').unwrap_or(&plain).trim_matches(['[', ']']).to_owned();
            Host::new(plain).map(|plain| plain.to_string()).map_err(|_| ConditionError::Host(shown(&host)))
        });
        let condition = Self { headers: checked, host: host.transpose()?, path };
        match &condition.path {
            Some(path) if !is_path(path) => return Err(ConditionError::Path(shown(path))),
            Some(path) if path == "/" && condition.headers.is_empty() && condition.host.is_none() => {
                return Err(ConditionError::EveryPath);
            }
            None if condition.headers.is_empty() && condition.host.is_none() => return Err(ConditionError::Empty),
            _ => {}
        }
        match condition.to_json().len() <= LONGEST {
            true => Ok(condition),
            false => Err(ConditionError::TooLong),
        }
    }

    /// Reads the JSON of [`to_json`](Self::to_json).
    ///
    /// # Errors
    /// Fails if the JSON is invalid or has an unknown field. Ignoring a field would make a condition wider than its
    /// author meant.
    pub fn parse(text: &str) -> Result<Self, ConditionError> {
        if text.len() > LONGEST {
            return Err(ConditionError::TooLong);
        }
        let written: Written = serde_json::from_str(text).map_err(|_| ConditionError::Malformed)?;
        written.try_into()
    }

    /// Returns the JSON on the wire: `{"headers":{"x-user":"anna"},"host":"...","path":"/api"}`, without absent fields.
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// Returns whether a request matches. `host`: the host of the request, in lower case, without a port.
    pub fn matches<B>(&self, host: &str, request: &Request<B>) -> bool {
        let has = |(name, value): (&String, &String)| {
            request.headers().get_all(name.as_str()).iter().any(|line| line.as_bytes() == value.as_bytes())
        };
        self.host.as_ref().is_none_or(|wanted| wanted == host)
            && self.path.as_ref().is_none_or(|start| is_below(request.uri().path(), start))
            && self.headers.iter().all(has)
    }

    /// Returns how narrow the condition is. If a request matches two conditions, the higher rank wins.
    pub fn rank(&self) -> (usize, usize) {
        let path = self.path.as_ref();
        (
            self.headers.len() + usize::from(self.host.is_some()) + usize::from(path.is_some()),
            path.map_or(0, String::len),
        )
    }
}

/// As `x-user: anna and path /api`.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers = self.headers.iter().map(|(name, value)| format!("{name}: {value}"));
        let host = self.host.iter().map(|host| format!("host {host}"));
        let path = self.path.iter().map(|path| format!("path {path}"));
        f.write_str(&headers.chain(host).chain(path).collect::<Vec<_>>().join(" and "))
    }
}

/// Returns the name of a header in lower case.
fn header_name(name: &str) -> Result<String, ConditionError> {
    let known = (name.len() <= LONGEST_NAME).then(|| HeaderName::from_bytes(name.as_bytes()).ok()).flatten();
    let known = known.ok_or_else(|| ConditionError::HeaderName(shown(name)))?;
    match known.as_str() {
        "host" => Err(ConditionError::HostHeader),
        name if SECRET.contains(&name) => Err(ConditionError::Secret(name.to_owned())),
        name if OF_CONNECTION.contains(&name) => Err(ConditionError::OfConnection(name.to_owned())),
        name => Ok(name.to_owned()),
    }
}

/// Returns whether a header can have this value. Servers trim spaces at both ends (RFC 9110, section 5.5).
fn is_value(value: &str) -> bool {
    (1..=LONGEST_VALUE).contains(&value.len())
        && value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
        && value.trim_matches(' ') == value
}

fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= LONGEST_PATH
        && path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'))
}

/// Returns whether a path is `start`, or continues after it with a slash.
fn is_below(path: &str, start: &str) -> bool {
    path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || start.ends_with('/') || rest.starts_with('/'))
}

/// Returns the start of a text for an error message.
fn shown(text: &str) -> String {
    text.chars().take(LONGEST_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, value: &str) -> Result<Condition, ConditionError> {
        Condition::new([(name.to_owned(), value.to_owned())], None, None)
    }

    fn request(path: &str, headers: &[(&str, &str)]) -> Request<()> {
        let request = Request::get(path);
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).unwrap()
    }

    #[test]
    fn a_header_is_matched_by_its_name_in_any_case_and_by_its_exact_value() {
        let anna = header("X-User", "anna b").unwrap();
        assert!(anna.matches("web", &request("/", &[("x-uSER", "anna b")])));
        assert!(anna.matches("web", &request("/", &[("x-user", "bo"), ("x-user", "anna b")])), "one of several lines");
        for headers in [&[][..], &[("x-user", "Anna b")], &[("x-user", "anna b, bo")], &[("x-users", "anna b")]] {
            assert!(!anna.matches("web", &request("/", headers)), "{headers:?}");
        }
    }

    #[test]
    fn a_path_is_matched_at_its_slashes_and_a_host_without_its_port() {
        let below = |path: &str| Condition::new([], None, Some(path.to_owned())).unwrap();
        for (start, path, is_match) in [
            ("/api", "/api", true),
            ("/api", "/api/", true),
            ("/api", "/api/v1?x=/y", true),
            ("/api", "/api?x", true),
            ("/api", "/apix", false),
            ("/api", "/x/api", false),
            ("/api", "/API", false),
            ("/api", "/x/../api", false),
            ("/api/", "/api/v1", true),
            ("/api/", "/api", false),
        ] {
            assert_eq!(below(start).matches("web", &request(path, &[])), is_match, "{start} {path}");
        }
        let host = Condition::new([], Some("Anna.Example.com.".to_owned()), None).unwrap();
        assert!(host.matches("anna.example.com", &request("/", &[])));
        assert!(!host.matches("bo.example.com", &request("/", &[])));
    }

    #[test]
    fn everything_that_is_named_has_to_be_so() {
        let both =
            Condition::new([("x-user".to_owned(), "anna".to_owned())], Some("web".to_owned()), Some("/api".to_owned()));
        let both = both.unwrap();
        assert!(both.matches("web", &request("/api/1", &[("x-user", "anna")])));
        assert!(!both.matches("web", &request("/", &[("x-user", "anna")])));
        assert!(!both.matches("web", &request("/api", &[])));
        assert!(!both.matches("other", &request("/api", &[("x-user", "anna")])));
        assert!(both.rank() > header("x-user", "anna").unwrap().rank());
        assert_eq!(both.to_string(), "x-user: anna and host web and path /api");
        assert_eq!(both.to_json(), r#"{"headers":{"x-user":"anna"},"host":"web","path":"/api"}"#);
        assert_eq!(Condition::parse(&both.to_json()).unwrap(), both);
    }

    #[test]
    fn what_no_request_can_have_or_everybody_would_see_is_refused() {
        for (name, value) in [
            ("", "anna"),
            ("x user", "anna"),
            (":path", "/"),
            ("x-user", ""),
            ("x-user", " anna"),
            ("x-user", "an\r\nna"),
            ("x-user", "änna"),
            ("Cookie", "session=1"),
            ("authorization", "Bearer x"),
            ("Host", "web"),
            ("connection", "close"),
        ] {
            assert!(header(name, value).is_err(), "{name}: {value}");
        }
        assert!(header(&"x".repeat(65), "y").is_err() && header("x", &"y".repeat(257)).is_err());
        let with = |host: Option<&str>, path: Option<&str>| {
            Condition::new([], host.map(str::to_owned), path.map(str::to_owned))
        };
        assert_eq!(with(None, None), Err(ConditionError::Empty));
        assert_eq!(with(None, Some("/")), Err(ConditionError::EveryPath));
        assert!(with(Some("web"), Some("/")).is_ok());
        for path in ["", "api", "/a b", "/a?b", "/a#b", "/ä", &format!("/{}", "x".repeat(512))] {
            assert!(with(None, Some(path)).is_err(), "{path}");
        }
        for host in ["", "a b", "web:80", "http://web", "-web", "a..b"] {
            assert!(with(Some(host), None).is_err(), "{host}");
        }
        assert!(with(Some("[::1]"), None).is_ok());
        let many = (0..9).map(|at| (format!("x-{at}"), "y".to_owned()));
        assert_eq!(Condition::new(many, None, None), Err(ConditionError::ManyHeaders));
        let long = (0..8).map(|at| (format!("x-{at}"), "y".repeat(250)));
        assert_eq!(Condition::new(long, None, None), Err(ConditionError::TooLong));
        let twice = [("x-a".to_owned(), "1".to_owned()), ("X-A".to_owned(), "2".to_owned())];
        assert_eq!(Condition::new(twice, None, None), Err(ConditionError::Twice("x-a".to_owned())));
    }

    #[test]
    fn what_is_not_understood_is_no_condition() {
        for text in
            ["", "{}", "[]", "{\"headers\":{}}", "{\"method\":\"GET\"}", "{\"path\":\"/a\",\"method\":\"GET\"}", "x"]
        {
            assert!(Condition::parse(text).is_err(), "{text}");
        }
        let long = format!("{{\"path\":\"/{}\"}}", " ".repeat(5000));
        assert_eq!(Condition::parse(&long), Err(ConditionError::TooLong));
    }
}
