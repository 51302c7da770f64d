//! Lists as kubectl prints them: the Table that it asks servers for (meta.k8s.io/v1).

use serde_json::{Value, json};

/// Returns the table of some objects of a kind.
pub fn table(kind: &str, objects: &[Value]) -> Value {
    let columns: &[&str] = match kind {
        "pods" => &["Name", "Ready", "Status", "Restarts", "Age"],
        "services" => &["Name", "Type", "Cluster-IP", "External-IP", "Port(s)", "Age"],
        "namespaces" => &["Name", "Status", "Age"],
        _ => &["Name", "AddressType", "Ports", "Endpoints", "Age"],
    };
    let definition = |name: &&str| json!({"name": name, "type": "string", "format": if *name == "Name" { "name" } else { "" }, "description": "", "priority": 0});
    let row = |object: &Value| json!({"cells": cells(kind, object), "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]}});
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": "1"},
        "columnDefinitions": columns.iter().map(definition).collect::<Vec<_>>(),
        "rows": objects.iter().map(row).collect::<Vec<_>>()
    })
}

fn cells(kind: &str, object: &Value) -> Vec<Value> {
    let name = object["metadata"]["name"].clone();
    let age = json!("1d");
    match kind {
        "pods" => {
            let container = &object["status"]["containerStatuses"][0];
            let is_ready = container["ready"] == true;
            let status = container["state"]["waiting"]["reason"].as_str().unwrap_or("Running");
            vec![
                name,
                json!(if is_ready { "1/1" } else { "0/1" }),
                json!(status),
                container["restartCount"].clone(),
                age,
            ]
        }
        "services" => {
            let spec = &object["spec"];
            let ports: Vec<String> = spec["ports"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|port| format!("{}/{}", port["port"], port["protocol"].as_str().unwrap_or("TCP")))
                .collect();
            let text = |value: &Value, default: &str| json!(value.as_str().unwrap_or(default));
            vec![
                name,
                text(&spec["type"], "ClusterIP"),
                text(&spec["clusterIP"], "<none>"),
                text(&spec["externalName"], "<none>"),
                json!(if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") }),
                age,
            ]
        }
        "namespaces" => vec![name, json!("Active"), age],
        _ => {
            let list = |key: &str, inner: &str| {
                object[key]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|item| item[inner].to_string())
                    .collect::<Vec<_>>()
                    .join(",")
            };
            vec![
                name,
                object["addressType"].clone(),
                json!(list("ports", "port")),
                json!(list("endpoints", "addresses")),
                age,
            ]
        }
    }
}
