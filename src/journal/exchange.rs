//! The heads of a request and its response, and their bodies while a person records them. All of them may hold secrets: display
//! them only through [`super::hidden`].

use std::sync::{Arc, OnceLock};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Version};
use hyper::body::Body;

use super::recorder::KeptBody;

/// Maximum bytes of a recorded head. Browsers with many cookies send up to 16 KiB.
const LONGEST_HEAD: usize = 16 * 1024;

/// Recording of one request.
pub struct Exchange {
    /// Path and query, as the client sent them.
    pub target: Box<str>,
    pub version: Version,
    /// Whether the client used https.
    pub is_tls: bool,
    /// Headers of the request. `None`: they are longer than `LONGEST_HEAD`.
    pub request: Option<Head>,
    /// Whether the request has a body, of any length.
    pub has_body: bool,
    /// Target of the request's route.
    pub leads_to: OnceLock<Box<str>>,
    /// Headers of the answer; `None` if they are too long. Not set: no pod has answered.
    pub response: OnceLock<Option<Head>>,
    /// Request body, if bodies of the route are recorded.
    pub request_body: OnceLock<Arc<KeptBody>>,
    pub response_body: OnceLock<Arc<KeptBody>>,
}

/// Headers copied into one allocation. Slices of the received bytes would keep whole buffers alive.
pub struct Head(Box<[u8]>);

impl Head {
    /// Returns `None` if the headers are longer than `LONGEST_HEAD`.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let length = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 2).sum();
        if length > LONGEST_HEAD {
            return None;
        }
        let mut bytes = Vec::with_capacity(length);
        for (name, value) in headers {
            // Neither a name nor a value can contain a line feed.
            for part in [name.as_str().as_bytes(), b":", value.as_bytes(), b"\n"] {
                bytes.extend_from_slice(part);
            }
        }
        Some(Self(bytes.into()))
    }

    /// Returns names, in lower case, and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let lines = self.0.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.filter_map(|line| {
            let at = line.iter().position(|byte| *byte == b':')?;
            Some((std::str::from_utf8(&line[..at]).ok()?, &line[at + 1..]))
        })
    }

    pub fn headers(&self) -> HeaderMap {
        let header = |(name, value): (&str, &[u8])| {
            Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value).ok()?))
        };
        let mut headers = HeaderMap::new();
        for (name, value) in self.iter().filter_map(header) {
            headers.append(name, value);
        }
        headers
    }

    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }
}

impl Exchange {
    pub fn of<B: Body>(request: &Request<B>, is_tls: bool) -> Self {
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        Self {
            target: target.into(),
            version: request.version(),
            is_tls,
            request: Head::of(request.headers()),
            has_body: !request.body().is_end_stream(),
            leads_to: OnceLock::new(),
            response: OnceLock::new(),
            request_body: OnceLock::new(),
            response_body: OnceLock::new(),
        }
    }

    /// Returns the bytes of its heads.
    pub fn size(&self) -> usize {
        let head = |head: Option<&Head>| head.map_or(0, |head| head.0.len());
        self.target.len() + head(self.request.as_ref()) + head(self.response.get().and_then(Option::as_ref))
    }
}

/// Request extension that marks a replay.
#[derive(Clone, Debug)]
pub struct ReplayOf {
    /// Id of the original entry.
    pub id: u64,
    /// Target of the original request's route. The replay must have the same.
    pub target: Box<str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_kept_as_it_came() {
        let mut headers = HeaderMap::new();
        headers.append("cookie", HeaderValue::from_static("a: b"));
        headers.append("cookie", HeaderValue::from_bytes(b"\xff").unwrap());
        headers.append("empty", HeaderValue::from_static(""));
        let head = Head::of(&headers).unwrap();
        assert_eq!(head.headers(), headers);
        assert_eq!(head.get("empty"), Some(&b""[..]));
        headers.insert("long", HeaderValue::from_bytes(&vec![b'x'; LONGEST_HEAD]).unwrap());
        assert!(Head::of(&headers).is_none());
    }
}
