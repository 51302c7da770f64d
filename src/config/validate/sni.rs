//! `sni:` and its commands.

use super::*;

impl Walk {
    pub(super) fn sni(&mut self, node: &Node, config: &Config) -> Option<Sni> {
        let map = self.map(node, "Sni")?;
        let idle_timeout = self.field(&map, "idle_timeout", Self::duration).unwrap_or(defaults::SNI_IDLE_TIMEOUT);
        let startup_timeout =
            self.field(&map, "startup_timeout", Self::time_limit).unwrap_or(defaults::COMMAND_STARTUP);
        let ports = self.field(&map, "port_range", Self::port_range).unwrap_or(defaults::COMMAND_PORTS);
        let (mut path, mut env_from) = (defaults::CLOUDFLARED.to_owned(), BTreeMap::new());
        self.field(&map, "cloudflared", |walk, node| {
            let map = walk.map(node, "Cloudflared")?;
            path = walk.field(&map, "path", Self::text).unwrap_or(path.clone());
            for (key, name) in [
                ("service_token_id_env", "TUNNEL_SERVICE_TOKEN_ID"),
                ("service_token_secret_env", "TUNNEL_SERVICE_TOKEN_SECRET"),
            ] {
                if let Some(ours) = walk.field(&map, key, Self::text) {
                    env_from.insert(name.to_owned(), ours);
                }
            }
            if map.contains_key("service_token_id_env") != map.contains_key("service_token_secret_env") {
                let message = "one of service_token_id_env and service_token_secret_env is given without the other";
                walk.problem(node.place, message, Some("add the other one, or remove it"));
            }
            Some(())
        });
        let listen = self.required(&map, node, "listen", |walk, node| {
            let addresses = walk.listen(node)?;
            walk.claim(&addresses, node.place, "sni.listen");
            Some(addresses)
        });
        let proxy_protocol = self.proxy_protocol(&map, node);
        let allow_commands = self.field(&map, "allow_commands", Self::boolean).unwrap_or(false);
        let mut routes = BTreeMap::new();
        for (key, value) in self.field(&map, "routes", Self::entries).unwrap_or_default() {
            self.at_child("routes", &quoted(&key.name), |walk| {
                let name = walk.route_host(&key.name, key.place);
                let Some(map) = walk.map(value, "SniRoute") else { return };
                if ["cloudflared", "command", "k8s"].iter().filter(|key| map.contains_key(**key)).count() != 1 {
                    let hint = "give one of them: the backend of the name";
                    walk.problem(value.place, "expected one of cloudflared, command and k8s", Some(hint));
                }
                let of_command = |run, mode, env, env_from| {
                    SniBackend::Command(Arc::new(Command { run, mode, env, env_from, startup_timeout, ports }))
                };
                let mut backend = walk.field(&map, "cloudflared", |walk, node| {
                    let map = walk.map(node, "SniCloudflared")?;
                    let hostname = walk.required(&map, node, "hostname", Self::host)?;
                    let words = ["access", "tcp", "--hostname", &hostname, "--url", "127.0.0.1:{port}"];
                    let run = [path.clone()].into_iter().chain(words.map(str::to_owned)).collect();
                    Some(of_command(run, CommandMode::Listen, BTreeMap::new(), env_from.clone()))
                });
                if let Some(command) = walk.field(&map, "command", |walk, node| {
                    let map = walk.map(node, "Command")?;
                    let run = walk.required(&map, node, "run", Self::words);
                    let mode = walk.field(&map, "mode", |walk, node| match walk.text(node)?.as_str() {
                        "listen" => Some(CommandMode::Listen),
                        "stdio" => Some(CommandMode::Stdio),
                        _ => walk.wrong(node, "listen or stdio", None),
                    });
                    let (env, from) =
                        (walk.field(&map, "env", Self::variables), walk.field(&map, "env_from", Self::variables));
                    let (run, mode) = (run?, mode.unwrap_or(CommandMode::Listen));
                    let has_port = run.iter().skip(1).any(|word| word.contains("{port}"));
                    let wrong = match (run.is_empty(), mode, has_port) {
                        (true, ..) => Some("the command is empty"),
                        (_, CommandMode::Listen, false) => Some("none of the words has {port}, the port to listen on"),
                        (_, CommandMode::Stdio, true) => Some("{port} has no meaning where mode is stdio"),
                        _ => None,
                    };
                    if let Some(wrong) = wrong {
                        walk.problem(
                            node.place,
                            wrong,
                            Some("write run: [ssh, -N, -L, \"127.0.0.1:{port}:db:5432\", bastion]"),
                        );
                        return None;
                    }
                    Some(of_command(run, mode, env.unwrap_or_default(), from.unwrap_or_default()))
                }) {
                    backend = Some(command);
                }
                if let Some(destination) = walk.field(&map, "k8s", |walk, node| {
                    let map = walk.map(node, "SniK8s")?;
                    walk.destination(&map, node, config)
                }) {
                    backend = Some(SniBackend::Kubernetes(Box::new(destination)));
                }
                let send_proxy = walk.field(&map, "send_proxy", |walk, node| match walk.text(node)?.as_str() {
                    "v1" => Some(proxy_protocol::Version::V1),
                    "v2" => Some(proxy_protocol::Version::V2),
                    _ => walk.wrong(node, "v1 or v2", None),
                });
                let idle_timeout = walk.field(&map, "idle_timeout", Self::duration).unwrap_or(idle_timeout);
                if let (Some(name), Some(backend)) = (name, backend) {
                    let route = SniRoute { backend, send_proxy, idle_timeout };
                    if routes.insert(name, route).is_some() {
                        walk.problem(key.place, SAME_HOST, None);
                    }
                }
            });
        }
        Some(Sni { listen: listen?, proxy_protocol, allow_commands, routes })
    }

    pub(super) fn port_range(&mut self, node: &Node) -> Option<PortRange> {
        self.value(node, "two ports", Some("write 20000-20999"))
    }

    pub(super) fn variables(&mut self, node: &Node) -> Option<BTreeMap<String, String>> {
        let mut variables = BTreeMap::new();
        for (key, value) in self.entries(node)? {
            variables.insert(key.name.clone(), self.text(value)?);
        }
        Some(variables)
    }
}
