//! `local:`.

use super::*;

impl Walk {
    pub(super) fn local_ports(&mut self, node: &Node) -> Option<Vec<LocalPort>> {
        let Value::List(list) = &node.value else {
            return self.wrong(node, "a list", Some("write local: [{port: 3000, to: relay.example.com}]"));
        };
        self.each(list, |walk, node| {
            let map = walk.map(node, "Local")?;
            let port = |walk: &mut Self, node: &Node| {
                let text = walk.text(node)?;
                walk.port_number(&text, node.place)
            };
            let local_port = walk.required(&map, node, "port", port);
            let public_port = walk.field(&map, "public_port", port).unwrap_or(0);
            let to = walk.required(&map, node, "to", |walk, node| {
                walk.value(node, "a relay", Some("write relay.example.com, or relay.example.com:7835"))
            });
            let local_host = walk.field(&map, "local_host", Self::text);
            let local_service = local_port.map(|port| (local_host.clone(), port));
            let host = |walk: &mut Self, node: &Node| {
                let text = walk.text(node)?;
                // Without a port, the missing port is the problem to report, so any value does.
                let (local_host, port) = local_service.clone().unwrap_or((None, 1));
                host_header(&text, local_host.as_deref(), port)
                    .or_else(|| walk.wrong(node, "a host", Some("write host: rewrite, or host: shop.test:3000")))
            };
            let sha256 =
                |walk: &mut Self, node: &Node| walk.value(node, "a fingerprint", Some(&InvalidFingerprint.to_string()));
            let host_place = map.get("host").map(|node| node.place);
            let secret_file = walk.field(&map, "secret_file", |walk, node| walk.file(node, Usage::Read));
            let fingerprint = walk.field(&map, "fingerprint", sha256);
            let ca = walk.field(&map, "ca", |walk, node| walk.file(node, Usage::Certificates));
            let host = walk.field(&map, "host", host);
            let name = walk.field(&map, "name", Self::label);
            let (to, local_port) = (to?, local_port?);
            let local = LocalPort { to, secret_file, fingerprint, ca, host, local_host, local_port, public_port, name };
            if local.name.is_some() && local.public_port != 0 {
                walk.problem(node.place, "both name and public_port are given", Some("a name has no port of its own"));
            }
            if let (None, Some(place)) = (&local.name, host_place) {
                walk.problem(place, "host is given without name", Some("only HTTP under a name has a Host header"));
            }
            Some(local)
        })
    }
}
