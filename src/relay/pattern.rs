//! Patterns of a key for the Services that it may take over: `shop/web`, `shop/*`.

/// Returns whether a pattern is valid: `NAMESPACE/NAME`, each optionally with a `*` at its end.
pub fn is_pattern(pattern: &str) -> bool {
    let is_part = |part: &str| {
        let start = part.strip_suffix('*').unwrap_or(part);
        let letters =
            |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '-';
        !part.is_empty() && start.chars().all(letters)
    };
    pattern.split_once('/').is_some_and(|(namespace, name)| is_part(namespace) && is_part(name))
}

/// Returns whether a Service, by namespace and name, matches a pattern.
pub fn matches(pattern: &str, service: (&str, &str)) -> bool {
    let part = |pattern: &str, text: &str| match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => pattern == text,
    };
    pattern.split_once('/').is_some_and(|(namespace, name)| part(namespace, service.0) && part(name, service.1))
}

/// Returns whether a pattern contains the namespace of a Service without a wildcard. `by_name`: the Service's name too.
pub fn names(pattern: &str, service: (&str, &str), by_name: bool) -> bool {
    let Some((namespace, name)) = pattern.split_once('/') else { return false };
    namespace == service.0 && (!by_name || name == service.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_two_parts() {
        for pattern in ["shop/web", "shop/*", "*/*", "a-*/b1-*"] {
            assert!(is_pattern(pattern), "{pattern}");
        }
        for pattern in ["shop", "shop/", "/web", "shop/we*b", "Shop/web", "shop/web/x", "*"] {
            assert!(!is_pattern(pattern), "{pattern}");
        }
    }
}
