//! Rules for the words of the configuration: labels, hosts, ports, durations.

use std::{net::Ipv6Addr, time::Duration};

/// Returns whether the text is a DNS-1123 label, which Kubernetes requires for most names.
pub(crate) fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_part(text)
}

fn is_part(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Returns whether the text is a DNS-1123 subdomain as Kubernetes understands it: a part may be longer than a label.
pub(crate) fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_part)
}

/// Returns whether the text is a hostname: labels with dots in between.
pub(crate) fn is_host(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// Returns whether the text is an IANA_SVC_NAME (RFC 6335, section 5.1): at most 15 letters, digits and single hyphens, with at
/// least one letter.
pub(crate) fn is_port_name(text: &str) -> bool {
    text.len() <= 15 && is_label(text) && text.bytes().any(|byte| byte.is_ascii_lowercase()) && !text.contains("--")
}

/// Returns whether the text is an image reference: `[registry[:port]/]path[:tag][@digest]`, a little looser than the grammar of
/// the distribution specification.
pub(crate) fn is_image(text: &str) -> bool {
    let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let is_of = |part: &str, more: &[u8]| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
            && part.as_bytes()[0].is_ascii_alphanumeric()
    };
    text.len() <= 512
        && name.split('/').all(|part| is_of(part, b"._-:"))
        && digest.is_none_or(|digest| digest.contains(':') && is_of(digest, b":+._-"))
}

/// Parses a duration in Go's notation: `90s`, `1h30m`, `1.5h`, `500ms`, and also `d` for days; `0` alone needs no unit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit =
            rest[digits..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |length| digits + length);
        total += number
            * match &rest[digits..unit] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    // About a century. A longer duration is a typing mistake, and would overflow timers.
    (!text.is_empty() && total <= 3.2e9).then(|| Duration::from_secs_f64(total))
}

/// Returns the Host header for a local service. `rewrite` stands for its name and port on this machine; any other `text` is a
/// host, with or without a port. `None`: the text is neither.
pub fn host_header(text: &str, local_host: Option<&str>, local_port: u16) -> Option<String> {
    let bracketed =
        |host: &str| if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    let host = match text {
        "rewrite" => format!("{}:{local_port}", bracketed(local_host.unwrap_or("localhost"))),
        host => host.to_ascii_lowercase(),
    };
    let authority: http::uri::Authority = host.parse().ok()?;
    let name = authority.host();
    let is_name = is_host(name) || (name.starts_with('[') && name[1..name.len() - 1].parse::<Ipv6Addr>().is_ok());
    let is_port = host.strip_prefix(name).is_some_and(|rest| {
        rest.is_empty() || rest.strip_prefix(':').and_then(|port| port.parse::<u16>().ok()).is_some_and(|port| port > 0)
    });
    (is_name && is_port).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_in_go() {
        let seconds = |text| parse_duration(text).map(|duration| duration.as_secs_f64());
        assert_eq!(
            [seconds("90s"), seconds("60m"), seconds("1h30m"), seconds("1.5h"), seconds("500ms"), seconds("0")],
            [90.0, 3600.0, 5400.0, 5400.0, 0.5, 0.0].map(Some)
        );
        for wrong in ["", "5", "s", "1x", "-1s", "1h-", "1.2.3s", "99999999999h"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_host_header_is_rewritten_or_given() {
        for (text, local_host, header) in [
            ("rewrite", None, Some("localhost:5173")),
            ("rewrite", Some("::1"), Some("[::1]:5173")),
            ("rewrite", Some("[::1]"), Some("[::1]:5173")),
            ("rewrite", Some("vm.test"), Some("vm.test:5173")),
            ("Shop.test", None, Some("shop.test")),
            ("shop.test:3000", None, Some("shop.test:3000")),
            ("[::1]:3000", None, Some("[::1]:3000")),
            ("", None, None),
            ("shop.test:", None, None),
            ("shop.test:0", None, None),
            ("shop.test:99999", None, None),
            ("http://shop.test", None, None),
            ("me@shop.test", None, None),
            ("a b", None, None),
            ("a\r\nX: y", None, None),
        ] {
            assert_eq!(host_header(text, local_host, 5173).as_deref(), header, "{text:?} {local_host:?}");
        }
    }

    #[test]
    fn images_are_named_as_registries_have_it() {
        for image in
            ["alpine/socat", "registry.example.com:5000/a/b-c_d.e:1.2-3", "x@sha256:0123abcd", "localhost/socat:1"]
        {
            assert!(is_image(image), "{image}");
        }
        for image in ["", "a b", "-x", "a//b", "a;rm", "a@", "a\n", "/a"] {
            assert!(!is_image(image), "{image}");
        }
    }
}
