//! Finds secret values, and replaces them.

/// Headers whose values are secrets.
const HEADERS: &[&str] = &["authorization", "cookie", "set-cookie", "proxy-authorization", "x-api-key"];

/// Words in a name whose value is a secret.
const WORDS: &[&str] = &["token", "secret", "password"];

/// Returns whether a header or a parameter with this name has a secret value.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    HEADERS.contains(&name.as_str()) || WORDS.iter().any(|word| name.contains(word))
}

/// Returns the value, with its secrets hidden.
pub fn shown(name: &str, value: &[u8]) -> String {
    if is_secret(name) {
        return hidden(value.len());
    }
    let text = String::from_utf8_lossy(value);
    // Referer, Location and others are URLs, whose queries may hold secrets too.
    let is_url = text.starts_with('/') || text.starts_with("http://") || text.starts_with("https://");
    if is_url { target(&text) } else { text.into_owned() }
}

/// Returns a request target with the secrets of its query hidden.
pub fn target(target: &str) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
    let pair = |pair: &str| match pair.split_once('=') {
        Some((name, value)) if is_secret(name) => format!("{name}={}", hidden(value.len())),
        _ => pair.to_owned(),
    };
    format!("{path}?{}", query.split('&').map(pair).collect::<Vec<_>>().join("&"))
}

/// Returns the replacement for a secret of this many bytes.
pub fn hidden(length: usize) -> String {
    format!("(hidden, {length} bytes)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_told_by_their_names() {
        for name in ["Authorization", "COOKIE", "set-cookie", "X-Api-Key", "x-csrf-token", "My-Secret", "userPassword"]
        {
            assert_eq!(shown(name, b"abc"), "(hidden, 3 bytes)", "{name}");
        }
        assert_eq!(shown("accept", b"*/*"), "*/*");
        assert_eq!(shown("referer", b"http://a/b?x=1&token=abc"), "http://a/b?x=1&token=(hidden, 3 bytes)");
        assert_eq!(shown("x-note", b"why? token=abc"), "why? token=abc");
        assert_eq!(target("/a?x=1&access_token=abcd&y"), "/a?x=1&access_token=(hidden, 4 bytes)&y");
        assert_eq!(target("/a"), "/a");
    }
}
