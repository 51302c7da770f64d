//! `http:` and its routes.

use super::*;

impl Walk {
    pub(super) fn http(&mut self, node: &Node, config: &mut Config) -> bool {
        let Some(map) = self.map(node, "Http") else { return false };
        if let Some(listen) = self.field(&map, "listen", Self::listens) {
            config.http.listen = listen;
        }
        config.http.idle_timeout = self.field(&map, "idle_timeout", Self::duration).unwrap_or(config.http.idle_timeout);
        config.http.proxy_protocol = self.proxy_protocol(&map, node);
        let idle_timeout = config.http.idle_timeout;
        self.field(&map, "k8s", |walk, node| {
            let map = walk.map(node, "HttpK8s")?;
            if let Some(paths) = walk.field(&map, "kubeconfig", Self::kubeconfig) {
                config.http.kubeconfig = paths;
            }
            if let Some(host) = walk.field(&map, "dynamic_host", Self::host) {
                config.http.dynamic_host = host;
            }
            let entries = walk.field(&map, "routes", Self::entries)?;
            for (key, value) in entries {
                walk.at_child("routes", &quoted(&key.name), |walk| {
                    let host = walk.route_host(&key.name, key.place);
                    if config.dashboard && host.as_deref() == Some(DASHBOARD_HOST) {
                        let message = format!("{DASHBOARD_HOST} is the name of the dashboard");
                        walk.problem(key.place, &message, Some("give the route another name, or set dashboard: off"));
                    }
                    let Some(map) = walk.map(value, "HttpRoute") else { return };
                    let is_jump = map.contains_key("via") || map.contains_key("target");
                    walk.refuse_beside(&map, is_jump);
                    let destination = match is_jump {
                        true => walk.jump(&map, value, config),
                        false => walk.destination(&map, value, config),
                    };
                    let idle_timeout = walk.field(&map, "idle_timeout", Self::duration).unwrap_or(idle_timeout);
                    let options = Arc::new(walk.http_options(&map, value));
                    if let (Some(host), Some(destination)) = (host, destination) {
                        let route = HttpRoute { destination, idle_timeout, options };
                        if config.http.routes.insert(host, route).is_some() {
                            walk.problem(key.place, SAME_HOST, None);
                        }
                    }
                });
            }
            Some(())
        });
        true
    }

    /// Reports keys that have no meaning in a jump, or without one.
    fn refuse_beside(&mut self, map: &Map<'_>, is_jump: bool) {
        let (keys, hint): (&[&str], _) = match is_jump {
            true => (&["service", "pod", "port"], "a jump has its pod in via, and its port in target: remove it"),
            false => (&["method"], "it says how a jump goes on from a pod: add via and target, or remove it"),
        };
        for key in keys {
            if let Some(node) = map.get(key) {
                self.at(key, |walk| walk.problem(node.place, "this key has no meaning here", Some(hint)));
            }
        }
    }

    pub(super) fn http_options(&mut self, map: &Map<'_>, node: &Node) -> HttpOptions {
        let scheme = self.field(map, "scheme", |walk, node| match walk.text(node)?.to_ascii_lowercase().as_str() {
            "http" => Some(Scheme::Http),
            "https" => Some(Scheme::Https),
            "h2c" => Some(Scheme::H2c),
            _ => walk.wrong(node, "http, https or h2c", None),
        });
        let client_tls = self.field(map, "tls", |walk, node| match walk.text(node)?.to_ascii_lowercase().as_str() {
            "terminate" => Some(ClientTls::Terminate),
            "passthrough" => Some(ClientTls::Passthrough),
            _ => walk.wrong(node, "terminate or passthrough", None),
        });
        let ca = self.field(map, "ca", |walk, node| walk.file(node, Usage::Certificates));
        let verify = self.field(map, "verify", Self::boolean).unwrap_or(ca.is_some());
        let server_name = self.field(map, "server_name", Self::host);
        let cert = self.field(map, "client_cert", |walk, node| walk.file(node, Usage::Certificates));
        let key = self.field(map, "client_key", |walk, node| walk.file(node, Usage::Key));
        let client_cert = match (cert, key) {
            (Some(cert), Some(key)) => Some(KeyPairFiles { cert, key }),
            (None, None) => None,
            _ => {
                let hint = "add the other one, or remove it";
                self.problem(node.place, "one of client_cert and client_key is given without the other", Some(hint));
                None
            }
        };
        let (mut request_headers, mut response_headers) = <(HeaderRules, HeaderRules)>::default();
        self.field(map, "headers", |walk, node| {
            let map = walk.map(node, "Headers")?;
            request_headers = walk.header_rules(&map);
            for (key, rules) in [("request", &mut request_headers), ("response", &mut response_headers)] {
                walk.field(&map, key, |walk, node| {
                    let of_one_way = walk.map(node, "HeaderRules").map(|map| walk.header_rules(&map))?;
                    rules.set.extend(of_one_way.set);
                    rules.remove.extend(of_one_way.remove);
                    Some(())
                });
            }
            Some(())
        });
        HttpOptions {
            scheme,
            client_tls,
            tls: BackendTls { verify, ca, server_name, client_cert },
            request_headers,
            response_headers,
            // A server behind a jump usually accepts only its own name.
            host: match self.field(map, "rewrite_host", Self::boolean).unwrap_or(map.contains_key("target")) {
                true => HostHeader::Own,
                false => HostHeader::Client,
            },
            rewrite_location: self
                .field(map, "rewrite_location", Self::boolean)
                .or(map.contains_key("target").then_some(true)),
            allow_origins: self.field(map, "allow_origins", Self::origins).unwrap_or_default(),
        }
    }

    pub(super) fn header_rules(&mut self, map: &Map<'_>) -> HeaderRules {
        let mut rules = HeaderRules::default();
        for (key, value) in self.field(map, "set", Self::entries).unwrap_or_default() {
            self.at_child("set", &quoted(&key.name), |walk| {
                let name = walk.header_name(&key.name, key.place);
                let text = match &value.value {
                    Value::Scalar { text, .. } => Some(text.as_str()),
                    _ => None,
                };
                match text.and_then(|text| HeaderValue::from_str(text).ok()) {
                    Some(value) => rules.set.extend(name.map(|name| (name, value))),
                    None => walk.problem(value.place, "expected a header's value: text on one line", None),
                }
            });
        }
        if let Some(names) = self.field(map, "remove", |walk, node| match &node.value {
            Value::List(list) => {
                walk.each(list, |walk, node| walk.text(node).and_then(|name| walk.header_name(&name, node.place)))
            }
            _ => walk.wrong::<Vec<HeaderName>>(node, "a list of header names", None),
        }) {
            rules.remove = names;
        }
        rules
    }

    pub(super) fn header_name(&mut self, text: &str, place: Place) -> Option<HeaderName> {
        let name = HeaderName::from_bytes(text.as_bytes()).ok();
        // These headers frame a message or are about one connection; a configuration must not change them.
        const FRAMING: [&str; 5] = ["connection", "content-length", "transfer-encoding", "upgrade", "te"];
        match name {
            Some(name) if FRAMING.contains(&name.as_str()) => {
                self.problem(place, &format!("{name} is about one connection, and cannot be changed"), None);
                None
            }
            Some(name) => Some(name),
            None => {
                self.problem(place, &format!("expected a header's name, found {text:?}"), None);
                None
            }
        }
    }

    pub(super) fn origins(&mut self, node: &Node) -> Option<Vec<String>> {
        let Value::List(list) = &node.value else {
            return self.wrong(node, "a list of origins", Some("write [https://app.example.com]"));
        };
        self.each(list, |walk, node| {
            let text = walk.text(node)?;
            let host = text.split_once("://").map(|(_, host)| host);
            let is_origin = host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*', ' ']));
            if text != "*" && !is_origin {
                return walk.wrong(
                    node,
                    "an origin",
                    Some("write scheme, host and port as the browser does, without a path"),
                );
            }
            Some(text)
        })
    }
}
