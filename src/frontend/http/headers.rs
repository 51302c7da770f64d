//! Headers that a proxy adds and removes.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode, Version,
    header::{
        CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, FORWARDED, HOST, PROXY_AUTHORIZATION, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE, VIA,
    },
    response::Parts,
};

use crate::config::HeaderRules;

/// Headers of one connection, not of the message (RFC 9110, section 7.6.1; RFC 2616, section 13.5.1).
const HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
    UPGRADE,
];

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Proxies that a request has passed through (RFC 8586).
///
/// RFC 9110, section 7.6.3, demands Via, but nginx does not compress answers to requests with Via (`gzip_proxied`).
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Addresses and scheme by which the client reached adit.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'a> {
    pub peer: SocketAddr,
    /// The Host header or :authority, as sent.
    pub host: &'a str,
    /// Port that the client has connected to, if `host` has none.
    pub port: u16,
    pub tls: bool,
}

/// Returns the protocol that a message asks to switch to: the Upgrade header, if Connection names it.
///
/// An offer of h2c does not count: RFC 9113, section 3.1, has withdrawn it, and its HTTP2-Settings are about the client's
/// connection to adit. curl --http2 sends it with every first request.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let is_named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let is_named =
        is_named.flat_map(|value| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(UPGRADE).filter(|protocol| is_named && !protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).cloned()
}

/// Removes the headers of one connection, including those that Connection names.
///
/// `TE: trailers` stays: without it a gRPC server refuses to answer.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|option| HeaderName::from_bytes(option.trim().as_bytes()).ok())
        // A client must not remove the headers that say where a message ends, or which host it is for.
        .filter(|name| !matches!(*name, HOST | CONTENT_LENGTH | TRAILER | TE))
        .collect();
    for name in named.into_iter().chain(HOP_BY_HOP) {
        headers.remove(name);
    }
    let wants_trailers = headers.get_all(TE).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value
            .split(',')
            .any(|coding| coding.split(';').next().is_some_and(|coding| coding.trim().eq_ignore_ascii_case("trailers")))
    });
    headers.remove(TE);
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes the connection's headers from the head of a backend's answer, and sets adit's own HTTP version (RFC 9110, section
/// 2.5).
pub fn of_answer(parts: &mut Parts) {
    let headers = &mut parts.headers;
    if headers.contains_key(TRANSFER_ENCODING) {
        // Transfer-Encoding overrides Content-Length (RFC 9112, section 6.3).
        headers.remove(CONTENT_LENGTH);
    }
    if parts.status == StatusCode::NO_CONTENT {
        // A 204 must have none (RFC 9110, section 8.6), and HTTP/2 clients treat one as an error.
        headers.remove(CONTENT_LENGTH);
    }
    if let Some(length) = length(headers) {
        headers.insert(CONTENT_LENGTH, length);
    }
    let codings: Vec<String> = headers
        .get_all(TRANSFER_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|coding| coding.trim().to_ascii_lowercase())
        .filter(|coding| !matches!(&**coding, "" | "chunked" | "identity"))
        .collect();
    if let Ok(value) = HeaderValue::try_from(codings.join(", "))
        && !codings.is_empty()
    {
        // hyper has decoded the chunks, but not the coding below them.
        headers.append(CONTENT_ENCODING, value);
    }
    // A 426 must name its protocols in Upgrade (RFC 9110, section 15.5.22).
    let upgrade = (parts.status == StatusCode::UPGRADE_REQUIRED).then(|| upgrade(headers)).flatten();
    remove_hop_by_hop(headers);
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
    parts.version = Version::HTTP_11;
}

/// Returns the one value of a Content-Length that an answer repeats; HTTP/2 clients treat two as an error (RFC 9110, section
/// 8.6). hyper has checked that the values are equal.
fn length(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let first = values.next()?.to_str().ok()?;
    let once = first.split(',').next()?.trim();
    (values.next().is_some() || once != first).then(|| once.parse().ok()).flatten()
}

/// Sets X-Forwarded-For, -Host, -Proto, -Port and Forwarded (RFC 7239). Replaces the client's own values: no proxy is before
/// adit, so the client could claim anything.
pub fn set_forwarded(headers: &mut HeaderMap, via: Hop<'_>) {
    let proto = if via.tls { "https" } else { "http" };
    let port = port(via);
    let (ip, node) = match via.peer.ip().to_canonical() {
        IpAddr::V4(ip) => (ip.to_string(), ip.to_string()),
        // Forwarded needs brackets and quotes around an IPv6 address (RFC 7239, section 6).
        IpAddr::V6(ip) => (ip.to_string(), format!("\"[{ip}]\"")),
    };
    let forwarded = format!("for={node};host=\"{}\";proto={proto}", via.host.replace(['"', '\\'], ""));
    for (name, value) in [
        (X_FORWARDED_FOR, ip.as_str()),
        (X_FORWARDED_HOST, via.host),
        (X_FORWARDED_PROTO, proto),
        (X_FORWARDED_PORT, &port),
        (FORWARDED, &forwarded),
    ] {
        match HeaderValue::from_str(value) {
            Ok(value) => headers.insert(name, value),
            Err(_) => headers.remove(name),
        };
    }
    // Set only if the client sends it: a backend that trusts X-Real-IP gets the true address, and others get no new header.
    if let (true, Ok(ip)) = (headers.contains_key(X_REAL_IP), HeaderValue::from_str(&ip)) {
        headers.insert(X_REAL_IP, ip);
    }
}

/// Sets scheme and port as [`set_forwarded`] does, and keeps the addresses and the host of the proxy before adit.
pub fn keep_forwarded(headers: &mut HeaderMap, via: Hop<'_>) {
    add_forwarded(headers, via.peer);
    if let Ok(host) = HeaderValue::from_str(via.host) {
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(if via.tls { "https" } else { "http" }));
    if let Ok(port) = HeaderValue::from_str(&port(via)) {
        headers.insert(X_FORWARDED_PORT, port);
    }
}

/// Returns the port that the client has connected to.
fn port(via: Hop<'_>) -> String {
    let port = via.host.rsplit_once(':').map(|(_, port)| port).filter(|port| port.parse::<u16>().is_ok());
    port.map_or_else(|| via.port.to_string(), str::to_owned)
}

/// Returns the port of a URL that has none.
pub fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

/// Adds the client's address to a request, unless a proxy before adit has done so.
pub fn add_forwarded(headers: &mut HeaderMap, peer: SocketAddr) {
    let is_said = [X_FORWARDED_FOR, FORWARDED].iter().any(|name| headers.contains_key(name));
    if let (false, Ok(ip)) = (is_said, HeaderValue::from_str(&peer.ip().to_canonical().to_string())) {
        headers.insert(X_FORWARDED_FOR, ip);
    }
}

/// Identity of this process in CDN-Loop, and the ids of the requests that pass through it.
pub struct Identity {
    /// `adit-` and 16 hexadecimal digits: a pseudonym, as in Via (RFC 9110, section 7.6.3).
    pseudonym: String,
    prefix: u64,
    next: AtomicU64,
}

impl Default for Identity {
    fn default() -> Self {
        // `RandomState` has a random seed in each process.
        let prefix = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
        Self { pseudonym: format!("adit-{prefix:016x}"), prefix, next: AtomicU64::new(1) }
    }
}

impl Identity {
    /// Returns whether a request has passed through this process before.
    pub fn is_loop(&self, headers: &HeaderMap) -> bool {
        let passed = [CDN_LOOP, VIA].map(|name| headers.get_all(name));
        let mut passed = passed.iter().flatten().filter_map(|value| value.to_str().ok());
        passed.any(|value| value.contains(&self.pseudonym))
    }

    /// Adds this proxy to CDN-Loop, and an X-Request-Id if the client sends none.
    pub fn mark(&self, headers: &mut HeaderMap) {
        if let Ok(pseudonym) = HeaderValue::from_str(&self.pseudonym) {
            headers.append(CDN_LOOP, pseudonym);
        }
        if !headers.contains_key(X_REQUEST_ID) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if let Ok(id) = HeaderValue::from_str(&format!("{:016x}{number:016x}", self.prefix)) {
                headers.insert(X_REQUEST_ID, id);
            }
        }
    }
}

/// Applies a route's rules for headers.
pub fn apply(rules: &HeaderRules, headers: &mut HeaderMap) {
    for (name, value) in &rules.set {
        headers.insert(name, value.clone());
    }
    for name in &rules.remove {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn behind_other_proxies_what_they_have_said_stays() {
        let peer = SocketAddr::from(([10, 0, 0, 7], 1));
        for (name, value) in [("x-forwarded-for", "1.2.3.4, 10.0.0.1"), ("forwarded", "for=1.2.3.4")] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            let before = headers.clone();
            add_forwarded(&mut headers, peer);
            assert_eq!(headers, before);
        }
        let mut headers = HeaderMap::new();
        add_forwarded(&mut headers, peer);
        assert_eq!(headers["x-forwarded-for"], "10.0.0.7");
    }

    #[test]
    fn a_client_cannot_claim_another_address() {
        let hop = Hop { peer: "192.0.2.7:1234".parse().unwrap(), host: "web.example.com", port: 80, tls: false };
        let mut headers =
            map(&[("x-real-ip", "10.0.0.1"), ("x-forwarded-for", "10.0.0.1"), ("forwarded", "for=10.0.0.1")]);
        headers.append(X_REAL_IP, HeaderValue::from_static("10.0.0.2"));
        set_forwarded(&mut headers, hop);
        assert_eq!(headers.get_all(X_REAL_IP).iter().collect::<Vec<_>>(), ["192.0.2.7"]);
        assert_eq!(headers[X_FORWARDED_FOR], "192.0.2.7");
        let mut without = HeaderMap::new();
        set_forwarded(&mut without, hop);
        assert!(!without.contains_key(X_REAL_IP));
    }

    #[test]
    fn what_is_about_the_connection_is_removed_with_what_it_names() {
        let mut headers = map(&[
            ("connection", "close, X-Secret, Host"),
            ("x-secret", "1"),
            ("host", "a"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers, deflate;q=0.5"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("host", "a"), ("accept", "*/*"), ("te", "trailers")]));
    }

    #[test]
    fn a_loop_shows_in_cdn_loop_and_in_via_and_no_via_is_added() {
        let (identity, other) =
            (Identity::default(), Identity { pseudonym: "adit-0".to_owned(), ..Identity::default() });
        let mut headers = map(&[("cdn-loop", "cdn.example; a=\"b\""), ("via", "1.1 cache")]);
        other.mark(&mut headers);
        assert!(!identity.is_loop(&headers) && other.is_loop(&headers));
        identity.mark(&mut headers);
        assert!(identity.is_loop(&headers));
        assert_eq!(headers.get_all(CDN_LOOP).iter().count(), 3);
        assert_eq!(headers.get_all(VIA).iter().collect::<Vec<_>>(), ["1.1 cache"]);
        let of_older_version = map(&[("via", &format!("1.1 {}", identity.pseudonym))]);
        assert!(identity.is_loop(&of_older_version));
    }

    #[test]
    fn a_clients_own_claims_are_replaced() {
        let mut headers =
            map(&[("x-forwarded-for", "6.6.6.6"), ("forwarded", "for=6.6.6.6"), ("x-forwarded-proto", "https")]);
        let via = Hop { peer: "[::1]:5000".parse().unwrap(), host: "web.shop.localhost:8989", port: 80, tls: false };
        set_forwarded(&mut headers, via);
        let wanted = map(&[
            ("x-forwarded-for", "::1"),
            ("forwarded", "for=\"[::1]\";host=\"web.shop.localhost:8989\";proto=http"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "web.shop.localhost:8989"),
            ("x-forwarded-port", "8989"),
        ]);
        assert_eq!(headers, wanted);
    }

    #[test]
    fn an_upgrade_counts_only_where_connection_names_it() {
        assert_eq!(
            upgrade(&map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])),
            Some(HeaderValue::from_static("websocket"))
        );
        assert_eq!(upgrade(&map(&[("upgrade", "websocket")])), None);
        assert_eq!(upgrade(&map(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")])), None);
    }
}
