//! `adit expose ls` and `adit expose restore`: list and restore takeovers without a relay.

use std::io::{self, Write};

use serde_json::json;

use crate::{
    cli::{
        Output,
        named_service::NamedService,
        place::Place,
        report::{CliError, print, table},
    },
    k8s::{
        ClusterError, Namespaces,
        client::{AskError, Cluster},
    },
    relay::expose::{
        ServiceName,
        inspect::{self, Exposed, RelayState},
        kube::{Kube, KubeError},
        service::TakenPort,
    },
};

fn failed(act: &str, cluster: &Cluster, error: &KubeError) -> CliError {
    CliError::new(format!("cannot {act} in context \"{}\"", cluster.context)).cause(Some(error))
}

/// Returns the Services that are taken over, in the command's namespace or in all.
async fn exposed(place: &Place, all_namespaces: bool) -> Result<Vec<Exposed>, CliError> {
    let namespace = (!all_namespaces).then_some(place.namespace.as_str());
    let cluster = place.cluster().await?;
    let listed = inspect::list(&kube(&cluster).await?, namespace).await;
    let (exposed, damaged) = listed.map_err(|error| {
        let hint =
            matches!(error, KubeError::Forbidden(_)).then_some("choose a namespace that you may list: -n NAMESPACE");
        failed("list Services", &cluster, &error).hint(hint)
    })?;
    for refusal in damaged {
        // If stderr is closed, the list is still right.
        let _ = writeln!(io::stderr(), "warning: {refusal}");
    }
    Ok(exposed)
}

/// Returns the API client, after a first request has signed the user in: later calls have short time limits.
///
/// # Errors
/// There is no such context, or the user cannot be signed in.
pub async fn kube(cluster: &Cluster) -> Result<Kube, CliError> {
    let asked = cluster.ask("asking for its version", Namespaces::All, cluster.client.apiserver_version()).await;
    match asked {
        // A user without permission for the version may still be allowed to read Services.
        Ok(_)
        | Err(
            AskError::NotFound
            | AskError::Failed(
                ClusterError::Forbidden { .. } | ClusterError::Policy { .. } | ClusterError::Protocol { .. },
            ),
        ) => Ok(Kube::new(cluster.client.clone())),
        Err(AskError::Failed(error)) => Err(error.into()),
    }
}

pub async fn list(place: &Place, all_namespaces: bool, output: Option<Output>) -> Result<(), CliError> {
    let exposed = exposed(place, all_namespaces).await?;
    if let Some(Output::Json) = output {
        let listed: Vec<_> = exposed.iter().map(as_json).collect();
        return print(&format!("{}\n", serde_json::to_string_pretty(&listed).map_err(io::Error::other)?));
    }
    if exposed.is_empty() {
        let (namespace, context) = (&place.namespace, place.context());
        return print(&match all_namespaces {
            true => format!("no Service is taken over in context {context}\n"),
            false => format!("no Service is taken over in namespace {namespace} of context {context}; -A lists all\n"),
        });
    }
    print(&listed(&exposed))?;
    for gone in exposed.iter().filter(|exposed| exposed.state == RelayState::Gone) {
        let service = &gone.service;
        // If stderr is closed, the list is still right.
        let _ = writeln!(
            io::stderr(),
            "hint: the relay of {service} is gone: 'adit expose restore {}.{}' restores the Service",
            service.name,
            service.namespace
        );
    }
    Ok(())
}

fn as_json(exposed: &Exposed) -> serde_json::Value {
    let ports = exposed.takeover.ports.iter();
    let port = |taken: &TakenPort| match taken.personal.is_empty() {
        true => json!({"port": taken.port, "owner": taken.owner, "since": taken.since}),
        false => json!({"port": taken.port, "owner": taken.owner, "since": taken.since, "personal": taken.personal}),
    };
    let ports: Vec<_> = ports.map(port).collect();
    json!({
        "namespace": exposed.service.namespace, "service": exposed.service.name, "created": exposed.takeover.created,
        "ports": ports, "relay": exposed.relay, "state": exposed.state
    })
}

fn listed(exposed: &[Exposed]) -> String {
    let mut rows =
        vec![["SERVICE", "PORT", "REQUESTS", "OWNER", "SINCE", "RELAY", "STATE"].map(str::to_owned).to_vec()];
    for exposed in exposed {
        let state = match exposed.state {
            RelayState::Running => "running",
            RelayState::Gone => "relay is gone",
            RelayState::Unknown => "unknown",
        };
        let row = |port: u16, requests: String, owner: &str, since: &str| {
            let (service, relay) = (exposed.service.to_string(), exposed.relay.clone());
            vec![service, port.to_string(), requests, owner.to_owned(), since.to_owned(), relay, state.to_owned()]
        };
        for taken in &exposed.takeover.ports {
            match taken.personal.is_empty() {
                true => rows.push(row(taken.port, "all".to_owned(), &taken.owner, &taken.since)),
                false => rows.extend(
                    taken
                        .personal
                        .iter()
                        .map(|part| row(taken.port, part.requests.to_string(), &part.owner, &part.since)),
                ),
            }
        }
    }
    table(&rows)
}

/// Returns whether [`restore`] without a Service restores this one. `relays`: those whose Services to restore. Empty: those
/// that are gone.
fn is_chosen(exposed: &Exposed, relays: &[String]) -> bool {
    match relays {
        [] => exposed.state == RelayState::Gone,
        relays => relays.contains(&exposed.relay),
    }
}

pub async fn restore(
    place: &Place,
    service: Option<NamedService>,
    all_namespaces: bool,
    relays: &[String],
) -> Result<(), CliError> {
    let names: Vec<ServiceName> = match service {
        Some(NamedService { name, namespace }) => {
            let namespace = namespace.unwrap_or_else(|| place.namespace.clone());
            vec![ServiceName { namespace: namespace.into(), name: name.into() }]
        }
        None => {
            let exposed = exposed(place, all_namespaces).await?;
            let (chosen, others): (Vec<_>, Vec<_>) =
                exposed.into_iter().partition(|exposed| is_chosen(exposed, relays));
            for other in others.iter().filter(|_| relays.is_empty()) {
                let (service, relay) = (&other.service, &other.relay);
                let why = match other.state {
                    RelayState::Unknown => "may still run",
                    _ => "runs",
                };
                print(&format!(
                    "left alone: {service}, whose relay {relay} {why}; 'adit expose restore {}.{}' restores it\n",
                    service.name, service.namespace
                ))?;
            }
            chosen.into_iter().map(|chosen| chosen.service).collect()
        }
    };
    if names.is_empty() {
        return print(&match all_namespaces {
            true => "nothing to restore\n".to_owned(),
            false => format!("nothing to restore in namespace {}; -A for all namespaces\n", place.namespace),
        });
    }
    let cluster = place.cluster().await?;
    let kube = kube(&cluster).await?;
    for name in &names {
        let was_taken = inspect::is_touched(&kube, name).await;
        let was_taken = was_taken.map_err(|error| failed(&format!("read Service {name}"), &cluster, &error))?;
        if !was_taken {
            let exists = inspect::exists(&kube, name).await;
            if !exists.map_err(|error| failed(&format!("read Service {name}"), &cluster, &error))? {
                let message = format!("no Service {name} in context \"{}\"", cluster.context);
                return Err(
                    CliError::new(message).hint(Some("'adit expose ls -A' lists the Services that are taken over"))
                );
            }
            print(&format!("nothing to restore: Service {name} is not taken over\n"))?;
            continue;
        }
        let restored = inspect::restore(&kube, name).await.map_err(|error| {
            CliError::new(format!("cannot restore Service {name} in context \"{}\"", place.context()))
                .cause(Some(error))
        })?;
        print(&match restored {
            Some(_) => format!("restored {name}\n"),
            None => format!("deleted {name}, which a relay had created\n"),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::expose::service::Takeover;

    #[test]
    fn services_of_a_named_relay_are_restored_while_it_runs_and_no_others() {
        let of = |relay: &str, state| Exposed {
            service: ServiceName { namespace: "shop".into(), name: "web".into() },
            takeover: Takeover { relay: String::new(), created: false, ports: Vec::new() },
            relay: relay.into(),
            state,
        };
        let named = ["relay/relay-0".to_owned()];
        for (relay, state, by_default, by_name) in [
            ("relay/relay-0", RelayState::Running, false, true),
            ("relay/relay-0", RelayState::Gone, true, true),
            ("relay/relay-01", RelayState::Gone, true, false),
            ("team/relay-0", RelayState::Unknown, false, false),
        ] {
            let exposed = of(relay, state);
            assert_eq!((is_chosen(&exposed, &[]), is_chosen(&exposed, &named)), (by_default, by_name), "{exposed:?}");
        }
    }
}
