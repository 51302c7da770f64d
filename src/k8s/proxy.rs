//! Chooses the proxy for a server from the environment, by kubectl's rules.
//!
//! The rules are those of Go's `golang.org/x/net/http/httpproxy`: NO_PROXY is matched against the server, and loopback is
//! never reached through a proxy of the environment. A kubeconfig's `proxy-url` overrides all of this.

use std::net::IpAddr;

use http::{
    Uri,
    uri::{Authority, Scheme},
};
use ipnet::IpNet;
use tracing::warn;

/// Proxy variables of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// HTTPS_PROXY, else https_proxy: for `https://` servers.
    pub https: Option<String>,
    /// HTTP_PROXY, else http_proxy: for `http://` servers.
    pub http: Option<String>,
    /// NO_PROXY, else no_proxy.
    pub none: Option<String>,
}

impl Environment {
    /// Reads the variables of this process. An empty variable counts as unset.
    pub fn of_process() -> Self {
        let read = |upper: &str, lower: &str| {
            [upper, lower].iter().filter_map(|name| std::env::var(name).ok()).find(|value| !value.is_empty())
        };
        Self {
            https: read("HTTPS_PROXY", "https_proxy"),
            http: read("HTTP_PROXY", "http_proxy"),
            none: read("NO_PROXY", "no_proxy"),
        }
    }

    /// Returns the proxy for `server`, e.g. `https://10.0.0.1:6443`. None: connect directly, also if the variable is not a
    /// URL.
    pub fn proxy_for(&self, server: &Uri) -> Option<Uri> {
        let (variable, proxy, port) = match server.scheme_str() {
            Some("http") => ("HTTP_PROXY", &self.http, 80),
            _ => ("HTTPS_PROXY", &self.https, 443),
        };
        let proxy = proxy.as_ref()?;
        let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
        if self.bypasses(host, server.port_u16().unwrap_or(port)) {
            return None;
        }
        let parsed = parse(proxy).inspect_err(|reason| {
            warn!(variable, value = without_password(proxy), reason, "adit uses no proxy");
        });
        let mut proxy = parsed.ok()?.into_parts();
        // Any other scheme means an HTTP proxy.
        let is_known = |scheme: &Scheme| ["http", "https", "socks5", "socks5h"].contains(&scheme.as_str());
        proxy.scheme = proxy.scheme.filter(is_known).or(Some(Scheme::HTTP));
        Uri::from_parts(proxy).ok()
    }

    fn bypasses(&self, host: &str, port: u16) -> bool {
        let host = host.to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        let entries = self.none.as_deref().unwrap_or_default().split(',');
        entries.map(|entry| entry.trim().to_ascii_lowercase()).any(|entry| covers(&entry, &host, address, port))
    }
}

/// Returns whether an entry of NO_PROXY matches a host. An invalid entry matches nothing.
fn covers(entry: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    if let Ok(network) = entry.parse::<IpNet>() {
        return address.is_some_and(|address| canonical(network).contains(&address));
    }
    let (name, only) = split_port(entry);
    if name.is_empty() || only.is_some_and(|only| only != port.to_string()) {
        return false;
    }
    if let Ok(wanted) = name.parse::<IpAddr>() {
        return address == Some(wanted.to_canonical());
    }
    if address.is_some() {
        return false;
    }
    // `*.example.com` and `.example.com` match only subdomains; `example.com` matches itself too.
    let below = if name.starts_with("*.") { &name[1..] } else { name };
    match below.strip_prefix('.') {
        Some(suffix) => host.strip_suffix(suffix).is_some_and(|front| front.ends_with('.')),
        None => host == below || host.strip_suffix(below).is_some_and(|front| front.ends_with('.')),
    }
}

/// Returns an IPv4-mapped IPv6 network as IPv4, as in Go.
fn canonical(network: IpNet) -> IpNet {
    let prefix = network.prefix_len().checked_sub(96);
    let mapped = prefix.and_then(|prefix| IpNet::new(network.addr().to_canonical(), prefix).ok());
    mapped.filter(|it| matches!((it, network), (IpNet::V4(_), IpNet::V6(_)))).unwrap_or(network)
}

/// Splits `name:port`, `address:port` and `[address]:port`. A bare IPv6 address has no port.
fn split_port(entry: &str) -> (&str, Option<&str>) {
    match entry.rsplit_once(':') {
        Some((name, port)) if name.starts_with('[') && name.ends_with(']') => (&name[1..name.len() - 1], Some(port)),
        Some((name, port)) if !name.contains(':') && !entry.starts_with('[') => {
            (name, (!port.is_empty()).then_some(port))
        }
        _ => (entry, None),
    }
}

/// Parses the `proxy-url` of a kubeconfig.
///
/// # Errors
/// Fails if the text is not a URL, or if its scheme is not `http`, `https` or `socks5`.
pub fn of_kubeconfig(text: &str) -> Result<Uri, String> {
    match text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase()).as_deref() {
        Some("http" | "https" | "socks5") => parse(text),
        _ => Err("it has to begin with http://, https:// or socks5://".to_owned()),
    }
}

/// Returns the host and port of a proxy, for messages and commands. A SOCKS proxy has its scheme.
pub fn without_credentials(proxy: &Uri) -> String {
    let authority = proxy.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    match proxy.scheme_str() {
        Some(scheme) if scheme != "http" => format!("{scheme}://{host}"),
        _ => host.to_owned(),
    }
}

/// Returns a URL, valid or not, with `***` instead of its password.
pub fn without_password(text: &str) -> String {
    let start = text.find("://").map_or(0, |at| at + 3);
    let end = text[start..].find(['/', '?', '#']).map_or(text.len(), |at| start + at);
    let Some((userinfo, host)) = text[start..end].rsplit_once('@') else { return text.to_owned() };
    let user = userinfo.split_once(':').map_or(userinfo.to_owned(), |(user, _)| format!("{user}:***"));
    format!("{}{user}@{host}{}", &text[..start], &text[end..])
}

/// Returns the user and password of a URL, percent-decoded.
pub fn credentials(url: &Uri) -> Option<(String, String)> {
    let (userinfo, _) = url.authority()?.as_str().rsplit_once('@')?;
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    Some((decode(user), decode(password)))
}

/// Parses the URL of a proxy. Without a scheme it is an `http` proxy, without a host it is on this machine.
///
/// # Errors
/// Fails if the text is not a URL, has no host, or has no valid port.
pub fn parse(text: &str) -> Result<Uri, String> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    // `:3128`, but not `:password@proxy`.
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let here = if authority.starts_with(':') && !authority.contains('@') { "127.0.0.1" } else { "" };
    let whole = format!("{scheme}://{here}{rest}");
    match whole.parse::<Uri>() {
        Ok(uri) if !uri.authority().is_some_and(has_valid_port) => Err("its port is no number up to 65535".to_owned()),
        Ok(uri) if uri.host().is_some_and(|host| !host.is_empty()) => Ok(normal(uri)),
        _ => Err("it is not the URL of a proxy, e.g. http://proxy.example.com:3128".to_owned()),
    }
}

/// Returns whether a port, if there is one, is a number up to 65535. Without that, `http::Uri` has no port.
pub fn has_valid_port(authority: &Authority) -> bool {
    let place = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, place)| place);
    let port = place.rsplit_once(']').map_or(place, |(_, port)| port).split_once(':').map(|(_, port)| port);
    port.is_none_or(|port| port.is_empty() || (!port.starts_with('+') && authority.port_u16().is_some()))
}

/// Returns a URL with its scheme in lower case, and a default port for a SOCKS proxy.
fn normal(url: Uri) -> Uri {
    let mut parts = url.clone().into_parts();
    let scheme = url.scheme_str().unwrap_or_default().to_ascii_lowercase();
    if scheme.starts_with("socks") && url.port().is_none() {
        let authority = url.authority().map(|authority| authority.as_str().trim_end_matches(':')).unwrap_or_default();
        parts.authority = format!("{authority}:1080").parse().ok().or(parts.authority);
    }
    parts.scheme = scheme.parse().ok();
    Uri::from_parts(parts).unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_none_is_an_error_and_a_password_needs_no_user() {
        for text in ["http://u:secret@127.0.0.2:99999", "https://[::1]:70000"] {
            assert!(parse(text).unwrap_err().contains("up to 65535"), "{text}");
        }
        let url = parse("http://:token@proxy:3128").unwrap();
        assert_eq!((url.host(), url.port_u16()), (Some("proxy"), Some(3128)));
        assert_eq!(credentials(&url), Some((String::new(), "token".to_owned())));
        assert_eq!(parse(":3128").unwrap().host(), Some("127.0.0.1"));
    }

    #[test]
    fn a_socks_proxy_has_a_default_port_and_a_scheme_in_any_case() {
        for (text, wanted) in [
            ("socks5://proxy", "socks5://proxy:1080/"),
            ("SOCKS5://ana:b@proxy", "socks5://ana:b@proxy:1080/"),
            ("socks5://[fd00::1]", "socks5://[fd00::1]:1080/"),
            ("HTTP://proxy", "http://proxy/"),
            ("http://:3128", "http://127.0.0.1:3128/"),
        ] {
            assert_eq!(of_kubeconfig(text).unwrap().to_string(), wanted);
        }
    }

    #[test]
    fn credentials_of_a_proxy_are_percent_decoded() {
        let of = |uri: &'static str| credentials(&Uri::from_static(uri));
        assert_eq!(of("http://ana:p%40ss@proxy:3128"), Some(("ana".into(), "p@ss".into())));
        assert_eq!(of("http://proxy:3128"), None);
    }

    #[test]
    fn a_password_is_not_shown() {
        for (text, wanted) in [
            ("http://ana:geheim@proxy:1/a@b", "http://ana:***@proxy:1/a@b"),
            ("ana:ge@heim@proxy", "ana:***@proxy"),
            ("ana@proxy", "ana@proxy"),
            ("http://proxy/?a=b@c", "http://proxy/?a=b@c"),
        ] {
            assert_eq!(without_password(text), wanted);
        }
    }

    fn chosen(https: &str, none: &str, server: &str) -> Option<String> {
        let of = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let environment = Environment { https: of(https), http: of("http://plain:1"), none: of(none) };
        environment.proxy_for(&server.parse().unwrap()).map(|uri| uri.to_string())
    }

    #[test]
    fn loopback_is_never_reached_through_a_proxy_of_the_environment() {
        for server in [
            "https://127.0.0.1:6443",
            "https://127.9.9.9",
            "https://localhost:6443",
            "https://[::1]:6443",
            "https://[::ffff:127.0.0.1]:6443",
            "https://LOCALHOST",
            "http://localhost",
        ] {
            assert_eq!(chosen("http://proxy:3128", "", server), None, "{server}");
        }
    }

    #[test]
    fn a_server_is_compared_with_each_form_of_no_proxy() {
        let cases = [
            ("", "https://api.example.com:6443", true),
            ("api.example.com", "https://api.example.com:6443", false),
            ("API.Example.COM", "https://api.example.com:6443", false),
            ("example.com", "https://api.example.com:6443", false),
            ("example.com", "https://example.com", false),
            ("example.com", "https://notexample.com", true),
            (".example.com", "https://api.example.com:6443", false),
            (".example.com", "https://example.com", true),
            ("*.example.com", "https://api.example.com", false),
            ("*.example.com", "https://example.com", true),
            ("*", "https://api.example.com", false),
            ("api.example.com:6443", "https://api.example.com:6443", false),
            ("api.example.com:6443", "https://api.example.com:7443", true),
            ("api.example.com:443", "https://api.example.com", false),
            ("10.0.0.1", "https://10.0.0.1:6443", false),
            ("10.0.0.1:6443", "https://10.0.0.1:6443", false),
            ("10.0.0.1:6444", "https://10.0.0.1:6443", true),
            ("10.0.0.0/8", "https://10.200.0.1:6443", false),
            ("10.0.0.0/8", "https://11.0.0.1:6443", true),
            ("10.0.0.0/99,10.0.0.1", "https://10.0.0.1", false),
            ("10.0.0.0/99", "https://10.0.0.1", true),
            ("fd00::/8", "https://[fd00::1]:6443", false),
            ("::ffff:10.88.0.0/112", "https://10.88.0.1", false),
            ("::ffff:10.88.0.0/112", "https://10.89.0.1", true),
            ("fd00::/100", "https://[fd00::1]", false),
            ("fd00::1", "https://[fd00::1]:6443", false),
            ("[fd00::1]:6444", "https://[fd00::1]:6443", true),
            ("0.0.1", "https://10.0.0.1", true),
            (".1", "https://10.0.0.1", true),
            ("10.0.0.1", "https://[::ffff:10.0.0.1]", false),
            ("*example.com", "https://api.example.com", true),
            ("*.", "https://api.example.com", true),
            (":6443", "https://api.example.com:6443", true),
            (",,a.test,,", "https://a.test", false),
            ("[fd00::1]:6443", "https://[fd00::1]:6443", false),
            ("api.example.com:port", "https://api.example.com", true),
            (" a.test , b.test ", "https://b.test", false),
            ("proxy", "https://api.example.com", true),
        ];
        for (none, server, proxied) in cases {
            assert_eq!(chosen("http://proxy:3128", none, server).is_some(), proxied, "{none:?} for {server}");
        }
    }

    #[test]
    fn a_proxy_url_needs_its_scheme() {
        assert!(of_kubeconfig("socks5://127.0.0.1:1080").is_ok() && of_kubeconfig("HTTP://proxy:3128").is_ok());
        for text in ["127.0.0.1:3128", "proxy", "socks4://a:1", "socks5h://a:1", "http://a:1 ", "", "http://"] {
            assert!(of_kubeconfig(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_scheme_of_the_server_chooses_the_variable_and_a_proxy_needs_no_scheme() {
        assert_eq!(chosen("proxy:3128", "", "https://a.test").as_deref(), Some("http://proxy:3128/"));
        assert_eq!(chosen("", "", "https://a.test"), None);
        assert_eq!(chosen("proxy:3128", "", "http://a.test").as_deref(), Some("http://plain:1/"));
        assert_eq!(chosen("ftp://proxy:3128", "", "https://a.test").as_deref(), Some("http://proxy:3128/"));
        assert_eq!(chosen("socks5h://proxy", "", "https://a.test").as_deref(), Some("socks5h://proxy:1080/"));
        for no_url in ["http://", "%%%", " http://proxy:3128"] {
            assert_eq!(chosen(no_url, "", "https://a.test"), None, "{no_url:?}");
        }
    }
}
