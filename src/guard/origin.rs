//! Checks which web pages may send changes: those of the same Service, and those that a route allows.
//!
//! A browser lets any page send forms, fetches and WebSockets anywhere. Reads are harmless, because adit adds no CORS
//! header to an answer. A write must come from a permitted page (Fetch Metadata, and RFC 6454 for Origin).

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName, Method,
    header::{HOST, ORIGIN},
};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// A request from a page of another site, which may not send it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cross-origin request from {from} blocked")]
pub struct Foreign {
    /// Origin of the page, or the browser's description of it.
    pub from: String,
}

/// Checks the origin of a request.
///
/// `host`: requested name, in lower case and without port. `switches`: the request asks for a WebSocket or another
/// protocol. `allowed`: permitted origins in addition to those of this machine; `*` is any.
///
/// # Errors
/// The request may change something, and comes from a page of another site.
pub fn check(
    method: &Method,
    headers: &HeaderMap,
    host: &str,
    switches: bool,
    allowed: &[String],
) -> Result<(), Foreign> {
    if method.is_safe() && !switches {
        return Ok(());
    }
    let site = headers.get(SEC_FETCH_SITE).map(|site| String::from_utf8_lossy(site.as_bytes()).into_owned());
    // The browser sets this header, and a page cannot.
    if site.as_deref() == Some("same-origin") {
        return Ok(());
    }
    let mut origins = headers.get_all(ORIGIN).iter().peekable();
    if origins.peek().is_none() {
        return match site.as_deref() {
            Some("cross-site") => Err(Foreign { from: "a page of another site".to_owned() }),
            _ => Ok(()),
        };
    }
    for origin in origins {
        let origin = String::from_utf8_lossy(origin.as_bytes());
        let is_allowed = allowed.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(&origin));
        if !is_allowed && !host_of(&origin).is_some_and(|from| from == host || is_this_machine(&from)) {
            let from = if origin == "null" { "a page without an origin (null)" } else { &origin };
            return Err(Foreign { from: from.to_owned() });
        }
    }
    Ok(())
}

/// Returns whether a request to one of adit's own pages comes from a program on this machine, and not from a web page.
/// A page of another site sends an Origin, or, after DNS rebinding, a Host that is not a loopback name.
pub fn is_of_this_machine(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    (name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())) && !headers.contains_key(ORIGIN)
}

/// Returns the host of an origin (`scheme://host[:port]`), lower case.
fn host_of(origin: &str) -> Option<String> {
    let (_, authority) = origin.split_once("://")?;
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next()?,
        None => authority.split(':').next()?,
    };
    Some(host.trim_end_matches('.').to_ascii_lowercase())
}

/// A name below `localhost` is that of a Service: its pages come from a pod, not from this machine.
fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(method: Method, pairs: &[(&'static str, &'static str)], switches: bool) -> bool {
        let headers: HeaderMap =
            pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect();
        check(&method, &headers, "web.shop.localhost", switches, &["https://ok.example".to_owned()]).is_ok()
    }

    #[test]
    fn pages_of_other_sites_read_but_do_not_write() {
        let evil = [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")];
        assert!(checked(Method::GET, &evil, false));
        assert!(checked(Method::OPTIONS, &evil, false));
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            assert!(!checked(method, &evil, false));
        }
        assert!(!checked(Method::GET, &evil, true), "a WebSocket");
        assert!(!checked(Method::POST, &[("origin", "null")], false));
        assert!(!checked(Method::POST, &[("sec-fetch-site", "cross-site")], false));
        assert!(!checked(Method::POST, &[("origin", "http://localhost.evil.example")], false));
        assert!(!checked(Method::POST, &[("origin", "http://localhost"), ("origin", "https://evil.example")], false));
    }

    #[test]
    fn a_page_of_one_service_does_not_write_to_another() {
        for origin in ["http://api.shop.localhost:8989", "http://other.localhost", "http://x.web.shop.localhost"] {
            assert!(!checked(Method::POST, &[("origin", origin), ("sec-fetch-site", "same-site")], false), "{origin}");
            assert!(!checked(Method::GET, &[("origin", origin)], true), "a WebSocket of {origin}");
            assert!(checked(Method::GET, &[("origin", origin)], false), "{origin}");
        }
    }

    #[test]
    fn our_own_pages_are_for_programs_of_this_machine() {
        let is_let_in = |pairs: &[(HeaderName, &'static str)]| {
            let pairs = pairs.iter().map(|(name, value)| (name.clone(), http::HeaderValue::from_static(value)));
            is_of_this_machine(&pairs.collect())
        };
        assert!(
            is_let_in(&[(HOST, "127.0.0.1:9000")])
                && is_let_in(&[(HOST, "[::1]:9000")])
                && is_let_in(&[(HOST, "localhost")])
        );
        assert!(!is_let_in(&[(HOST, "rebound.example:9000")]));
        assert!(!is_let_in(&[(HOST, "127.0.0.1:9000"), (ORIGIN, "https://evil.example")]));
    }

    #[test]
    fn pages_of_this_machine_and_allowed_ones_do() {
        for origin in [
            "http://web.shop.localhost:8989",
            "https://WEB.shop.localhost.",
            "http://localhost:3000",
            "https://127.0.0.1:8443",
            "http://[::1]:5173",
            "https://ok.example",
        ] {
            assert!(checked(Method::POST, &[("origin", origin), ("sec-fetch-site", "cross-site")], false), "{origin}");
        }
        assert!(checked(Method::POST, &[], false), "curl");
        assert!(checked(Method::POST, &[("origin", "null"), ("sec-fetch-site", "same-origin")], false));
        assert!(checked(Method::POST, &[("sec-fetch-site", "same-site")], false));
    }
}
