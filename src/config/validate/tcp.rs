//! `tcp:`, its routes and jumps.

use super::{claims::ListenIp, *};

impl Walk {
    pub(super) fn tcp(&mut self, node: &Node, config: &mut Config) -> bool {
        let Some(map) = self.map(node, "Tcp") else { return false };
        config.tcp.idle_timeout = self.field(&map, "idle_timeout", Self::duration).unwrap_or(config.tcp.idle_timeout);
        config.tcp.proxy_protocol = self.proxy_protocol(&map, node);
        let idle_timeout = config.tcp.idle_timeout;
        self.field(&map, "k8s", |walk, node| {
            let map = walk.map(node, "TcpK8s")?;
            let kubeconfig = walk.field(&map, "kubeconfig", Self::kubeconfig);
            config.tcp.kubeconfig = kubeconfig.unwrap_or_else(|| config.http.kubeconfig.clone());
            for (key, value) in walk.field(&map, "routes", Self::entries).unwrap_or_default() {
                walk.at_child("routes", &key.name, |walk| {
                    let port = walk.port_number(&key.name, key.place);
                    let Some(map) = walk.map(value, "TcpRoute") else { return };
                    let destination = walk.destination(&map, value, config);
                    let idle = walk.field(&map, "idle_timeout", Self::duration).unwrap_or(idle_timeout);
                    let ip = walk.field(&map, "listen", Self::listen_ip).unwrap_or_default();
                    let Some(port) = port else { return };
                    let (address, also) = ip.on(port);
                    walk.claim(&[address], key.place, &format!("tcp.k8s.routes.{port}"));
                    if let Some(destination) = destination {
                        config.tcp.routes.insert(address, TcpRoute { destination, also, idle_timeout: idle });
                    }
                });
            }
            for (key, value) in walk.field(&map, "jump", Self::entries).unwrap_or_default() {
                walk.at_child("jump", &key.name, |walk| {
                    let port = walk.port_number(&key.name, key.place);
                    let jump = walk.map(value, "Jump").and_then(|map| walk.jump(&map, value, config));
                    let Some(port) = port else { return };
                    let (address, also) = ListenIp::default().on(port);
                    walk.claim(&[address], key.place, &format!("tcp.k8s.jump.{port}"));
                    if let Some(destination) = jump {
                        let idle_timeout = config.tcp.idle_timeout;
                        config.tcp.routes.insert(address, TcpRoute { destination, also, idle_timeout });
                    }
                });
            }
            Some(())
        });
        true
    }

    pub(super) fn jump(&mut self, map: &Map<'_>, node: &Node, config: &Config) -> Option<Destination> {
        let context_name = self.field(map, "context", Self::context_name).map(|name| config.context_named(name));
        let namespace = self.field(map, "namespace", Self::namespace);
        let method = self.field(map, "method", |walk, node| match walk.text(node)?.as_str() {
            "auto" => Some(JumpMethod::Auto),
            "socat" => Some(JumpMethod::Socat),
            "nc" => Some(JumpMethod::Nc),
            _ => walk.wrong(node, "auto, socat or nc", None),
        });
        let via = self.required(map, node, "via", |walk, node| {
            let map = walk.map(node, "Via")?;
            let workload = walk.workload(&map, node);
            let container = walk.field(&map, "container", Self::label);
            let create = walk.field(&map, "create", |walk, node| {
                let map = walk.map(node, "Create")?;
                let image = walk.required(&map, node, "image", |walk, node| {
                    let image = walk.text(node)?;
                    let hint = Some("write alpine/socat, or registry.example.com/socat:1.8");
                    if is_image(&image) { Some(image) } else { walk.wrong(node, "the name of an image", hint) }
                });
                let command = walk.field(&map, "command", Self::words).unwrap_or_default();
                let timeout = walk.field(&map, "timeout", Self::time_limit).unwrap_or(defaults::JUMP_POD_TIMEOUT);
                Some(JumpPod { image: image?, command, timeout })
            });
            if let (Some(create), Some(Workload::Service(_))) = (map.get("create"), &workload) {
                let hint = "name the pod: via: {pod: adit-jump, create: {image: alpine/socat}}";
                walk.problem(create.place, "create needs pod: adit creates a pod, and no Service", Some(hint));
            }
            Some((workload?, container, create))
        });
        let target = self.required(map, node, "target", |walk, node| {
            let map = walk.map(node, "JumpTarget")?;
            let host = walk.required(&map, node, "host", |walk, node| {
                let host = Host::new(walk.text(node)?.trim_matches(['[', ']']));
                host.ok().or_else(|| walk.wrong(node, "a hostname or an IP address", None))
            });
            let port = walk.required(&map, node, "port", |walk, node| {
                walk.value(node, "1-65535", Some("use the port of the host, e.g. 5432"))
            });
            Some(HostPort { host: host?, port: port? })
        });
        let ((workload, container, create), target) = (via?, target?);
        let jump = Jump { container, create, target, method: method.unwrap_or(JumpMethod::Auto) };
        Some(Destination { context: context_name, namespace, workload, port: PortRef::Auto, jump: Some(jump) })
    }
}
