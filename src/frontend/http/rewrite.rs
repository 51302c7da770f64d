//! Host names in both directions: the backend's own in the request, the client's in redirects and cookies of the answer.

use http::{
    HeaderMap, HeaderValue,
    header::{CONTENT_LOCATION, HOST, LOCATION, ORIGIN, REFRESH, SET_COOKIE},
    uri::PathAndQuery,
};

use super::headers;
use crate::{
    config::{Jump, Scheme, Workload},
    routing::{PodTarget, table},
};

/// Names of this machine.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Names of a backend: its own, and the client's.
pub struct Names {
    /// Host header for the backend, with a port unless it is the scheme's default.
    own: String,
    /// The backend speaks TLS.
    pub tls: bool,
    /// Lower case, without ports.
    all: Vec<String>,
}

impl Names {
    /// Returns the names of a Service. `port`: of the Service, or of the target of a jump.
    pub fn of(target: &PodTarget, scheme: Scheme, port: u16, server_name: Option<&str>) -> Self {
        let namespace = &target.namespace;
        let mut all: Vec<String> = server_name.iter().map(|name| (*name).to_owned()).collect();
        match (&target.jump, &target.workload) {
            (Some(Jump { target, .. }), _) => all.push(target.host.to_ascii_lowercase()),
            (None, Workload::Service(service)) => {
                let short = format!("{service}.{namespace}");
                all.extend([format!("{short}.svc.cluster.local"), format!("{short}.svc"), short, service.to_string()]);
            }
            (None, Workload::PodOfService { pod, service }) => {
                all.push(format!("{pod}.{service}.{namespace}.svc.cluster.local"));
                all.push(pod.to_string());
            }
            (None, Workload::Pod(pod)) => all.push(pod.to_string()),
            (None, Workload::Address(address)) => all.push(address.to_string()),
        }
        let host = if all[0].contains(':') { format!("[{}]", all[0]) } else { all[0].clone() };
        let tls = scheme == Scheme::Https;
        Self { own: if port == headers::default_port(tls) { host } else { format!("{host}:{port}") }, tls, all }
    }

    /// Returns the names of a backend with a fixed Host header; `host` may contain a port.
    pub fn fixed(host: &str, scheme: Scheme) -> Self {
        let name = table::normalise(host);
        // A server on the laptop may call itself by any of these.
        let all = match LOOPBACK.contains(&name.as_str()) {
            true => LOOPBACK.map(str::to_owned).to_vec(),
            false => vec![name],
        };
        Self { own: host.to_owned(), tls: scheme == Scheme::Https, all }
    }

    /// Sets the backend's own name as Host.
    pub fn into_request(&self, headers: &mut HeaderMap) {
        if let Ok(host) = HeaderValue::from_str(&self.own) {
            headers.insert(HOST, host);
        }
    }

    /// Replaces an Origin that is the client's by the backend's own name, for servers that compare both (RFC 6454). Returns
    /// whether it did.
    pub fn into_origin(&self, headers: &mut HeaderMap, authority: &str, tls: bool) -> bool {
        let is_own = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok()).is_some_and(|origin| {
            origin.split_once("://").is_some_and(|(_, origin)| origin.eq_ignore_ascii_case(authority))
        });
        let scheme = if tls { "https" } else { "http" };
        if is_own && let Ok(origin) = HeaderValue::from_str(&format!("{scheme}://{}", self.own)) {
            headers.insert(ORIGIN, origin);
        }
        is_own
    }

    /// Returns the Host header for the backend.
    pub fn own(&self) -> &str {
        &self.own
    }

    fn are(&self, host: &str) -> bool {
        self.all.iter().any(|name| name == host)
    }
}

/// Rewrites redirects and cookies: the requested host and the backend's own names become the client's name.
pub struct Redirects<'a> {
    /// Host as the client wrote it, with a port unless it is the scheme's default.
    pub authority: &'a str,
    /// The client uses https.
    pub tls: bool,
    /// Path and query of the client's request.
    pub target: &'a PathAndQuery,
    /// Port for https, if a client without TLS named no port and adit does not listen on 443.
    pub https_port: Option<u16>,
    /// adit speaks TLS to the backend.
    pub backend_tls: bool,
    /// The backend's own names, if redirects to them are rewritten, too.
    pub own: Option<&'a Names>,
}

impl Redirects<'_> {
    /// Rewrites redirects and cookies to the name that the client used. Other hosts stay as they are.
    pub fn lead_back(&self, headers: &mut HeaderMap) {
        for name in [LOCATION, CONTENT_LOCATION] {
            if let Some(url) = headers.get(&name).and_then(|value| self.url(value.as_bytes())) {
                headers.insert(name, url);
            }
        }
        if let Some(refresh) = headers.get(&REFRESH).and_then(|value| self.refresh(value.as_bytes())) {
            headers.insert(REFRESH, refresh);
        }
        let cookies: Vec<HeaderValue> = headers.get_all(SET_COOKIE).iter().cloned().collect();
        if !cookies.is_empty() {
            let host = table::normalise(self.authority);
            headers.remove(SET_COOKIE);
            for cookie in cookies {
                headers.append(SET_COOKIE, self.cookie(&cookie, &host).unwrap_or(cookie));
            }
        }
    }

    /// Returns an absolute URL, or one without a scheme, with the client's host. `None`: it stays as it is.
    fn url(&self, url: &[u8]) -> Option<HeaderValue> {
        let slashes = url.windows(2).position(|pair| pair == b"//")?;
        let (scheme, rest) = (url[..slashes].to_ascii_lowercase(), &url[slashes + 2..]);
        let end = rest.iter().position(|byte| b"/?#\\".contains(byte)).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority = std::str::from_utf8(authority).ok()?;
        let host = table::normalise(authority.rsplit_once('@').map_or(authority, |(_, host)| host));
        if host != table::normalise(self.authority) && !self.own.is_some_and(|own| own.are(&host)) {
            return None;
        }
        let is_https = match &scheme[..] {
            b"" | b"http:" => self.tls,
            // If adit speaks TLS to the backend, https is only the backend's own scheme, unless the redirect would then be a
            // loop.
            b"https:" => self.tls || !self.backend_tls || self.is_target(path),
            _ => return None,
        };
        let led = match (&scheme[..], is_https) {
            (b"", _) => format!("//{}", self.authority),
            (_, false) => format!("http://{}", self.authority),
            (_, true) => match self.https_port.filter(|_| !self.tls) {
                Some(port) => format!("https://{}:{port}", self.authority),
                None => format!("https://{}", self.authority),
            },
        };
        HeaderValue::from_bytes(&[led.as_bytes(), path].concat()).ok()
    }

    /// Returns whether a path with its query is the one that the client requested.
    fn is_target(&self, path: &[u8]) -> bool {
        let path = path.split(|byte| *byte == b'#').next().unwrap_or_default();
        let target = self.target.as_str().as_bytes();
        path == target || (!path.starts_with(b"/") && [b"/", path].concat() == target)
    }

    /// Rewrites the URL of `5; url=http://...`, quoted or not (HTML, section 4.2.5.3).
    fn refresh(&self, value: &[u8]) -> Option<HeaderValue> {
        let mut at = value.iter().position(|byte| b";,".contains(byte))? + 1;
        let spaces = |at: usize| value[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        at += spaces(at);
        if value[at..].get(..3).is_some_and(|name| name.eq_ignore_ascii_case(b"url")) {
            let equals = at + 3 + spaces(at + 3);
            if value.get(equals) == Some(&b'=') {
                at = equals + 1 + spaces(equals + 1);
            }
        }
        let quote = value.get(at).copied().filter(|byte| b"'\"".contains(byte));
        at += usize::from(quote.is_some());
        let end = quote.and_then(|quote| value[at..].iter().position(|byte| *byte == quote));
        let end = end.map_or(value.len(), |end| at + end);
        let url = self.url(&value[at..end])?;
        HeaderValue::from_bytes(&[&value[..at], url.as_bytes(), &value[end..]].concat()).ok()
    }

    /// Returns a cookie with a Domain that a browser accepts from the client's host, or without one: it then belongs to that host
    /// alone. `None`: it stays as it is.
    fn cookie(&self, cookie: &HeaderValue, host: &str) -> Option<HeaderValue> {
        let is_dropped = |attribute: &&[u8]| {
            let Some(equals) = attribute.iter().position(|byte| *byte == b'=') else { return false };
            let (name, domain) = (attribute[..equals].trim_ascii(), attribute[equals + 1..].trim_ascii());
            let Ok(domain) = std::str::from_utf8(domain) else { return false };
            if !name.eq_ignore_ascii_case(b"domain") || domain.is_empty() {
                return false;
            }
            let domain = domain.trim_start_matches('.');
            let without_port = table::normalise(domain);
            let lies_in =
                host == without_port || host.strip_suffix(&without_port).is_some_and(|rest| rest.ends_with('.'));
            // A Domain has no port (RFC 6265, section 4.1.1): with one, browsers reject the cookie.
            let is_whole = domain.eq_ignore_ascii_case(&without_port);
            if lies_in { !is_whole } else { self.own.is_some() }
        };
        let mut parts = cookie.as_bytes().split(|byte| *byte == b';');
        let first = parts.next()?;
        let kept: Vec<&[u8]> = parts.clone().filter(|part| !is_dropped(part)).collect();
        if kept.len() == parts.count() {
            return None;
        }
        HeaderValue::from_bytes(&[&[first], &kept[..]].concat().join(&b';')).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderName;

    use super::*;
    use crate::{config::PortRef, routing::ClusterId};

    fn names() -> Names {
        let target = PodTarget {
            cluster: ClusterId { kubeconfig: Arc::default(), context: "dev".parse().unwrap() },
            namespace: "shop".parse().unwrap(),
            workload: Workload::Service("web".parse().unwrap()),
            port: PortRef::Auto,
            jump: None,
        };
        Names::of(&target, Scheme::Http, 8080, None)
    }

    /// Returns a header of the pod's answer as the client gets it.
    fn led(redirects: &Redirects<'_>, name: HeaderName, value: &str) -> String {
        let mut headers = HeaderMap::from_iter([(name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap())]);
        redirects.lead_back(&mut headers);
        String::from_utf8(headers[name].as_bytes().to_vec()).unwrap()
    }

    fn redirects(target: &PathAndQuery) -> Redirects<'_> {
        let authority = "web.localhost:8989";
        Redirects { authority, tls: false, target, https_port: None, backend_tls: false, own: None }
    }

    #[test]
    fn the_backend_gets_its_own_name() {
        let mut headers = HeaderMap::new();
        names().into_request(&mut headers);
        assert_eq!(headers[HOST], "web.shop.svc.cluster.local:8080");
    }

    #[test]
    fn a_dev_server_gets_the_name_that_it_has_on_the_laptop() {
        let names = Names::fixed("localhost:5173", Scheme::Http);
        let origin = |origin: &str| {
            let mut headers = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_str(origin).unwrap())]);
            names.into_request(&mut headers);
            names.into_origin(&mut headers, "mine.example.com", true);
            assert_eq!(headers[HOST], "localhost:5173");
            headers[ORIGIN].to_str().unwrap().to_owned()
        };
        assert_eq!(origin("https://mine.example.com"), "https://localhost:5173");
        for other in
            ["null", "https://evil.example", "https://mine.example.com.evil.example", "https://mine.example.com:1"]
        {
            assert_eq!(origin(other), other);
        }
        let target = PathAndQuery::from_static("/");
        let of = |url: &str| led(&Redirects { own: Some(&names), ..redirects(&target) }, LOCATION, url);
        assert_eq!(of("http://localhost:5173/a"), "http://web.localhost:8989/a");
        assert_eq!(of("http://127.0.0.1:5173/a"), "http://web.localhost:8989/a");
        assert_eq!(of("http://[::1]:5173/a"), "http://web.localhost:8989/a");
        assert_eq!(of("http://example.com/a"), "http://example.com/a");
    }

    #[test]
    fn redirects_of_the_host_that_was_asked_for_come_back_with_its_port() {
        let target = PathAndQuery::from_static("/docs");
        let of = |url: &str, tls: bool, backend_tls: bool| {
            led(&Redirects { tls, backend_tls, ..redirects(&target) }, LOCATION, url)
        };
        for (url, client) in [
            ("http://web.localhost/docs/", "http://web.localhost:8989/docs/"),
            ("http://web.localhost:8080/docs/?a=b#c", "http://web.localhost:8989/docs/?a=b#c"),
            ("HTTP://Web.Localhost.:80", "http://web.localhost:8989"),
            ("http://me@web.localhost/", "http://web.localhost:8989/"),
            ("//web.localhost:8443/x", "//web.localhost:8989/x"),
            ("http://web.localhost?x", "http://web.localhost:8989?x"),
            ("http://web.localhost/\u{e9}", "http://web.localhost:8989/\u{e9}"),
        ] {
            assert_eq!(of(url, false, false), client);
            assert_eq!(of(url, true, false), client.replace("http:", "https:"));
        }
        for other in [
            "/x",
            "x",
            "",
            "//",
            "https://login.example.com/?next=http://web.localhost/",
            "http://web.localhost.example.com/",
            "http://other.localhost/",
            "http://sub.web.localhost/",
            "http://web.shop.svc/",
            "mailto:a@web.localhost",
            "ftp://web.localhost/",
        ] {
            assert_eq!(of(other, false, false), other);
            assert_eq!(of(other, true, true), other);
        }
    }

    #[test]
    fn a_redirect_to_https_leads_to_https() {
        let target = PathAndQuery::from_static("/?a");
        let of = |url: &str, tls: bool, backend_tls: bool, https_port: Option<u16>| {
            let authority = if https_port.is_some() { "web.localhost" } else { "web.localhost:8989" };
            led(&Redirects { authority, tls, backend_tls, https_port, ..redirects(&target) }, LOCATION, url)
        };
        // A server that demands https.
        assert_eq!(of("https://web.localhost/?a", false, false, None), "https://web.localhost:8989/?a");
        assert_eq!(of("https://web.localhost:443/x", false, false, None), "https://web.localhost:8989/x");
        assert_eq!(of("https://web.localhost/x", false, false, Some(80)), "https://web.localhost:80/x");
        assert_eq!(of("http://web.localhost/x", false, false, Some(80)), "http://web.localhost/x");
        // An https server that does not know that the client uses http.
        assert_eq!(of("https://web.localhost/x", false, true, None), "http://web.localhost:8989/x");
        // An https server that knows it, so that an http redirect would be a loop.
        assert_eq!(of("https://web.localhost/?a", false, true, None), "https://web.localhost:8989/?a");
        assert_eq!(of("https://web.localhost?a", false, true, None), "https://web.localhost:8989?a");
        assert_eq!(of("https://web.localhost/x", true, true, None), "https://web.localhost:8989/x");
        assert_eq!(of("http://web.localhost/x", true, false, Some(80)), "https://web.localhost/x");
    }

    #[test]
    fn the_backends_own_names_come_back_where_that_is_asked_for() {
        let (target, names) = (PathAndQuery::from_static("/"), names());
        let of = |url: &str| led(&Redirects { own: Some(&names), ..redirects(&target) }, LOCATION, url);
        assert_eq!(of("http://web.shop.svc.cluster.local:8080/a?b#c"), "http://web.localhost:8989/a?b#c");
        assert_eq!(of("//web.shop.svc/x"), "//web.localhost:8989/x");
        assert_eq!(of("http://web.localhost/x"), "http://web.localhost:8989/x");
        assert_eq!(
            of("https://login.example.com/?next=http://web.shop/"),
            "https://login.example.com/?next=http://web.shop/"
        );
    }

    #[test]
    fn a_refresh_and_a_content_location_come_back() {
        let target = PathAndQuery::from_static("/");
        let of = |name: HeaderName, value: &str| led(&redirects(&target), name, value);
        assert_eq!(of(CONTENT_LOCATION, "http://web.localhost:80/a.en"), "http://web.localhost:8989/a.en");
        for (value, client) in [
            ("0; url=http://web.localhost/next", "0; url=http://web.localhost:8989/next"),
            ("5;URL = 'http://web.localhost:8080/a;b'", "5;URL = 'http://web.localhost:8989/a;b'"),
            ("5, \"http://web.localhost/\" x", "5, \"http://web.localhost:8989/\" x"),
            ("1.5; http://web.localhost/", "1.5; http://web.localhost:8989/"),
            ("5", "5"),
            ("5; url=", "5; url="),
            ("5; url=/next", "5; url=/next"),
            ("0; url=http://other.localhost/", "0; url=http://other.localhost/"),
        ] {
            assert_eq!(of(REFRESH, value), client);
        }
    }

    #[test]
    fn cookies_stay_with_the_client() {
        let (target, names) = (PathAndQuery::from_static("/"), names());
        let of = |own: Option<&Names>, cookie: &str| led(&Redirects { own, ..redirects(&target) }, SET_COOKIE, cookie);
        for (cookie, own, by_default) in [
            (
                "a=1; Path=/; Domain=web.shop.svc; HttpOnly",
                "a=1; Path=/; HttpOnly",
                "a=1; Path=/; Domain=web.shop.svc; HttpOnly",
            ),
            ("a=1; Domain=web.localhost:8080; Secure", "a=1; Secure", "a=1; Secure"),
            ("a=1; domain=.Web.Localhost", "a=1; domain=.Web.Localhost", "a=1; domain=.Web.Localhost"),
            ("b=2; domain=localhost", "b=2; domain=localhost", "b=2; domain=localhost"),
            ("c=domain=x", "c=domain=x", "c=domain=x"),
            ("d=4; Domain=", "d=4; Domain=", "d=4; Domain="),
        ] {
            assert_eq!(of(Some(&names), cookie), own);
            assert_eq!(of(None, cookie), by_default);
        }
    }
}
