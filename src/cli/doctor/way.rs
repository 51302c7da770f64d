//! Checks the path to a pod: the upgrades that pass, and the bytes on them.

use std::time::{Duration, Instant};

use futures::future::join3;

use super::{
    kubeconfig::of_error,
    report::{Check, Group, Status},
    scope::{Of, Scope},
};
use crate::{
    app::reach::Reach,
    backend::{OpenError, StreamFault},
    config::{Label, Namespace, PortRef, Subdomain, Workload},
    k8s::{
        ClusterError,
        client::Cluster,
        list, resolve,
        upgrade::{Transport, TryError, try_transport},
    },
    routing::{PodTarget, Target},
    telemetry,
};

const GROUP: Group = Group::Way;

/// Maximum number of Services to try, until one has a ready pod.
const MOST_SERVICES: usize = 8;

/// Time in which a pod may refuse a connection.
const SETTLE: Duration = Duration::from_millis(500);

/// A pod behind a Service that accepts connections.
struct Found {
    namespace: Namespace,
    service: Label,
    port: u16,
    pod: Subdomain,
    container_port: u16,
}

pub async fn checks(scope: &Scope, of: &Of, cluster: &Cluster) -> Vec<Check> {
    let all = match find(of, cluster).await {
        Ok(Some(found)) => through(scope, of, cluster, &found).await,
        Ok(None) => {
            vec![Check::new("pod-stream", GROUP, Status::Skip, "a stream to a pod (needs a Service with a ready pod)")]
        }
        Err(error) => vec![unlisted(&error)],
    };
    all.into_iter().map(|check| check.of_context(of.context())).collect()
}

/// Returns the skipped check of a stream, because no Service can be listed.
fn unlisted(error: &ClusterError) -> Check {
    let needs = match error {
        ClusterError::Forbidden { .. } => "permission to list services",
        _ => "a list of Services",
    };
    Check::new("pod-stream", GROUP, Status::Skip, format!("a stream to a pod (needs {needs})"))
        .detail(Some(telemetry::reasons(error)))
}

/// Returns a pod behind a Service of the context's namespaces, else of any.
///
/// # Errors
/// The Services of none of them can be listed. Many users may list only those of their own namespaces.
async fn find(of: &Of, cluster: &Cluster) -> Result<Option<Found>, ClusterError> {
    let (mut refused, mut is_listed) = (None, false);
    for namespace in of.namespaces.iter().map(Some).chain([None]) {
        let services = match list::services(cluster, namespace).await {
            Ok(services) => services,
            Err(error) => {
                refused = Some(error);
                continue;
            }
        };
        is_listed = true;
        for service in services.into_iter().take(MOST_SERVICES) {
            let Some(port) = service.ports.first() else { continue };
            let (workload, port) = (Workload::Service(service.name.clone()), port.number);
            let Ok(found) = resolve::resolve(
                cluster,
                &service.namespace,
                &workload,
                &PortRef::number(port).unwrap_or(PortRef::Auto),
            )
            .await
            else {
                continue;
            };
            // An ExternalName or a takeover leads to another namespace, where the Service's name means another Service or none.
            if let Some(pod) = found.reachable.pods.first().filter(|_| found.namespace == service.namespace) {
                let (pod, container_port) = (pod.name.clone(), pod.container_port);
                return Ok(Some(Found {
                    namespace: found.namespace,
                    service: service.name,
                    port,
                    pod,
                    container_port,
                }));
            }
        }
    }
    refused.filter(|_| !is_listed).map_or(Ok(None), Err)
}

async fn through(scope: &Scope, of: &Of, cluster: &Cluster, found: &Found) -> Vec<Check> {
    let attempt = |transport| try_transport(cluster, &found.namespace, &found.pod, found.container_port, transport);
    let (spdy, websocket, channels) =
        join3(attempt(Transport::Spdy), attempt(Transport::WebSocket), attempt(Transport::Channels)).await;
    let any = spdy.is_ok() || websocket.is_ok() || channels.is_ok();
    let mut all = vec![
        upgrade("upgrade-spdy", Transport::Spdy, &spdy, any),
        upgrade("upgrade-websocket", Transport::WebSocket, &websocket, any),
        upgrade("upgrade-channels", Transport::Channels, &channels, any),
    ];
    all.push(match any {
        true => stream(scope, of, found).await,
        false => Check::new("pod-stream", GROUP, Status::Skip, "a stream to a pod (needs an upgrade that passes)"),
    });
    all
}

/// Returns the check of one transport. `any`: another transport passes, and adit uses that one.
fn upgrade(id: &'static str, transport: Transport, tried: &Result<(), TryError>, any: bool) -> Check {
    let name = transport.name();
    let error = match tried {
        Ok(()) => return Check::new(id, GROUP, Status::Ok, format!("port-forwards by {name} pass")),
        Err(error) => error,
    };
    let status = if any { Status::Warn } else { Status::Fail };
    let (says, detail) = match error {
        TryError::Cluster(error) => return of_error(id, GROUP, error),
        TryError::Refused { text, server } => {
            let by = server.as_ref().map(|server| format!("the answer comes from {server}"));
            (format!("port-forwards by {name} are refused: {text}"), by)
        }
        TryError::Silent => {
            (format!("port-forwards by {name} get no answer"), Some("something on the way swallows them".to_owned()))
        }
    };
    // An older server supports only the first transport, and a gateway may pass only the last one. adit uses any that passes.
    let status = if any { Status::Ok } else { status };
    let check = Check::new(id, GROUP, status, says).detail(detail);
    if any {
        check
    } else {
        check.fix("let the gateway in front of the API server pass upgrades on, or go around it", None)
    }
}

/// Opens one connection to a pod, through the tunnel code.
async fn stream(scope: &Scope, of: &Of, found: &Found) -> Check {
    let target = PodTarget {
        cluster: of.id.clone(),
        namespace: found.namespace.clone(),
        workload: Workload::Service(found.service.clone()),
        port: PortRef::number(found.port).unwrap_or(PortRef::Auto),
        jump: None,
    };
    let (started, reach) = (Instant::now(), Reach::new(scope.clusters.clone()));
    let target = Target::Pods(std::sync::Arc::new(target));
    let done = async {
        let lease = reach.forwards.tunnels().acquire(&target, Duration::from_secs(60)).await?;
        let took = started.elapsed();
        lease.probe(SETTLE).await?;
        Ok::<_, OpenError>((took, lease.endpoint().protocol))
    };
    let check = match done.await {
        Ok((took, protocol)) => {
            let says = format!(
                "pod {}/{} accepted a stream, by {protocol} ({} ms)",
                found.namespace,
                found.pod,
                took.as_millis()
            );
            Check::new("pod-stream", GROUP, Status::Ok, says).took(took)
        }
        // The stream has reached the pod, which is the point of this check. The target's checks are about its port.
        Err(OpenError::Stream(StreamFault::Refused { port })) => {
            let says =
                format!("a stream reached pod {}/{}; its port {port} refuses connections", found.namespace, found.pod);
            Check::new("pod-stream", GROUP, Status::Ok, says).took(started.elapsed())
        }
        Err(error) => Check::new(
            "pod-stream",
            GROUP,
            Status::Fail,
            format!("no stream to pod {}/{}: {error}", found.namespace, found.pod),
        )
        .detail(error.cause())
        .hint(error.hint()),
    };
    reach.forwards.end().await;
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_permission_is_named_only_where_it_is_missing() {
        let error = ClusterError::Protocol { context: "dev".parse().unwrap(), reason: "no JSON".to_owned() };
        let check = unlisted(&error);
        assert!(!check.says.contains("permission") && check.detail.unwrap().contains("no JSON"), "{}", check.says);
    }
}
