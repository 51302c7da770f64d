//! A reference page of every key, generated from the [schema](super::schema).

use serde_json::Value;

use super::schema::schema;

/// Returns the page in Markdown.
pub fn markdown() -> String {
    let schema = schema();
    let mut page = "# Configuration\n\nEvery key, as `adit schema -o markdown` writes them. Durations are `90s`, `60m`, `1h30m`; 0 means never.\n".to_owned();
    let mut waiting = vec![(String::new(), &schema)];
    while let Some((path, object)) = waiting.pop() {
        page += &match path.as_str() {
            "" => "\n## The file\n".to_owned(),
            path => format!("\n## `{path}`\n"),
        };
        if let Some(about) = object["description"].as_str().filter(|_| !path.is_empty()) {
            page += &format!("\n{about}\n");
        }
        page += "\n| key | value | meaning |\n|---|---|---|\n";
        let mut below = Vec::new();
        for (key, value) in object["properties"].as_object().into_iter().flatten() {
            let (kind, inner, step) = kind(&schema, value);
            let about = value["description"].as_str().or_else(|| inner.and_then(|inner| inner["description"].as_str()));
            let needed = object["required"].as_array().is_some_and(|all| all.iter().any(|name| name == key));
            let needed = if needed { "**Required.** " } else { "" };
            page += &format!(
                "| `{key}` | {kind} | {needed}{} |\n",
                about.unwrap_or("").replace('|', "\\|").replace('\n', " ")
            );
            if let Some(inner) = inner {
                let dot = if path.is_empty() { "" } else { "." };
                below.push((format!("{path}{dot}{key}{step}"), inner));
            }
        }
        // `waiting` is a stack: reversed, the sections have the order of the table.
        waiting.extend(below.into_iter().rev());
    }
    page
}

/// Returns the type of a value in words, the object inside of it, and the suffix of that object's path.
fn kind<'s>(root: &'s Value, value: &'s Value) -> (String, Option<&'s Value>, &'static str) {
    let value = resolved(root, value);
    if let Some(choices) = value["enum"].as_array() {
        let choices: Vec<String> =
            choices.iter().filter_map(|choice| Some(format!("`{}`", choice.as_str()?))).collect();
        return (choices.join(", "), None, "");
    }
    if value["properties"].is_object() {
        return ("keys below".to_owned(), Some(value), "");
    }
    if value["additionalProperties"].is_object() {
        let (inner, object, _) = kind(root, &value["additionalProperties"]);
        return (format!("by name: {inner}"), object, ".*");
    }
    let types: Vec<&str> = match &value["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(|kind| kind.as_str()).collect(),
        _ => Vec::new(),
    };
    if types.contains(&"array") {
        let (inner, object, _) = kind(root, &value["items"]);
        return (format!("list of: {inner}"), object, "[]");
    }
    let shown = types.into_iter().find(|kind| *kind != "null");
    match (shown, value["description"].as_str()) {
        (Some("string"), _) => ("text".to_owned(), None, ""),
        (Some("boolean"), _) => ("`true` or `false`".to_owned(), None, ""),
        (Some("integer"), _) => ("number".to_owned(), None, ""),
        (_, Some(about)) => (about.replace('|', "\\|"), None, ""),
        _ => ("text".to_owned(), None, ""),
    }
}

/// Follows references, and leaves out the alternative `null`.
fn resolved<'s>(root: &'s Value, value: &'s Value) -> &'s Value {
    if let Some(name) = value["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
        return resolved(root, &root["$defs"][name]);
    }
    let choice = value["anyOf"].as_array().and_then(|all| all.iter().find(|choice| choice["type"] != "null"));
    choice.map_or(value, |choice| resolved(root, choice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_keys_is_that_of_the_schema() {
        let page = include_str!("../../docs/configuration.md");
        assert_eq!(page, markdown(), "adit schema -o markdown > docs/configuration.md");
        let silent: Vec<&str> = page.lines().filter(|line| line.starts_with("| `") && line.ends_with("|  |")).collect();
        assert_eq!(silent, <Vec<&str>>::new(), "keys without a word on what they mean");
    }

    #[test]
    fn the_full_example_has_every_key() {
        let example = include_str!("../../examples/full.yaml");
        let page = markdown();
        let missing: Vec<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(key, _)| key)
            // `expose` is the former name of `local`.
            .filter(|key| *key != "expose" && !example.contains(&format!("{key}:")))
            .collect();
        assert_eq!(missing, <Vec<&str>>::new());
    }
}
