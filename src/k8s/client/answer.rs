//! Answers of an API server, or of a gateway in front of it: decompression, redirects, and answers that no API server
//! gives.

use std::{
    io::{self, Write},
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http::{HeaderMap, Response, Uri, header};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tower::BoxError;

use super::transport::Room;
use crate::printable::printable;

/// Body of an answer.
pub struct Answer {
    body: Incoming,
    /// Decoder: some gateways compress answers without being asked to.
    gzip: Option<MultiGzDecoder<Vec<u8>>>,
    _room: Room,
}

impl Answer {
    pub fn of(response: Response<Incoming>, room: Room) -> Response<Self> {
        let (mut head, body) = response.into_parts();
        let encoding = head.headers.get(header::CONTENT_ENCODING).and_then(|encoding| encoding.to_str().ok());
        let is_gzip = encoding.is_some_and(|encoding| encoding.trim().eq_ignore_ascii_case("gzip"));
        let gzip = is_gzip.then(|| MultiGzDecoder::new(Vec::new()));
        if is_gzip {
            head.headers.remove(header::CONTENT_ENCODING);
            head.headers.remove(header::CONTENT_LENGTH);
        }
        Response::from_parts(head, Self { body, gzip, _room: room })
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose()?;
        let Some(decoder) = &mut self.gzip else { return Poll::Ready(frame.map(Ok)) };
        Poll::Ready(match frame.map(Frame::into_data) {
            Some(Ok(data)) => Some(unzip(decoder, &data).map(Frame::data).map_err(BoxError::from)),
            Some(Err(trailers)) => Some(Ok(trailers)),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.gzip.is_some() { SizeHint::default() } else { self.body.size_hint() }
    }
}

/// Returns the decompressed bytes.
fn unzip(decoder: &mut MultiGzDecoder<Vec<u8>>, bytes: &[u8]) -> io::Result<Bytes> {
    decoder.write_all(bytes)?;
    decoder.flush()?;
    Ok(mem::take(decoder.get_mut()).into())
}

/// Answer that cannot come from an API server.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unexpected(String);

impl Unexpected {
    /// Returns why an answer cannot come from an API server. `None`: it may come from one.
    pub fn of<B>(request: &Uri, response: &Response<B>) -> Option<Self> {
        let text =
            |name| response.headers().get(name).map(|value| printable(&String::from_utf8_lossy(value.as_bytes())));
        let status = response.status();
        let by = text(header::SERVER).map(|server| format!(" by {server}")).unwrap_or_default();
        if status.is_redirection() {
            let to = text(header::LOCATION).unwrap_or_default();
            return Some(Self(format!(
                "{status}{by}, to {to:?}: is the server in the kubeconfig still the right one?"
            )));
        }
        let kind = text(header::CONTENT_TYPE).unwrap_or_default();
        let is_page = status.is_success() && kind.to_ascii_lowercase().starts_with("text/html");
        is_page.then(|| {
            let host = request.authority().map(|authority| authority.as_str()).unwrap_or_default();
            Self(format!(
                "{status}{by} with a web page ({kind}): {host} is not an API server, or requires a sign-in in a browser first"
            ))
        })
    }
}

/// Returns the target of a redirected GET. Credentials must not go to another host or scheme.
pub fn redirected<B>(request: &Uri, response: &Response<B>) -> Option<Uri> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(header::LOCATION)?.to_str().ok()?;
    let (scheme, authority) = (request.scheme_str()?, request.authority()?.as_str());
    let target: Uri = if location.starts_with("//") {
        format!("{scheme}:{location}").parse().ok()?
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}").parse().ok()?
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", request.path()).parse().ok()?
    } else if location.contains("://") {
        location.parse().ok()?
    } else {
        let folder = request.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}").parse().ok()?
    };
    let is_same = target.scheme() == request.scheme() && target.host() == request.host();
    let has_user = target.authority().is_some_and(|authority| authority.as_str().contains('@'));
    (is_same && !has_user).then_some(target)
}

/// Shortest pause before a retry. `Retry-After: 0` would repeat the request at once, without end.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// Returns the pause before a retry that an answer asks for, as client-go does for 429 and 5xx.
pub fn pause<B>(response: &Response<B>) -> Option<Duration> {
    let is_busy = response.status().as_u16() == 429 || response.status().is_server_error();
    seconds(response.headers()).filter(|_| is_busy).map(|pause| pause.max(SHORTEST_PAUSE))
}

fn seconds(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u32 = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn response(status: u16, name: header::HeaderName, value: &str) -> Response<()> {
        Response::builder().status(status).header(name, value).body(()).unwrap()
    }

    #[test]
    fn gzip_is_decoded_as_it_comes() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(b"{\"kind\":\"Event\"}").unwrap();
        encoder.flush().unwrap();
        let first = mem::take(encoder.get_mut());
        let rest = encoder.finish().unwrap();
        let mut decoder = MultiGzDecoder::new(Vec::new());
        let said: Vec<u8> = first.iter().flat_map(|byte| unzip(&mut decoder, &[*byte]).unwrap()).collect();
        assert_eq!(said, b"{\"kind\":\"Event\"}", "an event is not held back");
        assert_eq!(unzip(&mut decoder, &rest).unwrap(), "");
        assert!(unzip(&mut MultiGzDecoder::new(Vec::new()), b"no gzip at all").is_err());
    }

    #[test]
    fn redirects_are_followed_on_the_same_host() {
        let request = Uri::from_static("https://a.test:6443/api/v1/services?limit=1");
        for (location, wanted) in [
            ("/moved/api?x=1", Some("https://a.test:6443/moved/api?x=1")),
            ("/x?to=https://b.test", Some("https://a.test:6443/x?to=https://b.test")),
            ("?limit=2", Some("https://a.test:6443/api/v1/services?limit=2")),
            ("nodes", Some("https://a.test:6443/api/v1/nodes")),
            ("https://a.test/x", Some("https://a.test/x")),
            ("//a.test:7/x", Some("https://a.test:7/x")),
            ("http://a.test:6443/x", None),
            ("https://b.test/x", None),
            ("//b.test/x", None),
            ("https://u:p@a.test/x", None),
        ] {
            let found = redirected(&request, &response(307, header::LOCATION, location));
            assert_eq!(found.map(|uri| uri.to_string()).as_deref(), wanted, "{location}");
        }
        assert_eq!(redirected(&request, &response(304, header::LOCATION, "/x")), None);
    }

    #[test]
    fn a_web_page_is_no_answer_of_an_api_server() {
        let request = Uri::from_static("https://a.test/api");
        let of = |response| Unexpected::of(&request, &response).map(|odd| odd.to_string());
        assert!(
            of(response(200, header::CONTENT_TYPE, "text/html; charset=utf-8")).unwrap().contains("a.test is not an")
        );
        assert!(
            of(response(302, header::LOCATION, "https://login.test/")).unwrap().contains("\"https://login.test/\"")
        );
        assert_eq!(of(response(200, header::CONTENT_TYPE, "application/json")), None);
        assert_eq!(of(response(403, header::CONTENT_TYPE, "text/html")), None);
    }

    #[test]
    fn only_busy_servers_are_waited_for() {
        assert_eq!(pause(&response(429, header::RETRY_AFTER, "3")), Some(Duration::from_secs(3)));
        assert_eq!(pause(&response(503, header::RETRY_AFTER, "1")), Some(Duration::from_secs(1)));
        assert_eq!(pause(&response(429, header::RETRY_AFTER, "0")), Some(Duration::from_secs(1)), "not at once");
        assert_eq!(pause(&response(200, header::RETRY_AFTER, "1")), None);
        assert_eq!(pause(&response(429, header::RETRY_AFTER, "soon")), None);
    }
}
