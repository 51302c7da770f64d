//! Single values, each with the description of a valid one for its message.

use super::{claims::ListenIp, *};
use crate::config::listen::{self, overlap};

impl Walk {
    pub(super) fn boolean(&mut self, node: &Node) -> Option<bool> {
        match &node.value {
            Value::Scalar { text, quoted: false } => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Some(true),
                "false" | "no" | "off" => Some(false),
                _ => self.wrong(node, "true or false", None),
            },
            _ => self.wrong(node, "true or false", None),
        }
    }

    pub(super) fn workers(&mut self, node: &Node) -> Option<NonZeroUsize> {
        match &node.value {
            Value::Scalar { text, quoted: false } => {
                match text.parse().ok().filter(|count| *count <= MOST_WORKERS).and_then(NonZeroUsize::new) {
                    Some(count) => Some(count),
                    None => self.wrong(node, "1-1024", None),
                }
            }
            _ => self.wrong(node, "1-1024", None),
        }
    }

    pub(super) fn text(&mut self, node: &Node) -> Option<String> {
        match &node.value {
            Value::Scalar { text, .. } if !text.is_empty() => Some(text.clone()),
            _ => self.wrong(node, "a value", None),
        }
    }

    pub(super) fn words(&mut self, node: &Node) -> Option<Vec<String>> {
        match &node.value {
            Value::List(list) => self.each(list, Self::text),
            _ => self.wrong(node, "a list of values, e.g. [sleep, infinity]", None),
        }
    }

    pub(super) fn folders(&mut self, node: &Node) -> Option<Vec<PathBuf>> {
        match &node.value {
            Value::List(list) => self.each(list, |walk, node| Some(defaults::expand_home(&walk.text(node)?))),
            Value::Scalar { text, .. } => {
                Some(std::env::split_paths(text).map(|path| defaults::expand_home(&path.to_string_lossy())).collect())
            }
            _ => self.wrong(node, "a list of folders", None),
        }
    }

    pub(super) fn path_list(&mut self, node: &Node) -> Option<String> {
        match &node.value {
            Value::List(list) => Some(self.each(list, Self::text)?.join(":")),
            _ => self.text(node),
        }
    }

    pub(super) fn duration(&mut self, node: &Node) -> Option<Duration> {
        let text = self.text(node)?;
        parse_duration(&text).or_else(|| self.wrong(node, "a duration", Some("write 90s, 60m or 1h30m; 0 means never")))
    }

    /// Parses the time limit of a start, which cannot be zero: nothing would ever start.
    pub(super) fn time_limit(&mut self, node: &Node) -> Option<Duration> {
        let limit = self.duration(node)?;
        (!limit.is_zero())
            .then_some(limit)
            .or_else(|| self.wrong(node, "a duration of more than 0", Some("write 90s or 10m; 0 is not allowed here")))
    }

    /// Parses a value by the rule of its type. `wanted` describes a valid one.
    pub(super) fn value<T: FromStr>(&mut self, node: &Node, wanted: &str, hint: Option<&str>) -> Option<T> {
        let text = self.text(node)?;
        text.parse().ok().or_else(|| self.wrong(node, wanted, hint))
    }

    pub(super) fn label(&mut self, node: &Node) -> Option<Label> {
        self.value(node, "a name of lower-case letters, digits and hyphens", None)
    }

    pub(super) fn namespace(&mut self, node: &Node) -> Option<Namespace> {
        self.value(node, "a name of lower-case letters, digits and hyphens", None)
    }

    pub(super) fn context_name(&mut self, node: &Node) -> Option<ContextName> {
        let name: ContextName = self.value(node, "the name of a context", None)?;
        self.contexts.push(NamedContext { key: self.path(), place: node.place, name: name.clone() });
        Some(name)
    }

    pub(super) fn pod_name(&mut self, node: &Node) -> Option<Subdomain> {
        self.value(node, "a name of lower-case letters, digits, hyphens and dots", None)
    }

    pub(super) fn host(&mut self, node: &Node) -> Option<String> {
        let text = self.text(node)?.trim_matches('.').to_ascii_lowercase();
        if is_host(&text) { Some(text) } else { self.wrong(node, "a hostname", None) }
    }

    /// Reads `on` or `off`. YAML 1.1 reads these as booleans, 1.2 as text, so both forms are accepted.
    pub(super) fn on_or_off(&mut self, node: &Node) -> Option<bool> {
        match &node.value {
            Value::Scalar { text, .. } if matches!(text.as_str(), "on" | "true") => Some(true),
            Value::Scalar { text, .. } if matches!(text.as_str(), "off" | "false") => Some(false),
            _ => self.wrong(node, "on or off", None),
        }
    }

    pub(super) fn methods(&mut self, node: &Node) -> Option<Vec<Method>> {
        let Value::List(list) = &node.value else {
            return self.wrong(node, "a list of methods", Some("write [GET, HEAD, OPTIONS]"));
        };
        let method = |walk: &mut Self, node: &Node| {
            let text = walk.text(node)?;
            // Methods are upper case (RFC 9110, section 9.1); another case would never match.
            let method = Method::from_bytes(text.as_bytes()).ok().filter(|_| text == text.to_ascii_uppercase());
            method.or_else(|| walk.wrong(node, "a method in upper case", Some("write GET, HEAD or OPTIONS")))
        };
        self.each(list, method)
    }

    pub(super) fn route_host(&mut self, text: &str, place: Place) -> Option<String> {
        let host = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let name = host.strip_prefix("*.").unwrap_or(&host);
        if is_host(name) || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return Some(host);
        }
        let hint = if host.contains('/') {
            "write only the host, without scheme and path: web.localhost"
        } else if host.contains(':') {
            "leave the port out: the listener decides it"
        } else {
            "write web.localhost, or *.web.localhost for every name below"
        };
        self.problem(place, &format!("expected a hostname, found {text:?}"), Some(hint));
        None
    }

    pub(super) fn port(&mut self, node: &Node) -> Option<PortRef> {
        let text = self.text(node)?;
        match (text.parse(), text.parse::<i64>()) {
            (Ok(port), _) => Some(port),
            (Err(_), Ok(_)) => self.wrong(node, "1-65535", Some("use the Service port, e.g. 443")),
            (Err(_), Err(_)) => {
                self.wrong(node, "a port number or the name of a port", Some("use the Service port, e.g. 443 or https"))
            }
        }
    }

    pub(super) fn port_number(&mut self, text: &str, place: Place) -> Option<u16> {
        match text.parse::<u16>() {
            Ok(port) if port > 0 => Some(port),
            _ => {
                self.problem(
                    place,
                    &format!("expected 1-65535, found {text:?}"),
                    Some("use a free port of this machine, e.g. 5432"),
                );
                None
            }
        }
    }

    /// Parses an address, see [`listen::parse`].
    pub(super) fn listen(&mut self, node: &Node) -> Option<Vec<SocketAddr>> {
        let text = self.text(node)?;
        listen::parse(&text).map_or_else(|wanted| self.wrong(node, wanted, Some("write 127.0.0.1:8989")), Some)
    }

    /// Reads one address or a list of them.
    pub(super) fn listens(&mut self, node: &Node) -> Option<Vec<SocketAddr>> {
        let Value::List(list) = &node.value else { return self.listen(node) };
        if list.is_empty() {
            return self.wrong(node, "at least one address", Some("write 127.0.0.1:8989"));
        }
        let (mut all, mut written): (Vec<SocketAddr>, Vec<SocketAddr>) = Default::default();
        self.each(list, |walk, node| {
            let addresses = walk.listen(node)?;
            // 127.0.0.1 stands for [::1], too, which may be written beside it.
            let is_twice = |address: &&SocketAddr| match all.contains(address) {
                true => **address == addresses[0] && written.contains(address),
                false => all.iter().any(|other| overlap(*other, **address)),
            };
            if let Some(twice) = addresses.iter().find(is_twice) {
                walk.problem(node.place, &format!("{twice} is in the list already"), Some("remove one of the two"));
                return None;
            }
            written.push(addresses[0]);
            all.extend(addresses.iter().filter(|address| !all.contains(address)).collect::<Vec<_>>());
            Some(())
        })?;
        Some(all)
    }

    pub(super) fn listen_ip(&mut self, node: &Node) -> Option<ListenIp> {
        let text = self.text(node)?;
        if text.eq_ignore_ascii_case("localhost") {
            return Some(ListenIp::Loopback);
        }
        let ip = text.trim_matches(['[', ']']).parse();
        ip.ok()
            .map(ListenIp::Given)
            .or_else(|| self.wrong(node, "an IP address", Some("write 127.0.0.1; the port is the route's key")))
    }

    pub(super) fn admin_listen(&mut self, node: &Node) -> Option<SocketAddr> {
        let address = *self.listen(node)?.first()?;
        match address.ip().is_loopback() {
            true => Some(address),
            false => {
                let hint = "write 127.0.0.1:9090: /metrics lists the names that you open, without a password";
                self.wrong(node, "an address on loopback", Some(hint))
            }
        }
    }

    /// Parses a network or one address. An IPv4-mapped IPv6 address counts as IPv4.
    pub(super) fn network(&mut self, node: &Node) -> Option<IpNet> {
        let text = self.text(node)?;
        let text = text.replace(['[', ']'], "");
        let one = || text.parse().ok().map(|ip: IpAddr| IpNet::from(ip.to_canonical()));
        text.parse()
            .ok()
            .or_else(one)
            .or_else(|| self.wrong(node, "an address or a network", Some("write 127.0.0.1 or 10.0.0.0/8")))
    }
}
