//! The keys that the file may have, read from its schema.

use serde_json::Value;

use super::schema::schema;

/// The keys of every part of the file.
pub struct Keys(Value);

impl Default for Keys {
    fn default() -> Self {
        Self(schema())
    }
}

impl Keys {
    /// Returns the keys of a part: a definition of the schema, such as `HttpRoute`; `File` is the whole file.
    pub fn of(&self, part: &str) -> Vec<&str> {
        let part = if part == "File" { &self.0 } else { &self.0["$defs"][part] };
        part["properties"].as_object().into_iter().flat_map(|keys| keys.keys().map(String::as_str)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::validate::parse;

    /// A file with each part in its place; `@` stands for the part.
    const PLACES: [(&str, &str); 23] = [
        ("File", "@"),
        ("ContextAlias", "contexts: {a: @}"),
        ("Http", "http: @"),
        ("HttpK8s", "http: {k8s: @}"),
        ("HttpRoute", "http: {k8s: {routes: {a.localhost: @}}}"),
        ("Headers", "http: {k8s: {routes: {a.localhost: {service: a, headers: @}}}}"),
        ("HeaderRules", "http: {k8s: {routes: {a.localhost: {service: a, headers: {response: @}}}}}"),
        ("Proxy", "proxy: @"),
        ("Admin", "admin: @"),
        ("Local", "local: [@]"),
        ("Sni", "sni: @"),
        ("Cloudflared", "sni: {listen: \"127.0.0.1:1\", cloudflared: @}"),
        ("SniRoute", "sni: {listen: \"127.0.0.1:1\", routes: {a.test: @}}"),
        ("SniCloudflared", "sni: {listen: \"127.0.0.1:1\", routes: {a.test: {cloudflared: @}}}"),
        ("Command", "sni: {listen: \"127.0.0.1:1\", routes: {a.test: {command: @}}}"),
        ("SniK8s", "sni: {listen: \"127.0.0.1:1\", routes: {a.test: {k8s: @}}}"),
        ("Tcp", "tcp: @"),
        ("TcpK8s", "tcp: {k8s: @}"),
        ("TcpRoute", "tcp: {k8s: {routes: {1: @}}}"),
        ("Jump", "tcp: {k8s: {jump: {1: @}}}"),
        ("Via", "tcp: {k8s: {jump: {1: {via: @}}}}"),
        ("Create", "tcp: {k8s: {jump: {1: {via: {pod: a, create: @}}}}}"),
        ("JumpTarget", "tcp: {k8s: {jump: {1: {target: @}}}}"),
    ];

    #[test]
    fn every_key_of_the_schema_is_read() {
        let keys = Keys::default();
        let parts: Vec<&str> = keys.0["$defs"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, part)| part["properties"].is_object())
            .map(|(name, _)| name.as_str())
            .chain(["File"])
            .collect();
        for part in &parts {
            assert!(PLACES.iter().any(|(name, _)| name == part), "{part} has no place in a file");
        }
        assert_eq!(parts.len(), PLACES.len());
        for (part, place) in PLACES {
            assert!(!keys.of(part).is_empty(), "{part}");
            for key in keys.of(part) {
                // No key accepts a list of empty maps, so each key must report a problem.
                let text = place.replace('@', &format!("{{{key}: [{{}}]}}"));
                let error = parse(Path::new("c"), text.as_bytes()).expect_err(&text);
                let is_of_key = |path: &str| path.rsplit(['.', '[']).any(|name| name == key || name == "0");
                assert!(error.problems.iter().any(|problem| is_of_key(&problem.path)), "{text}: {error}");
            }
        }
    }

    #[test]
    fn a_key_that_is_none_is_named_with_one_that_is_like_it() {
        for (part, place) in PLACES {
            let text = place.replace('@', "{nonsense: 1}");
            let error = parse(Path::new("c"), text.as_bytes()).expect_err(&text).to_string();
            assert!(error.contains("nonsense: unknown key"), "{part}: {error}");
        }
    }
}
