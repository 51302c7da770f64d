//! Validates JSON against the subset of JSON Schema that adit's schemas use. It is stricter in one respect: an object must not
//! have keys that its schema does not know.

use std::collections::BTreeSet;

use serde_json::Value;

/// Asserts that `value` matches `$defs/name` of `document`.
pub fn assert_valid(document: &Value, name: &str, value: &Value) {
    let schema = &document["$defs"][name];
    assert!(schema.is_object(), "there is no schema {name}");
    let mut problems = Vec::new();
    judge(document, schema, value, name, &mut problems);
    if value.is_object() {
        let known = keys(document, schema);
        let unknown: Vec<_> = value.as_object().unwrap().keys().filter(|key| !known.contains(*key)).collect();
        assert!(unknown.is_empty(), "{name} has keys that its schema does not know: {unknown:?}");
    }
    assert!(problems.is_empty(), "{name}: {}\n{value:#}", problems.join("\n"));
}

/// Follows the reference of a schema.
fn resolve<'s>(document: &'s Value, schema: &'s Value) -> &'s Value {
    match schema.get("$ref").and_then(Value::as_str) {
        Some(path) => document.pointer(path.trim_start_matches('#')).unwrap_or_else(|| panic!("no {path}")),
        None => schema,
    }
}

fn parts<'s>(schema: &'s Value, key: &str) -> Vec<&'s Value> {
    schema.get(key).and_then(Value::as_array).into_iter().flatten().collect()
}

fn keys(document: &Value, schema: &Value) -> BTreeSet<String> {
    let schema = resolve(document, schema);
    let own = schema.get("properties").and_then(Value::as_object).into_iter().flat_map(|map| map.keys().cloned());
    own.chain(parts(schema, "allOf").into_iter().flat_map(|part| keys(document, part))).collect()
}

fn judge(document: &Value, schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>) {
    let resolved = resolve(document, schema);
    if !std::ptr::eq(resolved, schema) {
        return judge(document, resolved, value, path, problems);
    }
    let mut wrong = |why: String| problems.push(format!("{path}: {why}"));
    let is = |kind: &str| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        kind => panic!("{kind} is no type"),
    };
    match &schema["type"] {
        Value::String(kind) if !is(kind) => wrong(format!("{value} is no {kind}")),
        Value::Array(kinds) if !kinds.iter().any(|kind| is(kind.as_str().unwrap())) => {
            wrong(format!("{value} is none of {kinds:?}"));
        }
        _ => {}
    }
    let is_out = |number: f64| {
        schema["minimum"].as_f64().is_some_and(|least| number < least)
            || schema["maximum"].as_f64().is_some_and(|most| number > most)
    };
    if value.as_f64().is_some_and(is_out) {
        wrong(format!("{value} is out of bounds"));
    }
    if let Some(known) = schema["enum"].as_array().filter(|known| !known.contains(value)) {
        wrong(format!("{value} is none of {known:?}"));
    }
    for key in parts(schema, "required") {
        if value.is_object() && value.get(key.as_str().unwrap()).is_none() {
            wrong(format!("it lacks {key}"));
        }
    }
    for part in parts(schema, "allOf") {
        judge(document, part, value, path, problems);
    }
    let choices = parts(schema, "anyOf");
    let fits = |choice: &&Value| {
        let mut problems = Vec::new();
        judge(document, choice, value, path, &mut problems);
        problems.is_empty()
    };
    if !choices.is_empty() && !choices.iter().any(fits) {
        problems.push(format!("{path}: {value} is none of its choices"));
    }
    for (key, of_key) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(value) = value.get(key) {
            let path = format!("{path}.{key}");
            judge(document, of_key, value, &path, problems);
            if value.is_object() && !keys(document, of_key).is_empty() {
                let known = keys(document, of_key);
                let unknown = value.as_object().unwrap().keys().filter(|key| !known.contains(*key));
                problems.extend(unknown.map(|key| format!("{path}: {key} is not known")));
            }
        }
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for (at, value) in values.iter().enumerate() {
            let path = format!("{path}[{at}]");
            judge(document, items, value, &path, problems);
            if let Some(object) = value.as_object() {
                let known = keys(document, items);
                problems.extend(
                    object.keys().filter(|key| !known.contains(*key)).map(|key| format!("{path}: {key} is not known")),
                );
            }
        }
    }
}
