//! Lists in the format that kubectl prints: the Table that it requests (meta.k8s.io/v1).

use jiff::{Timestamp, Unit};
use serde_json::{Value, json};

use super::kinds::Kind;

/// Columns of a kind: name, and priority 1 if only `-o wide` shows it.
type Columns = &'static [(&'static str, u8)];

/// Returns the table of objects of a kind. `version`: version of the list.
pub fn table<'a>(kind: &Kind, objects: impl IntoIterator<Item = &'a Value>, version: &str) -> Value {
    let definition = |(name, priority): &(&str, u8)| {
        let format = if *name == "Name" { "name" } else { "" };
        json!({"name": name, "type": "string", "format": format, "description": "", "priority": priority})
    };
    let row = |object: &Value| {
        let metadata =
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]});
        json!({"cells": cells(kind.plural, object), "object": metadata})
    };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": version},
        "columnDefinitions": columns(kind.plural).iter().map(definition).collect::<Vec<_>>(),
        "rows": objects.into_iter().map(row).collect::<Vec<_>>()
    })
}

fn columns(plural: &str) -> Columns {
    match plural {
        "pods" => &[
            ("Name", 0),
            ("Ready", 0),
            ("Status", 0),
            ("Restarts", 0),
            ("Age", 0),
            ("IP", 1),
            ("Node", 1),
            ("Nominated Node", 1),
            ("Readiness Gates", 1),
        ],
        "services" => &[
            ("Name", 0),
            ("Type", 0),
            ("Cluster-IP", 0),
            ("External-IP", 0),
            ("Port(s)", 0),
            ("Age", 0),
            ("Selector", 1),
        ],
        "namespaces" => &[("Name", 0), ("Status", 0), ("Age", 0)],
        "nodes" => &[("Name", 0), ("Status", 0), ("Roles", 0), ("Age", 0), ("Version", 0), ("Internal-IP", 1)],
        "deployments" => &[
            ("Name", 0),
            ("Ready", 0),
            ("Up-to-date", 0),
            ("Available", 0),
            ("Age", 0),
            ("Containers", 1),
            ("Images", 1),
            ("Selector", 1),
        ],
        "replicasets" => &[
            ("Name", 0),
            ("Desired", 0),
            ("Current", 0),
            ("Ready", 0),
            ("Age", 0),
            ("Containers", 1),
            ("Images", 1),
            ("Selector", 1),
        ],
        "statefulsets" => &[("Name", 0), ("Ready", 0), ("Age", 0), ("Containers", 1), ("Images", 1)],
        "endpointslices" => &[("Name", 0), ("AddressType", 0), ("Ports", 0), ("Endpoints", 0), ("Age", 0)],
        _ => &[("Name", 0), ("Age", 0)],
    }
}

fn cells(plural: &str, object: &Value) -> Vec<Value> {
    let (name, age) = (object["metadata"]["name"].clone(), json!(age(&object["metadata"]["creationTimestamp"])));
    let (spec, status) = (&object["spec"], &object["status"]);
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let ready = || json!(format!("{}/{}", number(&status["readyReplicas"]), number(&spec["replicas"])));
    let container = &spec["template"]["spec"]["containers"][0];
    match plural {
        "pods" => {
            let ready = json!(if status["containerStatuses"][0]["ready"] == true { "1/1" } else { "0/1" });
            let restarts = json!(number(&status["containerStatuses"][0]["restartCount"]).to_string());
            vec![
                name,
                ready,
                json!(pod_status(object)),
                restarts,
                age,
                or_none(&status["podIP"]),
                or_none(&spec["nodeName"]),
                none(),
                none(),
            ]
        }
        "services" => {
            let external = or_none(&spec["externalName"]);
            vec![
                name,
                spec["type"].clone(),
                or_none(&spec["clusterIP"]),
                external,
                json!(service_ports(spec)),
                age,
                labels(&spec["selector"]),
            ]
        }
        "namespaces" => vec![name, status["phase"].clone(), age],
        "nodes" => vec![
            name,
            json!("Ready"),
            none(),
            age,
            status["nodeInfo"]["kubeletVersion"].clone(),
            status["addresses"][0]["address"].clone(),
        ],
        "deployments" => {
            let (updated, available) = (number(&status["updatedReplicas"]), number(&status["availableReplicas"]));
            vec![
                name,
                ready(),
                json!(updated.to_string()),
                json!(available.to_string()),
                age,
                container["name"].clone(),
                container["image"].clone(),
                labels(&spec["selector"]["matchLabels"]),
            ]
        }
        "replicasets" => {
            let counts = [&spec["replicas"], &status["replicas"], &status["readyReplicas"]]
                .map(|count| json!(number(count).to_string()));
            let [wanted, all, ready] = counts;
            vec![
                name,
                wanted,
                all,
                ready,
                age,
                container["name"].clone(),
                container["image"].clone(),
                labels(&spec["selector"]["matchLabels"]),
            ]
        }
        "statefulsets" => vec![name, ready(), age, container["name"].clone(), container["image"].clone()],
        "endpointslices" => {
            let join = |list: &Value, text: &dyn Fn(&Value) -> String| {
                let items: Vec<String> = list.as_array().into_iter().flatten().map(text).collect();
                json!(if items.is_empty() { "<unset>".to_owned() } else { items.join(",") })
            };
            let ports = join(&object["ports"], &|port| port["port"].to_string());
            let endpoints = join(&object["endpoints"], &|endpoint| {
                endpoint["addresses"][0].as_str().unwrap_or_default().to_owned()
            });
            vec![name, object["addressType"].clone(), ports, endpoints, age]
        }
        _ => vec![name, age],
    }
}

fn pod_status(pod: &Value) -> &str {
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        return "Terminating";
    }
    let state = &pod["status"]["containerStatuses"][0]["state"];
    let reason = state["waiting"]["reason"].as_str().or(state["terminated"]["reason"].as_str());
    reason.or(pod["status"]["phase"].as_str()).unwrap_or("Unknown")
}

fn service_ports(spec: &Value) -> String {
    let port = |port: &Value| format!("{}/{}", port["port"], port["protocol"].as_str().unwrap_or("TCP"));
    let ports: Vec<String> = spec["ports"].as_array().into_iter().flatten().map(port).collect();
    if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") }
}

fn labels(labels: &Value) -> Value {
    let pairs = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    let pairs: Vec<String> = pairs.collect();
    if pairs.is_empty() { none() } else { json!(pairs.join(",")) }
}

fn or_none(value: &Value) -> Value {
    if value.is_null() { none() } else { value.clone() }
}

fn none() -> Value {
    json!("<none>")
}

/// Returns the age of a time in one unit, as kubectl does: seconds, minutes, hours or days.
fn age(since: &Value) -> String {
    let Some(since) = since.as_str().and_then(|since| since.parse::<Timestamp>().ok()) else {
        return "<unknown>".to_owned();
    };
    let seconds = Timestamp::now().since((Unit::Second, since)).map_or(0, |span| span.get_seconds()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{kinds, objects, tasks::Tasks, world::World};

    #[tokio::test]
    async fn every_row_has_a_cell_for_every_column() {
        let world = World::new(Tasks::default());
        objects::create(&world);
        for kind in kinds::ALL {
            let (objects, _) = world.list(kind.plural, None);
            let table = table(kind, objects.iter().map(|object| &**object), "1");
            let columns = table["columnDefinitions"].as_array().unwrap().len();
            for row in table["rows"].as_array().unwrap() {
                assert_eq!(row["cells"].as_array().unwrap().len(), columns, "{}: {row}", kind.plural);
                assert!(row["cells"].as_array().unwrap().iter().all(Value::is_string), "{}: {row}", kind.plural);
            }
        }
    }

    #[test]
    fn ages_are_in_the_largest_unit() {
        let ago = |seconds: i64| {
            age(&json!(Timestamp::from_second(Timestamp::now().as_second() - seconds).unwrap().to_string()))
        };
        assert_eq!([ago(119), ago(120), ago(7199), ago(7200), ago(172_800)], ["119s", "2m", "119m", "2h", "2d"]);
        assert_eq!(age(&Value::Null), "<unknown>");
    }
}
