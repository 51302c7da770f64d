//! Checks the path to one target, from its name to its server's answer.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{
    kubeconfig::PLUGIN_WITHIN,
    protocol::Speaks,
    report::{Check, Group, Status, quoted},
    scope::Scope,
};
use crate::{
    admin::api::services,
    app::reach::Reach,
    config::{Jump, Label, Namespace, PortRef, Scheme, Workload},
    error_code::ErrorCode,
    k8s::{ServicePort, client::Cluster, list, resolve},
    routing::{Named, PodTarget, Target},
    tunnel::{Lease, OpenError},
};

const GROUP: Group = Group::Target;

/// Time limit for the list of all Services, which is only for a hint.
const LIST_WITHIN: Duration = Duration::from_secs(5);

/// Time in which a pod may refuse a connection.
const SETTLE: Duration = Duration::from_millis(500);

/// Adds the checks of a target, each as soon as it has a result.
pub async fn checks(scope: &Scope, target: &str, all: &mut Vec<Check>) {
    let named = match scope.named(target) {
        Ok(named) => named,
        Err(error) => {
            return all.push(Check::new("route", GROUP, Status::Fail, error.to_string()).hint(error.hint()));
        }
    };
    let how = match named.listener {
        Some(listener) => format!("the route that listens on {listener}"),
        None if *named.route.name != *named.text => format!("the route {}", named.route.name),
        None => "its name".to_owned(),
    };
    let says = format!("{} means {}, by {how}", named.text, named.route.target);
    all.push(Check::new("route", GROUP, Status::Ok, says));
    let Target::Pods(pods) = &named.route.target else { return };
    let cluster = match scope.clusters.get(&pods.cluster).await {
        Ok(cluster) => cluster,
        Err(error) => {
            all.push(
                Check::new("service", GROUP, Status::Skip, "the Service (needs the API server)")
                    .detail(Some(error.to_string())),
            );
            return;
        }
    };
    let (namespace, workload) = (&pods.namespace, &pods.workload);
    let what = match workload {
        Workload::Service(name) => format!("service {namespace}/{name}"),
        Workload::Pod(name) => format!("pod {namespace}/{name}"),
        Workload::PodOfService { pod, .. } => format!("pod {namespace}/{pod}"),
        Workload::Address(address) => format!("address {address}"),
    };
    let port = if pods.jump.is_some() { PortRef::Auto } else { pods.port.clone() };
    let resolving = async {
        match pods.jump {
            Some(_) => resolve::resolve_pods(&cluster, namespace, workload).await,
            None => resolve::resolve(&cluster, namespace, workload, &port).await,
        }
    };
    // A sign-in that takes too long fails in its own check.
    let is_signed_in = timeout(PLUGIN_WITHIN, cluster.signed_in()).await.is_ok();
    let resolved = match if is_signed_in { Some(resolving.await) } else { None } {
        Some(Ok(resolved)) => resolved,
        None => {
            let says = format!("{what} (needs the credentials above)");
            return all.push(Check::new("service", GROUP, Status::Skip, says));
        }
        Some(Err(error)) => {
            // The checks of the API server and the permissions report these errors.
            if matches!(
                error.code(),
                ErrorCode::Unreachable
                    | ErrorCode::TimedOut
                    | ErrorCode::Unavailable
                    | ErrorCode::Credentials
                    | ErrorCode::Kubeconfig
                    | ErrorCode::Forbidden
            ) {
                let says = format!("{what} (needs the failed check above)");
                return all.push(Check::new("service", GROUP, Status::Skip, says).detail(Some(error.to_string())));
            }
            let is_ready = error.code() == ErrorCode::NotReady;
            if is_ready {
                all.push(Check::new("service", GROUP, Status::Ok, format!("{what} exists")));
            }
            let id = if is_ready { "endpoints" } else { "service" };
            let elsewhere = match workload {
                Workload::Service(name) if error.code() == ErrorCode::NotFound => elsewhere(&cluster, name).await,
                _ => None,
            };
            let check = Check::new(id, GROUP, Status::Fail, error.to_string()).detail(error.cause());
            return all.push(check.hint(elsewhere.or_else(|| error.hint())));
        }
    };
    let its_port = match pods.jump {
        // A jump uses the pod, but not the port of its Service.
        Some(_) => String::new(),
        None => format!(", and its port is {}", resolved.port),
    };
    all.push(Check::new("service", GROUP, Status::Ok, format!("{what} exists{its_port}")));
    let names: Vec<&str> = resolved.reachable.pods.iter().map(|pod| pod.name.as_str()).collect();
    let taken = resolved.takeover.as_ref().map(ToString::to_string);
    all.push(match &resolved.reachable.not_ready {
        Some(reason) => {
            let says = format!("pod {} is not ready ({reason})", names.join(", "));
            Check::new("endpoints", GROUP, Status::Warn, says)
                .fix("look at its readiness probe", Some(describe(scope, &resolved.namespace, pods, &names)))
        }
        None => {
            let plural = if names.len() == 1 { "" } else { "s" };
            let says = format!("{} ready pod{plural}: {}", names.len(), names.join(", "));
            Check::new("endpoints", GROUP, Status::Ok, says).detail(taken)
        }
    });
    reached(scope, pods, &resolved.port, &named, all).await;
}

fn describe(scope: &Scope, namespace: &Namespace, pods: &PodTarget, names: &[&str]) -> String {
    format!("{} -n {namespace} describe pod {}", scope.kubectl_of(&pods.cluster.context), names.join(" "))
}

/// Returns the Services of this name in other namespaces. `None`: there are none, or the user may not list them.
async fn elsewhere(cluster: &Cluster, name: &Label) -> Option<String> {
    let listed = timeout(LIST_WITHIN, list::services(cluster, None)).await.ok()?.ok()?;
    let others = listed.iter().filter(|other| other.name == *name);
    let others: Vec<String> = others.map(|other| format!("{}.{}", other.name, other.namespace)).collect();
    (!others.is_empty()).then(|| format!("did you mean {}?", others.join(" or ")))
}

/// Checks whether the port in the pod accepts a connection, and which protocol its server uses.
async fn reached(
    scope: &Scope,
    pods: &std::sync::Arc<PodTarget>,
    port: &ServicePort,
    named: &Named,
    all: &mut Vec<Check>,
) {
    let (reach, started) = (Reach::new(scope.clusters.clone()), Instant::now());
    let route = Target::Pods(pods.clone());
    let opening = async {
        let lease = reach.forwards.tunnels().acquire(&route, Duration::from_secs(60)).await?;
        lease.probe(SETTLE).await?;
        Ok::<_, OpenError>(lease)
    };
    match opening.await {
        Ok(lease) => {
            let endpoint = lease.endpoint();
            let says = match &pods.jump {
                Some(jump) => format!("{} accepts connections, through pod {}", jump.target, endpoint.pod),
                None => format!("port {} in pod {} accepts connections", endpoint.container_port, endpoint.pod),
            };
            all.push(Check::new("pod-port", GROUP, Status::Ok, says).took(started.elapsed()));
            let (port, host) = match &pods.jump {
                Some(Jump { target, .. }) => {
                    let number = target.port.get();
                    (ServicePort { number, name: None, app_protocol: None }, Some(target.host.as_str()))
                }
                None => (port.clone(), None),
            };
            all.push(protocol(&lease, pods, &port, host, named, scope).await);
        }
        Err(error) => {
            all.push(
                Check::new("pod-port", GROUP, Status::Fail, error.to_string()).detail(error.cause()).hint(error.hint()),
            );
        }
    }
    reach.forwards.end().await;
}

/// Returns the host and port with which a browser reaches a target. `None`: the HTTP listener has no name for it.
fn authority(scope: &Scope, pods: &PodTarget, port: &ServicePort, named: &Named) -> Option<String> {
    let (router, listener) = (&scope.router, scope.port());
    if let Some(address) = named.listener {
        return Some(address.to_string());
    }
    let route = &*named.route.name;
    if router.config.http.routes.contains_key(route) {
        return (!route.starts_with('*')).then(|| format!("{route}:{listener}"));
    }
    let Workload::Service(service) = &pods.workload else { return None };
    if pods.jump.is_some() {
        return None;
    }
    let number = (pods.port != PortRef::Auto).then_some(port.number);
    let context = services::named_context(router, &pods.cluster.context).ok()?;
    let url = services::url(&pods.namespace, service, number, context.as_ref(), listener);
    Some(url.trim_start_matches("http://").trim_end_matches('/').to_owned())
}

/// Returns a command that shows the target's answer. `authority`: see [`authority`].
fn command(speaks: Speaks, is_web: bool, authority: Option<&str>, named: &Named) -> String {
    let target = quoted(&named.text);
    let run =
        |name: &str, program: &str| format!("adit run --to {} -- {program}", quoted(&format!("{name}={}", named.text)));
    match (speaks, authority) {
        (Speaks::Http, Some(at)) => format!("curl {}", quoted(&format!("http://{at}/"))),
        (Speaks::Http, None) => run("web", "sh -c 'curl http://$WEB_ADDR/'"),
        (Speaks::Tls, Some(at)) if is_web => format!("curl -k {}", quoted(&format!("https://{at}/"))),
        (Speaks::Tls, None) if is_web => run("web", "sh -c 'curl -k https://$WEB_ADDR/'"),
        (Speaks::Postgres, _) => run("db", "psql"),
        (Speaks::MySql, _) => run("db", "mysql"),
        (Speaks::Redis, _) => run("redis", "sh -c 'redis-cli -h $REDIS_HOST -p $REDIS_PORT'"),
        (Speaks::Tls | Speaks::Other, _) => format!("adit connect {target}"),
    }
}

/// Checks the protocol of a port. `host`: the server's own name, if it has one.
async fn protocol(
    lease: &Lease,
    pods: &PodTarget,
    port: &ServicePort,
    host: Option<&str>,
    named: &Named,
    scope: &Scope,
) -> Check {
    let speaks = Speaks::of(port);
    let authority = authority(scope, pods, port, named);
    let local = authority.as_deref().and_then(|at| Some(at.rsplit_once(':')?.0)).unwrap_or("localhost");
    let target = &named.text;
    let command = command(speaks, crate::k8s::ports::is_web(port), authority.as_deref(), named);
    let open = async || lease.connect().await.ok();
    let host = host.unwrap_or(local);
    let mut says = speaks.ask(&open, host).await;
    if says.is_none() && speaks == Speaks::Tls {
        says = Speaks::Http.ask(&open, host).await;
    }
    let spoken =
        says.as_deref().and_then(|says| speaks.other_than(says)).filter(|_| named.route.options.scheme.is_none());
    if let (Some(says), Some(scheme)) = (&says, spoken) {
        let (wanted, speaks) = (speaks, if scheme == Scheme::Https { Speaks::Tls } else { Speaks::Http });
        let command = self::command(speaks, true, authority.as_deref(), named);
        let says = format!("it is {says}, but the name or number of its port suggests {}", wanted.name());
        let fix = crate::frontend::protocol::fix(&named.route, &lease.endpoint(), scheme);
        return Check::new("protocol", GROUP, Status::Warn, says).detail(Some(command)).fix(fix, None);
    }
    match (says, speaks) {
        (Some(says), _) => Check::new("protocol", GROUP, Status::Ok, format!("it is {says}")).detail(Some(command)),
        (None, Speaks::Other) => {
            Check::new("protocol", GROUP, Status::Skip, "protocol (the name and number of the port do not show it)")
                .detail(Some(command))
        }
        (None, speaks) => {
            Check::new("protocol", GROUP, Status::Warn, format!("it does not answer as {} does", speaks.name()))
                .fix("look at its answer", Some(format!("adit connect {}", quoted(target))))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::validate;

    #[test]
    fn commands_to_copy_reach_what_was_checked() {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        let text = "{apiVersion: v1, kind: Config, current-context: d, contexts: [{name: d, context: {cluster: c, user: u}}], \
                    clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: u, user: {}}]}";
        std::fs::write(&kubeconfig, text).unwrap();
        let config = format!(
            "http: {{listen: '127.0.0.1:8989', k8s: {{kubeconfig: '{}', routes: {{shop.localhost: {{namespace: s, service: w}}}}}}}}\n\
             tcp: {{k8s: {{routes: {{5432: {{namespace: s, service: w}}}}}}}}\n",
            kubeconfig.display()
        );
        let config = validate::parse(std::path::Path::new("x"), config.as_bytes()).unwrap();
        let (clusters, router) = crate::cli::router(config);
        let scope = Scope::new(clusters, router, &crate::cli::Cli::parse_from(["adit"]).globals, None);
        let web = ServicePort { number: 80, name: None, app_protocol: None };
        for (target, wanted) in [
            ("web.cli", "curl http://web.cli.localhost:8989/"),
            ("web.cli@99", "curl http://web.cli.localhost:8989/"),
            ("web.cli.svc.cluster.local", "curl http://web.cli.localhost:8989/"),
            ("web.cli:80", "curl http://80.web.cli.localhost:8989/"),
            ("shop.localhost", "curl http://shop.localhost:8989/"),
            ("5432", "curl http://127.0.0.1:5432/"),
            ("pod/web.cli:80", "adit run --to web=pod/web.cli:80 -- sh -c 'curl http://$WEB_ADDR/'"),
        ] {
            let named = scope.named(target).unwrap();
            let Target::Pods(pods) = &named.route.target else { panic!("{target}") };
            let at = authority(&scope, pods, &web, &named);
            assert_eq!(command(Speaks::Http, true, at.as_deref(), &named), wanted, "{target}");
        }
    }
}
