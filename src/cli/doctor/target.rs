//! The way to one target, from its name to what its server says.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{
    kubeconfig::PLUGIN_WITHIN,
    protocol::Speaks,
    report::{Check, Group, Status, quoted},
    scope::Scope,
};
use crate::{
    app::reach::Reach,
    config::{Jump, PortRef, Workload},
    error_code::ErrorCode,
    k8s::{ServicePort, resolve},
    routing::{PodTarget, Target},
    tunnel::{Lease, OpenError},
};

const GROUP: Group = Group::Target;

/// How long a pod may take to refuse a connection.
const SETTLE: Duration = Duration::from_millis(500);

/// Adds the checks of one target, each as soon as it is known.
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
    // A sign-in that takes too long has its own check.
    let is_signed_in = timeout(PLUGIN_WITHIN, cluster.sign_in_expires()).await.is_ok();
    let resolved = match if is_signed_in { Some(resolving.await) } else { None } {
        Some(Ok(resolved)) => resolved,
        None => {
            let says = format!("{what} (needs the credentials above)");
            return all.push(Check::new("service", GROUP, Status::Skip, says));
        }
        Some(Err(error)) => {
            // The checks of the API server and the permissions report these.
            if matches!(
                error.code(),
                ErrorCode::Unreachable
                    | ErrorCode::TimedOut
                    | ErrorCode::Unavailable
                    | ErrorCode::Credentials
                    | ErrorCode::Kubeconfig
                    | ErrorCode::Forbidden
            ) {
                let says = format!("{what} (needs what has failed above)");
                return all.push(Check::new("service", GROUP, Status::Skip, says).detail(Some(error.to_string())));
            }
            let is_ready = error.code() == ErrorCode::NotReady;
            if is_ready {
                all.push(Check::new("service", GROUP, Status::Ok, format!("{what} exists")));
            }
            let id = if is_ready { "endpoints" } else { "service" };
            let check = Check::new(id, GROUP, Status::Fail, error.to_string()).detail(error.cause()).hint(error.hint());
            return all.push(check);
        }
    };
    all.push(Check::new("service", GROUP, Status::Ok, format!("{what} exists, and its port is {}", resolved.port)));
    let names: Vec<&str> = resolved.reachable.pods.iter().map(|pod| pod.name.as_str()).collect();
    let says = format!("{} ready pod{}: {}", names.len(), if names.len() == 1 { "" } else { "s" }, names.join(", "));
    let endpoints = Check::new("endpoints", GROUP, Status::Ok, says);
    all.push(match &resolved.reachable.not_ready {
        Some(reason) => Check { status: Status::Warn, ..endpoints }.detail(Some(format!("it is not ready: {reason}"))),
        None => endpoints,
    });
    reached(scope, pods, &resolved.port, target, all).await;
}

/// Whether the port in the pod takes a connection, and what answers there.
async fn reached(
    scope: &Scope,
    pods: &std::sync::Arc<PodTarget>,
    port: &ServicePort,
    target: &str,
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
                Some(jump) => format!("{} takes connections, through pod {}", jump.target, endpoint.pod),
                None => format!("port {} in pod {} takes connections", endpoint.container_port, endpoint.pod),
            };
            all.push(Check::new("pod-port", GROUP, Status::Ok, says).took(started.elapsed()));
            let (port, host) = match &pods.jump {
                Some(Jump { target, .. }) => {
                    let number = target.port.get();
                    (ServicePort { number, name: None, app_protocol: None }, Some(target.host.as_str()))
                }
                None => (port.clone(), None),
            };
            all.push(protocol(&lease, &port, host, target, scope).await);
        }
        Err(error) => {
            all.push(
                Check::new("pod-port", GROUP, Status::Fail, error.to_string()).detail(error.cause()).hint(error.hint()),
            );
        }
    }
    reach.forwards.end();
}

/// `host`: the server's own name, where it has one.
async fn protocol(lease: &Lease, port: &ServicePort, host: Option<&str>, target: &str, scope: &Scope) -> Check {
    let speaks = Speaks::of(port);
    let name = target.split(':').next().unwrap_or(target);
    let local = if name.ends_with(".localhost") { name.to_owned() } else { format!("{name}.localhost") };
    let command = match speaks {
        Speaks::Http => format!("curl http://{local}:{}/", scope.port()),
        Speaks::Tls if crate::k8s::ports::is_web(port) => format!("curl -k https://{local}:{}/", scope.port()),
        Speaks::Postgres => format!("adit run --to db={target} -- psql"),
        Speaks::Redis => format!("adit run --to redis={target} --for redis -- sh -c 'redis-cli -u $REDIS_URL'"),
        Speaks::Tls | Speaks::Other => format!("adit connect {}", quoted(target)),
    };
    let open = async || lease.connect().await.ok();
    match (speaks.ask(open, host.unwrap_or(&local)).await, speaks) {
        (Some(says), _) => Check::new("protocol", GROUP, Status::Ok, format!("it is {says}")).detail(Some(command)),
        (None, Speaks::Other) => {
            Check::new("protocol", GROUP, Status::Skip, "what it speaks (needs a port whose name or number says that)")
                .detail(Some(command))
        }
        (None, speaks) => {
            Check::new("protocol", GROUP, Status::Warn, format!("it does not answer as {} does", speaks.name()))
                .fix("see what it says", Some(format!("adit connect {}", quoted(target))))
        }
    }
}
