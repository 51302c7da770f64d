//! Creates, patches, replaces and deletes objects, with the API server's preconditions.

use http::{Response, StatusCode, header, request::Parts};
use serde_json::{Map, Value, json};

use super::{Body, Resource, json_body, ok, status, text};
use crate::demo::{
    Node, objects,
    world::{State, World},
};

/// Performs a write after its body was read. `verb`: `create`, `patch`, `update` or `delete`.
pub fn write(verb: &str, resource: &Resource<'_>, parts: &Parts, sent: Value, node: &Node) -> Response<Body> {
    let done = match (verb, resource.name) {
        ("create", None) => create(resource, sent, &node.world),
        ("patch", Some(name)) => {
            let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
            match kind.starts_with("application/merge-patch+json") {
                true => change(resource, name, &sent, &node.world, merged),
                false => Err(failure(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "UnsupportedMediaType",
                    "the demo takes application/merge-patch+json",
                )),
            }
        }
        ("update", Some(name)) => change(resource, name, &sent, &node.world, |_, sent| sent.clone()),
        ("delete", Some(name)) => delete(resource, name, &sent["preconditions"], &node.world),
        _ => Err(failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "the demo does not do that")),
    };
    done.unwrap_or_else(|failed| *failed)
}

type Done = Result<Response<Body>, Box<Response<Body>>>;

fn failure(code: StatusCode, reason: &str, message: &str) -> Box<Response<Body>> {
    Box::new(status(code, reason, message))
}

fn create(resource: &Resource<'_>, mut object: Value, world: &World) -> Done {
    let (plural, namespace) = (resource.kind.plural, resource.namespace.unwrap_or(""));
    let Some(metadata) = object["metadata"].as_object_mut() else {
        return Err(failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", "metadata: Required value"));
    };
    metadata.insert("namespace".to_owned(), json!(namespace));
    world.change(|state| {
        if resource.kind.is_namespaced && state.get("namespaces", "", namespace).is_none() {
            let message = format!("namespaces \"{namespace}\" not found");
            return Err(failure(StatusCode::NOT_FOUND, "NotFound", &message));
        }
        if object["metadata"]["name"].is_null() {
            let start = text(&object["metadata"]["generateName"]).to_owned();
            object["metadata"]["name"] = json!(format!("{start}{}", state.new_suffix()));
        }
        let name = text(&object["metadata"]["name"]).to_owned();
        if name.is_empty() {
            return Err(failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", "metadata.name: Required value"));
        }
        if state.get(plural, namespace, &name).is_some() {
            let message = format!("{} \"{name}\" already exists", resource.kind.qualified());
            return Err(failure(StatusCode::CONFLICT, "AlreadyExists", &message));
        }
        if plural == "services" {
            objects::default_service(&mut object);
        }
        tidy(plural, &mut object);
        state.put(plural, object);
        Ok(json_body(StatusCode::CREATED, &found(state, resource, &name)?))
    })
}

/// Replaces an object by the result of `changed` on the object and the body.
fn change(
    resource: &Resource<'_>,
    name: &str,
    sent: &Value,
    world: &World,
    changed: impl FnOnce(&Value, &Value) -> Value,
) -> Done {
    world.change(|state| {
        let before = found(state, resource, name)?;
        check(resource, name, &before, &sent["metadata"])?;
        let mut after = changed(&before, sent);
        for fixed in ["name", "namespace", "uid", "creationTimestamp", "resourceVersion"] {
            after["metadata"][fixed] = before["metadata"][fixed].clone();
        }
        tidy(resource.kind.plural, &mut after);
        state.put(resource.kind.plural, after);
        Ok(ok(&found(state, resource, name)?))
    })
}

fn delete(resource: &Resource<'_>, name: &str, preconditions: &Value, world: &World) -> Done {
    world.change(|state| {
        let before = found(state, resource, name)?;
        check(resource, name, &before, preconditions)?;
        state.remove(resource.kind.plural, resource.namespace.unwrap_or(""), name);
        let details = json!({"name": name, "kind": resource.kind.plural, "uid": before["metadata"]["uid"]});
        Ok(ok(&json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})))
    })
}

fn found(state: &State, resource: &Resource<'_>, name: &str) -> Result<Value, Box<Response<Body>>> {
    let object = state.get(resource.kind.plural, resource.namespace.unwrap_or(""), name);
    object.map(|object| (*object).clone()).ok_or_else(|| {
        let message = format!("{} \"{name}\" not found", resource.kind.qualified());
        failure(StatusCode::NOT_FOUND, "NotFound", &message)
    })
}

/// Checks the version and the UID that the client expects.
fn check(resource: &Resource<'_>, name: &str, object: &Value, expected: &Value) -> Result<(), Box<Response<Body>>> {
    for field in ["uid", "resourceVersion"] {
        let (expected, is) = (text(&expected[field]), text(&object["metadata"][field]));
        if !expected.is_empty() && expected != is {
            let message = format!(
                "Operation cannot be fulfilled on {} \"{name}\": the object has been modified; please apply your changes to the \
                 latest version and try again",
                resource.kind.qualified()
            );
            return Err(failure(StatusCode::CONFLICT, "Conflict", &message));
        }
    }
    Ok(())
}

/// Applies a JSON merge patch (RFC 7386, section 2).
fn merged(target: &Value, patch: &Value) -> Value {
    let Some(patch) = patch.as_object() else { return patch.clone() };
    let mut merged: Map<String, Value> = target.as_object().cloned().unwrap_or_default();
    for (key, value) in patch {
        match value {
            Value::Null => drop(merged.remove(key)),
            value => drop(merged.insert(key.clone(), self::merged(&target[key], value))),
        }
    }
    Value::Object(merged)
}

/// Removes what the API server does not store: empty maps and lists in the metadata, an empty selector, empty lists of endpoints.
/// The lists of an EndpointSlice have no `omitempty`, so empty ones become null.
fn tidy(plural: &str, object: &mut Value) {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    for (part, fields) in
        [("metadata", &["labels", "annotations", "ownerReferences", "finalizers"][..]), ("spec", &["selector"][..])]
    {
        let Some(part) = object[part].as_object_mut() else { continue };
        part.retain(|key, value| !(fields.contains(&key.as_str()) && is_empty(value)));
    }
    match plural {
        "endpointslices" => {
            for list in ["endpoints", "ports"] {
                if is_empty(&object[list]) {
                    object[list] = Value::Null;
                }
            }
        }
        "endpoints" => {
            for subset in object["subsets"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
                subset.retain(|_, list| !is_empty(list));
            }
            if let Some(object) = object.as_object_mut() {
                object.retain(|field, list| field != "subsets" || !is_empty(list));
            }
        }
        _ => {}
    }
    if object["spec"].is_null()
        && let Some(object) = object.as_object_mut()
    {
        object.remove("spec");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_patch_adds_replaces_and_removes() {
        let target = json!({"a": 1, "b": {"c": 2, "d": 3}, "list": [1, 2]});
        let patch = json!({"a": null, "b": {"c": null, "e": {"f": null}}, "list": [3], "new": "x"});
        assert_eq!(merged(&target, &patch), json!({"b": {"d": 3, "e": {}}, "list": [3], "new": "x"}));
    }

    #[test]
    fn empty_metadata_is_not_stored() {
        let mut object =
            json!({"metadata": {"name": "a", "labels": {}, "annotations": {}}, "spec": {"selector": {}, "ports": []}});
        tidy("services", &mut object);
        assert_eq!(object, json!({"metadata": {"name": "a"}, "spec": {"ports": []}}));
    }

    // Recorded from Kubernetes 1.36.
    #[test]
    fn empty_lists_of_endpoints_are_stored_as_the_api_server_does() {
        let mut slice = json!({"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": [], "ports": []});
        tidy("endpointslices", &mut slice);
        assert_eq!(slice, json!({"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": null, "ports": null}));
        let mut endpoints =
            json!({"metadata": {"name": "a"}, "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": []}]});
        tidy("endpoints", &mut endpoints);
        assert_eq!(endpoints, json!({"metadata": {"name": "a"}, "subsets": [{"addresses": [{"ip": "10.0.0.1"}]}]}));
    }
}
