//! How a Service that is taken over differs from itself: what is changed, what is kept, and what is refused.
//!
//! Only `targetPort` of the ports that were asked for is changed, to a name that no pod has. The cluster's own controllers
//! then leave these ports out of the Service's endpoints, and go on serving all others. Each former value is kept in an
//! annotation, which the same patch writes; so a Service can always be put back from what it says itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{EXPOSED, MANAGED_BY, ServiceName, TAKEOVER, condition::Condition, text};

/// Content of the annotation [`TAKEOVER`], as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takeover {
    /// The relay that has done it: `namespace/pod/uid/start`.
    pub relay: String,
    /// The Service was created by the relay, and is deleted at the end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub created: bool,
    pub ports: Vec<TakenPort>,
}

/// A port that leads to a laptop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TakenPort {
    pub port: u16,
    /// The original `targetPort`. Null: it was absent.
    #[serde(default)]
    pub target_port: Value,
    /// Holder: the name of the key, and the address. Where the port is taken over in part, all holders.
    pub owner: String,
    /// RFC 3339.
    pub since: String,
    /// Requests and their owners; all others go to the pods. Empty: everything goes to the owner.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub personal: Vec<PersonalPart>,
}

/// The requests of a port that go to one laptop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonalPart {
    pub requests: Condition,
    pub owner: String,
    /// RFC 3339.
    pub since: String,
}

/// Holder of a port, and the time of the takeover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub owner: String,
    pub since: String,
    /// Empty: all of it.
    pub personal: Vec<PersonalPart>,
}

/// Why a Service is left alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("Service {0} exists: --replace takes it over until the end")]
    Exists(ServiceName),
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
    #[error(
        "the annotation {TAKEOVER} of Service {service} is damaged ({problem}): set targetPort of its ports by hand, then remove \
         the annotation"
    )]
    Damaged { service: ServiceName, problem: String },
}

/// Change to a Service.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Nothing,
    /// A merge patch.
    Patch(Value),
    /// It was created by a relay, and is nobody else's.
    Delete,
}

/// Returns the `targetPort` of a port that is taken over. A valid port name (RFC 6335, section 5.1).
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

/// Returns what a Service says of its takeover; `kept`: what its Lease says, for the case that somebody has removed the annotation
/// and left the rest. None: it is not taken over.
pub fn takeover(service: &Value, name: &ServiceName, kept: Option<&Takeover>) -> Result<Option<Takeover>, Refusal> {
    let is_marked = entries(service).iter().any(|entry| marked(entry).is_some());
    let said = service["metadata"]["annotations"][TAKEOVER].as_str().map(serde_json::from_str::<Takeover>);
    match (said, kept) {
        (Some(Ok(said)), _) => Ok(Some(said)),
        (None, Some(kept)) if is_marked => Ok(Some(kept.clone())),
        (None, _) => Ok(None),
        (Some(Err(_)), Some(kept)) => Ok(Some(kept.clone())),
        (Some(Err(error)), None) => {
            let problem = format!("column {} is not understood", error.column());
            Err(Refusal::Damaged { service: name.clone(), problem })
        }
    }
}

/// Returns the ports of a Service that lead to laptops now.
pub fn taken_ports(service: &Value, takeover: &Takeover) -> BTreeSet<u16> {
    let known: BTreeSet<u16> = takeover.ports.iter().map(|taken| taken.port).collect();
    let here: BTreeSet<u16> = match takeover.created {
        true => entries(service).iter().filter(|entry| is_created(entry)).filter_map(number).collect(),
        false => entries(service).iter().filter_map(marked).collect(),
    };
    known.intersection(&here).copied().collect()
}

/// Returns how endpoints have the ports that lead to laptops: their names (empty for an only port without one), and protocols.
pub fn taken_names(service: &Value, wanted: &BTreeMap<u16, Holder>, created: bool) -> BTreeMap<u16, Value> {
    let of_port = |port: &u16| {
        let entry = entries(service).iter().find(|entry| is_tcp(entry) && marked(entry) == Some(*port));
        let entry =
            entry.or_else(|| entries(service).iter().find(|entry| is_tcp(entry) && number(entry) == Some(*port)));
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

/// Returns the name of a port, as endpoints have it: empty for an only port without one.
pub fn port_name(service: &Value, port: u16) -> String {
    let is_it = |entry: &&Value| is_tcp(entry) && (number(entry) == Some(port) || marked(entry) == Some(port));
    entries(service).iter().find(is_it).map_or(String::new(), |entry| text(&entry["name"]).to_owned())
}

pub fn has_selector(service: &Value) -> bool {
    service["spec"]["selector"].as_object().is_some_and(|selector| !selector.is_empty())
}

/// Returns the address families of a Service: `IPv4`, `IPv6`.
pub fn families(service: &Value) -> Vec<String> {
    let families = service["spec"]["ipFamilies"].as_array().into_iter().flatten();
    families.filter_map(|family| family.as_str().map(str::to_owned)).collect()
}

/// Says why a Service cannot be taken over, before anything is touched. `families`: those of the relay.
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
    let is_there = |entry: &Value| is_tcp(entry) && (number(entry) == Some(port) || marked(entry) == Some(port));
    if !entries(service).iter().any(is_there) {
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

/// Returns the takeover that leads to `wanted`, with everything that has to be kept.
pub fn plan(service: &Value, before: Option<&Takeover>, relay: &str, wanted: &BTreeMap<u16, Holder>) -> Takeover {
    let kept = |port: u16| before.and_then(|before| before.ports.iter().find(|taken| taken.port == port));
    let created = before.is_some_and(|before| before.created);
    let ports = wanted.iter().map(|(port, holder)| {
        let is_marked = entries(service).iter().any(|entry| marked(entry) == Some(*port));
        let now = entries(service).iter().find(|entry| is_tcp(entry) && number(entry) == Some(*port));
        let target_port = match kept(*port) {
            Some(kept) if is_marked => kept.target_port.clone(),
            _ if created => Value::Null,
            _ => now.map_or(Value::Null, |entry| entry["targetPort"].clone()),
        };
        let Holder { owner, since, personal } = holder.clone();
        TakenPort { port: *port, target_port, owner, since, personal }
    });
    Takeover { relay: relay.to_owned(), created, ports: ports.collect() }
}

/// Returns what makes a Service one that `after` says; None: one that is not taken over.
pub fn change(service: &Value, before: Option<&Takeover>, after: Option<&Takeover>) -> Change {
    let after = after.filter(|after| !after.ports.is_empty());
    let Some(any) = after.or(before) else { return Change::Nothing };
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
        // A list is patched as a whole; the resourceVersion says that it is still the one that was read.
        patch["spec"] = json!({"ports": ports});
    }
    Change::Patch(patch)
}

fn replaced_ports(service: &Value, before: Option<&Takeover>, after: Option<&Takeover>) -> Vec<Value> {
    let find = |takeover: Option<&Takeover>, port: u16| {
        takeover.and_then(|takeover| takeover.ports.iter().find(|taken| taken.port == port)).cloned()
    };
    let changed = |entry: &Value| {
        let mut entry = entry.clone();
        match (marked(&entry), number(&entry)) {
            (Some(port), _) if find(after, port).is_some() => {}
            (Some(port), _) => match find(before, port).map(|taken| taken.target_port) {
                Some(Value::Null) => drop(entry.as_object_mut().and_then(|entry| entry.remove("targetPort"))),
                Some(target_port) => entry["targetPort"] = target_port,
                None => {}
            },
            (None, Some(port)) if is_tcp(&entry) && find(after, port).is_some() => {
                entry["targetPort"] = json!(marker(port));
            }
            _ => {}
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
    // A Service has at least one port.
    if ports.is_empty() { entries(service).to_vec() } else { ports }
}

/// Says what has become of a port that is held: None while it is as it was made.
pub fn undone(service: &Value, takeover: Option<&Takeover>, port: u16) -> Option<String> {
    let by = last_writer(service).map_or(String::new(), |by| format!(" by {by}"));
    let Some(takeover) = takeover.filter(|takeover| takeover.ports.iter().any(|taken| taken.port == port)) else {
        return Some(format!("was given back{by}"));
    };
    if takeover.created && has_selector(service) {
        return Some(format!("was given a selector{by}"));
    }
    match taken_ports(service, takeover).contains(&port) {
        true => None,
        false => Some(format!("was changed back{by}{}", advice(service))),
    }
}

/// Returns who has written the Service last, adit aside, as `managedFields` tells.
fn last_writer(service: &Value) -> Option<String> {
    let writers = service["metadata"]["managedFields"].as_array()?.iter();
    let writers = writers.filter(|writer| writer["manager"] != "adit" && writer["subresource"].is_null());
    let last = writers.max_by_key(|writer| text(&writer["time"]).to_owned())?;
    Some(text(&last["manager"]).chars().filter(|character| !character.is_control()).collect())
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
