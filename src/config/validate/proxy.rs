//! `proxy:`, the forward proxy.

use super::*;

impl Walk {
    /// Returns the settings of the forward proxy. `None`: it is off.
    pub(super) fn forward_proxy(&mut self, node: &Node) -> Option<ForwardProxy> {
        let mut proxy = ForwardProxy::default();
        if let Value::Scalar { text, .. } = &node.value {
            if !matches!(text.as_str(), "off" | "false") {
                self.wrong::<()>(node, "off, or the keys listen, elsewhere and cluster_domain", None);
            }
            return None;
        }
        let Some(map) = self.map(node, "Proxy") else { return Some(proxy) };
        let listen = self.field(&map, "listen", |walk, node| {
            let addresses = walk.listen(node)?;
            walk.claim(&addresses, node.place, "proxy.listen");
            Some(addresses)
        });
        proxy.listen = listen.unwrap_or_default();
        let elsewhere = self.field(&map, "elsewhere", |walk, node| match walk.text(node)?.as_str() {
            "refuse" => Some(Elsewhere::Refuse),
            "direct" => Some(Elsewhere::Direct),
            _ => walk.wrong(node, "refuse or direct", None),
        });
        proxy.elsewhere = elsewhere.unwrap_or_default();
        let domain = self.field(&map, "cluster_domain", |walk, node| {
            let text = walk.text(node)?.trim_end_matches('.').to_ascii_lowercase();
            match is_host(&text) {
                true => Some(text),
                false => walk.wrong(node, "a domain, e.g. cluster.local", None),
            }
        });
        proxy.cluster_domain = domain.unwrap_or(proxy.cluster_domain);
        Some(proxy)
    }
}
