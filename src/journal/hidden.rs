//! Finds secret values, and replaces them.

use std::{borrow::Cow, collections::VecDeque, ops::Range};

use percent_encoding::percent_decode_str;

use crate::secrets::{hidden, is_secret_name};

/// Characters before the name of a parameter.
const BEFORE_NAMES: &[char] = &['?', '&', ';', '#', ',', '<', '"', '\'', '(', ' ', '\t'];

/// Characters that end a value in a URL, and in other text.
const AFTER_VALUES: &[char] = &['&', '#'];
const AFTER_VALUES_IN_TEXT: &[char] = &['&', '#', '>', ' ', '\t'];

/// Maximum depth at which URLs inside parameters of URLs are searched.
const MOST_NESTED: usize = 3;

/// Returns the value of a header without its secrets, also without those in URLs and parameters.
pub fn shown(name: &str, value: &[u8]) -> String {
    if is_secret_name(name) {
        return hidden(value.len());
    }
    let text = String::from_utf8_lossy(value);
    let mut secrets = secrets(&text, AFTER_VALUES_IN_TEXT, MOST_NESTED);
    if name.eq_ignore_ascii_case("sec-websocket-protocol") {
        secrets.extend(bearers(&text));
    }
    replace(&text, secrets)
}

/// Returns a request target with the secrets of its query hidden.
pub fn target(target: &str) -> String {
    replace(target, secrets(target, AFTER_VALUES, MOST_NESTED))
}

/// Returns an edited target in which each hidden text is replaced by the parameter's value in `original`.
pub fn restored(original: &str, edited: &str) -> String {
    // Match each secret by its name, so that parameters may be removed or reordered.
    let mut done = 0;
    let mut left: VecDeque<(&str, &str)> = secrets(original, AFTER_VALUES, MOST_NESTED)
        .into_iter()
        .filter(|range| !range.is_empty())
        .map(|range| {
            let before = &original[done.min(range.start)..range.start];
            done = range.end;
            (&before[before.rfind(BEFORE_NAMES).map_or(0, |at| at + 1)..], &original[range])
        })
        .collect();
    let (mut restored, mut rest) = (String::new(), edited);
    while let Some(at) = rest.find("(hidden, ") {
        let (before, after) = rest.split_at(at);
        let is_meant = |(name, value): &(&str, &str)| before.ends_with(name) && after.starts_with(&hidden(value.len()));
        let (value, skipped) =
            match left.iter().position(is_meant).and_then(|at| left.remove(at)).map(|(_, value)| value) {
                Some(value) => (value, hidden(value.len()).len()),
                None => (&after[..1], 1),
            };
        restored.extend([before, value]);
        rest = &after[skipped..];
    }
    restored + rest
}

/// Returns the ranges of the secrets in a text: values of parameters, and passwords of URLs.
///
/// Peers choose the text, and a row of the dashboard waits for it. So each part is read once per depth.
fn secrets(text: &str, ends: &[char], depth: usize) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let (mut name, mut end) = (0, 0);
    for (at, _) in text.match_indices(|char| char == '=' || BEFORE_NAMES.contains(&char)) {
        let start = std::mem::replace(&mut name, at + 1);
        if text.as_bytes()[at] != b'=' || found.last().is_some_and(|last| last.contains(&at)) {
            continue;
        }
        // The values of `a=b;c=d` have the same end. A search of the first one has covered the second one.
        let is_first = at >= end;
        if is_first {
            end = text[at + 1..].find(ends).map_or(text.len(), |length| at + 1 + length);
        }
        let value = at + 1..end;
        if is_secret_name(&decoded(&text[start..at])) || (is_first && has_secrets(&text[value.clone()], depth)) {
            found.push(value);
        }
    }
    for (at, separator) in text.match_indices("://") {
        let start = at + separator.len();
        let length = text[start..].find(['/', '?', '#', ' ', '"', '<', '>', ',']).unwrap_or(text.len() - start);
        let user = text[start..start + length].rsplit_once('@').map(|(user, _)| user);
        if let Some((name, password)) = user.and_then(|user| user.split_once(':')) {
            let start = start + name.len() + 1;
            found.push(start..start + password.len());
        }
    }
    found.sort_by_key(|range| range.start);
    found
}

/// Returns whether the percent-encoded value of a parameter contains secrets of its own, as a URL may.
fn has_secrets(value: &str, depth: usize) -> bool {
    match decoded(value) {
        Cow::Owned(inner) if depth > 0 => !secrets(&inner, AFTER_VALUES, depth - 1).is_empty(),
        _ => false,
    }
}

/// Returns the ranges of tokens in names of WebSocket protocols: Kubernetes accepts them there from web pages, which cannot set
/// headers.
fn bearers(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut end = 0;
    text.match_indices("bearer.").filter_map(move |(at, word)| {
        let start = at + word.len();
        let is_inside = at < end;
        if !is_inside {
            end = text[start..].find([',', ' ']).map_or(text.len(), |length| start + length);
        }
        (!is_inside).then_some(start..end)
    })
}

fn decoded(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}

fn replace(text: &str, secrets: Vec<Range<usize>>) -> String {
    let (mut shown, mut done) = (String::new(), 0);
    for secret in secrets.into_iter().filter(|secret| !secret.is_empty()) {
        // A password may lie inside the value of a parameter, which is hidden already.
        if secret.start >= done {
            shown.extend([&text[done..secret.start], &hidden(secret.len())]);
            done = secret.end;
        }
    }
    shown + &text[done..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_secret_names_are_hidden() {
        assert_eq!(shown("Api-Key", b"abc"), "(hidden, 3 bytes)");
        assert_eq!(shown("accept", b"*/*"), "*/*");
        assert_eq!(target("/a?x=1&access_token=abcd&y"), "/a?x=1&access_token=(hidden, 4 bytes)&y");
        assert_eq!(target("/a?api_key=abcd"), "/a?api_key=(hidden, 4 bytes)");
        assert_eq!(target("/a"), "/a");
    }

    #[test]
    fn no_form_of_a_url_shows_a_secret() {
        for (text, wanted) in [
            ("/a?%74oken=S3&b=1", "/a?%74oken=(hidden, 2 bytes)&b=1"),
            ("/a?b=1;token=S3;c", "/a?b=1;token=(hidden, 4 bytes)"),
            ("/a?user[password]=S3", "/a?user[password]=(hidden, 2 bytes)"),
            ("/a?to=%2Fcb%3Ftoken%3DS3&b=1", "/a?to=(hidden, 18 bytes)&b=1"),
            ("/a?token=S3=S3&token=&b=1", "/a?token=(hidden, 5 bytes)&token=&b=1"),
        ] {
            assert_eq!(target(text), wanted);
        }
        for (text, wanted) in [
            ("cb?token=S3", "cb?token=(hidden, 2 bytes)"),
            ("/cb#access_token=S3&b=1", "/cb#access_token=(hidden, 2 bytes)&b=1"),
            ("app://cb?token=S3", "app://cb?token=(hidden, 2 bytes)"),
            ("HTTPS://h/x?token=S3", "HTTPS://h/x?token=(hidden, 2 bytes)"),
            ("https://u:S3@S3@h/x", "https://u:(hidden, 5 bytes)@h/x"),
            ("https://u:S3@h/x?token=S3", "https://u:(hidden, 2 bytes)@h/x?token=(hidden, 2 bytes)"),
            (
                "<https://h/x?token=S3>; rel=next, <https://h/y?b=1>; rel=last",
                "<https://h/x?token=(hidden, 2 bytes)>; rel=next, <https://h/y?b=1>; rel=last",
            ),
            ("Bearer realm=\"x\", error=\"invalid\"", "Bearer realm=\"x\", error=\"invalid\""),
        ] {
            assert_eq!(shown("location", text.as_bytes()), wanted);
        }
        assert_eq!(
            shown("Sec-WebSocket-Protocol", b"base64url.bearer.authorization.k8s.io.S3, base64.binary.k8s.io"),
            "base64url.bearer.(hidden, 23 bytes), base64.binary.k8s.io"
        );
    }

    #[test]
    fn text_of_peers_is_read_in_one_pass() {
        // 64 KiB each. A search per `=` or per parameter would take from minutes to hours.
        for part in ["=%41", "=%2541", "=%252541", ";=%41", "a=%3D%41;", ",a=%253D", "://a:b@", "bearer.", "%3D", "="] {
            let text = format!("/?{}", part.repeat(65_536 / part.len()));
            assert!(target(&text).len() <= 10 * text.len(), "{part}");
            shown("sec-websocket-protocol", text.as_bytes());
        }
        let text = format!("/?{}", "token=&token=ab&".repeat(4_096));
        assert_eq!(restored(&text, &target(&text)), text);
    }

    #[test]
    fn a_value_that_is_a_parameter_of_its_own_is_hidden() {
        assert_eq!(target("/?to=token=S3&b=1"), "/?to=token=(hidden, 2 bytes)&b=1");
        assert_eq!(target("/?a=1;to=%26token%3DS3"), "/?a=(hidden, 18 bytes)");
    }

    #[test]
    fn an_edited_target_has_the_secrets_of_the_original() {
        let original = "/a?x=1&token=ab&secret=cd";
        for (edited, wanted) in [
            ("/a?x=2&token=(hidden, 2 bytes)&secret=(hidden, 2 bytes)", "/a?x=2&token=ab&secret=cd"),
            ("/b?secret=(hidden, 2 bytes)&token=(hidden, 2 bytes)", "/b?secret=cd&token=ab"),
            ("/a?secret=(hidden, 2 bytes)", "/a?secret=cd"),
            ("/a?secret=ef", "/a?secret=ef"),
            (
                "/a?other=(hidden, 2 bytes)&token=(hidden, 3 bytes)",
                "/a?other=(hidden, 2 bytes)&token=(hidden, 3 bytes)",
            ),
        ] {
            assert_eq!(restored(original, edited), wanted);
        }
    }
}
