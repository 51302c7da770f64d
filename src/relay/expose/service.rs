//! Changes to a Service for a takeover: its patches, its record, and the refusals.
//!
//! A takeover changes only `targetPort` of the requested ports, to a name that no pod has. The cluster's controllers then
//! remove these ports from the Service's endpoints, and still serve all others. The same patch saves each original value
//! in an annotation, so that a Service can always be restored from its own content.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{EXPOSED, MANAGED_BY, ServiceName, TAKEOVER, condition::Condition, text};
use crate::printable::printable;

/// Content of the annotation [`TAKEOVER`], as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takeover {
    /// Relay of the takeover: `namespace/pod/uid/start`.
    pub relay: String,
    /// Whether the relay created the Service. It is then deleted at the end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub created: bool,
    pub ports: Vec<TakenPort>,
}

/// A port that is routed to a laptop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TakenPort {
    pub port: u16,
    /// Original `targetPort`. Null: it was absent.
    #[serde(default)]
    pub target_port: Value,
    /// Holder: name of the key, and address. If the port is taken over in part, all holders.
    pub owner: String,
    /// In RFC 3339.
    pub since: String,
    /// Conditions and their owners; all other requests go to the pods. Empty: all requests go to the owner.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub personal: Vec<PersonalPart>,
}

/// Requests of a port that go to one laptop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonalPart {
    pub requests: Condition,
    pub owner: String,
    /// In RFC 3339.
    pub since: String,
}

/// Holder of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub owner: String,
    pub since: String,
    /// Empty: the whole port.
    pub personal: Vec<PersonalPart>,
}

/// Reasons why a Service cannot be taken over or restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("Service {0} exists: --replace takes it over until the end")]
    Exists(ServiceName),
    #[error("Service {0} does not exist: without --replace it is created")]
    Missing(ServiceName),
    #[error("there is no namespace {0:?}")]
    NoNamespace(String),
    #[error("Service {0} does not exist: there are no pods for the requests that are not yours")]
    NoPods(ServiceName),
    #[error("Service {0} was created by adit: there are no pods for the requests that are not yours")]
    OnlyOurs(ServiceName),
    #[error("Service {service} has no TCP port {port}; it has {ports}")]
    NoPort { service: ServiceName, port: u16, ports: String },
    #[error("Service {0} is an ExternalName: it has no endpoints that a relay could replace")]
    ExternalName(ServiceName),
    #[error("Service {0} is headless: clients connect to the addresses of its pods, not to a Service port")]
    Headless(ServiceName),
    #[error("Service {0} has internalTrafficPolicy Local: clients on other nodes than the relay's would not be served")]
    NodeLocal(ServiceName),
    #[error(
        "Service {0} has externalTrafficPolicy Local and several ports: its load balancer would still send visitors to nodes \
         that the relay does not run on"
    )]
    NodeLocalOutside(ServiceName),
    #[error(
        "Service {service} has {family} addresses, and the relay has none: start it with '--bind ::' in a pod that has one"
    )]
    Family { service: ServiceName, family: String },
    #[error("Service {0} is being deleted")]
    Deleted(ServiceName),
    #[error("the endpoints of Service {service} are managed by {by}, which would undo the change ({object})")]
    Controlled { service: ServiceName, object: String, by: String },
    #[error("{object} exists and was not created by adit: rename or delete it")]
    Foreign { object: String },
    /// Somebody has removed the annotation and the Lease, but not the changed port.
    #[error(
        "port {port} of Service {service} has targetPort adit-{port}, and the record of its original is gone (annotation {TAKEOVER}, \
         Lease {lease}): set it by hand, 'kubectl -n {} edit service {}'", .service.namespace, .service.name
    )]
    NoRecord { service: ServiceName, port: u16, lease: String },
    #[error(
        "the annotation {TAKEOVER} of Service {service} is damaged ({problem}): set targetPort of its ports by hand, then remove \
         the annotation"
    )]
    Damaged { service: ServiceName, problem: String },
}

/// Change of a Service.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Nothing,
    /// A merge patch.
    Patch(Value),
    /// A relay created the Service, and nobody else uses it.
    Delete,
}

/// Returns the `targetPort` of a port that is taken over: a valid port name (RFC 6335, section 5.1).
fn marker(port: u16) -> String {
    format!("adit-{port}")
}

fn marked(entry: &Value) -> Option<u16> {
    entry["targetPort"].as_str()?.strip_prefix("adit-")?.parse().ok()
}

fn entries(service: &Value) -> &[Value] {
    service["spec"]["ports"].as_array().map_or(&[], Vec::as_slice)
}

fn is_tcp(entry: &Value) -> bool {
    entry["protocol"].as_str().is_none_or(|protocol| protocol == "TCP")
}

fn number(entry: &Value) -> Option<u16> {
    entry["port"].as_u64().and_then(|port| u16::try_from(port).ok())
}

/// Returns whether an entry is this TCP port.
fn is_port(entry: &Value, port: u16) -> bool {
    is_tcp(entry) && number(entry) == Some(port)
}

/// Returns the record of a Service's takeover. `kept`: the record in its Lease, or in the relay's memory, in case
/// somebody has removed only the annotation. `None`: the Service is not taken over.
///
/// # Errors
/// The record is damaged, or another version of adit has written it.
pub fn takeover(service: &Value, name: &ServiceName, kept: Option<&Takeover>) -> Result<Option<Takeover>, Refusal> {
    let markers: Vec<u16> = entries(service).iter().filter_map(marked).collect();
    let said = service["metadata"]["annotations"][TAKEOVER].as_str().map(serde_json::from_str::<Takeover>);
    let mut found = match (said, kept) {
        (Some(Ok(said)), _) => said,
        (None, _) if markers.is_empty() => return Ok(None),
        (None | Some(Err(_)), Some(kept)) => kept.clone(),
        (None, None) => Takeover { relay: String::new(), created: false, ports: Vec::new() },
        (Some(Err(error)), None) => {
            let problem = format!("column {} is not understood", error.column());
            return Err(Refusal::Damaged { service: name.clone(), problem });
        }
    };
    for port in markers {
        let of = |takeover: &Takeover| takeover.ports.iter().find(|taken| taken.port == port).cloned();
        match (of(&found), kept.and_then(of)) {
            (Some(_), _) => {}
            (None, Some(taken)) => found.ports.push(taken),
            // Without a record, the original would be lost.
            (None, None) => {
                return Err(Refusal::NoRecord { service: name.clone(), port, lease: super::lease::name(name) });
            }
        }
    }
    Ok(Some(found))
}

/// Returns the original `targetPort` of an entry. Null: it was absent.
fn original(entry: &Value, before: Option<&Takeover>) -> Value {
    let taken = marked(entry).and_then(|port| before?.ports.iter().find(|taken| taken.port == port));
    taken.map_or_else(|| entry["targetPort"].clone(), |taken| taken.target_port.clone())
}

/// Returns the ports of a Service that are now routed to laptops.
pub fn taken_ports(service: &Value, takeover: &Takeover) -> BTreeSet<u16> {
    let is_here = |taken: &&TakenPort| {
        entries(service).iter().any(|entry| match takeover.created {
            true => is_created(entry) && is_port(entry, taken.port),
            false => marked(entry) == Some(taken.port) && is_port(entry, taken.port),
        })
    };
    takeover.ports.iter().filter(is_here).map(|taken| taken.port).collect()
}

/// Returns the ports of laptops as in endpoints: their names (empty for an only port without one) and protocols.
pub fn taken_names(service: &Value, wanted: &BTreeMap<u16, Holder>, created: bool) -> BTreeMap<u16, Value> {
    let of_port = |port: &u16| {
        let entry = entries(service).iter().find(|entry| is_port(entry, *port));
        let mut name = match entry {
            None if created => json!({"name": marker(*port)}),
            entry => json!({"name": text(&entry?["name"])}),
        };
        if let Some(protocol) = entry.map(|entry| &entry["appProtocol"]).filter(|protocol| !protocol.is_null()) {
            name["appProtocol"] = protocol.clone();
        }
        Some((*port, name))
    };
    wanted.keys().filter_map(of_port).collect()
}

/// Returns the name of a port, as in endpoints: empty for an only port without one.
pub fn port_name(service: &Value, port: u16) -> String {
    entries(service)
        .iter()
        .find(|entry| is_port(entry, port))
        .map_or(String::new(), |entry| text(&entry["name"]).to_owned())
}

pub fn has_selector(service: &Value) -> bool {
    service["spec"]["selector"].as_object().is_some_and(|selector| !selector.is_empty())
}

/// Returns the address families of a Service: `IPv4`, `IPv6`.
pub fn families(service: &Value) -> Vec<String> {
    let families = service["spec"]["ipFamilies"].as_array().into_iter().flatten();
    families.filter_map(|family| family.as_str().map(str::to_owned)).collect()
}

/// Checks, before any change, whether a Service can be taken over. `relay_families`: the address families of the relay.
///
/// # Errors
/// It cannot, with the reason.
pub fn check(service: &Value, name: &ServiceName, port: u16, relay_families: &[String]) -> Result<(), Refusal> {
    let (spec, name_of) = (&service["spec"], || name.clone());
    if !service["metadata"]["deletionTimestamp"].is_null() {
        return Err(Refusal::Deleted(name_of()));
    }
    if spec["type"] == "ExternalName" {
        return Err(Refusal::ExternalName(name_of()));
    }
    if spec["clusterIP"] == "None" {
        return Err(Refusal::Headless(name_of()));
    }
    if !entries(service).iter().any(|entry| is_port(entry, port)) {
        let shown = |entry: &Value| match entry["protocol"].as_str() {
            None | Some("TCP") => entry["port"].to_string(),
            Some(protocol) => format!("{}/{protocol}", entry["port"]),
        };
        let ports = entries(service).iter().map(shown).collect::<Vec<_>>().join(", ");
        return Err(Refusal::NoPort {
            service: name_of(),
            port,
            ports: if ports.is_empty() { "none".into() } else { ports },
        });
    }
    if spec["internalTrafficPolicy"] == "Local" {
        return Err(Refusal::NodeLocal(name_of()));
    }
    if spec["externalTrafficPolicy"] == "Local" && entries(service).len() > 1 {
        return Err(Refusal::NodeLocalOutside(name_of()));
    }
    match families(service).into_iter().find(|family| !relay_families.contains(family)) {
        Some(family) => Err(Refusal::Family { service: name_of(), family }),
        None => Ok(()),
    }
}

/// Returns a Service to create. `owners`: its ownerReferences.
pub fn create(name: &ServiceName, owners: Value, takeover: &Takeover) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name.name, "namespace": name.namespace, "ownerReferences": owners,
            "labels": {EXPOSED: "true", MANAGED_BY: "adit"},
            "annotations": {TAKEOVER: json!(takeover).to_string()}
        },
        "spec": {"ports": takeover.ports.iter().map(|taken| created_entry(taken.port)).collect::<Vec<_>>()}
    })
}

fn created_entry(port: u16) -> Value {
    json!({"name": marker(port), "port": port, "protocol": "TCP", "targetPort": port})
}

fn is_created(entry: &Value) -> bool {
    number(entry).is_some_and(|port| entry["name"] == marker(port) && entry["targetPort"] == port)
}

/// Returns whether a relay created the Service and nobody edited it.
fn is_only_ours(service: &Value) -> bool {
    let only = |part: &Value, ours: &[&str]| {
        part.as_object().is_none_or(|map| map.keys().all(|key| ours.contains(&key.as_str())))
    };
    only(&service["spec"]["selector"], &[])
        && only(&service["metadata"]["labels"], &[EXPOSED, MANAGED_BY])
        && only(&service["metadata"]["annotations"], &[TAKEOVER])
        && entries(service).iter().all(is_created)
}

/// Returns the record for `wanted`, with all original values.
pub fn plan(service: &Value, before: Option<&Takeover>, relay: &str, wanted: &BTreeMap<u16, Holder>) -> Takeover {
    let created = before.is_some_and(|before| before.created);
    let ports = wanted.iter().map(|(port, holder)| {
        let entry = entries(service).iter().find(|entry| is_port(entry, *port));
        let target_port = match entry {
            Some(entry) if !created => original(entry, before),
            _ => Value::Null,
        };
        let Holder { owner, since, personal } = holder.clone();
        TakenPort { port: *port, target_port, owner, since, personal }
    });
    Takeover { relay: relay.to_owned(), created, ports: ports.collect() }
}

/// Returns the change that brings a Service to the state `after`. `None`: not taken over.
pub fn change(service: &Value, before: Option<&Takeover>, after: Option<&Takeover>) -> Change {
    let after = after.filter(|after| !after.ports.is_empty());
    let nothing = Takeover { relay: String::new(), created: false, ports: Vec::new() };
    // Even without a record the label may remain, if somebody has removed the rest.
    let any = after.or(before).unwrap_or(&nothing);
    if after.is_none() && any.created && is_only_ours(service) {
        return Change::Delete;
    }
    let ports = match any.created {
        true => created_ports(service, after),
        false => replaced_ports(service, before, after),
    };
    let (mut labels, mut annotations) = (Map::new(), Map::new());
    match after {
        Some(after) => {
            labels.insert(EXPOSED.to_owned(), json!("true"));
            annotations.insert(TAKEOVER.to_owned(), json!(json!(after).to_string()));
        }
        None => {
            labels.insert(EXPOSED.to_owned(), Value::Null);
            annotations.insert(TAKEOVER.to_owned(), Value::Null);
            if any.created && service["metadata"]["labels"][MANAGED_BY] == "adit" {
                labels.insert(MANAGED_BY.to_owned(), Value::Null);
            }
        }
    }
    let metadata = &service["metadata"];
    let is_so = |part: &Value, wanted: &Map<String, Value>| wanted.iter().all(|(key, value)| part[key] == *value);
    if is_so(&metadata["labels"], &labels) && is_so(&metadata["annotations"], &annotations) && ports == entries(service)
    {
        return Change::Nothing;
    }
    let mut patch = json!({"metadata": {"labels": labels, "annotations": annotations}});
    if ports != entries(service) {
        // A merge patch replaces the whole list. Its resourceVersion ensures that the list has not changed since.
        patch["spec"] = json!({"ports": ports});
    }
    Change::Patch(patch)
}

fn replaced_ports(service: &Value, before: Option<&Takeover>, after: Option<&Takeover>) -> Vec<Value> {
    let is_wanted =
        |entry: &Value| after.is_some_and(|after| after.ports.iter().any(|taken| is_port(entry, taken.port)));
    let changed = |entry: &Value| {
        let target_port = match number(entry).filter(|_| is_wanted(entry)) {
            Some(port) => json!(marker(port)),
            // Also if somebody has changed the port's number.
            None => original(entry, before),
        };
        let mut entry = entry.clone();
        match target_port {
            Value::Null => drop(entry.as_object_mut().and_then(|entry| entry.remove("targetPort"))),
            target_port => entry["targetPort"] = target_port,
        }
        entry
    };
    entries(service).iter().map(changed).collect()
}

fn created_ports(service: &Value, after: Option<&Takeover>) -> Vec<Value> {
    let wanted: Vec<u16> = after.iter().flat_map(|after| after.ports.iter().map(|taken| taken.port)).collect();
    let stays = |entry: &&Value| !is_created(entry) || number(entry).is_some_and(|port| wanted.contains(&port));
    let mut ports: Vec<Value> = entries(service).iter().filter(stays).cloned().collect();
    for port in wanted {
        if !ports.iter().any(|entry| is_tcp(entry) && number(entry) == Some(port)) {
            ports.push(created_entry(port));
        }
    }
    // A Service needs at least one port.
    if ports.is_empty() { entries(service).to_vec() } else { ports }
}

/// Returns how a held port has been undone; `None` as long as it is intact. `known`: the relay's own record of the
/// takeover.
pub fn undone(service: &Value, takeover: Option<&Takeover>, known: Option<&Takeover>, port: u16) -> Option<String> {
    let by = last_writer(service, |by| by != ADIT).map_or(String::new(), |(_, by)| format!(" by {by}"));
    let of = |takeover: &'_ Takeover| takeover.ports.iter().find(|taken| taken.port == port).cloned();
    let Some(takeover) = takeover.filter(|takeover| of(takeover).is_some()) else {
        // A relay never ends a held claim itself. A manual restore removes adit from the writers: see `disowned`.
        let since = known.and_then(of).map_or(String::new(), |taken| taken.since);
        return Some(match last_writer(service, |_| true).is_some_and(|(time, by)| by == ADIT || time <= since) {
            true => super::reconcile::RESTORED_BY_HAND.to_owned(),
            false => format!("was given back{by}"),
        });
    };
    if takeover.created && has_selector(service) {
        return Some(format!("was given a selector{by}"));
    }
    let how = if service["spec"]["type"] == "ExternalName" {
        format!("was changed to an ExternalName{by}")
    } else if taken_ports(service, takeover).contains(&port) {
        return None;
    } else if entries(service).iter().any(|entry| is_port(entry, port)) {
        format!("was changed back{by}")
    } else if let Some(now) = entries(service).iter().find(|entry| marked(entry) == Some(port)).and_then(number) {
        format!("was changed{by} (port {port} is port {now} now)")
    } else {
        format!("was changed{by} (it has no port {port} any more)")
    };
    Some(format!("{how}{}", advice(service)))
}

/// Name of adit in `managedFields`.
const ADIT: &str = "adit";

/// Returns the `managedFields` of an object without adit. `None`: adit owns nothing, or there is no other owner.
pub fn disowned(object: &Value) -> Option<Value> {
    let all = object["metadata"]["managedFields"].as_array()?;
    let others: Vec<&Value> = all.iter().filter(|owner| owner["manager"] != ADIT).collect();
    // The API server would ignore an empty list.
    (others.len() < all.len() && !others.is_empty()).then(|| json!(others))
}

/// Returns the time and name of the last selected writer of the Service, from `managedFields`. Times are in whole
/// seconds: at the same time, another writer wins over adit.
fn last_writer(service: &Value, is_one: impl Fn(&str) -> bool) -> Option<(String, String)> {
    let writers = service["metadata"]["managedFields"].as_array()?.iter();
    let writers = writers.filter(|writer| is_one(text(&writer["manager"])) && writer["subresource"].is_null());
    let last = writers.max_by_key(|writer| (text(&writer["time"]).to_owned(), writer["manager"] != ADIT))?;
    let by = printable(text(&last["manager"]));
    Some((text(&last["time"]).to_owned(), by))
}

/// Returns the command that pauses Argo CD or Flux for a Service.
fn advice(service: &Value) -> String {
    let metadata = &service["metadata"];
    let label = |key: &str| metadata["labels"][key].as_str().map(str::to_owned);
    let of_argo = metadata["annotations"]["argocd.argoproj.io/tracking-id"].as_str();
    if let Some(app) = of_argo.and_then(|id| id.split(':').next()) {
        return format!(": pause Argo CD for as long, 'argocd app set {app} --sync-policy none'");
    }
    if let Some(name) = label("kustomize.toolkit.fluxcd.io/name") {
        let namespace = label("kustomize.toolkit.fluxcd.io/namespace").unwrap_or_default();
        return format!(": pause Flux for as long, 'flux suspend kustomization {name} -n {namespace}'");
    }
    if let Some(name) = label("helm.toolkit.fluxcd.io/name") {
        let namespace = label("helm.toolkit.fluxcd.io/namespace").unwrap_or_default();
        return format!(": pause Flux for as long, 'flux suspend helmrelease {name} -n {namespace}'");
    }
    String::new()
}

#[cfg(test)]
mod tests;
